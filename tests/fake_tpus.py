"""TPU slices without TPUs: what a device says of its place, for tests of meshes."""

import dataclasses
import itertools


@dataclasses.dataclass(frozen=True)
class Device:
  """The attributes by which JAX tells where a TPU lies."""

  id: int
  coords: tuple[int, int, int]
  core_on_chip: int
  process_index: int
  device_kind: str
  platform: str = "tpu"


V5E, V5P = "TPU v5 lite", "TPU v5p"
V6E, V7X = "TPU v6 lite", "TPU7x"
CORES = {V5E: 1, V5P: 1, V6E: 1, V7X: 2}
"""Devices of a chip."""

FLAT = [
  ((1, 1, 1), (1, 1, 1)),
  ((2, 2, 1), (2, 2, 1)),
  ((2, 4, 1), (2, 4, 1)),
  ((4, 4, 1), (2, 2, 1)),
  ((4, 8, 1), (2, 2, 1)),
  ((4, 8, 1), (2, 4, 1)),
  ((8, 8, 1), (2, 2, 1)),
  ((8, 8, 1), (2, 4, 1)),
  ((8, 16, 1), (2, 2, 1)),
  ((16, 16, 1), (2, 2, 1)),
  ((16, 16, 1), (2, 4, 1)),
]
DEEP = [
  ((2, 2, 1), (2, 2, 1)),
  ((2, 2, 2), (2, 2, 1)),
  ((2, 2, 4), (2, 2, 1)),
  ((2, 4, 4), (2, 2, 1)),
  ((4, 4, 4), (2, 2, 1)),
  ((4, 4, 8), (2, 2, 1)),
  ((4, 8, 8), (2, 2, 1)),
]
SLICES = [
  (kind, chips, tile)
  for kind in CORES
  for chips, tile in (FLAT if kind in (V5E, V6E) else DEEP)
]
"""(kind, chips of the slice, chips of a host) along x, y, z: 1 to 256 chips."""


def devices(kind, chips, tile):
  """Returns a slice's devices, in no useful order."""
  hosts = {}
  found = []
  for x, y, z, core in itertools.product(*map(range, (*chips, CORES[kind]))):
    host = (x // tile[0], y // tile[1], z // tile[2])
    process = hosts.setdefault(host, len(hosts))
    found.append(Device(len(found), (x, y, z), core, process, kind))
  return found[::-1]

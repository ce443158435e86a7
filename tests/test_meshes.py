"""Blocks of devices on TPU slices of every shape, on stand-ins for the devices."""

import dataclasses
import math

import jax
import numpy as np
import pytest
from fake_tpus import SLICES, V5E, V5P, V7X, devices

from tpv_jax import meshes, partitioning
from tpv_jax.errors import UserError

PARALLEL = (1, 2, 4, 8, 16)
CASES = [
  (found, parallel)
  for found in (devices(*one) for one in SLICES)
  for parallel in PARALLEL
  if len(found) % parallel == 0
]


def test_every_host_holds_one_full_part_of_the_mesh():
  assert len(CASES) > 150
  for found, parallel in CASES:
    mesh = meshes.arrange(found, meshes.best_block(found, parallel))
    assert mesh.shape == (len(found) // parallel, parallel)
    assert {device.id for device in mesh.flat} == {device.id for device in found}
    owners = np.vectorize(lambda device: device.process_index)(mesh)
    for process in np.unique(owners):
      own = np.argwhere(owners == process)
      assert np.prod(np.ptp(own, axis=0) + 1) == len(own), (found[0], parallel)


def test_a_block_is_a_cuboid_of_neighbours():
  for found, parallel in CASES:
    block = meshes.best_block(found, parallel)
    assert math.prod(block) == parallel
    for row in meshes.arrange(found, block):
      places = np.asarray([(*device.coords, device.core_on_chip) for device in row])
      assert tuple(np.ptp(places, axis=0) + 1) == block


@pytest.mark.parametrize(
  ("kind", "chips", "tile", "size", "block"),
  [
    (V7X, (2, 2, 2), (2, 2, 1), 2, (1, 1, 1, 2)),  # The cores of a chip first,
    (V7X, (2, 2, 2), (2, 2, 1), 8, (2, 2, 1, 2)),  # then the host's tile,
    (V5P, (4, 4, 4), (2, 2, 1), 4, (2, 2, 1, 1)),
    (V5E, (8, 8, 1), (2, 4, 1), 8, (2, 4, 1, 1)),
    (V5E, (8, 8, 1), (2, 2, 1), 16, (4, 4, 1, 1)),  # then what is compact.
    (V5P, (4, 8, 8), (2, 2, 1), 8, (2, 2, 2, 1)),
  ],
)
def test_a_block_fills_chips_then_hosts_then_neighbours(kind, chips, tile, size, block):
  assert meshes.best_block(devices(kind, chips, tile), size) == block


def test_a_block_that_tiles_no_slice_is_refused_with_the_sizes_that_divide():
  found = devices(V5E, (4, 4, 1), (2, 2, 1))
  with pytest.raises(
    UserError, match=r"No block of 3 .* 4 x 4 x 1 x 1 .* 1, 2, 4, 8, 16"
  ):
    meshes.best_block(found, 3)


def test_several_slices_are_refused():
  one = devices(V5E, (2, 2, 1), (2, 2, 1))
  other = [dataclasses.replace(device, id=device.id + 4) for device in one]
  with pytest.raises(
    UserError, match="8 devices do not fill one slice of 2 x 2 x 1 x 1"
  ):
    meshes.best_block([*one, *other], 1)


def test_devices_without_coordinates_are_known():
  assert not meshes.have_coordinates(jax.devices("cpu"))
  assert meshes.have_coordinates(devices(V5E, (2, 2, 1), (2, 2, 1)))


def test_the_runner_arranges_tpus_by_where_they_lie(monkeypatch):
  found = devices(V5E, (4, 4, 1), (2, 2, 1))
  monkeypatch.setattr(jax, "devices", lambda: found)
  monkeypatch.setattr(jax, "device_count", lambda: len(found))
  mesh = partitioning.make_mesh(model_parallel=4)
  assert mesh.axis_names == ("data", "model")
  assert (mesh.devices == meshes.arrange(found, (2, 2, 1, 1))).all()

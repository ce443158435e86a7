"""Blocks of devices on TPU slices of every shape, on stand-ins for the devices."""

import dataclasses
import math

import jax
import numpy as np
import pytest
from fake_tpus import SLICES, V5E, V5P, V7X, devices

from tpv_jax.core.errors import UserError
from tpv_jax.devices import meshes, partitioning

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


SLICE = devices(V5E, (4, 4, 1), (2, 2, 1))


@pytest.mark.parametrize(
  ("submesh", "model_parallel"), [((4, 1, 1, 1), 1), ([1, 4, 1, 1], 4)]
)
def test_a_submesh_is_taken_as_it_is_given(submesh, model_parallel):
  block = meshes.block(SLICE, model_parallel, submesh)
  assert block == tuple(submesh)
  assert meshes.arrange(SLICE, block).shape == (4, 4)


def test_without_one_the_best_is_chosen_and_a_row_of_devices_is_cut():
  assert meshes.block(SLICE, 4) == (2, 2, 1, 1)
  row = [object()] * 8
  assert meshes.block(row, 2) == meshes.block(row, 1, (1, 1, 1, 2)) == (1, 1, 1, 2)


@pytest.mark.parametrize(
  ("found", "model_parallel", "submesh", "message"),
  [
    (
      SLICE,
      3,
      None,
      "MODEL_PARALLEL=3 does not divide the 16 .* one of 1, 2, 4, 8, 16",
    ),
    (SLICE, 1, (2, 2), r"SUBMESH=\(2, 2\) is no block of devices: write \(x, y, z"),
    (SLICE, 1, (2, 2, 1, 0), "is no block of devices"),
    (SLICE, 1, "2x2", "is no block of devices"),
    (SLICE, 2, (2, 2, 1, 1), "is a block of 4 devices, and MODEL_PARALLEL=2"),
    (
      SLICE,
      1,
      (1, 1, 2, 1),
      "does not tile this slice of 4 x 4 x 1 x 1 .* a host has 2 x 2 x 1 x 1",
    ),
    (SLICE, 1, (3, 1, 1, 1), r"\(3, 1, 1, 1\) does not tile"),
    (
      [object()] * 8,
      1,
      (2, 2, 1, 1),
      "the 8 devices here are a row. Set MODEL_PARALLEL",
    ),
  ],
)
def test_blocks_that_are_impossible_are_refused(
  found, model_parallel, submesh, message
):
  with pytest.raises(UserError, match=message):
    meshes.block(found, model_parallel, submesh)


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

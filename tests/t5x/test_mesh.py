"""T5X's own mesh over the block that we choose for it, on stand-ins for TPU slices."""

import types

import jax
import numpy as np
import pytest
from fake_tpus import SLICES, V5E, devices

from tpv_jax.core.errors import UserError
from tpv_jax.devices import meshes


@pytest.mark.parametrize("model_parallel", [1, 2, 4, 8, 16])
def test_t5x_arranges_every_slice_as_we_do(monkeypatch, t5x, model_parallel):
  from t5x import partitioning

  from tpv_jax.t5x import mesh

  for one in SLICES:
    found = devices(*one)
    if len(found) % model_parallel:
      continue
    at_first = [device for device in found if device.process_index == 0]
    monkeypatch.setattr(jax, "devices", lambda *_, found=found: found)
    monkeypatch.setattr(jax, "local_devices", lambda *_, at_first=at_first: at_first)
    monkeypatch.setattr(jax, "device_count", lambda found=found: len(found))
    made = partitioning.get_mesh(
      mesh.partitioner(model_parallel)._model_parallel_submesh
    )
    ours = meshes.arrange(found, meshes.best_block(found, model_parallel))
    assert made.axis_names == ("data", "model")
    assert made.devices.shape == ours.shape
    rings = (
      made.devices != ours
    ).any()  # T5X turns whole rings along z; else the same.
    assert not rings or set(map(frozenset, made.devices)) == set(map(frozenset, ours))
    assert_every_process_has_its_chunk(partitioning, made)


def assert_every_process_has_its_chunk(partitioning, made):
  """T5X's `LocalChunker` accepts each process's devices, and together they are the mesh."""
  processes = {device.process_index for device in made.devices.flat}
  chunks = set()
  for process in processes:
    seen = types.SimpleNamespace(
      devices=made.devices,
      shape=made.shape,
      local_mesh=made._local_mesh(process),  # Raises unless they form a subcube.
    )
    chunker = partitioning.LocalChunker(seen)
    assert np.prod(list(chunker.num_chunks.values())) == len(processes)
    chunks.add(tuple(chunker.chunk_ids.values()))
  assert len(chunks) == len(processes)


def test_a_submesh_of_the_users_is_obeyed(monkeypatch, t5x):
  from tpv_jax.t5x import mesh

  found = devices(V5E, (4, 4, 1), (2, 2, 1))
  monkeypatch.setattr(jax, "devices", lambda *_: found)
  made = mesh.partitioner(submesh=[4, 1, 1, 1], batch_size=16, microbatches=4)
  assert made._model_parallel_submesh == (4, 1, 1, 1)
  with pytest.raises(UserError, match="over 4 data-parallel devices x 8 microb"):
    mesh.partitioner(submesh=(4, 1, 1, 1), batch_size=16, microbatches=8)


@pytest.mark.parametrize(("platform", "spelt_out"), [("cpu", True), ("gpu", False)])
def test_other_devices_get_the_number_as_t5x_takes_it(
  monkeypatch, t5x, platform, spelt_out
):
  from tpv_jax.t5x import mesh

  found = [types.SimpleNamespace(platform=platform) for _ in range(8)]
  monkeypatch.setattr(jax, "devices", lambda *_: found)
  for made in (mesh.partitioner(2), mesh.partitioner(submesh=(1, 1, 1, 2))):
    assert made._model_parallel_submesh == ((1, 1, 1, 2) if spelt_out else None)
    assert made._num_partitions == (None if spelt_out else 2)

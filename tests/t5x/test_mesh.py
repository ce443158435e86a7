"""T5X's own mesh over the block that we choose for it, on stand-ins for TPU slices."""

import jax
import pytest
from fake_tpus import SLICES, devices

from tpv_jax import meshes


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

"""Reading of checkpoints that Orbax itself wrote, as T5X lays them out."""

import os
import pathlib
import shutil
import subprocess
import sys

import ml_dtypes
import numpy as np
import pytest

from tpv_jax import orbax_io
from tpv_jax.errors import UserError

WRITE = """
import sys, jax, jax.numpy as jnp, numpy as np, orbax.checkpoint as ocp
from jax.sharding import Mesh, NamedSharding, PartitionSpec
root = sys.argv[1]
assert jax.device_count() == 4
mesh = Mesh(np.array(jax.devices()), ("data",))
split = NamedSharding(mesh, PartitionSpec("data", None))
prompt = np.arange(32, dtype=np.float32).reshape(8, 4)
tree = {
  "target": {
    "prompt": {"prompt": jax.device_put(prompt, split)},
    "decoder": {"logits": {"kernel": jnp.ones((3, 5), "bfloat16")}},
    "token_embedder": {"embedding": jnp.zeros((6, 4))},
  },
  "state": {
    "step": np.int32(10),
    "param_states": {"prompt": {"m": jax.device_put(prompt / 2, split), "v": None}},
  },
}
with ocp.Checkpointer(ocp.PyTreeCheckpointHandler()) as checkpointer:
  for step in (10, 200):
    path = f"{root}/checkpoint_{step}/state"
    checkpointer.save(path, args=ocp.args.PyTreeSave(tree))
"""

PROMPT = np.arange(32, dtype=np.float32).reshape(8, 4)


@pytest.fixture(scope="module")
def model_dir(tmp_path_factory):
  """A T5X-like model folder, written on four devices; this process has one."""
  root = tmp_path_factory.mktemp("model dir")
  flags = "--xla_force_host_platform_device_count=4"
  environment = {**os.environ, "XLA_FLAGS": flags, "JAX_PLATFORMS": "cpu"}
  subprocess.run([sys.executable, "-c", WRITE, root], env=environment, check=True)
  return root


def copied(model_dir, tmp_path) -> pathlib.Path:
  return shutil.copytree(model_dir / "checkpoint_10", tmp_path / "checkpoint_10")


def test_a_prompt_written_on_four_devices_is_read_on_one(model_dir):
  for path in (model_dir / "checkpoint_10", model_dir / "checkpoint_10" / "state"):
    leaves = orbax_io.read_leaves(path)
    assert list(leaves) == ["prompt"]
    assert leaves["prompt"].dtype == np.float32
    np.testing.assert_array_equal(leaves["prompt"], PROMPT)


def test_a_relative_path_works(model_dir, monkeypatch):
  monkeypatch.chdir(model_dir)
  np.testing.assert_array_equal(orbax_io.read_leaves("checkpoint_10")["prompt"], PROMPT)


def test_a_whole_backbone_keeps_its_paths_and_dtypes(model_dir):
  leaves = orbax_io.read_leaves(model_dir / "checkpoint_10", "target")
  assert {name: (leaf.shape, leaf.dtype) for name, leaf in leaves.items()} == {
    "decoder/logits/kernel": ((3, 5), ml_dtypes.bfloat16),
    "prompt/prompt": ((8, 4), np.float32),
    "token_embedder/embedding": ((6, 4), np.float32),
  }
  # All zeros: Orbax stores no data for them by default.
  assert not leaves["token_embedder/embedding"].any()


def test_a_none_in_the_optimizer_state_is_left_out(model_dir):
  leaves = orbax_io.read_leaves(model_dir / "checkpoint_10", "state/param_states")
  assert list(leaves) == ["prompt/m"]
  np.testing.assert_array_equal(leaves["prompt/m"], PROMPT / 2)


def test_steps_and_checkpoints_are_found_in_numerical_order(model_dir):
  found = orbax_io.checkpoints_in(model_dir)
  assert [path.name for path in found] == ["checkpoint_10", "checkpoint_200"]
  assert [orbax_io.checkpoint_step(path) for path in found] == [10, 200]
  assert orbax_io.checkpoint_step(found[0] / "state") == 10
  assert orbax_io.checkpoint_step(model_dir) is None


def test_a_model_folder_is_refused_with_its_checkpoints(model_dir):
  expected = (
    r"folder of checkpoints \(checkpoint_10, checkpoint_200\). Give one of them"
  )
  with pytest.raises(UserError, match=expected):
    orbax_io.read_leaves(model_dir)


def test_a_wrong_prefix_is_refused_with_what_there_is(model_dir):
  with pytest.raises(UserError, match=r"nothing under 'target/promt'.*target/prompt"):
    orbax_io.read_leaves(model_dir / "checkpoint_10", "target/promt")


def test_a_missing_checkpoint_is_refused_with_near_misses(model_dir):
  with pytest.raises(UserError, match=r"does not exist. Did you mean.*'checkpoint_10'"):
    orbax_io.read_leaves(model_dir / "checkpoint_11")


@pytest.mark.parametrize("name", ["_METADATA", "manifest.ocdbt", "d/*"])
@pytest.mark.parametrize("kept", [0.0, 0.5, None])
@pytest.mark.parametrize("prefix", ["target/prompt", "target"])
def test_a_damaged_checkpoint_is_one_line(
  model_dir, tmp_path, capfd, name, kept, prefix
):
  checkpoint = copied(model_dir, tmp_path)
  damaged = list((checkpoint / "state").glob(name))
  assert damaged
  for file in damaged:
    if kept is None:
      file.unlink()
    else:
      os.truncate(file, int(file.stat().st_size * kept))
  with pytest.raises(
    UserError, match=r"truncated or damaged|lost its _METADATA"
  ) as bad:
    orbax_io.read_leaves(checkpoint, prefix)
  assert str(checkpoint) in str(bad.value)
  assert "\n" not in str(bad.value)
  assert capfd.readouterr().err == ""


def test_metadata_of_another_shape_is_a_damaged_checkpoint(model_dir, tmp_path):
  checkpoint = copied(model_dir, tmp_path)
  for text in ("[]", "{}", '{"tree_metadata": 3}', '{"tree_metadata": {"a": {}}}'):
    (checkpoint / "state" / "_METADATA").write_text(text)
    with pytest.raises(UserError, match="truncated or damaged"):
      orbax_io.read_leaves(checkpoint)


def test_what_is_no_checkpoint_is_named(model_dir, tmp_path):
  legacy = tmp_path / "checkpoint_5"
  legacy.mkdir()
  (legacy / "checkpoint").write_bytes(b"\x83")
  unfinished = tmp_path / "checkpoint_6.orbax-checkpoint-tmp-17"
  shutil.copytree(model_dir / "checkpoint_10", unfinished)
  (tmp_path / "file").write_text("x")
  (tmp_path / "empty").mkdir()
  for name, expected in {
    "checkpoint_5": "truncated or damaged",
    unfinished.name: "never finished",
    "file": "is a file, not an Orbax checkpoint folder",
    "empty": "is no Orbax checkpoint",
  }.items():
    with pytest.raises(UserError, match=expected):
      orbax_io.read_leaves(tmp_path / name)
    assert orbax_io.checkpoints_in(tmp_path / name) == []


def test_importing_it_imports_neither_jax_nor_orbax():
  code = (
    "import sys, tpv_jax.orbax_io; print({'jax', 'orbax', 'flax'} & set(sys.modules))"
  )
  result = subprocess.run(
    [sys.executable, "-c", code], capture_output=True, text=True, check=True
  )
  assert result.stdout == "set()\n"

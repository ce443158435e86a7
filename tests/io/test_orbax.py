"""Reading of checkpoints that Orbax itself wrote, as T5X lays them out."""

import json
import os
import pathlib
import shutil
import subprocess
import sys

import ml_dtypes
import numpy as np
import pytest

from tpv_jax.core.errors import UserError
from tpv_jax.io import orbax

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
    leaves = orbax.read_leaves(path)
    assert list(leaves) == ["prompt"]
    assert leaves["prompt"].dtype == np.float32
    np.testing.assert_array_equal(leaves["prompt"], PROMPT)


def test_a_relative_path_works(model_dir, monkeypatch):
  monkeypatch.chdir(model_dir)
  for path in (
    "checkpoint_10",
    f"../{model_dir.name}/checkpoint_10",
    "checkpoint_10/../checkpoint_10",
  ):
    np.testing.assert_array_equal(orbax.read_leaves(path)["prompt"], PROMPT)


def test_a_whole_backbone_keeps_its_paths_and_dtypes(model_dir):
  leaves = orbax.read_leaves(model_dir / "checkpoint_10", "target")
  assert {name: (leaf.shape, leaf.dtype) for name, leaf in leaves.items()} == {
    "decoder/logits/kernel": ((3, 5), ml_dtypes.bfloat16),
    "prompt/prompt": ((8, 4), np.float32),
    "token_embedder/embedding": ((6, 4), np.float32),
  }
  # All zeros: Orbax stores no data for them by default.
  assert not leaves["token_embedder/embedding"].any()


def test_a_none_in_the_optimizer_state_is_left_out(model_dir):
  leaves = orbax.read_leaves(model_dir / "checkpoint_10", "state/param_states")
  assert list(leaves) == ["prompt/m"]
  np.testing.assert_array_equal(leaves["prompt/m"], PROMPT / 2)


def test_steps_and_checkpoints_are_found_in_numerical_order(model_dir):
  found = orbax.checkpoints_in(model_dir)
  assert [path.name for path in found] == ["checkpoint_10", "checkpoint_200"]
  assert [orbax.checkpoint_step(path) for path in found] == [10, 200]
  assert orbax.checkpoint_step(found[0] / "state") == 10
  assert orbax.checkpoint_step(model_dir) is None


def test_a_model_folder_is_refused_with_its_checkpoints(model_dir):
  expected = (
    r"folder of checkpoints \(checkpoint_10, checkpoint_200\). Give one of them"
  )
  with pytest.raises(UserError, match=expected):
    orbax.read_leaves(model_dir)


def test_a_wrong_prefix_is_refused_with_what_there_is(model_dir):
  with pytest.raises(UserError, match=r"nothing under 'target/promt'.*target/prompt"):
    orbax.read_leaves(model_dir / "checkpoint_10", "target/promt")


def test_a_missing_checkpoint_is_refused_with_near_misses(model_dir):
  with pytest.raises(UserError, match=r"does not exist. Did you mean.*'checkpoint_10'"):
    orbax.read_leaves(model_dir / "checkpoint_11")


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
    orbax.read_leaves(checkpoint, prefix)
  assert str(checkpoint) in str(bad.value)
  assert "\n" not in str(bad.value)
  assert capfd.readouterr().err == ""


def test_metadata_of_another_shape_is_a_damaged_checkpoint(model_dir, tmp_path):
  checkpoint = copied(model_dir, tmp_path)
  for text in ("[]", "{}", '{"tree_metadata": 3}', '{"tree_metadata": {"a": {}}}'):
    (checkpoint / "state" / "_METADATA").write_text(text)
    with pytest.raises(UserError, match="truncated or damaged"):
      orbax.read_leaves(checkpoint)


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
      orbax.read_leaves(tmp_path / name)
    assert orbax.checkpoints_in(tmp_path / name) == []


def test_importing_it_imports_neither_jax_nor_orbax():
  code = (
    "import sys, tpv_jax.io.orbax; print({'jax', 'orbax', 'flax'} & set(sys.modules))"
  )
  result = subprocess.run(
    [sys.executable, "-c", code], capture_output=True, text=True, check=True
  )
  assert result.stdout == "set()\n"


def write_legacy(folder, target):
  """Writes T5X's layout of 2022, as its documentation has it: msgpack beside zarr."""
  import msgpack
  import tensorstore

  def array(values):
    values = np.asarray(values)
    content = (values.shape, values.dtype.name, values.tobytes())
    return msgpack.ExtType(1, msgpack.packb(content))

  def stored(tree, name):
    if isinstance(tree, dict):
      return {key: stored(value, f"{name}.{key}") for key, value in tree.items()}
    if tree.ndim < 2:
      return array(tree)
    spec = {
      "driver": "zarr",
      "kvstore": {"driver": "file", "path": f"{folder}/{name}"},
      "metadata": {"compressor": {"id": "gzip", "level": 1}},
    }
    spec["dtype"] = tree.dtype.name
    store = tensorstore.open(spec, create=True, shape=tree.shape).result()
    store.write(tree).result()
    # Where it lay when it was written, which is not where it is now.
    return {**spec, "kvstore": {"driver": "gfile", "path": f"/elsewhere/{name}/"}}

  folder.mkdir(parents=True)
  content = {
    "version": 3,
    "optimizer": {"target": stored(target, "target"), "state": {"step": 7}},
  }
  (folder / "checkpoint").write_bytes(msgpack.packb(content))
  return folder


LEGACY = {
  "decoder": {
    "logits": {"kernel": np.arange(15, dtype=ml_dtypes.bfloat16).reshape(3, 5)}
  },
  "norm": {"scale": np.linspace(1, 2, 4, dtype=np.float32)},
  "half": {"scale": np.ones(3, ml_dtypes.bfloat16)},
  "prompt": {"prompt": PROMPT},
}


@pytest.fixture
def legacy(tmp_path):
  return write_legacy(tmp_path / "run" / "checkpoint_7", LEGACY)


def test_the_layout_from_before_orbax_is_read(legacy):
  for path in (legacy, legacy / "checkpoint"):
    leaves = orbax.read_leaves(path, "target")
    assert list(leaves) == [
      "decoder/logits/kernel",
      "norm/scale",
      "half/scale",
      "prompt/prompt",
    ]
    for name, leaf in leaves.items():
      first, second = name.rsplit("/", 1)
      expected = LEGACY["decoder"]["logits"] if "logits" in first else LEGACY[first]
      assert leaf.dtype == expected[second].dtype
      np.testing.assert_array_equal(leaf, expected[second])
  np.testing.assert_array_equal(orbax.read_leaves(legacy)["prompt"], PROMPT)
  assert orbax.shapes(legacy) == {"prompt": (8, 4)}


def test_the_layout_from_before_orbax_is_read_from_a_bucket(legacy, bucket):
  from object_store import ObjectStore

  for path in legacy.rglob("*"):
    if path.is_file():
      name = f"bucket/run/checkpoint_7/{path.relative_to(legacy)}"
      ObjectStore.objects[name] = path.read_bytes()
  leaves = orbax.read_leaves(f"{bucket}/run/checkpoint_7")
  np.testing.assert_array_equal(leaves["prompt"], PROMPT)


def test_every_damage_of_the_old_layout_is_one_line(legacy, capfd):
  content = (legacy / "checkpoint").read_bytes()
  for kept in range(0, len(content), 7):
    (legacy / "checkpoint").write_bytes(content[:kept])
    with pytest.raises(UserError, match="truncated or damaged") as bad:
      orbax.read_leaves(legacy, "target")
    assert "\n" not in str(bad.value)
  (legacy / "checkpoint").write_bytes(content)
  zarr = legacy / "target.prompt.prompt"
  (zarr / "0.0").rename(zarr / "9.9")  # A chunk that is lost is not read as zeros.
  with pytest.raises(UserError, match="truncated or damaged"):
    orbax.read_leaves(legacy)
  (zarr / ".zarray").unlink()
  with pytest.raises(UserError, match="truncated or damaged"):
    orbax.read_leaves(legacy)
  assert capfd.readouterr().err == ""


def test_arrays_that_claim_terabytes_are_refused_before_they_are_read(legacy):
  path = legacy / "target.prompt.prompt" / ".zarray"
  path.write_text(json.dumps({**json.loads(path.read_text()), "shape": [1 << 40, 4]}))
  with pytest.raises(
    UserError, match="claims arrays of 17592186044416 bytes, but its files have only"
  ):
    orbax.read_leaves(legacy)


def test_an_inline_array_that_claims_more_than_it_has_is_refused(legacy):
  import msgpack

  path = legacy / "checkpoint"
  content = path.read_bytes()
  inline = msgpack.packb(((4,), "float32", b""))[:3]
  assert content.count(inline) == 1
  path.write_bytes(content.replace(inline, inline[:2] + b"\x7f"))
  with pytest.raises(UserError, match="truncated or damaged"):
    orbax.read_leaves(legacy, "target")


@pytest.mark.parametrize("linked", ["state", "state/manifest.ocdbt"])
def test_a_link_out_of_the_checkpoint_is_not_followed(model_dir, tmp_path, linked):
  checkpoint = copied(model_dir, tmp_path)
  (checkpoint / linked).rename(tmp_path / "elsewhere")
  (checkpoint / linked).symlink_to(tmp_path / "elsewhere")
  with pytest.raises(UserError, match=r"symbolic link out of its folder, to '.*elsew"):
    orbax.read_leaves(checkpoint)
  # The checkpoint as a whole may be one, and links inside of it are as good as files.
  whole = copied(model_dir, tmp_path / "whole")
  (whole / "state" / "again").symlink_to("_METADATA")
  (tmp_path / "checkpoint_9").symlink_to(whole)
  assert "prompt" in orbax.read_leaves(tmp_path / "checkpoint_9")


def test_a_checkpoint_from_the_hub_is_links_to_its_blobs(legacy, tmp_path):
  blobs = tmp_path / "hub" / "blobs"
  blobs.mkdir(parents=True)
  snapshot = tmp_path / "hub" / "snapshots" / "abc" / "checkpoint_7"
  for number, path in enumerate(sorted(legacy.rglob("*"))):
    if path.is_file():
      there = snapshot / path.relative_to(legacy)
      there.parent.mkdir(parents=True, exist_ok=True)
      there.symlink_to(path.rename(blobs / str(number)))
  np.testing.assert_array_equal(orbax.read_leaves(snapshot)["prompt"], PROMPT)


def test_what_is_written_for_t5x_orbax_itself_reads(tmp_path):
  import orbax.checkpoint as ocp

  flat = {
    "a/kernel": PROMPT,
    "b/scale": np.ones(3, ml_dtypes.bfloat16),
    "c/gate": np.array(2.5, np.float32),
  }
  orbax.save_checkpoint(tmp_path / "checkpoint_5", flat, step=5)
  with ocp.Checkpointer(ocp.PyTreeCheckpointHandler()) as checkpointer:
    tree = checkpointer.restore(tmp_path / "checkpoint_5" / "state")
  np.testing.assert_array_equal(tree["target"]["a"]["kernel"], PROMPT)
  assert tree["target"]["b"]["scale"].dtype == ml_dtypes.bfloat16
  assert tree["state"] == {"step": 5}
  leaves = orbax.read_leaves(tmp_path / "checkpoint_5", "target")
  assert leaves.keys() == flat.keys()
  assert leaves["c/gate"] == 2.5


def test_leaves_are_read_when_they_are_asked_for(model_dir, monkeypatch):
  read = []
  real = orbax._read
  monkeypatch.setattr(
    orbax, "_read", lambda store, shown: read.append(1) or real(store, shown)
  )
  leaves = orbax.lazy_leaves(model_dir / "checkpoint_10", "target")
  assert leaves["prompt/prompt"].shape == (8, 4)
  assert not read
  np.testing.assert_array_equal(leaves["prompt/prompt"], PROMPT)
  assert len(read) == 1

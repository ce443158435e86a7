"""Backbones on disk: ours, T5X's, and what is refused."""

import os
import subprocess
import sys
import time
import types

import jax
import ml_dtypes
import numpy as np
import pytest
import safetensors.numpy

from tpv_jax.backbones import loading, networks
from tpv_jax.backbones.t5 import network
from tpv_jax.core import identity
from tpv_jax.core.errors import UserError
from tpv_jax.data import vocabularies

NETWORK = network.Transformer(
  vocab_size=12,
  emb_dim=8,
  num_heads=2,
  head_dim=3,
  num_encoder_layers=1,
  num_decoder_layers=1,
  mlp_dim=10,
)


@pytest.fixture(scope="module")
def flat():
  token = jax.ShapeDtypeStruct((1, 1), np.int32)
  shapes = jax.eval_shape(NETWORK.init, jax.random.key(0), token, token, token)[
    "params"
  ]
  rng = np.random.default_rng(0)
  return {
    path: rng.standard_normal(leaf.shape).astype(np.float32)
    for path, leaf in identity.flatten(shapes).items()
  }


@pytest.fixture
def path(flat, tmp_path):
  path = tmp_path / "small.safetensors"
  loading.save_backbone(path, flat, "small", vocabulary="ab12")
  return path


def test_what_is_saved_is_loaded_bit_by_bit(flat, path):
  backbone = loading.load_backbone(path, NETWORK)
  loaded = identity.flatten(backbone.params)
  assert loaded.keys() == flat.keys()
  for name, leaf in flat.items():
    assert loaded[name].dtype == np.float32
    assert np.array_equal(loaded[name], leaf)
  assert backbone.name == "small"
  assert backbone.vocabulary == "ab12"
  assert backbone.fingerprint == identity.backbone_fingerprint(flat)


def test_any_reader_of_safetensors_opens_it(flat, path):
  loaded = safetensors.numpy.load_file(path)
  assert loaded.keys() == flat.keys()
  assert all(np.array_equal(loaded[name], flat[name]) for name in flat)


def test_bf16_storage_keeps_bits_and_fingerprint(flat, tmp_path):
  half = {name: leaf.astype(ml_dtypes.bfloat16) for name, leaf in flat.items()}
  stated = loading.save_backbone(tmp_path / "half.safetensors", half, "half")
  backbone = loading.load_backbone(tmp_path / "half.safetensors", NETWORK)
  loaded = identity.flatten(backbone.params)
  for name, leaf in half.items():
    assert loaded[name].dtype == ml_dtypes.bfloat16
    assert np.array_equal(loaded[name].view(np.uint16), leaf.view(np.uint16))
  assert stated == backbone.fingerprint == identity.backbone_fingerprint(flat)


def test_equal_backbones_have_equal_bytes(flat, path, tmp_path):
  again = tmp_path / "again.safetensors"
  backwards = dict(reversed(flat.items()))
  loading.save_backbone(again, backwards, "small", vocabulary="ab12")
  assert again.read_bytes() == path.read_bytes()


def test_the_embedded_backbone_loads():
  backbone = loading.load_backbone("embedded")
  stated = identity.backbone_fingerprint(identity.flatten(backbone.params))
  assert backbone.fingerprint == stated
  assert backbone.vocabulary is not None


def test_an_existing_file_is_left_as_it_is(flat, path):
  before = path.read_bytes()
  with pytest.raises(UserError, match="exists and was left"):
    loading.save_backbone(path, flat, "other")
  assert path.read_bytes() == before
  loading.save_backbone(path, flat, "other", overwrite=True)
  assert loading.load_backbone(path).name == "other"


def test_other_dtypes_are_not_stored(flat, tmp_path):
  wide = {name: leaf.astype(np.float64) for name, leaf in flat.items()}
  with pytest.raises(UserError, match="is float64; a backbone is stored in float32"):
    loading.save_backbone(tmp_path / "wide.safetensors", wide, "wide")
  assert not list(tmp_path.iterdir())


def test_a_changed_byte_is_noticed_wherever_it_is(path):
  written = path.read_bytes()
  length = int.from_bytes(written[:8], "little")
  name = written.index(b'"name":"') + 8
  # A name; the padding of the header; the last bit of a weight, which bf16 rounds away.
  for place, byte in (
    (name, written[name] ^ 1),
    (7 + length, 9),
    (-4, written[-4] ^ 1),
  ):
    content = bytearray(written)
    assert content[place] != byte
    content[place] = byte
    path.write_bytes(content)
    with pytest.raises(UserError, match="changed after it was written"):
      loading.load_backbone(path)
  path.write_bytes(written)
  loading.load_backbone(path)


@pytest.mark.parametrize("kept", [0, 5, 300, -4])
def test_a_truncated_file_is_refused(path, kept):
  path.write_bytes(path.read_bytes()[:kept])
  with pytest.raises(
    UserError, match="no safetensors file, or a truncated or damaged one"
  ):
    loading.load_backbone(path)


def test_a_foreign_safetensors_file_is_refused(tmp_path):
  path = tmp_path / "foreign.safetensors"
  safetensors.numpy.save_file({"shared.weight": np.zeros((2, 2), np.float32)}, path)
  with pytest.raises(UserError, match="not a backbone of tpv_jax"):
    loading.load_backbone(path)


def test_a_missing_path_is_named_with_near_misses():
  with pytest.raises(
    UserError, match=r"no backbone 'embeded'.*Did you mean 'embedded'"
  ):
    loading.load_backbone("embeded")


def test_another_size_is_refused_by_leaf(path):
  deeper = NETWORK.copy(num_encoder_layers=2, mlp_dim=11)
  with pytest.raises(UserError) as caught:
    loading.load_backbone(path, deeper)
  text = str(caught.value)
  assert "9 missing (encoder/layers_1/attention/key/kernel, " in text
  assert "decoder/layers_0/mlp/wi_0/kernel is (8, 10) and must be (8, 11)" in text
  assert "foreign" not in text


def test_another_version_is_refused_by_leaf(path):
  tied = NETWORK.copy(logits_via_embedding=True, mlp_activations=("relu",))
  with pytest.raises(UserError) as caught:
    loading.load_backbone(path, tied)
  assert "2 missing (decoder/layers_0/mlp/wi/kernel" in str(caught.value)
  assert "5 foreign (decoder/layers_0/mlp/wi_0/kernel" in str(caught.value)


def test_an_orbax_checkpoint_of_t5x_loads_without_its_prompt(flat, tmp_path):
  ocp = pytest.importorskip("orbax.checkpoint")
  target = identity.unflatten({**flat, "prompt/prompt": np.ones((2, 8), np.float32)})
  folder = tmp_path / "t5_1_1_base" / "checkpoint_1000000"
  tree = {"target": target, "state": {"step": np.int32(7)}}
  with ocp.Checkpointer(ocp.PyTreeCheckpointHandler()) as checkpointer:
    checkpointer.save(folder / "state", args=ocp.args.PyTreeSave(tree))
  backbone = loading.load_backbone(folder, NETWORK)
  loaded = identity.flatten(backbone.params)
  assert loaded.keys() == flat.keys()
  assert all(np.array_equal(loaded[name], flat[name]) for name in flat)
  assert backbone.name == "t5_1_1_base/checkpoint_1000000"
  assert backbone.vocabulary is None
  assert backbone.fingerprint == identity.backbone_fingerprint(flat)


@pytest.mark.parametrize(
  ("path", "name"),
  [
    ("gs://bucket/t5_1_1_xl/checkpoint_1100000", "t5_1_1_xl/checkpoint_1100000"),
    ("/models/mt5/checkpoint_1000/state", "mt5/checkpoint_1000"),
    ("/models/mt5/checkpoint_1000/checkpoint", "mt5/checkpoint_1000"),
    ("/hub/models--google--t5-v1_1-base/snapshots/b53a", "google/t5-v1_1-base"),
    ("/models/t5-base/", "t5-base"),
    ("/checkpoint_7", "checkpoint_7"),
  ],
)
def test_a_backbones_folder_gives_a_name_that_says_which_model_it_is(path, name):
  assert loading.name_of(path) == name


@pytest.mark.parametrize("dtype", [np.float64, np.int32])
def test_a_leaf_of_t5x_in_another_dtype_is_refused_before_it_is_read(
  flat, tmp_path, dtype
):
  ocp = pytest.importorskip("orbax.checkpoint")
  odd = {"encoder/encoder_norm/scale": np.ones(8, dtype)}
  tree = {"target": identity.unflatten({**flat, **odd})}
  with ocp.Checkpointer(ocp.PyTreeCheckpointHandler()) as checkpointer:
    checkpointer.save(tmp_path / "checkpoint_0/state", args=ocp.args.PyTreeSave(tree))
  expected = pytest.raises(UserError, match=f"norm/scale' in {dtype.__name__}; a")
  with expected, loading.opened(tmp_path / "checkpoint_0"):
    pass


def test_the_fingerprint_of_a_large_backbone_is_computed_once(
  path, flat, tmp_path, monkeypatch
):
  monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
  monkeypatch.setattr(loading, "CACHED_FROM_BYTES", 1)
  computed = []
  real = identity.backbone_fingerprint
  monkeypatch.setattr(
    identity, "backbone_fingerprint", lambda f: computed.append(1) or real(f)
  )
  first = loading.load_backbone(path).fingerprint
  assert loading.load_backbone(path).fingerprint == first == real(flat)
  assert len(computed) == 1
  changed = {**flat, "encoder/encoder_norm/scale": np.zeros(8, np.float32)}
  loading.save_backbone(path, changed, "small", overwrite=True)
  computed.clear()
  assert loading.load_backbone(path).fingerprint == real(changed)
  assert len(computed) == 1


@pytest.fixture
def large(path, flat, tmp_path, monkeypatch):
  """A backbone of which most bytes are in none of the blocks that are looked at.

  It was read once, so its fingerprint is known. Its path, its bytes, and where in them a
  byte is that no block holds.
  """
  monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
  monkeypatch.setattr(loading, "CACHED_FROM_BYTES", 1)
  monkeypatch.setattr(loading, "_BLOCK_BYTES", 8)
  loading.load_backbone(path)
  content = bytearray(path.read_bytes())
  last = len(content) - 8
  looked_at = {last * n // 63 + byte for n in range(64) for byte in range(8)}
  place = next(i for i in range(len(content) - 40, 0, -1) if i not in looked_at)
  return path, content, place


def altered(content, place):
  return bytes(content[:place]) + bytes([content[place] ^ 1]) + content[place + 1 :]


def test_a_large_file_that_was_read_is_believed(large, monkeypatch):
  path, *_ = large
  monkeypatch.setattr(identity, "backbone_fingerprint", None)
  loading.load_backbone(path)


def test_a_byte_changed_in_place_with_the_date_set_back_is_seen(large):
  path, content, place = large
  before = path.stat()
  time.sleep(0.05)  # Some file systems' clocks go by hundredths of a second.
  with open(path, "r+b") as file:
    file.seek(place)
    file.write(altered(content, place)[place : place + 1])
  os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))
  assert (path.stat().st_mtime_ns, path.stat().st_size) == (
    before.st_mtime_ns,
    before.st_size,
  )
  with pytest.raises(UserError, match="damaged or changed after it was written"):
    loading.load_backbone(path)


def test_a_file_swapped_for_another_of_its_size_and_date_is_seen(large, tmp_path):
  path, content, place = large
  before = path.stat()
  other = tmp_path / "other"
  other.write_bytes(altered(content, place))
  os.utime(other, ns=(before.st_atime_ns, before.st_mtime_ns))
  other.rename(path)
  with pytest.raises(UserError, match="damaged or changed after it was written"):
    loading.load_backbone(path)


def test_what_a_clock_does_not_tell_the_blocks_do(large, monkeypatch):
  path, content, _ = large
  unmoved = os.stat(path)
  monkeypatch.setattr(loading, "os", types.SimpleNamespace(stat=lambda _: unmoved))
  path.write_bytes(altered(content, len(content) - 1))
  with pytest.raises(UserError, match="damaged or changed after it was written"):
    loading.load_backbone(path)


def test_a_damaged_note_in_the_cache_is_not_believed(large, flat, tmp_path):
  path, *_ = large
  (note,) = (tmp_path / "cache" / "tpv_jax").iterdir()
  note.write_text("0" * 63)
  assert loading.load_backbone(path).fingerprint == identity.backbone_fingerprint(flat)
  assert note.read_text() == identity.backbone_fingerprint(flat)


def test_a_cache_that_cannot_be_written_costs_time_only(
  path, flat, tmp_path, monkeypatch
):
  (tmp_path / "cache").write_text("a file, not a folder")
  monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
  monkeypatch.setattr(loading, "CACHED_FROM_BYTES", 1)
  assert loading.load_backbone(path).fingerprint == identity.backbone_fingerprint(flat)


def test_bytes_do_not_depend_on_the_process(flat, path, tmp_path):
  # The library's own writer orders its metadata by a hash that differs each time.
  code = (
    "import sys; from tpv_jax.core import identity; from tpv_jax.backbones import loading; "
    "b = loading.load_backbone(sys.argv[1]); "
    "loading.save_backbone(sys.argv[2], identity.flatten(b.params), b.name, b.vocabulary)"
  )
  again = tmp_path / "again.safetensors"
  environment = {**os.environ, "PYTHONHASHSEED": "5", "JAX_PLATFORMS": "cpu"}
  subprocess.run([sys.executable, "-c", code, path, again], check=True, env=environment)
  assert again.read_bytes() == path.read_bytes()


def test_a_backbone_in_memory_is_taken_as_it_is_or_refused():
  backbone = loading.load_backbone("embedded")
  embedded = vocabularies.embedded()
  fitting = networks.network("embedded")
  assert loading.loaded(backbone, fitting, embedded) is backbone
  with pytest.raises(UserError, match="trained with another vocabulary"):
    loading.loaded(
      backbone, fitting, vocabularies.WordVocabulary(embedded.words[3:][::-1])
    )
  with pytest.raises(UserError, match="does not fit the network"):
    loading.loaded(backbone, NETWORK, embedded)
  eighth = networks.network("embedded", quantize="int8")
  quantised = loading.load_backbone("embedded", eighth)
  assert loading.loaded(quantised, eighth, embedded) is quantised
  with pytest.raises(UserError, match="is quantised as int8, and QUANTIZE is None"):
    loading.loaded(quantised, fitting, embedded)
  assert loading.loaded("embedded", fitting, embedded).name == backbone.name

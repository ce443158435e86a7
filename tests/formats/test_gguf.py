"""GGUF files: every type of tensor against another implementation, and damaged files."""

import functools
import importlib.util
import pathlib
import re
import struct
import subprocess
import sys

import llama_models as models
import ml_dtypes
import numpy as np
import pytest

from tpv_jax import cli
from tpv_jax.backbones import conversion, loading, networks
from tpv_jax.core import identity
from tpv_jax.core.errors import UserError
from tpv_jax.formats import gguf as files

pytest.importorskip("gguf")

FOLDER = pathlib.Path(__file__).parents[1] / "references"
QUANTISED = ("Q4_0", "Q4_1", "Q5_0", "Q5_1", "Q8_0", "Q4_K", "Q5_K", "Q6_K")
CONTENT = models.CONFIGS["llama tied"]


@functools.cache
def stored():
  with np.load(FOLDER / "gguf.npz") as file:
    return dict(file)


def header(keys=b"", key_count=0, tensors=b"", tensor_count=0, version=3):
  start = b"GGUF" + struct.pack("<IQQ", version, tensor_count, key_count)
  return start + keys + tensors


def text(content):
  content = content if isinstance(content, bytes) else content.encode()
  return struct.pack("<Q", len(content)) + content


def tensor(name="a", sizes=(4,), kind=0, start=0):
  count = struct.pack("<I", len(sizes))
  return text(name) + count + struct.pack(f"<{len(sizes)}QIQ", *sizes, kind, start)


def padded(content, more=0):
  return content + b"\0" * (-len(content) % 32 + more)


def read(path):
  with files.opened(path) as file:
    return {name: np.asarray(leaf) for name, leaf in file.leaves.items()}


@pytest.mark.parametrize("kind", QUANTISED)
def test_every_type_has_the_values_of_another_implementation(tmp_path, kind):
  blocks, values = (stored()[f"{kind}/{what}"] for what in ("blocks", "values"))
  number = next(n for n, (name, _, _) in files._TYPES.items() if name == kind)
  start = padded(
    header(tensors=tensor("a", values.shape[::-1], number), tensor_count=1)
  )
  path = tmp_path / "a.gguf"
  path.write_bytes(start + blocks.tobytes())
  found = read(path)["a"]
  assert found.dtype == np.float32
  largest = np.abs(values).max()
  assert np.abs(found - values).max() <= 2e-7 * largest


@pytest.mark.parametrize(
  ("number", "dtype"), [(0, np.float32), (1, np.float16), (30, ml_dtypes.bfloat16)]
)
def test_values_that_are_not_quantised_stay_as_they_are(tmp_path, number, dtype):
  values = np.random.default_rng(0).standard_normal((3, 5)).astype(dtype)
  start = padded(header(tensors=tensor("a", (5, 3), number), tensor_count=1))
  path = tmp_path / "a.gguf"
  path.write_bytes(start + values.tobytes())
  found = read(path)["a"]
  assert found.dtype == dtype
  assert found.tobytes() == values.tobytes()


@pytest.mark.parametrize("kind", ["F32", "F16", "BF16"])
@pytest.mark.parametrize("name", models.CONFIGS)
def test_a_file_is_the_model_of_its_folder(tmp_path, name, kind):
  content = {
    key: v for key, v in models.CONFIGS[name].items() if key != "sliding_window"
  }
  dtype = {"F32": np.float32, "F16": np.float16, "BF16": ml_dtypes.bfloat16}[kind]
  leaves = {
    name: (leaf.astype(dtype) if leaf.ndim == 2 else leaf).astype(np.float32)
    for name, leaf in models.weights(content).items()
  }
  content["sliding_window"] = None
  folder = models.write(tmp_path / "model", content, leaves)
  path = models.write_gguf(tmp_path / "model.gguf", content, leaves, kind)
  theirs, ours = loading.load_backbone(folder), loading.load_backbone(path)
  assert ours.name == "A tiny model"
  assert ours.fingerprint == theirs.fingerprint
  flat = identity.flatten(ours.params)
  for leaf, values in identity.flatten(theirs.params).items():
    assert np.array_equal(flat[leaf].astype(np.float32), values), leaf
  one, other = networks.network(str(path)), networks.network(str(folder))
  # Divisors are stored in fp32.
  assert one.rope_divisors == pytest.approx(other.rope_divisors, rel=1e-6)
  assert one.copy(rope_divisors=other.rope_divisors) == other


def test_a_quantised_model_is_what_the_library_reads(tmp_path):
  import gguf

  content = {**CONTENT, "hidden_size": 32, "head_dim": 8, "intermediate_size": 64}
  path = models.write_gguf(tmp_path / "model.gguf", content, kind="Q4_1")
  theirs = {}
  for one in gguf.GGUFReader(path).tensors:
    values = gguf.dequantize(one.data, one.tensor_type)
    theirs[one.name] = values.reshape([int(size) for size in one.shape[::-1]])
  found = read(path)
  assert found.keys() == theirs.keys()
  for name, values in found.items():
    np.testing.assert_array_equal(values, theirs[name], err_msg=name)
  assert files.read_metadata(path)["tokenizer.ggml.tokens"][3] == "t3"


def test_a_file_is_converted_and_keeps_fingerprint_and_numbers(tmp_path, capsys):
  content = models.CONFIGS["llama"]
  path = models.write_gguf(tmp_path / "model.gguf", content, kind="F16")
  expected = loading.load_backbone(path).fingerprint
  for output in ("a.safetensors", "checkpoint_0"):
    assert cli.main(["convert", str(path), "-o", str(tmp_path / output)]) == 0
    assert "Wrote the backbone 'A tiny model'" in capsys.readouterr().out
    made = loading.load_backbone(tmp_path / output)
    assert made.fingerprint == expected
    assert networks.network(str(tmp_path / output)) == networks.network(str(path))
  arguments = ["-o", str(tmp_path / "b.safetensors"), "--dtype=bfloat16"]
  assert cli.main(["convert", str(path), *arguments]) == 0
  assert "fingerprint " + expected in capsys.readouterr().out


def test_what_files_of_older_converters_say_is_obeyed(tmp_path):
  keys = {
    "llama.rope.scaling.type": "linear",
    "llama.rope.scaling.factor": 4.0,
    "llama.attention.key_length": None,
    "llama.attention.value_length": None,
    "llama.rope.dimension_count": 4,
    "llama.attention.sliding_window": 16,
    "llama.expert_count": 0,
    "general.name": None,
  }
  content = {**CONTENT, "head_dim": 4, "hidden_size": 16}
  path = models.write_gguf(tmp_path / "my-model.gguf", content, keys=keys)
  with loading.opened(path) as source:
    assert source.name == "my-model"
    assert source.numbers["rope_divisors"] == (4.0, 4.0)
    assert source.numbers["max_positions"] == 16
    assert source.numbers["norm_epsilon"] == 1e-5


KEYS = {
  "experts": (
    {"llama.expert_count": 8},
    "llama.expert_count 8, which the network does",
  ),
  "yarn": ({"llama.rope.scaling.type": "yarn"}, "scaling.type 'yarn'; only"),
  "a scale": ({"llama.logit_scale": 2.0}, "llama.logit_scale 2.0"),
  "half a head": ({"llama.rope.dimension_count": 2}, "dimension_count 2 for heads of"),
  "values of another width": (
    {"llama.attention.value_length": 6},
    "value_length 6 for",
  ),
  "an adapter": ({"general.type": "adapter"}, "general.type 'adapter'; only a 'model'"),
  "parts": ({"split.count": 3}, "one of 3 parts .* llama-gguf-split --merge"),
  "parts by layer": ({"split.count": [1, 2]}, r"one of array\(\[1, 2\]"),
  "scalings": ({"llama.rope.scaling.type": [1, 2]}, "type array.* which is no text"),
  "a factor for each": (
    {"llama.rope.scaling.factor": [1, 2]},
    r"rope.scaling.factor array\(\[1, 2\].* positive number",
  ),
  "types": ({"general.type": [1, 2]}, "general.type array.* which is no text"),
  "heads by layer": (
    {"llama.attention.head_count_kv": [1, 2]},
    r"head_count_kv array\(\[1, 2\].* whole number",
  ),
  "no layers": ({"llama.block_count": None}, "llama.block_count None; .* whole number"),
  "another count": ({"llama.block_count": 3}, "do not fit its keys: .* 9 missing"),
  "no epsilon": (
    {"llama.attention.layer_norm_rms_epsilon": None},
    "norm_epsilon None; it must be a positive",
  ),
  "a table of another size": ({"llama.vocab_size": 25}, "do not fit its keys"),
  "text for a number": ({"llama.context_length": "many"}, "context_length 'many'"),
}


@pytest.mark.parametrize("fault", KEYS)
def test_keys_that_the_network_does_not_obey_are_refused(tmp_path, fault):
  keys, expected = KEYS[fault]
  path = models.write_gguf(tmp_path / "model.gguf", CONTENT, keys=keys)
  with pytest.raises(UserError, match=expected), loading.opened(path):
    pass


def test_another_architecture_is_refused_by_its_name(tmp_path):
  path = tmp_path / "a.gguf"
  kind = struct.pack("<I", 8)
  keys = text("general.architecture") + kind + text("gemma2")
  path.write_bytes(padded(header(keys, 1)))
  expected = (
    r"general.architecture 'gemma2' \(.*soft-capped\); only llama, qwen2, qwen3, gemma3"
  )
  with pytest.raises(UserError, match=expected), loading.opened(path):
    pass


@pytest.mark.parametrize(
  ("kind", "name"), [(10, "Q2_K"), (20, "IQ4_NL"), (999, "number 999")]
)
def test_a_type_that_is_not_read_is_named(tmp_path, kind, name):
  path = tmp_path / "a.gguf"
  path.write_bytes(padded(header(tensors=tensor(kind=kind), tensor_count=1), 64))
  expected = f"the tensor 'a' in the type {name}; only F32, F16, Q4_0, .* are read"
  with pytest.raises(UserError, match=expected), files.opened(path):
    pass


def test_without_the_library_a_quantised_file_names_the_command(tmp_path, monkeypatch):
  path = models.write_gguf(
    tmp_path / "q.gguf", {**CONTENT, "hidden_size": 32, "head_dim": 8}, kind="Q8_0"
  )
  plain = models.write_gguf(tmp_path / "f.gguf", CONTENT)
  monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
  with pytest.raises(UserError, match="pip install gguf"):
    loading.load_backbone(path)
  loading.load_backbone(plain)


KEY = text("k")
BAD = {
  "an empty file": (b"", "the first bytes need 4 bytes"),
  "another format": (b"\x80\x02" + b"x" * 50, "does not begin as one"),
  "an old version": (header(version=1), "states version 1"),
  "big-endian": (header(version=3 << 24), "is big-endian"),
  "too many tensors": (
    header(tensor_count=2**63),
    "states 9223372036854775808 tensors",
  ),
  "too many keys": (header(key_count=2**40), "1099511627776 keys"),
  "a key that is missing": (header(key_count=1), "a number need 8 bytes, and 0 are"),
  "a long text": (
    header(struct.pack("<Q", 2**62), 1),
    "states a text of 4611686018427387904 bytes",
  ),
  "no UTF-8": (header(text(b"\xff"), 1), "can't decode byte 0xff"),
  "a key twice": (
    header((KEY + struct.pack("<I?", 7, True)) * 2, 2),
    "states the key 'k' twice",
  ),
  "a value of no type": (header(KEY + struct.pack("<I", 13), 1), "unknown type 13"),
  "a long array": (
    header(KEY + struct.pack("<IIQ", 9, 4, 2**60), 1),
    "the values of 'k' need 4611686018427387904 bytes",
  ),
  "many texts": (
    header(KEY + struct.pack("<IIQ", 9, 8, 2**60), 1),
    "states 1152921504606846976 texts",
  ),
  "an array of arrays": (
    header(KEY + struct.pack("<IIQ", 9, 9, 1), 1),
    "unknown type 9",
  ),
  "no axes": (header(tensors=tensor(sizes=()), tensor_count=1), "has 0 axes"),
  "many axes": (header(tensors=tensor(sizes=(1,) * 5), tensor_count=1), "has 5 axes"),
  "an axis of none": (
    header(tensors=tensor(sizes=(0,)), tensor_count=1),
    r"sizes \[0\]",
  ),
  "a huge tensor": (
    header(tensors=tensor(sizes=(2**40, 2**40)), tensor_count=1),
    "has the sizes",
  ),
  "half a block": (
    header(tensors=tensor(sizes=(33,), kind=8), tensor_count=1),
    "rows of 33 values, and Q8_0 has blocks of 32",
  ),
  "a tensor twice": (
    header(tensors=tensor() + tensor(start=32), tensor_count=2),
    "the tensor 'a' twice",
  ),
  "tensors that overlap": (
    padded(
      header(tensors=tensor(sizes=(64,)) + tensor("b", start=32), tensor_count=2), 512
    ),
    "the tensor 'b' begins at byte 32",
  ),
  "an odd place": (
    header(tensors=tensor(start=4), tensor_count=1),
    "the tensor 'a' begins at byte 4",
  ),
  "a place outside": (
    header(tensors=tensor(start=2**63), tensor_count=1),
    "ends at byte 9223372036854775",
  ),
  "an odd alignment": (
    header(text("general.alignment") + struct.pack("<II", 4, 7), 1),
    "general.alignment 7",
  ),
}


@pytest.mark.parametrize("fault", BAD)
def test_a_damaged_file_is_refused_in_one_line(tmp_path, fault):
  content, expected = BAD[fault]
  path = tmp_path / "a.gguf"
  path.write_bytes(content)
  with pytest.raises(UserError) as caught, files.opened(path):
    pass
  message = str(caught.value)
  assert "truncated or damaged" in message
  assert re.search(expected, message), message


def test_every_truncation_is_one_line(tmp_path, capsys):
  whole = models.write_gguf(tmp_path / "whole.gguf", CONTENT).read_bytes()
  path = tmp_path / "cut.gguf"
  for size in [*range(0, 400, 13), *range(400, len(whole) - 32, 307)]:
    path.write_bytes(whole[:size])
    arguments = ["convert", str(path), "-o", str(tmp_path / "out.safetensors")]
    assert cli.main(arguments) == 2, size
    assert capsys.readouterr().err.count("\n") == 1
  assert not (tmp_path / "out.safetensors").exists()


def test_infinite_values_are_refused(tmp_path, capsys):
  content = {**CONTENT, "hidden_size": 32, "head_dim": 8}
  blocks = np.full((24, 34), 127, np.uint8)  # A scale of 0x7f7f, which is no number.
  raw = {"token_embd.weight": (blocks, "Q8_0")}
  path = models.write_gguf(tmp_path / "a.gguf", content, raw=raw)
  assert cli.main(["convert", str(path), "-o", str(tmp_path / "o.safetensors")]) == 2
  assert "values that are NaN or infinite" in capsys.readouterr().err


def test_leaves_are_read_one_by_one(tmp_path):
  import tracemalloc

  content = {**CONTENT, "hidden_size": 128, "head_dim": 32, "intermediate_size": 1_024}
  content["num_hidden_layers"] = 8
  path = models.write_gguf(tmp_path / "a.gguf", content, kind="Q4_0")
  loading.load_backbone(path, place=lambda *_: None)
  tracemalloc.start()
  loading.load_backbone(path, place=lambda *_: None)
  most = tracemalloc.get_traced_memory()[1]
  tracemalloc.stop()
  largest, whole = 4 * 128 * 1_024, 8 * 3 * 4 * 128 * 1_024
  assert most < 8 * largest < whole / 2


def test_the_stored_references_are_made_by_their_script():
  if importlib.util.find_spec("transformers") is None:
    pytest.skip("needs the extra 'parity': transformers is not installed")
  script = FOLDER / "make_gguf_references.py"
  done = subprocess.run([sys.executable, str(script), "--check"], capture_output=True)
  assert done.returncode == 0, done.stdout


def test_the_plan_of_a_conversion_names_both_sides(tmp_path):
  path = models.write_gguf(tmp_path / "a.gguf", CONTENT)
  with conversion.planned(path, "hugging-face") as plan:
    names = plan.names["decoder/layers_1/mlp/wi_0/kernel"]
  assert names == ("blk.1.ffn_gate.weight", "model.layers.1.mlp.gate_proj.weight")

"""Fingerprint and digest against a second computation written from their definition."""

import hashlib
import struct

import ml_dtypes
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tpv_jax.core import identity
from tpv_jax.core.errors import UserError

KEYS = st.text("abc_0", min_size=1, max_size=3)
TREES = st.recursive(
  st.integers(), lambda inner: st.dictionaries(KEYS, inner, min_size=1), max_leaves=8
).filter(lambda tree: isinstance(tree, dict))


def bf16_bits(value: float) -> int:
  """Rounds an fp32 value to bf16 in integers: nearest, ties to even, no -0."""
  bits = struct.unpack("<I", struct.pack("<f", value))[0]
  kept, rest = bits >> 16, bits & 0xFFFF
  if rest > 0x8000 or (rest == 0x8000 and kept & 1):
    kept += 1
  return 0 if kept == 0x8000 else kept


def reference(leaves, encode) -> str:
  """SHA-256 as the module's docstring says it, value by value."""
  content = b""
  for path in sorted(leaves):
    leaf = leaves[path]
    content += path.encode() + b"\0" + ",".join(map(str, leaf.shape)).encode() + b"\0"
    content += b"".join(encode(float(value)) for value in leaf.flatten(order="C"))
  return hashlib.sha256(content).hexdigest()


def reference_fingerprint(leaves) -> str:
  return reference(leaves, lambda value: struct.pack("<H", bf16_bits(value)))


@pytest.fixture
def backbone():
  rng = np.random.default_rng(0)
  return {
    "token_embedder/embedding": rng.normal(size=(7, 4)).astype(np.float32),
    "encoder/layers_10/attention/query/kernel": rng.normal(size=(4, 4)).astype("f"),
    "encoder/layers_2/attention/query/kernel": rng.normal(size=(4, 4)).astype("f"),
    # 1 + 2^-8 and 1 + 3 * 2^-8 lie halfway between two bf16 values: ties to even.
    "ties": np.float32([1 + 2**-8, 1 + 3 * 2**-8, -0.0, 0.0, 1e-40, 3e38]),
    "scalar": np.array(0.1, np.float32),
  }


def test_the_fingerprint_equals_a_second_computation(backbone):
  assert identity.backbone_fingerprint(backbone) == reference_fingerprint(backbone)


def test_the_fingerprint_of_a_known_tree_never_changes():
  leaves = {"a/b": np.float32([[1, -2], [0.5, 3]]), "a/c": np.array(7, np.float32)}
  content = (
    b"a/b\x002,2\x00" + bytes.fromhex("803f00c0003f4040") + b"a/c\x00\x00\xe0\x40"
  )
  assert identity.backbone_fingerprint(leaves) == hashlib.sha256(content).hexdigest()


def test_the_fingerprint_survives_storage_order_and_layout(backbone):
  expected = identity.backbone_fingerprint(backbone)
  for other in (
    {path: leaf.astype(ml_dtypes.bfloat16) for path, leaf in backbone.items()},
    {path: leaf.astype(np.float64) for path, leaf in backbone.items()},
    {path: leaf.astype(">f4") for path, leaf in backbone.items()},
    {path: np.array(leaf, order="F") for path, leaf in backbone.items()},
    {
      path: np.repeat(leaf, 2).reshape(*leaf.shape, 2)[..., 0]
      for path, leaf in backbone.items()
    },
    dict(reversed(backbone.items())),
  ):
    assert identity.backbone_fingerprint(other) == expected


def test_a_zero_has_no_sign_in_the_fingerprint_and_one_in_the_digest():
  plus, minus = {"a": np.float32([0.0])}, {"a": np.float32([-0.0])}
  assert identity.backbone_fingerprint(plus) == identity.backbone_fingerprint(minus)
  assert identity.prompt_digest(plus) != identity.prompt_digest(minus)


def test_the_fingerprint_changes_with_path_shape_and_value(backbone):
  path = "token_embedder/embedding"
  step = backbone[path].copy()
  step[3, 2] *= 1 + 2**-6
  others = [
    {**backbone, path: step},
    {**backbone, path: backbone[path].reshape(4, 7)},
    {**backbone, path: np.roll(backbone[path], 1, axis=0)},
    {key + ("_" if key == path else ""): leaf for key, leaf in backbone.items()},
    {key: leaf for key, leaf in backbone.items() if key != path},
  ]
  found = {identity.backbone_fingerprint(other) for other in [backbone, *others]}
  assert len(found) == len(others) + 1


def test_hashing_in_chunks_changes_nothing(backbone, monkeypatch):
  whole = identity.backbone_fingerprint(backbone), identity.prompt_digest(backbone)
  monkeypatch.setattr(identity, "_CHUNK", 3)
  parts = identity.backbone_fingerprint(backbone), identity.prompt_digest(backbone)
  assert parts == whole


def test_the_digest_equals_a_second_computation(backbone):
  expected = reference(backbone, lambda value: struct.pack("<f", value))
  assert identity.prompt_digest(backbone) == expected


def test_the_digest_sees_every_bit_of_a_prompt():
  prompt = np.random.default_rng(1).normal(size=(2, 3)).astype(np.float32)
  found = {identity.prompt_digest({"prompt": prompt})}
  for bit in range(prompt.nbytes * 8):
    content = bytearray(prompt.tobytes())
    content[bit // 8] ^= 1 << bit % 8
    changed = np.frombuffer(bytes(content), np.float32).reshape(2, 3)
    found.add(identity.prompt_digest({"prompt": changed}))
  assert len(found) == prompt.nbytes * 8 + 1


def test_leaves_that_are_no_numbers_of_a_model_are_refused():
  with pytest.raises(UserError, match=r"Leaf 'step' holds int32, not floating-point"):
    identity.backbone_fingerprint({"step": np.int32([3])})


@given(TREES)
def test_unflatten_inverts_flatten(tree):
  assert identity.unflatten(identity.flatten(tree)) == tree


def test_flatten_joins_keys_by_slashes():
  tree = {"encoder": {"layers_0": {"kernel": 1}, "norm": 2}, "prompt": {"prompt": 3}}
  assert identity.flatten(tree) == {
    "encoder/layers_0/kernel": 1,
    "encoder/norm": 2,
    "prompt/prompt": 3,
  }


@pytest.mark.parametrize("tree", [{"a/b": 1}, {"": 1}, {"a": {"b/c": 1}}])
def test_flatten_refuses_keys_that_would_not_come_back(tree):
  with pytest.raises(ValueError, match="cannot be a part of a path"):
    identity.flatten(tree)


@pytest.mark.parametrize("paths", [("a", "a/b"), ("a/b", "a"), ("a/b", "a/b/c")])
def test_unflatten_refuses_a_leaf_that_is_also_a_collection(paths):
  with pytest.raises(ValueError, match="leaf"):
    identity.unflatten(dict.fromkeys(paths, 1))


def test_the_first_difference_of_two_mappings_is_the_first_name_in_order():
  assert identity.first_difference({"b": 1, "a": 2}, {"a": 2, "b": 1}) is None
  assert identity.first_difference({"c": 1, "b": 1}, {"c": 2, "b": 2}) == "b"
  assert identity.first_difference({"a": (3,)}, {"a": (3,), "b": ()}) == "b"
  assert identity.first_difference({}, {}) is None

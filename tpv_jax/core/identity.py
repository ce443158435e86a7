"""Names by which prompts and backbones are matched: the fingerprint and the digest.

NumPy and ml_dtypes only. Both are SHA-256 sums over a flat tree of leaves
("a/b/c" -> array). For each leaf, in the order of the paths' UTF-8 bytes, they hash

    path in UTF-8 | NUL | shape in decimal, joined by "," | NUL | values

where the shape of a scalar is empty and the values are in C order, little-endian
(docs/methods.md, (5.1)). A path holds no NUL and the shape gives the number of value
bytes, so no two trees hash the same bytes.
"""

import hashlib
from collections.abc import Callable, Mapping
from typing import Any

import ml_dtypes
import numpy as np

from tpv_jax.core.errors import UserError

_CHUNK = 1 << 22
"""Values converted at a time, so that hashing a leaf needs no second copy of it."""


def flatten(tree: Mapping[str, Any]) -> dict[str, Any]:
  """Returns the leaves of nested mappings by path, "a/b/c" -> leaf, in tree order.

  Raises:
    ValueError: a key is not a string, is empty or holds a "/".
  """
  flat: dict[str, Any] = {}

  def walk(node: Mapping[str, Any], prefix: str) -> None:
    for key, value in node.items():
      if not isinstance(key, str) or not key or "/" in key:
        raise ValueError(f"{key!r} under '{prefix}' cannot be a part of a path")
      if isinstance(value, Mapping):
        walk(value, f"{prefix}{key}/")
      else:
        flat[prefix + key] = value

  walk(tree, "")
  return flat


def unflatten(flat: Mapping[str, Any]) -> dict[str, Any]:
  """Returns nested dicts from leaves by path; the inverse of `flatten`.

  Raises:
    ValueError: one path runs through another one's leaf ("a" beside "a/b").
  """
  tree: dict[str, Any] = {}
  inner: set[str] = {""}
  for path, leaf in flat.items():
    *parents, name = path.split("/")
    node, walked = tree, ""
    for parent in parents:
      walked = f"{walked}/{parent}" if walked else parent
      if walked not in inner and parent in node:
        raise ValueError(f"'{path}' runs through the leaf '{walked}'")
      inner.add(walked)
      node = node.setdefault(parent, {})
    if name in node:
      raise ValueError(f"'{path}' is both a leaf and a collection")
    node[name] = leaf
  return tree


def first_difference(one: Mapping[str, Any], other: Mapping[str, Any]) -> str | None:
  """Returns the first name, in sorted order, with unequal values in two mappings, or None."""
  different = [
    name for name in one.keys() | other.keys() if one.get(name) != other.get(name)
  ]
  return min(different, default=None)


def backbone_fingerprint(flat: Mapping[str, Any]) -> str:
  """Returns the 64 hex digits that name a frozen backbone, whatever stores it.

  The values of each leaf are rounded to bf16 (from fp32, to nearest, ties to even) and
  -0.0 is hashed as +0.0, because they are equal and T5X's `OptaxWrapper` turns one into
  the other. So the fingerprint does not depend on fp32 or bf16 storage, memory layout,
  sharding or runner. `flat` may hold `leaves.Leaf`s, which are read one after the other.

  Raises:
    UserError: a leaf does not hold floating-point values.
  """
  return _sha256(flat, _bf16_bytes)


def prompt_digest(flat: Mapping[str, np.ndarray]) -> str:
  """Returns the 64 hex digits that name exactly these fp32 values of a prompt.

  A plain prompt is `{"prompt": [P, D]}`. Values in bf16 or fp16 are widened, which is
  exact; fp64 is rounded to fp32 first. -0.0 and +0.0 differ here.

  Raises:
    UserError: a leaf does not hold floating-point values.
  """
  return _sha256(flat, lambda values: values.astype("<f4").tobytes())


def is_floating(dtype: np.dtype) -> bool:
  """Returns whether values of `dtype` are floating-point numbers, bf16 included."""
  return np.issubdtype(dtype, np.floating) or dtype == ml_dtypes.bfloat16


def _sha256(flat: Mapping[str, Any], to_bytes: Callable[[np.ndarray], bytes]) -> str:
  digest = hashlib.sha256()
  for path in sorted(flat, key=str.encode):
    leaf = np.asarray(flat[path])
    if not is_floating(leaf.dtype):
      raise UserError(
        f"Leaf '{path}' holds {leaf.dtype}, not floating-point values, so it is no "
        "parameter of a backbone or prompt. Pass the parameters only."
      )
    if "\0" in path:
      raise UserError(f"The leaf {path!r} holds a NUL in its name. Take another copy.")
    shape = ",".join(str(size) for size in leaf.shape)
    digest.update(f"{path}\0{shape}\0".encode())
    values = leaf.reshape(-1)
    for start in range(0, values.size, _CHUNK):
      digest.update(to_bytes(values[start : start + _CHUNK]))
  return digest.hexdigest()


def _bf16_bytes(values: np.ndarray) -> bytes:
  rounded = values.astype(np.float32, copy=False).astype(ml_dtypes.bfloat16)
  bits = rounded.view(np.uint16)
  return np.where(bits == 0x8000, np.uint16(0), bits).astype("<u2").tobytes()

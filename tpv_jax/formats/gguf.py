"""Models in GGUF files, the format of llama.cpp: settings, tokenizer and weights in one file.

    b"GGUF", version, number of tensors, number of keys
    keys: name, type, value
    tensors: name, axes (the fastest first), type, offset
    values, each aligned

The library `gguf` (extra `llm`) de-quantises. It does not read the header: its reader maps
the file and trusts what that says. Here no value is read and no memory allocated before the
header is known to fit the file. NumPy only.

https://github.com/ggml-org/ggml/blob/master/docs/gguf.md
"""

import contextlib
import dataclasses
import functools
import importlib.util
import io
import math
import struct
from collections.abc import Iterator, Mapping
from typing import Any

import ml_dtypes
import numpy as np

from tpv_jax.core import files
from tpv_jax.core.errors import UserError
from tpv_jax.core.leaves import Leaf

SUFFIX = ".gguf"

MAX_HEADER_BYTES = 1 << 27
"""The tokenizer of a large vocabulary needs a tenth of it, so a longer header is damage."""

_MAGIC = b"GGUF"

_MAX_TEXT = 1 << 24
"""Most bytes of a string, such as a chat template."""

_MAX_TENSORS = 1 << 16

_NUMBERS = {
  0: "<u1",
  1: "<i1",
  2: "<u2",
  3: "<i2",
  4: "<u4",
  5: "<i4",
  6: "<f4",
  7: "?",
  10: "<u8",
  11: "<i8",
  12: "<f8",
}
"""Type of a value, as a number in the file -> NumPy's."""

_STRING, _ARRAY = 8, 9

PLAIN = {
  "F32": np.dtype("<f4"),
  "F16": np.dtype("<f2"),
  "BF16": np.dtype(ml_dtypes.bfloat16),
}
"""The types that are stored as they are."""

_TYPES = {
  0: ("F32", 1, 4),
  1: ("F16", 1, 2),
  2: ("Q4_0", 32, 18),
  3: ("Q4_1", 32, 20),
  6: ("Q5_0", 32, 22),
  7: ("Q5_1", 32, 24),
  8: ("Q8_0", 32, 34),
  12: ("Q4_K", 256, 144),
  13: ("Q5_K", 256, 176),
  14: ("Q6_K", 256, 210),
  30: ("BF16", 1, 2),
}
"""Type of a tensor, as a number in the file -> name, values of a block, bytes of a block."""

TYPES = tuple(name for name, _, _ in _TYPES.values())
"""The types that are read."""

_OTHERS = {
  9: "Q8_1",
  10: "Q2_K",
  11: "Q3_K",
  15: "Q8_K",
  16: "IQ2_XXS",
  17: "IQ2_XS",
  18: "IQ3_XXS",
  19: "IQ1_S",
  20: "IQ4_NL",
  21: "IQ3_S",
  22: "IQ2_S",
  23: "IQ4_XS",
  24: "I8",
  25: "I16",
  26: "I32",
  27: "I64",
  28: "F64",
  29: "IQ1_M",
  34: "TQ1_0",
  35: "TQ2_0",
  39: "MXFP4",
  40: "NVFP4",
}
"""Types that are not read, for messages."""


@dataclasses.dataclass(frozen=True)
class File:
  """A GGUF file whose header was read and checked.

  Attributes:
    shown: its path, for messages.
    metadata: by key: str, int, float or bool; an array is a list of str or a NumPy array.
    leaves: by name, to be read one by one while the file is open. Shapes are NumPy's;
      de-quantised values are fp32, F16 and BF16 stay as they are.
  """

  shown: str
  metadata: dict[str, Any]
  leaves: dict[str, Leaf]

  def text(self, key: str, otherwise: str | None = None) -> str:
    """Returns the string under a key, or `otherwise` if the file does not state it.

    Raises:
      UserError: there is neither.
    """
    found = self.metadata.get(key, otherwise)
    if isinstance(found, str):
      return found
    raise UserError(
      f"'{self.shown}' states {key} {_short(found)}, which is no text. Take another copy."
    )


def is_gguf(path: files.Path) -> bool:
  """Returns whether a file's name or its first bytes say that it is a GGUF file."""
  if path.suffix.lower() == SUFFIX:
    return True
  with contextlib.suppress(OSError, UserError), files.reading(path) as file:
    return file.read(len(_MAGIC)) == _MAGIC
  return False


@contextlib.contextmanager
def opened(path: files.PathLike) -> Iterator[File]:
  """Yields the file at `path`, local or on gs://, with leaves to read in the block.

  Raises:
    UserError: there is no such file; it is truncated or damaged, one of several parts, or
      holds tensors of a type that is not read; or the library `gguf` is missing and a
      tensor is quantised.
  """
  with files.reading(path) as file:
    shown = str(path)
    size = file.seek(0, io.SEEK_END)
    file.seek(0)
    try:
      header = _Header(file, size)
      metadata, tensors = header.read()
    except ValueError as error:
      raise UserError(
        f"'{shown}' is no GGUF file, or a truncated or damaged one: {error}. Take another "
        "copy."
      ) from error
    _refuse_parts(metadata, shown)
    _refuse_types(tensors, shown)
    leaves = {
      name: Leaf(
        tensor.shape,
        PLAIN.get(_TYPES[tensor.kind][0], PLAIN["F32"]),
        functools.partial(_values, file, tensor, shown),
        name,
      )
      for name, tensor in tensors.items()
    }
    yield File(shown, metadata, leaves)


def read_metadata(path: files.PathLike) -> dict[str, Any]:
  """Returns what the file at `path` states beside its tensors; see `File`."""
  with opened(path) as file:
    return file.metadata


@dataclasses.dataclass(frozen=True)
class _Tensor:
  """What the header says about a tensor.

  Attributes:
    shape: NumPy's, the slowest axis first.
    kind: number of its type.
    start: where its values begin in the file; relative to the first of all until the
      header's end is known.
    nbytes: of its values in the file; None for a type that is not known.
  """

  shape: tuple[int, ...]
  kind: int
  start: int
  nbytes: int | None


class _Header:
  """Reads a header; a `ValueError` says what is wrong with it."""

  def __init__(self, file: Any, size: int):
    self._file, self._size = file, size
    self._at = 0

  def read(self) -> tuple[dict[str, Any], dict[str, _Tensor]]:
    """Returns the values by key, and the tensors by name, their starts in the file."""
    if self._bytes(4, "the first bytes") != _MAGIC:
      raise ValueError("it does not begin as one")
    version = self._number("<u4")
    if version not in (2, 3):
      swapped = version in (2 << 24, 3 << 24)
      what = "is big-endian" if swapped else f"states version {version}"
      raise ValueError(f"it {what}, and only little-endian versions 2 and 3 are read")
    count, keys = self._number("<u8"), self._number("<u8")
    if count > _MAX_TENSORS or keys > _MAX_TENSORS:
      raise ValueError(f"it states {count} tensors and {keys} keys")
    metadata: dict[str, Any] = {}
    for _ in range(keys):
      key = self._text()
      if key in metadata:
        raise ValueError(f"it states the key {_short(key)} twice")
      metadata[key] = self._value(self._number("<u4"), key)
    tensors: dict[str, _Tensor] = {}
    for _ in range(count):
      name = self._text()
      if name in tensors:
        raise ValueError(f"it states the tensor {_short(name)} twice")
      tensors[name] = self._tensor(name)
    return metadata, self._placed(tensors, metadata)

  def _bytes(self, count: int, what: str) -> bytes:
    left = min(self._size, MAX_HEADER_BYTES) - self._at
    if count > left:
      problem = f"{what} need {count} bytes, and {left} are left"
      if self._size > MAX_HEADER_BYTES:
        problem = f"its header needs more than {MAX_HEADER_BYTES} bytes"
      raise ValueError(problem)
    self._at += count
    content = self._file.read(count)
    if len(content) != count:
      raise ValueError("it became shorter while it was read")
    return content

  def _number(self, kind: str) -> int:
    dtype = np.dtype(kind)
    return int.from_bytes(self._bytes(dtype.itemsize, "a number"), "little")

  def _text(self) -> str:
    length = self._number("<u8")
    if length > _MAX_TEXT:
      raise ValueError(f"it states a text of {length} bytes")
    return self._bytes(length, "a text").decode("utf-8")

  def _value(self, kind: int, key: str) -> Any:
    if kind == _STRING:
      return self._text()
    if kind == _ARRAY:
      kind, count = self._number("<u4"), self._number("<u8")
      if kind == _STRING:
        if 8 * count > self._size - self._at:
          raise ValueError(f"it states {count} texts under {_short(key)}")
        return [self._text() for _ in range(count)]
      return self._numbers(kind, count, key)
    return self._numbers(kind, 1, key)[0].item()

  def _numbers(self, kind: int, count: int, key: str) -> np.ndarray:
    if kind not in _NUMBERS:
      raise ValueError(f"the key {_short(key)} has a value of the unknown type {kind}")
    dtype = np.dtype(_NUMBERS[kind])
    content = self._bytes(count * dtype.itemsize, f"the values of {_short(key)}")
    if dtype.kind == "b":
      return np.frombuffer(content, np.uint8) != 0
    return np.frombuffer(content, dtype)

  def _tensor(self, name: str) -> _Tensor:
    axes = self._number("<u4")
    if not 0 < axes <= 4:
      raise ValueError(f"the tensor {_short(name)} has {axes} axes")
    sizes = struct.unpack(f"<{axes}Q", self._bytes(8 * axes, "the sizes of a tensor"))
    kind, start = self._number("<u4"), self._number("<u8")
    values = math.prod(sizes)
    if not 0 < values < 1 << 59:
      raise ValueError(f"the tensor {_short(name)} has the sizes {list(sizes)}")
    if kind not in _TYPES:
      return _Tensor(sizes[::-1], kind, start, None)
    what, block, nbytes = _TYPES[kind]
    if sizes[0] % block:
      raise ValueError(
        f"the tensor {_short(name)} has rows of {sizes[0]} values, and {what} has blocks "
        f"of {block}"
      )
    return _Tensor(sizes[::-1], kind, start, values // block * nbytes)

  def _placed(
    self, tensors: Mapping[str, _Tensor], metadata: Mapping[str, Any]
  ) -> dict[str, _Tensor]:
    """Returns the tensors with their places in the file, which hold all their values."""
    alignment = metadata.get("general.alignment", 32)
    if type(alignment) is not int or not 8 <= alignment <= 1 << 20 or alignment % 8:
      raise ValueError(f"it states general.alignment {_short(alignment)}")
    first = -(-self._at // alignment) * alignment
    reached = 0
    for name, tensor in sorted(tensors.items(), key=lambda item: item[1].start):
      if tensor.start % alignment or tensor.start < reached:
        raise ValueError(f"the tensor {_short(name)} begins at byte {tensor.start}")
      reached = tensor.start + (tensor.nbytes or 0)
      if first + reached > self._size:
        raise ValueError(
          f"the tensor {_short(name)} ends at byte {first + reached}, and it has "
          f"{self._size} bytes"
        )
    return {
      name: dataclasses.replace(tensor, start=first + tensor.start)
      for name, tensor in tensors.items()
    }


def _refuse_parts(metadata: Mapping[str, Any], shown: str) -> None:
  parts = metadata.get("split.count", 0)
  if isinstance(parts, np.ndarray) or parts not in (0, 1):
    raise UserError(
      f"'{shown}' is one of {_short(parts)} parts of a model. Join them first: "
      "llama-gguf-split --merge FIRST_PART OUT.gguf."
    )


def _refuse_types(tensors: Mapping[str, _Tensor], shown: str) -> None:
  """Raises `UserError` about a tensor that cannot be read."""
  for name, tensor in tensors.items():
    if tensor.kind not in _TYPES:
      kind = _OTHERS.get(tensor.kind, f"number {tensor.kind}")
      raise UserError(
        f"'{shown}' holds the tensor '{name}' in the type {kind}; only "
        f"{', '.join(TYPES)} are read. Take another file of the model, or quantise it "
        "again (llama-quantize)."
      )
    kind = _TYPES[tensor.kind][0]
    if kind not in PLAIN and importlib.util.find_spec("gguf") is None:
      raise UserError(
        f"'{shown}' holds the tensor '{name}' in the type {kind}, and the package 'gguf', "
        "which de-quantises, is not installed: pip install gguf (or tpv_jax with its "
        "extra 'llm')."
      )


def _values(file: Any, tensor: _Tensor, shown: str) -> np.ndarray:
  """Returns the values of a tensor, de-quantised."""
  kind, block, nbytes = _TYPES[tensor.kind]
  file.seek(tensor.start)
  assert tensor.nbytes is not None
  content = file.read(tensor.nbytes)
  if len(content) != tensor.nbytes:
    raise UserError(
      f"'{shown}' became shorter while it was read. Wait until it is whole, and read it "
      "again."
    )
  if kind in PLAIN:
    return np.frombuffer(content, PLAIN[kind]).reshape(tensor.shape)
  from gguf import GGMLQuantizationType, quants

  *others, last = tensor.shape
  blocks = np.frombuffer(content, np.uint8).reshape(*others, last // block * nbytes)
  with np.errstate(all="ignore"):  # Whoever keeps the values refuses infinite ones.
    return quants.dequantize(blocks, GGMLQuantizationType[kind])


def _short(value: Any, most: int = 60) -> str:
  text = repr(value)
  return text if len(text) <= most else text[: most - 1] + "…"

"""Reads and writes safetensors files; the header is read first and checked.

    8 bytes, little-endian: length of the header
    header: JSON, {"__metadata__": {str: str}, name: {"dtype", "shape", "data_offsets"}}
    values, little-endian, in C order

No value is read and no memory allocated before the header is known to describe exactly
the bytes that follow it: every byte belongs to one leaf. The library `safetensors` does not
support gs:// and writes metadata in an order that differs between processes; here equal
content gives equal bytes. NumPy and ml_dtypes only.
"""

import contextlib
import dataclasses
import hashlib
import io
import json
import math
import os
import re
from collections.abc import Collection, Iterator, Mapping
from typing import Any

import ml_dtypes
import numpy as np

from tpv_jax.core import errors, files
from tpv_jax.core.errors import UserError
from tpv_jax.core.leaves import Leaf, read_all

MAX_HEADER_BYTES = 1 << 24
"""A thousand leaves need a hundredth of it, so a longer header is damage."""

FLOATS = {
  "F32": np.dtype("<f4"),
  "F16": np.dtype("<f2"),
  "BF16": np.dtype(ml_dtypes.bfloat16),
}
"""The dtypes that are read unless a caller accepts fewer, by their names in the format."""

_NAMES = {dtype: name for name, dtype in FLOATS.items()}

_BITS = {
  **dict.fromkeys(("BOOL", "U8", "I8", "F8_E4M3", "F8_E5M2", "F8_E8M0"), 8),
  **dict.fromkeys(("U16", "I16", "F16", "BF16"), 16),
  **dict.fromkeys(("U32", "I32", "F32"), 32),
  **dict.fromkeys(("U64", "I64", "F64", "C64"), 64),
}
"""Bits of a value, for every dtype of the format that has whole bytes."""

DIGEST = "content_digest"
"""The key of a `ContentDigest` in the metadata."""

_METADATA = "__metadata__"


@dataclasses.dataclass(frozen=True)
class Entry:
  """What the header says about one leaf.

  Attributes:
    dtype: as the format names it: 'F32', 'BF16', ...
    shape: of the leaf; () for a scalar.
    start: where its values begin in the file, in bytes.
    end: where they end.
  """

  dtype: str
  shape: tuple[int, ...]
  start: int
  end: int


@dataclasses.dataclass(frozen=True)
class Header:
  """What a file states before its values.

  Attributes:
    metadata: strings by name; empty where the file has none.
    entries: by name, in the order of their values in the file.
  """

  metadata: dict[str, str]
  entries: dict[str, Entry]


def read_header(path: files.PathLike) -> Header:
  """Returns the checked header of a file, local or on gs://; no value is read.

  Raises:
    UserError: there is no such file; it is not a safetensors file or a truncated one; or
      its header contradicts itself or the file's size.
  """
  with _open(files.to_path(path)) as file:
    return _header(file, str(path))


@contextlib.contextmanager
def opened(
  path: files.PathLike, dtypes: Collection[str] = tuple(FLOATS)
) -> Iterator[tuple[dict[str, str], dict[str, Leaf]]]:
  """Yields the metadata and the leaves by name, in file order, to be read one by one.

  A leaf can be read only while the file is open; reading it makes a copy.

  Args:
    path: local or on gs://.
    dtypes: which of `FLOATS` to accept.

  Raises:
    UserError: as `read_header`; a leaf has another dtype; or, when a leaf is read, the
      file was truncated meanwhile.
  """
  with _open(files.to_path(path)) as file:
    yield _leaves(file, str(path), dtypes)


def read(
  path: files.PathLike, dtypes: Collection[str] = tuple(FLOATS)
) -> tuple[dict[str, str], dict[str, np.ndarray]]:
  """Returns the metadata and all leaves by name; see `opened`."""
  with opened(path, dtypes) as (metadata, leaves):
    return metadata, read_all(leaves)


def decode(
  content: bytes, shown: str, dtypes: Collection[str] = tuple(FLOATS)
) -> tuple[dict[str, str], dict[str, np.ndarray]]:
  """Returns the metadata and all leaves of a file's bytes; errors name it `shown`."""
  metadata, leaves = _leaves(io.BytesIO(content), shown, dtypes)
  return metadata, read_all(leaves)


def write(
  path: files.PathLike,
  leaves: Mapping[str, Any],
  metadata: Mapping[str, str],
  overwrite: bool = False,
) -> None:
  """Writes a file in one step; leaves are read one by one, in the order of their names.

  Args:
    path: ends in `.safetensors`; may be on gs://.
    leaves: arrays or `Leaf`s of fp32, fp16 or bf16 by name.
    metadata: strings by name.
    overwrite: whether an existing file may be replaced.

  Raises:
    UserError: `path` exists or has another ending; a name or a dtype cannot be stored.
    OSError: nothing was written, for instance for lack of space.
  """
  check_suffix(path)
  start = _start(leaves, metadata)
  with files.writing(path, overwrite) as file:
    file.write(start)
    for name in sorted(leaves):
      file.write(_values(leaves[name]))


def encode(leaves: Mapping[str, Any], metadata: Mapping[str, str]) -> bytes:
  """Returns the bytes that `write` would write."""
  return _start(leaves, metadata) + b"".join(
    _values(leaves[name]) for name in sorted(leaves)
  )


class ContentDigest:
  """SHA-256 over a file's values, leaf by leaf, and at the end over its header.

  In this order the values can be read once, before the metadata are known.
  """

  def __init__(self) -> None:
    self._digest = hashlib.sha256()

  def add(self, values: np.ndarray) -> None:
    """Adds the values of the next leaf, in the order of the names."""
    self._digest.update(_values(values))

  def stated_in(
    self, leaves: Mapping[str, Any], metadata: Mapping[str, str]
  ) -> dict[str, str]:
    """Returns the metadata with the digest of a file of these leaves, under `DIGEST`."""
    others = {name: text for name, text in metadata.items() if name != DIGEST}
    digest = self._digest.copy()
    digest.update(_start(leaves, others))
    return {**others, DIGEST: digest.hexdigest()}


def is_as_written(path: files.PathLike) -> bool:
  """Returns whether a file's header is, byte for byte, the one that `write` would write."""
  with opened(path) as (metadata, leaves), _open(files.to_path(path)) as file:
    start = _start(leaves, metadata)
    return file.read(len(start)) == start


def check_suffix(path: files.PathLike) -> None:
  """Raises `UserError` unless `path` ends in `.safetensors`."""
  if files.to_path(path).suffix != ".safetensors":
    raise UserError(
      f"'{path}' does not end in .safetensors, the only format that is written. Name "
      f"the output '{path}.safetensors'."
    )


def _start(leaves: Mapping[str, Any], metadata: Mapping[str, str]) -> bytes:
  """Returns the bytes before the values: the header's length and the header."""
  header: dict[str, Any] = {_METADATA: dict(sorted(metadata.items()))}
  offset = 0
  for name in sorted(leaves):
    leaf = leaves[name]
    if name == _METADATA or not name:
      raise UserError(f"A leaf cannot be named {name!r} in a safetensors file.")
    if np.dtype(leaf.dtype) not in _NAMES:
      raise UserError(
        f"Leaf '{name}' is {leaf.dtype}; only float32, float16 and bfloat16 can be "
        "stored. Convert it first."
      )
    end = offset + math.prod(leaf.shape) * np.dtype(leaf.dtype).itemsize
    header[name] = {
      "dtype": _NAMES[np.dtype(leaf.dtype)],
      "shape": list(leaf.shape),
      "data_offsets": [offset, end],
    }
    offset = end
  text = json.dumps(header, ensure_ascii=False, separators=(",", ":")).encode()
  text += b" " * (-len(text) % 8)
  if len(text) > MAX_HEADER_BYTES:
    raise UserError(
      f"The names and metadata need a header of {len(text)} bytes; at most "
      f"{MAX_HEADER_BYTES} are written. Shorten them."
    )
  return len(text).to_bytes(8, "little") + text


def _values(leaf: Any) -> memoryview:
  values = np.ascontiguousarray(leaf)
  return values.reshape(-1).view(np.uint8).data


def _leaves(
  file: Any, shown: str, dtypes: Collection[str]
) -> tuple[dict[str, str], dict[str, Leaf]]:
  header = _header(file, shown)
  for name, entry in header.entries.items():
    if entry.dtype not in dtypes:
      raise UserError(
        f"'{shown}' holds the leaf '{name}' in {entry.dtype}; the only dtypes read here "
        f"are {', '.join(dtypes)}. Convert it with the tool that wrote it."
      )

  def leaf(name: str, entry: Entry) -> Leaf:
    dtype = FLOATS[entry.dtype]
    return Leaf(entry.shape, dtype, lambda: _read_values(file, shown, entry), name)

  return header.metadata, {
    name: leaf(name, entry) for name, entry in header.entries.items()
  }


def _read_values(file: Any, shown: str, entry: Entry) -> np.ndarray:
  values = np.empty(entry.shape, FLOATS[entry.dtype])
  target = values.reshape(-1).view(np.uint8).data
  file.seek(entry.start)
  done = 0
  while done < len(target):
    part = file.read(min(len(target) - done, 1 << 26))
    if not part:
      raise UserError(
        f"'{shown}' became shorter while it was read. Wait until it is whole, and read "
        "it again."
      )
    target[done : done + len(part)] = part
    done += len(part)
  return values


@contextlib.contextmanager
def _open(path: files.Path) -> Iterator[Any]:
  if path.is_dir():
    raise UserError(f"'{path}' is a folder. Give a .safetensors file.")
  with files.reading(path) as file:
    yield file


def _header(file: Any, shown: str) -> Header:
  size = file.seek(0, os.SEEK_END)
  file.seek(0)
  start = file.read(9)
  length = int.from_bytes(start[:8], "little")
  if start[8:] != b"{" and re.match(rb"PK\x03\x04|\x80[\x02-\x05]", start):
    raise UserError(f"'{shown}' {pickle_advice(shown)}")
  if size < 10 or start[8:] != b"{":
    problem = "it does not begin with a header"
  elif length > MAX_HEADER_BYTES:
    problem = f"it states a header of {length} bytes, and at most {MAX_HEADER_BYTES} "
    problem += "are read"
  elif 8 + length > size:
    problem = f"its header alone needs {8 + length} bytes, and it has {size}"
  else:
    try:
      return _parse(start[8:] + file.read(length - 1), size)
    except (ValueError, RecursionError) as error:
      problem = str(error) or "its header is nested too deeply"
  raise UserError(
    f"'{shown}' is no safetensors file, or a truncated or damaged one: {problem}. Take "
    "another copy."
  )


def pickle_advice(path: files.PathLike) -> str:
  """Returns the message about a pickle, which is never opened, to follow the file's name.

  The command in it reads whatever others save: a state dict, or a tensor or parameter by
  itself, also from a GPU. It runs no code from the file.
  """
  given = files.to_path(path)
  output = f"{given.with_suffix('.safetensors')}"
  if output == str(given):
    output = f"{given.with_suffix('')}_safe.safetensors"
  code = (
    "import torch; from safetensors.torch import save_file; "
    f'x=torch.load({json.dumps(str(given))}, map_location="cpu", weights_only=True); '
    'x=x if isinstance(x, dict) else {"prompt": x}; x=x.get("state_dict", x); '
    "save_file({k: v.detach().clone().contiguous() for k, v in "
    f"x.items() if torch.is_tensor(v)}}, {json.dumps(output)})"
  )
  return (
    "is a pickle or a zip of pickles, and loading one can run any code, so it is never "
    f"opened. If you trust it, save it as safetensors: {errors.python_command(code)}"
  )


def _parse(text: bytes, size: int) -> Header:
  """Returns the header; a `ValueError` says what is wrong with it."""
  content = json.loads(text.decode("utf-8"), object_pairs_hook=_unique)
  metadata = content.pop(_METADATA, {})
  if not isinstance(metadata, dict) or not all(
    isinstance(value, str) for value in metadata.values()
  ):
    raise ValueError("its metadata are not strings by name")
  "".join(
    (*metadata, *metadata.values(), *content)
  ).encode()  # Refuses lone surrogates.
  first = 8 + len(text)
  entries = {name: _entry(name, spec, first) for name, spec in content.items()}
  in_order = sorted(entries.items(), key=lambda item: (item[1].start, item[1].end))
  reached = first
  for name, entry in in_order:
    if entry.start != reached:
      what = "overlaps the leaf before it" if entry.start < reached else "leaves a gap"
      raise ValueError(f"the leaf {name!r} {what} (at byte {entry.start})")
    reached = entry.end
  if reached != size:
    raise ValueError(f"its leaves end at byte {reached}, and it has {size} bytes")
  return Header(metadata, dict(in_order))


def _entry(name: str, spec: Any, first: int) -> Entry:
  if not isinstance(spec, dict) or spec.keys() != {"dtype", "shape", "data_offsets"}:
    raise ValueError(f"the leaf {name!r} needs exactly dtype, shape and data_offsets")
  dtype, shape, offsets = spec["dtype"], spec["shape"], spec["data_offsets"]
  if not isinstance(dtype, str) or dtype not in _BITS:
    raise ValueError(f"the leaf {name!r} is of an unknown dtype {str(dtype)[:40]!r}")
  for what, numbers in (("shape", shape), ("data_offsets", offsets)):
    if not isinstance(numbers, list) or not all(
      isinstance(n, int) and not isinstance(n, bool) and 0 <= n < 1 << 63
      for n in numbers
    ):
      raise ValueError(f"the {what} of the leaf {name!r} is {str(numbers)[:60]}")
  if not is_countable(shape):
    raise ValueError(f"the leaf {name!r} has the shape {str(shape)[:60]}")
  if len(shape) > 32 or len(offsets) != 2:
    raise ValueError(
      f"the leaf {name!r} has {len(shape)} axes and {len(offsets)} offsets"
    )
  needed = math.prod(shape) * _BITS[dtype] // 8
  if offsets[1] - offsets[0] != needed:
    raise ValueError(
      f"the leaf {name!r} of shape {shape} in {dtype} needs {needed} bytes, and its "
      f"offsets are {offsets}"
    )
  return Entry(dtype, tuple(shape), first + offsets[0], first + offsets[1])


def is_countable(shape: Collection[int]) -> bool:
  """Returns whether NumPy can make arrays of this shape, of up to 16 bytes a value.

  NumPy counts their bytes in 63 bits, and leaves out sizes of 0.
  """
  return math.prod(size for size in shape if size) < 1 << 59


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
  found = dict(pairs)
  if len(found) != len(pairs):
    raise ValueError("its header states a name twice")
  return found

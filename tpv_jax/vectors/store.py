"""One portable file for a prompt or a vector: fp32 leaves and their provenance.

It is an ordinary `.safetensors` file that any reader of that format opens. Its metadata are

    content_digest  SHA-256 over the whole file with these 64 digits as zeros
    format          "tpv_jax 1"
    initial_norm    of a vector, its initial prompt's norm; only if it is known
    provenance      JSON, see `provenance.Provenance`
    written_by      "tpv_jax <version>"

in this order, at the start of the header. Equal content gives equal bytes, and a change of
any byte is noticed.
"""

import hashlib
import math
import os
import re
import shlex
from collections.abc import Mapping
from typing import Any

import numpy as np

from tpv_jax.core import errors, files, identity
from tpv_jax.core.errors import UserError
from tpv_jax.core.leaves import not_finite
from tpv_jax.core.version import VERSION
from tpv_jax.io import safetensors
from tpv_jax.prompts import registry
from tpv_jax.vectors.provenance import BESIDE, Provenance, canonical_json, of_leaves

FORMAT = "tpv_jax 1"

BUNDLE = "tpv_jax prompts 1"
"""The format of several prompts in one file; see `formats.bundles`."""

MAX_HEADER_BYTES = 1 << 20
"""No prompt needs a longer header: the file is damaged, or another kind of file."""

MAX_BYTES = 1 << 29
"""The most bytes of values: 16,384 source positions of 8,192 features."""

_START = b'{"__metadata__":{"content_digest":"'
_DIGEST = slice(8 + len(_START), 8 + len(_START) + 64)
_ZEROS = b"0" * 64
_BACKBONE = b'","fingerprint"'
"""What follows the digest in a backbone's file; in a prompt's it is the format."""


def write(
  path: files.PathLike,
  leaves: Mapping[str, np.ndarray],
  provenance: Provenance,
  overwrite: bool = False,
) -> None:
  """Writes leaves and provenance to one `.safetensors` file, atomically.

  bf16 and fp16 leaves are widened to fp32, which is exact.

  Raises:
    UserError: `path` exists and `overwrite` is not set, does not end in `.safetensors`, or
      its folder does not exist; a leaf is fp64, not floating-point, empty, NaN or infinite.
    OSError: the system could not write, for lack of space for instance; nothing was
      written.
  """
  check_output(path, overwrite)
  files.write_bytes(path, encode(leaves, provenance), overwrite)


def check_output(path: files.PathLike, overwrite: bool = False) -> None:
  """Raises `UserError` if `write` could not write to `path`, whatever the leaves."""
  safetensors.check_suffix(path)
  files.check_output(path, overwrite)


def read(path: files.PathLike) -> tuple[dict[str, np.ndarray], Provenance]:
  """Returns the fp32 leaves and the provenance of a file that `write` made.

  Raises:
    UserError: there is no such file; it is of another kind (safetensors of another tool,
      pickle, ...) or truncated; or a byte differs from what was written.
  """
  path = files.to_path(path)
  metadata, leaves = read_sealed(path)
  if metadata.get("format") == BUNDLE:
    raise UserError(
      f"'{path}' is a bundle of several prompts. Take them out: tpv prompts unpack --file "
      f"{shlex.quote(str(path))} -o FOLDER."
    )
  try:
    if metadata["format"] != FORMAT:
      raise ValueError(f"its format is {metadata['format']!r}, not {FORMAT!r}")
    beside = {name: float(metadata[name]) for name in BESIDE if name in metadata}
    provenance = Provenance.joined(files.parse_json(metadata["provenance"]), beside)
  except (ValueError, KeyError, TypeError) as error:
    raise UserError(
      f"'{path}' cannot be read by tpv_jax {VERSION}: {error}. Read it "
      "with the version that wrote it."
    ) from error
  check_provenance(leaves, provenance, str(path))
  return dict(sorted(leaves.items())), provenance


def encode(leaves: Mapping[str, np.ndarray], provenance: Provenance) -> bytes:
  """Returns the bytes of the file; raises as `write`."""
  if not leaves:
    raise UserError("There are no leaves to write.")
  arrays = {name: _checked(name, leaf) for name, leaf in leaves.items()}
  stated, beside = provenance.apart()
  metadata = {
    "format": FORMAT,
    **{name: repr(value) for name, value in beside.items()},
    "provenance": canonical_json(stated),
    "written_by": f"tpv_jax {VERSION}",
  }
  return sealed(arrays, metadata)


def sealed(
  arrays: Mapping[str, np.ndarray],
  metadata: Mapping[str, str],
  most: int = MAX_HEADER_BYTES,
) -> bytes:
  """Returns the bytes of a safetensors file that states the digest of all its bytes.

  Args:
    arrays: by name.
    metadata: their names come after `content_digest`, the first of which is 'format'.
    most: bytes of the header.

  Raises:
    UserError: the header needs more.
  """
  stated = {"content_digest": _ZEROS.decode(), **metadata}
  content = bytearray(safetensors.encode(arrays, stated))
  length = int.from_bytes(content[:8], "little")
  if length > most:
    raise UserError(
      f"The provenance and names need a header of {length} bytes; at most {most} are "
      "written. Shorten the notes."
    )
  content[_DIGEST] = hashlib.sha256(content).hexdigest().encode()
  return bytes(content)


def read_sealed(
  path: files.PathLike, most: int = MAX_HEADER_BYTES
) -> tuple[dict[str, str], dict[str, np.ndarray]]:
  """Returns the metadata and the fp32 arrays of a file that `sealed` made.

  Raises:
    UserError: as `read`, whatever its format.
  """
  path = files.to_path(path)
  content = _read_file(path, most)
  digest = hashlib.sha256(content[: _DIGEST.start] + _ZEROS)
  digest.update(memoryview(content)[_DIGEST.stop :])
  if digest.hexdigest().encode() != content[_DIGEST]:
    raise UserError(
      f"'{path}' was truncated, damaged or changed after it was written: its content "
      f"has the digest {digest.hexdigest()[:12]}… and it states "
      f"{_show(content[_DIGEST][:12])}…. Make it again or take another copy."
    )
  return safetensors.decode(content, str(path), ("F32",))


def check_provenance(
  leaves: Mapping[str, np.ndarray], provenance: Provenance, shown: str
) -> None:
  """Raises `UserError` if the leaves contradict their provenance.

  The names of leaves imply the space and, for parameters, the method. The values of an
  initial prompt must have the digest that it states, unless it was folded, because another
  processor may round differently.
  """
  names, known = of_leaves(leaves), provenance
  problem = None
  if known.space != names.space:
    problem = f"of the {known.space} space, and holds {', '.join(sorted(leaves))}"
  elif known.space == "factor" and known.method not in (None, names.method):
    problem = f"a {known.method} prompt, and holds {', '.join(sorted(leaves))}"
  is_start = (known.kind, known.terms, known.steps) == ("prompt", (), 0)
  is_own = known.applied_to_digest is None and known.initial_digest is not None
  if is_start and is_own and (known.space == "factor" or known.method == "plain"):
    found = identity.prompt_digest(leaves)
    if found != known.initial_digest:
      problem = (
        f"the initial prompt {str(known.initial_digest)[:12]}…, and its values have the "
        f"digest {found[:12]}…"
      )
  if problem:
    raise UserError(
      f"'{shown}' says that it is {problem}: one of the two is another prompt's. Take "
      "another copy."
    )


def content_digest(path: files.PathLike) -> str:
  """Returns the content digest that a file states, without checking it as `read` does."""
  return _read_file(files.to_path(path))[_DIGEST].decode()


def _checked(name: str, leaf: Any) -> np.ndarray:
  leaf = np.asarray(leaf)
  if not identity.is_floating(leaf.dtype) or leaf.dtype.itemsize > 4:
    raise UserError(
      f"Leaf '{name}' is {leaf.dtype}; prompts and vectors are fp32. Convert it first."
    )
  if leaf.size == 0:
    raise UserError(f"Leaf '{name}' of shape {leaf.shape} is empty.")
  leaf = np.ascontiguousarray(leaf, dtype="<f4").reshape(leaf.shape)
  refuse_not_finite(name, leaf)
  return leaf


def refuse_not_finite(name: str, leaf: np.ndarray) -> None:
  """Raises `UserError` if the leaf `name` contains NaN or infinity."""
  if wrong := not_finite(leaf):
    raise UserError(
      f"Leaf '{name}' holds {wrong}. Go back to a checkpoint from before training "
      "diverged, or choose smaller coefficients."
    )


def refuse_shapes(leaves: Mapping[str, np.ndarray], shown: str) -> None:
  """Raises `UserError` unless these are one prompt's leaves, with consistent shapes."""
  found = {name: leaf.shape for name, leaf in leaves.items()}

  method = registry.of_leaves(found)
  due = method.shapes(found) if method else {}
  if found != due or not all(math.prod(shape) for shape in due.values()):
    held = [f"{name} {list(shape)}" for name, shape in sorted(found.items())]
    raise UserError(
      f"'{shown}' is no prompt: it holds {errors.some(held, 8)}. A plain prompt is one "
      "array [tokens, width]; the parameters of DePT are a prompt [S, D], A [M, R] and B "
      "[R, D]; for others see docs/formats.md."
    )


def _read_file(path: files.Path, most: int = MAX_HEADER_BYTES) -> bytes:
  """Returns the bytes of a file, refused early if it cannot be one of ours."""
  if path.is_dir():
    raise UserError(
      f"'{path}' is a folder. Give a .safetensors file that tpv or a training run of "
      "tpv_jax wrote."
    )
  with files.reading(path) as file:
    start = file.read(_DIGEST.stop + len(_BACKBONE))
    file.seek(0, os.SEEK_END)
    _refuse_foreign(path, start, file.tell(), most)
    file.seek(len(start))
    return start + file.read()


def _refuse_foreign(path: files.Path, start: bytes, size: int, most: int) -> None:
  """Raises `UserError` unless a file with this beginning and size may be one of ours."""
  length = int.from_bytes(start[:8], "little")
  ours = start[8 : _DIGEST.start] == _START
  if ours or start[8:9] == b"{":
    if length > most:
      problem = f"states a header of {length} bytes, which no prompt or vector needs"
    elif 8 + length > size:
      problem = f"is truncated: its header alone needs {8 + length} of its {size} bytes"
    elif size > most + MAX_BYTES:
      problem = f"has {size} bytes, and no prompt or vector has over {MAX_BYTES}"
    elif ours and start[_DIGEST.stop :] == _BACKBONE:
      problem = "is a backbone, and no prompt or vector"
    elif not ours:
      problem = (
        "is a safetensors file but no prompt or vector of tpv_jax (a backbone, or what "
        "another tool wrote), so its origin is unknown"
      )
    else:
      return
  elif start[:4] == b"PK\x03\x04" or re.match(rb"\x80[\x02-\x05]", start):
    problem = "is a pickle or a zip of pickles, and loading one can run any code"
  elif size < 8 + len(_START):
    problem = f"is truncated or no prompt: it has {size} bytes only"
  else:
    problem = "is no safetensors file"
  raise UserError(
    f"'{path}' {problem}. Give a file that tpv or a training run of tpv_jax wrote, a "
    "run folder, or an Orbax checkpoint."
  )


def _show(raw: bytes) -> str:
  return raw.decode("ascii", "backslashreplace")

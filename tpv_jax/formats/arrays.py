"""Prompts as bare arrays: `.npy`, `.npz`, and other tools' `.safetensors`.

A `.npy` file is one prompt [P, D], as google-research/prompt-tuning writes it. The other
two may hold several prompts, each an array of any name, or leaves `<prompt>/<leaf>` with
our names (`equations.parameters`, `Folded`) or those of DePT's code. `FILE:PROMPT` is one of
several. The provenance lies beside the arrays; see `sidecar`.

No value is read before the header is known to describe exactly the bytes that follow it.
Object arrays, which are pickles, are never loaded. NumPy only.
"""

import ast
import contextlib
import dataclasses
import functools
import io
import json
import math
import re
import warnings
import zipfile
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import numpy as np

from tpv_jax.core import errors, files
from tpv_jax.core.errors import UserError, near_misses
from tpv_jax.formats import sidecar
from tpv_jax.io import safetensors
from tpv_jax.prompts import equations
from tpv_jax.vectors import store
from tpv_jax.vectors.loaded import Loaded
from tpv_jax.vectors.provenance import of_leaves

SUFFIXES = (".npy", ".npz")
"""The endings that `write` accepts."""

PICKLES = (".bin", ".ckpt", ".joblib", ".pickle", ".pkl", ".pt", ".pth")
"""Endings of files that are never opened, whatever they hold."""

MAX_BYTES = store.MAX_BYTES
"""Most bytes of a prompt's values as fp32, checked before any value is unpacked."""

_MAX_HEADER_BYTES = 1 << 14
_MAX_DIRECTORY_BYTES = 1 << 20
"""Most bytes of a zip file's table of contents: ten thousand members."""

_AT_ONCE = 1 << 22
"""Values that are unpacked, widened and checked at a time."""

_ZIP_METHODS = (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED)

_THEIR_NAMES = {
  "prompt_embeddings": "prompt",
  "prompt_encoder.lora_embedding_A": "low_rank_a",
  "prompt_encoder.lora_embedding_B": "low_rank_b",
  "lora_embedding_A": "low_rank_a",
  "lora_embedding_B": "low_rank_b",
}
"""Our names for those of PEFT and of DePT's code; see `_by_prompt` for 'prompt'."""

_OUR_NAMES = (
  "prompt",
  "delta",
  *equations.parameters(1, 1, 1, rank=1, fusion_width=1, spaces=1),
)


@dataclasses.dataclass(frozen=True)
class _Array:
  """An array in a file.

  Attributes:
    count: returns the number of its values, from the header.
    read: reads and returns its values.
  """

  count: Callable[[], int]
  read: Callable[[], np.ndarray]


def holds_arrays(path: files.PathLike) -> bool:
  """Returns whether `path` is a file for `read`: arrays that we did not write.

  A pickle is one, too: `read` refuses it.
  """
  file, _ = _split(path)
  suffix = file.suffix.lower()
  if suffix in (*SUFFIXES, *PICKLES):
    return not file.is_dir()
  if suffix != ".safetensors" or not file.is_file():
    return file.is_file() and _begins_as_npy(file)
  try:
    metadata = safetensors.read_header(file).metadata
  except UserError:
    return False  # `store.read` says what is wrong with it.
  # One of these is enough: a damaged file of ours is still ours.
  return not {"content_digest", "provenance", "written_by"} & set(metadata)


def npy_files(folder: files.Path) -> list[str]:
  """Returns the names of the `.npy` arrays in a folder that lack this ending, sorted.

  google-research/prompt-tuning writes such files, for example
  `numpy_checkpoints/checkpoint_*/encoder.prompt.prompt.prompt`.
  """
  return sorted(
    entry.name
    for entry in folder.iterdir()
    if entry.is_file() and entry.suffix.lower() not in (*SUFFIXES, ".safetensors")
    if _begins_as_npy(entry)
  )


def _begins_as_npy(file: files.Path) -> bool:
  with contextlib.suppress(OSError, UserError), files.reading(file) as opened:
    return opened.read(6) == b"\x93NUMPY"
  return False


def prompts(path: files.PathLike) -> list[str]:
  """Returns the names of the prompts in a file of arrays, sorted; no value is read."""
  file, _ = _split(path)
  with _opened(file) as found:
    return sorted(_by_prompt(found))


def read(path: files.PathLike) -> Loaded:
  """Returns the prompt at `path`, its values checked to be finite fp32.

  fp16 and bf16 are widened, and fp64 is accepted if fp32 holds every value exactly, so no
  bit is lost. The provenance is read from the file beside it; without one, only the method
  is known, from the names of the leaves.

  Args:
    path: a `.npy`, `.npz` or another tool's `.safetensors` file, local or on gs://;
      `FILE:PROMPT` for one prompt of several.

  Raises:
    UserError: there is no such file or prompt; it is damaged or a pickle; or the names,
      shapes or dtypes of its leaves are not a prompt's.
  """
  file, name = _split(path)
  shown = str(path)
  with _opened(file) as found:
    if file.suffix.lower() == ".safetensors" and set(found) == {"prompt_embeddings"}:
      raise UserError(
        f"'{file}' holds only 'prompt_embeddings', the weights of a PEFT adapter, and "
        "perhaps only some of its rows are the prompt. Give the file without the name of "
        "a prompt, with its adapter_config.json beside it."
      )
    chosen = _choose(_by_prompt(found), name, file)
    refuse_large(sum(array.count() for array in chosen.values()), shown)
    leaves = {
      leaf: to_fp32(array.read(), leaf, shown) for leaf, array in sorted(chosen.items())
    }
  if set(leaves) == {"prompt"} and leaves["prompt"].shape[:-2] == (1,):
    leaves["prompt"] = leaves["prompt"][0]  # A batch of one, as some tools keep it.
  store.refuse_shapes(leaves, shown)
  known = sidecar.read(beside(file), leaves, shown)
  return Loaded(leaves, known or of_leaves(leaves), shown)


def write(path: files.PathLike, item: Loaded, overwrite: bool = False) -> None:
  """Writes a prompt or vector to `.npy` or `.npz` and its provenance beside it.

  `.npz` holds every leaf under our names. `.npy` holds one array, so `prompt` must be the
  only leaf.

  Raises:
    UserError: `path` has another ending or cannot be written; the item has other leaves.
    OSError: nothing was written.
  """
  path = files.to_path(path)
  check_output(path, overwrite)
  content = io.BytesIO()
  leaves = {name: np.asarray(leaf, "<f4") for name, leaf in sorted(item.leaves.items())}
  if path.suffix == ".npy":
    if set(leaves) != {"prompt"}:
      raise UserError(
        f"A .npy file holds one array, and '{item.name}' has the leaves "
        f"{', '.join(leaves)}. Write an .npz file (tpv export --to npz), which holds all."
      )
    np.lib.format.write_array(content, leaves["prompt"], allow_pickle=False)
  else:
    np.savez(content, allow_pickle=False, **leaves)
  note = sidecar.encode(leaves, item.provenance)
  # The values appear last, so that they never lie there without their provenance.
  files.write_together({path: content.getvalue(), beside(path): note}, overwrite)


def check_output(
  path: files.PathLike, overwrite: bool = False, suffix: str | None = None
) -> None:
  """Raises `UserError` if `write` could not write to `path`, whatever the content.

  Args:
    path: of the output.
    overwrite: whether it may be replaced.
    suffix: the one of `SUFFIXES` that is wanted; None for either.
  """
  path = files.to_path(path)
  if suffix is not None and path.suffix != suffix:
    right = path.with_suffix(suffix) if path.suffix in SUFFIXES else f"{path}{suffix}"
    raise UserError(f"'{path}' does not end in {suffix}. Name the output '{right}'.")
  if path.suffix not in SUFFIXES:
    raise UserError(
      f"'{path}' ends neither in {' nor in '.join(SUFFIXES)}. Name the output "
      f"'{path}.npy' or '{path}.npz'."
    )
  files.check_together((path, beside(path)), overwrite)


def beside(path: files.Path) -> files.Path:
  """Returns the path of the provenance of a file of arrays: `x.npy.json` for `x.npy`."""
  return path.with_name(f"{path.name}.json")


def refuse_pickle(path: files.Path) -> None:
  """Raises a `UserError` that says how to convert a pickle safely."""
  raise UserError(f"'{path}' {safetensors.pickle_advice(path)}")


def refuse_large(values: int, shown: str) -> None:
  """Raises `UserError` if a prompt of so many values would exceed `MAX_BYTES`."""
  if 4 * values > MAX_BYTES:
    raise UserError(
      f"'{shown}' states values of {4 * values} bytes in fp32, and a prompt has at most "
      f"{MAX_BYTES}. Give a file of prompts."
    )


def to_fp32(values: np.ndarray, name: str, shown: str) -> np.ndarray:
  """Returns floating-point values of at most 32 bits as fp32, in C order.

  Raises:
    UserError: there are no values, or some are not finite.
  """
  if not values.size:
    raise UserError(
      f"'{shown}' holds '{name}' of shape {values.shape}, without values."
    )
  wide = np.ascontiguousarray(values, "<f4").reshape(values.shape)
  store.refuse_not_finite(f"{shown}: {name}", wide)
  return wide


def _split(path: files.PathLike) -> tuple[files.Path, str | None]:
  """Returns the file and the name of the prompt in `FILE:PROMPT`."""
  found = re.fullmatch(r"(.+\.(?:npz|safetensors)):(.+)", str(path), re.I | re.S)
  if found is None:
    return files.to_path(path), None
  return files.to_path(found[1]), found[2]


def _by_prompt(found: Mapping[str, _Array]) -> dict[str, dict[str, _Array]]:
  """Returns the arrays by prompt and leaf."""
  groups: dict[str, dict[str, _Array]] = {}
  for full, array in found.items():
    prompt, _, last = full.rpartition("/")
    leaf = _THEIR_NAMES.get(last, last if last in _OUR_NAMES else None)
    if leaf is None:
      prompt, leaf = full, "prompt"
    group = groups.setdefault(prompt or "prompt", {})
    if leaf in group:
      raise UserError(
        f"'{full}' is a second array for the leaf '{leaf}' of one prompt."
      )
    group[leaf] = array
  for group in groups.values():
    factors = {"low_rank_a", "low_rank_b"} & set(group)
    if factors and "prompt" in group and "short_prompt" not in group:
      group["short_prompt"] = group.pop("prompt")
  return groups


def _choose(
  groups: Mapping[str, dict[str, _Array]], name: str | None, file: files.Path
) -> dict[str, _Array]:
  held = _some(sorted(groups))
  if name is not None:
    if name in groups:
      return groups[name]
    raise UserError(
      f"'{file}' has no prompt '{name}'.{near_misses(name, groups)} It has {held}."
    )
  if not groups:
    raise UserError(f"'{file}' holds no array. Take another copy.")
  if len(groups) == 1:
    return next(iter(groups.values()))
  raise UserError(
    f"'{file}' holds {len(groups)} prompts or other arrays: say which, as '{file}:NAME' "
    f"with one of {held}."
  )


def _some(names: list[str], most: int = 20) -> str:
  more = f" and {len(names) - most} more" if len(names) > most else ""
  return ", ".join(names[:most]) + more


@contextlib.contextmanager
def _opened(path: files.Path) -> Iterator[dict[str, _Array]]:
  """Yields the arrays of a file by name; they can be read inside the block."""
  suffix = path.suffix.lower()
  if suffix in PICKLES:
    if not path.is_file():
      raise UserError(files.missing(path))
    refuse_pickle(path)
  if suffix == ".safetensors":
    with safetensors.opened(path) as (_, leaves):
      yield {
        name: _Array(
          functools.partial(math.prod, leaf.shape), functools.partial(np.asarray, leaf)
        )
        for name, leaf in leaves.items()
      }
    return
  with files.reading(path) as file:
    size = file.seek(0, io.SEEK_END)
    if suffix == ".npz":
      yield _zipped(file, path, size)
      return
    file.seek(0)
    if re.match(rb"PK\x03\x04|\x80[\x02-\x05]", file.read(8)):
      refuse_pickle(path)
    file.seek(0)
    load = f"np.load({json.dumps(str(path))})"
    header = _read_header(file, size, str(path), load)
    yield {"prompt": _Array(lambda: header.values, lambda: _read_values(file, header))}


def _zipped(file: Any, path: files.Path, size: int) -> dict[str, _Array]:
  """Returns the arrays of an `.npz` file, whose table of contents is checked."""

  def damaged(problem: object) -> UserError:
    return UserError(
      f"'{path}' is no .npz file, or a truncated or damaged one: {problem}. Take another "
      "copy."
    )

  @contextlib.contextmanager
  def opened(member: zipfile.ZipInfo) -> Iterator[tuple[Any, _Header]]:
    if member.compress_type not in _ZIP_METHODS:
      raise damaged(f"'{member.filename}' is compressed with an unknown method")
    shown = f"{path}:{member.filename}"
    name = member.filename.removesuffix(".npy")
    load = f"np.load({json.dumps(str(path))})[{json.dumps(name)}]"
    try:
      with archive.open(member) as one:
        yield one, _read_header(one, member.file_size, shown, load)
    except UserError:
      raise
    except Exception as error:  # zipfile and zlib raise a dozen kinds on damage.
      raise damaged(error) from error

  def read(member: zipfile.ZipInfo) -> np.ndarray:
    with opened(member) as (one, header):
      return _read_values(one, header)

  def count(member: zipfile.ZipInfo) -> int:
    with opened(member) as (_, header):
      return header.values

  _refuse_long_directory(file, size, damaged)
  try:
    archive = zipfile.ZipFile(file)
    members = archive.infolist()
  except Exception as error:  # As above.
    raise damaged(error) from error
  names = [member.filename for member in members]
  if len(set(names)) != len(names):
    raise damaged("it holds a name twice")
  if others := [name for name in names if not name.endswith(".npy")]:
    if any("pkl" in name for name in others):
      refuse_pickle(path)
    raise damaged(f"'{others[0]}' in it is no .npy file")
  return {
    member.filename.removesuffix(".npy"): _Array(
      functools.partial(count, member), functools.partial(read, member)
    )
    for member in members
  }


def _refuse_long_directory(
  file: Any, size: int, damaged: Callable[[object], UserError]
) -> None:
  """Raises if a zip file's table of contents is longer than any file of prompts needs.

  `zipfile` would read all of it into ten times as many bytes. The record at the end states
  its length; a 64-bit record before that, which would override it, is for gigabytes only.
  """
  file.seek(max(0, size - 22 - (1 << 16)))
  tail = file.read()
  at = len(tail) - 22
  if tail[at : at + 4] != b"PK\5\6":
    at = tail.rfind(b"PK\5\6")
  length = int.from_bytes(tail[at + 12 : at + 16], "little") if at >= 0 else 0
  if tail[max(0, at - 20) :].startswith(b"PK\6\7") or length > _MAX_DIRECTORY_BYTES:
    raise damaged("its table of contents is too long for a file of prompts")


@dataclasses.dataclass(frozen=True)
class _Header:
  """What a `.npy` file states before its values.

  Attributes:
    dtype: floating-point.
    fortran: whether the first axis varies fastest (Fortran order).
    shape: of the array.
    shown: what messages call the file.
    load: the Python expression that reads it, for messages.
  """

  dtype: np.dtype
  fortran: bool
  shape: tuple[int, ...]
  shown: str
  load: str

  @property
  def values(self) -> int:
    """The number of values that follow."""
    return math.prod(self.shape)

  def damaged(self, problem: str) -> UserError:
    """Returns the error for a damaged file."""
    return _damaged_npy(self.shown, problem)


def _damaged_npy(shown: str, problem: str) -> UserError:
  return UserError(
    f"'{shown}' is no .npy file, or a truncated or damaged one: {problem}. Take another "
    "copy."
  )


def _read_header(file: Any, size: int, shown: str, load: str) -> _Header:
  """Returns the header of a `.npy` file, after checking that it fits the file's `size`.

  https://numpy.org/doc/stable/reference/generated/numpy.lib.format.html
  """
  start = file.read(8)
  if start[:6] != b"\x93NUMPY" or start[6:8] not in (b"\1\0", b"\2\0", b"\3\0"):
    raise _damaged_npy(shown, "it does not begin as one")
  width = 2 if start[6] == 1 else 4
  length = int.from_bytes(file.read(width), "little")
  if length > _MAX_HEADER_BYTES:
    raise _damaged_npy(shown, f"it states a header of {length} bytes")
  text = file.read(length)
  try:
    dtype, fortran, shape = _parse(text.decode("utf-8" if start[6] == 3 else "latin1"))
  except ValueError as error:
    raise _damaged_npy(shown, str(error)) from error
  header = _Header(dtype, fortran, shape, shown, load)
  _refuse_other_values(header)
  needed = header.values * dtype.itemsize
  held = size - len(start) - width - length
  if needed != held:
    raise header.damaged(
      f"its shape {list(shape)} of {dtype} needs {needed} bytes, and {held} follow"
    )
  return header


def _refuse_other_values(header: _Header) -> None:
  """Raises a `UserError` with the conversion unless the values are floating-point."""
  if header.dtype.hasobject:
    load = header.load.replace('")', '", allow_pickle=True)', 1)
    code = (
      f"import numpy as np; v={load}.tolist(); v=v if isinstance(v, dict) else "
      '{"prompt": v}; np.savez("OUT.npz", **{k: np.asarray(x, np.float32) for k, x in '
      "v.items()})"
    )
    raise UserError(
      f"'{header.shown}' holds Python objects, which are a pickle, and loading one can "
      "run any code, so it is never opened. If you trust it, save its numbers: "
      f"{errors.python_command(code)}"
    )
  if header.dtype.kind != "f":
    bf16 = header.dtype == np.dtype("V2")
    load = f"{header.load}.view(ml_dtypes.bfloat16)" if bf16 else header.load
    code = (
      f"import numpy as np{', ml_dtypes' if bf16 else ''}; "
      f'np.save("OUT.npy", {load}.astype(np.float32))'
    )
    raise UserError(
      f"'{header.shown}' holds {header.dtype} values{' (bf16 is written so)' if bf16 else ''}"
      ", not floating-point ones that NumPy knows. Save them as fp32: "
      f"{errors.python_command(code)}"
    )


def _read_values(file: Any, header: _Header) -> np.ndarray:
  """Returns the values that follow a header as fp32, read and checked part by part."""
  wide = np.empty(header.shape, "<f4")
  flat = wide.T.flat if header.fortran else wide.reshape(-1)
  for start in range(0, header.values, _AT_ONCE):
    stop = min(start + _AT_ONCE, header.values)
    due = (stop - start) * header.dtype.itemsize
    content = file.read(due)
    if len(content) != due:
      raise header.damaged(f"it ends {due - len(content)} bytes too early")
    part = np.frombuffer(content, header.dtype)
    with np.errstate(over="ignore", invalid="ignore"):
      narrow = part.astype("<f4")
      exact = header.dtype.itemsize <= 4 or np.array_equal(
        narrow.astype(header.dtype), part, equal_nan=True
      )
    if not exact:
      code = f"import numpy as np; np.save('OUT.npy', {header.load}.astype(np.float32))"
      raise UserError(
        f"'{header.shown}' holds values in {header.dtype}, which fp32 would round. If that "
        f"is acceptable, round them yourself: {errors.python_command(code)}"
      )
    flat[start:stop] = narrow
  return wide


def _parse(text: str) -> tuple[np.dtype, bool, tuple[int, ...]]:
  """Returns dtype, Fortran order and shape; a `ValueError` says what is wrong."""
  try:
    with warnings.catch_warnings():
      warnings.simplefilter("ignore")
      content = ast.literal_eval(text.strip())
  except (ValueError, SyntaxError, TypeError, MemoryError, RecursionError) as error:
    raise ValueError("its header is not a dictionary") from error
  if not isinstance(content, dict) or content.keys() != {
    "descr",
    "fortran_order",
    "shape",
  }:
    raise ValueError("its header needs exactly descr, fortran_order and shape")
  descr, fortran, shape = (content[k] for k in ("descr", "fortran_order", "shape"))
  if not isinstance(descr, str) or not re.fullmatch(r"[<>=|]?[a-zA-Z]\d{0,4}", descr):
    raise ValueError(f"its values are of the kind {str(descr)[:40]!r}")
  if not isinstance(fortran, bool) or not _is_shape(shape):
    raise ValueError(f"its shape is {str(shape)[:60]}")
  try:
    return np.dtype(descr), fortran, shape
  except (TypeError, ValueError) as error:
    raise ValueError(f"its values are of the kind {descr!r}") from error


def _is_shape(shape: Any) -> bool:
  return (
    isinstance(shape, tuple)
    and len(shape) <= 32
    and all(type(size) is int and size >= 0 for size in shape)
    and safetensors.is_countable(shape)
  )

"""Prompts as bare arrays: `.npy`, `.npz`, and other tools' `.safetensors`.

A `.npy` file is one prompt [P, D], as google-research/prompt-tuning writes it. The other
two may hold several, each an array of any name, or leaves `<prompt>/<leaf>` under our
names (`equations.parameters`, `Folded`) or those of DePT's code. One of several is
addressed as `FILE:PROMPT`. What the arrays cannot say lies beside them, see `sidecar`.

Nothing is read before a header has been found to describe exactly the bytes that follow
it. Object arrays, which are pickles, are never loaded. NumPy only.
"""

import ast
import contextlib
import io
import math
import re
import warnings
import zipfile
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import numpy as np

from tpv_jax import files, safetensors_io
from tpv_jax.errors import UserError, near_misses
from tpv_jax.formats import sidecar
from tpv_jax.prompts import equations
from tpv_jax.vectors import store
from tpv_jax.vectors.algebra import Loaded
from tpv_jax.vectors.provenance import of_leaves

SUFFIXES = (".npy", ".npz")
"""What `write` makes."""

PICKLES = (".bin", ".ckpt", ".joblib", ".pickle", ".pkl", ".pt", ".pth")
"""What is never opened, whatever it holds."""

MAX_BYTES = 1 << 30
"""Of one array; 16,384 source positions of 8,192 features take half of it."""

_MAX_HEADER_BYTES = 1 << 14
_ZIP_METHODS = (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED)

_THEIR_NAMES = {
  "prompt_embeddings": "prompt",
  "prompt_encoder.lora_embedding_A": "low_rank_a",
  "prompt_encoder.lora_embedding_B": "low_rank_b",
  "lora_embedding_A": "low_rank_a",
  "lora_embedding_B": "low_rank_b",
}
"""DePT's code; its prompt is the short one where there are the other two."""

_OUR_NAMES = (
  "prompt",
  "delta",
  *equations.parameters(1, 1, 1, rank=1, fusion_width=1, spaces=1),
)

_Reader = Callable[[], np.ndarray]


def holds_arrays(path: files.PathLike) -> bool:
  """Returns whether `read` is what reads a path: a file of arrays that is none of ours.

  Of a pickle too, which `read` then refuses.
  """
  file, _ = _split(path)
  suffix = file.suffix.lower()
  if suffix in (*SUFFIXES, *PICKLES):
    return not file.is_dir()
  if suffix != ".safetensors" or not file.is_file():
    return False
  try:
    metadata = safetensors_io.read_header(file).metadata
  except UserError:
    return False  # What is wrong with it `store.read` says.
  # Any of them: a byte of ours that was changed does not make it another tool's.
  return not {"content_digest", "provenance", "written_by"} & set(metadata)


def prompts(path: files.PathLike) -> list[str]:
  """Returns the names of the prompts in a file of arrays, sorted; no value is read."""
  file, _ = _split(path)
  with _opened(file) as readers:
    return sorted(_by_prompt(readers))


def read(path: files.PathLike) -> Loaded:
  """Returns the prompt at `path`, its values checked to be finite fp32.

  fp16 and bf16 are widened, and fp64 is accepted where every value is one of fp32, so no
  bit is lost. Its provenance is what lies beside it; otherwise it says what the names of
  the leaves say.

  Args:
    path: a `.npy`, `.npz` or foreign `.safetensors` file, here or on gs://; `FILE:PROMPT`
      for one prompt of several.

  Raises:
    UserError: there is no such file or prompt; it is damaged, a pickle, or holds leaves
      of other names, shapes or dtypes than a prompt's.
  """
  file, name = _split(path)
  shown = str(path)
  with _opened(file) as readers:
    if file.suffix.lower() == ".safetensors" and set(readers) == {"prompt_embeddings"}:
      raise UserError(
        f"'{file}' holds 'prompt_embeddings' alone, the weights of a PEFT adapter, of "
        "which only some rows may be the prompt. Give the file, without the name of a "
        "prompt, with its adapter_config.json beside it."
      )
    chosen = _choose(_by_prompt(readers), name, file)
    leaves = {
      leaf: to_fp32(reader(), leaf, shown) for leaf, reader in sorted(chosen.items())
    }
  if file.suffix.lower() == ".npy" and leaves["prompt"].ndim == 3:
    leaves["prompt"] = _first_of_one(leaves["prompt"])
  refuse_shapes(leaves, shown)
  known = sidecar.read(beside(file), leaves, shown)
  return Loaded(leaves, known or of_leaves(leaves), shown)


def write(path: files.PathLike, item: Loaded, overwrite: bool = False) -> None:
  """Writes a prompt or vector to `.npy` or `.npz` and its provenance beside it.

  `.npz` holds every leaf under our names. `.npy` holds one array, and so only what has
  no other leaf than `prompt`.

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
        f"{', '.join(leaves)}. Write an .npz file (--to npz), which holds all."
      )
    np.lib.format.write_array(content, leaves["prompt"], allow_pickle=False)
  else:
    np.savez(content, allow_pickle=False, **leaves)
  note = sidecar.encode(leaves, item.provenance)
  # The values appear last: they never lie without their provenance.
  files.write_together({path: content.getvalue(), beside(path): note}, overwrite)


def check_output(path: files.PathLike, overwrite: bool = False) -> None:
  """Raises `UserError` if `write` could not write to `path`, whatever the content."""
  path = files.to_path(path)
  if path.suffix not in SUFFIXES:
    raise UserError(
      f"'{path}' ends neither in {' nor in '.join(SUFFIXES)}. Name the output "
      f"'{path}.npy' or '{path}.npz'."
    )
  files.check_output(path, overwrite)
  files.check_output(beside(path), overwrite)


def beside(path: files.Path) -> files.Path:
  """Returns where the provenance of a file of arrays lies: `x.npy.json` of `x.npy`."""
  return path.with_name(f"{path.name}.json")


def refuse_pickle(path: files.Path) -> None:
  """Raises `UserError`, which says how a pickle is made safe."""
  problem = f"'{path}' {safetensors_io.PICKLE}"
  if (
    path.name == "adapter_model.bin"
  ):  # Its rows mean nothing without what lies beside.
    weights = path.with_suffix(".safetensors")
    problem = problem.replace("'IN'", f"'{path}'")
    problem = problem.replace("'OUT.safetensors'", f"'{weights}'")
  raise UserError(problem)


def to_fp32(values: np.ndarray, name: str, shown: str) -> np.ndarray:
  """Returns the values as fp32, in C order, none of them rounded.

  Raises:
    UserError: they are not floating-point, would be rounded, are none, or not finite.
  """
  with np.errstate(over="ignore", invalid="ignore"):
    narrow = np.ascontiguousarray(values, "<f4").reshape(values.shape)
    exact = values.dtype.itemsize <= 4 or np.array_equal(
      narrow.astype(values.dtype), values, equal_nan=True
    )
  if not exact:
    raise UserError(
      f"'{shown}' holds '{name}' in {values.dtype}, whose values fp32 would round. "
      "Round them yourself where that is meant: array.astype(numpy.float32)."
    )
  if not narrow.size:
    raise UserError(
      f"'{shown}' holds '{name}' of shape {values.shape}, without values."
    )
  store.refuse_not_finite(f"{shown}: {name}", narrow)
  return narrow


def refuse_shapes(leaves: Mapping[str, np.ndarray], shown: str) -> None:
  """Raises `UserError` unless these are the leaves of one prompt, with fitting shapes."""
  found = {name: leaf.shape for name, leaf in leaves.items()}

  def size(name: str, axis: int) -> int:
    shape = found.get(name, ())
    return shape[axis] if axis < len(shape) else 0

  due: dict[str, tuple[int, ...]]
  if "prompt" in found:
    due = {"prompt": (size("prompt", 0), size("prompt", 1))}
    if "delta" in found:
      due["delta"] = (size("delta", 0), size("prompt", 1))
  else:
    forms = equations.parameters(
      length=size("short_prompt", 0),
      features=size("short_prompt", 1),
      source_length=size("low_rank_a", 0),
      rank=size("low_rank_a", 1),
      fusion_width=size("fusion_query", 1),
      spaces=size("gate_kernel", 1),
      bottleneck=size("space_down", 2),
    )
    due = {name: form.shape for name, form in forms.items()}
    if "fusion_query" in due and "low_rank_a" not in due:
      due |= {"low_rank_a": (0, 0), "low_rank_b": (0, 0)}
  if found != due or not all(math.prod(shape) for shape in due.values()):
    raise UserError(
      f"'{shown}' is no prompt: it holds {_list_shapes(found)}. A plain prompt is one "
      "array [tokens, width]; the parameters of DePT are a prompt [S, D], A [M, R] and B "
      "[R, D]; for others see docs/formats.md."
    )


def _list_shapes(shapes: Mapping[str, tuple[int, ...]]) -> str:
  return ", ".join(f"{name} {list(shape)}" for name, shape in sorted(shapes.items()))


def _first_of_one(values: np.ndarray) -> np.ndarray:
  return values[0] if len(values) == 1 else values


def _split(path: files.PathLike) -> tuple[files.Path, str | None]:
  """Returns the file and the name of the prompt in `FILE:PROMPT`."""
  found = re.fullmatch(r"(.+\.(?:npz|safetensors)):(.+)", str(path), re.I | re.S)
  if found is None:
    return files.to_path(path), None
  return files.to_path(found[1]), found[2]


def _by_prompt(readers: Mapping[str, _Reader]) -> dict[str, dict[str, _Reader]]:
  """Returns the readers by prompt and leaf."""
  groups: dict[str, dict[str, _Reader]] = {}
  for full, reader in readers.items():
    prompt, _, last = full.rpartition("/")
    leaf = _THEIR_NAMES.get(last, last if last in _OUR_NAMES else None)
    if leaf is None:
      prompt, leaf = full, "prompt"
    group = groups.setdefault(prompt or "prompt", {})
    if leaf in group:
      raise UserError(
        f"'{full}' is a second array for the leaf '{leaf}' of one prompt."
      )
    group[leaf] = reader
  for group in groups.values():
    factors = {"low_rank_a", "low_rank_b"} & set(group)
    if factors and "prompt" in group and "short_prompt" not in group:
      group["short_prompt"] = group.pop("prompt")
  return groups


def _choose(
  groups: Mapping[str, dict[str, _Reader]], name: str | None, file: files.Path
) -> dict[str, _Reader]:
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
def _opened(path: files.Path) -> Iterator[dict[str, _Reader]]:
  """Yields a reader for each array by name; they can be called inside the block."""
  suffix = path.suffix.lower()
  if suffix in PICKLES:
    if not path.is_file():
      raise UserError(files.missing(path))
    refuse_pickle(path)
  if suffix == ".safetensors":
    with safetensors_io.opened(path) as (_, leaves):
      yield {name: _reader(leaf) for name, leaf in leaves.items()}
    return
  with files.reading(path) as file:
    size = file.seek(0, io.SEEK_END)
    file.seek(0)
    if suffix == ".npy":
      yield {"prompt": lambda: _read_npy(file, size, str(path))}
    else:
      yield _zipped(file, str(path))


def _reader(leaf: Any) -> _Reader:
  return lambda: np.asarray(leaf)


def _zipped(file: Any, shown: str) -> dict[str, _Reader]:
  """Returns a reader for each member of an `.npz` file."""

  def damaged(error: Exception) -> UserError:
    return UserError(
      f"'{shown}' is no .npz file, or a truncated or damaged one: {error}. Take another "
      "copy."
    )

  try:
    archive = zipfile.ZipFile(file)
    members = archive.infolist()
  except Exception as error:  # zipfile raises a dozen kinds on damage.
    raise damaged(error) from error

  def read(member: zipfile.ZipInfo) -> np.ndarray:
    if member.compress_type not in _ZIP_METHODS:
      raise damaged(ValueError(f"'{member.filename}' is compressed in another way"))
    try:
      with archive.open(member) as one:
        return _read_npy(one, member.file_size, f"{shown}:{member.filename}")
    except UserError:
      raise
    except Exception as error:  # As above, and what zlib raises.
      raise damaged(error) from error

  def reader(member: zipfile.ZipInfo) -> _Reader:
    return lambda: read(member)

  names = [member.filename for member in members]
  if len(set(names)) != len(names):
    raise damaged(ValueError("it holds a name twice"))
  if others := [name for name in names if not name.endswith(".npy")]:
    if any("pkl" in name for name in others):
      refuse_pickle(files.to_path(shown))
    raise damaged(ValueError(f"'{others[0]}' in it is no .npy file"))
  return {member.filename.removesuffix(".npy"): reader(member) for member in members}


def _read_npy(file: Any, size: int, shown: str) -> np.ndarray:
  """Returns the array in a `.npy` file of `size` bytes, floating-point of any width.

  https://numpy.org/doc/stable/reference/generated/numpy.lib.format.html
  """

  def damaged(problem: str) -> UserError:
    return UserError(
      f"'{shown}' is no .npy file, or a truncated or damaged one: {problem}. Take "
      "another copy."
    )

  start = file.read(8)
  if re.match(rb"PK\x03\x04|\x80[\x02-\x05]", start):
    refuse_pickle(files.to_path(shown))
  if start[:6] != b"\x93NUMPY" or start[6:8] not in (b"\1\0", b"\2\0", b"\3\0"):
    raise damaged("it does not begin as one")
  width = 2 if start[6] == 1 else 4
  length = int.from_bytes(file.read(width), "little")
  if length > _MAX_HEADER_BYTES:
    raise damaged(f"it states a header of {length} bytes")
  header = file.read(length)
  try:
    dtype, fortran, shape = _parse(
      header.decode("utf-8" if start[6] == 3 else "latin1")
    )
  except ValueError as error:
    raise damaged(str(error)) from error
  if dtype.hasobject:
    raise UserError(
      f"'{shown}' holds Python objects, which are a pickle, and loading one can run any "
      "code, so it is never opened. Where it is trusted, save its numbers: python -c "
      "\"import numpy as np; np.save('OUT.npy', np.asarray(np.load('IN.npy', "
      'allow_pickle=True).tolist(), np.float32))"'
    )
  if dtype.kind != "f":
    bf16 = " (bf16 is written so)" if dtype == np.dtype("V2") else ""
    raise UserError(
      f"'{shown}' holds {dtype} values{bf16}, not floating-point ones that NumPy knows. "
      "Save it as float32: numpy.save(path, array.astype(numpy.float32))."
    )
  needed = math.prod(shape) * dtype.itemsize
  held = size - len(start) - width - length
  if needed != held:
    raise damaged(
      f"its shape {list(shape)} of {dtype} needs {needed} bytes, and {held} follow"
    )
  if needed > MAX_BYTES:
    raise UserError(
      f"'{shown}' holds an array of {needed} bytes, and a prompt's have at most "
      f"{MAX_BYTES}. Give a file of prompts."
    )
  content = file.read(needed)
  if len(content) != needed:
    raise damaged(f"{len(content)} of {needed} bytes follow its header")
  flat = np.frombuffer(content, dtype)
  return flat.reshape(shape, order="F" if fortran else "C")


def _parse(text: str) -> tuple[np.dtype, bool, tuple[int, ...]]:
  """Returns dtype, Fortran order and shape; a `ValueError` says what is wrong."""
  try:
    with warnings.catch_warnings():
      warnings.simplefilter("ignore")
      content = ast.literal_eval(text.strip())
  except (ValueError, SyntaxError, TypeError, MemoryError, RecursionError) as error:
    raise ValueError("its header is no dictionary") from error
  if not isinstance(content, dict) or content.keys() != {
    "descr",
    "fortran_order",
    "shape",
  }:
    raise ValueError("its header has not just descr, fortran_order and shape")
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
    and safetensors_io.is_countable(shape)
  )

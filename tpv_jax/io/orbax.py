"""T5X's checkpoints: reads both layouts leaf by leaf, and writes Orbax's.

Orbax's layout is `checkpoint_<step>/state`; the older one, of the public checkpoints of
2022, is a msgpack file `checkpoint` beside zarr folders. tensorstore reads both on this
host, whatever wrote them and on however many devices. Only writing imports Orbax, and with
it JAX; nothing needs T5X or TensorFlow.
"""

import functools
import math
import os
import pathlib
import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import ml_dtypes
import numpy as np

from tpv_jax.core import errors, files
from tpv_jax.core.errors import UserError
from tpv_jax.core.identity import is_floating, unflatten
from tpv_jax.core.leaves import Leaf, read_all

_METADATA = "_METADATA"
"""The file in which Orbax describes a PyTree; the folder of every saved PyTree has it."""

RUN = "run"
"""The key, in a checkpoint's metadata, of the run that it belongs to."""

_ABOUT = "_CHECKPOINT_METADATA"
"""The JSON file in which Orbax's manager keeps a checkpoint's custom metadata."""

_UNFINISHED = ".orbax-checkpoint-tmp"
"""Part of a local folder's name until the folder is complete and renamed."""

_COMMITTED = "commit_success.txt"
"""The file that Orbax writes last in an object store, where nothing is renamed."""

_INFLATED_FROM_BYTES = 1 << 28
"""Arrays that claim less are read without a comparison with the size of their files."""

AT_ONCE_BYTES = 1 << 25
"""Bytes of leaves that are read before all of them must be written."""

Keys = tuple[str, ...]
"""The keys of a leaf in the saved tree, outermost first."""


def state_folder(path: files.PathLike) -> files.Path | None:
  """Returns the folder of the saved PyTree: `path`/state, `path` itself, or None.

  T5X and our runner write `checkpoint_<step>/state`. A file, a folder of another kind
  and a path that does not exist give None.
  """
  path = files.to_path(path)
  for folder in (path / "state", path):
    if (folder / _METADATA).is_file():
      return folder
  return None


def checkpoint_step(path: files.PathLike) -> int | None:
  """Returns the step in `path`, `checkpoint_<step>` or `checkpoint_<step>/state`."""
  path = files.absolute(path)
  for name in (path.name, path.parent.name):
    if match := re.fullmatch(r"checkpoint_(\d+)", name):
      return int(match[1])
  return None


def checkpoints_in(path: files.PathLike) -> list[files.Path]:
  """Returns the folders `checkpoint_<step>` of a model folder or run, by step."""
  path = files.to_path(path)
  for folder in (path, path / "checkpoints"):
    found = [
      (int(entry.name.removeprefix("checkpoint_")), entry)
      for entry in (folder.iterdir() if folder.is_dir() else ())
      if re.fullmatch(r"checkpoint_\d+", entry.name)
    ]
    if found:
      return [entry for _, entry in sorted(found)]
  return []


def run_of_checkpoint(path: files.PathLike) -> str | None:
  """Returns the run that `checkpoint_<step>` states, or None.

  T5X's checkpoints state none, and neither do early ones of tpv_jax.
  """
  path = files.to_path(path)
  folder = path.parent if path.name == "state" else path
  try:
    run = files.parse_json(files.read_bytes(folder / _ABOUT))["custom_metadata"][RUN]
  except (OSError, ValueError, KeyError, TypeError, RecursionError):
    return None
  return run if isinstance(run, str) else None


def read_leaves(
  path: files.PathLike, prefix: str = "target/prompt"
) -> dict[str, np.ndarray]:
  """Returns the leaves under `prefix` as NumPy arrays, by their paths below it.

  See `lazy_leaves`, whose errors it raises.
  """
  return read_all(lazy_leaves(path, prefix))


def shapes(
  path: files.PathLike, prefix: str = "target/prompt"
) -> dict[str, tuple[int, ...]]:
  """Returns the shapes of the leaves under `prefix` by path below it; reads no values.

  See `lazy_leaves`, whose errors it raises.
  """
  return {name: leaf.shape for name, leaf in lazy_leaves(path, prefix).items()}


def lazy_leaves(path: files.PathLike, prefix: str = "target/prompt") -> dict[str, Leaf]:
  """Returns the leaves under `prefix` by their paths below it, to be read one by one.

  `prefix="target"` is a whole backbone. The dtypes are those of the storage.

  Args:
    path: `checkpoint_<step>`, or the `state` folder in it; in the older layout also the
      file `checkpoint`. May be on gs://.
    prefix: path of a collection in the saved tree, parts joined by "/".

  Raises:
    UserError: there is no such folder; it is not a checkpoint, or an unfinished one, a
      folder of checkpoints, or damaged; a symbolic link leads out of it; nothing is saved
      under `prefix`. Damage to a leaf's values is reported when the leaf is read.
  """
  absolute, names = files.absolute(path), prefix.strip("/")
  refuse_foreign_files(absolute)
  legacy = _legacy_file(absolute)
  if legacy is not None:
    saved = _legacy_tree(legacy, str(path))
    spec = functools.partial(_legacy_spec, legacy.parent)
  else:
    folder = _checked_state_folder(absolute, str(path))
    saved, described = _saved(folder, str(path))
    spec = functools.partial(_spec, folder, described)
  wanted = {
    keys: value
    for keys, value in saved.items()
    if "/".join(keys).startswith(names + "/")
  }
  if not wanted:
    raise UserError(_nothing_under(str(path), names, list(saved)))
  specs = {
    keys: spec(keys, value)
    for keys, value in wanted.items()
    if not isinstance(value, np.ndarray)
  }
  stores = _open(specs, str(path))
  _refuse_inflated(stores, legacy.parent if legacy else folder, str(path))

  def leaf(keys: Keys, value: Any) -> Leaf:
    name = ".".join(keys)
    if isinstance(value, np.ndarray):
      return Leaf(value.shape, value.dtype, lambda: value, name)
    store = stores[keys]
    return Leaf(
      tuple(store.shape),
      store.dtype.numpy_dtype,
      lambda: _read(store, str(path)),
      name,
    )

  return {
    "/".join(keys).removeprefix(names + "/"): leaf(keys, value)
    for keys, value in wanted.items()
  }


def save_checkpoint(path: files.Path, flat: Mapping[str, Any], step: int = 0) -> None:
  """Writes a T5X checkpoint with the leaves as its `target`; they are read one by one.

  Its only optimizer state is the step, which is all that T5X needs to restore a model for
  inference or fine-tuning.

  Args:
    path: `checkpoint_<step>`, which does not exist yet; may be on gs://.
    flat: arrays or `Leaf`s by T5X path.
    step: of training.
  """
  import jax
  import orbax.checkpoint as ocp
  from orbax.checkpoint import type_handlers

  class OneByOne(type_handlers.NumpyHandler):
    """Orbax's handler of arrays, but it reads each one after writing those before it."""

    async def serialize(self, values: Any, infos: Any, args: Any = None) -> list[Any]:
      waiting: list[Any] = []
      size = 0
      try:
        for value, info, argument in zip(values, infos, args, strict=True):
          waiting += await super().serialize([np.asarray(value)], [info], [argument])
          size += value.nbytes
          if size >= AT_ONCE_BYTES:
            for future in waiting:
              future.result()
            waiting, size = [], 0
      except BaseException as error:
        # Raised only after Orbax has finished the pending writes: they would make the
        # folder again after the caller removed it.
        failed.append(error)
      return waiting

  failed: list[BaseException] = []

  registry = type_handlers.create_type_handler_registry(
    (Leaf, OneByOne()),
    (int, type_handlers.ScalarHandler()),
    (jax.Array, type_handlers.ArrayHandler()),  # Without it Orbax prints a warning.
  )
  target = {
    name: leaf
    if isinstance(leaf, Leaf)
    else Leaf(leaf.shape, leaf.dtype, functools.partial(np.asarray, leaf))
    for name, leaf in flat.items()
  }
  tree = {"target": unflatten(target), "state": {"step": int(step)}}
  handler = ocp.PyTreeCheckpointHandler(type_handler_registry=registry)
  try:
    with ocp.Checkpointer(handler) as checkpointer:
      checkpointer.save(files.absolute(path) / "state", args=ocp.args.PyTreeSave(tree))
  finally:
    if failed:
      raise failed[0]


def _open(specs: Mapping[Keys, Any], shown: str) -> dict[Keys, Any]:
  """Returns the opened arrays; all are opened at once, because stores answer slowly."""
  import tensorstore

  stores: dict[Keys, Any] = {}
  try:
    # The first alone: when many fail together, tensorstore's threads print traces.
    for keys, spec in list(specs.items())[:1]:
      stores[keys] = tensorstore.open(spec, open=True).result()
    opening = {keys: tensorstore.open(spec, open=True) for keys, spec in specs.items()}
    return stores | {keys: future.result() for keys, future in opening.items()}
  except Exception as error:  # tensorstore raises a handful of kinds on damage.
    raise UserError(_damaged(shown, error)) from error


def _read(store: Any, shown: str) -> np.ndarray:
  try:
    return np.asarray(store.read().result())
  except Exception as error:  # As in `_open`.
    raise UserError(_damaged(shown, error)) from error


def _refuse_inflated(
  stores: Mapping[Keys, Any], folder: files.Path, shown: str
) -> None:
  """Raises `UserError` if arrays or their chunks claim far more bytes than are stored.

  Weights hardly compress. Object stores are not checked: listing a folder costs too much.
  """
  claimed = sum(
    max(map(math.prod, (store.shape, store.chunk_layout.read_chunk.shape or ())))
    * store.dtype.numpy_dtype.itemsize
    for store in stores.values()
  )
  if claimed < _INFLATED_FROM_BYTES or files.is_remote(folder):
    return
  here = pathlib.Path(folder).rglob("*")
  stored = sum(file.stat().st_size for file in here if file.is_file())
  if claimed > 100 * stored:
    raise UserError(
      f"'{shown}' claims arrays of {claimed} bytes, but its files have only {stored}. "
      "Take another copy."
    )


def refuse_foreign_files(path: files.Path) -> None:
  """Raises `UserError` if a file of the checkpoint lies outside it or is not regular.

  See `files.inside` and `files.refuse_irregular`.
  """
  if files.is_remote(path) or not path.is_dir():
    return
  for folder, folders, names in os.walk(path):
    for name in (*folders, *names):
      if os.path.islink(os.path.join(folder, name)):
        files.inside(path, os.path.relpath(os.path.join(folder, name), path))
    for name in names:
      files.refuse_irregular(os.path.join(folder, name))


def _kvstore(folder: files.Path, name: str = "") -> dict[str, str]:
  if files.is_remote(folder):
    bucket, _, path = str(folder).removeprefix("gs://").partition("/")
    return {"driver": "gcs", "bucket": bucket, "path": f"{path}/{name}"}
  return {"driver": "file", "path": f"{folder}/{name}"}


def _spec(
  folder: files.Path, described: Mapping[str, Any], keys: Keys, value: Any
) -> dict[str, Any]:
  """Returns tensorstore's spec of an array in Orbax's layout."""
  name = ".".join(keys)
  ocdbt = described.get("use_ocdbt")
  if ocdbt is None:
    ocdbt = (folder / "manifest.ocdbt").exists()
  kvstore: dict[str, Any] = _kvstore(folder, f"{name}/")
  if ocdbt:
    kvstore = {"driver": "ocdbt", "base": _kvstore(folder), "path": f"{name}/"}
  return {
    "driver": "zarr3" if described.get("use_zarr3") else "zarr",
    "kvstore": kvstore,
    "fill_missing_data_reads": False,
  }


def _legacy_file(path: files.Path) -> files.Path | None:
  """Returns the msgpack file of a checkpoint from before Orbax, or None."""
  if path.is_dir():
    path = path / "checkpoint"
  found = path.name == "checkpoint" and path.is_file()
  return path if found and state_folder(path.parent) is None else None


def _legacy_tree(path: files.Path, shown: str) -> dict[Keys, Any]:
  """Returns what the msgpack file says about each leaf: its values, or where they lie.

  Flax's encoding: an array is the extension 1, itself msgpack of (shape, dtype, bytes).
  """
  import msgpack

  def array(code: int, content: bytes) -> Any:
    if code not in (1, 3):
      raise ValueError(f"an unknown extension {code}")
    shape, dtype, values = msgpack.unpackb(content)
    kind = np.dtype(ml_dtypes.bfloat16 if dtype == "bfloat16" else dtype)
    if not (is_floating(kind) or kind.kind in "iub"):
      raise ValueError(f"an array of {dtype}")
    return np.frombuffer(values, kind).reshape(shape)

  try:
    content = msgpack.unpackb(
      files.read_bytes(path), ext_hook=array, raw=False, strict_map_key=False
    )
    saved = content["optimizer"]
    return {
      ("target", *keys): value for keys, value in _legacy_leaves(saved["target"], ())
    }
  except Exception as error:  # msgpack and NumPy raise a dozen kinds on damage.
    raise UserError(_damaged(shown, error)) from error


def _legacy_leaves(tree: Any, keys: Keys) -> Iterator[tuple[Keys, Any]]:
  if isinstance(tree, np.ndarray) or "kvstore" in tree:
    yield keys, tree
  else:
    for key, value in tree.items():
      if not isinstance(key, str) or not key or "/" in key:
        raise ValueError(f"a leaf named {key!r}")
      yield from _legacy_leaves(value, (*keys, key))


def _legacy_spec(folder: files.Path, keys: Keys, value: Any) -> dict[str, Any]:
  """Returns tensorstore's spec of an array in the older layout.

  The file states the array's path at the time of writing; now it lies beside the file.
  """
  kvstore = value["kvstore"] if isinstance(value["kvstore"], dict) else {}
  stated = [at.get("path") for at in (kvstore, value)]
  path = next((text for text in stated if isinstance(text, str) and text), "")
  name = path.rstrip("/").split("/")[-1]
  if not name or name in (".", ".."):
    raise UserError(_damaged(str(folder), ValueError(f"no place of {'/'.join(keys)}")))
  return {
    "driver": "zarr",
    "kvstore": _kvstore(folder, f"{name}/"),
    "fill_missing_data_reads": False,
  }


def _saved(folder: files.Path, shown: str) -> tuple[dict[Keys, None], dict[str, Any]]:
  """Returns the keys of every array in Orbax's own description, and the description.

  They are read from the file, because `Checkpointer.metadata` opens every array of the
  checkpoint, which may be a whole backbone, and fails if one is damaged.
  """
  try:
    content = files.parse_json(files.read_bytes(folder / _METADATA))
    saved = {
      tuple(str(key["key"]) for key in entry["key_metadata"]): None
      for entry in content["tree_metadata"].values()
      if not entry["value_metadata"].get("skip_deserialize", False)  # None, {}, ...
    }
    return saved, content
  except (
    OSError,
    ValueError,
    KeyError,
    TypeError,
    AttributeError,
    RecursionError,
  ) as error:
    raise UserError(_damaged(shown, error)) from error


def _checked_state_folder(path: files.Path, shown: str) -> files.Path:
  folder = state_folder(path)
  if folder is not None and _is_finished(folder):
    return folder
  if folder is not None or _UNFINISHED in path.name:
    problem = "is a checkpoint whose writing was never finished"
    advice = "Take an earlier step"
  elif not path.exists():
    beside = path.parent.iterdir() if path.parent.is_dir() else ()
    misses = errors.near_misses(path.name, [entry.name for entry in beside])
    problem = "does not exist"
    advice = f"{misses} Check the path".strip()
  elif steps := [entry.name for entry in checkpoints_in(path)]:
    problem = f"is a folder of checkpoints ({', '.join(steps)})"
    advice = f"Give one of them, for instance '{checkpoints_in(path)[-1]}'"
  elif path.is_file():
    problem = "is a file, not an Orbax checkpoint folder"
    advice = "Give the folder 'checkpoint_<step>'"
  else:
    problem = f"is no Orbax checkpoint, or lost its {_METADATA} file"
    advice = "Give a folder 'checkpoint_<step>' that T5X or 'tpv train' wrote"
  raise UserError(f"'{shown}' {problem}. {advice}.")


def _is_finished(folder: files.Path) -> bool:
  if files.is_remote(folder):
    return (folder / _COMMITTED).is_file()
  return _UNFINISHED not in str(folder)


def _nothing_under(shown: str, prefix: str, saved: Sequence[Keys]) -> str:
  names = sorted({"/".join(keys[:2]) for keys in saved})
  held = ", ".join(names[:8]) + (", …" if len(names) > 8 else "")
  wanted = "a soft-prompt run" if prefix == "target/prompt" else "T5X or 'tpv train'"
  return (
    f"The Orbax checkpoint '{shown}' holds nothing under '{prefix}'; it holds {held}. "
    f"Give a checkpoint of {wanted}."
  )


def _damaged(shown: str, error: Exception) -> str:
  text = " ".join(str(error).split("[tensorstore_spec")[0].split())
  text = text or type(error).__name__
  text = (text if len(text) <= 200 else text[:199] + "…").rstrip(".")
  return (
    f"The checkpoint '{shown}' is truncated or damaged ({text}). Take another "
    "step of the same run, or copy the folder again."
  )

"""Reads leaves of an Orbax checkpoint, whoever wrote it and on however many devices.

Orbax (and with it JAX) is imported inside the functions, for NumPy callers that mostly
need neither. Neither T5X nor TensorFlow is needed.
"""

import json
import re
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from tpv_jax import errors, files
from tpv_jax.errors import UserError

_METADATA = "_METADATA"
"""The file in which Orbax describes a PyTree; a folder without it is none."""

_UNFINISHED = ".orbax-checkpoint-tmp"
"""What a local folder is called until it is whole, and then renamed."""

_COMMITTED = "commit_success.txt"
"""What Orbax writes last into a folder of an object store, where nothing is renamed."""

Keys = tuple[str, ...]
"""Where a leaf lies in the saved tree, outermost first."""


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


def read_leaves(
  path: files.PathLike, prefix: str = "target/prompt"
) -> dict[str, np.ndarray]:
  """Returns the leaves under `prefix` as NumPy arrays, by their paths below it.

  `prefix="target"` reads a whole backbone. Only these leaves are read, with the dtype
  they were stored in, on this host, whatever devices they were written on.

  Args:
    path: `checkpoint_<step>`, or the `state` folder in it. Orbax reads gs://
      by itself, the values through tensorstore.
    prefix: path of a collection in the saved tree, parts joined by "/".

  Raises:
    UserError: there is no such folder; it is no Orbax checkpoint, an unfinished one, a
      folder of checkpoints, or damaged; nothing is saved under `prefix`.
  """
  folder = _checked_state_folder(files.absolute(path), str(path))
  names = prefix.strip("/")
  saved = _saved_paths(folder, str(path))
  wanted = [keys for keys in saved if "/".join(keys).startswith(names + "/")]
  if not wanted:
    raise UserError(_nothing_under(str(path), names, saved))
  try:
    # One alone first: where many fail together, tensorstore's threads print traces.
    _restore(folder, wanted[:1])
    restored = _restore(folder, wanted)
  except Exception as error:  # Orbax and tensorstore raise a dozen kinds on damage.
    raise UserError(_damaged(str(path), error)) from error
  return {
    "/".join(keys).removeprefix(names + "/"): np.asarray(_at(restored, keys))
    for keys in wanted
  }


def shapes(
  path: files.PathLike, prefix: str = "target/prompt"
) -> dict[str, tuple[int, ...]]:
  """Returns the shapes of the leaves under `prefix` by path below it; reads no values.

  See `read_leaves`, whose errors it raises.
  """
  import orbax.checkpoint as ocp

  folder = _checked_state_folder(files.absolute(path), str(path))
  names = prefix.strip("/")
  saved = _saved_paths(folder, str(path))
  wanted = [keys for keys in saved if "/".join(keys).startswith(names + "/")]
  if not wanted:
    raise UserError(_nothing_under(str(path), names, saved))
  try:
    with ocp.Checkpointer(ocp.PyTreeCheckpointHandler()) as checkpointer:
      tree = checkpointer.metadata(folder).item_metadata.tree
    return {
      "/".join(keys).removeprefix(names + "/"): tuple(_at(tree, keys).shape)
      for keys in wanted
    }
  except Exception as error:  # As in `read_leaves`.
    raise UserError(_damaged(str(path), error)) from error


def _restore(folder: files.Path, wanted: Sequence[Keys]) -> Any:
  import orbax.checkpoint as ocp

  with ocp.Checkpointer(ocp.PyTreeCheckpointHandler()) as checkpointer:
    return checkpointer.restore(
      folder,
      args=ocp.args.PyTreeRestore(
        item=_nest({keys: 0 for keys in wanted}),
        restore_args=_nest(
          {keys: ocp.RestoreArgs(restore_type=np.ndarray) for keys in wanted}
        ),
        partial_restore=True,
      ),
    )


def _saved_paths(folder: files.Path, shown: str) -> list[Keys]:
  """Returns the keys of every array that Orbax's own description of the tree lists.

  Read from the file rather than by `Checkpointer.metadata`, which opens every array of
  the checkpoint, a whole backbone, and needs each to be whole.
  """
  try:
    content = json.loads((folder / _METADATA).read_bytes())
    return [
      tuple(str(key["key"]) for key in entry["key_metadata"])
      for entry in content["tree_metadata"].values()
      if not entry["value_metadata"].get("skip_deserialize", False)  # None, {}, ...
    ]
  except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
    raise UserError(_damaged(shown, error)) from error


def _nest(leaves: Mapping[Keys, Any]) -> dict[str, Any]:
  tree: dict[str, Any] = {}
  for keys, leaf in leaves.items():
    node = tree
    for key in keys[:-1]:
      node = node.setdefault(key, {})
    node[keys[-1]] = leaf
  return tree


def _at(tree: Any, keys: Keys) -> Any:
  for key in keys:
    tree = tree[key]
  return tree


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
  elif (path / "checkpoint").is_file():
    problem = "is a checkpoint in T5X's layout from before Orbax (a 'checkpoint' file)"
    advice = "Restore it with T5X and save it once with use_orbax=True"
  elif path.is_file():
    problem = "is a file, not an Orbax checkpoint folder"
    advice = "Give the folder 'checkpoint_<step>'"
  else:
    problem = f"is no Orbax checkpoint, or lost its {_METADATA} file"
    advice = "Give a folder 'checkpoint_<step>' that T5X or tpv_jax.train wrote"
  raise UserError(f"'{shown}' {problem}. {advice}.")


def _is_finished(folder: files.Path) -> bool:
  if files.is_remote(folder):
    return (folder / _COMMITTED).is_file()
  return _UNFINISHED not in str(folder)


def _nothing_under(shown: str, prefix: str, saved: Sequence[Keys]) -> str:
  names = sorted({"/".join(keys[:2]) for keys in saved})
  held = ", ".join(names[:8]) + (", …" if len(names) > 8 else "")
  wanted = "a soft-prompt run" if prefix == "target/prompt" else "T5X or tpv_jax.train"
  return (
    f"The Orbax checkpoint '{shown}' holds nothing under '{prefix}'; it holds {held}. "
    f"Give a checkpoint of {wanted}."
  )


def _damaged(shown: str, error: Exception) -> str:
  text = " ".join(str(error).split("[tensorstore_spec")[0].split())
  text = text or type(error).__name__
  text = (text if len(text) <= 200 else text[:199] + "…").rstrip(".")
  return (
    f"The Orbax checkpoint '{shown}' is truncated or damaged ({text}). Take another "
    "step of the same run, or copy the folder again."
  )

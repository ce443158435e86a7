"""What a run's manifest states under "subject": all that its prompt needs to be used again.

    backbone         a name, a model of the hub with its revision, or a path
    family           of its network
    vocabulary_file  a path; null if the backbone brings its vocabulary
    chat             {"system": text or null} with a chat template, otherwise null
    dtype, quantize  of the network
    lengths          of sources and targets, in tokens
    recipe           see `data.recipes`; null if the task has none

A path is relative to the run's folder, so that both can be moved together. If nothing but
the root is common to both, only the last part is stated: a manifest has no folders of the
machine that wrote it, whose own cache notes the path. The subject is no setting: runs with
another one are continued.
"""

import contextlib
import dataclasses
import hashlib
import os
import pathlib
import shlex
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from tpv_jax.backbones import loading, quantization, registry
from tpv_jax.backbones.protocol import Network
from tpv_jax.core import files, identity
from tpv_jax.core.errors import UserError
from tpv_jax.data.recipes import Recipe
from tpv_jax.data.vocabularies import Vocabulary
from tpv_jax.formats import hub

if TYPE_CHECKING:
  from tpv_jax.model import SoftPromptModel

KEY = "subject"
"""Where a manifest states it."""


@dataclasses.dataclass(frozen=True)
class Subject:
  """What a prompt was trained on; paths lead from the present folder."""

  backbone: str
  family: str
  vocabulary_file: str | None
  chat: Mapping[str, str | None] | None
  dtype: str
  quantize: str | None
  lengths: Mapping[str, int]
  recipe: Recipe | None


def of_run(
  run: files.Path, model: "SoftPromptModel", backbone: loading.Backbone, data: Any
) -> dict[str, Any] | None:
  """Returns what the manifest of a run states, or None if it is not known.

  Args:
    run: its folder.
    model: has the network and the vocabulary.
    backbone: as loaded; one that was made in memory has no place.
    data: `training.task_data.TaskData`, or other data.
  """
  lengths = data.settings().get("lengths")
  if backbone.given is None or not isinstance(lengths, Mapping):
    return None
  vocabulary = model.input_vocabulary
  path = getattr(vocabulary, "path", None)
  if path is None or loading.brings(backbone.given, path):
    stated_path = None
  else:
    stated_path = _stated(path, run)
  recipe: Recipe | None = getattr(data, "recipe", None)
  return {
    "backbone": _stated(backbone.given, run),
    "vocabulary_file": stated_path,
    **of_model(model.network, vocabulary, backbone),
    "lengths": dict(lengths),
    "recipe": None if recipe is None else recipe.to_json(),
  }


def of_model(
  network: Network, vocabulary: Vocabulary, backbone: loading.Backbone
) -> dict[str, Any]:
  """Returns what a subject states of a model wherever it lies: family, chat, precision."""
  family = registry.of_leaves(identity.flatten(backbone.params), backbone.name)
  return {
    "family": registry.key_of(family),
    "chat": None if vocabulary.chat is None else {"system": vocabulary.chat.system},
    "dtype": str(network.dtype),
    "quantize": quantization.mode_of(network),
  }


def _stated(path: files.PathLike, run: files.Path) -> str:
  """Returns `portable`; what it leaves out is noted in this machine's cache."""
  stated = portable(path, run)
  if os.sep not in stated and not loading.is_name(stated):
    note = _note(run, stated)
    with contextlib.suppress(
      OSError
    ):  # A cache that cannot be written costs a question.
      note.parent.mkdir(parents=True, exist_ok=True)
      files.write_text(note, os.fspath(files.absolute(path)))
  return stated


def _note(run: files.Path, stated: str) -> pathlib.Path:
  """Returns the file of the cache that notes the path of a name that a run states."""
  place = run if files.is_remote(run) else os.path.realpath(run)
  key = hashlib.sha256(f"{place}\n{stated}".encode()).hexdigest()
  return files.cache_folder() / "places" / key


def portable(path: files.PathLike, run: files.PathLike) -> str:
  """Returns a path as it leads from a run's folder; see the module.

  A path into an object store is returned unchanged, and so is a name, but one of the hub
  with its commit, as is the path of a model in the hub's cache.
  """
  given = os.fspath(path)
  if files.is_remote(path) or loading.is_name(given):
    return loading.pinned(given)
  if stated := hub.of_path(path):
    return stated
  last = files.absolute(path)
  if files.is_remote(run):
    return last.name
  # Not the last part: a link to a model may be what the user keeps beside the run.
  place = os.path.join(os.path.realpath(last.parent), last.name)
  start = os.path.realpath(files.to_path(run))
  if os.path.commonpath([place, start]) == os.path.sep:
    return last.name
  return os.path.relpath(place, start)


def read(run: files.PathLike) -> Subject:
  """Returns the subject of the run in a folder, whose manifest need not be trusted.

  Raises:
    UserError: the run states none, or one that cannot be read.
  """
  folder = files.to_path(run)
  where = folder / "manifest.json"
  stated = files.read_json(where, most_bytes=1 << 26).get(KEY)
  if stated is None:
    raise UserError(
      f"The run '{run}' does not state what its prompt was trained on: it was written by "
      "an older tpv_jax or by T5X, or its backbone or data were made in memory. Give the "
      "backbone, the lengths and sources as they were written instead: tpv infer "
      f"--gin_file=FILE ... {shlex.quote(f'--gin.PROMPT_PATH={run}')} "
      "--gin.INPUT_FILE=sources.txt."
    )
  if not isinstance(stated, Mapping) or (fault := _fault(stated)):
    fault = fault if isinstance(stated, Mapping) else "it is no object"
    raise UserError(
      f"The subject in '{where}' cannot be read: {fault}. Take another copy of the run."
    )
  known = {field.name: stated[field.name] for field in dataclasses.fields(Subject)}
  if known["recipe"] is not None:
    known["recipe"] = Recipe.from_json(known["recipe"], str(where))
  if not loading.is_name(known["backbone"]):
    known["backbone"] = _from_here(folder, known["backbone"])
  file = known["vocabulary_file"]
  if file is not None and not loading.is_name(file):
    known["vocabulary_file"] = _from_here(folder, known["vocabulary_file"])
  return Subject(**known)


def _fault(stated: Mapping[str, Any]) -> str | None:
  """Returns what is wrong with a stated subject, or None."""
  for field in dataclasses.fields(Subject):
    if field.name not in stated:
      return f"it has no '{field.name}'"
  for name in ("backbone", "family", "dtype"):
    if not isinstance(stated[name], str) or not stated[name]:
      return f"its {name} is {stated[name]!r:.80}"
  for name in ("vocabulary_file", "quantize"):
    if not isinstance(stated[name], str | None):
      return f"its {name} is {stated[name]!r:.80}"
  lengths = stated["lengths"]
  if not isinstance(lengths, Mapping) or not all(
    isinstance(lengths.get(one), int) and lengths[one] > 0
    for one in ("inputs", "targets")
  ):
    return f"its lengths are {lengths!r:.80}"
  chat = stated["chat"]
  if chat is not None and not (
    isinstance(chat, Mapping)
    and {*chat} == {"system"}
    and isinstance(chat["system"], str | None)
  ):
    return f"its chat is {chat!r:.80}"
  return None


def _from_here(folder: files.Path, path: str) -> str:
  """Returns a stated path as it leads from the present folder."""
  if files.is_remote(path) or os.path.isabs(path):
    return path
  found = files.to_path(f"{os.fspath(folder)}/{path}")
  if os.sep not in path and not found.exists():
    with contextlib.suppress(OSError, ValueError):
      return _note(folder, path).read_text()
  return os.fspath(found)

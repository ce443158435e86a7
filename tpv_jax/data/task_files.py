"""Tasks that are described by TOML files, each with its local data files.

A task file can be read alone, so any number of them go together, in any order:

  name = "reviews"
  paths = "reviews.csv"
  template = "Review: {text} Sentiment:"
  target = "label"
  labels = { 0 = "negative", 1 = "positive" }
  splits = { validation = 0.1, test = 0.1 }
  lengths = { inputs = 128, targets = 4 }

The keys are the arguments of `text_files.text_file_task`, `file_format` as `format`,
`lengths`, and `licence`, that of the data, which is for people. Paths are relative to the
task file, or to DATA_DIR where that is set. A name such as
'gin_configs/studies/tasks/sst2.toml' that is not here is one of this package.
"""

import contextlib
import dataclasses
import datetime
import inspect
import os
import re
import shlex
import tomllib
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from tpv_jax.core.checks import Size, checked, misfit
from tpv_jax.core.errors import UserError, near_misses
from tpv_jax.core.files import Path, PathLike, gin_configs, is_remote, to_path
from tpv_jax.data import lines
from tpv_jax.data.tasks import SPLITS, Example, Task
from tpv_jax.data.text_files import text_file_task

LENGTHS = {"inputs": 256, "targets": 8}
"""Tokens, EOS included, where a task file gives none."""

_ARGUMENTS = {
  "format" if name == "file_format" else name: name
  for name in inspect.signature(text_file_task).parameters
}
"""Key of a task file -> argument of `text_file_task`."""

_KEYS_OF = {argument: key for key, argument in _ARGUMENTS.items()}

KEYS = (*_ARGUMENTS, "lengths", "licence")

_TABLES = ("paths", "labels", "splits", "lengths")
"""The keys whose values may be tables."""

_REQUIRED = ("paths", "template", "target")

MOST_CHARACTERS = 1 << 20


@checked
def task(
  files: PathLike | Sequence[PathLike],
  name: str | None = None,
  data_dir: PathLike | None = None,
) -> Task:
  """Returns the task of the files, or the one of that name.

  Args:
    files: TOML files (TASK_FILES).
    name: of the task (TASK_NAME); None for the only one.
    data_dir: where relative paths of data begin (DATA_DIR); None for the folder of the file
      that has them.

  Raises:
    UserError: a file is wrong, there is no such task, or there are several and no name.
  """
  found = _named(files, data_dir)
  if name is None:
    if len(found) > 1:
      raise UserError(
        f"TASK_FILES has {len(found)} tasks ({', '.join(found)}), and one is needed. Set "
        "TASK_NAME to one of them, or give one file."
      )
    return next(iter(found.values())).task
  return _chosen(found, name, "TASK_NAME").task


@checked
def tasks(
  files: PathLike | Sequence[PathLike],
  names: str | Sequence[str] | None = None,
  data_dir: PathLike | None = None,
) -> tuple[Task, ...]:
  """Returns the tasks of the files in their order, or those of `names` in theirs.

  Args:
    files: TOML files (TASK_FILES).
    names: of the tasks (TASK_NAMES); None for all.
    data_dir: see `task`.

  Raises:
    UserError: a file is wrong, or there is no such task.
  """
  return tuple(one.task for one in _several(files, names, data_dir))


@checked
def lengths(
  files: PathLike | Sequence[PathLike], names: str | Sequence[str] | None = None
) -> dict[str, int]:
  """Returns lengths in tokens for these tasks together: the largest of each feature.

  Args:
    files: TOML files (TASK_FILES).
    names: of the tasks (TASK_NAMES); None for all.

  Raises:
    UserError: a file is wrong, or there is no such task.
  """
  chosen = _several(files, names, None)
  return {key: max(one.lengths[key] for one in chosen) for key in LENGTHS}


@dataclasses.dataclass(frozen=True)
class TaskFile:
  """What a task file describes: a task, its splits, its lengths, its data's licence."""

  path: Path
  task: Task
  splits: tuple[str, ...]
  lengths: Mapping[str, int]
  licence: str | None = None


@checked
def read(path: PathLike, data_dir: PathLike | None = None) -> TaskFile:
  """Returns what a task file describes; the data are read when they are first used.

  Args:
    path: of the file.
    data_dir: see `task`.

  Raises:
    UserError: now, or when the data are used, with the name of the task file.
  """
  found = _here_or_shipped(path)
  folder = None if data_dir is None else to_path(data_dir)
  return described(_toml(found), found, folder)


def described(
  settings: Mapping[str, Any], path: PathLike, folder: Path | None = None
) -> TaskFile:
  """Returns what settings describe that stand in a task file at `path`, or will.

  Args:
    settings: by key of `KEYS`.
    path: names the task file in messages, and the task if the settings have no 'name'.
    folder: where relative paths begin; None for that of `path`.

  Raises:
    UserError: as `read`.
  """
  path = to_path(path)
  with _about(path):
    for key in settings:
      if key not in KEYS:
        raise UserError(
          f"there is no setting '{key}'.{near_misses(key, KEYS)} The settings are "
          f"{', '.join(KEYS)}."
        )
    _check_form(settings)
    name = settings.get("name", path.stem)
    if not isinstance(name, str) or not re.fullmatch(r"\w[\w.-]*", name):
      where = (
        "'name' is" if "name" in settings else "the file's name would give the task"
      )
      raise UserError(
        f"{where} {name!r}; results and folders are named after the task, so set 'name' to "
        "letters, digits, '_', '-' and '.'."
      )
    arguments = {
      argument: settings[key] for key, argument in _ARGUMENTS.items() if key in settings
    }
    begin = path.parent if folder is None else folder
    arguments |= {"name": name, "paths": _located(settings["paths"], begin)}
    made = text_file_task(**arguments)
    own = _lengths(settings.get("lengths", {}))
    licence = settings.get("licence")
    if licence is not None and not isinstance(licence, str):
      raise UserError(f"'licence' is {licence!r}; write it in quotes.")

  def load(split: str) -> Sequence[Example]:
    with _about(path):
      return made.load(split)

  named = dataclasses.replace(made, load=load, lengths=own)
  return TaskFile(path, named, _splits(settings), own, licence)


def _splits(settings: Mapping[str, Any]) -> tuple[str, ...]:
  """Returns the splits that a task has."""
  paths, rule = settings["paths"], settings.get("splits", ())
  has = {*(paths if isinstance(paths, Mapping) else ["train"])}
  has.update(SPLITS if rule == "paper" else rule)
  return tuple(split for split in SPLITS if split in has)


def _several(
  files: PathLike | Sequence[PathLike],
  names: str | Sequence[str] | None,
  data_dir: PathLike | None,
) -> list[TaskFile]:
  found = _named(files, data_dir)
  if names is None:
    return list(found.values())
  chosen = [names] if isinstance(names, str) else list(names)
  if not chosen:
    raise UserError("TASK_NAMES is empty. Name tasks, or leave it out for all.")
  return [_chosen(found, name, "TASK_NAMES") for name in chosen]


def _named(
  files: PathLike | Sequence[PathLike], data_dir: PathLike | None
) -> dict[str, TaskFile]:
  """Returns the files by the name of their task."""
  paths = [files] if isinstance(files, str | os.PathLike) else list(files)
  if not paths:
    raise UserError(
      "TASK_FILES is empty. Give TOML files: TASK_FILES = ['reviews.toml']."
    )
  found: dict[str, TaskFile] = {}
  for path in paths:
    one = read(path, data_dir)
    other = found.setdefault(one.task.name, one)
    if other is not one:
      raise UserError(
        f"'{other.path}' and '{one.path}' both describe a task '{one.task.name}'. Give one "
        "of them another 'name'."
      )
  return found


def _chosen(found: Mapping[str, TaskFile], name: str, setting: str) -> TaskFile:
  if name not in found:
    raise UserError(
      f"{setting} names '{name}', and TASK_FILES has no such task, only "
      f"{', '.join(found)}.{near_misses(name, found)}"
    )
  return found[name]


def _here_or_shipped(path: PathLike) -> PathLike:
  """Returns the path, or that of the package's file if there is none here."""
  relative = os.fspath(path).removeprefix("tpv_jax/")
  if relative.startswith("gin_configs/") and not to_path(path).exists():
    found = gin_configs() / relative.removeprefix("gin_configs/")
    if found.exists():
      return found
  return path


def _toml(path: PathLike) -> dict[str, Any]:
  """Returns the content of a TOML file."""
  suffix = to_path(path).suffix.lower()
  if suffix != ".toml":
    what = (
      "describes its task in gin's language, which is given by --gin_file"
      if suffix == ".gin"
      else "does not end with .toml. To describe a file of data: tpv tasks new "
      + shlex.quote(str(path))
    )
    raise UserError(f"TASK_FILES takes TOML files, and '{path}' {what}.")
  text = lines.read_text(path, "TASK_FILES")
  if len(text) > MOST_CHARACTERS:
    raise UserError(
      f"'{path}' has {len(text):,} characters, which is too long for a description of a "
      "task. Give its data in files of their own."
    )
  try:
    return tomllib.loads(text)
  except tomllib.TOMLDecodeError as error:
    what, _, place = str(error).partition(" (at ")
    line = re.match(r"line (\d+)", place)
    where = f"{path}:{line[1]}" if line else str(path)
    raise UserError(
      f"{where}: not TOML: {what[:1].lower()}{what[1:]}. Write strings in quotes, true and "
      'false in lower case, and tables as { 0 = "negative" }.'
    ) from None
  except RecursionError:
    raise UserError(f"{path}: brackets are nested too deeply.") from None
  except ValueError:  # Python's, for an integer of more than 4,300 digits.
    raise UserError(f"{path}: a number has thousands of digits.") from None


def _check_form(settings: Mapping[str, Any]) -> None:
  """Raises `UserError` for settings in the wrong place, for dates, and for what is missing."""
  for key, value in settings.items():
    if not isinstance(value, Mapping):
      _refuse_dates(key, value)
      continue
    if key not in _TABLES:
      raise UserError(f"'{key}' is a table of settings; it must be one value.")
    for name, item in value.items():
      if name in KEYS and name not in settings:
        raise UserError(
          f"'{name}' stands below [{key}] and so belongs to it. Write the settings of the "
          "task above the first line in brackets."
        )
      if isinstance(item, Mapping):
        whole = f"{name}.{next(iter(item), '')}"
        raise UserError(
          f"'{key}' has a table '{name}' inside. A name with a dot needs quotes: "
          f'"{whole}" = ...'
        )
      _refuse_dates(key, item)
  if missing := [key for key in _REQUIRED if key not in settings]:
    raise UserError(
      f"{' and '.join(map(repr, missing))} must be set. 'tpv tasks new DATA_FILE' writes a "
      "whole task file."
    )


def _refuse_dates(key: str, value: Any) -> None:
  for one in value if isinstance(value, list) else [value]:
    if isinstance(one, datetime.date | datetime.time):
      raise UserError(f"'{key}' has the date or time {one}. Put it in quotes.")


def _located(paths: Any, folder: Path) -> Any:
  """Returns the paths as seen from here: relative ones begin in the task file's folder."""
  if isinstance(paths, Mapping):
    return {split: _located(some, folder) for split, some in paths.items()}
  if isinstance(paths, list):
    return [_located(one, folder) for one in paths]
  if not isinstance(paths, str) or not paths:
    return paths  # Refused by `text_file_task`.
  if is_remote(paths) or paths.startswith("~"):
    return paths
  return os.fspath(folder / paths)


def _lengths(given: Any) -> dict[str, int]:
  """Returns the lengths of a task, with the usual one where a feature has none."""
  if not isinstance(given, Mapping):
    raise UserError(
      f"'lengths' is {given!r}; write {{ inputs = {LENGTHS['inputs']}, targets = "
      f"{LENGTHS['targets']} }}, in tokens, EOS included."
    )
  for key, value in given.items():
    if key not in LENGTHS:
      raise UserError(
        f"'lengths' has '{key}'; it has {' and '.join(LENGTHS)}."
        f"{near_misses(key, LENGTHS)}"
      )
    if wrong := misfit(value, Size, f"lengths.{key}"):
      raise UserError(str(wrong))
  return {**LENGTHS, **given}


@contextlib.contextmanager
def _about(path: PathLike) -> Iterator[None]:
  """Makes errors of the block name the task file, and its keys instead of gin's settings."""
  try:
    yield
  except UserError as error:
    text = re.sub(
      r"(?:text_file_task)?\.(" + "|".join(_ARGUMENTS.values()) + r")\b",
      lambda found: f"'{_KEYS_OF[found[1]]}'",
      str(error).replace("labels (LABELS)", "'labels'").replace("= True", "= true"),
    )
    raise UserError(f"{path}: {text}") from error.__cause__

"""Tasks by name, from a task file, or from files of data."""

import dataclasses
import os
from collections.abc import Mapping, Sequence
from typing import Annotated, Any

from tpv_jax.api import settings
from tpv_jax.core import files
from tpv_jax.core.checks import OneOf, checked
from tpv_jax.core.errors import UserError, near_misses
from tpv_jax.data import english, exported, registry, tables, task_files
from tpv_jax.data.tasks import Task
from tpv_jax.embedded import suite

_NAMES: Mapping[str, Sequence[str]] = {
  "embedded": suite.TASKS,
  "english": tuple(english.TASKS),
  "papers": tuple(registry.DEFINITIONS),
}


Collection = Annotated[str, OneOf(tuple(_NAMES))]


@checked
def task(
  source: files.PathLike | Sequence[files.PathLike] | Mapping[str, Any],
  of: Collection | None = None,
  data_dir: files.PathLike | None = None,
  **described: Any,
) -> Task:
  """Returns a task.

  Args:
    source: a task file ('reviews.toml'); files of data, with what describes them: one
      ('reviews.csv'), a list, or a file for each split; or the name of a task that comes
      with the package: of the embedded suite, 'sentiment' or 'topic' in English, or one of
      the papers' ('glue_sst2', after `tpv tasks prepare`).
    of: 'embedded', 'english' or 'papers', where a name is in several of them.
    data_dir: of the papers' tasks; see `tpv tasks prepare`.
    **described: of files of data, the settings of a task file: `template`, `target`,
      `labels`, `metric`, `splits`, `lengths`, `name`, ...

  Raises:
    UserError: there is no such task, or it is described wrongly.
  """
  if not isinstance(source, str | os.PathLike):
    return _of_files(source, described)
  path = files.to_path(source)
  suffix = path.suffix.lower()
  if suffix == ".toml":
    _refuse(described, f"the task file '{source}' says all of it")
    return task_files.read(source).task
  if suffix in tables.FORMATS or described or path.is_file():
    return _of_files(source, described)
  return _named(str(source), of, data_dir)


def _of_files(source: Any, described: Mapping[str, Any]) -> Task:
  found = source
  while not isinstance(found, str | os.PathLike):
    if not isinstance(found, Mapping | Sequence) or not found:
      raise UserError(
        f"A task's files are {source!r:.80}. Give the path of one or more."
      )
    found = next(iter(found.values() if isinstance(found, Mapping) else found))
  stated = {key: value for key, value in described.items() if value is not None}
  stated["paths"] = _plain(source)
  return task_files.described(stated, found, files.to_path(".")).task


def _plain(paths: Any) -> Any:
  if isinstance(paths, Mapping):
    return {split: _plain(some) for split, some in paths.items()}
  return os.fspath(paths) if isinstance(paths, os.PathLike) else paths


def _refuse(described: Mapping[str, Any], why: str) -> None:
  if described:
    raise UserError(f"'{next(iter(described))}' describes files of data, and {why}.")


def _named(name: str, of: str | None, data_dir: files.PathLike | None) -> Task:
  found = [one for one in _NAMES if name in _NAMES[one] and of in (None, one)]
  if len(found) > 1:
    raise UserError(
      f"There are several tasks '{name}': choose by "
      f"{' or '.join(f'of={one!r}' for one in found)}."
    )
  if not found:
    known = [one for where in ([of] if of else _NAMES) for one in _NAMES[where]]
    raise UserError(
      f"There is no task '{name}'{f' of {of}' if of else ''}, nor such a file."
      f"{near_misses(name, known)} Tasks of your own are files: tpv.task('reviews.toml')."
    )
  (where,) = found
  if data_dir is not None and where != "papers":
    raise UserError(f"The task '{name}' comes with the package: leave out data_dir.")
  if where == "papers":
    made, file = exported.task(name, data_dir), name
  else:
    made, file = (suite if where == "embedded" else english).task(name), where
  return dataclasses.replace(made, lengths=settings.shipped(f"tasks/{file}", "LENGTHS"))

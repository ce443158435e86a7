"""Answers of a prompt to new rows: what `tpv infer --prompt` does."""

import dataclasses
import os
from collections.abc import Iterable, Mapping
from typing import Any

from tpv_jax.api.backbones import Backbone
from tpv_jax.api.runs import Run, refuse_vector
from tpv_jax.api.tables import Table
from tpv_jax.core import files
from tpv_jax.core.errors import UserError
from tpv_jax.data import tables
from tpv_jax.data.recipes import Recipe
from tpv_jax.data.tasks import Task
from tpv_jax.evaluation import predicting, prediction_files
from tpv_jax.evaluation.predicting import Asked
from tpv_jax.formats import sources
from tpv_jax.runs import subject
from tpv_jax.runs.subject import Subject
from tpv_jax.vectors.loaded import Loaded


def predict(
  backbone: Backbone | None,
  prompt: Run | Loaded | files.PathLike,
  rows: Any,
  *,
  task: Task | None = None,
  batch_size: int = 64,
  progress: bool = False,
) -> Table:
  """Returns the rows with the answers of a prompt: `answer`, `score` and each label's share.

  Args:
    backbone: of `load_backbone`; None reads the one that the run states.
    prompt: a run or its folder, for its best prompt, or the last if it keeps no best; a
      prompt's file, or a prompt in memory.
    rows: dictionaries by column, a data frame, or texts, where the task has one column; or
      the path of a CSV, TSV or JSON-lines file.
    task: says how sources are written; None for the task of the run. A prompt in memory,
      such as a sum of vectors on an initial prompt, needs it.
    batch_size: rows per call.
    progress: show progress bars.

  Raises:
    UserError: a column is missing, or what is given does not belong together.
  """
  refuse_vector(prompt)
  asked = _asked(prompt)
  if task is not None:
    asked = dataclasses.replace(asked, subject=_subject(backbone, asked, task))
  elif isinstance(prompt, Loaded):
    raise UserError(
      f"'{prompt.name}' is a prompt in memory, and a task says how sources are written: "
      "give task=..."
    )
  recipe = asked.subject_of().recipe
  found = predicting.predict(
    _rows(rows, recipe),
    asked,
    backbone=None if backbone is None else backbone.loaded,
    batch_size=batch_size,
    progress=progress,
  )
  return Table(found)


def _asked(prompt: Run | Loaded | files.PathLike) -> Asked:
  """Returns the prompt; of a run the best one, or the last one if it keeps no best."""
  if isinstance(prompt, Loaded):
    return Asked(prompt)
  path = os.fspath(prompt.path if isinstance(prompt, Run) else prompt)
  last = sources.is_run_folder(path) and not Run(path).keeps_best
  return Asked(path, which="last" if last else "best")


def _subject(backbone: Backbone | None, asked: Asked, task: Task) -> Subject:
  """Returns what a run on this backbone and task would state."""
  if task.recipe is None:
    raise UserError(
      f"The task '{task.name}' does not state how its sources are written, because it is "
      "made by code."
    )
  if backbone is None:
    known = asked.subject_of()
    lengths = known.lengths if task.lengths is None else task.lengths
    return dataclasses.replace(known, recipe=task.recipe, lengths=lengths)
  if task.lengths is None:
    raise UserError(
      f"The task '{task.name}' states no lengths: dataclasses.replace(task, lengths="
      "{'inputs': 128, 'targets': 4})."
    )
  return Subject(
    backbone=backbone.given,
    vocabulary_file=backbone.settings.get("VOCABULARY_FILE"),
    lengths=task.lengths,
    recipe=task.recipe,
    **subject.of_model(backbone.network, backbone.vocabulary, backbone.loaded),
  )


def _rows(rows: Any, recipe: Recipe | None) -> list[Mapping[str, Any]]:
  """Returns rows by column.

  Raises:
    UserError: they are texts, and the task has several columns, or anything else.
  """
  if hasattr(rows, "to_dict"):  # A data frame of pandas.
    return [
      {str(name): value for name, value in row.items()}
      for row in rows.to_dict(orient="records")
    ]
  columns = [] if recipe is None else list(recipe.columns)
  if isinstance(rows, os.PathLike) or (
    isinstance(rows, str) and files.to_path(rows).suffix.lower() in tables.FORMATS
  ):
    return list(prediction_files.read_table(os.fspath(rows), needed=columns).rows)
  one = isinstance(rows, str | Mapping)
  given = list([rows] if one or not isinstance(rows, Iterable) else rows)
  found: list[Mapping[str, Any]] = []
  for number, row in enumerate(given, 1):
    if isinstance(row, Mapping):
      found.append(row)
    elif not isinstance(row, str):
      raise UserError(
        f"Row {number} is {row!r:.80}. Give dictionaries by column, texts, or a data frame."
      )
    elif len(columns) == 1:
      found.append({columns[0]: row})
    else:
      raise UserError(
        f"Row {number} is a text, and the sources of this task are written from "
        f"{len(columns)} columns ({', '.join(columns)}). Give dictionaries by column."
      )
  return found

"""Evaluation of prompts: what `tpv eval` does."""

import dataclasses
import os
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from tpv_jax.api import settings as of_gin
from tpv_jax.api.backbones import Backbone
from tpv_jax.api.runs import Run, refuse_vector
from tpv_jax.api.tables import Table
from tpv_jax.api.training import lengths_of, of_subjects
from tpv_jax.core import files
from tpv_jax.core.errors import UserError
from tpv_jax.data.tasks import Task
from tpv_jax.evaluation import candidates
from tpv_jax.evaluation.report import means_of
from tpv_jax.formats import sources
from tpv_jax.vectors.loaded import Loaded

Prompt = Run | Loaded | files.PathLike | None
"""A run (its best prompt, or the last if it keeps no best), a prompt in memory, the path of
either; None for the backbone alone."""


@of_subjects
def evaluate(
  backbone: Backbone,
  tasks: Task | Sequence[Task],
  prompts: Prompt | Sequence[Prompt] | Mapping[str, Prompt] = None,
  *,
  splits: str | Sequence[str] | None = None,
  gin_file: files.PathLike | Sequence[files.PathLike] = (),
  progress: bool = False,
  **settings: Any,
) -> Table:
  """Returns the scores of prompts on tasks, a row for each prompt, task and split.

  Args:
    backbone: of `load_backbone`.
    tasks: of `task`; one, or a list.
    prompts: one, a list, or a mapping from names for the table; None is the backbone
      alone. Instead of prompts, `vector` with `initial` as in gin_configs/runs/eval.gin, with
      `search=True` for the best coefficient.
    splits: of each task; by default the test split.
    gin_file: files of the package or of yours.
    progress: show a progress bar.
    **settings: macros of the gin files in lower case: `batch_size`, `output`, `num_beams`, ...

  Raises:
    UserError: a setting is not known, or what is given does not belong together.
  """
  from tpv_jax.evaluation import evaluation

  several = [tasks] if isinstance(tasks, Task) else list(tasks)
  own = {**backbone.macros, "TASKS": several}
  given = dict(settings)
  for name in {"vector", "initial"} & given.keys():
    given[name] = _source_of(given[name])
  if prompts is not None or "vector" not in given:
    own["PROMPT_PATH"] = _named(prompts)
  if splits is not None:
    given["eval_splits"] = (
      [splits] if isinstance(splits, str) else of_gin.as_list(splits)
    )
  arguments = {"backbone": backbone.loaded, "progress": progress, "printed": False}
  report, _ = of_gin.call(
    evaluation.evaluate, given, own, arguments, gin_file, lengths_of(several)
  )
  first, without = report["candidates"][0]["name"], candidates.NO_PROMPT
  if isinstance(prompts, Mapping):
    without = next((str(name) for name, one in prompts.items() if one is None), without)
  rows = []
  for row in map(dict, report["results"]):
    name = row.pop("candidate", first)
    rows.append({"prompt": without if name == candidates.NO_PROMPT else name, **row})
  means = [{"prompt": row.pop("candidate"), **row} for row in means_of(report)]
  return Table(rows, report, percent=True, means=means)


def _named(prompts: Any) -> list[Loaded | str | None]:
  """Returns prompts with different names, which the table shows."""
  if isinstance(prompts, Mapping):
    found = [_loaded(one, str(name)) for name, one in prompts.items()]
  else:
    one = not isinstance(prompts, Iterable) or isinstance(prompts, str | os.PathLike)
    found = [_loaded(item) for item in ([prompts] if one else prompts)]
  seen: dict[str, int] = {}
  named: list[Loaded | str | None] = []
  for item in found:
    if isinstance(item, Loaded):
      refuse_vector(item)
      count = seen[item.name] = seen.get(item.name, 0) + 1
      if count > 1:
        item = dataclasses.replace(item, name=f"{item.name} ({count})")
    named.append(item)
  return named


def _loaded(prompt: Any, name: str | None = None) -> Loaded | str | None:
  """Returns a prompt as `evaluation.candidates` takes it, under a name if one is given."""
  if prompt is None:
    return None
  if not isinstance(prompt, Run | Loaded | str | os.PathLike):
    raise UserError(
      f"A prompt is {prompt!r:.80}. Give a run, a prompt of tpv.load(...), or the path of one."
    )
  if isinstance(prompt, str | os.PathLike) and sources.is_run_folder(prompt):
    prompt = Run(prompt)
  if isinstance(prompt, Run):
    prompt = os.fspath(prompt.path) if prompt.keeps_best else prompt.prompt
  if not isinstance(prompt, Loaded):
    path = os.fspath(prompt)
    if name is None:
      return path
    prompt = sources.load(path)
  return prompt if name is None else dataclasses.replace(prompt, name=name)


def _source_of(given: Any) -> Any:
  """Returns a vector or an initial prompt as `evaluation.candidates` takes it."""
  if isinstance(given, Run):
    return given.initial
  if isinstance(given, list | tuple):
    return [_source_of(one) for one in given]
  return given

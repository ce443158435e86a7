"""Finished studies of the same tasks, compared row by row.

Ours: two ways of tuning, two settings or two backbones, studied apart, answered the same
test rows, so that their difference has an interval (`bootstrap.paired`) which is narrower
than those of their scores.
"""

import dataclasses
import itertools
import pathlib
import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from tpv_jax.core import files
from tpv_jax.core.errors import UserError
from tpv_jax.core.figures import Sheet
from tpv_jax.runs.run_folder import MOST_BYTES
from tpv_jax.studies import hits, measured
from tpv_jax.studies.report import charts
from tpv_jax.studies.report.charts import Score
from tpv_jax.studies.report.tables import METRICS, Rows, interval, mean_and_deviation

KINDS = {
  "own": "own prompt",
  "other_initial": "other initial",
  "control": "control",
  "untuned": "untuned",
  "sum": "sum",
}
"""What is compared, with its name in the tables."""


@dataclasses.dataclass(frozen=True)
class Finished:
  """A finished study.

  Attributes:
    path: of its folder.
    results: its results.json.
    subject: what its measurements depend on, by `Measurements.subject`.
    found: the hits of single prompts and sums, by `hits.to_json`.
  """

  path: str
  results: Mapping[str, Any]
  subject: Mapping[str, Any]
  found: Mapping[str, Mapping[str, str]]

  @property
  def tasks(self) -> list[str]:
    """The names of its tasks, in their order."""
    return list(self.subject["tasks"])

  @property
  def seeds(self) -> list[int]:
    """Its initial prompts, in their order."""
    return [int(seed) for seed in self.subject["initial_prompts"]]

  def describe(self) -> dict[str, Any]:
    """Returns what a reader must know of it beside the scores."""
    return {
      "path": self.path,
      "backbone": self.results["backbone"],
      "parameters": self.results.get("parameters"),
      "tasks": self.tasks,
      "initial_seeds": self.seeds,
      "coefficients": self.subject["coefficients"],
    }


def read(path: files.PathLike) -> Finished:
  """Returns the finished study of a folder, which need not be trusted.

  Raises:
    UserError: it holds no study, an unfinished one, or a damaged file.
  """
  folder = pathlib.Path(files.to_path(path))
  both = folder / measured.NAME, folder / "results.json"
  missing = [file.name for file in both if not file.exists()]
  if missing:
    raise UserError(
      f"'{path}' has no {missing[0]}, so it is not the folder of a finished 'tpv study'. "
      "Give the study's OUTPUT_DIR; a study that was stopped goes on with its command."
    )
  content, results = (files.read_json(file, MOST_BYTES) for file in both)
  try:
    found = {**content["single"]["hits"], **content["sums"]}
    study = Finished(str(path), results, content["subject"], found)
    study.describe()
    lengths = {task: len(_bits(found, task, study.seeds[0])) for task in study.tasks}
    for key, by_metric in found.items():
      task = key.split("/")[3 if key.startswith(("sum/", "negated/")) else 1]
      if any(len(_checked(by_metric[one])) != lengths[task] for one in METRICS):
        raise ValueError(f"'{key}' has other rows than '{task}'")
  except (KeyError, IndexError, TypeError, ValueError, AttributeError) as error:
    raise UserError(
      f"'{folder / measured.NAME}' is not of 'tpv study', or damaged ({error}). Run the "
      "study again; prompts that are finished are not tuned again."
    ) from error
  return study


def _bits(found: Mapping[str, Mapping[str, str]], task: str, seed: int) -> str:
  return found[hits.name_of(("own", task, seed, None))]["exact_match"]


def _checked(bits: str) -> str:
  if not re.fullmatch("[01]+", bits):
    raise ValueError(f"'{bits[:20]}' is no row of hits")
  return bits


def compare(paths: Sequence[files.PathLike], names: Sequence[str]) -> dict[str, Any]:
  """Returns the scores of studies side by side, and their differences from the first.

  Compared are the tasks and the initial prompts (by their seeds) that all of them have.

  Args:
    paths: the studies' folders, that to compare with first.
    names: of the studies, in the same order; they differ.

  Returns:
    'studies': name -> `Finished.describe`; 'tasks', 'initial_seeds', 'test_examples': what
    is compared; and for each metric of `METRICS` a list of lines with 'kind' (of
    `KINDS`), 'of' (a task, a sum 'a + b', or 'all'), 'scores' (name -> one for each
    initial prompt) and 'minus_first' (name -> mean, low, high). Lines of 'all' average over
    tasks, or over pairs and their tasks.

  Raises:
    UserError: fewer than two studies; no task or initial prompt in common; other rows.
  """
  if len(paths) < 2:
    raise UserError("A comparison needs at least two studies; one was given.")
  if len({files.to_path(path).resolve() for path in paths}) < len(paths):
    raise UserError("A study was given twice; it would be compared with itself.")
  studies = [read(path) for path in paths]
  first = studies[0]
  tasks = _common("task", [one.tasks for one in studies], studies)
  seeds = _common("initial prompt", [one.seeds for one in studies], studies)
  for other in studies[1:]:
    _check_rows(first, other, tasks)
  shared: dict[str, Any] = {
    "studies": {n: one.describe() for n, one in zip(names, studies, strict=True)},
    "tasks": tasks,
    "initial_seeds": seeds,
    "test_examples": {task: len(_bits(first.found, task, seeds[0])) for task in tasks},
  }
  answers = [hits.Answers(one.found, tasks, seeds) for one in studies]
  for metric in METRICS:
    shared[metric] = [
      {"kind": kind, "of": of, **_line(names, rows)}
      for kind, of, rows in _lines(studies, answers, tasks, metric)
    ]
  return shared


Rowed = list[list[hits.Rows]]
"""For each study the hits of the tasks that a line averages over."""


def _lines(
  studies: Sequence[Finished],
  answers: Sequence[hits.Answers],
  tasks: Sequence[str],
  metric: str,
) -> Iterator[tuple[str, str, Rowed]]:
  """Yields kind, what it is of, and the rows."""
  single = [one.single(metric) for one in answers]
  for kind in single[0][tasks[0]]:
    if len(tasks) > 1:
      yield kind, "all", [[one[task][kind] for task in tasks] for one in single]
    for task in tasks:
      yield kind, task, [[one[task][kind]] for one in single]
  pairs = {
    names: [
      list(one.sums(_ordered(study, names), metric).values())
      for study, one in zip(studies, answers, strict=True)
    ]
    for names in itertools.combinations(tasks, 2)
  }
  if len(pairs) > 1:
    columns = zip(*pairs.values(), strict=True)
    yield "sum", "all pairs", [list(itertools.chain(*column)) for column in columns]
  for names, rows in pairs.items():
    yield "sum", " + ".join(names), rows
  if len(tasks) > 2 and all(set(one.tasks) == set(tasks) for one in studies):
    every = [
      [one.sums(study.tasks, metric)[task] for task in tasks]
      for study, one in zip(studies, answers, strict=True)
    ]
    yield "sum", f"all {len(tasks)}", every


def _ordered(study: Finished, names: Sequence[str]) -> list[str]:
  """Returns the tasks of a sum in the order by which the study names it."""
  return sorted(names, key=study.tasks.index)


def _line(names: Sequence[str], rows: Rowed) -> dict[str, Any]:
  first, *others = rows
  return {
    "scores": {
      name: np.mean([hits.scores(task) for task in some], axis=0).tolist()
      for name, some in zip(names, rows, strict=True)
    },
    "minus_first": {
      name: hits.interval([a - b for a, b in zip(some, first, strict=True)])
      for name, some in zip(names[1:], others, strict=True)
    },
  }


def _common(
  what: str, lists: Sequence[Sequence[Any]], studies: Sequence[Finished]
) -> list[Any]:
  """Returns what is in all lists, in the order of the first."""
  found = [one for one in lists[0] if all(one in other for other in lists[1:])]
  if not found:
    had = "; ".join(
      f"'{study.path}' has {', '.join(map(str, some))}"
      for study, some in zip(studies, lists, strict=True)
    )
    raise UserError(f"The studies have no {what} in common: {had}.")
  return found


def _check_rows(first: Finished, other: Finished, tasks: Sequence[str]) -> None:
  """Raises `UserError` for a task whose labels or test rows differ."""
  for task in tasks:
    one, another = first.subject["tasks"][task], other.subject["tasks"][task]
    for what, place in (("labels", 0), ("test rows", -1)):  # `measured.describe`
      if one[place] != another[place]:
        raise UserError(
          f"'{first.path}' and '{other.path}' have other {what} of '{task}', so their "
          "answers can't be compared row by row. Run both with the same task file and the "
          "same number of test rows."
        )


def heading(results: Mapping[str, Any]) -> list[str]:
  """Returns the lines that say what is compared, and what is left out."""
  tasks, seeds = results["tasks"], results["initial_seeds"]
  lines = [
    f"{len(tasks)} tasks x {len(seeds)} initial prompts (seeds "
    f"{', '.join(map(str, seeds))}); test rows: "
    + ", ".join(f"{name} {count}" for name, count in results["test_examples"].items())
  ]
  for name, one in results["studies"].items():
    size = one["parameters"]
    known = "" if size is None else f", {size:,} parameters a prompt"
    left_out = [
      *(task for task in one["tasks"] if task not in tasks),
      *(f"initial prompt {seed}" for seed in one["initial_seeds"] if seed not in seeds),
    ]
    rest = f"; left out: {', '.join(left_out)}" if left_out else ""
    lines.append(f"{name}: {one['backbone']['name']}{known}{rest}")
  return lines


def table(results: Mapping[str, Any], metric: str) -> tuple[list[str], Rows]:
  """Returns a header and a row for each line of one metric."""
  names = list(results["studies"])
  header = ["", "task", *names, *(f"{name} - {names[0]}" for name in names[1:])]
  rows = [
    [
      KINDS[line["kind"]],
      line["of"],
      *(mean_and_deviation(line["scores"][name]) for name in names),
      *(interval(line["minus_first"][name]) for name in names[1:]),
    ]
    for line in results[metric]
  ]
  return header, rows


def draw(results: Mapping[str, Any]) -> Sheet:
  """Returns bars of own prompts, on their own and on another initial prompt."""
  tasks = results["tasks"]
  scores: dict[str, list[Score]] = {}
  for kind, name in itertools.product(("own", "other_initial"), results["studies"]):
    for line in results["exact_match"]:
      if line["kind"] == kind and line["of"] in tasks:
        series = scores.setdefault(f"{name}, {KINDS[kind]}", [])
        series.append(Score.of(line["scores"][name]))
  return charts.bars(tasks, scores, len(results["initial_seeds"]))

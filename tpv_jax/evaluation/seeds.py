"""Runs that differ in their seeds only: the mean and deviation of their scores."""

import itertools
import statistics
from collections.abc import Sequence
from typing import Any

from tpv_jax.core import screen, tables
from tpv_jax.evaluation.candidates import Candidate
from tpv_jax.evaluation.evaluator import Result


def of_seeds(cells: Sequence[tuple[Candidate, Result]]) -> list[dict[str, Any]]:
  """Returns the scores of each group on each task and split, as a report states them.

  A group has the prompts of at least two runs whose settings differ in seeds only.

  Args:
    cells: a candidate and its result on one task and split, for all of them.

  Returns:
    A mapping for each group, task and split: `group` (a name), `candidates` (their names),
    `task`, `split`, and for each score its `mean` and sample `deviation`.
  """
  found: dict[Any, list[tuple[Candidate, Result]]] = {}
  for candidate, result in cells:
    if candidate.run is not None:
      key = (candidate.run, result.task, result.split)
      found.setdefault(key, []).append((candidate, result))
  return [
    {
      "group": _name([candidate.name for candidate, _ in group]),
      "candidates": [candidate.name for candidate, _ in group],
      "task": result.task,
      "split": result.split,
      "scores": {
        name: _spread([other.scores[name] for _, other in group])
        for name in result.scores
      },
    }
    for group in found.values()
    if len(group) > 1
    for _, result in group[:1]
  ]


def _name(names: Sequence[str]) -> str:
  """Returns what the names have in common: 'runs/sst2-*'."""
  start = _common(names)
  end = _common([name[len(start) :][::-1] for name in names])[::-1]
  return f"{start}*{end}"


def _common(names: Sequence[str]) -> str:
  """Returns the longest text with which all names begin."""
  alike = itertools.takewhile(
    lambda found: len({*found}) == 1, zip(*names, strict=False)
  )
  return "".join(found[0] for found in alike)


def _spread(scores: Sequence[float]) -> dict[str, float]:
  return {"mean": statistics.mean(scores), "deviation": statistics.stdev(scores)}


def show(groups: Sequence[dict[str, Any]]) -> None:
  """Prints the mean and deviation of each group in percent."""
  names = list(dict.fromkeys(name for group in groups for name in group["scores"]))
  rows = []
  for group in groups:
    scores = [
      tables.spread(**group["scores"][name]) if name in group["scores"] else ""
      for name in names
    ]
    many = str(len(group["candidates"]))
    rows.append([group["group"], many, group["task"], group["split"], *scores])
  print("Mean ± sample standard deviation of runs that differ in their seeds only:")
  screen.print_table(["runs", "", "task", "split", *names], rows)

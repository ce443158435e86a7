"""The numbers of a comparison of merge rules: scores and retention by set, and their means."""

import itertools
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from jaxtyping import Float

from tpv_jax.studies import base, hits
from tpv_jax.studies.report.merging import WORK

SUM = "task_arithmetic"
"""The rule that all are compared with."""

Rows = Mapping[tuple[tuple[str, ...], str, str], Float[np.ndarray, "S R"]]
"""(set, method, task) -> the hits of each start on each test row."""


Found = Mapping[tuple[str, ...], Sequence[Mapping[str, Any]]]
"""Set -> for each start what `joined` returns."""


def joined(parts: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
  """Returns measurements of some methods and of others as one: 'chosen', 'hits', ..."""
  return {
    name: {key: value for one in parts for key, value in one[name].items()}
    for name in ("chosen", "hits", "left_out", "work")
  }


def rows_of(
  found: Found,
  own: Mapping[str, Mapping[str, str]],
  seeds: Sequence[int],
) -> Rows:
  """Returns the exact matches of all methods and of own prompts; a method that was left out
  on one initial prompt of a set is left out on all."""
  rows: dict[tuple[tuple[str, ...], str, str], Float[np.ndarray, "S R"]] = {}
  for task in dict.fromkeys(itertools.chain(*found)):
    some = [hits.rows(own[hits.name_of((task, seed))]["exact_match"]) for seed in seeds]
    rows[(task,), "own", task] = np.stack(some)
  for names, by_seed in found.items():
    methods = [
      method
      for method in by_seed[0]["chosen"]
      if all(method in one["chosen"] for one in by_seed)
    ]
    for method, task in itertools.product(methods, names):
      some = [
        hits.rows(one["hits"][hits.name_of((method, task))]["exact_match"])
        for one in by_seed
      ]
      rows[names, method, task] = np.stack(some)
  return rows


def of_set(
  names: tuple[str, ...], found: Sequence[Mapping[str, Any]], rows: Rows
) -> dict[str, Any]:
  """Returns the scores of a set by method and task, and its retention, by start; and
  the mean of what the methods compute."""
  methods = {}
  for method in dict.fromkeys(m for some, m, _ in rows if some == names):
    scores = {task: hits.scores(rows[names, method, task]) for task in names}
    methods[method] = {
      "chosen": [one["chosen"][method] for one in found],
      "work": {
        name: float(np.mean([one["work"][method][name] for one in found]))
        for name in WORK
      },
      "scores": scores,
      "retention": {
        task: [
          score / own if own else None
          for score, own in zip(
            scores[task], hits.scores(rows[(task,), "own", task]), strict=True
          )
        ]
        for task in names
      },
    }
  left_out = {rule: why for one in found for rule, why in one["left_out"].items()}
  return {"tasks": list(names), "methods": methods, "left_out": left_out}


def summarise(sets: Sequence[Mapping[str, Any]], rows: Rows) -> dict[str, Any]:
  """Returns what the report opens with: {number of tasks: {method: means}}.

  `score`: the mean exact match on test. `retention`: of score / own score; `worst`: of the
  lowest one in a set. `kept`: the part of the sets and starts where every task keeps at
  least `base.KEPT`. All are means over sets and starts; tasks that their own prompt does not
  solve at all have no retention. `minus_sum`: the mean difference to the plain sum and its
  interval (`bootstrap.paired`); each task's rows are averaged over the sets first.
  `tasks`: the mean retention of each task. `evaluations` and `gradient_rows`: what choosing
  and merging computes for one set and start, on average.
  """
  summary: dict[str, Any] = {}
  for size in dict.fromkeys(len(one["tasks"]) for one in sets):
    some = [one for one in sets if len(one["tasks"]) == size]
    methods = dict.fromkeys(m for one in some for m in one["methods"])
    summary[str(size)] = {
      method: _means(method, [one for one in some if method in one["methods"]], rows)
      for method in methods
    }
  return summary


def _means(
  method: str, sets: Sequence[Mapping[str, Any]], rows: Rows
) -> dict[str, Any]:
  scores: list[float] = []
  kept: list[float] = []
  worst: list[float] = []
  by_task: dict[str, list[float]] = {}
  differences: dict[str, list[Float[np.ndarray, "S R"]]] = {}
  for one in sets:
    names, found = tuple(one["tasks"]), one["methods"][method]
    scores += [score for some in found["scores"].values() for score in some]
    for starts in zip(*found["retention"].values(), strict=True):
      known = [value for value in starts if value is not None]
      if known:
        worst.append(min(known))
        kept.append(min(known) >= base.KEPT)
    for task in names:
      known = [value for value in found["retention"][task] if value is not None]
      by_task.setdefault(task, []).extend(known)
      if (names, SUM, task) in rows:
        difference = rows[names, method, task] - rows[names, SUM, task]
        differences.setdefault(task, []).append(difference)
  work = [one["methods"][method]["work"] for one in sets]
  retention = [value for some in by_task.values() for value in some]
  by_sets = [np.mean(some, axis=0) for some in differences.values()]
  return {
    "sets": len(sets),
    "score": float(np.mean(scores)),
    "retention": _mean(retention),
    "worst": _mean(worst),
    "kept": _mean(kept),
    "minus_sum": hits.interval(by_sets),
    "tasks": {task: _mean(some) for task, some in by_task.items()},
    **{name: float(np.mean([one[name] for one in work])) for name in WORK},
  }


def _mean(values: Sequence[float]) -> float | None:
  return float(np.mean(values)) if values else None

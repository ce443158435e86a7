"""Which test rows each prompt of a study of vectors answers right, and what follows.

Rows are kept, so that scores that are compared are compared row by row
(`bootstrap.paired`): prompts of one task answer the same rows.
"""

import itertools
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
from jaxtyping import Float

from tpv_jax.studies import bootstrap
from tpv_jax.studies.base import METRICS, Hits

Rows = Float[np.ndarray, "S R"]
"""The mean hits of each start on each row."""

SINGLE = ("own", "untuned", "other_initial", "control")
"""What is measured of single prompts: the tuned one, the initial one, the vector on
another initial prompt, the prompts of other tasks."""

_DIFFERENCES = (
  ("own", "untuned"),
  ("own", "control"),
  ("other_initial", "own"),
  ("other_initial", "control"),
)


def to_json(hits: Mapping[tuple[Any, ...], Hits]) -> dict[str, dict[str, str]]:
  """Returns hits by key and metric, each as a text of 0 and 1."""
  return {
    name_of(key): {
      metric: (found[metric].astype(np.uint8) + ord("0")).tobytes().decode("ascii")
      for metric in METRICS
    }
    for key, found in hits.items()
  }


class Answers:
  """The hits of all prompts of a study on the test rows of a grid of tasks and starts.

  Keys are (kind of `SINGLE`, task, seed, other): the other initial prompt or task, None for
  the first two; ('sum', tasks, seed, task), and ('negated', tasks, seed, task, negated).
  """

  def __init__(
    self,
    found: Mapping[str, Mapping[str, str]],
    tasks: Sequence[str],
    seeds: Sequence[int],
  ):
    """Takes `to_json`'s result."""
    self._found = found
    self._tasks = tasks
    self._seeds = seeds

  def single(self, metric: str) -> dict[str, dict[str, Rows]]:
    """Returns the hits by task and kind of `SINGLE`, averaged over the others.

    Of a single start there is no 'other_initial', of a single task no 'control'.
    """

    def others(kind: str, task: str, seed: int) -> list[Any]:
      all_others = {"other_initial": self._seeds, "control": self._tasks}
      own = {"other_initial": seed, "control": task}
      return [one for one in all_others.get(kind, [None]) if one != own.get(kind, 0)]

    return {
      task: {
        kind: self._starts(
          metric,
          (
            [(kind, task, seed, one) for one in others(kind, task, seed)]
            for seed in self._seeds
          ),
        )
        for kind in SINGLE
        if others(kind, task, self._seeds[0])
      }
      for task in self._tasks
    }

  def sums(self, names: Sequence[str], metric: str) -> dict[str, Rows]:
    """Returns the hits by task of the sum of these tasks' vectors."""
    return {
      task: self._starts(metric, ([("sum", names, seed, task)] for seed in self._seeds))
      for task in names
    }

  def negated(
    self, task: str, pairs: Sequence[Sequence[str]], metric: str
  ) -> dict[str, Any]:
    """Returns a task's scores in its sums with partners, and those with it negated.

    They are lists over the starts, 'before' and 'after', and the partners' own scores,
    'partner_before' and 'partner_after'; means over the partners.
    """
    found: dict[str, Any] = {}
    for prefix, when in itertools.product(("", "partner_"), ("before", "after")):
      values = []
      for names in pairs:
        (partner,) = (one for one in names if one != task)
        scored = partner if prefix else task
        kind, more = ("sum", ()) if when == "before" else ("negated", (task,))
        keys = ([(kind, names, seed, scored, *more)] for seed in self._seeds)
        values.append(self._starts(metric, keys).mean(axis=1))
      found[prefix + when] = np.mean(values, axis=0).tolist()
    return found

  def _starts(self, metric: str, keys: Iterable[Sequence[tuple[Any, ...]]]) -> Rows:
    """Returns the mean over keys of each start's hits."""
    return np.stack(
      [
        np.mean([rows(self._found[name_of(key)][metric]) for key in some], axis=0)
        for some in keys
      ]
    )


def tables(
  answers: Answers, sums: Mapping[tuple[str, ...], Sequence[float]], metric: str
) -> dict[str, Any]:
  """Returns the scores and intervals of single vectors, sums and negation, as JSON.

  Scores are lists over the starts. An interval is the mean of a difference and the bounds
  of `bootstrap.paired`; the one of a sum compares it with the tasks' own prompts, and with
  the prompts of other tasks.

  Args:
    answers: the hits.
    sums: the tasks of each sum, with the coefficient on each initial prompt.
    metric: of `base.METRICS`.
  """
  single = answers.single(metric)
  pairs = [names for names in sums if len(names) == 2]
  totals = []
  for names, coefficients in sums.items():
    rows = answers.sums(names, metric)
    differences = {
      f"minus_{kind}": interval([rows[task] - single[task][kind] for task in names])
      for kind in ("own", "control")
    }
    totals.append(
      {
        "tasks": list(names),
        "coefficient": list(coefficients),
        "scores": {task: scores(found) for task, found in rows.items()},
        **differences,
      }
    )
  return {
    "single": {
      task: {kind: scores(rows) for kind, rows in kinds.items()}
      for task, kinds in single.items()
    },
    "differences": {
      name: {
        f"{one}_minus_{other}": interval(
          [single[task][one] - single[task][other] for task in tasks]
        )
        for one, other in _DIFFERENCES
      }
      for name, tasks in {**{task: [task] for task in single}, "all": [*single]}.items()
    },
    "sums": totals,
    "negation": {
      task: answers.negated(task, [pair for pair in pairs if task in pair], metric)
      for task in single
    },
  }


def scores(rows: Rows) -> list[float]:
  """Returns the score of each start."""
  return [float(one) for one in rows.mean(axis=1)]


def interval(differences: Sequence[Rows]) -> dict[str, float]:
  """Returns the mean of differences and the bounds of `bootstrap.paired`, by name."""
  mean, low, high = bootstrap.paired(differences)
  return {"mean": mean, "low": low, "high": high}


def name_of(key: tuple[Any, ...]) -> str:
  """Returns a key as it stands in `to_json`."""
  parts = ("+".join(one) if isinstance(one, (tuple, list)) else str(one) for one in key)
  return "/".join(parts)


def rows(bits: str) -> Float[np.ndarray, " R"]:
  """Returns the hits of one metric of `to_json`, as numbers."""
  return np.frombuffer(bits.encode("ascii"), np.uint8).astype(np.float64) - ord("0")

"""Measurements of whether the vectors of a variant move to other starts, and add."""

import dataclasses
import functools
import itertools
import pathlib
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import numpy as np

from tpv_jax.data.tasks import Task
from tpv_jax.evaluation.evaluator import Prompt
from tpv_jax.studies import base, tuned
from tpv_jax.studies.measured import Measured, digests
from tpv_jax.studies.report.moving import retention
from tpv_jax.vectors import algebra, arithmetic, moving
from tpv_jax.vectors.loaded import Loaded

Scores = dict[str, float]
"""Metric -> score."""

KINDS = {
  "untuned": "untuned",
  "own": "own",
  "moved": "other_initial",
  "control": "control",
}
"""What is measured of single prompts -> what it is called in `tuned.Tuned.single`."""


@dataclasses.dataclass(frozen=True)
class Splits:
  """The examples on which vectors are measured, and those that choose coefficients."""

  test: base.Split
  validation: base.Split


@dataclasses.dataclass
class Vectors:
  """The prompts and vectors of a variant.

  Attributes:
    folder: the study's.
    variant: its name.
    tasks: the study's.
    seeds: of the initial prompts.
    fresh: an initial prompt that nothing was tuned from.
  """

  folder: pathlib.Path
  variant: str
  tasks: Sequence[Task]
  seeds: Sequence[int]
  fresh: Loaded

  def __post_init__(self) -> None:
    self.prompts = tuned.load(
      [task.name for task in self.tasks],
      self.seeds,
      self.folder / "runs" / self.variant,
      self.folder / "vectors" / self.variant,
    )

  def subject(self) -> dict[str, Any]:
    """Returns what the measurements depend on, except the settings and the backbone."""
    found = self.prompts.subject(self.tasks)
    fresh = digests({"fresh": self.fresh})
    return {**found, "initial_prompts": {**found["initial_prompts"], **fresh}}

  def measure(
    self, measured: Measured, splits: Splits, coefficients: Sequence[float]
  ) -> dict[str, Any]:
    """Returns all measurements, each kept in `measured` as it is made.

    Returns:
      `start_norm`, a number for each initial prompt; `tasks`, name -> kind -> for each
      initial prompt its scores or number; `sums`, one for each pair of tasks.
    """
    tasks = measured.get("single", lambda: self._single(splits.test))
    chosen = measured.get(
      "coefficients", lambda: self._search(splits.validation, coefficients)
    )
    sums = measured.get("sums", lambda: self._sums(splits.test, chosen))
    averaged = measured.get("averaged", lambda: self._averaged(splits.test))
    cosines = self._cosines()
    return {
      "start_norm": [self._norm(self.prompts.initial[seed]) for seed in self.seeds],
      "tasks": {
        name: {
          **tasks[name],
          "summed": [
            _mean(
              total["scores"][name][place] for total in sums if name in total["tasks"]
            )
            for place in range(len(self.seeds))
          ],
          "averaged": averaged[name],
          "vector_norm": [
            self._norm(self.prompts.vectors[name, seed]) for seed in self.seeds
          ],
          "ratio": [
            moving.ratio(self.prompts.vectors[name, seed], self.prompts.initial[seed])
            for seed in self.seeds
          ],
          **cosines[name],
        }
        for name in self.prompts.names
      },
      "sums": sums,
    }

  def _single(self, test: base.Split) -> dict[str, dict[str, list[Scores]]]:
    """Returns the scores of start, own prompt, vector on other starts, and control."""
    scores = _scores(test, self.prompts.single())
    return {
      name: {
        kind: [
          _mean(v for key, v in scores.items() if key[:3] == (asked, name, seed))
          for seed in self.seeds
        ]
        for kind, asked in KINDS.items()
      }
      for name in self.prompts.names
    }

  def _search(
    self, validation: base.Split, coefficients: Sequence[float]
  ) -> list[list[float]]:
    """Returns the coefficient of each pair's sum on each initial prompt."""
    sums: dict[tuple[tuple[str, ...], int], Callable[[float], Prompt]] = {
      (pair, seed): functools.partial(self._sum, pair, seed)
      for pair, seed in itertools.product(self._pairs, self.seeds)
    }
    chosen = iter(base.best_coefficients(validation, sums, coefficients))
    return [[next(chosen) for _ in self.seeds] for _ in self._pairs]

  def _sums(
    self, test: base.Split, chosen: Sequence[Sequence[float]]
  ) -> list[dict[str, Any]]:
    """Returns the scores of each pair's sum; `chosen` as `_search` returns it."""
    asked: dict[Any, tuple[Prompt, str]] = {}
    for pair, row in zip(self._pairs, chosen, strict=True):
      for seed, coefficient in zip(self.seeds, row, strict=True):
        for name in pair:
          asked[pair, seed, name] = self._sum(pair, seed, coefficient), name
    scores = _scores(test, asked)
    return [
      {
        "tasks": list(pair),
        "coefficient": list(row),
        "scores": {
          name: [scores[pair, seed, name] for seed in self.seeds] for name in pair
        },
      }
      for pair, row in zip(self._pairs, chosen, strict=True)
    ]

  def _averaged(self, test: base.Split) -> dict[str, Scores]:
    """Returns the scores of the mean of a task's vectors on a fresh initial prompt."""
    asked: dict[str, tuple[Prompt, str]] = {}
    weights = [1.0 / len(self.seeds)] * len(self.seeds)
    for name in self.prompts.names:
      several = [self.prompts.vectors[name, seed] for seed in self.seeds]
      mean = algebra.sum_vectors(several, weights, allow_mixed_origin=True)
      asked[name] = algebra.apply(mean, self.fresh).leaves, name
    return _scores(test, asked)

  def _cosines(self) -> dict[str, dict[str, list[float]]]:
    """Returns each vector's mean cosine with the same task's and the other tasks'.

    With those of the same task from other starts, and those of other tasks from its own.
    """
    matrix = algebra.cosine([self.prompts.vectors[key] for key in self.prompts.keys])
    place = {key: index for index, key in enumerate(self.prompts.keys)}

    def means(name: str, same_task: bool) -> list[float]:
      return [
        float(
          np.mean(
            [
              matrix[place[name, seed], place[other]]
              for other in self.prompts.keys
              if other != (name, seed)
              and other[0 if same_task else 1] == (name if same_task else seed)
            ]
          )
        )
        for seed in self.seeds
      ]

    return {
      name: {
        "cosine_same_task": means(name, True),
        "cosine_same_start": means(name, False),
      }
      for name in self.prompts.names
    }

  @property
  def _pairs(self) -> list[tuple[str, str]]:
    return list(itertools.combinations(self.prompts.names, 2))

  def _sum(self, pair: tuple[str, str], seed: int, coefficient: float) -> Prompt:
    return self.prompts.applied(self.prompts.sum_of(pair, seed), seed, coefficient)

  @staticmethod
  def _norm(item: Loaded) -> float:
    return arithmetic.norm(item.leaves)


def summarise(variants: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
  """Returns what each variant keeps of exact match, and which variants keep nearly all.

  Of a variant: `ratio`, the mean over tasks and initial prompts; `moving`, `adding` and
  `control`, the part of its own score that the worst task keeps on other starts, in sums
  of two, and under another task's prompt (means over initial prompts).
  """
  found: dict[str, dict[str, float | None]] = {}
  for variant in variants:
    tasks = variant["tasks"].values()
    found[variant["name"]] = {
      "ratio": float(np.mean([one["ratio"] for one in tasks])),
      "moving": _least(retention(one, "moved") for one in tasks),
      "adding": _least(retention(one, "summed") for one in tasks),
      "control": _least(retention(one, "control") for one in tasks),
    }
  return {
    "variants": found,
    "kept": base.KEPT,
    "moving_keeps": [name for name, one in found.items() if _keeps(one["moving"])],
    "adding_keeps": [name for name, one in found.items() if _keeps(one["adding"])],
  }


def _keeps(part: float | None) -> bool:
  return part is not None and part >= base.KEPT


def _least(parts: Iterable[Sequence[float]]) -> float | None:
  """Returns the lowest of the tasks' means; None where a task has none."""
  tasks = list(parts)
  return min(float(np.mean(one)) for one in tasks) if all(tasks) else None


def _mean(scores: Iterable[Scores]) -> Scores:
  """Returns the mean of each metric."""
  several = list(scores)
  return {name: float(np.mean([one[name] for one in several])) for name in base.METRICS}


def _scores(
  test: base.Split, asked: Mapping[base.Key, tuple[Prompt, str]]
) -> dict[base.Key, Scores]:
  """Returns exact match and accuracy among the labels of each prompt, in one pass."""
  return {
    key: {metric: float(hits.mean()) for metric, hits in found.items()}
    for key, found in test.hits(asked).items()
  }

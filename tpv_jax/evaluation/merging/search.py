"""The joint search for the coefficients of a sum: docs/methods.md, (4.29)."""

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
from jaxtyping import Float64

from tpv_jax.evaluation import candidates, searching
from tpv_jax.evaluation.merging.subject import Outcome, Subject
from tpv_jax.vectors import algebra
from tpv_jax.vectors.merging.by_data import CoefficientSearch

Coefficients = tuple[float, ...]

_DIGITS = 4
"""Decimals of a coefficient that is tried."""

_FINEST = 1 / 256
"""The smallest part of the distance between the bounds that a step has."""


def searched(rule: CoefficientSearch, subject: Subject) -> Outcome:
  """Returns the coefficients with the best mean score over the tasks; of equals the first."""
  tried: dict[Coefficients, list[float]] = {}

  def means() -> list[float]:
    return [float(np.mean(scores)) for scores in tried.values()]

  # 1. The plain sum, the average, and random coefficients.
  first = max(1, rule.budget // 2)
  _try(rule, subject, _first(rule, len(subject.vectors))[:first], tried)
  # 2. Steps from the best ones.
  part = 0.25
  while len(tried) < rule.budget and part >= _FINEST:
    before = max(means())
    best = list(tried)[int(np.argmax(means()))]
    near = [one for one in dict.fromkeys(_beside(best, part, rule)) if one not in tried]
    _try(rule, subject, near[: rule.budget - len(tried)], tried)
    if max(means()) <= before:
      part /= 2
  best = list(tried)[int(np.argmax(means()))]
  # Where the bounds exclude the plain sum, the first one is another.
  taken = "the plain sum" if set(best) == {1.0} else f"the coefficients {list(best)}"
  candidates.say_equal_scores(
    f"Search on {rule.split} by {rule.metric}", means(), taken
  )
  names = [task.name for task in subject.tasks]
  report = [
    {"coefficients": list(one), "scores": dict(zip(names, scores, strict=True))}
    for one, scores in tried.items()
  ]
  return Outcome(
    np.array(best),
    report={"tried": report, "best": max(means())},
    evaluations=len(tried),
  )


def _first(rule: CoefficientSearch, number: int) -> list[Coefficients]:
  """Returns the plain sum, the average, and as many random ones as the budget.

  Random ones are a point between the bounds times a number between 0 and 1, since good
  coefficients of many vectors may all be small.
  """
  draw = np.random.default_rng(rule.seed)
  drawn = draw.uniform(rule.low, rule.high, (rule.budget, number))
  drawn *= draw.uniform(0, 1, (rule.budget, 1))
  plain = np.ones((1, number))
  some = np.vstack([plain, plain / number, drawn])
  return list(dict.fromkeys(_bounded(one, rule) for one in some))


def _beside(
  best: Coefficients, part: float, rule: CoefficientSearch
) -> Iterator[Coefficients]:
  """Yields the coefficients with one of them changed, or all of them in proportion.

  One is changed by a part of the distance between the bounds, all by that part of them.
  """
  for signed in (part, -part):
    for place in range(len(best)):
      moved = np.array(best)
      moved[place] += signed * (rule.high - rule.low)
      yield _bounded(moved, rule)
    yield _bounded(np.array(best) * (1 + signed), rule)


def _bounded(one: Float64[np.ndarray, " N"], rule: CoefficientSearch) -> Coefficients:
  within = np.clip(one, rule.low, rule.high)
  return tuple(round(float(value), _DIGITS) for value in within)


def _try(
  rule: CoefficientSearch,
  subject: Subject,
  some: Sequence[Coefficients],
  tried: dict[Coefficients, list[float]],
) -> None:
  """Scores sums on all tasks, in one pass over banks of them."""
  prompts: list[Any] = [
    subject.prompt(algebra.sum_vectors(subject.vectors, one)) for one in some
  ]
  cells = [(prompt, task) for prompt in prompts for task in subject.tasks]
  scores = searching.tried(
    subject.evaluator, cells, rule.split, rule.examples, rule.metric
  )
  for place, one in enumerate(some):
    number = len(subject.tasks)
    tried[one] = scores[place * number : (place + 1) * number]

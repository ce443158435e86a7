"""Metrics of texts that spell numbers; SciPy is imported at the first use."""

import math
from collections.abc import Callable
from typing import Any

from tpv_jax.data.metrics.protocol import Predicted

NOT_A_NUMBER = -1.0
"""The value of a prediction that is not a finite number (T5's `string_to_float`)."""


def pearson(given: Predicted) -> float:
  """Returns Pearson's correlation of the numbers that the texts spell, in [-1, 1].

  A prediction that is not a finite number counts as `NOT_A_NUMBER`. The result is 0 (ours;
  not NaN) for fewer than two examples, or if one side is constant.
  """
  import scipy.stats

  return _correlation(scipy.stats.pearsonr, given)


def spearman(given: Predicted) -> float:
  """Returns Spearman's rank correlation, in [-1, 1]; otherwise like `pearson`."""
  import scipy.stats

  return _correlation(scipy.stats.spearmanr, given)


def _correlation(function: Callable[..., Any], given: Predicted) -> float:
  right, predicted = map(_number, given.targets), map(_number, given.predictions)
  sides = list(right), list(predicted)
  return (
    0.0 if min(len(set(side)) for side in sides) < 2 else float(function(*sides)[0])
  )


def _number(text: str) -> float:
  try:
    value = float(text)
  except ValueError:
    return NOT_A_NUMBER
  return value if math.isfinite(value) else NOT_A_NUMBER

"""Intervals for mean differences between ways that answered the same examples.

Ours: the papers state deviations over initial prompts only, of which a study has few, while
a few hundred test rows move a score by several points as well.
"""

from collections.abc import Sequence

import numpy as np
from jaxtyping import Shaped

RESAMPLES = 2_000

CONFIDENCE = 0.95

_AT_ONCE = 1 << 22
"""Drawn rows in memory at once."""


def paired(
  differences: Sequence[Shaped[np.ndarray, "S _"]],
  resamples: int = RESAMPLES,
  confidence: float = CONFIDENCE,
  seed: int = 0,
) -> tuple[float, float, float]:
  """Returns the mean difference and the bounds of its percentile bootstrap interval.

  Starts and rows are resampled with replacement, crossed: one draw of starts for all
  tasks, and one draw of rows for each task, used for all starts. So the interval covers
  other starts and other rows, not other tasks. Of two or three starts it is too narrow
  rather than too wide.

  Args:
    differences: for each task the difference of two ways' hits on each row, by start:
      [starts, rows of the task]. The mean weighs tasks equally.
    resamples: how many draws.
    confidence: the part of the draws that lies between the bounds.
    seed: of the draws.
  """
  draw = np.random.default_rng(seed)
  starts = len(differences[0])
  # How often each start and each row was drawn, so that a draw's mean is a product.
  by_start = _counts(draw.integers(starts, size=(resamples, starts)))
  means = np.zeros(resamples)
  for task in differences:
    rows, values = task.shape[1], task.astype(np.float64)
    at_once = max(1, _AT_ONCE // rows)
    for first in range(0, resamples, at_once):
      some = by_start[first : first + at_once]
      by_row = _counts(draw.integers(rows, size=(len(some), rows)))
      sums = ((some @ values) * by_row).sum(axis=1)
      means[first : first + at_once] += sums / (starts * rows)
  means /= len(differences)
  tail = (1 - confidence) / 2
  low, high = np.quantile(means, [tail, 1 - tail])
  mean = np.mean([task.mean(dtype=np.float64) for task in differences])
  return float(mean), float(low), float(high)


def _counts(drawn: Shaped[np.ndarray, "B N"]) -> Shaped[np.ndarray, "B N"]:
  """Returns how often each of N things is among the N drawn, in each of B draws."""
  draws, number = drawn.shape
  places = drawn + number * np.arange(draws)[:, None]
  return np.bincount(places.ravel(), minlength=draws * number).reshape(draws, number)

"""The comparison of ways of tuning, over tasks and initial prompts."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np


def compare(
  by_task: Mapping[str, Sequence[float]],
  others: Mapping[str, Mapping[str, Sequence[float]]],
) -> dict[str, Any]:
  """Returns the numbers by which one of several ways of tuning is compared.

  `mean` and `deviation`: over the initial prompts, of the mean over tasks. `worst`: the
  lowest mean of a task. `spread`: the sample standard deviation over the tasks' means.
  `minus_NAME` for each of the others: mean and deviation over the initial prompts of the
  difference of the means over tasks, and how many pairs of task and initial prompt are
  `higher` and `lower`.

  Args:
    by_task: the way's scores, [task][initial prompt].
    others: the others' scores by name, on the same tasks and initial prompts.
  """
  table = np.asarray(list(by_task.values()))  # tasks x initial prompts
  of_tasks, of_seeds = table.mean(axis=1), table.mean(axis=0)
  found: dict[str, Any] = {
    "mean": float(of_seeds.mean()),
    "deviation": float(of_seeds.std(ddof=1)),
    "worst": float(of_tasks.min()),
    "spread": float(of_tasks.std(ddof=len(of_tasks) > 1)),
  }
  for name, other in others.items():
    gap = table - np.asarray([other[task] for task in by_task])
    found[f"minus_{name}"] = {
      "mean": float(gap.mean()),
      "deviation": float(gap.mean(axis=0).std(ddof=1)),
      "higher": int((gap > 0).sum()),
      "lower": int((gap < 0).sum()),
    }
  return found

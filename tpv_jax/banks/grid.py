"""The grid of a bank: its lists of tasks, seeds and rates checked, its prompts named.

Both runners' banks take the same lists and name their prompts alike.
"""

import itertools
import math
from collections.abc import Sequence
from typing import Any

from tpv_jax.core.errors import UserError, at_least, near_misses
from tpv_jax.data.tasks import Task
from tpv_jax.embedded.suite import TASKS


def check_lists(
  tasks: Sequence[Any],
  initial_seeds: Sequence[int],
  rates: Sequence[float],
  kinds: tuple[type, ...] = (Task,),
) -> None:
  """Raises `UserError` unless a grid's arguments are non-empty lists of valid entries.

  Args:
    tasks: of one of the types `kinds`.
    initial_seeds: of the initial prompts.
    rates: factors of the bank's learning rate.
    kinds: the types that a task may have.
  """
  lists = {"TASKS": tasks, "INITIAL_SEEDS": initial_seeds, "RATES": rates}
  for name, values in lists.items():
    if not isinstance(values, list | tuple) or not values:
      raise UserError(
        f"{name} is {values!r}, which leaves no prompt to train. Give a list with at "
        "least one entry."
      )
  for task in tasks:
    if not isinstance(task, kinds):
      raise UserError(
        f"TASKS has {task!r}, not a task.{near_misses(str(task), TASKS)} Bind tasks, "
        "such as @suite.task() or @text_files.text_file_task(); bank_embedded.gin takes "
        "names as TASK_NAMES."
      )
  for seed in initial_seeds:
    at_least("A seed of INITIAL_SEEDS", seed, 0)
  for rate in rates:
    check_rate(rate, "RATES")


def entries(
  tasks: Sequence[Task], initial_seeds: Sequence[int], rates: Sequence[float]
) -> list[tuple[Task, int, float, str]]:
  """Returns the task, seed, rate and name of each prompt of a grid, in order."""
  return [
    (task, seed, rate, name_of(task.name, seed, rate if len(rates) > 1 else None))
    for task, seed, rate in itertools.product(tasks, initial_seeds, rates)
  ]


def name_of(task: str, seed: int, rate: float | None) -> str:
  """Returns the name of a grid's entry; `rate` is None if there is only one."""
  if rate is None:
    return f"{task}-{seed}"
  # The shortest text that reads back as the same number.
  text = f"{rate:g}" if float(f"{rate:g}") == rate else repr(rate)
  return f"{task}-{seed}-{text}"


def is_number(value: Any) -> bool:
  """Returns whether the value is a finite number, which True and False are not."""
  return (
    isinstance(value, int | float)
    and not isinstance(value, bool)
    and math.isfinite(value)
  )


def check_rate(rate: Any, where: str) -> None:
  """Raises `UserError` unless `rate` is a number of at least 0."""
  if not is_number(rate) or rate < 0:
    raise UserError(
      f"The rate of {where} is {rate!r}. Give a number of at least 0: the learning rate "
      "is multiplied by it."
    )

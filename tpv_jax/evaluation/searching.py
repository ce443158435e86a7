"""The search for the coefficient of a vector on an initial prompt, and a merge's settings."""

from collections.abc import Callable, Sequence
from typing import Annotated, Any

import numpy as np

from tpv_jax.core.checks import OneOf
from tpv_jax.core.errors import UserError
from tpv_jax.data.tasks import Task
from tpv_jax.evaluation import candidates
from tpv_jax.evaluation.candidates import Candidate
from tpv_jax.evaluation.evaluator import Evaluator, Prompt

Metric = Annotated[str, OneOf(("exact_match", "label_accuracy", "own"))]
"""What a search compares; see `evaluation.evaluate`."""

Searches = dict[int, dict[str, Any]]
"""The index of a candidate -> the record of the search for its coefficient."""


def check(tasks: Sequence[Task], coefficient: Any, vector: Any, metric: str) -> None:
  """Raises `UserError` if a search has nothing to choose, or a task lacks its metric."""
  if coefficient != 1.0:
    raise UserError(
      f"COEFFICIENT is {coefficient!r}, and SEARCH chooses it. Give the coefficients to "
      "try as SEARCH, or leave out one of the two."
    )
  if not vector:
    raise UserError(
      "SEARCH chooses the coefficient of a vector, and no vector was given: give "
      "--gin.VECTOR and --gin.INITIAL as well."
    )
  check_metric(tasks, metric, "SEARCH_METRIC = 'own'")


def check_metric(tasks: Sequence[Task], metric: str, own: str) -> None:
  """Raises `UserError` if a task lacks the metric of a search; `own` sets its own one."""
  for task in tasks:
    if metric == "label_accuracy" and task.labels is None:
      raise UserError(
        f"The task '{task.name}' has no labels to choose from. Give it labels, or set "
        f"{own}."
      )
    if metric == "exact_match" and task.labels is None and task.metric != metric:
      raise UserError(
        f"Exact match with the target says little of the free texts of '{task.name}', "
        f"whose metric is {task.metric}. Set {own}, which decodes them."
      )


def best_of_each(
  evaluator: Evaluator,
  groups: Sequence[Sequence[Candidate]],
  tasks_of: Callable[[Candidate], Sequence[Task]],
  split: str,
  most: int | None,
  metric: str,
) -> tuple[list[list[Candidate]], Searches]:
  """Returns the best candidate of each group, and the searches of groups of several.

  All candidates of all groups are tried in one pass.
  """
  cells = [
    (number, one, task)
    for number, group in enumerate(groups)
    for one in (group if len(group) > 1 else ())
    for task in tasks_of(one)
  ]
  scores = tried(
    evaluator, [(one.leaves, task) for _, one, task in cells], split, most, metric
  )
  found: dict[int, dict[str, list[float]]] = {}
  for (number, _, task), score in zip(cells, scores, strict=True):
    found.setdefault(number, {}).setdefault(task.name, []).append(score)
  best, searches = [], {}
  for number, group in enumerate(groups):
    if number not in found:
      best.append(list(group))
      continue
    means = np.mean(list(found[number].values()), axis=0)
    ranked = zip(means, group, strict=True)
    winner = max(ranked, key=lambda one: (one[0], -(one[1].coefficient or 0.0)))[1]
    tries = any(one.settings for one in group)
    searches[len(best)] = {
      "split": split,
      "metric": metric,
      "coefficients": [one.coefficient for one in group],
      **({"settings": [dict(one.settings) for one in group]} if tries else {}),
      "scores": found[number],
    }
    candidates.say_equal_scores(
      f"Search on {split} by {metric}, {winner.name.partition(' * ')[2]}",
      means.tolist(),
      f"{winner.coefficient:g}, the smallest coefficient"
      + (", and the first settings" if tries else ""),
    )
    best.append([winner])
  return best, searches


def tried(
  evaluator: Evaluator,
  cells: Sequence[tuple[Prompt, Task]],
  split: str,
  most: int | None,
  metric: str,
) -> list[float]:
  """Returns the metric of each prompt on the first examples of its task's split."""
  tasks = {task.name: task for _, task in cells}
  examples = {name: task.examples(split)[:most] for name, task in tasks.items()}
  if metric == "own":
    shorter = {name: task.shortened(split, most) for name, task in tasks.items()}
    results = evaluator.evaluate_all(
      [(leaves, shorter[task.name], split) for leaves, task in cells]
    )
    return [result.scores[tasks[result.task].metric] for result in results]
  tokenized = {
    name: evaluator.tokenize(some, f"{name}, {split}")
    for name, some in examples.items()
  }
  if metric == "label_accuracy":
    right = {
      name: np.asarray([(tasks[name].labels or ()).index(one.targets) for one in some])
      for name, some in examples.items()
    }
    return evaluator.label_accuracies(
      [
        (leaves, tokenized[task.name], task.labels or (), right[task.name])
        for leaves, task in cells
      ]
    )
  return evaluator.exact_matches(
    [(leaves, tokenized[task.name]) for leaves, task in cells]
  )

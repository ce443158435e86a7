"""Tasks made from other tasks, for comparisons that need harder ones. Ours."""

import dataclasses
from collections.abc import Sequence
from typing import Any

from tpv_jax.core.checks import checked
from tpv_jax.core.errors import UserError
from tpv_jax.data.tasks import Example, Task


@checked
def rotated(task: Task, name: str | None = None) -> Task:
  """Returns the task with each class named by the label word of the next class.

  The embedded backbone knows the suite's own words, and plain tuning finds them within 20
  steps; that 'positive' now means negative, a prompt has to learn.

  Args:
    task: with labels.
    name: of the new task; None for the name of `task`.

  Raises:
    UserError: the task has no labels.
  """
  if task.labels is None:
    raise UserError(
      f"Task '{task.name}' has no labels that could be exchanged. Leave it out (or, in an "
      "ablation, set ROTATE_LABELS = False)."
    )
  called = dict(zip(task.labels, (*task.labels[1:], task.labels[0]), strict=True))

  def load(split: str) -> list[Example]:
    return [
      dataclasses.replace(
        example,
        targets=called[example.targets],
        answers=tuple(called.get(answer, answer) for answer in example.answers),
      )
      for example in task.examples(split)
    ]

  recipe = task.recipe
  if recipe is not None and recipe.labels is not None:
    words = {value: called[word] for value, word in recipe.labels.items()}
    recipe = dataclasses.replace(recipe, labels=words)
  return dataclasses.replace(task, name=name or task.name, load=load, recipe=recipe)


@checked
def mixture(name: str, tasks: Sequence[Task]) -> Task:
  """Returns the task of the tasks' examples in turn, equally many of each.

  Their number is that of the smallest task. The labels are the union of the tasks' labels,
  the metric is the first task's, and further metrics are kept if all tasks have the same
  ones and the same labels. The origin has the origin of each task by name.

  Raises:
    UserError: there are no tasks, or only some have labels.
  """
  if not tasks:
    raise UserError(f"The mixture '{name}' has no tasks. Give it at least one.")
  words = [word for task in tasks for word in task.labels or ()]
  if free := [task.name for task in tasks if task.labels is None] if words else []:
    raise UserError(
      f"The mixture '{name}' has tasks with labels and one without, '{free[0]}', for which "
      "there is no label to choose. Mix tasks of one kind."
    )

  def load(split: str) -> list[Example]:
    return [
      example
      for row in zip(*(task.examples(split) for task in tasks), strict=False)
      for example in row
    ]

  def origin() -> dict[str, Any]:
    return {task.name: dict(task.origin()) for task in tasks if task.origin}

  labels = tuple(dict.fromkeys(words)) if words else None
  first = tasks[0]
  agree = {(t.labels, t.more_metrics) for t in tasks} == {(labels, first.more_metrics)}
  return Task(
    name,
    labels,
    first.metric,
    load,
    first.more_metrics if agree else (),
    origin if any(task.origin for task in tasks) else None,
  )


@checked
def beside(name: str, task: Task, other: Task) -> Task:
  """Returns the task with a text of another task before or after each of its texts.

  The other text comes before examples with an even number, counted from 0, and after those
  with an odd one. The answers are those of `task`.
  """

  def load(split: str) -> list[Example]:
    pairs = zip(task.examples(split), other.examples(split), strict=False)
    return [
      joined(example, more.inputs, before=not number % 2)
      for number, (example, more) in enumerate(pairs)
    ]

  def joined(example: Example, text: str, before: bool) -> Example:
    first, second = (text, example.inputs) if before else (example.inputs, text)
    inputs = f"{first} {second}"
    fields = ((0, len(first)), (1 + len(first), len(inputs)))
    return dataclasses.replace(example, inputs=inputs, fields=fields)

  return dataclasses.replace(task, name=name, load=load, recipe=None)

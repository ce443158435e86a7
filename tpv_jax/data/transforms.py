"""Tasks made of other tasks, for comparisons that need harder ones. Ours."""

import dataclasses
from collections.abc import Sequence
from typing import Any

from tpv_jax.core.checks import checked
from tpv_jax.core.errors import UserError
from tpv_jax.data.tasks import Example, Task


@checked
def rotated(task: Task, name: str | None = None) -> Task:
  """Returns the task in which each class is called by the next class's label word.

  The embedded backbone knows the suite's own words, and plain tuning finds them within
  20 steps; that 'positive' now means negative has to be taught.

  Args:
    task: with labels.
    name: of the new task; None for the same one.

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

  return dataclasses.replace(task, name=name or task.name, load=load)


@checked
def mixture(name: str, tasks: Sequence[Task]) -> Task:
  """Returns the task of all the tasks' examples in turn, as many of each as all have.

  Its labels are theirs together, its metric is the first one's; its other metrics are
  theirs where all have the same ones and the same labels. Its origin says theirs by name.

  Raises:
    UserError: no tasks, or labels that only some have.
  """
  if not tasks:
    raise UserError(f"The mixture '{name}' has no tasks. Give it at least one.")
  words = [word for task in tasks for word in task.labels or ()]
  if free := [task.name for task in tasks if task.labels is None] if words else []:
    raise UserError(
      f"The mixture '{name}' has tasks with labels and, in '{free[0]}', one without, so "
      "nothing could be chosen among. Mix tasks of one kind."
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
  """Returns the task with a text of another one before or after each of its texts.

  Before the examples of even number, from 0, and after those of odd; the answers are the
  first task's.
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

  return dataclasses.replace(task, name=name, load=load)

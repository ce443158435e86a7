"""The interface of metrics: their input, and what they return."""

import dataclasses
from collections.abc import Iterable, Sequence
from typing import Protocol, runtime_checkable


@dataclasses.dataclass(frozen=True)
class Predicted:
  """Predictions and right answers, with one entry for each example.

  Attributes:
    targets: the right answers, or WSC's candidates.
    predictions: decoded texts, or chosen labels.
    labels: the task's labels, or None if the targets are free.
    answers: all right answers of each example.
    groups: the group of each example; for MultiRC its question.
    written: each target as the vocabulary writes it (`labels.spelling`), or None if it
      can't; () stands for the targets.
  """

  targets: Sequence[str]
  predictions: Sequence[str]
  labels: Sequence[str] | None
  answers: Sequence[Sequence[str]]
  groups: Sequence[str]
  written: Sequence[str | None] = ()

  @property
  def pairs(self) -> Iterable[tuple[str, str]]:
    """The pairs of target and prediction."""
    return zip(self.targets, self.predictions, strict=True)

  @property
  def classes(self) -> list[str]:
    """The labels; without labels, the different targets in alphabetical order."""
    return sorted(set(self.targets)) if self.labels is None else list(self.labels)


@runtime_checkable
class Score(Protocol):
  """A metric as a function of predictions; a higher score is better."""

  def __call__(self, given: Predicted, /) -> float:
    """Returns a finite number of at most 1.

    Raises:
      UserError: the examples lack something that it needs, such as groups.
    """
    ...


@dataclasses.dataclass(frozen=True)
class Metric:
  """A metric, with its requirements on a task, which are checked before anything runs.

  Attributes:
    score: the function.
    labels: how many labels the task must have; None for any number, or none.
    advice: the message about a task with another number.
  """

  score: Score
  labels: int | None = None
  advice: str = ""

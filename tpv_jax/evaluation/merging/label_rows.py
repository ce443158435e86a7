"""Rows of one source, with one label or with all of them: what gradients are taken of."""

import dataclasses
from collections.abc import Sequence

import numpy as np
from jaxtyping import Bool, Int, Int32

from tpv_jax.data import batches, packing
from tpv_jax.data.tasks import Task
from tpv_jax.data.vocabularies import Vocabulary


@dataclasses.dataclass(frozen=True)
class Labels:
  """The label words of some tasks, as many rows for each: the largest number of labels.

  Attributes:
    tokens: the words' tokens; rows of padding where a task has fewer labels.
    known: which rows are labels.
  """

  tokens: Int32[np.ndarray, "tasks C L"]
  known: Bool[np.ndarray, "tasks C"]

  @classmethod
  def of(cls, tasks: Sequence[Task], vocabulary: Vocabulary, longest: int) -> "Labels":
    """Returns the labels of tasks, all of which have some.

    Raises:
      UserError: a label can't be written or distinguished from another.
    """
    found = [
      batches.label_tokens(task.labels or (), vocabulary, longest) for task in tasks
    ]
    most = max(map(len, found))
    shape = (len(found), most, longest)
    tokens = np.full(shape, batches.PADDING, np.int32)
    for place, words in zip(tokens, found, strict=True):
      place[: len(words)] = words
    counts = np.array([len(words) for words in found])
    return cls(tokens, np.arange(most) < counts[:, None])

  @property
  def most(self) -> int:
    """C, the largest number of labels."""
    return self.tokens.shape[1]

  def features(
    self, sources: Int[np.ndarray, "E T"], tasks: Int[np.ndarray, " E"]
  ) -> batches.Features:
    """Returns a batch of [E * C] rows: each source with each label of its task."""
    targets = self.tokens[tasks].reshape(-1, self.tokens.shape[2])
    return batches.features(np.repeat(sources, self.most, axis=0), targets)

  def packed(
    self, sources: Int[np.ndarray, "E T"], tasks: Int[np.ndarray, " E"], length: int
  ) -> batches.Features:
    """Returns a batch of [E] packed rows: a source with all labels of its task.

    Label c of a task is choice c + 1 (`model.score_choices`).

    Args:
      sources: padded.
      tasks: of each source, the index.
      length: P, of the prompt that all sources stand behind.
    """
    return packing.one_a_row(sources, self.tokens[tasks], length)

"""Rows of one source, with one label or with all of them: what gradients are taken of."""

import dataclasses
from collections.abc import Sequence

import numpy as np
from jaxtyping import Bool, Int, Int32

from tpv_jax.data import batches
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

    They are as those of `packing.pack_choices`, but for one example in each row, so that
    every batch has one shape. Label c of a task is choice c + 1 (`model.score_choices`).

    Args:
      sources: padded with 0.
      tasks: of each source, the index.
      length: P, of the prompt that all sources stand behind.
    """
    # 1. Labels one after the other in a target row, each a segment of its own.
    words = self.tokens[tasks]
    shape = words.shape[1:]
    inputs = np.pad(words, ((0, 0), (0, 0), (1, 0)))[..., :-1]
    segments = np.broadcast_to(np.arange(1, shape[0] + 1)[:, None], shape)
    counted = ~batches.is_padding(words)
    # 2. Sources behind the prompt, all in segment 1.
    tokens = np.pad(sources, ((0, 0), (length, 0)))
    column = np.arange(tokens.shape[1])
    of_prompt = np.where(column < length, column + 1, 0)
    rows = {
      "encoder_input_tokens": tokens,
      "encoder_segment_ids": (of_prompt > 0) | ~batches.is_padding(tokens),
      "encoder_positions": np.broadcast_to(
        np.maximum(column - length, 0), tokens.shape
      ),
      "encoder_prompt_ids": np.zeros_like(tokens),
      "prompt_positions": np.broadcast_to(of_prompt, tokens.shape),
      "decoder_input_tokens": inputs.reshape(len(words), -1),
      "decoder_target_tokens": words.reshape(len(words), -1),
      "decoder_segment_ids": (counted * segments).reshape(len(words), -1),
      "source_segment_ids": counted.reshape(len(words), -1),
    }
    return {name: np.asarray(values, np.int32) for name, values in rows.items()}

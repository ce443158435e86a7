"""What the embedded backbone is pre-trained on: batches of token ids, pure in the step.

Everything is token in, token out, so pre-training needs nothing but the ordinary loss.
A source is a **prefix** of words and then a text of the grammar, of one of three kinds:

- *labelled*: the prefix holds some words of one label set of the text's attribute,
  scattered among random content words; the target is the text's label in that set. The
  words say which task to do and how to answer, not what the answer is.
- *continued*: the text breaks off, and the target is its next words. The prefix is
  empty, random content words, or such words with some of *another* attribute's labels.
- *complete*: the whole text with such a prefix; the target is empty. So without a prompt
  for its attribute the backbone does not label.

A prefix speaks of at most one task and consists of the embeddings of real tokens, never
of sums of vectors: additivity is nowhere trained. Texts lie in the pre-training part of
the language (`grammar.PARTS`), so none is in a split of the suite.
"""

import dataclasses
import random
from collections.abc import Mapping

import numpy as np

from tpv_jax.data import batches, vocabularies
from tpv_jax.embedded import grammar, lexicon


@dataclasses.dataclass(frozen=True)
class Mixture:
  """How often what comes; shares and weights need not sum to 1.

  Attributes:
    labelled, continued, complete: shares of the three kinds of source.
    weights: how often each attribute comes, 1 where nothing is said.
    foreign: the share of prefixes with another attribute's label words among those of
      continued and complete texts.
    bare: the share of empty prefixes among the rest of those.
    longest_prefix: in tokens.
    most_cues: the most label words in a prefix (an attribute's words may repeat).
    longest_continuation: in tokens, EOS not counted.
  """

  labelled: float = 0.6
  continued: float = 0.2
  complete: float = 0.2
  weights: Mapping[str, float] = dataclasses.field(default_factory=dict)
  foreign: float = 0.5
  bare: float = 0.4
  longest_prefix: int = 8
  most_cues: int = 3
  longest_continuation: int = 3


class PretrainingBatches:
  """An endless row of batches, each a pure function of the seed and its step."""

  def __init__(
    self,
    batch_size: int,
    seed: int,
    mixture: Mixture | None = None,
    lengths: Mapping[str, int] | None = None,
  ):
    """Prepares batches of `batch_size` examples.

    Args:
      batch_size: examples a batch.
      seed: of everything.
      mixture: what the batches consist of.
      lengths: `{'inputs': T, 'targets': L}` in tokens, prefix and EOS included.
    """
    self.batch_size = batch_size
    self.seed = seed
    self.mixture = mixture or Mixture()
    self.lengths = dict(lengths or {"inputs": 32, "targets": 4})
    vocabulary = vocabularies.embedded()
    self._eos = vocabulary.eos_id
    self._ids = {word: index for index, word in enumerate(vocabulary.words)}
    self._first = lexicon.first_content_id()
    self._content = vocabulary.vocab_size - self._first
    self._attributes = tuple(lexicon.LABEL_SETS)
    weights = [self.mixture.weights.get(name, 1.0) for name in self._attributes]
    self._cumulative = np.cumsum(weights) / sum(weights)
    kinds = [self.mixture.labelled, self.mixture.continued, self.mixture.complete]
    self._kinds = np.cumsum(kinds) / sum(kinds)
    self._labels = {
      name: [
        [self._ids[word] for word in lexicon.labels(name, number)]
        for number in range(len(sets))
      ]
      for name, sets in lexicon.LABEL_SETS.items()
    }

  def batch_at(self, step: int) -> batches.Features:
    """Returns batch `step`, the same one whenever and however often it is asked for."""
    randomness = random.Random((self.seed << 40) + step)
    inputs = np.zeros((self.batch_size, self.lengths["inputs"]), np.int32)
    targets = np.zeros((self.batch_size, self.lengths["targets"]), np.int32)
    for row in range(self.batch_size):
      source, target = self._example(randomness)
      inputs[row, : len(source)] = source
      targets[row, : len(target)] = target
    return batches.features(inputs, targets)

  def _example(self, randomness: random.Random) -> tuple[list[int], list[int]]:
    """Returns source and target, each ended by EOS."""
    attribute = self._attribute(randomness)
    text, label = grammar.draw(attribute, "pretraining", randomness)
    body = [self._ids[word] for word in text.split()]
    kind = int(np.searchsorted(self._kinds, randomness.random(), side="right"))
    if kind == 0:
      words = _pick(randomness, self._labels[attribute])
      prefix, target = self._prefix(randomness, words), [words[label]]
    else:
      prefix, target = self._silent_prefix(randomness, attribute), []
      if kind == 1:
        cut = 1 + int(randomness.random() * (len(body) - 1))
        body, rest = body[:cut], body[cut:]
        target = rest[: self.mixture.longest_continuation]
    return [*prefix, *body, self._eos], [*target, self._eos]

  def _attribute(self, randomness: random.Random) -> str:
    place = int(np.searchsorted(self._cumulative, randomness.random(), side="right"))
    return self._attributes[place]

  def _silent_prefix(self, randomness: random.Random, attribute: str) -> list[int]:
    """Returns a prefix that does not ask for `attribute`."""
    if randomness.random() < self.mixture.foreign:
      other = attribute
      while other == attribute:
        other = _pick(randomness, self._attributes)
      return self._prefix(randomness, _pick(randomness, self._labels[other]))
    if randomness.random() < self.mixture.bare:
      return []
    return self._prefix(randomness, ())

  def _prefix(
    self, randomness: random.Random, words: tuple[int, ...] | list[int]
  ) -> list[int]:
    """Returns random content words, some of them replaced by some of `words`."""
    length = 1 + int(randomness.random() * self.mixture.longest_prefix)
    prefix = [
      self._first + int(randomness.random() * self._content) for _ in range(length)
    ]
    if words:
      for _ in range(1 + int(randomness.random() * self.mixture.most_cues)):
        prefix[int(randomness.random() * length)] = _pick(randomness, words)
    return prefix


def _pick(randomness, options):
  return options[int(randomness.random() * len(options))]

"""The embedded backbone's pre-training data: batches of token ids, pure in the step.

Sources and targets are tokens, so pre-training needs only the ordinary loss. A source is a
**prefix** of words followed by a text of the grammar, and is of one of three kinds:

- *labelled*: the prefix holds some words of one label set of the text's attribute,
  scattered among random content words; the target is the text's label in that set. The
  words say which task to do and how to answer, not what the answer is.
- *continued*: the text breaks off, and the target is its next words. The prefix is
  empty, random content words, or such words with some of *another* attribute's labels.
- *complete*: the whole text with such a prefix. The target is empty or, now and then, the
  first word of one of the attribute's label sets. So without a prompt for the attribute
  the backbone does not label; forced to choose among labels, it takes the first one,
  whatever the text says (an untuned large model has a favourite label, too).

A prefix refers to at most one task and consists of the embeddings of real tokens, never of
sums of vectors, so that additivity is not trained anywhere. Texts lie in the pre-training
part of the language (`grammar.PARTS`), so none is in a split of the suite.
"""

import bisect
import dataclasses
import hashlib
import random
from collections.abc import Mapping, Sequence
from typing import Any, TypeVar

import numpy as np

from tpv_jax.core.checks import (
  Fraction,
  Lengths,
  NotNegative,
  Seed,
  Size,
  SizeOrNone,
  StepsOrNone,
  check_fields,
  checked,
)
from tpv_jax.core.errors import UserError
from tpv_jax.data import batches, vocabularies
from tpv_jax.embedded import grammar, lexicon

T = TypeVar("T")

ATTRIBUTES = tuple(lexicon.LABEL_SETS)


@dataclasses.dataclass(frozen=True)
class Mixture:
  """The shares of the kinds of examples; shares and weights need not sum to 1.

  Attributes:
    labelled, continued, complete: shares of the three kinds of source.
    weights: how often each attribute is used; 1 for an attribute that is not named.
    foreign: of the prefixes of continued and complete texts, the share that has another
      attribute's label words.
    biased: of the targets of complete texts, the share that is a first label word of the
      attribute.
    bare: of the prefixes of continued and complete texts that have no label words, the
      share that is empty.
    longest_prefix: in tokens.
    most_cues: the most label words in a prefix (an attribute's words may repeat).
    longest_continuation: in tokens, without EOS.
  """

  labelled: NotNegative = 0.6
  continued: NotNegative = 0.2
  complete: NotNegative = 0.2
  weights: Mapping[str, NotNegative] = dataclasses.field(default_factory=dict)
  foreign: Fraction = 0.5
  biased: Fraction = 0.2
  bare: Fraction = 0.4
  longest_prefix: Size = 8
  most_cues: SizeOrNone = 3
  longest_continuation: Size = 3

  def __post_init__(self) -> None:
    check_fields(self)


class _Phase:
  """A mixture with the running sums of its weights."""

  def __init__(self, mixture: Mixture):
    self.mixture = mixture
    self.weights = _cumulative([mixture.weights.get(name, 1.0) for name in ATTRIBUTES])
    self.kinds = _cumulative([mixture.labelled, mixture.continued, mixture.complete])


class PretrainingData:
  """An endless sequence of batches, each a pure function of the seed and its step.

  It has the members of `training.task_data.TrainingData`, so that the ordinary runner
  trains a backbone on it.
  """

  name = "embedded_pretraining"

  @checked
  def __init__(
    self,
    batch_size: Size,
    lengths: Lengths,
    seed: Seed = 0,
    phases: Sequence[Mixture] = (Mixture(),),
    starts: Sequence[StepsOrNone] = (0,),
    validation_batches: Size = 8,
  ):
    """Prepares batches of `batch_size` examples.

    Args:
      batch_size: examples in a batch.
      lengths: `{'inputs': T, 'targets': L}` in tokens, prefix and EOS included.
      seed: of all examples.
      phases: the mixtures of which batches consist, one after the other.
      starts: the first step of each phase; the first one is 0.
      validation_batches: number of batches, from the validation part of the language, on
        which the training is validated.

    Raises:
      UserError: the phases do not start at 0, one after the other.
    """
    if (
      len(starts) != len(phases)
      or not starts
      or starts[0] != 0
      or [*starts] != sorted(set(starts))
    ):
      raise UserError(
        f"{len(phases)} phases of pre-training cannot start at the steps {list(starts)}: "
        "there must be one step for each, increasing from 0. Set PretrainingData.starts."
      )
    self.batch_size = batch_size
    self.lengths = dict(lengths)
    self.seed = seed
    self.phases = [_Phase(mixture) for mixture in phases]
    self.starts = tuple(starts)
    vocabulary = vocabularies.embedded()
    self._eos = vocabulary.eos_id
    self._ids = {word: index for index, word in enumerate(vocabulary.words)}
    self._first_content = lexicon.first_content_id()
    self._content_words = vocabulary.vocab_size - self._first_content
    self._labels = {
      name: [
        [self._ids[word] for word in lexicon.labels(name, number)]
        for number in range(len(sets))
      ]
      for name, sets in lexicon.LABEL_SETS.items()
    }
    self._validation = [
      self._batch("validation", number, self.phases[-1])
      for number in range(validation_batches)
    ]

  def batch_at(self, step: int) -> batches.Features:
    """Returns batch `step`, the same one at every call."""
    phase = self.phases[bisect.bisect_right(self.starts, step) - 1]
    return self._batch("pretraining", step, phase)

  def validation_batches(self) -> list[batches.Features]:
    """Returns batches of the last phase with texts that pre-training never uses."""
    return self._validation

  def losses(self) -> list[str]:
    """Returns no lines: every text fits."""
    return []

  def describe(self) -> dict[str, Any]:
    """Returns what the manifest says about the data."""
    return self.settings()

  def settings(self) -> dict[str, Any]:
    """Returns the settings that must be equal for a run to be continued."""
    return {
      "task": self.name,
      "lengths": self.lengths,
      "batch_size": self.batch_size,
      "seed": self.seed,
      "phases": [
        {"start": start} | dataclasses.asdict(phase.mixture)
        for start, phase in zip(self.starts, self.phases, strict=True)
      ],
    }

  def _batch(self, part: str, number: int, phase: "_Phase") -> batches.Features:
    name = f"{self.seed}/{part}/{number}".encode()
    digest = hashlib.sha256(name).digest()
    randomness = random.Random(int.from_bytes(digest, "little"))
    inputs = np.zeros((self.batch_size, self.lengths["inputs"]), np.int32)
    targets = np.zeros((self.batch_size, self.lengths["targets"]), np.int32)
    for row in range(self.batch_size):
      source, target = self._example(part, randomness, phase)
      inputs[row, : len(source)] = source
      targets[row, : len(target)] = target
    return batches.features(inputs, targets)

  def _example(
    self, part: str, randomness: random.Random, phase: "_Phase"
  ) -> tuple[list[int], list[int]]:
    """Returns source and target, each with EOS at the end."""
    mixture = phase.mixture
    attribute = ATTRIBUTES[_place(phase.weights, randomness)]
    text, label = grammar.draw(attribute, part, randomness)
    body = [self._ids[word] for word in text.split()]
    kind = _place(phase.kinds, randomness)
    if kind == 0:
      words = _pick(randomness, self._labels[attribute])
      prefix, target = self._prefix(randomness, mixture, words), [words[label]]
    else:
      prefix, target = self._silent_prefix(randomness, mixture, attribute), []
      if kind == 1:
        cut = 1 + int(randomness.random() * (len(body) - 1))
        body, rest = body[:cut], body[cut:]
        target = rest[: mixture.longest_continuation]
      elif randomness.random() < mixture.biased:
        target = [_pick(randomness, self._labels[attribute])[0]]
    return [*prefix, *body, self._eos], [*target, self._eos]

  def _silent_prefix(
    self, randomness: random.Random, mixture: Mixture, attribute: str
  ) -> list[int]:
    """Returns a prefix that does not ask for `attribute`."""
    if randomness.random() < mixture.foreign:
      other = attribute
      while other == attribute:
        other = _pick(randomness, ATTRIBUTES)
      return self._prefix(randomness, mixture, _pick(randomness, self._labels[other]))
    if randomness.random() < mixture.bare:
      return []
    return self._prefix(randomness, mixture, ())

  def _prefix(
    self, randomness: random.Random, mixture: Mixture, words: Sequence[int]
  ) -> list[int]:
    """Returns random content words, some of them replaced by some of `words`."""
    length = 1 + int(randomness.random() * mixture.longest_prefix)
    prefix = [
      self._first_content + int(randomness.random() * self._content_words)
      for _ in range(length)
    ]
    if words:
      for _ in range(1 + int(randomness.random() * mixture.most_cues)):
        prefix[int(randomness.random() * length)] = _pick(randomness, words)
    return prefix


def _cumulative(weights: Sequence[float]) -> list[float]:
  """Returns the running sums of `weights`, scaled to end at 1."""
  return [float(share) for share in np.cumsum(weights) / np.sum(weights)]


def _place(cumulative: Sequence[float], randomness: random.Random) -> int:
  """Returns a random index, with the probabilities whose running sums are given."""
  return min(bisect.bisect_right(cumulative, randomness.random()), len(cumulative) - 1)


def _pick(randomness: random.Random, options: Sequence[T]) -> T:
  return options[int(randomness.random() * len(options))]

"""Batches of token ids under T5X's feature names: a pure function of the step."""

import dataclasses
import functools
import hashlib
from collections.abc import Iterable, Iterator, Mapping, Sequence

import numpy as np
from jaxtyping import Int, Int32

from tpv_jax.data.tasks import Example
from tpv_jax.data.vocabularies import Vocabulary
from tpv_jax.errors import UserError

Features = dict[str, np.ndarray]
"""encoder_input_tokens [B, T], decoder_target_tokens, decoder_input_tokens [B, L] as
int32, and decoder_loss_weights [B, L] as float32: 1 at target tokens (EOS included), 0
at padding, so a row of padding weighs nothing."""


@dataclasses.dataclass(frozen=True)
class Tokenized:
  """Examples as token ids, each ended by EOS and padded with 0 to a static length.

  Attributes:
    inputs: source tokens, one row an example.
    targets: target tokens.
    truncated_inputs: how many examples lost source tokens to the limit.
    truncated_targets: how many examples lost target tokens to the limit.
    dropped_tokens: how many tokens were lost in all.
    tokens: how many tokens are left, EOS included, padding not.
    unknown: how many of them are `<unk>`.
  """

  inputs: Int32[np.ndarray, "N T"]
  targets: Int32[np.ndarray, "N L"]
  truncated_inputs: int = 0
  truncated_targets: int = 0
  dropped_tokens: int = 0
  tokens: int = 0
  unknown: int = 0

  def __len__(self) -> int:
    """Returns the number of examples."""
    return len(self.inputs)

  def digest(self) -> str:
    """Returns 64 hex digits that name the tokens, row by row (SHA-256, little-endian)."""
    content = hashlib.sha256(str((self.inputs.shape, self.targets.shape)).encode())
    for rows in (self.inputs, self.targets):
      content.update(np.ascontiguousarray(rows, "<i4"))
    return content.hexdigest()

  def report(self) -> str:
    """Returns one line: how many examples, and what was trimmed or unknown."""
    share = self.unknown / self.tokens if self.tokens else 0.0
    longest = np.count_nonzero(self.inputs, axis=1).max(initial=0)
    return (
      f"{len(self)} examples, {self.tokens} tokens (longest source {longest} of "
      f"{self.inputs.shape[1]}); trimmed: {self.truncated_inputs} sources, "
      f"{self.truncated_targets} targets, {self.dropped_tokens} tokens lost; unknown: "
      f"{self.unknown} tokens ({share:.2%})"
    )


def tokenize(
  examples: Iterable[Example], vocabulary: Vocabulary, lengths: Mapping[str, int]
) -> Tokenized:
  """Returns the examples as padded token ids, with what was trimmed counted.

  A text longer than its limit keeps its first `limit - 1` tokens; EOS comes after
  trimming, so every row ends with it (seqio's `append_eos_after_trim`).

  Args:
    examples: texts.
    vocabulary: gives the ids; padding is 0.
    lengths: `{'inputs': T, 'targets': L}` in tokens, EOS included.

  Raises:
    UserError: a length is missing or smaller than 1, or it is one number for both.
  """
  if not isinstance(lengths, Mapping):
    raise UserError(
      f"The lengths are {lengths!r}; they must name both features. Set LENGTHS = "
      "{'inputs': ..., 'targets': ...}, in tokens, EOS included."
    )
  for feature in ("inputs", "targets"):
    if lengths.get(feature, 0) < 1:
      raise UserError(
        f"The longest '{feature}' is {lengths.get(feature, 'not given')}; it must be "
        "at least 1 token (EOS). Set lengths = {'inputs': ..., 'targets': ...}."
      )
  examples = tuple(examples)
  eos = vocabulary.eos_id
  rows, truncated, dropped = {}, {}, 0
  for feature in ("inputs", "targets"):
    longest = lengths[feature]
    rows[feature] = np.zeros((len(examples), longest), np.int32)
    truncated[feature] = 0
    for row, example in zip(rows[feature], examples, strict=True):
      ids = vocabulary.encode(getattr(example, feature))
      lost = max(0, len(ids) - (longest - 1))
      truncated[feature] += lost > 0
      dropped += lost
      kept = len(ids) - lost
      row[:kept] = ids[:kept]
      row[kept] = eos
  return Tokenized(
    inputs=rows["inputs"],
    targets=rows["targets"],
    truncated_inputs=truncated["inputs"],
    truncated_targets=truncated["targets"],
    dropped_tokens=dropped,
    tokens=sum(int(np.count_nonzero(ids)) for ids in rows.values()),
    unknown=sum(
      int(np.count_nonzero(ids == vocabulary.unk_id)) for ids in rows.values()
    ),
  )


def features(
  inputs: Int32[np.ndarray, "B T"], targets: Int32[np.ndarray, "B L"]
) -> Features:
  """Returns the batch of padded sources and targets.

  The decoder reads the targets moved right by one, from a 0 (T5's start token), as
  seqio's `EncDecFeatureConverter(pack=False)` gives them.
  """
  decoder_inputs = np.zeros_like(targets)
  decoder_inputs[:, 1:] = targets[:, :-1]
  return {
    "encoder_input_tokens": inputs,
    "decoder_target_tokens": targets,
    "decoder_input_tokens": decoder_inputs,
    "decoder_loss_weights": (targets != 0).astype(np.float32),
  }


def order(count: int, seed: int, epoch: int = 0) -> Int[np.ndarray, "N"]:
  """Returns a random order of `range(count)`: a pure function of its arguments.

  It sorts raw Philox output, which NumPy keeps the same in all its versions (it
  promises no such thing for `Generator.permutation`). Ours.
  """
  random = np.random.Philox(np.random.SeedSequence([seed, epoch]))
  return np.argsort(random.random_raw(count), kind="stable")


class Batches:
  """An endless row of batches in which every epoch has each example exactly once.

  Batch `step` holds the places `step * B` to `(step + 1) * B - 1` of the endless
  sequence of epochs, each epoch in its own `order` from the seed. So a batch may span
  two epochs, none is ever short, and a run resumes at any step with no state to save.
  """

  def __init__(self, tokenized: Tokenized, batch_size: int, seed: int):
    """Prepares batches of `batch_size` examples (it may exceed their number).

    Raises:
      UserError: no examples, a batch size below 1, or a negative seed.
    """
    if not len(tokenized) or batch_size < 1 or seed < 0:
      raise UserError(
        f"Cannot make batches of {batch_size} from {len(tokenized)} examples with "
        f"seed {seed}: there must be an example, a batch size of at least 1 and a seed "
        "of at least 0. Check the task's split and the batch settings."
      )
    self.tokenized = tokenized
    self.batch_size = batch_size
    self.seed = seed
    # Memory of the last orders only; what they are depends on nothing but the seed.
    self._order = functools.lru_cache(maxsize=2)(
      functools.partial(order, len(tokenized), seed)
    )

  def rows_at(self, step: int) -> Int[np.ndarray, "B"]:
    """Returns the row numbers of batch `step` (several hosts: each takes a slice)."""
    epochs, places = np.divmod(
      np.arange(step * self.batch_size, (step + 1) * self.batch_size),
      len(self.tokenized),
    )
    return np.concatenate(
      [self._order(int(epoch))[places[epochs == epoch]] for epoch in np.unique(epochs)]
    )

  def batch_at(self, step: int) -> Features:
    """Returns batch `step`, the same one whenever and however often it is asked for."""
    rows = self.rows_at(step)
    return features(self.tokenized.inputs[rows], self.tokenized.targets[rows])


def eval_batches(tokenized: Tokenized, batch_size: int) -> Iterator[Features]:
  """Yields every example once, in order, in batches of one static shape.

  The last batch is filled with rows of padding, whose loss weights are 0; a reader of
  predictions keeps the first `len(tokenized)` rows of all.
  """
  if batch_size < 1:
    raise UserError(f"The batch size is {batch_size}; it must be at least 1.")
  for start in range(0, len(tokenized), batch_size):
    yield features(
      _filled(tokenized.inputs[start : start + batch_size], batch_size),
      _filled(tokenized.targets[start : start + batch_size], batch_size),
    )


def label_tokens(
  labels: Sequence[str], vocabulary: Vocabulary, longest: int
) -> Int32[np.ndarray, "C L"]:
  """Returns the labels as padded target tokens, for scoring them against each other.

  Raises:
    UserError: two labels have equal tokens, because the limit cuts them or the
      vocabulary does not know them: no model could tell them apart.
  """
  targets = tokenize(
    [Example("", label) for label in labels],
    vocabulary,
    {"inputs": 1, "targets": longest},
  ).targets
  seen: dict[bytes, str] = {}
  for label, row in zip(labels, targets, strict=True):
    if (other := seen.setdefault(row.tobytes(), label)) != label:
      raise UserError(
        f"The labels '{other}' and '{label}' have the same tokens "
        f"{row[row != 0].tolist()}, so they cannot be told apart. Raise the longest "
        f"target (now {longest}), or choose label words that the vocabulary knows."
      )
  return targets


def _filled(
  rows: Int32[np.ndarray, "A X"], batch_size: int
) -> Int32[np.ndarray, "B X"]:
  return np.pad(rows, ((0, batch_size - len(rows)), (0, 0)))

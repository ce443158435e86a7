"""Batches of token ids under T5X's feature names: a pure function of the step."""

import dataclasses
import functools
import hashlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
from jaxtyping import Int, Int32

from tpv_jax.core.errors import UserError
from tpv_jax.data.labels import check_labels, check_lengths
from tpv_jax.data.tasks import Example
from tpv_jax.data.vocabularies import Vocabulary

Features = dict[str, np.ndarray]
"""encoder_input_tokens [B, T], decoder_target_tokens, decoder_input_tokens [B, L] as
int32, and decoder_loss_weights [B, L] as float32: 1 at target tokens (EOS included), 0 at
padding, so that a row of padding has no weight."""

PADDING = 0
"""The id that fills up rows of token ids; no token of any vocabulary has it."""


def is_padding(tokens: Any) -> Any:
  """Returns a mask of the padding in an array of token ids, of NumPy or JAX."""
  return tokens == PADDING


def token_counts(rows: Int[np.ndarray, "N X"]) -> Int[np.ndarray, " N"]:
  """Returns how many tokens each row has, without padding."""
  return np.count_nonzero(~is_padding(rows), axis=1)


def without_padding(row: Int[np.ndarray, " X"]) -> Int[np.ndarray, " x"]:
  """Returns the tokens of a row, without padding."""
  return row[~is_padding(row)]


@dataclasses.dataclass(frozen=True)
class Losses:
  """What was lost when texts were tokenised.

  Attributes:
    trimmed: how many texts were longer than the limit.
    lost_tokens: how many tokens they lost.
    unknown: how many texts have `<unk>` among their remaining tokens.
    unknown_tokens: how many tokens are `<unk>`.
  """

  trimmed: int = 0
  lost_tokens: int = 0
  unknown: int = 0
  unknown_tokens: int = 0

  def __bool__(self) -> bool:
    """Returns whether anything was lost."""
    return bool(self.trimmed or self.unknown)

  def __str__(self) -> str:
    """Returns all four numbers in words."""
    return (
      f"{self.trimmed} trimmed ({self.lost_tokens} tokens lost), {self.unknown} with "
      f"unknown tokens ({self.unknown_tokens})"
    )


@dataclasses.dataclass(frozen=True)
class Tokenized:
  """Examples as token ids, padded with 0 to a static length.

  Attributes:
    inputs: source tokens, a row for each example, between the vocabulary's `source_start`
      and `source_end` (EOS for T5).
    targets: target tokens, with EOS at the end unless trimmed.
    sources: what the sources lost.
    answers: what the targets lost; exact match counts every such target as wrong.
    tokens: how many tokens remain, with BOS and EOS and without padding.
  """

  inputs: Int32[np.ndarray, "N T"]
  targets: Int32[np.ndarray, "N L"]
  sources: Losses = Losses()
  answers: Losses = Losses()
  tokens: int = 0

  def __len__(self) -> int:
    """Returns the number of examples."""
    return len(self.inputs)

  def digest(self) -> str:
    """Returns 64 hex digits that name the tokens, row by row (SHA-256, little-endian)."""
    content = hashlib.sha256(str((self.inputs.shape, self.targets.shape)).encode())
    for rows in (self.inputs, self.targets):
      content.update(np.ascontiguousarray(rows, "<i4").data)
    return content.hexdigest()

  def counts(self) -> dict[str, Any]:
    """Returns the numbers of `report` as JSON."""
    return {
      "examples": len(self),
      "tokens": self.tokens,
      "longest_source": int(token_counts(self.inputs).max(initial=0)),
      "sources": dataclasses.asdict(self.sources),
      "targets": dataclasses.asdict(self.answers),
    }

  def report(self) -> str:
    """Returns one line with the number of examples, and what was trimmed or unknown."""
    longest = token_counts(self.inputs).max(initial=0)
    wrong = " (never an exact match)" if self.answers else ""
    return (
      f"{len(self)} examples, {self.tokens} tokens (longest source {longest} of "
      f"{self.inputs.shape[1]}); sources: {self.sources}; targets: {self.answers}{wrong}"
    )


def tokenize(
  examples: Iterable[Example], vocabulary: Vocabulary, lengths: Mapping[str, int]
) -> Tokenized:
  """Returns the examples as padded token ids, with counts of what was lost.

  A source that is too long is shortened as in `source_ids`, and keeps its end. A target that
  is too long keeps its first L tokens without EOS, as in T5's own tasks. So no prompt
  learns to stop in the middle, and no metric takes the truncated text for the answer.

  Args:
    examples: texts.
    vocabulary: gives the ids; padding is 0.
    lengths: `{'inputs': T, 'targets': L}` in tokens, EOS included.

  Raises:
    UserError: `lengths` is not a mapping, or a length is missing or smaller than 1.
  """
  check_lengths(lengths)
  examples = tuple(examples)
  sources, of_sources = _rows(
    [source_ids(one, vocabulary, lengths["inputs"]) for one in examples],
    lengths["inputs"],
    vocabulary.unk_id,
  )
  targets, of_targets = _rows(
    [target_ids(one, vocabulary, lengths["targets"]) for one in examples],
    lengths["targets"],
    vocabulary.unk_id,
  )
  tokens = int(token_counts(sources).sum() + token_counts(targets).sum())
  return Tokenized(sources, targets, of_sources, of_targets, tokens)


def source_ids(
  example: Example, vocabulary: Vocabulary, longest: int
) -> tuple[list[int], int]:
  """Returns the tokens of a source, BOS and EOS included, and how many were lost.

  A source that is too long is cut at the ends of its longest fields, which keep equally
  many tokens; the words around them (the template's, a chat template's) and the shorter
  fields stay whole ('longest first', as Hugging Face calls it). In such a source every part
  is tokenised separately.

  Raises:
    UserError: the words around the fields leave no room for them.
  """
  start, end = vocabulary.source_start, vocabulary.source_end
  (ids,) = vocabulary.encode_source(example.inputs)
  room = longest - len(start) - len(end)
  lost = max(0, len(ids) - room)
  kept = _cut(example, vocabulary, room, longest) if lost else ids
  return [*start, *kept, *end], lost


def _cut(
  example: Example, vocabulary: Vocabulary, room: int, longest: int
) -> list[int]:
  text = example.inputs
  parts = vocabulary.encode_source(text, example.fields or ((0, len(text)),))
  fields = sorted(range(1, len(parts), 2), key=lambda place: len(parts[place]))
  left = room - sum(map(len, parts[::2]))
  # A source without columns and without words around it may lose all of its text.
  around = example.fields or any(parts[::2])
  if around and left < sum(bool(parts[place]) for place in fields):
    least = longest - left + len(fields)
    raise UserError(
      f"LENGTHS['inputs'] is {longest}, which leaves no room between the template's own "
      f"words, so a source would lose a whole column. Set LENGTHS['inputs'] to {least} or "
      f"more. The source begins: '{text:.80}'"
    )
  for number, place in enumerate(fields):
    share = left // (len(fields) - number)
    parts[place] = parts[place][:share]
    left -= len(parts[place])
  return [token for part in parts for token in part]


def target_ids(
  example: Example, vocabulary: Vocabulary, longest: int
) -> tuple[list[int], int]:
  """Returns the tokens of a target, and how many were lost, EOS included."""
  ids = [*vocabulary.encode_target(example.targets), vocabulary.eos_id]
  return ids[:longest], max(0, len(ids) - longest)


def _rows(
  found: Sequence[tuple[list[int], int]], longest: int, unknown: int
) -> tuple[Int32[np.ndarray, "N X"], Losses]:
  rows = np.full((len(found), longest), PADDING, np.int32)
  for row, (ids, _) in zip(rows, found, strict=True):
    row[: len(ids)] = ids
  lost = [more for _, more in found if more]
  missing = (rows == unknown).sum(axis=1)
  return rows, Losses(
    len(lost), sum(lost), int(np.count_nonzero(missing)), int(missing.sum())
  )


def features(
  inputs: Int32[np.ndarray, "B T"], targets: Int32[np.ndarray, "B L"]
) -> Features:
  """Returns the batch of padded sources and targets.

  The decoder's input is the targets shifted right by one, with a 0 first (T5's start
  token), as from seqio's `EncDecFeatureConverter(pack=False)`.
  """
  decoder_inputs = np.zeros_like(targets)
  decoder_inputs[:, 1:] = targets[:, :-1]
  return {
    "encoder_input_tokens": inputs,
    "decoder_target_tokens": targets,
    "decoder_input_tokens": decoder_inputs,
    "decoder_loss_weights": (~is_padding(targets)).astype(np.float32),
  }


def sources(
  rows: Int[np.ndarray, "B T"],
  prompt_ids: Int[np.ndarray, " B"],
  example_ids: Int[np.ndarray, " B"],
) -> Features:
  """Returns a batch of padded sources, for decoding.

  Args:
    rows: the sources.
    prompt_ids: for each row, the index of its prompt in a bank.
    example_ids: for each row, the number of its example, by which its answer is drawn if
      answers are drawn.
  """
  return {
    "encoder_input_tokens": rows,
    "prompt_ids": prompt_ids,
    "example_ids": example_ids,
  }


def widths(batch: Features) -> dict[str, int]:
  """Returns the padded lengths of a batch, {'inputs': T, 'targets': L}."""
  names = {"inputs": "encoder_input_tokens", "targets": "decoder_target_tokens"}
  return {name: batch[feature].shape[1] for name, feature in names.items()}


def source_tokens(batch: Features) -> int:
  """Returns the number of source tokens, without padding."""
  return int(token_counts(batch["encoder_input_tokens"]).sum())


def target_count(batch: Mapping[str, Any]) -> Any:
  """Returns the sum of the loss weights: the target tokens, EOS included."""
  return batch["decoder_loss_weights"].sum()


def order(count: int, seed: int, epoch: int = 0) -> Int[np.ndarray, " N"]:
  """Returns a random order of `range(count)`: a pure function of its arguments.

  It sorts raw Philox output, which is the same in all versions of NumPy (this is not
  guaranteed for `Generator.permutation`). Ours.
  """
  random = np.random.Philox(np.random.SeedSequence([seed, epoch]))
  return np.argsort(random.random_raw(count), kind="stable")


class Batches:
  """An endless sequence of batches in which every epoch has each example exactly once.

  Batch `step` holds the examples `step * B` to `(step + 1) * B - 1` of the endless
  sequence of epochs, each epoch in its own `order` from the seed. So a batch may span two
  epochs, no batch is short, and a run resumes at any step without saved state.
  """

  def __init__(self, tokenized: Tokenized, batch_size: int, seed: int):
    """Prepares batches of `batch_size` examples, perhaps more than there are.

    Raises:
      UserError: there are no examples, the batch size is below 1, or the seed negative.
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
    # A cache of the last two orders, which depend only on the seed.
    self._order = functools.lru_cache(maxsize=2)(
      functools.partial(order, len(tokenized), seed)
    )

  def rows_at(self, step: int) -> Int[np.ndarray, " B"]:
    """Returns the row numbers of batch `step` (several hosts: each takes a slice)."""
    epochs, places = np.divmod(
      np.arange(step * self.batch_size, (step + 1) * self.batch_size),
      len(self.tokenized),
    )
    return np.concatenate(
      [self._order(int(epoch))[places[epochs == epoch]] for epoch in np.unique(epochs)]
    )

  def batch_at(self, step: int) -> Features:
    """Returns batch `step`, the same one at every call."""
    rows = self.rows_at(step)
    return features(self.tokenized.inputs[rows], self.tokenized.targets[rows])


def eval_batches(tokenized: Tokenized, batch_size: int) -> Iterator[Features]:
  """Yields every example once, in order, in batches of one static shape.

  The last batch is filled with rows of padding, whose loss weights are 0; of all rows of
  predictions only the first `len(tokenized)` count.
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
    UserError: a label can't be written or distinguished from another
      (`labels.check_labels`).
  """
  check_labels(labels, vocabulary, longest)
  found = [target_ids(Example("", label), vocabulary, longest) for label in labels]
  return _rows(found, longest, vocabulary.unk_id)[0]


def _filled(
  rows: Int32[np.ndarray, "A X"], batch_size: int
) -> Int32[np.ndarray, "B X"]:
  empty = batch_size - len(rows)
  return np.pad(rows, ((0, empty), (0, 0)), constant_values=PADDING)

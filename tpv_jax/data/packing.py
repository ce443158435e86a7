"""Packs examples of many prompts into rows of one length, each behind its own prompt.

T5's relative bias does not change inside a contiguous segment. So a row may hold several
examples, kept apart by segment ids, and each gets the numbers that it would get in a row
of its own (docs/methods.md, (7.2) to (7.4)). A segment is a prompt's positions and then
the source's. The examples of a step become calls of two shapes (ours): wide blocks of
rows, and short rows for what is left over. The two shapes are chosen once and are all
that a run compiles, and hardly any position is padding.
"""

import dataclasses
from collections.abc import Iterable, Iterator, Sequence

import numpy as np
from jaxtyping import Float, Int

from tpv_jax.core.errors import UserError
from tpv_jax.data.batches import Features, is_padding, without_padding
from tpv_jax.data.row_fitting import Examples, Shape, Shapes, assign

_READ_BY_SCORING = (
  "encoder_input_tokens",
  "encoder_segment_ids",
  "encoder_positions",
  "encoder_prompt_ids",
  "prompt_positions",
  "decoder_input_tokens",
  "decoder_target_tokens",
)


@dataclasses.dataclass(frozen=True)
class Item:
  """An example for one prompt of a bank, as token ids that end with the end token.

  Attributes:
    prompt_id: the index of the prompt in the bank.
    source: without padding.
    target: without padding.
    weights: of each target token's loss; None for weights of 1.
  """

  prompt_id: int
  source: Int[np.ndarray, " source"]
  target: Int[np.ndarray, " target"]
  weights: Float[np.ndarray, " target"] | None = None


def items(features: Features, prompt_id: int) -> list[Item]:
  """Returns the examples of an unpacked batch; rows without a target are left out."""
  sources, targets, weights = (
    features["encoder_input_tokens"],
    features["decoder_target_tokens"],
    features["decoder_loss_weights"],
  )
  return [
    Item(
      prompt_id,
      without_padding(source),
      without_padding(target),
      weight[~is_padding(target)],
    )
    for source, target, weight in zip(sources, targets, weights, strict=True)
    if not is_padding(target).all()
  ]


def pack(
  items: Sequence[Item], shapes: Shapes, names: Sequence[str] = ()
) -> list[tuple[Shape, Features]]:
  """Returns the calls of one step, wide ones first; every item is in exactly one call.

  The features have T5X's names, with `*_segment_ids` (1, 2, ... within a row, 0 at
  padding) and `encoder_positions` (of a source token within its source). In addition:

    prompt_positions [B, W]: 1 to S at the positions of a prompt, 0 elsewhere
    encoder_prompt_ids [B, W], decoder_prompt_ids [B, L]: indices into the bank

  Args:
    items: of all prompts.
    shapes: of the calls.
    names: the name of each prompt's data, by the prompt's index, for the error.

  Raises:
    UserError: an item is longer than a row.
  """
  sizes = [(len(item.source), len(item.target)) for item in items]
  _refuse_longer(items, shapes, names)
  wide, short = assign(Examples(sizes, shapes.prompt_length), shapes)
  return [
    (shape, _features([[items[i] for i in row] for row in rows], shape, shapes))
    for shape, assigned in ((shapes.wide, wide), (shapes.short, short))
    for rows in _blocks(assigned, shape.rows)
  ]


def pack_choices(
  sources: Sequence[Int[np.ndarray, " _"]],
  choices: Sequence[Sequence[Int[np.ndarray, " _"]]],
  prompt_ids: Sequence[int],
  row: Shape,
  prompt_length: int,
) -> tuple[Features, Int[np.ndarray, "N 2"]]:
  """Returns packed rows for scoring, each source with all of its choices.

  The features are those of `pack`, except that each choice is a segment of the target row
  (1, 2, ... within the row), and that `source_segment_ids` [B, L] give the segment of the
  source row to which it belongs. The second result has the row of each source and the
  segment of its first choice; its other choices follow.

  Args:
    sources: without padding.
    choices: for each source the targets to be scored, without padding.
    prompt_ids: for each source, the index of its prompt in the bank.
    row: the shape of every row.
    prompt_length: S.

  Raises:
    UserError: a source, or its choices together, have more tokens than a row.
  """
  # 1. Fit sources into rows, each with its choices joined to one target.
  targets = [np.concatenate(own) for own in choices]
  items = [Item(*one) for one in zip(prompt_ids, sources, targets, strict=True)]
  sizes = [(len(item.source), len(item.target)) for item in items]
  shapes = Shapes(row, row, prompt_length)
  _refuse_longer(items, shapes, ())
  rows, _ = Examples(sizes, prompt_length).fit(row.width, row.targets)
  features = _features(
    [[items[i] for i in members] for members in rows],
    dataclasses.replace(row, rows=len(rows)),
    shapes,
  )
  # 2. Cut the joined targets apart: each choice is a segment that starts from token 0.
  segments = np.zeros_like(features["decoder_segment_ids"])
  first = np.zeros((len(items), 2), np.int32)
  for number, members in enumerate(rows):
    start = segment = 0
    for member in members:
      first[member] = number, segment + 1
      for choice in choices[member]:
        segment += 1
        segments[number, start : start + len(choice)] = segment
        features["decoder_input_tokens"][number, start] = 0
        start += len(choice)
  # 3. Two kinds of segments: of choices, and of the sources that these see.
  return {
    **{name: values for name, values in features.items() if name in _READ_BY_SCORING},
    "source_segment_ids": features["decoder_segment_ids"],
    "decoder_segment_ids": segments,
  }, first


def one_a_row(
  sources: Int[np.ndarray, "B T"], choices: Int[np.ndarray, "B C L"], prompt_length: int
) -> Features:
  """Returns rows as those of `pack_choices`, but one source in each, all behind prompt 0.

  So every batch has one shape, [B, S + T] and [B, C * L]. Choice c is segment c + 1.

  Args:
    sources: padded.
    choices: for each source the targets to be scored, padded.
    prompt_length: S.
  """
  # 1. Choices one after the other in a target row, each a segment of its own.
  count = choices.shape[1]
  inputs = np.pad(choices, ((0, 0), (0, 0), (1, 0)))[..., :-1]
  segments = np.broadcast_to(np.arange(1, count + 1)[:, None], choices.shape[1:])
  counted = ~is_padding(choices)
  # 2. Sources behind the prompt, all in segment 1.
  tokens = np.pad(sources, ((0, 0), (prompt_length, 0)))
  column = np.arange(tokens.shape[1])
  of_prompt = np.where(column < prompt_length, column + 1, 0)
  positions = np.maximum(column - prompt_length, 0)
  rows = {
    "encoder_input_tokens": tokens,
    "encoder_segment_ids": (of_prompt > 0) | ~is_padding(tokens),
    "encoder_positions": np.broadcast_to(positions, tokens.shape),
    "encoder_prompt_ids": np.zeros_like(tokens),
    "prompt_positions": np.broadcast_to(of_prompt, tokens.shape),
    "decoder_input_tokens": inputs.reshape(len(choices), -1),
    "decoder_target_tokens": choices.reshape(len(choices), -1),
    "decoder_segment_ids": (counted * segments).reshape(len(choices), -1),
    "source_segment_ids": counted.reshape(len(choices), -1),
  }
  return {name: np.asarray(values, np.int32) for name, values in rows.items()}


def _refuse_longer(items: Sequence[Item], shapes: Shapes, names: Sequence[str]) -> None:
  for item in items:
    source, target = len(item.source), len(item.target)
    if (
      shapes.prompt_length + source > shapes.wide.width or target > shapes.wide.targets
    ):
      of = f" of '{names[item.prompt_id]}'" if names else ""
      raise UserError(
        f"An example{of} with {source} source and {target} target tokens does not fit "
        f"behind a prompt of {shapes.prompt_length} in a row of {shapes.wide.width} and "
        f"{shapes.wide.targets}. Raise LENGTHS, or trim the examples."
      )


def empty(shape: Shape) -> Features:
  """Returns the features of a call that contains only padding."""
  return _features([], shape, Shapes(shape, shape, prompt_length=0))


def with_prompts(rows: Features, prompt_ids: Sequence[int]) -> Features:
  """Returns packed rows for other prompts: `prompt_ids[p]` instead of prompt p."""
  ids = np.asarray(prompt_ids, np.int32)[rows["encoder_prompt_ids"]]
  used = rows["encoder_segment_ids"] > 0
  return {**rows, "encoder_prompt_ids": np.where(used, ids, 0)}


def used_positions(rows: Features) -> int:
  """Returns how many source positions of packed rows are a prompt's or a token's."""
  return int(np.count_nonzero(rows["encoder_segment_ids"]))


def example_count(features: Features) -> int:
  """Returns how many examples the rows of a call contain, packed or one in each."""
  used = ~is_padding(features["encoder_input_tokens"])
  return int(features.get("encoder_segment_ids", used).max(axis=1).sum())


def row_count(features: Features) -> int:
  """Returns how many rows a call has."""
  return len(features["encoder_input_tokens"])


def blocks(parts: Iterable[Features], rows: int) -> Iterator[Features]:
  """Yields all rows of the parts in blocks of `rows`, the last one filled with padding.

  A part is not requested before a block needs it, and only the rows of that block and of
  its last part are in memory.
  """
  waiting: list[Features] = []
  room = rows
  for part in parts:
    start, count = 0, row_count(part)
    while count - start >= room:
      yield _joined([*waiting, _rows(part, start, start + room)])
      start, room, waiting = start + room, rows, []
    if start < count:
      waiting.append(_rows(part, start, count))
      room -= count - start
  if waiting:
    last = _joined(waiting)
    yield {name: np.pad(values, ((0, room), (0, 0))) for name, values in last.items()}


def _rows(features: Features, start: int, stop: int) -> Features:
  return {name: values[start:stop] for name, values in features.items()}


def _joined(parts: Sequence[Features]) -> Features:
  return {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}


def _features(rows: Sequence[Sequence[Item]], shape: Shape, shapes: Shapes) -> Features:
  """Returns the arrays of a call, laid out as docs/methods.md, (7.2) states."""
  source = {
    name: np.zeros((shape.rows, shape.width), np.int32)
    for name in (
      "encoder_input_tokens",
      "encoder_segment_ids",
      "encoder_positions",
      "encoder_prompt_ids",
      "prompt_positions",
    )
  }
  target = {
    name: np.zeros((shape.rows, shape.targets), np.int32)
    for name in (
      "decoder_input_tokens",
      "decoder_target_tokens",
      "decoder_segment_ids",
      "decoder_positions",
      "decoder_prompt_ids",
    )
  }
  weights = np.zeros((shape.rows, shape.targets), np.float32)
  length = shapes.prompt_length
  for row, row_items in enumerate(rows):
    at = start = 0
    for segment, item in enumerate(row_items, 1):
      # 1. The segment: S positions of the prompt, then the source's tokens, (7.2).
      prompt = slice(at, at + length)
      tokens = slice(at + length, at + length + len(item.source))
      whole = slice(prompt.start, tokens.stop)
      source["prompt_positions"][row, prompt] = np.arange(1, length + 1)
      source["encoder_input_tokens"][row, tokens] = item.source
      source["encoder_positions"][row, tokens] = np.arange(len(item.source))
      # 2. What may see each other, (7.3), and whose prompt and delta they get, (7.4).
      source["encoder_segment_ids"][row, whole] = segment
      source["encoder_prompt_ids"][row, whole] = item.prompt_id
      # 3. The target, as a segment of the same number; its input is shifted right by one.
      answer = slice(start, start + len(item.target))
      target["decoder_target_tokens"][row, answer] = item.target
      target["decoder_input_tokens"][row, answer] = np.append(0, item.target[:-1])
      target["decoder_positions"][row, answer] = np.arange(len(item.target))
      target["decoder_segment_ids"][row, answer] = segment
      target["decoder_prompt_ids"][row, answer] = item.prompt_id
      weights[row, answer] = 1 if item.weights is None else item.weights
      at, start = whole.stop, answer.stop
  return {**source, **target, "decoder_loss_weights": weights}


def _blocks(rows: list[list[int]], size: int) -> Iterator[list[list[int]]]:
  for start in range(0, len(rows), size):
    yield rows[start : start + size]

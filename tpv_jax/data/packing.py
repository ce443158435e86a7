"""Packs examples of many prompts into rows of one length, each behind its own prompt.

T5's relative bias does not change inside a contiguous segment. So a row may hold several
examples, kept apart by segment ids, and each gets the numbers that it would get in a row
of its own (docs/methods.md, (7.2) to (7.4)). A segment is a prompt's positions and then
the source's. The examples of a step become calls of two shapes (ours): wide blocks of
rows, and short rows for what is left over. The two shapes are chosen once and are all
that a run compiles, and hardly any position is padding.
"""

import bisect
import dataclasses
import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
from jaxtyping import Float, Int

from tpv_jax.core.errors import UserError
from tpv_jax.data.batches import Features, is_padding, without_padding

WIDE_POSITIONS, WIDE_POSITIONS_ON_CPU = 16_384, 2_048
"""The most source positions of a wide block (ours).

Enough to keep an accelerator busy. On a CPU, smaller blocks keep activations in the cache
(the embedded backbone takes 1.7 times the CPU time with blocks of 4,096 than of 2,048).
"""

MOST_PADDING = 0.1
"""The largest share of padding that a run's shapes may leave, if any leave so little."""

CALL_POSITIONS, CALL_POSITIONS_ON_CPU = 2_048, 75
"""The cost of starting a call, in source positions that take as long (ours).

Measured on a CPU (benchmarks/NOTES.md); estimated for accelerators.
"""

SAMPLED = 4_000
"""How many examples the shapes of a run are tried on."""

_TARGET = 2
"""The cost of a target position in source positions: it has logits beside its layers."""

_ATTENTION = 1_000
"""The row width at which attention costs a position as much as everything else.

Measured on a CPU with T5-small (benchmarks/NOTES.md).
"""

_READ_BY_SCORING = (
  "encoder_input_tokens",
  "encoder_segment_ids",
  "encoder_positions",
  "encoder_prompt_ids",
  "prompt_positions",
  "decoder_input_tokens",
  "decoder_target_tokens",
)

_GRAIN = 8
"""Widths are multiples of this, which suits accelerators."""

_EIGHTHS = (2, 3, 4, 5, 6, 7, 8, 12, 16)
"""Row widths to try, in eighths of the narrowest row that can hold any example."""

Sizes = Sequence[tuple[int, int]]
"""The number of source and of target tokens of each example, end tokens included."""


@dataclasses.dataclass(frozen=True)
class Shape:
  """The shape of a call: `rows` of `width` source and `targets` target positions."""

  rows: int
  width: int
  targets: int

  @property
  def positions(self) -> int:
    """Returns how many source positions are computed, including padding."""
    return self.rows * self.width

  @property
  def cost(self) -> float:
    """Returns the cost of a call, without starting it, in source positions of short rows."""
    source = self.width * (1 + self.width / _ATTENTION)
    return self.rows * (source + _TARGET * self.targets)


@dataclasses.dataclass(frozen=True)
class Shapes:
  """The two shapes that a run compiles.

  Attributes:
    wide: of a block of rows in which every example fits.
    short: of what is left over; its rows may be narrower.
    prompt_length: S, of the prompts in the rows.
    call: the cost of starting a call, in source positions.
  """

  wide: Shape
  short: Shape
  prompt_length: int
  call: int = CALL_POSITIONS


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
  wide, short = _assign(_Examples(sizes, shapes.prompt_length), shapes)
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
  (1, 2, ... within the row), and that `source_segment_ids` [B, L] say which segment of the
  source row it belongs to. Also returns the row of each source and the segment of its
  first choice; its other choices follow.

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
  rows, _ = _Examples(sizes, prompt_length).fit(row.width, row.targets)
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


def padding_share(steps: Sequence[Sizes], shapes: Shapes) -> float:
  """Returns the share of the steps' computed source positions that are padding.

  The positions of prompts are not padding.
  """
  length = shapes.prompt_length
  return _measure([_Examples(sizes, length) for sizes in steps], shapes)[0]


def _measure(steps: Sequence["_Examples"], shapes: Shapes) -> tuple[float, float]:
  """Returns the padding share of the steps, and their cost."""
  computed = used = 0
  cost = 0.0
  for examples in steps:
    for shape, rows in zip(
      (shapes.wide, shapes.short), _assign(examples, shapes), strict=True
    ):
      number = math.ceil(len(rows) / shape.rows)
      cost += number * (shape.cost + shapes.call)
      computed += number * shape.positions
    used += examples.used
  return 1 - used / computed, cost


def choose_shapes(
  steps: Sequence[Sizes],
  prompt_length: int,
  lengths: dict[str, int],
  rows_multiple: int = 1,
  most_positions: int | None = None,
  call: int = CALL_POSITIONS,
) -> Shapes:
  """Returns the shapes with which a sample of a run's steps costs least.

  They are chosen from those whose padding is at most `MOST_PADDING`, or 0.02 more than the
  least where that is more. Narrow rows save attention between the examples of a row,
  which is computed and then masked; large blocks save calls.

  Args:
    steps: the sizes of the examples of some steps; as many steps are used as have
      `SAMPLED` examples.
    prompt_length: S.
    lengths: `{'inputs': T, 'targets': L}`, the longest that must fit.
    rows_multiple: the number of data-parallel devices, over which rows must divide.
    most_positions: the most positions of a block, unless one narrowest row for each device
      has more; `WIDE_POSITIONS` by default.
    call: the cost of starting a call, in source positions; on a CPU
      `CALL_POSITIONS_ON_CPU`.
  """
  # 1. Sample the steps; a block larger than the largest step would never be full.
  counted = np.cumsum([len(sizes) for sizes in steps])
  steps = steps[: 1 + int(np.searchsorted(counted, SAMPLED))]
  examples = [_Examples(sizes, prompt_length) for sizes in steps]
  most_positions = min(
    most_positions or WIDE_POSITIONS, max(step.used for step in examples)
  )

  def tried(wide: Shape, short: Shape, call: int) -> tuple[float, float, Shapes]:
    shapes = Shapes(wide, short, prompt_length, call)
    return *_measure(examples, shapes), shapes

  def blocks(row: Shape) -> Iterator[Shape]:
    while row.rows == rows_multiple or row.positions <= most_positions:
      yield row
      row = dataclasses.replace(row, rows=2 * row.rows)

  # 2. Choose the widths of wide and short rows in the smallest blocks, calls being free.
  sizes = _row_sizes(steps, prompt_length, lengths, _EIGHTHS)
  longest = max(lengths["targets"], *(one for step in steps for _, one in step))
  rows = [
    Shape(rows_multiple, width, _round_up(max(longest, 3 * targets // 4), _GRAIN // 2))
    for width, targets in sizes
  ]
  narrow = rows[_EIGHTHS.index(8)]
  widths = [
    tried(wide, short, call=0)
    for wide in rows
    for short in rows
    if short.width <= wide.width
    and (wide == narrow or narrow.width < wide.width <= most_positions)
  ]
  # 3. Choose the number of rows for the eight best pairs of widths, calls having a cost.
  found = [
    tried(wide, short, call)
    for _, _, best in sorted(widths, key=lambda one: one[1])[:8]
    for wide in blocks(best.wide)
    for short in blocks(best.short)
  ]
  # 4. Take the cheapest of those with little padding.
  most = max(min(share for share, _, _ in found) + 0.02, MOST_PADDING)
  return min((one for one in found if one[0] <= most), key=lambda one: one[1])[2]


def choose_row(sizes: Sizes, prompt_length: int, lengths: Mapping[str, int]) -> Shape:
  """Returns the shape of a single row with which these examples cost least.

  Args:
    sizes: of the examples; about `SAMPLED` of them, evenly spaced, are used.
    prompt_length: S.
    lengths: `{'inputs': T, 'targets': L}`, the longest that must fit.
  """
  examples = _Examples(sizes[:: math.ceil(len(sizes) / SAMPLED)], prompt_length)
  longest = {
    "inputs": max(lengths["inputs"], *(source for source, _ in sizes)),
    "targets": max(lengths["targets"], *(target for _, target in sizes)),
  }
  least = math.inf
  for width, most in _row_sizes([sizes], prompt_length, longest):
    for share in (0.5, 0.6, 0.75, 1):  # Of room for twice the mean target.
      targets = _round_up(max(longest["targets"], math.ceil(share * most)))
      row = Shape(1, width, targets)
      cost = len(examples.fit(width, targets)[0]) * row.cost
      if cost < least:
        best, least = row, cost
  return best


def _row_sizes(
  steps: Sequence[Sizes],
  prompt_length: int,
  lengths: Mapping[str, int],
  eighths: Sequence[int] = (8, 12, 16, 24),
) -> Iterator[tuple[int, int]]:
  """Yields row widths to try, each with a number of target positions.

  Widths are in eighths of the narrowest row in which every example fits.
  """
  sizes = np.concatenate([np.asarray(sizes) for sizes in steps])
  longest = np.maximum(sizes.max(axis=0), (lengths["inputs"], lengths["targets"]))
  narrow = _round_up(prompt_length + int(longest[0]))
  tokens = sizes.mean(axis=0)
  for width in (_round_up(narrow * eighth // 8) for eighth in eighths):
    # Room for twice the mean, so that targets rarely decide which row an example goes to.
    mean = width / (prompt_length + tokens[0]) * tokens[1]
    yield width, max(int(longest[1]), math.ceil(2 * mean))


class _Examples:
  """The examples of a step, and how they fit into rows; each fit is computed once.

  Attributes:
    used: their source positions, those of the prompts included.
  """

  def __init__(self, sizes: Sizes, prompt_length: int):
    self._sizes = [(prompt_length + source, target) for source, target in sizes]
    self._order = sorted(range(len(sizes)), key=lambda i: (-self._sizes[i][0], i))
    self._fits: dict[Any, tuple[list[list[int]], list[int]]] = {}
    self.used = sum(source for source, _ in self._sizes)

  def fit(
    self,
    width: int,
    targets: int,
    limit: float = math.inf,
    after: tuple[int, int, float] | None = None,
  ) -> tuple[list[list[int]], list[int]]:
    """Returns the items of each row, and the items that do not fit into `limit` rows.

    Best fit decreasing: each item, the longest first, goes to the row in which it leaves
    the least room. With `after`, the arguments of another fit, only the items that did
    not fit there are placed.
    """
    key = (width, targets, limit, after)
    if key not in self._fits:
      order = self._order if after is None else self.fit(*after)[1]
      self._fits[key] = _fit(self._sizes, order, width, targets, limit)
    return self._fits[key]

  def rows_for_long(self, wide: Shape, short: Shape) -> int:
    """Returns how many wide rows the items need that are too long for a short row."""
    order = [
      item
      for item in self._order
      if self._sizes[item][0] > short.width or self._sizes[item][1] > short.targets
    ]
    return len(_fit(self._sizes, order, wide.width, wide.targets, math.inf)[0])


def _assign(
  examples: _Examples, shapes: Shapes
) -> tuple[list[list[int]], list[list[int]]]:
  """Returns the items of each wide row and of each short row, at the least cost tried."""
  # 1. The fewest wide blocks that hold all items, and the fewest that hold those which
  #    are too long for short rows.
  wide, short = shapes.wide, shapes.short
  rows, _ = examples.fit(wide.width, wide.targets)
  blocks = math.ceil(len(rows) / wide.rows)
  needed = math.ceil(examples.rows_for_long(wide, short) / wide.rows)
  best: tuple[list[list[int]], list[list[int]]] = (rows, [])
  least = blocks * (wide.cost + shapes.call)
  # 2. Between these two, try a few numbers of wide blocks; short rows take the rest.
  for fewer in sorted({needed, needed + 1, (needed + blocks) // 2, blocks - 1}):
    if not 0 <= fewer < blocks:
      continue
    before = (wide.width, wide.targets, fewer * wide.rows)
    more, left = examples.fit(short.width, short.targets, after=before)
    cost = fewer * (wide.cost + shapes.call)
    cost += math.ceil(len(more) / short.rows) * (short.cost + shapes.call)
    if not left and cost < least:
      best, least = (examples.fit(*before)[0], more), cost
  return best


def _fit(
  sizes: Sizes, order: Sequence[int], width: int, targets: int, limit: float
) -> tuple[list[list[int]], list[int]]:
  """Returns the items of each row, and those left over: see `_Examples.fit`."""
  rows: list[list[int]] = []
  left = []
  # Free source positions, free target positions and number of each row, sorted: the row
  # with the least room comes first.
  room: list[tuple[int, int, int]] = []
  for item in order:
    source, target = sizes[item]
    # 1. The fullest row with room for the source that has room for the target too.
    at = bisect.bisect_left(room, (source,))
    while at < len(room) and room[at][1] < target:
      at += 1
    # 2. Otherwise a new row, if one may be opened and would hold the item.
    if at < len(room):
      free = room.pop(at)
    elif len(rows) < limit and source <= width and target <= targets:
      free = width, targets, len(rows)
      rows.append([])
    else:
      left.append(item)
      continue
    # 3. Put the item there, and the row back in order.
    rows[free[2]].append(item)
    bisect.insort(room, (free[0] - source, free[1] - target, free[2]))
  return rows, left


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


def _round_up(number: int, grain: int = _GRAIN) -> int:
  return -(-number // grain) * grain

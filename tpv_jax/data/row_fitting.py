"""Decides which examples of a step share a row: best fit, at the least cost of the calls."""

import bisect
import dataclasses
import math
from collections.abc import Sequence
from typing import Any

CALL_POSITIONS, CALL_POSITIONS_ON_CPU = 2_048, 75
"""The cost of starting a call, in source positions that take as long (ours).

Measured on a CPU (benchmarks/NOTES.md); estimated for accelerators.
"""

_TARGET = 2
"""The cost of a target position in source positions: it has logits beside its layers."""

_ATTENTION = 1_000
"""The row width at which attention costs a position as much as everything else.

Measured on a CPU with T5-small (benchmarks/NOTES.md).
"""

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
    short: of the rows that are left over, which may be narrower.
    prompt_length: S, of the prompts in the rows.
    call: the cost of starting a call, in source positions.
  """

  wide: Shape
  short: Shape
  prompt_length: int
  call: int = CALL_POSITIONS


class Examples:
  """The examples of a step, and how they fit into rows; each fit is computed once.

  Attributes:
    used: the number of their source positions, including those of the prompts.
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


def assign(
  examples: Examples, shapes: Shapes
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
  """Returns the items of each row, and those left over: see `Examples.fit`."""
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

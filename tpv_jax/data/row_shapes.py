"""Chooses the shapes of packed rows in which a run's examples cost least."""

import dataclasses
import math
from collections.abc import Iterator, Mapping, Sequence

import numpy as np

from tpv_jax.data.row_fitting import (
  CALL_POSITIONS,
  CALL_POSITIONS_ON_CPU,
  Examples,
  Shape,
  Shapes,
  Sizes,
  assign,
)


@dataclasses.dataclass(frozen=True)
class Device:
  """What shapes suit a device (ours; benchmarks/NOTES.md).

  Attributes:
    positions: the most source positions of a wide block.
    call: the cost of starting a call, in source positions.
    padding: the largest share of padding that shapes may leave, if any leave so little.
    one_shape: how many times the least cost a single shape may have, since a second one
      has to be compiled.
  """

  positions: int
  call: int
  padding: float
  one_shape: float


ON_CPU = Device(2_048, CALL_POSITIONS_ON_CPU, padding=0.1, one_shape=1.0)
"""Small blocks keep activations in the cache: the embedded backbone takes 1.7 times the CPU
time with blocks of 4,096 than of 2,048. Positions cost what they cost, used or not."""

ON_ACCELERATOR = Device(16_384, CALL_POSITIONS, padding=1.0, one_shape=1.02)
"""Large blocks keep it busy. Padding counts by its cost alone: a limit on it forces small
blocks, and so many calls, where a run's steps differ in size."""

SAMPLED = 4_000
"""Number of examples on which shapes are tried."""

_GRAIN = 8
"""Widths are multiples of this, which suits accelerators."""

_EIGHTHS = (2, 3, 4, 5, 6, 7, 8, 12, 16)
"""Row widths to try, in eighths of the narrowest row that can hold any example."""


def padding_share(steps: Sequence[Sizes], shapes: Shapes) -> float:
  """Returns the share of the steps' computed source positions that are padding.

  The positions of prompts are not padding.
  """
  length = shapes.prompt_length
  return _measure([Examples(sizes, length) for sizes in steps], shapes)[0]


def _measure(steps: Sequence["Examples"], shapes: Shapes) -> tuple[float, float]:
  """Returns the padding share of the steps, and their cost."""
  computed = used = 0
  cost = 0.0
  for examples in steps:
    for shape, rows in zip(
      (shapes.wide, shapes.short), assign(examples, shapes), strict=True
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
  device: Device = ON_ACCELERATOR,
) -> Shapes:
  """Returns the shapes with which a sample of a run's steps costs least.

  The padding of the shapes is at most the device's, or at most 0.02 above the least
  possible if that is more. Narrow rows save attention between the examples of a row,
  which is computed and then masked; large blocks save calls.

  Args:
    steps: the sizes of the examples of some steps; only the first steps with together
      about `SAMPLED` examples are used.
    prompt_length: S.
    lengths: `{'inputs': T, 'targets': L}`, the longest that must fit.
    rows_multiple: the number of data-parallel devices, over which rows must divide.
    most_positions: the most positions of a block, unless one narrowest row for each device
      has more; the device's by default.
    device: for which the cost counts.
  """
  # 1. Sample the steps; a block larger than the largest step would never be full.
  counted = np.cumsum([len(sizes) for sizes in steps])
  steps = steps[: 1 + int(np.searchsorted(counted, SAMPLED))]
  examples = [Examples(sizes, prompt_length) for sizes in steps]
  most_positions = min(
    most_positions or device.positions, max(step.used for step in examples)
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
  for_any = [
    row for row in rows if row == narrow or narrow.width < row.width <= most_positions
  ]
  widths = [
    tried(wide, short, call=0)
    for wide in for_any
    for short in rows
    if short.width <= wide.width
  ]
  # 3. Choose the number of rows for the eight best pairs of widths, calls having a cost.
  found = [
    tried(wide, short, device.call)
    for _, _, best in sorted(widths, key=lambda one: one[1])[:8]
    for wide in blocks(best.wide)
    for short in blocks(best.short)
  ]
  if device.one_shape > 1:
    found += [tried(one, one, device.call) for wide in for_any for one in blocks(wide)]
  # 4. Take the cheapest of those with little padding; a single shape if it costs hardly
  #    more.
  most = max(min(share for share, _, _ in found) + 0.02, device.padding)
  ranked = sorted((one for one in found if one[0] <= most), key=lambda one: one[1])
  _, least, best = ranked[0]
  for _, cost, shapes in ranked:
    if shapes.wide == shapes.short and cost <= device.one_shape * least:
      return shapes
  return best


def choose_row(sizes: Sizes, prompt_length: int, lengths: Mapping[str, int]) -> Shape:
  """Returns the shape of a single row with which these examples cost least.

  Args:
    sizes: of the examples; about `SAMPLED` of them, evenly spaced, are used.
    prompt_length: S.
    lengths: `{'inputs': T, 'targets': L}`, the longest that must fit.
  """
  examples = Examples(sizes[:: math.ceil(len(sizes) / SAMPLED)], prompt_length)
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


def _round_up(number: int, grain: int = _GRAIN) -> int:
  return -(-number // grain) * grain

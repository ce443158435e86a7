"""The rows of an evaluation's calls: their shapes, and which examples share them."""

import itertools
from collections.abc import Iterator, Mapping, Sequence

import numpy as np
from jaxtyping import Int

from tpv_jax.data import batches, packing, row_fitting, row_shapes

_SAVED = 0.9
"""A second, shorter shape is compiled if it leaves less than this share of positions."""

Choices = Int[np.ndarray, "_ _"] | None
"""The choices that all examples have, token ids [C, L] padded with 0; None where each
example's own target is its only choice."""


class RowSizes:
  """The shapes of packed and of decoded rows, each chosen for the first examples."""

  def __init__(self, lengths: Mapping[str, int]) -> None:
    """Takes `{'inputs': T, 'targets': L}`, in tokens, EOS included."""
    self._lengths = lengths
    self._shapes: dict[tuple[int, bool], row_fitting.Shape] = {}
    self._widths: dict[int, list[int]] = {}

  def packed(
    self,
    length: int,
    examples: Sequence[tuple[batches.Tokenized, Choices]],
  ) -> row_fitting.Shape:
    """Returns the shape of packed rows, chosen for the first examples.

    Sources always fit; the shape is chosen again for choices that do not.
    """
    sizes: list[tuple[int, int]] = []
    for tokenized, choices in {
      (id(one), id(other)): (one, other) for one, other in examples
    }.values():
      sources = batches.token_counts(tokenized.inputs)
      targets = (
        batches.token_counts(tokenized.targets)
        if choices is None
        else np.full(len(sources), batches.token_counts(choices).sum())
      )
      sizes += zip(sources.tolist(), targets.tolist(), strict=True)
    key = (length, all(choices is None for _, choices in examples))
    known = self._shapes.get(key)
    if known is None or max(target for _, target in sizes) > known.targets:
      self._shapes[key] = row_shapes.choose_row(sizes, length, self._lengths)
    return self._shapes[key]

  def decoded(self, length: int, tokens: Int[np.ndarray, " N"]) -> list[int]:
    """Returns the one or two source lengths of decoded rows, chosen at the first call."""
    if length not in self._widths:
      longest = self._lengths["inputs"]
      costs = {
        width: (length + width) * np.count_nonzero(tokens <= width)
        + (length + longest) * np.count_nonzero(tokens > width)
        for width in range(8, longest, 8)
      }
      width = min(costs, key=lambda one: costs[one], default=longest)
      worth = costs and costs[width] < _SAVED * (length + longest) * len(tokens)
      self._widths[length] = [width, longest] if worth else [longest]
    return self._widths[length]


def layers(
  members: Sequence[tuple[int, int]], sets: Sequence[int]
) -> Iterator[list[tuple[int, int]]]:
  """Yields the members in layers, each with at most one member of each set of examples.

  The sets have one order in all layers, so that equal layers are packed once.
  """
  by_set: dict[int, list[tuple[int, int]]] = {}
  for member in members:
    by_set.setdefault(sets[member[0]], []).append(member)
  for layer in itertools.zip_longest(*(by_set[one] for one in sorted(by_set))):
    yield [member for member in layer if member is not None]


def pack(
  examples: Sequence[tuple[batches.Tokenized, Choices]],
  shape: row_fitting.Shape,
  length: int,
) -> tuple[batches.Features, list[np.ndarray]]:
  """Returns the examples of several sets, packed, and where each set's choices are."""
  sources: list[np.ndarray] = []
  choices: list[list[np.ndarray]] = []
  counts = [len(tokenized) for tokenized, _ in examples]
  for tokenized, common in examples:
    sources += map(batches.without_padding, tokenized.inputs)
    if common is None:
      choices += [[batches.without_padding(row)] for row in tokenized.targets]
    else:
      choices += [list(map(batches.without_padding, common))] * len(tokenized)
  owners = np.repeat(np.arange(len(examples)), counts).tolist()
  rows, first = packing.pack_choices(sources, choices, owners, shape, length)
  return rows, np.split(first, np.cumsum(counts)[:-1])


def in_blocks(
  sources: Int[np.ndarray, "N T"],
  places: Int[np.ndarray, " N"],
  numbers: Int[np.ndarray, " N"],
  size: int,
) -> Iterator[batches.Features]:
  """Yields batches of `size` sources with their prompts' places; the last is padded.

  `numbers` are those of the examples, see `batches.sources`.
  """
  for start in range(0, len(sources), size):
    block = slice(start, start + size)
    empty = size - len(sources[block])
    yield batches.sources(
      np.pad(sources[block], ((0, empty), (0, 0)), constant_values=batches.PADDING),
      np.pad(places[block], (0, empty)),
      np.pad(numbers[block], (0, empty)),
    )

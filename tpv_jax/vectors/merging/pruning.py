"""Keeping some of a vector's values, chosen by their size, before the vectors are merged."""

import dataclasses
from collections.abc import Iterator, Sequence
from typing import ClassVar

import numpy as np
from jaxtyping import Float, Float64

from tpv_jax.core.checks import BelowOne
from tpv_jax.vectors.merging.protocol import Shares, each
from tpv_jax.vectors.merging.signs import Reduced

Outliers = BelowOne | Sequence[BelowOne]
"""The share of the largest values that are dropped, for all vectors or for each."""


def among_largest(sizes: Float64[np.ndarray, "P D"], number: int) -> np.ndarray:
  """Returns the mask of the `number` largest; of equal ones, the first come first."""
  flat = sizes.reshape(-1)
  if number in (0, flat.size):
    return np.full(sizes.shape, number > 0)
  least = np.partition(flat, -number)[-number]
  kept = flat > least
  equal = np.flatnonzero(flat == least)
  kept[equal[: number - int(kept.sum())]] = True
  return kept.reshape(sizes.shape)


def largest(
  values: Float64[np.ndarray, "P D"], density: float
) -> Float64[np.ndarray, "P D"]:
  """Returns the values with all but the int(density * n) largest in size set to 0.

  docs/methods.md, (4.16). At least one is kept; of equal sizes, those of a lower index.
  """
  kept = among_largest(np.abs(values), _number(density, values.size))
  return np.where(kept, values, 0.0)


def middle(
  values: Float64[np.ndarray, "P D"], density: float, gamma: float
) -> Float64[np.ndarray, "P D"]:
  """Returns int(density * n) values, the largest but for int(gamma * n) dropped outliers.

  docs/methods.md, (4.17). If density + gamma is over 1, fewer outliers are dropped. Over
  the whole leaf (ours, and mergekit's; the authors': in each row).
  """
  number = _number(density, values.size)
  dropped = min(int(gamma * values.size), values.size - number)
  sizes = np.abs(values)
  kept = among_largest(sizes, dropped + number) & ~among_largest(sizes, dropped)
  return np.where(kept, values, 0.0)


def _number(density: float, size: int) -> int:
  return max(1, int(density * size))


@dataclasses.dataclass(frozen=True)
class MagnitudePrune(Reduced):
  """The weighted sum of each vector's largest values.

  Attributes:
    density: the share of its values that each vector keeps, in (0, 1].
  """

  source: ClassVar[str] = "PEFT, magnitude_prune"

  density: Shares = 0.2

  def reduced(
    self, leaves: Sequence[Float[np.ndarray, "P D"]], keys: Sequence[str]
  ) -> Iterator[Float64[np.ndarray, "P D"]]:
    """Yields `largest` of each vector."""
    for leaf, density in zip(leaves, each(self.density, len(leaves)), strict=True):
      yield largest(leaf.astype(np.float64), density)


@dataclasses.dataclass(frozen=True)
class Ties(MagnitudePrune):
  """The mean, at each element, of the largest values that have the elected sign.

  Each vector keeps its largest values (`largest`); then `signs.elected`, with the weights as
  votes too. Weights are of at least 0.

  Attributes:
    density: the share of its values that each vector keeps, in (0, 1].
  """

  source: ClassVar[str] = "arXiv 2306.01708; mergekit and PEFT, ties"
  signed: ClassVar[bool] = True


@dataclasses.dataclass(frozen=True)
class Breadcrumbs(Reduced):
  """The weighted sum of each vector's large values without the largest.

  Attributes:
    density: the share of its values that each vector keeps, in (0, 1].
    gamma: the share of the largest values that are dropped.
  """

  source: ClassVar[str] = "arXiv 2312.06795; mergekit, breadcrumbs"

  density: Shares = 0.9
  gamma: Outliers = 0.01

  def reduced(
    self, leaves: Sequence[Float[np.ndarray, "P D"]], keys: Sequence[str]
  ) -> Iterator[Float64[np.ndarray, "P D"]]:
    """Yields `middle` of each vector."""
    options = each(self.density, len(leaves)), each(self.gamma, len(leaves))
    for leaf, density, gamma in zip(leaves, *options, strict=True):
      yield middle(leaf.astype(np.float64), density, gamma)


@dataclasses.dataclass(frozen=True)
class BreadcrumbsTies(Breadcrumbs):
  """The mean, at each element, of breadcrumbs' values that have the elected sign.

  As `Ties`, but each vector keeps the values that `middle` does.

  Attributes:
    density: the share of its values that each vector keeps, in (0, 1].
    gamma: the share of the largest values that are dropped.
  """

  source: ClassVar[str] = "arXiv 2312.06795; mergekit, breadcrumbs_ties"
  signed: ClassVar[bool] = True

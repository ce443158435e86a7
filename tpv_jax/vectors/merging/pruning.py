"""Keeping some of a vector's values, chosen by their size, before the vectors are added."""

import dataclasses
from collections.abc import Callable, Sequence
from typing import ClassVar

import numpy as np
from jaxtyping import Float, Float64

from tpv_jax.core.checks import BelowOne
from tpv_jax.vectors.merging.protocol import LeafRule, Shares, each

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


def weighted_sum(
  leaves: Sequence[Float[np.ndarray, "P D"]],
  weights: Float64[np.ndarray, " N"],
  pruned: Callable[[Float64[np.ndarray, "P D"], int], Float64[np.ndarray, "P D"]],
) -> Float64[np.ndarray, "P D"]:
  """Returns sum_i weights[i] * pruned(leaves[i], i), one leaf at a time."""
  total = np.zeros(leaves[0].shape)
  for index, (leaf, weight) in enumerate(zip(leaves, weights, strict=True)):
    total += weight * pruned(leaf.astype(np.float64), index)
  return total


@dataclasses.dataclass(frozen=True)
class MagnitudePrune(LeafRule):
  """The weighted sum of each vector's largest values.

  Attributes:
    density: the share of its values that each vector keeps, in (0, 1].
  """

  source: ClassVar[str] = "PEFT, magnitude_prune"
  weighted: ClassVar[bool] = True

  density: Shares = 0.2

  def merged(
    self,
    leaves: Sequence[Float[np.ndarray, "P D"]],
    weights: Float64[np.ndarray, " N"],
    keys: Sequence[str],
  ) -> Float64[np.ndarray, "P D"]:
    """Returns the sum of `largest`."""
    densities = each(self.density, len(leaves))
    return weighted_sum(leaves, weights, lambda leaf, i: largest(leaf, densities[i]))


@dataclasses.dataclass(frozen=True)
class Breadcrumbs(LeafRule):
  """The weighted sum of each vector's large values without the largest.

  Attributes:
    density: the share of its values that each vector keeps, in (0, 1].
    gamma: the share of the largest values that are dropped.
  """

  source: ClassVar[str] = "arXiv 2312.06795; mergekit, breadcrumbs"
  weighted: ClassVar[bool] = True

  density: Shares = 0.9
  gamma: Outliers = 0.01

  def merged(
    self,
    leaves: Sequence[Float[np.ndarray, "P D"]],
    weights: Float64[np.ndarray, " N"],
    keys: Sequence[str],
  ) -> Float64[np.ndarray, "P D"]:
    """Returns the sum of `middle`."""
    densities = each(self.density, len(leaves))
    gammas = each(self.gamma, len(leaves))
    return weighted_sum(
      leaves, weights, lambda leaf, i: middle(leaf, densities[i], gammas[i])
    )


def _number(density: float, size: int) -> int:
  return max(1, int(density * size))

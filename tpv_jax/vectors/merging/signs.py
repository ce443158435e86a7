"""Merging by elected signs: at each element one sign wins, and its values are averaged."""

import dataclasses
from collections.abc import Iterable, Sequence
from typing import ClassVar

import numpy as np
from jaxtyping import Float, Float64

from tpv_jax.core.checks import Share
from tpv_jax.vectors.merging import pruning
from tpv_jax.vectors.merging.protocol import LeafRule, Shares, each
from tpv_jax.vectors.merging.sums import shares

Voter = tuple[Float64[np.ndarray, "P D"], float, float]
"""The values of a vector, its weight in the mean, and its weight in the election."""


def elected(voters: Iterable[Voter]) -> Float64[np.ndarray, "P D"]:
  """Returns the weighted mean, at each element, of the values with the elected sign.

  docs/methods.md, (4.18): the sign is that of the sum of all values times their votes;
  where that is 0, so is the result (ours: the other implementations take 0 as positive).
  A value of 0 agrees with no sign. Reads each voter once.
  """
  sums: dict[int, list[np.ndarray]] = {}
  for values, weight, vote in voters:
    for sign in (1, -1):
      agreeing = values > 0 if sign > 0 else values < 0
      kept = np.where(agreeing, values, 0.0)
      new = [vote * kept, weight * kept, weight * agreeing]
      if sign not in sums:
        sums[sign] = new
      else:
        for total, one in zip(sums[sign], new, strict=True):
          total += one
  (votes, up, up_weight), (against, down, down_weight) = sums[1], sums[-1]
  winner = np.sign(votes + against)
  total = np.where(winner > 0, up, down)
  divisor = np.where(winner > 0, up_weight, down_weight)
  return np.divide(
    total, divisor, out=np.zeros_like(total), where=(winner != 0) & (divisor > 0)
  )


@dataclasses.dataclass(frozen=True)
class Ties(LeafRule):
  """The mean, at each element, of the largest values that have the elected sign.

  Each vector keeps its largest values (`pruning.largest`); then `elected`, with the weights
  as votes too. Weights are of at least 0.

  Attributes:
    density: the share of its values that each vector keeps, in (0, 1].
  """

  source: ClassVar[str] = "arXiv 2306.01708; mergekit and PEFT, ties"
  weighted: ClassVar[bool] = True

  density: Shares = 0.2

  def merged(
    self,
    leaves: Sequence[Float[np.ndarray, "P D"]],
    weights: Float64[np.ndarray, " N"],
    keys: Sequence[str],
  ) -> Float64[np.ndarray, "P D"]:
    """Returns the merged leaf; weights below 0, or all 0, are refused."""
    shares(weights)
    densities = each(self.density, len(leaves))
    return elected(
      (pruning.largest(leaf.astype(np.float64), density), weight, weight)
      for leaf, density, weight in zip(leaves, densities, weights, strict=True)
    )


@dataclasses.dataclass(frozen=True)
class BreadcrumbsTies(LeafRule):
  """The mean, at each element, of breadcrumbs' values that have the elected sign.

  As `Ties`, but each vector keeps the values that `pruning.middle` does.

  Attributes:
    density: the share of its values that each vector keeps, in (0, 1].
    gamma: the share of the largest values that are dropped.
  """

  source: ClassVar[str] = "arXiv 2312.06795; mergekit, breadcrumbs_ties"
  weighted: ClassVar[bool] = True

  density: Shares = 0.9
  gamma: pruning.Outliers = 0.01

  def merged(
    self,
    leaves: Sequence[Float[np.ndarray, "P D"]],
    weights: Float64[np.ndarray, " N"],
    keys: Sequence[str],
  ) -> Float64[np.ndarray, "P D"]:
    """Returns the merged leaf; weights below 0, or all 0, are refused."""
    shares(weights)
    return elected(
      (pruning.middle(leaf.astype(np.float64), density, gamma), weight, weight)
      for leaf, density, gamma, weight in zip(
        leaves,
        each(self.density, len(leaves)),
        each(self.gamma, len(leaves)),
        weights,
        strict=True,
      )
    )


@dataclasses.dataclass(frozen=True)
class SCE(LeafRule):
  """Elected signs where the vectors differ most, weighted by their squares there.

  docs/methods.md, (4.21): of the elements whose variance over the vectors is not 0, the
  share `select_topk` with the largest one is kept. A vector's weight is its mean square
  over these; the votes are unweighted. There is no floor on the weights (ours: mergekit
  has 1e-6, which short vectors reach).

  Attributes:
    select_topk: the share of the elements that are kept, in (0, 1]; 1 keeps all.
  """

  source: ClassVar[str] = "arXiv 2408.07990; mergekit, sce"

  select_topk: Share = 1.0

  def merged(
    self,
    leaves: Sequence[Float[np.ndarray, "P D"]],
    weights: Float64[np.ndarray, " N"],
    keys: Sequence[str],
  ) -> Float64[np.ndarray, "P D"]:
    """Returns the merged leaf."""
    kept = self._kept(leaves)
    squares = [float(np.square(x[kept], dtype=np.float64).sum()) for x in leaves]
    if not any(squares):
      return np.zeros(leaves[0].shape)
    parts = shares(np.array(squares))
    return elected(
      (np.where(kept, leaf, 0).astype(np.float64), part, 1.0)
      for leaf, part in zip(leaves, parts, strict=True)
    )

  def _kept(self, leaves: Sequence[Float[np.ndarray, "P D"]]) -> np.ndarray:
    """Returns the mask of the elements that are kept."""
    if self.select_topk == 1:
      return np.ones(leaves[0].shape, bool)
    mean = np.zeros(leaves[0].shape)
    for leaf in leaves:
      mean += leaf
    mean /= len(leaves)
    variance = np.zeros(leaves[0].shape)
    for leaf in leaves:
      variance += (leaf - mean) ** 2
    number = int(self.select_topk * np.count_nonzero(variance))
    return pruning.among_largest(variance, number)

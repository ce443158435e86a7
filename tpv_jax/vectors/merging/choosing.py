"""Rules that choose where values count: at which elements, or tokens."""

import dataclasses
from collections.abc import Sequence
from typing import ClassVar

import numpy as np
from jaxtyping import Float, Float64

from tpv_jax.core.checks import NotNegative, Share, Size
from tpv_jax.core.errors import UserError
from tpv_jax.vectors.merging import pruning, signs
from tpv_jax.vectors.merging.protocol import LeafRule, total
from tpv_jax.vectors.merging.sums import shares


@dataclasses.dataclass(frozen=True)
class Consensus(LeafRule):
  """The sum of the vectors where it matters to several of them, and 0 elsewhere.

  docs/methods.md, (4.22): an element matters to a vector whose value there is larger in
  size than `tall_lambda` times the sum of the others'.

  Attributes:
    tall_lambda: the authors try 0.2 to 0.6.
    k: to how many vectors an element must matter; 2 if None, or 1 of one vector.
  """

  source: ClassVar[str] = "arXiv 2405.07813, consensus task arithmetic"

  tall_lambda: NotNegative = 0.4
  k: Size | None = None

  def merged(
    self,
    leaves: Sequence[Float[np.ndarray, "P D"]],
    weights: Float64[np.ndarray, " N"],
    keys: Sequence[str],
  ) -> Float64[np.ndarray, "P D"]:
    """Returns the merged leaf; a `k` over the number of vectors is refused."""
    needed = min(2, len(leaves)) if self.k is None else self.k
    if needed > len(leaves):
      raise UserError(
        f"k of consensus is {needed}, and only {len(leaves)} vectors are merged (not "
        "counting those of zeros), so nothing would be left. Give a smaller k."
      )
    whole = total(leaves)
    count = np.zeros(whole.shape, np.int64)
    for leaf in leaves:
      count += np.abs(leaf) > self.tall_lambda * np.abs(whole - leaf)
    return np.where(count >= needed, whole, 0.0)


@dataclasses.dataclass(frozen=True)
class TokenChoice(LeafRule):
  """For each token, the row of the vector that is longest there."""

  source: ClassVar[str] = "ours"

  def merged(
    self,
    leaves: Sequence[Float[np.ndarray, "P D"]],
    weights: Float64[np.ndarray, " N"],
    keys: Sequence[str],
  ) -> Float64[np.ndarray, "P D"]:
    """Returns the merged leaf."""
    chosen = leaves[0].astype(np.float64)
    longest = np.square(chosen).sum(axis=1)
    for leaf in leaves[1:]:
      values = leaf.astype(np.float64)
      squares = np.square(values).sum(axis=1)
      longer = squares > longest
      chosen[longer], longest[longer] = values[longer], squares[longer]
    return chosen


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
    return signs.elected(
      (np.where(kept, leaf, 0).astype(np.float64), part, 1.0)
      for leaf, part in zip(leaves, parts, strict=True)
    )

  def _kept(self, leaves: Sequence[Float[np.ndarray, "P D"]]) -> np.ndarray:
    """Returns the mask of the elements that are kept."""
    if self.select_topk == 1:
      return np.ones(leaves[0].shape, bool)
    mean = total(leaves) / len(leaves)
    variance = np.zeros(leaves[0].shape)
    for leaf in leaves:
      variance += (leaf - mean) ** 2
    number = int(self.select_topk * np.count_nonzero(variance))
    return pruning.among_largest(variance, number)

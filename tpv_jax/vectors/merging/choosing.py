"""Rules that choose where values count: at an element or a token."""

import dataclasses
from collections.abc import Sequence
from typing import ClassVar

import numpy as np
from jaxtyping import Float, Float64

from tpv_jax.core.checks import NotNegative, Size
from tpv_jax.core.errors import UserError
from tpv_jax.vectors.merging.protocol import LeafRule


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
    total = np.zeros(leaves[0].shape)
    for leaf in leaves:
      total += leaf
    count = np.zeros(total.shape, np.int64)
    for leaf in leaves:
      count += np.abs(leaf) > self.tall_lambda * np.abs(total - leaf)
    return np.where(count >= needed, total, 0.0)


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

"""Adding what is left of each vector, or electing a sign at each element.

In an election one sign wins at each element, and the values that have it are averaged.
"""

from collections.abc import Iterable, Iterator, Sequence
from typing import ClassVar

import numpy as np
from jaxtyping import Float, Float64

from tpv_jax.vectors.merging.protocol import LeafRule
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


def weighted_sum(
  parts: Iterable[tuple[Float64[np.ndarray, "P D"], float]], shape: tuple[int, ...]
) -> Float64[np.ndarray, "P D"]:
  """Returns the sum of values of a shape, each times its weight. Reads each part once."""
  total = np.zeros(shape)
  for values, weight in parts:
    total += weight * values
  return total


class Reduced(LeafRule):
  """Rules that keep a part of each vector's values, and then add these, or elect signs.

  A rule defines `reduced`; its twin with an election extends it and is `signed`.
  """

  weighted: ClassVar[bool] = True
  signed: ClassVar[bool] = False

  def reduced(
    self, leaves: Sequence[Float[np.ndarray, "P D"]], keys: Sequence[str]
  ) -> Iterator[Float64[np.ndarray, "P D"]]:
    """Yields what is left of each vector; the arguments are those of `merged`."""
    raise NotImplementedError

  def merged(
    self,
    leaves: Sequence[Float[np.ndarray, "P D"]],
    weights: Float64[np.ndarray, " N"],
    keys: Sequence[str],
  ) -> Float64[np.ndarray, "P D"]:
    """Returns the merged leaf; of elections, weights below 0, or all 0, are refused."""
    parts = zip(self.reduced(leaves, keys), weights, strict=True)
    if self.signed:
      shares(weights)
      return elected((values, weight, weight) for values, weight in parts)
    return weighted_sum(parts, leaves[0].shape)

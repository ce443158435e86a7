"""Keeping some of a vector's values at random, enlarged, before the vectors are merged.

Whether a value is kept depends on the seed, the vector's digest, and the leaf: never on the
other vectors, or on a vector's place among them.
"""

import dataclasses
import hashlib
from collections.abc import Iterator, Sequence
from typing import ClassVar

import numpy as np
from jaxtyping import Bool, Float, Float64

from tpv_jax.core.checks import Positive, Seed
from tpv_jax.core.errors import UserError
from tpv_jax.vectors.merging.protocol import Shares, each
from tpv_jax.vectors.merging.signs import Reduced


def uniforms(seed: int, key: str, shape: tuple[int, ...]) -> np.ndarray:
  """Returns numbers in [0, 1) of 53 random bits each, from PCG64 and so the same anywhere.

  NumPy promises to keep the raw bits of a generator, not what its methods make of them.
  """
  digest = hashlib.sha256(f"{seed} {key}".encode()).digest()
  bits = np.random.PCG64(int.from_bytes(digest, "little"))
  raw = bits.random_raw(int(np.prod(shape)))
  return (raw >> np.uint64(11)).reshape(shape) * 2.0**-53


def rescaled(
  values: Float64[np.ndarray, "P D"],
  kept: Bool[np.ndarray, "P D"],
  probabilities: float | Float64[np.ndarray, "P D"],
) -> Float64[np.ndarray, "P D"]:
  """Returns the kept values divided by their probability to be kept, and 0 elsewhere.

  docs/methods.md, (4.19): their mean over many masks is `values`. (mergekit rescales each
  vector to its former sum of sizes instead.)
  """
  return np.where(kept, values / probabilities, 0.0)


def by_rank(
  values: Float64[np.ndarray, "P D"], density: float, epsilon: float
) -> Float64[np.ndarray, "P D"]:
  """Returns the probability to keep each value, which rises with its rank in its row.

  docs/methods.md, (4.20): from density - epsilon for the smallest of a row to density +
  epsilon for the largest, in equal steps; of equal sizes, that of a lower index is the
  smaller. The only value of a row has `density`.
  """
  rows, width = values.shape
  if width == 1:
    return np.full((rows, 1), density)
  order = np.argsort(np.abs(values), axis=1, kind="stable")
  ranks = np.empty_like(order)
  np.put_along_axis(ranks, order, np.arange(width)[None].repeat(rows, 0), axis=1)
  return density - epsilon + 2 * epsilon * ranks / (width - 1)


class _Dropping(Reduced):
  """What the four rules share: a mask for each vector."""

  density: Shares
  seed: Seed

  def probabilities(
    self, values: Float64[np.ndarray, "P D"], density: float, index: int
  ) -> float | Float64[np.ndarray, "P D"]:
    """Returns the probability to keep a value, or each value, of a vector."""
    return density

  def reduced(
    self, leaves: Sequence[Float[np.ndarray, "P D"]], keys: Sequence[str]
  ) -> Iterator[Float64[np.ndarray, "P D"]]:
    """Yields the values of each vector that are not dropped, enlarged."""
    densities = each(self.density, len(leaves))
    for index, (leaf, key) in enumerate(zip(leaves, keys, strict=True)):
      values = leaf.astype(np.float64)
      probabilities = self.probabilities(values, densities[index], index)
      kept = uniforms(self.seed, key, values.shape) < probabilities
      yield rescaled(values, kept, probabilities)


@dataclasses.dataclass(frozen=True)
class DareLinear(_Dropping):
  """The weighted sum of the vectors, each with random values dropped and the rest enlarged.

  Attributes:
    density: the probability to keep a value, in (0, 1]; a kept one is divided by it.
    seed: of the random numbers.
  """

  source: ClassVar[str] = "arXiv 2311.03099; mergekit and PEFT, dare_linear"

  density: Shares = 0.5
  seed: Seed = 0


@dataclasses.dataclass(frozen=True)
class DareTies(DareLinear):
  """The mean of the values with the elected sign, after random ones were dropped.

  As `DareLinear` and then `signs.elected`.

  Attributes:
    density: the probability to keep a value, in (0, 1]; a kept one is divided by it.
    seed: of the random numbers.
  """

  source: ClassVar[str] = "arXiv 2311.03099; mergekit and PEFT, dare_ties"
  signed: ClassVar[bool] = True


class _Della(_Dropping):
  """Values are dropped with a probability that falls with their rank (`by_rank`)."""

  epsilon: Positive | Sequence[Positive]

  def __post_init__(self) -> None:
    number = max(
      len(one)
      for one in (self.density, self.epsilon, (0,))
      if isinstance(one, Sequence)
    )
    for density, epsilon in zip(
      each(self.density, number), each(self.epsilon, number), strict=False
    ):
      if not 0 < density - epsilon < density + epsilon < 1:
        raise UserError(
          f"A density of {density:g} with an epsilon of {epsilon:g} makes probabilities "
          f"from {density - epsilon:g} to {density + epsilon:g}, and they must lie between "
          "0 and 1. Give a smaller epsilon."
        )

  def probabilities(
    self, values: Float64[np.ndarray, "P D"], density: float, index: int
  ) -> float | Float64[np.ndarray, "P D"]:
    """Returns `by_rank`."""
    return by_rank(values, density, each(self.epsilon, index + 1)[index])


@dataclasses.dataclass(frozen=True)
class DellaLinear(_Della):
  """The weighted sum of the vectors, small values being dropped more often than large ones.

  Attributes:
    density: the mean probability to keep a value.
    epsilon: how far the probabilities of a row reach below and above `density`, both within
      (0, 1). (The authors' window size is twice that.)
    seed: of the random numbers.
  """

  source: ClassVar[str] = "arXiv 2406.11617; mergekit, della_linear"

  density: Shares = 0.5
  epsilon: Positive | Sequence[Positive] = 0.15
  seed: Seed = 0


@dataclasses.dataclass(frozen=True)
class Della(DellaLinear):
  """The mean of the values with the elected sign, after small ones were dropped more often.

  As `DellaLinear` and then `signs.elected`.

  Attributes:
    density: the mean probability to keep a value.
    epsilon: how far the probabilities of a row reach below and above `density`, both within
      (0, 1). (The authors' window size is twice that.)
    seed: of the random numbers.
  """

  source: ClassVar[str] = "arXiv 2406.11617; mergekit, della"
  signed: ClassVar[bool] = True

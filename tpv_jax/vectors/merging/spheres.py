"""Rules of angles: between two vectors, or of all pairs."""

import dataclasses
from collections.abc import Sequence
from typing import ClassVar

import numpy as np
from jaxtyping import Float, Float64

from tpv_jax.core.checks import Fraction, Positive, Steps
from tpv_jax.core.errors import UserError
from tpv_jax.vectors.merging.protocol import CoefficientRule, LeafRule
from tpv_jax.vectors.merging.sums import shares

_PARALLEL = 0.9995
"""The absolute cosine above which an arc is taken as straight, as mergekit's slerp does."""

_OPPOSITE = 1e-9
"""How far above -1 the cosine of opposite vectors may be, by rounding."""


@dataclasses.dataclass(frozen=True)
class Slerp(CoefficientRule):
  """The point at t on the arc from the first of two vectors to the second.

  With the angle a between them, c = (sin((1 - t) a), sin(t a)) / sin(a), and on the
  straight line, c = (1 - t, t), where the cosine is beyond 0.9995.

  Attributes:
    t: 0 is the first vector, 1 the second.
  """

  source: ClassVar[str] = "mergekit, slerp (of the vectors, not of the prompts)"
  number: ClassVar[int | None] = 2
  ordered: ClassVar[bool] = True

  t: Fraction = 0.5

  def coefficients(
    self, gram: Float64[np.ndarray, "N N"], weights: Float64[np.ndarray, " N"]
  ) -> Float64[np.ndarray, " N"]:
    """Returns (sin((1 - t) a), sin(t a)) / sin(a); opposite vectors are refused."""
    (cosine,) = _cosines(gram)
    return arc(cosine, self.t, "The two vectors")


@dataclasses.dataclass(frozen=True)
class NuSlerp(CoefficientRule, LeafRule):
  """The point between two vectors, or between their tokens, that their weights say.

  `Slerp` at t = w_2 / (w_1 + w_2).

  Attributes:
    nuslerp_flatten: True: of the vectors, which is linear. False: of each token's rows of
      each leaf (mergekit's nuslerp_row_wise=false); a row of zeros is at a right angle.
  """

  source: ClassVar[str] = "mergekit, nuslerp"
  number: ClassVar[int | None] = 2
  weighted: ClassVar[bool] = True

  nuslerp_flatten: bool = True

  @property
  def linear(self) -> bool:
    """Whether whole vectors are interpolated."""
    return self.nuslerp_flatten

  def coefficients(
    self, gram: Float64[np.ndarray, "N N"], weights: Float64[np.ndarray, " N"]
  ) -> Float64[np.ndarray, " N"]:
    """Returns those of `Slerp`; opposite vectors and weights below 0 are refused."""
    (cosine,) = _cosines(gram)
    return arc(cosine, shares(weights)[1], "The two vectors")

  def merged(
    self,
    leaves: Sequence[Float[np.ndarray, "P D"]],
    weights: Float64[np.ndarray, " N"],
    keys: Sequence[str],
  ) -> Float64[np.ndarray, "P D"]:
    """Returns the leaf whose rows are interpolated; opposite rows are refused."""
    first, second = (leaf.astype(np.float64) for leaf in leaves)
    t = shares(weights)[1]
    rows = []
    for number, pair in enumerate(zip(first, second, strict=True)):
      one, other = pair
      norms = np.linalg.norm(one) * np.linalg.norm(other)
      cosine = np.clip(one @ other / norms, -1, 1) if norms else 0.0
      c = arc(cosine, t, f"Rows {number} of a leaf of the two vectors")
      rows.append(c[0] * one + c[1] * other)
    return np.stack(rows)


@dataclasses.dataclass(frozen=True)
class MultiSlerp(CoefficientRule):
  """The mean direction of the vectors, as long as they are on average.

  c_i = (w_i / |v_i|) sum_j w_j |v_j| / |sum_j w_j v_j / |v_j||, with the weights normalised.
  (mergekit's detour through the tangent space of that direction ends at it again.)
  """

  source: ClassVar[str] = "mergekit, multislerp"
  weighted: ClassVar[bool] = True

  def coefficients(
    self, gram: Float64[np.ndarray, "N N"], weights: Float64[np.ndarray, " N"]
  ) -> Float64[np.ndarray, " N"]:
    """Returns c_i; weights below 0, and directions that cancel out, are refused."""
    parts, norms = shares(weights), np.sqrt(np.diagonal(gram))
    cosines = gram / np.outer(norms, norms)
    return _unit(parts, cosines) / norms * (parts @ norms)


@dataclasses.dataclass(frozen=True)
class Karcher(CoefficientRule):
  """The point on the sphere with the least squared angles to the vectors, times their norm.

  Of the vectors' directions u_i, from their mean direction on:
  m <- exp_m(mean_i log_m(u_i)), until a step is shorter than `tol`; times the mean norm.

  Attributes:
    max_iter: the most steps.
    tol: an angle in radians.
  """

  source: ClassVar[str] = "arXiv 2603.04972; mergekit, karcher"

  max_iter: Steps = 10
  tol: Positive = 1e-5

  def coefficients(
    self, gram: Float64[np.ndarray, "N N"], weights: Float64[np.ndarray, " N"]
  ) -> Float64[np.ndarray, " N"]:
    """Returns the coefficients of m; directions that cancel out are refused."""
    norms = np.sqrt(np.diagonal(gram))
    cosines = np.clip(gram / np.outer(norms, norms), -1, 1)
    number = len(gram)
    mean = _unit(np.full(number, 1 / number), cosines)
    for _ in range(self.max_iter):
      dots = np.clip(cosines @ mean, -1, 1)
      angles = np.arccos(dots)
      if angles.max() > np.pi - self.tol:
        raise UserError(
          "A vector is opposite to the mean of the others, and no arc leads to it. Use "
          "another rule."
        )
      steps = np.where(angles < self.tol, 0, angles / np.sin(np.maximum(angles, 1e-9)))
      tangent = (steps - (steps @ dots) * mean) / number
      length = np.sqrt(max(0.0, float(tangent @ cosines @ tangent)))
      if length < self.tol:
        break
      moved = np.cos(length) * mean + np.sin(length) / length * tangent
      mean = _unit(moved, cosines)
    return mean / norms * norms.mean()


@dataclasses.dataclass(frozen=True)
class ModelStock(CoefficientRule):
  """The average, shortened by how far the vectors point apart.

  For N vectors with the mean cosine k of their pairs, c_i = t / N with
  t = N k / (1 + (N - 1) k).
  """

  source: ClassVar[str] = "arXiv 2403.19522, section 4"

  def coefficients(
    self, gram: Float64[np.ndarray, "N N"], weights: Float64[np.ndarray, " N"]
  ) -> Float64[np.ndarray, " N"]:
    """Returns t / N; one vector alone, and vectors that point apart, are refused."""
    number = len(gram)
    if number < 2:
      raise UserError("The rule model_stock needs at least two vectors. Give another.")
    cosine = _cosines(gram).mean()
    if cosine < 0:
      raise UserError(
        f"The mean cosine of the vectors is {cosine:.3g}. Below 0 model_stock would turn "
        "their average round, or is not defined. Use another rule, such as linear."
      )
    return np.full(number, cosine / (1 + (number - 1) * cosine))


def arc(cosine: float, t: float, what: str) -> Float64[np.ndarray, " 2"]:
  """Returns the coefficients of the point at t on the arc between two vectors.

  Raises:
    UserError: they are opposite; `what` names them.
  """
  if cosine < _OPPOSITE - 1:
    raise UserError(
      f"{what} are opposite, and no arc leads from one to the other. Use the rule linear."
    )
  parts = np.array([1 - t, t])
  if abs(cosine) > _PARALLEL:
    return parts
  angle = np.arccos(cosine)
  return np.sin(parts * angle) / np.sin(angle)


def _unit(
  parts: Float64[np.ndarray, " N"], cosines: Float64[np.ndarray, "N N"]
) -> Float64[np.ndarray, " N"]:
  """Returns the parts of unit vectors, scaled so that their sum is a unit vector."""
  square = float(parts @ cosines @ parts)
  if square < _OPPOSITE**2 * float(parts @ parts):
    raise UserError(
      "The directions of the vectors cancel out, so they have no mean direction. Use "
      "another rule or other weights."
    )
  return parts / np.sqrt(square)


def _cosines(gram: Float64[np.ndarray, "N N"]) -> Float64[np.ndarray, " pairs"]:
  """Returns the cosine of every pair."""
  norms = np.sqrt(np.diagonal(gram))
  pairs = np.triu_indices(len(gram), 1)
  return np.clip(gram / np.outer(norms, norms), -1, 1)[pairs]

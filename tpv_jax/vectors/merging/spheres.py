"""Rules of angles: between two vectors, or of all pairs."""

import dataclasses
from typing import ClassVar

import numpy as np
from jaxtyping import Float64

from tpv_jax.core.errors import UserError
from tpv_jax.vectors.merging.protocol import Rule

_PARALLEL = 0.9995
"""The absolute cosine above which `Slerp` takes the straight line, as mergekit does."""

_OPPOSITE = 1e-9
"""How far above -1 the cosine of opposite vectors may be, by rounding."""


@dataclasses.dataclass(frozen=True)
class Slerp(Rule):
  """The point at t on the arc from the first of two vectors to the second.

  With the angle a between them, c = (sin((1 - t) a), sin(t a)) / sin(a), and on the
  straight line, c = (1 - t, t), where the cosine is beyond 0.9995.

  Attributes:
    t: 0 is the first vector, 1 the second.

  Raises:
    UserError: t is outside [0, 1].
  """

  source: ClassVar[str] = "mergekit, slerp (of the vectors, not of the prompts)"
  number: ClassVar[int | None] = 2
  ordered: ClassVar[bool] = True

  t: float = 0.5

  def __post_init__(self) -> None:
    if not 0 <= self.t <= 1:
      raise UserError(
        f"t of slerp is {self.t:g}, which is not from 0 (the first vector) to 1 (the "
        "second). Give a number between them."
      )

  def coefficients(
    self, gram: Float64[np.ndarray, "N N"], weights: Float64[np.ndarray, " N"]
  ) -> Float64[np.ndarray, " N"]:
    """Returns (sin((1 - t) a), sin(t a)) / sin(a); opposite vectors are refused."""
    (cosine,) = _cosines(gram)
    if cosine < _OPPOSITE - 1:
      raise UserError(
        "The two vectors are opposite, and no arc leads from one to the other. Use the "
        "rule linear."
      )
    shares = np.array([1 - self.t, self.t])
    if abs(cosine) > _PARALLEL:
      return shares
    angle = np.arccos(cosine)
    return np.sin(shares * angle) / np.sin(angle)


@dataclasses.dataclass(frozen=True)
class ModelStock(Rule):
  """The average, shortened by how far the vectors point apart.

  For N vectors with the mean cosine k of their pairs, c_i = t / N with
  t = N k / (1 + (N - 1) k).
  """

  source: ClassVar[str] = "arXiv 2403.19522, section 4"

  def coefficients(
    self, gram: Float64[np.ndarray, "N N"], weights: Float64[np.ndarray, " N"]
  ) -> Float64[np.ndarray, " N"]:
    """Returns t / N; one vector alone, which has no pair, is refused."""
    number = len(gram)
    if number < 2:
      raise UserError("The rule model_stock needs at least two vectors. Give another.")
    cosine = _cosines(gram).mean()
    if (below := 1 + (number - 1) * cosine) <= 0:
      raise UserError(
        f"The mean cosine of the vectors is {cosine:.3g}, for which model_stock is not "
        "defined. Use another rule."
      )
    return np.full(number, cosine / below)


def _cosines(gram: Float64[np.ndarray, "N N"]) -> Float64[np.ndarray, " pairs"]:
  """Returns the cosine of every pair."""
  norms = np.sqrt(np.diagonal(gram))
  pairs = np.triu_indices(len(gram), 1)
  return np.clip(gram / np.outer(norms, norms), -1, 1)[pairs]

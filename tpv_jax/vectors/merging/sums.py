"""Weighted sums and averages."""

import dataclasses
from typing import ClassVar

import numpy as np
from jaxtyping import Float64

from tpv_jax.core.errors import UserError
from tpv_jax.vectors.merging.protocol import CoefficientRule


@dataclasses.dataclass(frozen=True)
class TaskArithmetic(CoefficientRule):
  """The sum of the vectors, each times its weight: c_i = w_i."""

  source: ClassVar[str] = "arXiv 2212.04089, task arithmetic"
  weighted: ClassVar[bool] = True

  def coefficients(
    self, gram: Float64[np.ndarray, "N N"], weights: Float64[np.ndarray, " N"]
  ) -> Float64[np.ndarray, " N"]:
    """Returns w_i."""
    return weights


@dataclasses.dataclass(frozen=True)
class Linear(CoefficientRule):
  """The weighted average: c_i = w_i / sum_j w_j."""

  source: ClassVar[str] = "mergekit, linear"
  weighted: ClassVar[bool] = True

  def coefficients(
    self, gram: Float64[np.ndarray, "N N"], weights: Float64[np.ndarray, " N"]
  ) -> Float64[np.ndarray, " N"]:
    """Returns w_i / sum_j w_j; weights below 0, or all 0, are refused."""
    return shares(weights)


@dataclasses.dataclass(frozen=True)
class NormBalanced(CoefficientRule):
  """The weighted sum of the vectors, each scaled to their mean norm."""

  source: ClassVar[str] = "ours"
  weighted: ClassVar[bool] = True

  def coefficients(
    self, gram: Float64[np.ndarray, "N N"], weights: Float64[np.ndarray, " N"]
  ) -> Float64[np.ndarray, " N"]:
    """Returns w_i mean_j |v_j| / |v_i|."""
    norms = np.sqrt(np.diagonal(gram))
    return weights * norms.mean() / norms


@dataclasses.dataclass(frozen=True)
class MetaGPT(CoefficientRule):
  """The sum with the shares of the squared norms: c_i = |v_i|^2 / sum_j |v_j|^2."""

  source: ClassVar[str] = "arXiv 2406.11385, without data"

  def coefficients(
    self, gram: Float64[np.ndarray, "N N"], weights: Float64[np.ndarray, " N"]
  ) -> Float64[np.ndarray, " N"]:
    """Returns |v_i|^2 / sum_j |v_j|^2."""
    return shares(np.diagonal(gram))


def shares(parts: Float64[np.ndarray, " N"]) -> Float64[np.ndarray, " N"]:
  """Returns the parts divided by their sum.

  Raises:
    UserError: a part is below 0, or all are 0.
  """
  if (parts < 0).any() or not parts.any():
    raise UserError(
      f"An average has no weights like {', '.join(f'{part:g}' for part in parts)}. Give "
      "weights of at least 0, not all of them 0, or use the rule task_arithmetic."
    )
  return parts / parts.sum()

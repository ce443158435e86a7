"""Rules of weight matrices: of singular vectors and of inputs.

Their reasons hold for a matrix that acts on inputs. A prompt is itself the input, and
nothing is known of them there.
"""

import dataclasses
from collections.abc import Sequence
from typing import ClassVar

import numpy as np
from jaxtyping import Float, Float64

from tpv_jax.core.errors import UserError
from tpv_jax.vectors import arithmetic
from tpv_jax.vectors.merging.protocol import LeafRule, total


@dataclasses.dataclass(frozen=True)
class TSV(LeafRule):
  """The first singular components of each vector, made orthogonal between the vectors.

  docs/methods.md, (4.23). N vectors have min(P, D) // N components each. No theory for
  prompts.
  """

  source: ClassVar[str] = "arXiv 2412.00081, TSV-Merge"

  def merged(
    self,
    leaves: Sequence[Float[np.ndarray, "P D"]],
    weights: Float64[np.ndarray, " N"],
    keys: Sequence[str],
  ) -> Float64[np.ndarray, "P D"]:
    """Returns the merged leaf; more vectors than the leaf has components are refused."""
    most = min(leaves[0].shape)
    if len(leaves) > most:
      raise UserError(
        f"tsv takes at most {most} vectors of shape {list(leaves[0].shape)}, one singular "
        f"component each, and there are {len(leaves)}. Use another rule."
      )
    parts = [_components(leaf, most // len(leaves)) for leaf in leaves]
    left, values, right = (
      np.concatenate([part[index] for part in parts], axis=-1) for index in range(3)
    )
    return (_polar(left) * values) @ _polar(right).T


@dataclasses.dataclass(frozen=True)
class IsoC(LeafRule):
  """The sum of the vectors with its singular values replaced by their mean.

  docs/methods.md, (4.24). Directions that the sum lacks stay 0 (ours: the authors' code
  fills them with arbitrary ones). No theory for prompts.
  """

  source: ClassVar[str] = "arXiv 2502.04959, Iso-C"

  def merged(
    self,
    leaves: Sequence[Float[np.ndarray, "P D"]],
    weights: Float64[np.ndarray, " N"],
    keys: Sequence[str],
  ) -> Float64[np.ndarray, "P D"]:
    """Returns the merged leaf."""
    whole = total(leaves)
    left, values, right = _components(whole, min(whole.shape))
    return values.mean() * left @ right.T if values.size else whole


@dataclasses.dataclass(frozen=True)
class WUDI(LeafRule):
  """The matrix that differs least from each vector, on the vector's own rows as inputs.

  docs/methods.md, (4.25): the minimiser m of sum_i |(m - v_i) v_i^T|^2 / |v_i|^2 that is
  nearest to the sum, in closed form (ours: the authors take 300 steps of Adam, which hardly
  leave the sum). No theory for prompts.
  """

  source: ClassVar[str] = "arXiv 2503.08099, WUDI-Merging"

  def merged(
    self,
    leaves: Sequence[Float[np.ndarray, "P D"]],
    weights: Float64[np.ndarray, " N"],
    keys: Sequence[str],
  ) -> Float64[np.ndarray, "P D"]:
    """Returns the merged leaf."""
    rows, width = leaves[0].shape
    held = [leaf for leaf in leaves if leaf.any()]
    whole, cubes = np.zeros((rows, width)), np.zeros((rows, width))
    squares = np.zeros((width, width))
    units = []
    few = len(held) * rows <= width
    for leaf in held:
      values = leaf.astype(np.float64)
      unit = values / np.linalg.norm(values)
      whole += values
      cubes += values @ unit.T @ unit
      if few:
        units.append(unit)
      else:
        squares += unit.T @ unit
    if not held:
      return whole
    if few:
      _, lengths, transposed = np.linalg.svd(np.concatenate(units), full_matrices=False)
      eigenvalues, vectors = lengths**2, transposed.T
    else:
      eigenvalues, vectors = np.linalg.eigh(squares)
    kept = (
      eigenvalues
      > arithmetic.negligible(np.sqrt(eigenvalues.max(keepdims=True)), (width,)) ** 2
    )
    vectors = vectors[:, kept]
    return whole + (cubes @ vectors / eigenvalues[kept] - whole @ vectors) @ vectors.T


def _components(
  matrix: Float[np.ndarray, "P D"], most: int
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
  """Returns left [P, R] and right [D, R] singular vectors, and values within the rank."""
  left, values, right = np.linalg.svd(matrix.astype(np.float64), full_matrices=False)
  rank = int((values > arithmetic.negligible(values, matrix.shape)).sum())
  kept = min(most, rank)
  return left[:, :kept], values[:kept], right[:kept].T


def _polar(matrix: Float64[np.ndarray, "P R"]) -> Float64[np.ndarray, "P R"]:
  """Returns the nearest matrix with orthonormal columns, cut at the numerical rank."""
  if not matrix.size:
    return matrix
  left, values, right = np.linalg.svd(matrix, full_matrices=False)
  kept = values > arithmetic.negligible(values, matrix.shape)
  return left[:, kept] @ right[kept]

"""The numbers of the vector algebra: pure functions from fp32 leaves to fp32 leaves.

Leaves are a mapping from name to array; a plain prompt or vector is
`{"prompt": [P, D]}`. `algebra` decides what the values mean and whether they belong
together; the equations are docs/methods.md, (4.1) to (4.6).

Error bounds are absolute, for one element, against exact arithmetic on the fp32 inputs.
U = 2^-24 is the relative error of rounding to fp32, TINY = 2^-150 the absolute error of
rounding to an fp32 subnormal.
"""

import math
from collections.abc import Mapping, Sequence

import numpy as np
from jaxtyping import Float32, Float64

from tpv_jax.core.errors import UserError
from tpv_jax.core.leaves import not_finite

_AT_ONCE = 1 << 22
"""Values that are widened to fp64 at a time."""

Leaves = Mapping[str, Float32[np.ndarray, "..."]]


def subtract(minuend: Leaves, subtrahend: Leaves) -> dict[str, np.ndarray]:
  """Returns minuend - subtrahend, as in v_t = P_t - P_i, (4.1).

  >>> subtract({"prompt": np.float32([3, 1])}, {"prompt": np.float32([1, 1])})
  {'prompt': array([2., 0.], dtype=float32)}

  Error: at most U |result|, one rounding. Equal inputs give exactly 0.

  Raises:
    UserError: the leaves differ in name or shape, or a result is not finite.
  """
  refuse_unequal(minuend, subtrahend)
  with np.errstate(over="ignore"):
    return finite(
      # NumPy gives a scalar for the difference of two arrays without axes.
      {name: np.asarray(minuend[name] - subtrahend[name]) for name in sorted(minuend)}
    )


def scale(leaves: Leaves, factor: float) -> dict[str, np.ndarray]:
  """Returns factor * leaves, (4.2); `factor` may have more digits than fp32.

  Error: at most (1 + 2^-28) U |result| + TINY, from a product in fp64 that is rounded
  once more. Exact for a factor of 1, -1 or 0, and for other powers of two unless a result
  is subnormal.

  Raises:
    UserError: a result is not finite.
  """
  return linear([leaves], [factor])


def linear(
  addends: Sequence[Leaves], coefficients: Sequence[float]
) -> dict[str, np.ndarray]:
  """Returns sum_k coefficients[k] * addends[k], (4.3).

  >>> one, other = {"prompt": np.float32([1, 0])}, {"prompt": np.float32([0, 2])}
  >>> linear([one, other], [1.0, 0.5])
  {'prompt': array([1., 1.], dtype=float32)}

  Products and their sum are fp64, rounded to fp32 once. Error for N addends: at most
  U |result| + (N + 1) 2^-53 sum_k |coefficients[k] * addends[k]| + TINY. Products are
  summed in ascending order, so the order of the addends cannot change a bit (ours).

  Raises:
    UserError: there is no addend, the leaves differ in name or shape, or a result is
      not finite.
    ValueError: there are more or fewer coefficients than addends.
  """
  if not addends:
    raise UserError("There is nothing to add. Give at least one vector.")
  for other in addends[1:]:
    refuse_unequal(addends[0], other)
  if len(addends) != len(coefficients):
    raise ValueError(f"{len(coefficients)} coefficients for {len(addends)} addends")
  width = max(1, _AT_ONCE // len(addends))
  results = {}
  for name in sorted(addends[0]):
    flat = [addend[name].reshape(-1) for addend in addends]
    result = np.empty(flat[0].size, np.float32)
    for start in range(0, result.size, width):
      with np.errstate(over="ignore", invalid="ignore"):
        products = np.stack(
          [
            np.float64(coefficient) * one[start : start + width].astype(np.float64)
            for one, coefficient in zip(flat, coefficients, strict=True)
          ]
        )
        result[start : start + width] = _ordered_sum(products)
    results[name] = result.reshape(addends[0][name].shape)
  return finite(results)


def cosine(first: Leaves, second: Leaves) -> float:
  """Returns the cosine of the angle between all values of `first` and of `second`.

  <first, second> / (|first| |second|), (4.6), in fp64 over the leaves in the order of
  their names. Error: at most (n + 4) 2^-52 for n values. The cosine of leaves with
  themselves is exactly 1.

  >>> one, other = {"prompt": np.float32([1, 0])}, {"prompt": np.float32([1, 1])}
  >>> round(cosine(one, other), 4)
  0.7071

  Raises:
    UserError: the leaves differ in name or shape, or one side is all zeros.
  """
  refuse_unequal(first, second)
  x, y = _joined(first), _joined(second)
  square_x, square_y = float(np.dot(x, x)), float(np.dot(y, y))
  if square_x == 0 or square_y == 0:
    raise UserError("One of the two is all zeros and has no direction. Leave it out.")
  product = float(np.dot(x, y)) / math.sqrt(square_x * square_y)
  return min(1.0, max(-1.0, product))


def gram(items: Sequence[Leaves]) -> Float64[np.ndarray, "N N"]:
  """Returns the inner product of every pair over all values, accumulated in fp64.

  Raises:
    UserError: the leaves differ in name or shape.
  """
  for other in items[1:]:
    refuse_unequal(items[0], other)
  products = np.zeros((len(items), len(items)))
  width = max(1, _AT_ONCE // len(items))
  for name in sorted(items[0]):
    flat = [item[name].reshape(-1) for item in items]
    for start in range(0, flat[0].size, width):
      part = np.stack([one[start : start + width].astype(np.float64) for one in flat])
      products += part @ part.T
  return products


def norm(leaves: Leaves) -> float:
  """Returns the Euclidean norm of all values together, accumulated in fp64.

  >>> norm({"prompt": np.float32([3]), "delta": np.float32([4])})
  5.0
  """
  squares = 0.0
  for name in sorted(leaves):
    flat = leaves[name].reshape(-1)
    for start in range(0, flat.size, _AT_ONCE):
      part = flat[start : start + _AT_ONCE].astype(np.float64)
      squares += float(np.dot(part, part))
  return math.sqrt(squares)


def refuse_unequal(
  first: Leaves,
  second: Leaves,
  first_name: str = "the first",
  second_name: str = "the second",
) -> None:
  """Raises `UserError` unless both have the same leaves with the same shapes."""
  if unequal := sorted(set(first) ^ set(second)):
    raise UserError(
      f"Cannot combine {first_name} and {second_name}: they have other leaves "
      f"({', '.join(sorted(first))} against {', '.join(sorted(second))}; "
      f"'{unequal[0]}' is in one only). Use prompts of one method."
    )
  for name in sorted(first):
    if first[name].shape != second[name].shape:
      raise UserError(
        f"Cannot combine {first_name} and {second_name}: leaf '{name}' has shape "
        f"{_shape(first[name])} in the one and {_shape(second[name])} in the other. "
        "Use prompts of one length and one backbone."
      )


def _ordered_sum(
  products: Float64[np.ndarray, " N *shape"],
) -> np.ndarray | np.floating:
  """Returns the sum over the first axis, the same bits for every permutation of it."""
  if len(products) > 2:
    products.sort(axis=0)
  total = products[0]
  for product in products[1:]:
    total = total + product
  return total


def is_zero(leaves: Mapping[str, np.ndarray]) -> bool:
  """Returns whether all values are 0, so that they have no direction."""
  return not any(leaf.any() for leaf in leaves.values())


def negligible(values: np.ndarray, shape: tuple[int, ...]) -> float:
  """Returns the singular value up to which one may be rounding error of fp32 values.

  The bound is that of NumPy's `matrix_rank`.

  Args:
    values: the singular values of a matrix.
    shape: of the matrix.
  """
  return float(values.max(initial=0.0)) * max(shape) * float(np.finfo(np.float32).eps)


def finite(leaves: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
  """Returns the leaves; raises `UserError` if a value is NaN or infinite."""
  for name, leaf in leaves.items():
    if wrong := not_finite(leaf):
      raise UserError(
        f"The result does not fit into fp32: leaf '{name}' would hold {wrong}. Choose "
        "smaller coefficients."
      )
  return leaves


def _joined(leaves: Leaves) -> Float64[np.ndarray, " n"]:
  return np.concatenate(
    [leaves[name].reshape(-1).astype(np.float64) for name in sorted(leaves)]
  )


def _shape(leaf: np.ndarray) -> str:
  return str(list(leaf.shape))

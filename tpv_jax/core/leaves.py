"""Leaves whose values are read only when they are needed, one after the other.

A mapping from paths to such leaves stands for a whole backbone without holding it:
`np.asarray(leaf)` reads one, and nothing keeps it. NumPy only.
"""

import dataclasses
import math
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from tpv_jax.core import errors


def not_finite(values: np.ndarray) -> str | None:
  """Returns how many values are NaN or infinite, and where; None if all are finite."""
  with np.errstate(invalid="ignore"):  # Of a NaN that signals.
    finite = np.isfinite(values)
  if finite.all():
    return None
  where = np.unravel_index(int(np.argmin(finite)), values.shape)
  return (
    f"{values.size - int(finite.sum())} values that are NaN or infinite, the first at "
    f"{tuple(map(int, where))}"
  )


@dataclasses.dataclass(frozen=True)
class Leaf:
  """An array that is not read yet: `np.asarray` reads its values.

  Attributes:
    shape: of the array.
    dtype: of the array.
    read: reads and returns the array, at every call.
    source: its name where it is stored, for messages.
  """

  shape: tuple[int, ...]
  dtype: np.dtype
  read: Callable[[], np.ndarray]
  source: str = ""

  @property
  def nbytes(self) -> int:
    """Bytes of the values."""
    return math.prod(self.shape) * self.dtype.itemsize

  def __array__(self, dtype: Any = None, copy: bool | None = None) -> np.ndarray:
    values = self.read()
    assert values.shape == self.shape, self.source
    assert values.dtype == self.dtype, self.source
    return values if dtype is None else values.astype(dtype, copy=False)

  def transposed(self) -> "Leaf":
    """Returns the leaf with its axes in reverse order, in C order when it is read."""
    return dataclasses.replace(
      self,
      shape=self.shape[::-1],
      read=lambda: np.ascontiguousarray(self.read().T),
    )

  def cast(self, dtype: np.dtype) -> "Leaf":
    """Returns the leaf with its values rounded to `dtype` when it is read."""
    if dtype == self.dtype:
      return self
    return dataclasses.replace(
      self, dtype=np.dtype(dtype), read=lambda: self.read().astype(dtype)
    )


def read_all(flat: Mapping[str, Any]) -> dict[str, np.ndarray]:
  """Returns the values of all leaves by path, read one after the other."""
  return {path: np.asarray(leaf) for path, leaf in flat.items()}


def misfits(expected: Mapping[str, tuple[int, ...]], flat: Mapping[str, Any]) -> str:
  """Returns how leaves differ, by name and shape, from those expected, or ''."""
  shapes = [
    f"{path} is {tuple(flat[path].shape)} and must be {tuple(expected[path])}"
    for path in sorted(expected.keys() & flat.keys())
    if tuple(flat[path].shape) != tuple(expected[path])
  ]
  faults = [
    f"{len(names)} {what} ({errors.some(names)})"
    for what, names in (
      ("missing", sorted(expected.keys() - flat.keys())),
      ("foreign", sorted(flat.keys() - expected.keys())),
      ("of another shape", shapes),
    )
    if names
  ]
  return f"of {len(expected)} leaves {', '.join(faults)}" if faults else ""

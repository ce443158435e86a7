"""Averages that merge over batches and devices: clu's, which T5X needs, or ours like it."""

from typing import Any

import jax.numpy as jnp
from flax import struct


@struct.dataclass
class _Average:
  """A weighted mean that merges, as clu's `metrics.Average` of the same fields.

  Attributes:
    total: the sum of the values, weighted.
    count: the sum of the weights.
  """

  total: Any
  count: Any

  def merge(self, other: "_Average") -> "_Average":
    """Returns the mean over the values of both."""
    return _Average(total=self.total + other.total, count=self.count + other.count)

  def compute(self) -> Any:
    """Returns the mean; NaN if there are no values."""
    return jnp.asarray(self.total) / self.count


try:
  from clu.metrics import Average as Average
except ImportError:  # A machine without what T5X brings.
  Average = _Average

"""Attention with T5's relative bias."""

import functools
from typing import Any

import jax.numpy as jnp
import numpy as np
from flax import linen as nn
from flax.linen.partitioning import param_with_axes
from jaxtyping import Array, Bool, Float, Int

from tpv_jax.backbones.attention import attention
from tpv_jax.backbones.layers import Dense

_fan_in_normal = nn.initializers.variance_scaling(1.0, "fan_in", "normal")
_fan_avg_uniform = nn.initializers.variance_scaling(1.0, "fan_avg", "uniform")


RELATIVE_BUCKETS = 32
RELATIVE_MAX_DISTANCE = 128


def relative_buckets(
  queries: int, keys: int, bidirectional: bool
) -> Int[np.ndarray, "queries keys"]:
  """Returns T5's bucket for each distance `key position - query position`.

  Half of the buckets hold one distance each, the others grow logarithmically up to
  `RELATIVE_MAX_DISTANCE`. A bidirectional table splits the buckets between the two
  directions; a causal one puts future keys into the bucket of distance 0 (the mask hides
  them). The logarithms are fp32 and have T5X's epsilon, so that exact powers fall into the
  same bucket as there.
  """
  distance = np.arange(keys)[None, :] - np.arange(queries)[:, None]
  buckets = RELATIVE_BUCKETS
  if bidirectional:
    buckets //= 2
    offset = np.where(distance > 0, buckets, 0)
    distance = np.abs(distance)
  else:
    offset = np.zeros_like(distance)
    distance = np.maximum(-distance, 0)
  exact = buckets // 2
  ratio = distance.astype(np.float32) / exact + np.finfo(np.float32).eps
  logarithmic = exact + (
    np.log(ratio) / np.log(RELATIVE_MAX_DISTANCE / exact) * (buckets - exact)
  ).astype(np.int32)
  far = np.minimum(logarithmic, buckets - 1)
  return (offset + np.where(distance < exact, distance, far)).astype(np.int32)


class RelativeBias(nn.Module):
  """The learned bias of an attention logit for the distance from query to key."""

  num_heads: int
  bidirectional: bool

  @nn.compact
  def __call__(self, queries: int, keys: int) -> Float[Array, "1 heads queries keys"]:
    table = param_with_axes(
      "rel_embedding",
      _fan_avg_uniform,
      (self.num_heads, RELATIVE_BUCKETS),
      jnp.float32,
      axes=("heads", "relpos_buckets"),
    )
    buckets = relative_buckets(queries, keys, self.bidirectional)
    return jnp.take(table.astype(jnp.float32), buckets, axis=1)[None]


class Attention(nn.Module):
  """Multi-head attention without a scale of its logits, which T5's weights include."""

  num_heads: int
  head_dim: int
  features: int
  dropout_rate: float
  dtype: str

  def setup(self) -> None:
    joined = self.num_heads * self.head_dim
    project = functools.partial(
      Dense, features=joined, axes=("embed", "joined_kv"), dtype=self.dtype
    )
    self.query = project(kernel_init=self._query_init)
    self.key = project(kernel_init=_fan_in_normal)
    self.value = project(kernel_init=_fan_in_normal)
    self.out = Dense(
      self.features, ("joined_kv", "embed"), self.dtype, kernel_init=_fan_in_normal
    )
    self.dropout = nn.Dropout(self.dropout_rate, broadcast_dims=(-1,))

  def _query_init(self, *args: Any) -> Array:
    return _fan_in_normal(*args) / jnp.sqrt(self.head_dim)

  def _heads(
    self, x: Float[Array, "B joined both"]
  ) -> Float[Array, "B joined heads width"]:
    return x.reshape(*x.shape[:-1], self.num_heads, self.head_dim)

  def keys_values(
    self, x: Float[Array, "B joined D"]
  ) -> tuple[
    Float[Array, "B joined heads width"], Float[Array, "B joined heads width"]
  ]:
    """Returns the keys and the values of `x`, by head."""
    return self._heads(self.key(x)), self._heads(self.value(x))

  def __call__(
    self,
    x: Float[Array, "B queries D"],
    keys_values: tuple[
      Float[Array, "B joined heads width"], Float[Array, "B joined heads width"]
    ],
    mask: Bool[Array, "#B 1 #queries joined"],
    bias: Float[Array, "1 heads queries joined"] | None,
    deterministic: bool,
  ) -> Float[Array, "B queries D"]:
    """Returns the attention of the queries of `x` to the keys that `mask` shows them."""
    keys, values = keys_values
    # T5X drops attention weights, the same ones for all queries. That is the same as
    # dropping a head's values at a key.
    values = self.dropout(values, deterministic=deterministic)
    attended = attention(self._heads(self.query(x)), keys, values, mask, bias)
    return self.out(attended.reshape(*attended.shape[:-2], -1))

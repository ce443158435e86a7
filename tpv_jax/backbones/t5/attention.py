"""Attention with T5's relative bias, and its own backward pass.

The backward pass is docs/methods.md, "Attention's backward pass".
"""

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn
from flax.linen.partitioning import param_with_axes
from jaxtyping import Array, Bool, Float, Int

from tpv_jax.backbones.t5.layers import Dense

_fan_in_normal = nn.initializers.variance_scaling(1.0, "fan_in", "normal")
_fan_avg_uniform = nn.initializers.variance_scaling(1.0, "fan_avg", "uniform")


MASKED = -1e10
"""Attention logit of a hidden key. Finite, so that a query without keys gives no NaN."""

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


@jax.custom_vjp
def attention(
  queries: Float[Array, "B queries heads width"],
  keys: Float[Array, "B joined heads width"],
  values: Float[Array, "B joined heads width"],
  mask: Bool[Array, "#B 1 #queries joined"],
  bias: Float[Array, "1 heads queries joined"] | None,
) -> Float[Array, "B queries heads width"]:
  """Returns the mean of the values, weighted by the softmax of `queries @ keys + bias`.

  Only keys that the mask shows have a weight; a query that sees none takes the plain mean
  of all values. Logits and softmax are fp32; matrix products have factors in the dtype of
  the queries.

  The backward pass is written out: docs/methods.md, (7.5) to (7.12), as in FlashAttention
  (Dao et al. 2022), without its tiles. It keeps only one array as large as the logits, and
  multiplies in the dtype of the queries, where JAX's own backward pass would multiply in
  fp32 (benchmarks/NOTES.md).
  """
  return _attention_forward(queries, keys, values, mask, bias)[0]


def _attention_forward(
  queries: Any, keys: Any, values: Any, mask: Any, bias: Any
) -> tuple[Array, tuple[Any, ...]]:
  # 1. Logits, with hidden keys at a large negative number: (7.5).
  logits = _products("bqhk,bshk->bhqs", queries, keys)
  if bias is not None:
    logits = logits + bias
  logits = jnp.where(mask, logits, MASKED)
  # 2. Exponentials, shifted so that the largest is 1: (7.6). The weights are
  #    exponentials * share, and never lie in memory.
  exponentials = jnp.exp(logits - jnp.max(logits, axis=-1, keepdims=True))
  exponentials = exponentials.astype(queries.dtype)
  # 3. One over the sum of each query's exponentials, in fp32: (7.7).
  total = jnp.sum(exponentials, axis=-1, dtype=jnp.float32)
  share = 1.0 / total.swapaxes(1, 2)[..., None]
  # 4. Values weighted by exponentials, then divided: (7.8).
  attended = _products("bhqs,bshk->bqhk", exponentials, values) * share
  attended = attended.astype(queries.dtype)
  kept = (queries, keys, values, mask, bias is None, exponentials, share, attended)
  return attended, kept


def _attention_backward(
  kept: tuple[Any, ...], gradient: Array
) -> tuple[Array, Array, Array, None, Array | None]:
  queries, keys, values, mask, without_bias, exponentials, share, attended = kept
  # 5. The gradient, divided as the exponentials were: (7.9).
  scaled = (gradient * share).astype(queries.dtype)
  # 6. The softmax's own term, one number for each query and head: (7.10).
  mean = jnp.sum(scaled.astype(jnp.float32) * attended, axis=-1).swapaxes(1, 2)
  # 7. The gradient of the logits, 0 at hidden keys, which are constants: (7.11).
  slope = _products("bqhk,bshk->bhqs", scaled, values) - mean[..., None]
  slope = jnp.where(mask, exponentials * slope, 0.0)
  # 8. The gradients of bias (summed in fp32), queries, keys and values: (7.12).
  of_bias = None if without_bias else jnp.sum(slope, axis=0, keepdims=True)
  slope = slope.astype(queries.dtype)
  return (
    jnp.einsum("bhqs,bshk->bqhk", slope, keys),
    jnp.einsum("bhqs,bqhk->bshk", slope, queries),
    jnp.einsum("bhqs,bqhk->bshk", exponentials, scaled),
    None,
    of_bias,
  )


attention.defvjp(_attention_forward, _attention_backward)


def _products(indices: str, x: Any, y: Any) -> Array:
  """Returns the einsum, accumulated and returned in fp32 whatever the factors are."""
  return jnp.einsum(indices, x, y, preferred_element_type=jnp.float32)


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

"""Attention, and its own backward pass, which all families of backbones share.

The backward pass is docs/methods.md, "Attention's backward pass".
"""

from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

MASKED = -1e10
"""Attention logit of a hidden key. Finite, so that a query without keys gives no NaN."""


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

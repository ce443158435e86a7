"""Greedy decoding with a key-value cache."""

from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int, Num

from tpv_jax.backbone import network as network_lib


def greedy(
  network: network_lib.Transformer,
  backbone: Mapping[str, Any],
  encoded: Float[Array, "B joined D"],
  encoder_input_tokens: Num[network_lib.AnyArray, "B T"],
  target_length: int,
  eos_id: int = 1,
) -> tuple[Int[Array, "B L"], Float[Array, " B"]]:
  """Returns the most probable token of each step, and their log-probabilities' sum.

  A row ends with its first `eos_id`, which counts in its score; 0 follows. A row of
  padding only (what fills up a last batch) is over before it starts, with score 0. The
  loop stops when all rows are over or `target_length` tokens are written. The keys and
  values of the source are computed once.

  Args:
    network: whose method `decode_step` is called.
    backbone: its parameters.
    encoded: from `network.encode`, with the prompt's positions if it had one.
    encoder_input_tokens: the source, for its padding.
    target_length: L, the most tokens to write.
    eos_id: the end token.
  """
  variables = {"params": backbone}
  cache: Any = network.apply(
    variables,
    encoded,
    encoder_input_tokens,
    target_length,
    method=network.start_decoding,
  )
  rows = encoded.shape[0]

  def go_on(state: tuple) -> Array:
    index, _, over, *_ = state
    return (index < target_length) & ~jnp.all(over)

  def step(state: tuple) -> tuple:
    index, last, over, tokens, scores, self_keys_values = state
    output: Any = network.apply(
      variables,
      last,
      index,
      cache.replace(self_keys_values=self_keys_values),
      method=network.decode_step,
    )
    logits, written = output
    best = jnp.argmax(logits, axis=-1).astype(jnp.int32)
    log_probability = jnp.max(logits, axis=-1) - jax.nn.logsumexp(logits, axis=-1)
    scores = scores + jnp.where(over, 0.0, log_probability)
    last = jnp.where(over, 0, best)
    tokens = jax.lax.dynamic_update_slice_in_dim(tokens, last[:, None], index, axis=1)
    over = over | (last == eos_id)
    return index + 1, last, over, tokens, scores, written.self_keys_values

  start = (
    jnp.zeros((), jnp.int32),
    jnp.zeros((rows,), jnp.int32),
    jnp.all(jnp.asarray(encoder_input_tokens) == 0, axis=1),
    jnp.zeros((rows, target_length), jnp.int32),
    jnp.zeros((rows,), jnp.float32),
    cache.self_keys_values,
  )
  _, _, _, tokens, scores, _ = jax.lax.while_loop(go_on, step, start)
  return tokens, scores

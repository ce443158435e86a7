"""Greedy decoding and beam search, with a key-value cache."""

from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from tpv_jax.backbones.protocol import Network


def decode(
  network: Network,
  backbone: Mapping[str, Any],
  cache: Any,
  empty: Bool[Array, " B"],
  target_length: int,
  end_ids: Sequence[int] = (1,),
  num_beams: int = 1,
  length_penalty: float | Float[Array, ""] = 1.0,
) -> tuple[Int[Array, "B L"], Float[Array, " B"]]:
  """Returns the tokens of each row and their score, by `greedy` or from the best beam.

  With one beam the score is a sum of log-probabilities; with several it is divided by the
  length as in `beam_search`.
  """
  inputs = (network, backbone, cache, empty, target_length, end_ids)
  if num_beams == 1:
    return greedy(*inputs)
  tokens, scores = beam_search(*inputs, num_beams, length_penalty)
  return tokens[:, 0], scores[:, 0]


def greedy(
  network: Network,
  backbone: Mapping[str, Any],
  cache: Any,
  empty: Bool[Array, " B"],
  target_length: int,
  end_ids: Sequence[int] = (1,),
) -> tuple[Int[Array, "B L"], Float[Array, " B"]]:
  """Returns the most probable token at each step, and the sum of their log-probabilities.

  A row ends with its first end token, which counts in its score; zeros follow. An empty row
  has no tokens and scores 0. The loop stops when all rows have ended or `target_length`
  tokens are written.

  Args:
    network: its method `decode_step` is called.
    backbone: its parameters.
    cache: from `network.start_decoding`, with the keys and values of the source.
    empty: which rows are only padding, as in the last batch.
    target_length: L, the most tokens to write.
    end_ids: the tokens that end a row.
  """
  variables = {"params": backbone}
  ends = jnp.asarray(end_ids)
  rows = len(empty)

  def go_on(state: tuple[Any, ...]) -> Array:
    index, _, over, *_ = state
    return (index < target_length) & ~jnp.all(over)

  def step(state: tuple[Any, ...]) -> tuple[Any, ...]:
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
    over = over | jnp.isin(last, ends)
    return index + 1, last, over, tokens, scores, written.self_keys_values

  start = (
    jnp.zeros((), jnp.int32),
    jnp.zeros((rows,), jnp.int32),
    empty,
    jnp.zeros((rows, target_length), jnp.int32),
    jnp.zeros((rows,), jnp.float32),
    cache.self_keys_values,
  )
  _, _, _, tokens, scores, _ = jax.lax.while_loop(go_on, step, start)
  return tokens, scores


def beam_search(
  network: Network,
  backbone: Mapping[str, Any],
  cache: Any,
  empty: Bool[Array, " B"],
  target_length: int,
  end_ids: Sequence[int] = (1,),
  num_beams: int = 4,
  length_penalty: float | Float[Array, ""] = 1.0,
) -> tuple[Int[Array, "B beams L"], Float[Array, "B beams"]]:
  """Returns the finished hypotheses of each row with the best scores, the best one first.

  The conventions are those of `transformers`' `generate(num_beams=..., do_sample=False,
  length_penalty=..., early_stopping=False)`:

  - The score of a hypothesis is its log-probability over `length ** length_penalty`; its
    length counts the end token. So 0 prefers short hypotheses, and larger values longer ones.
  - Each step takes the `2 * num_beams` best continuations (more if there are several end
    tokens, so that enough of them do not end). Of those that do not end, the
    `num_beams` best go on. Those that end count as finished if they are among the
    `num_beams` best of all. A hypothesis of `target_length` tokens is finished, too.
  - A row stops when it has `num_beams` finished hypotheses and the best unfinished one
    would not beat the worst of them if it ended now. For a positive penalty this is a
    heuristic: it might beat it later.

  T5X's own beam search differs: it divides by `((5 + length) / 6) ** 0.6`, compares with
  the best score that is possible at full length, and puts the best beam last.

  Zeros follow the end token. An empty row has no tokens and scores 0. All beams of a row
  share the source's keys and values.

  Args: see `greedy`, and
    num_beams: hypotheses kept at each step.
    length_penalty: the exponent.

  Returns: tokens and scores; where there are fewer hypotheses than beams, the last ones
    are empty and score minus infinity.
  """
  variables = {"params": backbone}
  rows = len(empty)
  one_each = jnp.repeat(jnp.arange(rows), num_beams)

  def of_beams(values: Any, beams: Int[Array, "B chosen"]) -> Any:
    """Returns the values [B, chosen, ...] of each row's chosen beams."""
    index = beams.reshape(beams.shape + (1,) * (values.ndim - 2))
    return jnp.take_along_axis(values, index, axis=1)

  def go_on(state: tuple[Any, ...]) -> Array:
    index, still_open, *_ = state
    return (index < target_length) & jnp.any(still_open)

  def step(state: tuple[Any, ...]) -> tuple[Any, ...]:
    index, still_open, tokens, scores, best, best_scores, self_keys_values = state
    last = jnp.where(index > 0, tokens[:, :, index - 1], 0).reshape(-1)
    output: Any = network.apply(
      variables,
      last,
      index,
      cache.replace(self_keys_values=self_keys_values),
      method=network.decode_step,
    )
    logits, written = output
    following = jax.nn.log_softmax(logits).reshape(rows, num_beams, -1)
    every = (following + scores[:, :, None]).reshape(rows, -1)
    # Enough go on, because each beam has only so many end tokens.
    count = (1 + len(end_ids)) * num_beams
    scores, place = jax.lax.top_k(every, count)
    beam, token = jnp.divmod(place, following.shape[-1])
    tokens = of_beams(tokens, beam).at[:, :, index].set(token.astype(jnp.int32))

    length = jnp.asarray(index + 1, jnp.float32) ** length_penalty
    ends = jnp.isin(token, jnp.asarray(end_ids)) | (index + 1 == target_length)
    counts = ends & (jnp.arange(count) < num_beams) & still_open[:, None]
    candidates = jnp.concatenate(
      [best_scores, jnp.where(counts, scores / length, -jnp.inf)], axis=1
    )
    best_scores, chosen = jax.lax.top_k(candidates, num_beams)
    best = of_beams(jnp.concatenate([best, tokens], axis=1), chosen)

    scores, chosen = jax.lax.top_k(jnp.where(ends, -jnp.inf, scores), num_beams)
    still_open = still_open & (scores[:, 0] / length > best_scores[:, -1])
    beam = of_beams(beam, chosen)
    kept = jax.tree.map(
      lambda values: of_beams(
        values.reshape(rows, num_beams, *values.shape[1:]), beam
      ).reshape(values.shape),
      written.self_keys_values,
    )
    tokens = of_beams(tokens, chosen)
    return index + 1, still_open, tokens, scores, best, best_scores, kept

  none = jnp.full((rows, num_beams), -jnp.inf)
  no_tokens = jnp.zeros((rows, num_beams, target_length), jnp.int32)
  start = (
    jnp.zeros((), jnp.int32),
    ~empty,
    no_tokens,
    none.at[:, 0].set(0.0),  # One beam at the start, or all would stay equal.
    no_tokens,
    none,
    jax.tree.map(lambda values: values[one_each], cache.self_keys_values),
  )
  _, _, _, _, best, best_scores, _ = jax.lax.while_loop(go_on, step, start)
  return best, jnp.where(empty[:, None], 0.0, best_scores)

"""Greedy decoding, sampling and beam search, with a key-value cache."""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int, Key

from tpv_jax.backbones.protocol import Network
from tpv_jax.core.checks import NotNegative, Seed, Share, Size, check_fields
from tpv_jax.core.errors import UserError

_MOST_SCALE = 1e30
"""The most that logits are multiplied by; only the largest are then ever drawn."""


@dataclasses.dataclass(frozen=True)
class Choice:
  """How the tokens of an answer are chosen: greedily, by beam search, or drawn.

  Attributes:
    num_beams: of beam search; 1 writes token after token.
    length_penalty: of beam search, see `beam_search`.
    temperature: tokens are drawn from the softmax of the logits over it; 0 takes the most
      probable token.
    top_p: tokens are drawn from the `nucleus` of this probability; 1 has all tokens.
    sampling_seed: with the number of an example it determines what is drawn for it.
  """

  num_beams: Size = 1
  length_penalty: float = 1.0
  temperature: NotNegative = 0.0
  top_p: Share = 1.0
  sampling_seed: Seed = 0

  def __post_init__(self) -> None:
    """Raises `UserError` for settings that do not go together."""
    check_fields(self)
    if self.num_beams > 1 and self.temperature:
      raise UserError(
        f"NUM_BEAMS = {self.num_beams} searches for the most probable answer, and "
        f"TEMPERATURE = {self.temperature:g} draws one. Set NUM_BEAMS = 1 or TEMPERATURE "
        "= 0."
      )
    if self.num_beams == 1 and self.length_penalty != 1:
      raise UserError(
        f"LENGTH_PENALTY = {self.length_penalty:g} compares the answers of a beam search, "
        "and NUM_BEAMS is 1. Set NUM_BEAMS to at least 2, or leave LENGTH_PENALTY out."
      )
    if not self.temperature and (self.top_p, self.sampling_seed) != (1, 0):
      raise UserError(
        f"TOP_P = {self.top_p:g} and SAMPLING_SEED = {self.sampling_seed} say how tokens "
        "are drawn, and with TEMPERATURE = 0 none is. Set TEMPERATURE (1 draws by the "
        "model's own probabilities), or leave them out."
      )

  @property
  def is_greedy(self) -> bool:
    """Whether each token is the most probable one."""
    return self.num_beams == 1 and not self.temperature

  def to_json(self) -> dict[str, Any]:
    """Returns the settings as a report states them: those that say something."""
    names = ["num_beams"] if self.is_greedy else ["num_beams", "length_penalty"]
    if self.temperature:
      names = ["temperature", "top_p", "sampling_seed"]
    return {name: getattr(self, name) for name in names}

  def __str__(self) -> str:
    """Returns the settings in words: 'drawn at temperature 0.7, top_p 0.9, seed 0'."""
    if self.temperature:
      return (
        f"drawn at temperature {self.temperature:g}, top_p {self.top_p:g}, seed "
        f"{self.sampling_seed}"
      )
    if self.num_beams > 1:
      return f"{self.num_beams} beams, length penalty {self.length_penalty:g}"
    return "greedy"


GREEDY = Choice()


class Written(NamedTuple):
  """What has been written, and what the next token is chosen with.

  Attributes:
    length: how many tokens each row has.
    last: the newest token of each row, 0 after its end.
    over: which rows have ended.
    scores: the sum of the log-probabilities of each row's tokens.
    keys: of each row's example, by which its tokens are drawn; None if none is.
    self_keys_values: see `Network.decode_step`.
  """

  length: Int[Array, ""]
  last: Int[Array, " B"]
  over: Bool[Array, " B"]
  scores: Float[Array, " B"]
  keys: Key[Array, " B"] | None
  self_keys_values: Any


def decode(
  network: Network,
  backbone: Mapping[str, Any],
  cache: Any,
  empty: Bool[Array, " B"],
  target_length: int,
  end_ids: Sequence[int] = (1,),
  choice: Choice = GREEDY,
  examples: Int[Array, " B"] | None = None,
) -> tuple[Int[Array, "B L"], Float[Array, " B"]]:
  """Returns the tokens of each row and their score, by `write` or from the best beam.

  With one beam the score is a sum of log-probabilities; with several it is divided by the
  length as in `beam_search`.
  """
  inputs = (network, backbone, cache, empty, target_length, end_ids)
  if choice.num_beams == 1:
    return write(*inputs, choice, examples)
  tokens, scores = beam_search(*inputs, choice.num_beams, choice.length_penalty)
  return tokens[:, 0], scores[:, 0]


def write(
  network: Network,
  backbone: Mapping[str, Any],
  cache: Any,
  empty: Bool[Array, " B"],
  target_length: int,
  end_ids: Sequence[int] = (1,),
  choice: Choice = GREEDY,
  examples: Int[Array, " B"] | None = None,
) -> tuple[Int[Array, "B L"], Float[Array, " B"]]:
  """Returns the tokens that `write_token` writes, and their score.

  Zeros follow a row's end token. An empty row has no tokens and scores 0. The loop stops
  when all rows have ended or `target_length` tokens are written.

  Args:
    network: its method `decode_step` is called.
    backbone: its parameters.
    cache: from `network.start_decoding`, with the keys and values of the source.
    empty: which rows are only padding, as in the last batch.
    target_length: L, the most tokens to write.
    end_ids: the tokens that end a row.
    choice: greedy, or how tokens are drawn.
    examples: see `begin`.
  """

  def go_on(state: tuple[Written, Array]) -> Array:
    written, _ = state
    return (written.length < target_length) & ~jnp.all(written.over)

  def step(state: tuple[Written, Array]) -> tuple[Written, Array]:
    written, tokens = state
    index = written.length
    written = write_token(network, backbone, cache, written, end_ids, choice)
    return written, jax.lax.dynamic_update_slice_in_dim(
      tokens, written.last[:, None], index, axis=1
    )

  start = begin(cache, empty, choice, examples)
  no_tokens = jnp.zeros((len(empty), target_length), jnp.int32)
  written, tokens = jax.lax.while_loop(go_on, step, (start, no_tokens))
  return tokens, written.scores


def begin(
  cache: Any,
  empty: Bool[Array, " B"],
  choice: Choice = GREEDY,
  examples: Int[Array, " B"] | None = None,
) -> Written:
  """Returns what `write_token` starts from: nothing is written yet.

  Args:
    cache: from `network.start_decoding`.
    empty: which rows are only padding, and over before they start.
    choice: how tokens are chosen.
    examples: if tokens are drawn, the number of each row's example. Equal numbers draw
      alike, whatever else is in the batch.
  """
  keys = None
  if choice.temperature:
    assert examples is not None
    # Other generators may give a row other bits in another batch.
    seed = jax.random.key(choice.sampling_seed, impl="threefry2x32")
    keys = jax.vmap(jax.random.fold_in, (None, 0))(seed, examples)
  rows = len(empty)
  return Written(
    jnp.zeros((), jnp.int32),
    jnp.zeros((rows,), jnp.int32),
    empty,
    jnp.zeros((rows,), jnp.float32),
    keys,
    cache.self_keys_values,
  )


def write_token(
  network: Network,
  backbone: Mapping[str, Any],
  cache: Any,
  written: Written,
  end_ids: Sequence[int] = (1,),
  choice: Choice = GREEDY,
) -> Written:
  """Returns what is written when each row has one token more; rows that are over get 0.

  The token is the most probable one, or is drawn at the temperature of `choice` from the
  `nucleus`. A row ends with its first end token, which counts in its score. The score is
  the model's own log-probability, whatever the temperature and the nucleus.
  """
  output: Any = network.apply(
    {"params": backbone},
    written.last,
    written.length,
    cache.replace(self_keys_values=written.self_keys_values),
    method=network.decode_step,
  )
  logits, cache = output
  logits = logits.astype(jnp.float32)
  if written.keys is None:
    chosen = jnp.argmax(logits, axis=-1)
    own = jnp.max(logits, axis=-1)
  else:
    keys = jax.vmap(jax.random.fold_in, (0, None))(written.keys, written.length)
    chosen = jax.vmap(jax.random.categorical)(keys, sharpened(logits, choice))
    own = jnp.take_along_axis(logits, chosen[:, None], axis=-1)[:, 0]
  log_probability = own - jax.nn.logsumexp(logits, axis=-1)
  last = jnp.where(written.over, 0, chosen.astype(jnp.int32))
  return Written(
    written.length + 1,
    last,
    written.over | jnp.isin(last, jnp.asarray(end_ids)),
    written.scores + jnp.where(written.over, 0.0, log_probability),
    written.keys,
    cache.self_keys_values,
  )


def sharpened(logits: Float[Array, "B V"], choice: Choice) -> Float[Array, "B V"]:
  """Returns the logits of the distribution from which tokens are drawn (fp32).

  First the temperature divides them, then the nucleus is taken, as in `transformers`.
  """
  scale = min(max(1 / choice.temperature, 1 / _MOST_SCALE), _MOST_SCALE)
  logits = (logits - jnp.max(logits, axis=-1, keepdims=True)) * scale
  return logits if choice.top_p == 1 else nucleus(logits, choice.top_p)


def nucleus(logits: Float[Array, "B V"], top_p: float) -> Float[Array, "B V"]:
  """Returns the logits, minus infinity outside the nucleus.

  The nucleus (Holtzman et al., 2020, section 3.1) is the smallest set of the most probable
  tokens whose probabilities sum to `top_p` or more. Tokens as probable as its last one
  are in it, too (ours).
  """
  ranked = jnp.sort(logits, axis=-1, descending=True)
  probabilities = jax.nn.softmax(ranked, axis=-1)
  before = jnp.cumsum(probabilities, axis=-1) - probabilities
  least = jnp.min(jnp.where(before < top_p, ranked, jnp.inf), axis=-1, keepdims=True)
  return jnp.where(logits >= least, logits, -jnp.inf)


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

  Args: see `write`, and
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

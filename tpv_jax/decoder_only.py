"""Decoder-only models for `model.SoftPromptModel`: how their batches are read and computed.

Batches are those of `encoder_decoder`: a row of sources and a row of targets. Here both are
one row of W + L positions, computed in one causal pass: first the source row, in which each
source stands behind its prompt, then the target row. A target token's position goes on
where its source ends, so rotary positions are those of `[prompt][source][target]` without a
gap, and the mask hides padding and other examples: docs/methods.md, (11.1) to (11.4).

The state of a position predicts the token that follows it. Nothing is shifted in: the place
of a target's start token in `decoder_input_tokens` is a hole that no position sees, and the
first token of a target is predicted from the last position of its source, or of its prompt
if the source is empty. So the choices of one example share its source, and each is computed
as if it stood there alone.

Real T5X has other batches, with a source and its target in one row. `apart` makes ours of
them, in the compiled program.
"""

from collections.abc import Mapping
from typing import Any, ClassVar, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from tpv_jax.backbones import placing
from tpv_jax.backbones.protocol import (
  Architecture,
  DecoderOnlyNetwork,
  Places,
  Targets,
)
from tpv_jax.core.errors import UserError
from tpv_jax.data.batches import PADDING, is_padding
from tpv_jax.prompts.equations import Folded

Params = Mapping[str, Any]
Batch = Mapping[str, Any]


class _Row(NamedTuple):
  """The source row, with its prompts.

  Attributes:
    x: [B, W, D], embedded.
    positions: [B, W], of each within its example, prompt included.
    segments: [B, W], 1, 2, ... for the examples of a row, 0 at padding.
  """

  x: Float[Array, "B W D"]
  positions: Int[Array, "B W"]
  segments: Int[Array, "B W"]


class DecoderOnly(Architecture):
  """The architecture of decoder-only models, as `SoftPromptModel` uses it.

  Attributes:
    network: the backbone.
    lengths: of sources and targets, where a batch has both in one row; see `apart`.
  """

  PREDICTS_SOURCES: ClassVar[bool] = True

  def __init__(
    self, network: DecoderOnlyNetwork, lengths: Mapping[str, int] | None = None
  ):
    self.network = network
    self.lengths = lengths

  def feature_converter(self) -> Any:
    """Returns seqio's converter; call it with `pack=False`. `apart` reads its batches."""
    import seqio

    return seqio.DecoderFeatureConverter

  def targets(self, batch: Batch, with_sources: bool = False) -> Targets:
    """Returns the targets of a batch; with its sources, these stand before them.

    A source token has weight 1 if a position of its example stands before it.
    """
    batch = apart(batch, self.lengths)
    targets = Targets.of(batch)
    if not with_sources:
      return targets
    sources = jnp.asarray(batch["encoder_input_tokens"]).astype(jnp.int32)
    counted = ~is_padding(sources)
    segments = prompts = None
    if targets.segments is not None:
      segments = jnp.asarray(batch["encoder_segment_ids"])
      prompts = jnp.asarray(batch["encoder_prompt_ids"])
      counted &= segments == _before(segments)

    def joined(of_sources: Array | None, of_targets: Any) -> Any:
      if of_sources is None:
        return None
      return jnp.concatenate([of_sources, jnp.asarray(of_targets)], axis=1)

    return Targets(
      joined(sources, targets.tokens),
      joined(counted.astype(jnp.float32), targets.weights),
      joined(segments, targets.segments),
      joined(prompts, targets.prompts),
      first_answer=sources.shape[1],
    )

  def states(
    self,
    backbone: Params,
    folded: Folded | None,
    batch: Batch,
    dropout_rng: Array | None = None,
    with_sources: bool = False,
  ) -> Float[Array, "B L D"]:
    """Returns the states that predict the targets; rows share a prompt or have their own."""
    if "encoder_segment_ids" in batch:
      raise UserError(
        "These rows are packed, and it is not known where a prompt would stand in them. "
        "Build the batches without packing (pack=False)."
      )
    batch = apart(batch, self.lengths)
    targets = jnp.asarray(batch["decoder_target_tokens"])
    segments = (~is_padding(targets)).astype(jnp.int32)
    row = self._source(backbone, folded, batch, targets.shape[1])
    source = batch["encoder_input_tokens"].shape[1] if with_sources else 0
    return self._predicting(
      backbone, row, batch, segments, segments, source, dropout_rng
    )

  def packed_states(
    self, backbone: Params, folded: Folded, batch: Batch, with_sources: bool = False
  ) -> Float[Array, "B L D"]:
    """Returns the states that predict the targets of packed rows, each with its prompt."""
    own = jnp.asarray(batch["decoder_segment_ids"])
    seen = jnp.asarray(batch.get("source_segment_ids", own))
    row = self._packed_source(backbone, folded, batch)
    source = row.x.shape[1] if with_sources else 0
    return self._predicting(backbone, row, batch, own, seen, source)

  def start_decoding(
    self,
    backbone: Params,
    folded: Folded | None,
    batch: Batch,
    target_length: int | None,
  ) -> tuple[Any, Bool[Array, " B"], int]:
    """Returns the cache of the sources, which are empty, and L."""
    batch = apart(batch, self.lengths)
    if target_length is None:
      target_length = batch["decoder_input_tokens"].shape[1]
    row = self._source(backbone, folded, batch, target_length)
    cache = self._apply(
      backbone,
      row.x,
      row.positions,
      _seen(row.segments, row.segments, causal=True),
      _last(row.segments, jnp.ones((len(row.x), 1), jnp.int32))[:, 0],
      target_length,
      method=self.network.start_decoding,
    )
    empty = jnp.all(is_padding(jnp.asarray(batch["encoder_input_tokens"])), axis=1)
    return cache, empty, target_length

  def check_lengths(self, prompt: int, source: int, target: int) -> None:
    """Raises `UserError` if prompt, source and target are longer than the network's rows."""
    most, length = self.network.max_positions, prompt + source + target
    if length > most:
      raise UserError(
        f"A prompt of {prompt} tokens, sources of {source} and targets of {target} make "
        f"rows of {length} positions, and the backbone has {most}. Set LENGTHS['inputs'] "
        f"to at most {max(0, most - prompt - target)}, or shorten the prompt."
      )

  def _source(
    self, backbone: Params, folded: Folded | None, batch: Batch, target_length: int
  ) -> _Row:
    """Returns sources of one example each, behind their prompts.

    Raises:
      UserError: they and targets of `target_length` are longer than the network's rows.
    """
    tokens = jnp.asarray(batch["encoder_input_tokens"]).astype(jnp.int32)
    x = self._embed(backbone, tokens)
    if folded is not None:
      x = placing.place(x, tokens, **folded.leaves())
    rows, width = x.shape[:2]
    length = width - tokens.shape[1]
    self.check_lengths(length, tokens.shape[1], target_length)
    return _Row(
      x,
      jnp.broadcast_to(jnp.arange(width), (rows, width)),
      jnp.pad(
        (~is_padding(tokens)).astype(jnp.int32),
        ((0, 0), (length, 0)),
        constant_values=1,
      ),
    )

  def _packed_source(self, backbone: Params, folded: Folded, batch: Batch) -> _Row:
    """Returns rows of several examples, each behind its own prompt of a bank."""
    tokens = jnp.asarray(batch["encoder_input_tokens"]).astype(jnp.int32)
    places = Places(
      batch["encoder_prompt_ids"], batch["prompt_positions"], batch["encoder_positions"]
    )
    x = self._embed(backbone, tokens)
    x = placing.place(x, tokens, places=places, **folded.leaves())
    return _Row(
      x,
      jnp.where(
        jnp.asarray(places.prompt_positions) > 0,
        places.prompt_positions - 1,
        places.source_positions + folded.prompt.shape[-2],
      ),
      jnp.asarray(batch["encoder_segment_ids"]),
    )

  def _predicting(
    self,
    backbone: Params,
    row: _Row,
    batch: Batch,
    own: Int[Array, "B L"],
    seen: Int[Array, "B L"],
    source: int = 0,
    dropout_rng: Array | None = None,
  ) -> Float[Array, "B predicted D"]:
    """Returns the state that predicts each token.

    Args:
      backbone: its parameters.
      row: the sources.
      batch: has the targets.
      own: the segment of each target position; each is a target of its own.
      seen: the segment of the source that it belongs to.
      source: how many of the source row's last positions are predicted as well.
      dropout_rng: None for no dropout.
    """
    tokens = jnp.asarray(batch["decoder_input_tokens"]).astype(jnp.int32)
    width, length = row.x.shape[1], tokens.shape[1]
    # 1. Number the positions of each target: 0 at its start, which is a hole.
    column = jnp.arange(length)
    start = own != _before(own)
    begin = jax.lax.cummax(jnp.where(start, column, 0), axis=1)
    # 2. Their places go on where their source ends.
    last = _last(row.segments, seen)
    end = jnp.take_along_axis(row.positions, last, axis=1)
    positions = jnp.concatenate([row.positions, end + column - begin], axis=1)
    # 3. Sources see their own, targets their source and themselves, and nobody a hole.
    of_sources = _seen(row.segments, row.segments, causal=True)
    of_targets = _seen(own, own, causal=True) & ~start[:, None, None, :]
    mask = jnp.concatenate(
      [
        jnp.pad(of_sources, ((0, 0), (0, 0), (0, 0), (0, length))),
        jnp.concatenate([_seen(seen, row.segments), of_targets], axis=3),
      ],
      axis=2,
    )
    # 4. Compute both rows at once, and take the states from which tokens are predicted.
    x = jnp.concatenate([row.x, self._embed(backbone, tokens)], axis=1)
    states = self._apply(
      backbone,
      x,
      positions,
      mask,
      enable_dropout=dropout_rng is not None,
      rngs=None if dropout_rng is None else {"dropout": dropout_rng},
      method=self.network.states,
    )
    at = jnp.where(start, last, width + column)
    before = jnp.maximum(jnp.arange(width - source, width) - 1, 0)
    before = jnp.broadcast_to(before, (len(at), source))
    at = jnp.concatenate([before, at], axis=1)
    return jnp.take_along_axis(states, at[..., None], axis=1)

  def _embed(self, backbone: Params, tokens: Array) -> Float[Array, "B W D"]:
    return self._apply(backbone, tokens, method=self.network.embed)

  def _apply(self, backbone: Params, *inputs: Any, **options: Any) -> Any:
    return self.network.apply({"params": backbone}, *inputs, **options)


def apart(batch: Batch, lengths: Mapping[str, int] | None) -> Batch:
  """Returns a batch with sources and targets in rows of their own.

  A batch of `seqio.DecoderFeatureConverter`, (11.5), has rows of T + L ids: the source,
  the target, padding. `decoder_causal_attention` is 1 at the source and at one position
  more, and makes no attention bidirectional. Any other batch is returned as it is.

  Args:
    batch: of `data.batches` or of seqio's converter, not packed.
    lengths: {'inputs': T, 'targets': L}, by which the rows were made.

  Raises:
    UserError: the rows are packed, or not T + L wide, or `lengths` is None.
  """
  if "decoder_causal_attention" not in batch:
    return batch
  if "decoder_segment_ids" in batch:
    raise UserError(
      "These rows are packed, and it is not known where a prompt would stand in them. "
      "Build the batches without packing (pack=False)."
    )
  tokens = jnp.asarray(batch["decoder_target_tokens"]).astype(jnp.int32)
  if lengths is None or tokens.shape[1] != sum(lengths.values()):
    raise UserError(
      f"The batch has sources and targets in one row of {tokens.shape[1]} ids, and the "
      f"model's lengths are {lengths}. Set SoftPromptModel.lengths = %LENGTHS, as "
      "gin_configs/t5x/common.gin does, to the lengths of the data."
    )
  mask = jnp.asarray(batch["decoder_causal_attention"]).astype(jnp.int32)
  size = jnp.maximum(jnp.sum(mask, axis=1, keepdims=True) - 1, 0)  # of each source
  column = jnp.arange(lengths["inputs"])
  at = size + jnp.arange(lengths["targets"])
  targets = jnp.take_along_axis(tokens, at, axis=1)
  features = {
    "encoder_input_tokens": jnp.where(column < size, tokens[:, column], PADDING),
    "decoder_target_tokens": targets,
    "decoder_input_tokens": jnp.pad(targets, ((0, 0), (1, 0)))[:, :-1],
  }
  if "decoder_loss_weights" in batch:
    weights = jnp.asarray(batch["decoder_loss_weights"])
    features["decoder_loss_weights"] = jnp.take_along_axis(weights, at, axis=1)
  if "prompt_ids" in batch:
    features["prompt_ids"] = batch["prompt_ids"]
  return features


def _before(segments: Int[Array, "B W"]) -> Int[Array, "B W"]:
  """Returns the segment of the position before each; -1 before the first."""
  return jnp.pad(segments, ((0, 0), (1, 0)), constant_values=-1)[:, :-1]


def _seen(
  queries: Int[Array, "B queries"], keys: Int[Array, "B keys"], causal: bool = False
) -> Bool[Array, "B 1 queries keys"]:
  """Returns which keys are of the query's segment, padding being of none.

  If `causal`, queries and keys are the same positions, and none sees one behind it.
  """
  queries, keys = jnp.asarray(queries)[:, :, None], jnp.asarray(keys)[:, None, :]
  seen = (queries == keys) & (keys > 0)
  return (jnp.tril(seen) if causal else seen)[:, None]


def _last(segments: Int[Array, "B W"], wanted: Int[Array, "B L"]) -> Int[Array, "B L"]:
  """Returns the index of the last position of each wanted segment, 0 if there is none."""
  column = jnp.arange(segments.shape[1])
  found = jnp.asarray(wanted)[:, :, None] == segments[:, None, :]
  return jnp.max(jnp.where(found, column, 0), axis=-1)

"""Encoder-decoders for `model.SoftPromptModel`: how their batches are read and computed.

A batch is a mapping of arrays with T5X's feature names: `encoder_input_tokens` [B, T];
`decoder_input_tokens`, `decoder_target_tokens` and `decoder_loss_weights` [B, L]. Packed
batches also have `*_segment_ids` and `*_positions` (`data.batches`, `data.packing`).
"""

from collections.abc import Mapping
from typing import Any

import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from tpv_jax.backbones.protocol import (
  Architecture,
  EncoderDecoderNetwork,
  Places,
  Targets,
)
from tpv_jax.data.batches import is_padding
from tpv_jax.prompts.equations import Folded

Params = Mapping[str, Any]
Batch = Mapping[str, Any]


class EncoderDecoder(Architecture):
  """The architecture of encoder-decoders, as `SoftPromptModel` uses it.

  Attributes:
    network: the backbone.
  """

  def __init__(
    self, network: EncoderDecoderNetwork, lengths: Mapping[str, int] | None = None
  ):
    del lengths  # Sources and targets have rows of their own.
    self.network = network

  def feature_converter(self) -> Any:
    """Returns seqio's converter; call it with `pack=False`."""
    import seqio

    return seqio.EncDecFeatureConverter

  def targets(self, batch: Batch, with_sources: bool = False) -> Targets:
    """Returns the targets of a batch."""
    del with_sources  # An encoder does not predict them.
    return Targets.of(batch)

  def states(
    self,
    backbone: Params,
    folded: Folded | None,
    batch: Batch,
    dropout_rng: Array | None = None,
    with_sources: bool = False,
  ) -> Float[Array, "B L D"]:
    """Returns the decoder's states at each target; rows share a prompt or have their own."""
    del with_sources
    return self._apply(
      backbone,
      batch["encoder_input_tokens"],
      batch["decoder_input_tokens"],
      batch["decoder_target_tokens"],
      encoder_segment_ids=batch.get("encoder_segment_ids"),
      decoder_segment_ids=batch.get("decoder_segment_ids"),
      enable_dropout=dropout_rng is not None,
      rngs=None if dropout_rng is None else {"dropout": dropout_rng},
      outputs="states",
      **_leaves(folded),
    )

  def packed_states(
    self, backbone: Params, folded: Folded, batch: Batch, with_sources: bool = False
  ) -> Float[Array, "B L D"]:
    """Returns the decoder's states at each target of packed rows, each with its prompt."""
    del with_sources
    return self._apply(
      backbone,
      batch["encoder_input_tokens"],
      batch["decoder_input_tokens"],
      batch["decoder_target_tokens"],
      encoder_segment_ids=batch["encoder_segment_ids"],
      decoder_segment_ids=batch["decoder_segment_ids"],
      source_segment_ids=batch.get("source_segment_ids"),
      places=Places(
        batch["encoder_prompt_ids"],
        batch["prompt_positions"],
        batch["encoder_positions"],
      ),
      outputs="states",
      **_leaves(folded),
    )

  def start_decoding(
    self,
    backbone: Params,
    folded: Folded | None,
    batch: Batch,
    target_length: int | None,
  ) -> tuple[Any, Bool[Array, " B"], int]:
    """Returns the cache of the encoded sources, which are empty, and L."""
    source = jnp.asarray(batch["encoder_input_tokens"])
    if target_length is None:
      target_length = batch["decoder_input_tokens"].shape[1]
    encoded = self._apply(
      backbone, source, method=self.network.encode, **_leaves(folded)
    )
    cache = self._apply(
      backbone, encoded, source, target_length, method=self.network.start_decoding
    )
    return cache, jnp.all(is_padding(source), axis=1), target_length

  def check_lengths(self, prompt: int, source: int, target: int) -> None:
    """Relative positions have no limit."""

  def _apply(self, backbone: Params, *inputs: Any, **options: Any) -> Any:
    return self.network.apply({"params": backbone}, *inputs, **options)


def _leaves(folded: Folded | None) -> dict[str, Any]:
  return {} if folded is None else folded.leaves()

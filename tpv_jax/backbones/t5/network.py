"""T5 encoder-decoder (v1.0 and v1.1) with the parameter tree of T5X's `examples/t5`.

v1.0 has `mlp_activations=('relu',)` and `logits_via_embedding=True`; v1.1, LM-adapted,
Flan and mT5 have `('gelu', 'linear')`, with the tanh approximation of GELU, and a separate
output layer. Parameter paths, shapes, initial distributions and logical axes are T5X's, so
public T5X checkpoints fit.

Three departures from T5X's code change nothing at a real token: masks are boolean and hide
keys only (what a padding position computes is never read), tokens are embedded by indexing
and not by a one-hot product, and the relative bias is computed once per stack. Two change
bf16 results slightly: the softmax is always in fp32, and the output layer's weights are
rounded to bf16 like all others.

The network knows nothing of prompt parameters: `encode` takes a folded prompt. Letters are
those of docs/methods.md, "Letters"; `joined` is P + T, prompt and source together.
"""

import dataclasses
from collections.abc import Sequence
from typing import Annotated, Any, ClassVar, Literal

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn
from flax import struct
from jaxtyping import Array, Bool, Float, Int, Num

from tpv_jax.backbones import placing
from tpv_jax.backbones.layers import ACTIVATIONS, Dense, Embed, LayerNorm, Mlp
from tpv_jax.backbones.protocol import AnyArray, Places
from tpv_jax.backbones.quantization import Mode
from tpv_jax.backbones.t5.attention import Attention, RelativeBias
from tpv_jax.core.checks import BelowOne, NotEmpty, OneOf, Size, check_fields
from tpv_jax.core.errors import UserError, near_misses


@struct.dataclass
class DecodingCache:
  """What decoding keeps of earlier steps and of the source, one entry per layer.

  Attributes:
    self_keys_values: [hypotheses, L, heads, width], of the targets so far; zeros after
      them.
    cross_keys_values: [B, joined, heads, width], of the encoded source; never changed.
    cross_mask: [B, 1, 1, joined], true at the positions that targets may see.
    bias: [1, heads, L, L], the decoder's relative bias; a step uses one row of it.
  """

  self_keys_values: tuple[tuple[Array, Array], ...]
  cross_keys_values: tuple[tuple[Array, Array], ...]
  cross_mask: Array
  bias: Array


@dataclasses.dataclass(frozen=True)
class Config:
  """The sizes that all layers share; the fields are those of `Transformer`."""

  emb_dim: int
  num_heads: int
  head_dim: int
  mlp_dim: int
  mlp_activations: tuple[str, ...]
  dropout_rate: float
  dtype: str


class EncoderLayer(nn.Module):
  """Self-attention and feed-forward, each after a norm and with a skip connection."""

  config: Config

  def setup(self) -> None:
    _set_up_layer(self, self.config)
    self.pre_attention_layer_norm = LayerNorm(self.config.dtype)
    self.attention = _attention(self.config)

  def __call__(
    self,
    x: Float[Array, "B joined D"],
    mask: Bool[Array, "B 1 #joined joined"],
    bias: Float[Array, "1 heads joined joined"],
    deterministic: bool,
  ) -> Float[Array, "B joined D"]:
    y = self.pre_attention_layer_norm(x)
    y = self.attention(y, self.attention.keys_values(y), mask, bias, deterministic)
    x = x + self.dropout(y, deterministic=deterministic)
    y = self.mlp(self.pre_mlp_layer_norm(x), deterministic)
    return x + self.dropout(y, deterministic=deterministic)


class DecoderLayer(nn.Module):
  """Self-attention, cross-attention and feed-forward, each after a norm and with a skip."""

  config: Config

  def setup(self) -> None:
    _set_up_layer(self, self.config)
    self.pre_self_attention_layer_norm = LayerNorm(self.config.dtype)
    self.self_attention = _attention(self.config)
    self.pre_cross_attention_layer_norm = LayerNorm(self.config.dtype)
    self.encoder_decoder_attention = _attention(self.config)

  def __call__(
    self,
    x: Float[Array, "B L D"],
    encoded: Float[Array, "B joined D"],
    self_mask: Bool[Array, "B 1 L L"],
    cross_mask: Bool[Array, "B 1 #L joined"],
    bias: Float[Array, "1 heads L L"],
    deterministic: bool,
  ) -> Float[Array, "B L D"]:
    """Returns the layer's output at all target positions at once."""
    y = self.pre_self_attention_layer_norm(x)
    y = self.self_attention(
      y, self.self_attention.keys_values(y), self_mask, bias, deterministic
    )
    x = x + self.dropout(y, deterministic=deterministic)
    return self._rest(x, self.cross_keys_values(encoded), cross_mask, deterministic)

  def cross_keys_values(
    self, encoded: Float[Array, "B joined D"]
  ) -> tuple[
    Float[Array, "B joined heads width"], Float[Array, "B joined heads width"]
  ]:
    """Returns the source's keys and values, which are the same at every decoding step."""
    return self.encoder_decoder_attention.keys_values(encoded)

  def step(
    self,
    x: Float[Array, "hypotheses 1 D"],
    index: Int[Array, ""],
    self_keys_values: tuple[
      Float[Array, "hypotheses L heads width"],
      Float[Array, "hypotheses L heads width"],
    ],
    cross_keys_values: tuple[
      Float[Array, "B joined heads width"], Float[Array, "B joined heads width"]
    ],
    cross_mask: Bool[Array, "B 1 1 joined"],
    bias: Float[Array, "1 heads 1 L"],
  ) -> tuple[
    Float[Array, "hypotheses 1 D"],
    tuple[
      Float[Array, "hypotheses L heads width"],
      Float[Array, "hypotheses L heads width"],
    ],
  ]:
    """Returns the output at target position `index`, and the cache that includes it.

    Every source has equally many hypotheses, in consecutive rows, which share its keys.
    """
    y = self.pre_self_attention_layer_norm(x)
    cached = jax.tree.map(
      lambda past, now: jax.lax.dynamic_update_slice_in_dim(past, now, index, axis=1),
      self_keys_values,
      self.self_attention.keys_values(y),
    )
    past = jnp.arange(bias.shape[-1])[None, None, None, :] <= index
    x = x + self.self_attention(y, cached, past, bias, True)
    by_source = x.reshape(len(cross_keys_values[0]), -1, x.shape[-1])
    y = self._rest(by_source, cross_keys_values, cross_mask, True)
    return y.reshape(x.shape), cached

  def _rest(
    self,
    x: Float[Array, "B L D"],
    cross_keys_values: tuple[Array, Array],
    cross_mask: Bool[Array, "B 1 #L joined"],
    deterministic: bool,
  ) -> Float[Array, "B L D"]:
    y = self.pre_cross_attention_layer_norm(x)
    y = self.encoder_decoder_attention(
      y, cross_keys_values, cross_mask, None, deterministic
    )
    x = x + self.dropout(y, deterministic=deterministic)
    y = self.mlp(self.pre_mlp_layer_norm(x), deterministic)
    return x + self.dropout(y, deterministic=deterministic)


def _attention(config: Config) -> Attention:
  return Attention(
    config.num_heads,
    config.head_dim,
    config.emb_dim,
    config.dropout_rate,
    config.dtype,
  )


def _set_up_layer(layer: Any, config: Config) -> None:
  """Sets up the parts that encoder and decoder layers have in common."""
  layer.pre_mlp_layer_norm = LayerNorm(config.dtype)
  layer.mlp = Mlp(
    config.mlp_dim, config.mlp_activations, config.dropout_rate, config.dtype
  )
  layer.dropout = nn.Dropout(config.dropout_rate, broadcast_dims=(-2,))


class Encoder(nn.Module):
  """The encoder's stack, from embedded tokens to the encoded source."""

  config: Config
  num_layers: int
  remat: bool

  def setup(self) -> None:
    self.relpos_bias = RelativeBias(self.config.num_heads, bidirectional=True)
    layer = nn.remat(EncoderLayer, static_argnums=(4,)) if self.remat else EncoderLayer
    self.layers = [layer(self.config) for _ in range(self.num_layers)]
    self.encoder_norm = LayerNorm(self.config.dtype)
    self.input_dropout = nn.Dropout(self.config.dropout_rate, broadcast_dims=(-2,))
    self.output_dropout = nn.Dropout(self.config.dropout_rate)

  def __call__(
    self,
    x: Float[Array, "B joined D"],
    mask: Bool[Array, "B 1 #joined joined"],
    deterministic: bool,
  ) -> Float[Array, "B joined D"]:
    bias = self.relpos_bias(x.shape[1], x.shape[1])
    x = self.input_dropout(x, deterministic=deterministic)
    for layer in self.layers:
      x = layer(x, mask, bias, deterministic)
    return self.output_dropout(self.encoder_norm(x), deterministic=deterministic)


class Decoder(nn.Module):
  """The decoder's stack, from embedded tokens to the input of the output layer."""

  config: Config
  num_layers: int
  remat: bool
  own_logits: int | None

  def setup(self) -> None:
    self.relpos_bias = RelativeBias(self.config.num_heads, bidirectional=False)
    layer = nn.remat(DecoderLayer, static_argnums=(6,)) if self.remat else DecoderLayer
    self.layers = [layer(self.config) for _ in range(self.num_layers)]
    self.decoder_norm = LayerNorm(self.config.dtype)
    self.input_dropout = nn.Dropout(self.config.dropout_rate, broadcast_dims=(-2,))
    self.output_dropout = nn.Dropout(self.config.dropout_rate, broadcast_dims=(-2,))
    if self.own_logits is not None:
      self.logits_dense = Dense(
        self.own_logits,
        ("embed", "vocab"),
        self.config.dtype,
        to_fp32=True,
      )

  def __call__(
    self,
    x: Float[Array, "B L D"],
    encoded: Float[Array, "B joined D"],
    self_mask: Bool[Array, "B 1 L L"],
    cross_mask: Bool[Array, "B 1 #L joined"],
    deterministic: bool,
  ) -> Float[Array, "B L D"]:
    bias = self.relpos_bias(x.shape[1], x.shape[1])
    x = self.input_dropout(x, deterministic=deterministic)
    for layer in self.layers:
      x = layer(x, encoded, self_mask, cross_mask, bias, deterministic)
    return self.output_dropout(self.decoder_norm(x), deterministic=deterministic)

  def start(
    self,
    encoded: Float[Array, "B joined D"],
    cross_mask: Bool[Array, "B 1 1 joined"],
    target_length: int,
  ) -> DecodingCache:
    """Returns the cache before the first of `target_length` steps."""
    config = self.config
    shape = (encoded.shape[0], target_length, config.num_heads, config.head_dim)
    empty = jnp.zeros(shape, config.dtype)
    return DecodingCache(
      self_keys_values=tuple((empty, empty) for _ in self.layers),
      cross_keys_values=tuple(
        layer.cross_keys_values(encoded) for layer in self.layers
      ),
      cross_mask=cross_mask,
      bias=self.relpos_bias(target_length, target_length),
    )

  def step(
    self, x: Float[Array, "hypotheses 1 D"], index: Int[Array, ""], cache: DecodingCache
  ) -> tuple[Float[Array, "hypotheses 1 D"], DecodingCache]:
    """Returns the input of the output layer at target position `index`, and the cache."""
    bias = jax.lax.dynamic_slice_in_dim(cache.bias, index, 1, axis=2)
    written = []
    for layer, own, cross in zip(
      self.layers, cache.self_keys_values, cache.cross_keys_values, strict=True
    ):
      x, own = layer.step(x, index, own, cross, cache.cross_mask, bias)
      written.append(own)
    return self.decoder_norm(x), dataclasses.replace(
      cache, self_keys_values=tuple(written)
    )

  def logits(self, x: Float[Array, "B L D"]) -> Float[Array, "B L V"]:
    """Returns the fp32 logits of the separate output layer (v1.1)."""
    return self.logits_dense(x)


class Transformer(nn.Module):
  """T5: an encoder that takes a soft prompt, and a decoder.

  Attributes:
    vocab_size: V, rows of the embedding table; may exceed the size of the vocabulary.
    emb_dim: D, the width.
    num_heads: attention heads.
    head_dim: width of a head; heads times this need not be D.
    num_encoder_layers: layers of the encoder.
    num_decoder_layers: layers of the decoder.
    mlp_dim: hidden width of the feed-forward block.
    mlp_activations: ('relu',) in v1.0, ('gelu', 'linear') in v1.1.
    logits_via_embedding: True in v1.0: logits from the embedding table.
    dropout_rate: applied if `enable_dropout` is set; 0 for a frozen backbone.
    dtype: of the computation, 'float32' or 'bfloat16'. Either way, norms and softmax are
      computed, and logits accumulated, in fp32; parameters are fp32 unless the caller
      casts them.
    remat: whether layers recompute their activations in the backward pass, which saves
      memory and takes a third more time.
    quantize: how frozen kernels are stored: 'int8', 'int4', 'nf4', or None as they are.
  """

  vocab_size: Size
  emb_dim: Size
  num_heads: Size
  head_dim: Size
  num_encoder_layers: Size
  num_decoder_layers: Size
  mlp_dim: Size
  mlp_activations: Annotated[Sequence[str], NotEmpty()] = ("gelu", "linear")
  logits_via_embedding: bool = False
  dropout_rate: BelowOne = 0.0
  dtype: Annotated[str, OneOf(("float32", "bfloat16"))] = "float32"
  remat: bool = False
  quantize: Mode | None = None

  ARCHITECTURE: ClassVar[str] = "encoder_decoder"
  TABLE: ClassVar[str] = "token_embedder/embedding"
  FIRST_ID: ClassVar[int] = 0
  embedding_scale: ClassVar[float] = 1.0

  def __post_init__(self) -> None:
    super().__post_init__()
    check_fields(self)

  def init_inputs(self) -> tuple[Any, ...]:
    """Returns the smallest inputs of `__call__`: a token each."""
    token = np.ones((1, 1), np.int32)
    return token, token, token

  def stored(self, path: str, dtype: Any) -> Any:
    """Returns the dtype in which a frozen leaf of `dtype` may be stored on the devices.

    A network that computes in bf16 needs half the memory so, and gives the same numbers:
    all leaves except the relative biases are cast to bf16 wherever they are used.
    """
    keep = self.dtype == "float32" or path.endswith("/rel_embedding")
    return dtype if keep else jnp.bfloat16

  def setup(self) -> None:
    for activation in self.mlp_activations:
      if activation not in ACTIVATIONS:
        raise UserError(
          f"The network has no activation '{activation}'. Choose "
          f"mlp_activations from {sorted(ACTIVATIONS)}."
          + near_misses(activation, ACTIVATIONS)
        )
    config = Config(
      emb_dim=self.emb_dim,
      num_heads=self.num_heads,
      head_dim=self.head_dim,
      mlp_dim=self.mlp_dim,
      mlp_activations=tuple(self.mlp_activations),
      dropout_rate=self.dropout_rate,
      dtype=self.dtype,
    )
    # T5 1.0 divides its tied logits by sqrt(D).
    self.token_embedder = Embed(
      self.vocab_size, self.emb_dim, self.dtype, logits_scale=self.emb_dim**-0.5
    )
    self.encoder = Encoder(config, self.num_encoder_layers, self.remat)
    self.decoder = Decoder(
      config,
      self.num_decoder_layers,
      self.remat,
      own_logits=None if self.logits_via_embedding else self.vocab_size,
    )

  def encode(
    self,
    encoder_input_tokens: Num[AnyArray, "B T"],
    encoder_segment_ids: Num[AnyArray, "B T"] | None = None,
    prompt: Float[AnyArray, "*rows P D"] | None = None,
    delta: Float[AnyArray, "*rows M D"] | None = None,
    enable_dropout: bool = False,
    places: Places | None = None,
  ) -> Float[Array, "B joined D"]:
    """Returns the encoded source, the prompt's positions first (P + T in all).

    The prompt is prepended to the embedded tokens (1.1), relative positions are those of
    the joined sequence, and the prompt is never masked (Lester et al. 2021). A delta is
    added to the embeddings of the source's tokens (2.2), except at padding (Shi & Lipani
    2023). Dropout, if enabled, acts on the joined sequence.

    Args:
      encoder_input_tokens: token ids, 0 is padding; floats are cast (T5X's eval).
      encoder_segment_ids: 1, 2, ... for the examples packed into a row, 0 for padding.
      prompt: [P, D] for all rows, or [B, P, D] with one prompt for each row; with `places`
        the prompts of a bank [N, P, D].
      delta: what is added to the token at each position, [M, D] or [B, M, D]; with
        `places` [N, M, D].
      enable_dropout: needs the rng 'dropout'.
      places: where the prompts of a bank are in packed rows, whose tokens include the
        prompts' positions.

    Raises:
      UserError: a prompt or delta came with segment ids but without `places`, or a source
        is longer than the delta.
    """
    if encoder_segment_ids is not None and places is None:
      _refuse_in_packed_rows(prompt, delta)
    tokens = _as_tokens(encoder_input_tokens)
    x = placing.place(self.token_embedder(tokens), tokens, prompt, delta, places)
    if places is not None:
      assert encoder_segment_ids is not None  # `packing` gives both.
      mask = _same_segment(encoder_segment_ids, encoder_segment_ids)
      return self.encoder(x, mask, not enable_dropout)
    mask = _show_prompt((tokens > 0)[:, None, None, :], x.shape[1] - tokens.shape[1])
    if encoder_segment_ids is not None:
      mask = mask & _same_segment(encoder_segment_ids, encoder_segment_ids)
    return self.encoder(x, mask, not enable_dropout)

  def decode(
    self,
    encoded: Float[Array, "B joined D"],
    encoder_input_tokens: Num[AnyArray, "B T"],
    decoder_input_tokens: Num[AnyArray, "B L"],
    decoder_target_tokens: Num[AnyArray, "B L"],
    encoder_segment_ids: Num[AnyArray, "B T"] | None = None,
    decoder_segment_ids: Num[AnyArray, "B L"] | None = None,
    enable_dropout: bool = False,
    outputs: Literal["logits", "states"] = "logits",
    source_segment_ids: Num[AnyArray, "B L"] | None = None,
  ) -> Float[Array, "B L outputs"]:
    """Returns fp32 logits at every target position, given the targets before it.

    Args:
      encoded: from `encode`; the positions before the last T are the prompt's.
      encoder_input_tokens: the source again, for its padding only.
      decoder_input_tokens: the targets shifted right, 0 first.
      decoder_target_tokens: the targets, for their padding only.
      encoder_segment_ids: as in `encode`. If these are None and `decoder_segment_ids` are
        not, every target segment sees the whole source: several targets for one source.
      decoder_segment_ids: of the targets.
      enable_dropout: needs the rng 'dropout'.
      outputs: 'states' for the states [B, L, D] that `logits` maps to logits.
      source_segment_ids: the encoder's segment that each target position sees, if that is
        not the segment of the same number: several targets for one of several sources.
    """
    inputs = _as_tokens(decoder_input_tokens)
    length = inputs.shape[1]
    causal = jnp.tril(jnp.ones((length, length), bool))
    self_mask = causal & (_as_tokens(decoder_target_tokens) > 0)[:, None, None, :]
    if decoder_segment_ids is not None:
      self_mask = self_mask & _same_segment(decoder_segment_ids, decoder_segment_ids)
    if encoder_segment_ids is None:
      cross_mask = self._source_mask(encoded, encoder_input_tokens)
    elif decoder_segment_ids is None:
      raise UserError(
        "encoder_segment_ids came without decoder_segment_ids; both are needed. "
        "Build the batches with one converter."
      )
    else:
      seen = decoder_segment_ids if source_segment_ids is None else source_segment_ids
      cross_mask = _same_segment(seen, encoder_segment_ids)
    x = self.token_embedder(inputs)
    x = self.decoder(x, encoded, self_mask, cross_mask, not enable_dropout)
    return x if outputs == "states" else self.logits(x)

  def __call__(
    self,
    encoder_input_tokens: Num[AnyArray, "B T"],
    decoder_input_tokens: Num[AnyArray, "B L"],
    decoder_target_tokens: Num[AnyArray, "B L"],
    encoder_segment_ids: Num[AnyArray, "B T"] | None = None,
    decoder_segment_ids: Num[AnyArray, "B L"] | None = None,
    encoder_positions: Num[AnyArray, "B T"] | None = None,
    decoder_positions: Num[AnyArray, "B L"] | None = None,
    prompt: Float[AnyArray, "*rows P D"] | None = None,
    delta: Float[AnyArray, "*rows M D"] | None = None,
    enable_dropout: bool = False,
    places: Places | None = None,
    outputs: Literal["logits", "states"] = "logits",
    source_segment_ids: Num[AnyArray, "B L"] | None = None,
  ) -> Float[Array, "B L outputs"]:
    """Returns fp32 logits of the targets; see `encode` and `decode`.

    The positions of packed rows are not used: T5 has only relative positions, which do not
    change inside a contiguous segment.
    """
    del encoder_positions, decoder_positions
    encoded = self.encode(
      encoder_input_tokens, encoder_segment_ids, prompt, delta, enable_dropout, places
    )
    return self.decode(
      encoded,
      encoder_input_tokens,
      decoder_input_tokens,
      decoder_target_tokens,
      encoder_segment_ids,
      decoder_segment_ids,
      enable_dropout,
      outputs,
      source_segment_ids,
    )

  def start_decoding(
    self,
    encoded: Float[Array, "B joined D"],
    encoder_input_tokens: Num[AnyArray, "B T"],
    target_length: int,
  ) -> DecodingCache:
    """Returns the cache for up to `target_length` calls of `decode_step`."""
    mask = self._source_mask(encoded, encoder_input_tokens)
    return self.decoder.start(encoded, mask, target_length)

  def decode_step(
    self,
    tokens: Int[Array, " hypotheses"],
    index: Int[Array, ""],
    cache: DecodingCache,
  ) -> tuple[Float[Array, "hypotheses V"], DecodingCache]:
    """Returns the fp32 logits after `tokens`, the inputs at position `index`.

    Every source has equally many hypotheses, in consecutive rows; the cache's
    `self_keys_values` have a row for each hypothesis.
    """
    x = self.token_embedder(tokens[:, None])
    x, cache = self.decoder.step(x, index, cache)
    return self.logits(x)[:, 0], cache

  def logits(self, x: Float[Array, "B L D"]) -> Float[Array, "B L V"]:
    """Returns the fp32 logits of the decoder's states."""
    if self.logits_via_embedding:
      return self.token_embedder.attend(x)
    return self.decoder.logits(x)

  def _source_mask(
    self,
    encoded: Float[Array, "B joined D"],
    encoder_input_tokens: Num[AnyArray, "B T"],
  ) -> Bool[Array, "B 1 1 joined"]:
    mask = (_as_tokens(encoder_input_tokens) > 0)[:, None, None, :]
    return _show_prompt(mask, encoded.shape[1] - mask.shape[-1])


def _as_tokens(tokens: Num[AnyArray, "B T"]) -> Int[Array, "B T"]:
  return jnp.asarray(tokens).astype(jnp.int32)


def _refuse_in_packed_rows(prompt: Any, delta: Any) -> None:
  """Raises `UserError` for a prompt or delta, whose places in packed rows are unknown."""
  if delta is not None:
    raise UserError(
      "A delta is added by position, which packed rows do not have. Build the batches "
      "without packing (pack=False)."
    )
  if prompt is not None:
    raise UserError(
      "A soft prompt cannot be prepended to packed rows: every example of a row would "
      "need its own. Build the batches without packing (pack=False)."
    )


def _show_prompt(
  mask: Bool[Array, "B 1 1 T"], length: int
) -> Bool[Array, "B 1 1 joined"]:
  """Returns the mask, extended by `length` visible positions at its beginning."""
  return jnp.pad(mask, ((0, 0), (0, 0), (0, 0), (length, 0)), constant_values=True)


def _same_segment(
  queries: Num[AnyArray, "B queries"], keys: Num[AnyArray, "B joined"]
) -> Bool[Array, "B 1 queries joined"]:
  return (jnp.asarray(queries)[:, :, None] == jnp.asarray(keys)[:, None, :])[:, None]

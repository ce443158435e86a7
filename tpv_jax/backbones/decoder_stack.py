"""The stack of layers of decoder-only networks, which their families share.

A family states what differs: norms, activation, how positions turn, how far back each layer
sees. The parameter tree is that of T5X's `examples/decoder_only`, where it has the part.
The numbers equal those of `transformers`: rotary angles and softmax in fp32, tied logits not
scaled.

The networks know nothing of prompts and batches: `decoder_only` lays out a row's positions
and says what each may see. Letters are those of docs/methods.md, "Letters"; W positions are
computed together.
"""

import dataclasses
import functools
from typing import Annotated, Any, ClassVar

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn
from flax import struct
from jaxtyping import Array, Bool, Float, Int

from tpv_jax.backbones.attention import MASKED, attention
from tpv_jax.backbones.decoder_config import TABLE
from tpv_jax.backbones.layers import Dense, Embed, Mlp
from tpv_jax.backbones.protocol import AnyArray
from tpv_jax.backbones.quantization import Mode
from tpv_jax.core.checks import BelowOne, OneOf, Size, check_fields
from tpv_jax.core.errors import UserError

KeysValues = tuple[Array, Array]
"""Keys and values, each [B, W, kv heads, width]."""


@struct.dataclass
class DecodingCache:
  """What decoding keeps of the source and of earlier steps, one entry per layer.

  Attributes:
    self_keys_values: [hypotheses, L, kv, width], of the tokens written so far; zeros after
      them, and at index 0, where nothing has been written yet.
    source_keys_values: [B, W, kv, width], of the prompt and the source; never changed.
    source_mask: [B, W], true at the positions that tokens may see.
    source_positions: [B, W].
    source_length: [B], the position of the first token behind the source.
    first: [B, D], the states from which the first token is predicted.
  """

  self_keys_values: tuple[KeysValues, ...]
  source_keys_values: tuple[KeysValues, ...]
  source_mask: Bool[Array, "B W"]
  source_positions: Int[Array, "B W"]
  source_length: Int[Array, " B"]
  first: Float[Array, "B D"]


@dataclasses.dataclass(frozen=True)
class Config:
  """What all layers of a network share; the first fields are those of `CausalNetwork`.

  Attributes:
    norm: the class of norms, called with dtype, epsilon and the name of the axis.
    norm_epsilon: added to mean squares.
    activation: of the gated branch, see `layers.ACTIVATIONS`.
    query_scale: the factor of queries.
    attention_bias: whether queries, keys and values have biases.
    qk_norm: whether queries and keys have norms.
    post_norms: whether what a block adds has a norm, too.
  """

  emb_dim: int
  num_heads: int
  num_kv_heads: int
  head_dim: int
  mlp_dim: int
  dropout_rate: float
  dtype: str
  norm: type[nn.Module]
  norm_epsilon: float
  activation: str
  query_scale: float
  attention_bias: bool = False
  qk_norm: bool = False
  post_norms: bool = False

  @classmethod
  def of(cls, network: "CausalNetwork", **rest: Any) -> "Config":
    """Returns the config with the sizes of a network, and the rest as given."""
    sizes = ("emb_dim", "num_heads", "num_kv_heads", "head_dim", "mlp_dim")
    names = (*sizes, "dropout_rate", "dtype")
    return cls(**{name: getattr(network, name) for name in names}, **rest)


@dataclasses.dataclass(frozen=True)
class Reach:
  """How positions turn in a layer, and how far back each sees.

  Attributes:
    rope_theta: base of the rotary frequencies.
    rope_divisors: head_dim / 2 numbers by which the frequencies are divided, or none.
    window: how many positions each one sees, itself included; None for no limit.
  """

  rope_theta: float
  rope_divisors: tuple[float, ...] = ()
  window: int | None = None

  def seen(
    self,
    mask: Bool[Array, "..."],
    queries: Int[Array, "..."],
    keys: Int[Array, "..."],
  ) -> Bool[Array, "..."]:
    """Returns the mask without the keys that are out of their query's window.

    Distances are those of positions in the example, wherever they stand in the row.
    """
    return mask if self.window is None else mask & (queries - keys < self.window)


Angles = tuple[Float[Array, "B W 1 half"], Float[Array, "B W 1 half"]]
"""Cosine and sine of each position's rotary angles, fp32."""


def rotary_angles(positions: Int[Array, "B W"], head_dim: int, reach: Reach) -> Angles:
  """Returns cosine and sine of `position * theta^(-2i / width) / divisor_i`."""
  exponents = np.arange(0, head_dim, 2, dtype=np.float32) / head_dim
  frequencies = 1.0 / np.power(np.float32(reach.rope_theta), exponents)
  if reach.rope_divisors:
    frequencies = frequencies / np.asarray(reach.rope_divisors, np.float32)
  angles = positions.astype(jnp.float32)[..., None, None] * frequencies
  return jnp.cos(angles), jnp.sin(angles)


def rotate(
  x: Float[Array, "B W heads width"], angles: Angles
) -> Float[Array, "B W heads width"]:
  """Returns the heads with their halves rotated against each other, computed in fp32."""
  cosine, sine = angles
  first, second = jnp.split(x.astype(jnp.float32), 2, axis=-1)
  turned = (first * cosine - second * sine, second * cosine + first * sine)
  return jnp.concatenate(turned, axis=-1).astype(x.dtype)


class Attention(nn.Module):
  """Grouped-query attention with rotary positions."""

  config: Config

  def setup(self) -> None:
    config = self.config
    project = functools.partial(
      Dense, dtype=config.dtype, use_bias=config.attention_bias
    )
    joined = config.num_heads * config.head_dim
    # Keys and values have an axis name of their own: see `CausalNetwork.AXIS_UNITS`.
    joined_kv = config.num_kv_heads * config.head_dim
    self.query = project(joined, ("embed", "joined_kv"))
    self.key = project(joined_kv, ("embed", "joined_kv_groups"))
    self.value = project(joined_kv, ("embed", "joined_kv_groups"))
    self.out = Dense(config.emb_dim, ("joined_kv", "embed"), config.dtype)
    if config.qk_norm:
      norm: Any = functools.partial(
        config.norm, config.dtype, config.norm_epsilon, "kv"
      )
      self.query_norm, self.key_norm = norm(), norm()

  def queries(
    self, x: Float[Array, "B W D"], angles: Angles
  ) -> Float[Array, "B W heads width"]:
    """Returns the rotated queries, scaled."""
    queries = self._heads(self.query(x))
    if self.config.qk_norm:
      queries = self.query_norm(queries)
    return rotate(queries, angles) * self.config.query_scale

  def keys_values(self, x: Float[Array, "B W D"], angles: Angles) -> KeysValues:
    """Returns the rotated keys and the values, a head for each group of queries."""
    keys = self._heads(self.key(x))
    if self.config.qk_norm:
      keys = self.key_norm(keys)
    return rotate(keys, angles), self._heads(self.value(x))

  def __call__(
    self,
    x: Float[Array, "B W D"],
    angles: Angles,
    mask: Bool[Array, "B 1 W W"],
  ) -> tuple[Float[Array, "B W D"], KeysValues]:
    """Returns the attention of each position to those it may see; and keys and values."""
    keys, values = self.keys_values(x, angles)
    attended = attention(
      self.queries(x, angles), self._shared(keys), self._shared(values), mask, None
    )
    return self.out(attended.reshape(*x.shape[:-1], -1)), (keys, values)

  def step(
    self,
    x: Float[Array, "hypotheses 1 D"],
    angles: tuple[Array, Array],
    seen: Bool[Array, "B both"],
    index: Int[Array, ""],
    own: KeysValues,
    source: KeysValues,
  ) -> tuple[Float[Array, "hypotheses 1 D"], KeysValues]:
    """Returns the attention of one new token to source and tokens; and the new cache.

    Every source has equally many hypotheses, in consecutive rows, which share its keys and
    see the same of their own: `seen` has the source's columns first.
    """
    config = self.config
    new = self.keys_values(x, angles)
    own = jax.tree.map(
      lambda past, now: jax.lax.dynamic_update_slice_in_dim(past, now, index, axis=1),
      own,
      new,
    )
    # [B, hypotheses of a source, kv heads, queries of a group, width]
    rows, groups = len(seen), config.num_kv_heads
    queries = self.queries(x, angles).reshape(
      rows, -1, groups, config.num_heads // groups, config.head_dim
    )
    mine = jax.tree.map(
      lambda one: one.reshape(rows, -1, *one.shape[1:]), own
    )  # [B, n, L, kv, width]
    products = functools.partial(jnp.einsum, preferred_element_type=jnp.float32)
    to_source = products("bngqk,bwgk->bngqw", queries, source[0])
    to_own = products("bngqk,bnlgk->bngql", queries, mine[0])
    logits = jnp.concatenate([to_source, to_own], axis=-1)
    logits = jnp.where(seen[:, None, None, None], logits, MASKED)
    weights = jax.nn.softmax(logits).astype(queries.dtype)
    of_source, of_own = jnp.split(weights, [to_source.shape[-1]], axis=-1)
    attended = products("bngqw,bwgk->bngqk", of_source, source[1])
    attended += products("bngql,bnlgk->bngqk", of_own, mine[1])
    return self.out(attended.astype(x.dtype).reshape(*x.shape[:2], -1)), own

  def _heads(self, x: Float[Array, "B W both"]) -> Float[Array, "B W some width"]:
    return x.reshape(*x.shape[:-1], -1, self.config.head_dim)

  def _shared(self, x: Float[Array, "B W kv width"]) -> Float[Array, "B W heads width"]:
    """Returns a key or value for each query's head: those of a group have the same."""
    return jnp.repeat(x, self.config.num_heads // self.config.num_kv_heads, axis=2)


class Layer(nn.Module):
  """Self-attention and feed-forward, each after a norm and with a skip connection."""

  config: Config

  def setup(self) -> None:
    config = self.config
    norm: Any = functools.partial(config.norm, config.dtype, config.norm_epsilon)
    self.pre_self_attention_layer_norm = norm()
    self.self_attention = Attention(config)
    self.pre_mlp_layer_norm = norm()
    self.mlp = Mlp(
      config.mlp_dim, (config.activation, "linear"), config.dropout_rate, config.dtype
    )
    if config.post_norms:
      self.post_self_attention_layer_norm = norm()
      self.post_mlp_layer_norm = norm()
    self.dropout = nn.Dropout(config.dropout_rate, broadcast_dims=(-2,))

  def __call__(
    self,
    x: Float[Array, "B W D"],
    angles: Angles,
    mask: Bool[Array, "B 1 W W"],
    deterministic: bool,
  ) -> tuple[Float[Array, "B W D"], KeysValues]:
    """Returns the layer's output, and its keys and values."""
    y, kept = self.self_attention(self.pre_self_attention_layer_norm(x), angles, mask)
    return self._rest(x, y, deterministic), kept

  def step(
    self, x: Float[Array, "hypotheses 1 D"], *args: Any
  ) -> tuple[Float[Array, "hypotheses 1 D"], KeysValues]:
    """Returns the output for one new token; see `Attention.step`."""
    y, own = self.self_attention.step(self.pre_self_attention_layer_norm(x), *args)
    return self._rest(x, y, True), own

  def _rest(self, x: Array, y: Array, deterministic: bool) -> Array:
    if self.config.post_norms:
      y = self.post_self_attention_layer_norm(y)
    x = x + self.dropout(y, deterministic=deterministic)
    y = self.mlp(self.pre_mlp_layer_norm(x), deterministic)
    if self.config.post_norms:
      y = self.post_mlp_layer_norm(y)
    return x + self.dropout(y, deterministic=deterministic)


class Decoder(nn.Module):
  """The stack, with the token table and the output layer."""

  config: Config
  reaches: tuple[Reach, ...]
  vocab_size: int
  logits_via_embedding: bool
  first_id: int
  embedding_scale: float
  remat: bool

  def setup(self) -> None:
    config = self.config
    self.token_embedder = Embed(
      self.vocab_size,
      config.emb_dim,
      config.dtype,
      self.first_id,
      stddev=config.emb_dim**-0.5,
    )
    layer = nn.remat(Layer, static_argnums=(4,)) if self.remat else Layer
    self.layers = [layer(config) for _ in self.reaches]
    norm: Any = config.norm
    self.decoder_norm = norm(config.dtype, config.norm_epsilon)
    if not self.logits_via_embedding:
      self.logits_dense = Dense(
        self.vocab_size, ("embed", "vocab"), config.dtype, to_fp32=True
      )

  def __call__(
    self,
    x: Float[Array, "B W D"],
    positions: Int[Array, "B W"],
    mask: Bool[Array, "B 1 W W"],
    deterministic: bool,
  ) -> tuple[Float[Array, "B W D"], tuple[KeysValues, ...]]:
    """Returns the states, and each layer's keys and values."""
    queries, keys = positions[:, None, :, None], positions[:, None, None, :]
    views = {
      reach: (self._angles(positions, reach), reach.seen(mask, queries, keys))
      for reach in dict.fromkeys(self.reaches)
    }
    kept = []
    for layer, reach in zip(self.layers, self.reaches, strict=True):
      x, keys_values = layer(x, *views[reach], deterministic)
      kept.append(keys_values)
    return self.decoder_norm(x), tuple(kept)

  def step(
    self, x: Float[Array, "hypotheses 1 D"], index: Int[Array, ""], cache: DecodingCache
  ) -> tuple[Float[Array, "hypotheses 1 D"], DecodingCache]:
    """Returns the states behind one new token, and the cache that includes it."""
    first = cache.source_length[:, None]
    rows, each = len(first), len(x) // len(first)
    # Index 0 is empty: the token at index 1 is the first one behind the source.
    now = first + index - 1
    column = jnp.arange(cache.self_keys_values[0][0].shape[1])
    written = jnp.broadcast_to((column > 0) & (column <= index), (rows, len(column)))
    mask = jnp.concatenate([cache.source_mask, written], axis=1)
    keys = jnp.concatenate([cache.source_positions, first + column - 1], axis=1)
    views = {
      reach: (
        self._angles(jnp.repeat(now, each, axis=0), reach),
        reach.seen(mask, now, keys),
      )
      for reach in dict.fromkeys(self.reaches)
    }
    kept = []
    for layer, reach, own, source in zip(
      self.layers,
      self.reaches,
      cache.self_keys_values,
      cache.source_keys_values,
      strict=True,
    ):
      x, own = layer.step(x, *views[reach], index, own, source)
      kept.append(own)
    return self.decoder_norm(x), dataclasses.replace(
      cache, self_keys_values=tuple(kept)
    )

  def embed(self, tokens: Int[Array, "B W"]) -> Float[Array, "B W D"]:
    """Returns the embedded tokens, scaled."""
    x = self.token_embedder(tokens)
    if self.embedding_scale == 1.0:
      return x
    return x * jnp.asarray(self.embedding_scale, x.dtype)

  def logits(self, x: Float[Array, "... D"]) -> Float[Array, "... V"]:
    """Returns the fp32 logits of the table's V rows."""
    if self.logits_via_embedding:
      return self.token_embedder.attend(x)
    return self.logits_dense(x)

  def _angles(self, positions: Int[Array, "B W"], reach: Reach) -> Angles:
    return rotary_angles(positions, self.config.head_dim, reach)


class CausalNetwork(nn.Module):
  """A decoder that predicts each token from those before it; a family's network is one.

  Ids are the tokenizer's plus one: 0 is padding, and row r of the table is id r + 1.

  Attributes:
    vocab_size: V, rows of the embedding table; may exceed the size of the vocabulary.
    emb_dim: D, the width.
    num_heads: heads of queries.
    num_kv_heads: heads of keys and values; each serves equally many heads of queries.
    head_dim: width of a head; heads times this need not be D.
    num_layers: how many layers there are.
    mlp_dim: hidden width of the feed-forward block.
    logits_via_embedding: whether logits come from the embedding table.
    max_positions: the longest row, prompt and answer included.
    dropout_rate: applied if `enable_dropout` is set; 0 for a frozen backbone.
    dtype: of the computation, 'float32' or 'bfloat16'. Either way, norms, rotary angles and
      softmax are computed, and logits accumulated, in fp32.
    remat: whether layers recompute their activations in the backward pass.
    quantize: how frozen kernels are stored: 'int8', 'int4', 'nf4', or None as they are.
  """

  vocab_size: Size
  emb_dim: Size
  num_heads: Size
  num_kv_heads: Size
  head_dim: Size
  num_layers: Size
  mlp_dim: Size
  logits_via_embedding: bool = False
  max_positions: Size = 2_048
  dropout_rate: BelowOne = 0.0
  dtype: Annotated[str, OneOf(("float32", "bfloat16"))] = "float32"
  remat: bool = False
  quantize: Mode | None = None

  ARCHITECTURE: ClassVar[str] = "decoder_only"
  TABLE: ClassVar[str] = TABLE
  FIRST_ID: ClassVar[int] = 1

  def __post_init__(self) -> None:
    super().__post_init__()
    check_fields(self)
    if self.num_heads % self.num_kv_heads or self.head_dim % 2:
      raise UserError(
        f"A network with {self.num_heads} heads of width {self.head_dim} cannot have "
        f"{self.num_kv_heads} heads of keys: they must divide the heads, and the width "
        "must be even. Check the model's config."
      )
    for reach in self.reaches():
      if len(reach.rope_divisors) not in (0, self.head_dim // 2):
        raise UserError(
          f"rope_divisors has {len(reach.rope_divisors)} numbers; a head of width "
          f"{self.head_dim} has {self.head_dim // 2} frequencies. Check the model's config."
        )

  @nn.nowrap
  def layer_config(self) -> Config:
    """Returns what the layers of this family share."""
    raise NotImplementedError

  @nn.nowrap
  def reaches(self) -> tuple[Reach, ...]:
    """Returns the reach of each layer."""
    raise NotImplementedError

  @property
  def embedding_scale(self) -> float:
    """The factor between a row of the table and an embedded token."""
    return 1.0

  @property
  def AXIS_UNITS(self) -> dict[str, int]:  # noqa: N802 (a constant of the network)
    """Axis name -> how many features in a row stay on one device: a head of keys."""
    return {"joined_kv_groups": self.head_dim}

  def init_inputs(self) -> tuple[Any, ...]:
    """Returns the smallest input of `__call__`: a token."""
    return (np.ones((1, 1), np.int32),)

  def stored(self, path: str, dtype: Any) -> Any:
    """Returns the dtype in which a frozen leaf of `dtype` may be stored on the devices.

    All leaves are cast to the computation's dtype wherever they are used.
    """
    del path
    return dtype if self.dtype == "float32" else jnp.bfloat16

  def setup(self) -> None:
    self.decoder = Decoder(
      self.layer_config(),
      self.reaches(),
      self.vocab_size,
      self.logits_via_embedding,
      self.FIRST_ID,
      self.embedding_scale,
      self.remat,
    )

  def __call__(self, tokens: Int[AnyArray, "B W"]) -> Float[Array, "B W ids"]:
    """Returns the fp32 logits behind each token of rows that begin at position 0.

    Padding on the right needs no mask: no token before it sees it.
    """
    tokens = jnp.asarray(tokens)
    width = tokens.shape[1]
    positions = jnp.broadcast_to(jnp.arange(width), tokens.shape)
    mask = jnp.broadcast_to(
      jnp.tril(jnp.ones((width, width), bool)), (len(tokens), 1, width, width)
    )
    return self.logits(self.states(self.embed(tokens), positions, mask))

  def embed(self, tokens: Int[Array, "B W"]) -> Float[Array, "B W D"]:
    """Returns the embedded tokens; what stands at padding is never seen."""
    return self.decoder.embed(tokens)

  def states(
    self,
    x: Float[Array, "B W D"],
    positions: Int[Array, "B W"],
    mask: Bool[Array, "B 1 W W"],
    enable_dropout: bool = False,
  ) -> Float[Array, "B W D"]:
    """Returns the states from which `logits` predicts what follows each position.

    Args:
      x: embedded tokens and prompts.
      positions: of each, from 0; they say how far apart two of them are.
      mask: true where the position of the second W is seen from that of the first.
      enable_dropout: needs the rng 'dropout'.
    """
    return self.decoder(x, positions, mask, not enable_dropout)[0]

  def start_decoding(
    self,
    x: Float[Array, "B W D"],
    positions: Int[Array, "B W"],
    mask: Bool[Array, "B 1 W W"],
    last: Int[Array, " B"],
    target_length: int,
  ) -> DecodingCache:
    """Returns the cache for up to `target_length` calls of `decode_step`.

    Args:
      x: the embedded sources, with their prompts.
      positions: see `states`.
      mask: see `states`; what the last position sees, the answer sees.
      last: index of each source's last position.
      target_length: L.
    """
    states, kept = self.decoder(x, positions, mask, True)
    at = last[:, None]
    return DecodingCache(
      self_keys_values=jax.tree.map(
        lambda one: jnp.zeros((len(x), target_length, *one.shape[2:]), one.dtype), kept
      ),
      source_keys_values=kept,
      source_mask=jnp.take_along_axis(mask[:, 0], at[..., None], axis=1)[:, 0],
      source_positions=positions,
      source_length=jnp.take_along_axis(positions, at, axis=1)[:, 0] + 1,
      first=jnp.take_along_axis(states, at[..., None], axis=1)[:, 0],
    )

  def decode_step(
    self,
    tokens: Int[Array, " hypotheses"],
    index: Int[Array, ""],
    cache: DecodingCache,
  ) -> tuple[Float[Array, "hypotheses ids"], DecodingCache]:
    """Returns the fp32 logits of token `index`, given `tokens` as the ones before it.

    At index 0 nothing stands before it but the source, and `tokens` are not read. Every
    source has equally many hypotheses, in consecutive rows.
    """
    x = self.embed(tokens[:, None])
    first = jnp.repeat(cache.first, len(tokens) // len(cache.first), axis=0)[:, None]
    x, cache = nn.cond(
      index == 0,
      lambda decoder, x: (first.astype(x.dtype), cache),
      lambda decoder, x: decoder.step(x, index, cache),
      self.decoder,
      x,
    )
    return self.logits(x)[:, 0], cache

  def logits(self, x: Float[Array, "... D"]) -> Float[Array, "... ids"]:
    """Returns the fp32 logits of V + 1 ids; that of padding is minus infinity."""
    of_rows = self.decoder.logits(x)
    pad = [(0, 0)] * (of_rows.ndim - 1) + [(self.FIRST_ID, 0)]
    return jnp.pad(of_rows, pad, constant_values=-jnp.inf)

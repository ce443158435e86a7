"""The interface between a family of frozen language models and the rest of the package.

A family is a folder of this room with a `Family`, which one line of `registry.FAMILIES`
names. Its network is a Flax module that names its architecture. `model.SoftPromptModel`
calls it through the module of that name: `encoder_decoder` calls what
`EncoderDecoderNetwork` lists, `decoder_only` what `DecoderOnlyNetwork` lists. Both keep
`Architecture`.
"""

from collections.abc import Callable, Mapping
from typing import Any, ClassVar, Literal, NamedTuple, Protocol, runtime_checkable

import jax.numpy as jnp
import numpy as np
from flax import struct
from jaxtyping import Array, Float, Int

from tpv_jax.core import files
from tpv_jax.core.leaves import Leaf
from tpv_jax.data.batches import is_padding
from tpv_jax.formats import gguf
from tpv_jax.formats.hugging_face import Place

AnyArray = Array | np.ndarray
"""An array of JAX, or a NumPy array from a caller outside of `jit`."""


@struct.dataclass
class Places:
  """The positions of a bank's soft prompts in packed rows.

  Attributes:
    prompt_ids: [B, W], the index in the bank of each position's prompt.
    prompt_positions: [B, W], 1 to P at the positions of a prompt, 0 elsewhere.
    source_positions: [B, W], the position of a source token within its source.
  """

  prompt_ids: Int[AnyArray, "B W"]
  prompt_positions: Int[AnyArray, "B W"]
  source_positions: Int[AnyArray, "B W"]


@runtime_checkable
class Network(Protocol):
  """A frozen language model as a Flax module; its fields are its sizes.

  Parameter paths and logical axis names are T5X's wherever T5X has the same part, so that
  its checkpoints and its standard rules fit.

  Attributes:
    ARCHITECTURE: the module of this package that calls it: 'encoder_decoder' or
      'decoder_only'.
    TABLE: path of the token embeddings [V, D] among its parameters.
    FIRST_ID: the id of the table's first row: 0, or 1 where padding has no row.
    vocab_size: V, rows of the table.
    emb_dim: D, features of a token.
    dtype: of the computation, 'float32' or 'bfloat16'.
    dropout_rate: 0 for a frozen backbone.
    embedding_scale: the factor between a row of the table and an embedded token, beside
      which prompts stand; 1 for most.
  """

  ARCHITECTURE: ClassVar[str]
  TABLE: ClassVar[str]
  FIRST_ID: ClassVar[int]
  vocab_size: int
  emb_dim: int
  dtype: str
  dropout_rate: float

  @property
  def embedding_scale(self) -> float: ...

  def init(self, rngs: Any, *inputs: Any) -> Any:
    """Returns fresh `params` and their logical axes, `params_axes` (Flax)."""

  def apply(self, variables: Any, *inputs: Any, **options: Any) -> Any:
    """Returns the result of a method with these parameters (Flax)."""

  def init_inputs(self) -> tuple[Any, ...]:
    """Returns the smallest inputs for `init`."""

  def stored(self, path: str, dtype: Any) -> Any:
    """Returns the dtype in which a frozen leaf of `dtype` is kept on the devices.

    Results must equal those with fp32 leaves.
    """

  def logits(self, x: Any) -> Any:
    """Returns fp32 logits of all ids, [B, L, FIRST_ID + V], of states [B, L, D].

    Those of ids below FIRST_ID are minus infinity.
    """

  def decode_step(self, tokens: Any, index: Any, cache: Any) -> Any:
    """Returns the fp32 logits of token `index` [hypotheses, ids], and the new cache.

    The cache comes from the `start_decoding` of the architecture. It is a Flax dataclass
    whose `self_keys_values` has a row for each hypothesis; its other fields have a row for
    each source, which equally many hypotheses in consecutive rows share.

    Args:
      tokens: [hypotheses], the ones before it; 0 at index 0.
      index: how many tokens have been written.
      cache: of the tokens before `tokens`.
    """


@runtime_checkable
class EncoderDecoderNetwork(Network, Protocol):
  """A network with an encoder, whose source the soft prompt precedes.

  Id 0 is padding, and no position attends to padding in the source. A network without
  absolute positions (T5's are relative) gives packed rows the results of unpacked ones.
  """

  def __call__(
    self,
    encoder_input_tokens: Any,
    decoder_input_tokens: Any,
    decoder_target_tokens: Any,
    *,
    encoder_segment_ids: Any = None,
    decoder_segment_ids: Any = None,
    source_segment_ids: Any = None,
    places: Places | None = None,
    prompt: Any = None,
    delta: Any = None,
    enable_dropout: bool = False,
    outputs: Literal["logits", "states"] = "logits",
  ) -> Any:
    """Returns the fp32 logits [B, L, V], or the states from which `logits` makes them.

    Args:
      encoder_input_tokens: [B, T].
      decoder_input_tokens: [B, L], the targets shifted right, 0 first.
      decoder_target_tokens: [B, L].
      encoder_segment_ids: [B, T], for packed rows: 1, 2, ... for the examples of a row.
      decoder_segment_ids: [B, L], likewise.
      source_segment_ids: [B, L], the encoder's segment that each target position attends
        to, if it is not the one with the number of its own segment.
      places: the positions of a bank's prompts in packed rows.
      prompt: [P, D] for all rows, [B, P, D], or with `places` [N, P, D].
      delta: [M, D], [B, M, D] or [N, M, D] likewise, added to the source's embeddings by
        position.
      enable_dropout: needs the rng 'dropout'.
      outputs: 'logits', or 'states' for the input of `logits`.
    """

  def encode(self, encoder_input_tokens: Any, *args: Any, **options: Any) -> Any:
    """Returns the encoded source [B, P + T, D], the prompt's positions first."""

  def start_decoding(
    self, encoded: Any, encoder_input_tokens: Any, target_length: int
  ) -> Any:
    """Returns the cache for up to `target_length` calls of `decode_step`."""


@runtime_checkable
class DecoderOnlyNetwork(Network, Protocol):
  """A network that predicts each position from those before it.

  Ids are the tokenizer's plus one, so that id 0, padding, is no token of any vocabulary.

  Attributes:
    max_positions: the longest row, from the prompt to the answer's end.
  """

  max_positions: int

  def embed(self, tokens: Any) -> Any:
    """Returns the embedded tokens [B, W, D], in the space of prompts."""

  def states(
    self, x: Any, positions: Any, mask: Any, enable_dropout: bool = False
  ) -> Any:
    """Returns the states from which `logits` predicts what follows each position.

    Args:
      x: [B, W, D], embedded tokens and prompts.
      positions: [B, W], from 0 within an example.
      mask: [B, 1, W, W], true where a position (the first W) sees another (the second).
      enable_dropout: needs the rng 'dropout'.
    """

  def start_decoding(
    self, x: Any, positions: Any, mask: Any, last: Any, target_length: int
  ) -> Any:
    """Returns the cache for up to `target_length` calls of `decode_step`.

    Args:
      x: [B, W, D], embedded sources with their prompts.
      positions: [B, W].
      mask: [B, 1, W, W]; an answer sees what the last position sees.
      last: [B], the index of each source's last position.
      target_length: L.
    """


class Targets(NamedTuple):
  """The target tokens of a batch, and before them those of its sources if these count too.

  Attributes:
    tokens: [B, L].
    weights: [B, L], of the tokens' losses; 0 at padding.
    segments: [B, L], 1, 2, ... for the targets of a packed row; None if not packed.
    prompts: [B, L], the index in the bank of each target's prompt; None if not packed.
    first_answer: the column of the first target token; columns before it are sources.
  """

  tokens: Int[Array, "B L"]
  weights: Float[Array, "B L"]
  segments: Int[Array, "B L"] | None = None
  prompts: Int[Array, "B L"] | None = None
  first_answer: int = 0

  @classmethod
  def of(cls, batch: Mapping[str, Any]) -> "Targets":
    """Returns the targets of a batch, each of weight 1 if it states no weights."""
    tokens = jnp.asarray(batch["decoder_target_tokens"]).astype(jnp.int32)
    weights = batch.get("decoder_loss_weights", ~is_padding(tokens))
    return cls(
      tokens,
      jnp.asarray(weights).astype(jnp.float32),
      batch.get("decoder_segment_ids"),
      batch.get("decoder_prompt_ids"),
    )


@runtime_checkable
class Architecture(Protocol):
  """What feeds batches to networks of one kind, for `model.SoftPromptModel`.

  Its constructor takes the network, and the lengths {'inputs': T, 'targets': L} of batches
  that have source and target in one row, or None. `folded` is a `prompts.equations.Folded`:
  one prompt for all rows, or one for each; in packed rows those of a bank.

  Attributes:
    PREDICTS_SOURCES: whether source tokens are predicted, and can have a loss.
  """

  PREDICTS_SOURCES: ClassVar[bool] = False

  def feature_converter(self) -> Any:
    """Returns seqio's converter; call it with `pack=False`."""

  def targets(self, batch: Any, with_sources: bool = False) -> Targets:
    """Returns the targets of a batch; with its sources, if the architecture has them."""

  def states(
    self,
    backbone: Any,
    folded: Any,
    batch: Any,
    dropout_rng: Any = None,
    with_sources: bool = False,
  ) -> Any:
    """Returns the states [B, L, D] from which each of `targets` is predicted."""

  def packed_states(
    self, backbone: Any, folded: Any, batch: Any, with_sources: bool = False
  ) -> Any:
    """Returns the states [B, L, D] of the targets of packed rows, each with its prompt."""

  def start_decoding(
    self, backbone: Any, folded: Any, batch: Any, target_length: int | None
  ) -> tuple[Any, Any, int]:
    """Returns what `decoding.decode` starts from: a cache, which rows are empty, and L.

    Args:
      backbone: its parameters.
      folded: the prompts.
      batch: its sources are answered.
      target_length: L, the most tokens to write; None for the length of the batch's
        targets.
    """

  def check_lengths(self, prompt: int, source: int, target: int) -> None:
    """Raises `UserError` if rows of these lengths are too long for the network."""


@runtime_checkable
class Config(Protocol):
  """What config.json of Hugging Face says about a network."""

  @property
  def model_type(self) -> str:
    """One of the family's `model_types`."""

  @property
  def numbers(self) -> Mapping[str, Any]:
    """The arguments of the family's network."""

  def to_json(self, dtype: str) -> dict[str, Any]:
    """Returns the content of config.json, for weights stored in `dtype`."""


GgufReader = Callable[[gguf.File], tuple[Config, dict[str, Leaf]]]
"""Returns the config of a GGUF file and its leaves by path, after checking both.

It raises `UserError` about a value that the network does not support.
"""


@runtime_checkable
class Family(Protocol):
  """A family of backbones: its network, its public sizes, and its names elsewhere.

  Attributes:
    name: for people: 'T5'.
    table: path of the token embeddings, as in the network's TABLE. A file that states no
      family belongs to the first one whose table is among its leaves.
    model_types: model_type in config.json of Hugging Face -> the models' names.
    not_read: model_type, or architecture in GGUF files, of a related model that cannot be
      read -> the reason.
    leaves_tell_numbers: whether `config_of` needs no stated numbers; files state the
      network's numbers only if it does.
    gguf: general.architecture of GGUF files that are read -> their reader; empty for none.
    sizes: name -> the arguments of the network.
    tiny: name -> the arguments of a network for tests, one for each variant in the family.
  """

  name: str
  table: str
  model_types: Mapping[str, str]
  not_read: Mapping[str, str]
  leaves_tell_numbers: bool
  gguf: Mapping[str, GgufReader]
  sizes: Mapping[str, Mapping[str, Any]]
  tiny: Mapping[str, Mapping[str, Any]]

  def network(self, **numbers: Any) -> Network:
    """Returns the network with these arguments."""

  def read_config(self, folder: files.Path) -> Config:
    """Returns the content of a folder's config.json.

    Raises:
      UserError: it has a value that the network does not support; the message names it.
    """

  def config_of(
    self,
    leaves: Mapping[str, Any],
    source: str,
    model_type: str | None = None,
    numbers: Mapping[str, Any] | None = None,
  ) -> Config:
    """Returns the config of leaves by T5X path.

    Args:
      leaves: of a whole network.
      source: where they come from, for messages.
      model_type: Hugging Face's, if the source states it.
      numbers: the network's arguments that the source states, from JSON that need not be
        trusted; None if it states none. Leaves tell the rest by their names and shapes.

    Raises:
      UserError: they are not the leaves of a network of this family, or not of one with
        these numbers; or no numbers are stated and the leaves do not tell them.
    """

  def places(self, config: Any) -> list[Place]:
    """Returns every leaf of the network, with its names in Hugging Face's files and here."""

  def by_path(
    self, source: str, config: Any, found: Mapping[str, Leaf]
  ) -> dict[str, Leaf]:
    """Returns the leaves of Hugging Face's files by T5X path, after checking them."""

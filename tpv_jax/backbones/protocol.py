"""The protocols of a family of frozen language models.

A family is a folder of this room with a `Family`, named by one line of
`registry.FAMILIES`. Its network is a Flax module that `model.SoftPromptModel` calls
through the architecture it names: for an encoder-decoder `encoder_decoder`, whose calls
`EncoderDecoderNetwork` lists.
"""

from collections.abc import Mapping
from typing import Any, ClassVar, Literal, Protocol, runtime_checkable

import numpy as np
from flax import struct
from jaxtyping import Array, Int

from tpv_jax.core import files
from tpv_jax.core.leaves import Leaf
from tpv_jax.formats.hugging_face import Place

AnyArray = Array | np.ndarray
"""An array of JAX, or of NumPy from a caller outside of `jit`."""


@struct.dataclass
class Places:
  """Where the soft prompts of a bank stand in packed rows.

  Attributes:
    prompt_ids: [B, W], the index in the bank of each position's prompt.
    prompt_positions: [B, W], 1 to P at the positions of a prompt, 0 elsewhere.
    source_positions: [B, W], of a source token within its source.
  """

  prompt_ids: Int[AnyArray, "B W"]
  prompt_positions: Int[AnyArray, "B W"]
  source_positions: Int[AnyArray, "B W"]


@runtime_checkable
class Network(Protocol):
  """A frozen language model as a Flax module; its fields are its numbers.

  Parameter paths and the logical names of axes are T5X's where it has the part, so that
  its checkpoints and its standard rules fit.

  Attributes:
    ARCHITECTURE: which module of this package feeds it: 'encoder_decoder'.
    TABLE: path of the token embeddings [V, D] among its parameters.
    vocab_size: V, rows of the table.
    emb_dim: D, features of a token.
    dtype: of the computation, 'float32' or 'bfloat16'.
    dropout_rate: 0 for a frozen backbone.
  """

  ARCHITECTURE: ClassVar[str]
  TABLE: ClassVar[str]
  vocab_size: int
  emb_dim: int
  dtype: str
  dropout_rate: float

  def init(self, rngs: Any, *inputs: Any) -> Any:
    """Returns fresh `params` and their logical axes, `params_axes` (Flax)."""

  def apply(self, variables: Any, *inputs: Any, **options: Any) -> Any:
    """Returns the result of a method with these parameters (Flax)."""

  def init_inputs(self) -> tuple[Any, ...]:
    """Returns the smallest inputs that `init` takes."""

  def stored(self, path: str, dtype: Any) -> Any:
    """Returns the dtype in which a frozen leaf of `dtype` may lie on the devices.

    The numbers must be the same as with fp32 leaves.
    """

  def logits(self, x: Any) -> Any:
    """Returns fp32 logits [B, L, V] of states [B, L, D]."""


@runtime_checkable
class EncoderDecoderNetwork(Network, Protocol):
  """A network with an encoder, to whose source the soft prompt is prepended.

  Id 0 is padding; a padding position of the source is never seen. Without positions of
  their own (T5 has relative ones), packed rows equal unpacked ones.
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
    """Returns fp32 logits [B, L, V] at every target position, or the states before them.

    Args:
      encoder_input_tokens: [B, T].
      decoder_input_tokens: [B, L], the targets shifted right, 0 first.
      decoder_target_tokens: [B, L].
      encoder_segment_ids: [B, T] of packed rows, 1, 2, ... for its examples.
      decoder_segment_ids: [B, L] likewise.
      source_segment_ids: [B, L], the encoder's segment that a target position sees, where
        it is not the one of its own number.
      places: where a bank's prompts stand in packed rows.
      prompt: [P, D] for all rows, [B, P, D], or with `places` [N, P, D].
      delta: likewise [M, D], added to the source's embeddings by position.
      enable_dropout: needs the rng 'dropout'.
      outputs: 'states' for what `logits` maps to logits.
    """

  def encode(self, encoder_input_tokens: Any, *args: Any, **options: Any) -> Any:
    """Returns the encoded source [B, P + T, D], the prompt's positions first."""

  def start_decoding(
    self, encoded: Any, encoder_input_tokens: Any, target_length: int
  ) -> Any:
    """Returns the cache for up to `target_length` calls of `decode_step`.

    A Flax dataclass whose `self_keys_values` has a row for each hypothesis, all else one
    for each row of the source.
    """

  def decode_step(self, tokens: Any, index: Any, cache: Any) -> Any:
    """Returns the fp32 logits [hypotheses, V] that follow `tokens`, and the new cache."""


@runtime_checkable
class Config(Protocol):
  """A network's config.json of Hugging Face."""

  @property
  def model_type(self) -> str:
    """One of the family's `model_types`."""

  @property
  def numbers(self) -> Mapping[str, Any]:
    """The arguments of the family's network."""

  def to_json(self, dtype: str) -> dict[str, Any]:
    """Returns the content of config.json, for weights stored in `dtype`."""


@runtime_checkable
class Family(Protocol):
  """A family of backbones: its network, its public sizes, and its names elsewhere.

  Attributes:
    name: for people: 'T5'.
    table: path of the token embeddings, as the network's TABLE; leaves that include this
      path belong to the family.
    model_types: what config.json of Hugging Face calls its models -> what they are.
    not_read: model_type of a relative that is not read -> why.
    sizes: name -> numbers, the arguments of the network.
    tiny: name -> numbers of a network for tests, one of each form that the family has.
  """

  name: str
  table: str
  model_types: Mapping[str, str]
  not_read: Mapping[str, str]
  sizes: Mapping[str, Mapping[str, Any]]
  tiny: Mapping[str, Mapping[str, Any]]

  def network(self, **numbers: Any) -> Network:
    """Returns the network of these numbers."""

  def read_config(self, folder: files.Path) -> Config:
    """Returns the network's config from the config.json of a folder.

    Raises:
      UserError: it has a value that the network does not know; the message names it.
    """

  def config_of(
    self, leaves: Mapping[str, Any], source: str, model_type: str | None = None
  ) -> Config:
    """Returns the config that the names and shapes of leaves by T5X path imply.

    Raises:
      UserError: they are not leaves of this family.
    """

  def places(self, config: Any) -> list[Place]:
    """Returns the place of every leaf of the network in Hugging Face's files and here."""

  def by_path(
    self, source: str, config: Any, found: Mapping[str, Leaf]
  ) -> dict[str, Leaf]:
    """Returns the leaves of Hugging Face's files by T5X path, with names and shapes checked."""

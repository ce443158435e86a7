"""What files say of a decoder-only network: its numbers, and the names of its leaves.

Families of such networks share most of both. Leaves do not tell the numbers (how many heads
there are, how positions turn), so files of ours state them. Hugging Face stores a linear
map as [out, in] and we as [in, out], so every matrix except the token table is transposed.
NumPy only.
"""

import dataclasses
from collections.abc import Mapping
from typing import Any, TypeVar

import numpy as np

from tpv_jax.core import files
from tpv_jax.core.errors import UserError
from tpv_jax.core.leaves import Leaf
from tpv_jax.formats import hugging_face
from tpv_jax.formats.hugging_face import Place

TABLE = "decoder/token_embedder/embedding"
"""Path of the token embeddings."""

TABLE_NAME = "model.embed_tokens.weight"
"""Hugging Face's name of the token embeddings."""

HEAD = "lm_head.weight"
"""Hugging Face's name of an output layer of its own."""

_BUFFER = ".rotary_emb.inv_freq"
"""The end of names of leaves that old versions stored, and `transformers` ignores."""


@dataclasses.dataclass(frozen=True)
class Config:
  """The numbers that every decoder-only network has; a family adds its own.

  All fields but the first are arguments of the family's network. Those without a default
  must be stated.

  Attributes:
    model_type: of Hugging Face.
    vocab_size: rows of the token table.
    emb_dim: D.
    num_heads: heads of queries.
    num_kv_heads: heads of keys and of values.
    head_dim: width of a head.
    num_layers: of the decoder.
    mlp_dim: hidden width of the feed-forward block.
  """

  model_type: str
  vocab_size: int
  emb_dim: int
  num_heads: int
  num_kv_heads: int
  head_dim: int
  num_layers: int
  mlp_dim: int

  @property
  def numbers(self) -> dict[str, Any]:
    """The arguments of the family's network."""
    found = dataclasses.asdict(self)
    del found["model_type"]
    return found


Made = TypeVar("Made", bound=Config)


def checked(
  kind: type[Made], model_type: str, numbers: Mapping[str, Any], source: str
) -> Made:
  """Returns the config of these numbers, which a network can have.

  Args:
    kind: the family's config.
    model_type: of Hugging Face.
    numbers: all fields of `kind` without a default, and any others; from a file, so that
      their values may be of any kind.
    source: where they are stated, for messages.

  Raises:
    UserError: no network has these numbers; the message names them.
  """
  types = {field.name: field.type for field in dataclasses.fields(kind)}
  found: dict[str, Any] = {}
  for name, number in numbers.items():
    if types[name] is float:
      found[name] = hugging_face.positive(number, name, source)
    elif types[name] is int:
      found[name] = hugging_face.whole(number, name, source)
    elif types[name] is bool:
      if type(number) is not bool:
        raise UserError(
          f"'{source}' gives the network {name} {hugging_face.short(number)}; it must be "
          "true or false. Take another copy."
        )
      found[name] = number
    else:
      found[name] = _divisors(number, name, source)
  config = kind(model_type, **found)
  _refuse_contradictions(config, source)
  return config


def _divisors(numbers: Any, name: str, source: str) -> tuple[float, ...]:
  if not isinstance(numbers, list | tuple):
    raise UserError(
      f"'{source}' states {name} {hugging_face.short(numbers)}, which is no list. Take "
      "another copy."
    )
  what = "a divisor of rotary frequencies"
  return tuple(hugging_face.positive(number, what, source) for number in numbers)


def _refuse_contradictions(config: Config, source: str) -> None:
  if config.num_layers > 1_000:
    raise UserError(
      f"'{source}' states {config.num_layers} layers; no model has over 1000. Take "
      "another copy."
    )
  if config.num_heads % config.num_kv_heads:
    raise UserError(
      f"'{source}' states {config.num_heads} heads of queries and {config.num_kv_heads} "
      "of keys and values, which do not divide them. Take another copy."
    )
  if config.head_dim % 2:
    raise UserError(
      f"'{source}' gives heads a width of {config.head_dim}; rotary positions turn pairs "
      "of features, so it must be even. Take another copy."
    )
  divisors = config.numbers.get("rope_divisors")
  if divisors and len(divisors) != config.head_dim // 2:
    raise UserError(
      f"'{source}' states {len(divisors)} divisors of rotary frequencies; heads of width "
      f"{config.head_dim} need {config.head_dim // 2}. Take another copy."
    )


def stated(
  kind: type[Config], numbers: Mapping[str, Any] | None, source: str
) -> Mapping[str, Any]:
  """Returns the numbers that a file of ours states, whose names are those of `kind`.

  Raises:
    UserError: it states none, lacks one, or has another.
  """
  if numbers is None:
    raise UserError(
      f"'{source}' does not state the numbers of its network, and its leaves do not tell "
      "them: heads, rotary positions. Convert the model again from its folder of Hugging "
      "Face or its GGUF file (tpv convert)."
    )
  _, *fields = dataclasses.fields(kind)
  known = {field.name for field in fields}
  needed = {field.name for field in fields if field.default is dataclasses.MISSING}
  for what, names in (
    ("an unknown number", numbers.keys() - known),
    ("no number", needed - numbers.keys()),
  ):
    if names:
      raise UserError(
        f"'{source}' states {what} {hugging_face.short(min(names))} of its network. Take "
        "another copy, or a newer version of tpv_jax."
      )
  return numbers


def refuse_other_values(
  folder: files.Path,
  content: Mapping[str, Any],
  models: str,
  fixed: Mapping[str, tuple[Any, str]],
) -> None:
  """Raises `UserError` about a field of config.json that the network does not obey.

  Rules of tokens that belong to sampled text are the user's choice.

  Args:
    folder: of the model.
    content: of its config.json.
    models: those that the family reads, for the advice.
    fixed: fields of which the network supports one value only: that value, and what others
      mean.
  """
  path = folder / hugging_face.CONFIG
  hugging_face.refuse_unknown(content, path, models)
  for key, (value, what) in {**_FIXED, **fixed}.items():
    if content.get(key) is not None and content[key] is not value:
      raise UserError(
        f"'{path}' states {key} {hugging_face.short(content[key])}; the network supports "
        f"only {value}: it has no {what}. Choose another model."
      )
  hugging_face.refuse_token_rules(content, path, _TOKEN_SETTINGS)
  if (folder / hugging_face.GENERATION).exists():
    generation = hugging_face.read_json(folder, hugging_face.GENERATION)
    path = folder / hugging_face.GENERATION
    hugging_face.refuse_token_rules(generation, path, _TOKEN_SETTINGS)


_FIXED: dict[str, tuple[Any, str]] = {
  "attention_bias": (False, "biases on the attention's output as well"),
  "is_encoder_decoder": (False, "an encoder beside the decoder"),
  "add_cross_attention": (False, "attention to an encoder"),
}

_TOKEN_SETTINGS = ("repetition_penalty", "min_length", "min_new_tokens")


def places(
  config: Config,
  norms: Mapping[str, str],
  attention_bias: bool,
  qk_norm: bool,
  logits_via_embedding: bool,
) -> list[Place]:
  """Returns every leaf of the network, with its names on either side and its shape.

  Args:
    config: its numbers.
    norms: of a layer, Hugging Face's name -> ours.
    attention_bias: whether query, key and value have biases.
    qk_norm: whether each head of query and key is normed.
    logits_via_embedding: whether there is no output layer.
  """
  width = config.emb_dim
  found = [Place(TABLE_NAME, TABLE, (config.vocab_size, width), False)]

  def matrix(name: str, path: str, outputs: int, inputs: int) -> None:
    found.append(Place(f"{name}.weight", f"{path}/kernel", (outputs, inputs), True))

  def vector(name: str, path: str, size: int) -> None:
    found.append(Place(name, path, (size,), False))

  for number in range(config.num_layers):
    theirs, ours = f"model.layers.{number}", f"decoder/layers_{number}"
    for name, path in norms.items():
      vector(f"{theirs}.{name}.weight", f"{ours}/{path}/scale", width)
    joined = config.num_heads * config.head_dim
    shared = config.num_kv_heads * config.head_dim
    for letter, part, size in (
      ("q", "query", joined),
      ("k", "key", shared),
      ("v", "value", shared),
    ):
      name, path = f"{theirs}.self_attn.{letter}", f"{ours}/self_attention/{part}"
      matrix(f"{name}_proj", path, size, width)
      if attention_bias:
        vector(f"{name}_proj.bias", f"{path}/bias", size)
      if qk_norm and letter != "v":
        vector(f"{name}_norm.weight", f"{path}_norm/scale", config.head_dim)
    matrix(f"{theirs}.self_attn.o_proj", f"{ours}/self_attention/out", width, joined)
    matrix(f"{theirs}.mlp.gate_proj", f"{ours}/mlp/wi_0", config.mlp_dim, width)
    matrix(f"{theirs}.mlp.up_proj", f"{ours}/mlp/wi_1", config.mlp_dim, width)
    matrix(f"{theirs}.mlp.down_proj", f"{ours}/mlp/wo", width, config.mlp_dim)
  vector("model.norm.weight", "decoder/decoder_norm/scale", width)
  if not logits_via_embedding:
    found.append(
      Place(HEAD, "decoder/logits_dense/kernel", (config.vocab_size, width), True)
    )
  return found


def by_path(
  source: str, places: list[Place], found: Mapping[str, Leaf]
) -> dict[str, Leaf]:
  """Returns the leaves of a folder by path, after a check of their names and shapes.

  A copy of the token table as output layer, which `places` does not have, is left out; so
  are the buffers of rotary positions.
  """
  stored = {name: leaf for name, leaf in found.items() if not name.endswith(_BUFFER)}
  tied = all(place.name != HEAD for place in places)
  if tied and HEAD in stored and TABLE_NAME in stored:
    head, table = stored.pop(HEAD), stored[TABLE_NAME]
    if head.shape != table.shape or not np.array_equal(head, table):
      raise UserError(
        f"'{source}' holds '{HEAD}' with other values than '{TABLE_NAME}', and its "
        f"{hugging_face.CONFIG} makes one table of them (tie_word_embeddings). Set that "
        "to false if the output layer is one of its own."
      )
  return hugging_face.by_path(source, places, stored)

"""The numbers of a network of the LLaMA family, and the names of its leaves.

Hugging Face stores a linear map as [out, in] and we as [in, out], so every matrix except
the token table is transposed. NumPy only.
"""

import dataclasses
import math
from collections.abc import Mapping
from typing import Any

from tpv_jax.backbones.llama import rotary
from tpv_jax.core.errors import UserError
from tpv_jax.formats import hugging_face
from tpv_jax.formats.hugging_face import Place

TABLE = "decoder/token_embedder/embedding"
"""Path of the token embeddings."""

TABLE_NAME = "model.embed_tokens.weight"
"""Hugging Face's name of the token embeddings."""

HEAD = "lm_head.weight"
"""Hugging Face's name of an output layer of its own."""

MODEL_TYPES = {
  "llama": "LLaMA, SmolLM2, DeepSeek-LLM",
  "mistral": "Mistral within its window",
  "qwen2": "Qwen 2.5",
  "qwen3": "Qwen 3",
}
"""model_type of Hugging Face -> the models' names."""


@dataclasses.dataclass(frozen=True)
class Config:
  """The numbers of a network; but for the first, the arguments of `network.Llama`.

  Attributes:
    model_type: one of `MODEL_TYPES`.
    vocab_size: rows of the token table.
    emb_dim: D.
    num_heads: heads of queries.
    num_kv_heads: heads of keys and of values.
    head_dim: width of a head.
    num_layers: of the decoder.
    mlp_dim: hidden width of the feed-forward block.
    rope_theta: base of the rotary frequencies.
    rope_divisors: [head_dim / 2], what each frequency is divided by; () for none.
    norm_epsilon: of the norms.
    attention_bias: whether query, key and value have biases.
    qk_norm: whether each head of query and key is normed.
    logits_via_embedding: whether logits come from the token table.
    max_positions: the longest row that gives the model's numbers.
  """

  model_type: str
  vocab_size: int
  emb_dim: int
  num_heads: int
  num_kv_heads: int
  head_dim: int
  num_layers: int
  mlp_dim: int
  rope_theta: float = 10_000.0
  rope_divisors: tuple[float, ...] = ()
  norm_epsilon: float = 1e-5
  attention_bias: bool = False
  qk_norm: bool = False
  logits_via_embedding: bool = False
  max_positions: int = 2_048

  @property
  def numbers(self) -> dict[str, Any]:
    """The arguments of `network.Llama`."""
    found = dataclasses.asdict(self)
    del found["model_type"]
    return found

  def to_json(self, dtype: str) -> dict[str, Any]:
    """Returns the content of config.json, for weights stored in `dtype`.

    Rotary settings are in both spellings. Ids of special tokens are the tokenizer's, which
    is not written.

    Raises:
      UserError: the format has no name for this scaling of rotary positions.
    """
    scaling = self._scaling()
    content: dict[str, Any] = {
      "architectures": [_CLASSES[self.model_type]],
      "attention_dropout": 0.0,
      "bos_token_id": None,
      "dtype": dtype,
      "eos_token_id": None,
      "head_dim": self.head_dim,
      "hidden_act": "silu",
      "hidden_size": self.emb_dim,
      "intermediate_size": self.mlp_dim,
      "max_position_embeddings": self.max_positions,
      "model_type": self.model_type,
      "num_attention_heads": self.num_heads,
      "num_hidden_layers": self.num_layers,
      "num_key_value_heads": self.num_kv_heads,
      "rms_norm_eps": self.norm_epsilon,
      "rope_parameters": {"rope_theta": self.rope_theta, **scaling},
      "rope_scaling": None if scaling["rope_type"] == "default" else scaling,
      "rope_theta": self.rope_theta,
      "tie_word_embeddings": self.logits_via_embedding,
      "vocab_size": self.vocab_size,
    }
    if self.model_type != "llama":
      content["sliding_window"] = None
    if self.model_type in ("qwen2", "qwen3"):
      content["use_sliding_window"] = False
    if self.model_type in ("llama", "qwen3"):
      content["attention_bias"] = False
    if self.model_type == "llama":
      content["mlp_bias"] = False
    return content

  def _scaling(self) -> dict[str, Any]:
    """Returns Hugging Face's name and numbers for the divisors."""
    if not self.rope_divisors:
      return {"rope_type": "default"}
    factor = max(self.rope_divisors)
    if _close(self.rope_divisors, rotary.linear(self.head_dim, factor)):
      return {"rope_type": "linear", "factor": factor}
    known = rotary.llama3(self.head_dim, self.rope_theta, factor)
    if _close(self.rope_divisors, known):
      return {
        "rope_type": "llama3",
        "factor": factor,
        "low_freq_factor": rotary.LOW,
        "high_freq_factor": rotary.HIGH,
        "original_max_position_embeddings": rotary.ORIGINAL,
      }
    raise UserError(
      "The rotary frequencies of this model are divided by numbers for which config.json "
      "of Hugging Face has no name: neither linear scaling nor LLaMA 3.1's. Write a "
      ".safetensors file of ours or a T5X checkpoint instead."
    )


_CLASSES = {
  "llama": "LlamaForCausalLM",
  "mistral": "MistralForCausalLM",
  "qwen2": "Qwen2ForCausalLM",
  "qwen3": "Qwen3ForCausalLM",
}


def checked(model_type: str, numbers: Mapping[str, Any], source: str) -> Config:
  """Returns the config of these numbers, which a network can have.

  Args:
    model_type: one of `MODEL_TYPES`.
    numbers: all fields of `Config` without a default, and any others; from a file, so that
      their values may be of any kind.
    source: where they are stated, for messages.

  Raises:
    UserError: no network has these numbers; the message names them.
  """
  for name, number in numbers.items():
    if name in _FLOATS:
      refuse_not_positive(number, name, source)
    elif name in _FLAGS and type(number) is not bool:
      raise UserError(
        f"'{source}' gives the network {name} {hugging_face.short(number)}; it must be "
        "true or false. Take another copy."
      )
    elif name == "rope_divisors":
      if not isinstance(number, list | tuple):
        raise UserError(
          f"'{source}' states rope_divisors {hugging_face.short(number)}, which is no "
          "list. Take another copy."
        )
      for divisor in number:
        refuse_not_positive(divisor, "a divisor of rotary frequencies", source)
    elif name not in _FLAGS:
      hugging_face.whole(number, name, source)
  config = Config(
    model_type,
    **{
      **numbers,
      "rope_divisors": tuple(map(float, numbers.get("rope_divisors", ()))),
      **{name: float(numbers[name]) for name in _FLOATS if name in numbers},
    },
  )
  _refuse_contradictions(config, source)
  return config


_FLOATS = ("rope_theta", "norm_epsilon")
_FLAGS = ("attention_bias", "qk_norm", "logits_via_embedding")


def _refuse_contradictions(config: Config, source: str) -> None:
  if config.num_layers > 1_000:
    raise UserError(
      f"'{source}' states {config.num_layers} layers; no LLaMA has over 1000. Take "
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
  if config.rope_divisors and len(config.rope_divisors) != config.head_dim // 2:
    raise UserError(
      f"'{source}' states {len(config.rope_divisors)} divisors of rotary frequencies; "
      f"heads of width {config.head_dim} need {config.head_dim // 2}. Take another copy."
    )
  if config.attention_bias and config.qk_norm:
    raise UserError(
      f"'{source}' states biases on query and key, and norms of them; no model that is "
      "read here has both. Take another copy."
    )


def refuse_not_positive(number: Any, name: str, source: str) -> None:
  """Raises `UserError` unless a number from a file is positive and finite."""
  if (
    not isinstance(number, int | float)
    or isinstance(number, bool)
    or not 0 < number < 1e30
  ):
    raise UserError(
      f"'{source}' states {name} {hugging_face.short(number)}; it must be a positive "
      "number. Take another copy."
    )


def config_of(
  flat: Mapping[str, Any],
  source: str,
  model_type: str | None = None,
  numbers: Mapping[str, Any] | None = None,
) -> Config:
  """Returns the config with the stated numbers, which leaves by path alone don't tell.

  Raises:
    UserError: no numbers are stated, or they are not those of the leaves.
  """
  if numbers is None:
    raise UserError(
      f"'{source}' does not state the numbers of its network, and its leaves do not tell "
      "them: heads, rotary positions. Convert the model again from its folder of Hugging "
      "Face or its GGUF file (tpv convert)."
    )
  _, *fields = dataclasses.fields(Config)
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
  kind = "mistral" if model_type == "mistral" else "llama"
  if True in (numbers.get("attention_bias"), numbers.get("qk_norm")):
    kind = "qwen2" if numbers.get("attention_bias") is True else "qwen3"
  config = checked(kind, numbers, source)
  hugging_face.check_leaves(source, places(config), flat, "this LLaMA")
  return config


def places(config: Config) -> list[Place]:
  """Returns every leaf of the network, with its names on either side and its shape."""
  width = config.emb_dim
  found = [Place(TABLE_NAME, TABLE, (config.vocab_size, width), False)]

  def matrix(name: str, path: str, outputs: int, inputs: int) -> None:
    found.append(Place(f"{name}.weight", f"{path}/kernel", (outputs, inputs), True))

  def vector(name: str, path: str, size: int) -> None:
    found.append(Place(name, path, (size,), False))

  for number in range(config.num_layers):
    theirs, ours = f"model.layers.{number}", f"decoder/layers_{number}"
    vector(
      f"{theirs}.input_layernorm.weight",
      f"{ours}/pre_self_attention_layer_norm/scale",
      width,
    )
    joined = config.num_heads * config.head_dim
    shared = config.num_kv_heads * config.head_dim
    for letter, part, size in (
      ("q", "query", joined),
      ("k", "key", shared),
      ("v", "value", shared),
    ):
      name, path = f"{theirs}.self_attn.{letter}", f"{ours}/self_attention/{part}"
      matrix(f"{name}_proj", path, size, width)
      if config.attention_bias:
        vector(f"{name}_proj.bias", f"{path}/bias", size)
      if config.qk_norm and letter != "v":
        vector(f"{name}_norm.weight", f"{path}_norm/scale", config.head_dim)
    matrix(f"{theirs}.self_attn.o_proj", f"{ours}/self_attention/out", width, joined)
    vector(
      f"{theirs}.post_attention_layernorm.weight",
      f"{ours}/pre_mlp_layer_norm/scale",
      width,
    )
    matrix(f"{theirs}.mlp.gate_proj", f"{ours}/mlp/wi_0", config.mlp_dim, width)
    matrix(f"{theirs}.mlp.up_proj", f"{ours}/mlp/wi_1", config.mlp_dim, width)
    matrix(f"{theirs}.mlp.down_proj", f"{ours}/mlp/wo", width, config.mlp_dim)
  vector("model.norm.weight", "decoder/decoder_norm/scale", width)
  if not config.logits_via_embedding:
    found.append(
      Place(HEAD, "decoder/logits_dense/kernel", (config.vocab_size, width), True)
    )
  return found


def _close(some: tuple[float, ...], others: tuple[float, ...]) -> bool:
  """Returns whether numbers are equal as far as fp32 tells."""
  return all(
    math.isclose(one, other, rel_tol=1e-6)
    for one, other in zip(some, others, strict=True)
  )

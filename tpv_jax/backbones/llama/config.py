"""The numbers of a network of the LLaMA family, and the names of its leaves.

NumPy only.
"""

import dataclasses
from collections.abc import Mapping
from typing import Any

from tpv_jax.backbones import decoder_config, rotary
from tpv_jax.core.errors import UserError
from tpv_jax.formats import hugging_face
from tpv_jax.formats.hugging_face import Place

MODEL_TYPES = {
  "llama": "LLaMA, SmolLM2, DeepSeek-LLM",
  "mistral": "Mistral within its window",
  "qwen2": "Qwen 2.5",
  "qwen3": "Qwen 3",
}
"""model_type of Hugging Face -> the models' names."""

_NORMS = {
  "input_layernorm": "pre_self_attention_layer_norm",
  "post_attention_layernorm": "pre_mlp_layer_norm",
}


@dataclasses.dataclass(frozen=True)
class Config(decoder_config.Config):
  """The numbers of a network; but for `model_type`, the arguments of `network.Llama`.

  Attributes:
    rope_theta: base of the rotary frequencies.
    rope_divisors: [head_dim / 2], what each frequency is divided by; () for none.
    norm_epsilon: of the norms.
    attention_bias: whether query, key and value have biases.
    qk_norm: whether each head of query and key is normed.
    logits_via_embedding: whether logits come from the token table.
    max_positions: the longest row that gives the model's numbers.
  """

  rope_theta: float = 10_000.0
  rope_divisors: tuple[float, ...] = ()
  norm_epsilon: float = 1e-5
  attention_bias: bool = False
  qk_norm: bool = False
  logits_via_embedding: bool = False
  max_positions: int = 2_048

  def to_json(self, dtype: str) -> dict[str, Any]:
    """Returns the content of config.json, for weights stored in `dtype`.

    Rotary settings are in both spellings. Ids of special tokens are the tokenizer's, and
    stated by whoever knows it. Mistral's longest row is stated as its window, too: so
    `transformers` sees in longer rows what the model was trained to see.

    Raises:
      UserError: the format has no name for this scaling of rotary positions.
    """
    scaling = rotary.scaling(self.rope_divisors, self.head_dim, self.rope_theta)
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
      window = self.max_positions if self.model_type == "mistral" else None
      content["sliding_window"] = window
    if self.model_type in ("qwen2", "qwen3"):
      content["use_sliding_window"] = False
    if self.model_type in ("llama", "qwen3"):
      content["attention_bias"] = False
    if self.model_type == "llama":
      content["mlp_bias"] = False
    return content


_CLASSES = {
  "llama": "LlamaForCausalLM",
  "mistral": "MistralForCausalLM",
  "qwen2": "Qwen2ForCausalLM",
  "qwen3": "Qwen3ForCausalLM",
}


def checked(model_type: str, numbers: Mapping[str, Any], source: str) -> Config:
  """Returns the config of these numbers; see `decoder_config.checked`."""
  config = decoder_config.checked(Config, model_type, numbers, source)
  if config.attention_bias and config.qk_norm:
    raise UserError(
      f"'{source}' states biases on query and key, and norms of them; no model that is "
      "read here has both. Take another copy."
    )
  return config


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
  numbers = decoder_config.stated(Config, numbers, source)
  kind = "mistral" if model_type == "mistral" else "llama"
  if True in (numbers.get("attention_bias"), numbers.get("qk_norm")):
    kind = "qwen2" if numbers.get("attention_bias") is True else "qwen3"
  config = checked(kind, numbers, source)
  hugging_face.check_leaves(source, places(config), flat, "this LLaMA")
  return config


def places(config: Config) -> list[Place]:
  """Returns every leaf of the network, with its names on either side and its shape."""
  return decoder_config.places(
    config, _NORMS, config.attention_bias, config.qk_norm, config.logits_via_embedding
  )

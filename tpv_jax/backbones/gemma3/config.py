"""The numbers of a network of Gemma 3, and the names of its leaves.

NumPy only.
"""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

from tpv_jax.backbones import decoder_config, rotary
from tpv_jax.formats import hugging_face
from tpv_jax.formats.hugging_face import Place

FULL, SLIDING = "full_attention", "sliding_attention"
"""Hugging Face's names of the two kinds of layers."""

_NORMS = {
  "input_layernorm": "pre_self_attention_layer_norm",
  "post_attention_layernorm": "post_self_attention_layer_norm",
  "pre_feedforward_layernorm": "pre_mlp_layer_norm",
  "post_feedforward_layernorm": "post_mlp_layer_norm",
}


@dataclasses.dataclass(frozen=True)
class Config(decoder_config.Config):
  """The numbers of a network; but for `model_type`, the arguments of `network.Gemma3`.

  Attributes:
    rope_theta: base of the rotary frequencies of layers that see everything.
    rope_divisors: [head_dim / 2], what each of them is divided by; () for none.
    local_rope_theta: base of the frequencies of the other layers.
    window: how many positions those see.
    full_period: each layer of such a number sees everything.
    query_scalar: queries are divided by its square root.
    norm_epsilon: of the norms.
    logits_via_embedding: whether logits come from the token table.
    max_positions: the longest row.
  """

  rope_theta: float = 1_000_000.0
  rope_divisors: tuple[float, ...] = ()
  local_rope_theta: float = 10_000.0
  window: int = 512
  full_period: int = 6
  query_scalar: float = 256.0
  norm_epsilon: float = 1e-6
  logits_via_embedding: bool = True
  max_positions: int = 32_768

  def to_json(self, dtype: str) -> dict[str, Any]:
    """Returns the content of config.json, for weights stored in `dtype`.

    Rotary settings and windows are in both spellings. Ids of special tokens are the
    tokenizer's, and stated by whoever knows it.

    Raises:
      UserError: the format has no name for this scaling of rotary positions.
    """
    scaling = rotary.scaling(self.rope_divisors, self.head_dim, self.rope_theta)
    scalar = self.query_scalar
    return {
      "architectures": ["Gemma3ForCausalLM"],
      "attention_bias": False,
      "attention_dropout": 0.0,
      "attn_logit_softcapping": None,
      "bos_token_id": None,
      "dtype": dtype,
      "eos_token_id": None,
      "final_logit_softcapping": None,
      "head_dim": self.head_dim,
      "hidden_activation": "gelu_pytorch_tanh",
      "hidden_size": self.emb_dim,
      "intermediate_size": self.mlp_dim,
      "layer_types": [
        SLIDING if number % self.full_period else FULL
        for number in range(1, self.num_layers + 1)
      ],
      "max_position_embeddings": self.max_positions,
      "model_type": self.model_type,
      "num_attention_heads": self.num_heads,
      "num_hidden_layers": self.num_layers,
      "num_key_value_heads": self.num_kv_heads,
      "pad_token_id": None,
      "query_pre_attn_scalar": int(scalar) if scalar.is_integer() else scalar,
      "rms_norm_eps": self.norm_epsilon,
      "rope_local_base_freq": self.local_rope_theta,
      "rope_parameters": {
        FULL: {"rope_theta": self.rope_theta, **scaling},
        SLIDING: {"rope_theta": self.local_rope_theta, "rope_type": "default"},
      },
      "rope_scaling": None if scaling["rope_type"] == "default" else scaling,
      "rope_theta": self.rope_theta,
      "sliding_window": self.window,
      "sliding_window_pattern": self.full_period,
      "tie_word_embeddings": self.logits_via_embedding,
      "use_bidirectional_attention": False,
      "vocab_size": self.vocab_size,
    }


def period_of(full: Sequence[bool]) -> int | None:
  """Returns the number p such that exactly each p-th layer sees everything, or None."""
  period = list(full).index(True) + 1 if True in full else len(full) + 1
  expected = [number % period == 0 for number in range(1, len(full) + 1)]
  return period if list(full) == expected else None


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
  del model_type
  numbers = decoder_config.stated(Config, numbers, source)
  config = decoder_config.checked(Config, "gemma3_text", numbers, source)
  hugging_face.check_leaves(source, places(config), flat, "this Gemma 3")
  return config


def places(config: Config) -> list[Place]:
  """Returns every leaf of the network, with its names on either side and its shape.

  The leaf of a norm is what it adds to 1, on both sides.
  """
  return decoder_config.places(config, _NORMS, False, True, config.logits_via_embedding)

"""The LLaMA family in Hugging Face's format: `transformers`' Llama, Mistral, Qwen2, Qwen3.

NumPy only.
"""

from collections.abc import Mapping
from typing import Any

from tpv_jax.backbones import decoder_config, rotary
from tpv_jax.backbones.llama.config import Config, checked, places
from tpv_jax.core import files
from tpv_jax.core.errors import UserError
from tpv_jax.core.leaves import Leaf
from tpv_jax.formats import hugging_face
from tpv_jax.formats.hugging_face import CONFIG, read_json, short

_DEFAULTS: dict[str, Any] = {
  "vocab_size": 32_000,
  "hidden_size": 4_096,
  "intermediate_size": 11_008,
  "num_hidden_layers": 32,
  "num_attention_heads": 32,
  "num_key_value_heads": None,
  "head_dim": None,
  "max_position_embeddings": 2_048,
  "rms_norm_eps": 1e-6,
  "tie_word_embeddings": False,
  "sliding_window": None,
}
"""The values that `transformers` uses for LLaMA if config.json does not state them."""

_QWEN = {
  "vocab_size": 151_936,
  "intermediate_size": 22_016,
  "num_key_value_heads": 32,
  "max_position_embeddings": 32_768,
  "sliding_window": 4_096,
  "max_window_layers": 28,
}

_DEFAULTS_OF: dict[str, dict[str, Any]] = {
  "llama": _DEFAULTS,
  "mistral": {
    **_DEFAULTS,
    "intermediate_size": 14_336,
    "num_key_value_heads": 8,
    "max_position_embeddings": 131_072,
    "sliding_window": 4_096,
  },
  "qwen2": {**_DEFAULTS, **_QWEN},
  "qwen3": {**_DEFAULTS, **_QWEN, "head_dim": 128},
}

_FIXED: dict[str, tuple[Any, str]] = {
  "mlp_bias": (False, "biases in the feed-forward block"),
}


def read_config(folder: files.Path) -> Config:
  """Returns the content of config.json in the folder of a model of the family.

  Every field of it means what it means to `transformers` 4 and 5, or is refused if the
  network does not support it. Fields that the code there does not read for these models
  are ignored.
  """
  content = read_json(folder, CONFIG)
  path = folder / CONFIG
  models = "a LLaMA, Mistral or Qwen"
  decoder_config.refuse_other_values(folder, content, models, _FIXED)
  _refuse_other_activation(content, path)
  kind = content["model_type"]
  stated = {**_DEFAULTS_OF[kind], **content}
  heads = stated["num_attention_heads"]
  width = _head_dim(stated, path)
  theta, divisors = rotary.of_config(
    content, width, stated["max_position_embeddings"], str(path)
  )
  shared = stated["num_key_value_heads"]
  found = {
    "vocab_size": stated["vocab_size"],
    "emb_dim": stated["hidden_size"],
    "num_heads": heads,
    "num_kv_heads": heads if shared is None else shared,
    "head_dim": width,
    "num_layers": stated["num_hidden_layers"],
    "mlp_dim": stated["intermediate_size"],
    "rope_theta": theta,
    "rope_divisors": divisors,
    "norm_epsilon": stated["rms_norm_eps"],
    "attention_bias": kind == "qwen2",
    "qk_norm": kind == "qwen3",
    "logits_via_embedding": stated["tie_word_embeddings"],
    "max_positions": _positions(stated, path),
  }
  return checked(kind, found, str(path))


def by_path(source: str, config: Config, found: Mapping[str, Leaf]) -> dict[str, Leaf]:
  """Returns the leaves by path, after a check of their names and shapes."""
  return decoder_config.by_path(source, places(config), found)


def _refuse_other_activation(content: Mapping[str, Any], path: files.Path) -> None:
  activation = content.get("hidden_act", "silu")
  if activation not in ("silu", "swish"):
    raise UserError(
      f"'{path}' states hidden_act {short(activation)}; the network supports only 'silu' "
      "(SwiGLU). Choose another model."
    )


def _head_dim(stated: Mapping[str, Any], path: files.Path) -> int:
  width, heads, size = (
    stated[name] for name in ("head_dim", "num_attention_heads", "hidden_size")
  )
  for name in ("num_attention_heads", "hidden_size"):
    hugging_face.whole(stated[name], name, path)
  if width is not None:
    return hugging_face.whole(width, "head_dim", path)
  if size % heads:
    raise UserError(
      f"'{path}' states hidden_size {size} and num_attention_heads {heads}, which do not "
      "divide it, and no head_dim. Take another copy."
    )
  return size // heads


def _positions(stated: Mapping[str, Any], path: files.Path) -> int:
  """Returns the longest row in which no position is out of another's window."""
  most = hugging_face.whole(
    stated["max_position_embeddings"], "max_position_embeddings", path
  )
  window = stated["sliding_window"]
  if stated["model_type"] in ("qwen2", "qwen3"):
    used = stated.get("use_sliding_window", False)
    if not isinstance(used, bool):
      raise UserError(
        f"'{path}' states use_sliding_window {short(used)}; it must be true or false. "
        "Take another copy."
      )
    if not used:
      window = None
  elif stated["model_type"] == "llama":
    window = None
  kinds = stated.get("layer_types")
  if kinds is not None and not (
    isinstance(kinds, list)
    and all(kind in ("full_attention", "sliding_attention") for kind in kinds)
  ):
    raise UserError(
      f"'{path}' states layer_types {short(kinds)}; the network supports only "
      "'full_attention', and 'sliding_attention' within its window. Choose another model."
    )
  if window is None:
    return most
  return min(most, hugging_face.whole(window, "sliding_window", path))

"""The LLaMA family in Hugging Face's format: `transformers`' Llama, Mistral, Qwen2, Qwen3.

NumPy only.
"""

from collections.abc import Mapping
from typing import Any

import numpy as np

from tpv_jax.backbones.llama import config as numbers
from tpv_jax.backbones.llama import rotary
from tpv_jax.backbones.llama.config import HEAD, TABLE_NAME, Config, places
from tpv_jax.core import files
from tpv_jax.core.errors import UserError
from tpv_jax.core.leaves import Leaf
from tpv_jax.formats import hugging_face
from tpv_jax.formats.hugging_face import CONFIG, GENERATION, read_json, short

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

_THETA = 10_000.0
"""The base of rotary frequencies where config.json states none."""

_FIXED: dict[str, tuple[Any, str]] = {
  "attention_bias": (False, "biases on the attention's output as well"),
  "mlp_bias": (False, "biases in the feed-forward block"),
  "is_encoder_decoder": (False, "an encoder beside the decoder"),
  "add_cross_attention": (False, "attention to an encoder"),
}
"""Fields of which the network supports one value only: that value, and what others mean."""

_TOKEN_SETTINGS = ("repetition_penalty", "min_length", "min_new_tokens")
"""Token rules that belong to sampled text: with it, they are the user's choice."""

_BUFFER = ".rotary_emb.inv_freq"
"""The end of names of leaves that old versions stored, and `transformers` ignores."""


def read_config(folder: files.Path) -> Config:
  """Returns the content of config.json in the folder of a model of the family.

  Every field of it means what it means to `transformers` 4 and 5, or is refused if the
  network does not support it. Fields that the code there does not read for these models
  are ignored.
  """
  content = read_json(folder, CONFIG)
  path = folder / CONFIG
  hugging_face.refuse_unknown(content, path, "a LLaMA, Mistral or Qwen")
  _refuse_other_values(content, path)
  hugging_face.refuse_token_rules(content, path, _TOKEN_SETTINGS)
  if (folder / GENERATION).exists():
    generation = read_json(folder, GENERATION)
    hugging_face.refuse_token_rules(generation, folder / GENERATION, _TOKEN_SETTINGS)
  kind = content["model_type"]
  stated = {**_DEFAULTS_OF[kind], **content}
  heads = stated["num_attention_heads"]
  width = _head_dim(stated, path)
  theta, divisors = _rotary(content, width, stated["max_position_embeddings"], path)
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
  return numbers.checked(kind, found, str(path))


def by_path(source: str, config: Config, found: Mapping[str, Leaf]) -> dict[str, Leaf]:
  """Returns the leaves by path, after a check of their names and shapes."""
  stored = {name: leaf for name, leaf in found.items() if not name.endswith(_BUFFER)}
  if config.logits_via_embedding and HEAD in stored and TABLE_NAME in stored:
    head, table = stored.pop(HEAD), stored[TABLE_NAME]
    if head.shape != table.shape or not np.array_equal(head, table):
      raise UserError(
        f"'{source}' holds '{HEAD}' with other values than '{TABLE_NAME}', and its "
        f"{CONFIG} makes one table of them (tie_word_embeddings). Set that to false if "
        "the output layer is one of its own."
      )
  return hugging_face.by_path(source, places(config), stored)


def _refuse_other_values(content: Mapping[str, Any], path: files.Path) -> None:
  for key, (value, what) in _FIXED.items():
    if content.get(key, value) is not value:
      raise UserError(
        f"'{path}' states {key} {short(content[key])}; the network supports only {value}: "
        f"it has no {what}. Choose another model."
      )
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


def _rotary(
  content: Mapping[str, Any], width: int, positions: Any, path: files.Path
) -> tuple[Any, tuple[float, ...]]:
  """Returns the base of the rotary frequencies and what they are divided by.

  `transformers` 4 writes `rope_theta` and `rope_scaling`, and 5 writes `rope_parameters`.
  """
  older, newer = (content.get(key) for key in ("rope_scaling", "rope_parameters"))
  for key, stated in (("rope_scaling", older), ("rope_parameters", newer)):
    if not isinstance(stated, dict | None):
      raise UserError(
        f"'{path}' states {key} {short(stated)}, which is no object. Take another copy."
      )
  older, newer = dict(older or {}), dict(newer or {})
  theta = newer.pop("rope_theta", None)
  if theta is None:
    theta = older.pop("rope_theta", None)
  above = content.get("rope_theta")
  if theta is None:
    theta = _THETA if above is None else above
  elif above is not None and above != theta:
    raise UserError(
      f"'{path}' states rope_theta twice, {short(above)} and {short(theta)}, and versions "
      "of transformers disagree about which counts. Remove the wrong one."
    )
  numbers.refuse_not_positive(theta, "rope_theta", str(path))
  share = newer.get("partial_rotary_factor", content.get("partial_rotary_factor"))
  if share not in (None, 1) or isinstance(share, bool):
    raise UserError(
      f"'{path}' states partial_rotary_factor {short(share)}; the network turns whole "
      "heads only. Choose another model."
    )
  old, new = (_divisors(one, theta, width, positions, path) for one in (older, newer))
  if older and newer and old != new:
    raise UserError(
      f"'{path}' states rope_scaling {short(older)} and rope_parameters {short(newer)}, "
      "which differ, and versions of transformers disagree about which counts. Remove "
      "the wrong one."
    )
  return theta, new if newer else old


def _divisors(
  stated: Mapping[str, Any], theta: float, width: int, positions: Any, path: files.Path
) -> tuple[float, ...]:
  """Returns the divisors of a scaling, as config.json states it."""
  kind = stated.get("rope_type", stated.get("type", "default"))

  def number(name: str, otherwise: Any = None) -> float:
    found = stated.get(name, otherwise)
    numbers.refuse_not_positive(found, f"a rope scaling whose {name} is", str(path))
    return float(found)

  if kind == "default":
    return ()
  if kind == "linear":
    return rotary.linear(width, number("factor"))
  if kind == "llama3":
    low, high = number("low_freq_factor"), number("high_freq_factor")
    if low >= high:
      raise UserError(
        f"'{path}' states a rope scaling whose low_freq_factor {low} is not below its "
        f"high_freq_factor {high}. Take another copy."
      )
    original = number("original_max_position_embeddings", positions)
    return rotary.llama3(width, theta, number("factor"), low, high, original)
  raise UserError(
    f"'{path}' states a rope scaling of the type {short(kind)}; only 'default', 'linear' "
    "and 'llama3' are read. Choose another model."
  )

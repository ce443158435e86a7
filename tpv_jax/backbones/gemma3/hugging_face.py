"""Gemma 3 in Hugging Face's format: text models, and the text part of those with images.

NumPy only.
"""

import re
from collections.abc import Mapping
from typing import Any

from tpv_jax.backbones import decoder_config, rotary
from tpv_jax.backbones.gemma3.config import FULL, SLIDING, Config, period_of, places
from tpv_jax.core import files
from tpv_jax.core.errors import UserError
from tpv_jax.core.leaves import Leaf
from tpv_jax.formats import hugging_face
from tpv_jax.formats.hugging_face import CONFIG, read_json, short

_DEFAULTS: dict[str, Any] = {
  "vocab_size": 262_208,
  "hidden_size": 2_304,
  "intermediate_size": 9_216,
  "num_hidden_layers": 26,
  "num_attention_heads": 8,
  "num_key_value_heads": 4,
  "head_dim": 256,
  "hidden_activation": "gelu_pytorch_tanh",
  "max_position_embeddings": 131_072,
  "rms_norm_eps": 1e-6,
  "tie_word_embeddings": True,
  "query_pre_attn_scalar": 256,
  "sliding_window": 4_096,
}
"""The values that `transformers` uses if config.json does not state them."""

_FIXED: dict[str, tuple[Any, str]] = {
  "use_bidirectional_attention": (False, "attention to what stands behind a token"),
  "final_logit_softcapping": (None, "soft-capped logits"),
  "attn_logit_softcapping": (None, "soft-capped attention"),
}

_PERIOD = 6
"""The `full_period` of a config that states none."""

_THETA, _LOCAL_THETA = 1_000_000.0, 10_000.0

_OF_IMAGES = re.compile(r"(model\.)?(vision_tower|multi_modal_projector)\.")

_TEXT = {
  "language_model.model.": "model.",
  "language_model.lm_head.": "lm_head.",
  "model.language_model.": "model.",
}
"""How names of the text part begin in a model with images -> in one without."""


def read_config(folder: files.Path) -> Config:
  """Returns what config.json says of the text model in a folder.

  Every field of it means what it means to `transformers` 4 and 5, or is refused if the
  network does not support it. Fields that the code there does not read for these models
  are ignored.
  """
  content = _of_text(read_json(folder, CONFIG), folder / CONFIG)
  path = str(folder / CONFIG)
  decoder_config.refuse_other_values(folder, content, "a Gemma 3", _FIXED)
  stated = {**_DEFAULTS, **content}
  if stated["hidden_activation"] != "gelu_pytorch_tanh":
    raise UserError(
      f"'{path}' states hidden_activation {short(stated['hidden_activation'])}; the "
      "network supports only 'gelu_pytorch_tanh' (GeGLU). Choose another model."
    )
  width = hugging_face.whole(stated["head_dim"], "head_dim", path)
  layers = hugging_face.whole(stated["num_hidden_layers"], "num_hidden_layers", path)
  (theta, divisors), (local_theta, local_divisors) = _rotary(stated, width, path)
  if local_divisors:
    raise UserError(
      f"'{path}' scales the rotary positions of {SLIDING}, which the network does not "
      "support. Choose another model."
    )
  found = {
    "vocab_size": stated["vocab_size"],
    "emb_dim": stated["hidden_size"],
    "num_heads": stated["num_attention_heads"],
    "num_kv_heads": stated["num_key_value_heads"],
    "head_dim": width,
    "num_layers": layers,
    "mlp_dim": stated["intermediate_size"],
    "rope_theta": theta,
    "rope_divisors": divisors,
    "local_rope_theta": local_theta,
    "window": stated["sliding_window"],
    "full_period": _period(stated, layers, path),
    "query_scalar": stated["query_pre_attn_scalar"],
    "norm_epsilon": stated["rms_norm_eps"],
    "logits_via_embedding": stated["tie_word_embeddings"],
    "max_positions": stated["max_position_embeddings"],
  }
  return decoder_config.checked(Config, "gemma3_text", found, path)


def by_path(source: str, config: Config, found: Mapping[str, Leaf]) -> dict[str, Leaf]:
  """Returns the leaves of the text model by path, after checking names and shapes."""
  if any(name.startswith(tuple(_TEXT)) for name in found):
    found = {
      _of_text_alone(name): leaf
      for name, leaf in found.items()
      if not _OF_IMAGES.match(name)
    }
  return decoder_config.by_path(source, places(config), found)


def _of_text(content: Mapping[str, Any], path: files.Path) -> Mapping[str, Any]:
  """Returns what config.json says of the text model, alone or beside one of images."""
  if content.get("model_type") != "gemma3":
    return content
  text = content.get("text_config")
  if not isinstance(text, dict):
    raise UserError(
      f"'{path}' states text_config {short(text)}, which is no object. Take another copy."
    )
  above = ("quantization_config", "auto_map", "tie_word_embeddings")
  return {**text, **{name: content[name] for name in above if name in content}}


def _of_text_alone(name: str) -> str:
  for prefix, ours in _TEXT.items():
    if name.startswith(prefix):
      return ours + name.removeprefix(prefix)
  return name


def _rotary(
  stated: Mapping[str, Any], width: int, path: str
) -> tuple[tuple[float, tuple[float, ...]], ...]:
  """Returns base and divisors of the rotary frequencies, of full and of other layers.

  `transformers` 4 writes `rope_theta`, `rope_scaling` and `rope_local_base_freq`, and 5
  writes `rope_parameters` for each kind of layer.
  """
  newer = stated.get("rope_parameters")
  newer = {} if newer is None else newer
  if not isinstance(newer, dict) or newer.keys() - {FULL, SLIDING}:
    raise UserError(
      f"'{path}' states rope_parameters {short(newer)}; they must be an object with "
      f"{FULL} and {SLIDING}. Take another copy."
    )
  share = {"partial_rotary_factor": stated.get("partial_rotary_factor")}
  older = {name: stated.get(name) for name in ("rope_theta", "rope_scaling")} | share
  local = {"rope_theta": stated.get("rope_local_base_freq")} | share
  positions = stated["max_position_embeddings"]
  return tuple(
    rotary.of_config(
      {**fields, "rope_parameters": newer.get(kind)}, width, positions, path, theta
    )
    for fields, kind, theta in ((older, FULL, _THETA), (local, SLIDING, _LOCAL_THETA))
  )


def _period(stated: Mapping[str, Any], layers: int, path: str) -> int:
  """Returns how often a layer sees everything, by either of two fields."""
  pattern, kinds = stated.get("sliding_window_pattern"), stated.get("layer_types")
  if pattern is not None:
    pattern = hugging_face.whole(pattern, "sliding_window_pattern", path)
  if kinds is None:
    return _PERIOD if pattern is None else pattern
  named = isinstance(kinds, list) and len(kinds) == layers
  period = None
  if named and all(kind in (FULL, SLIDING) for kind in kinds):
    period = period_of([kind == FULL for kind in kinds])
  if period is None:
    raise UserError(
      f"'{path}' states layer_types {short(kinds)} for {layers} layers; the network "
      f"supports only '{SLIDING}' with '{FULL}' in each n-th. Choose another model."
    )
  if pattern not in (None, period) and min(pattern, period) <= layers:
    raise UserError(
      f"'{path}' states sliding_window_pattern {pattern} and layer_types of another "
      "pattern, and versions of transformers disagree about which counts. Remove the "
      "wrong one."
    )
  return period if pattern is None else pattern

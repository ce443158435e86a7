"""Gemma 3 in GGUF files, as llama.cpp's converters write it.

They store norms as the sum 1 + w of which our leaf is w. What they do not state (the factor
of queries, the frequencies and the pattern of layers with a window) llama.cpp knows, and so
does this reader. NumPy only.
"""

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from tpv_jax.backbones import decoder_config, decoder_gguf
from tpv_jax.backbones.gemma3.config import Config, period_of, places
from tpv_jax.core.leaves import Leaf
from tpv_jax.formats import hugging_face
from tpv_jax.formats.gguf import File

_LAYER_NAMES = {
  **decoder_gguf.LAYER_NAMES,
  "post_attention_norm": "post_attention_layernorm",
  "ffn_norm": "pre_feedforward_layernorm",
  "post_ffw_norm": "post_feedforward_layernorm",
}

_WINDOW = "attention.sliding_window"
_PATTERN = "attention.sliding_window_pattern"
_LOCAL_THETA = "rope.freq_base_swa"

_LAYERS_OF_27B = 62
"""The size whose queries are divided by sqrt(D / heads), and not by sqrt(head_dim)."""


def read(file: File) -> tuple[Config, dict[str, Leaf]]:
  """Returns the network's config and its leaves by path, to be read while the file is open.

  Every key of the architecture is obeyed or refused by its name.

  Raises:
    UserError: a key states what the network does not support, or the tensors don't fit.
  """
  keys = decoder_gguf.Keys(file, (_WINDOW, _PATTERN, _LOCAL_THETA))
  found = {
    name: _less_one(leaf) if name.endswith("norm.weight") else leaf
    for name, leaf in keys.leaves(_LAYER_NAMES).items()
  }
  config = _config(keys)
  by_path = hugging_face.by_path(file.shown, places(config), found, "its keys")
  return config, by_path


READERS: Mapping[str, Callable[[File], tuple[Config, dict[str, Leaf]]]] = {
  "gemma3": read
}
"""By general.architecture."""


def _config(keys: decoder_gguf.Keys) -> Config:
  """Returns the config that the keys of the architecture state."""
  found: dict[str, Any] = keys.numbers()
  scalar = found["head_dim"]
  if found["num_layers"] == _LAYERS_OF_27B:
    scalar = found["emb_dim"] / found["num_heads"]
  found |= {
    "rope_theta": keys.number("rope.freq_base"),
    "local_rope_theta": keys.number(_LOCAL_THETA, 10_000.0),
    "window": keys.whole(_WINDOW),
    "full_period": _period(keys),
    "query_scalar": scalar,
  }
  return decoder_config.checked(Config, "gemma3_text", found, keys.file.shown)


def _period(keys: decoder_gguf.Keys) -> int:
  sliding = keys.stated.get(_PATTERN)
  if not isinstance(sliding, np.ndarray):
    return keys.whole(_PATTERN, 6)
  period = period_of([not one for one in sliding.tolist()])
  if period is None or len(sliding) != keys.whole("block_count"):
    raise keys.error(_PATTERN, ", which the network does not support")
  return period


def _less_one(leaf: Leaf) -> Leaf:
  """Returns a leaf of a norm as what it adds to 1."""

  def added() -> np.ndarray:
    with np.errstate(invalid="ignore"):  # Loading refuses what is not finite.
      return np.asarray(leaf.read(), np.float32) - np.float32(1)

  return dataclasses.replace(leaf, dtype=np.dtype(np.float32), read=added)

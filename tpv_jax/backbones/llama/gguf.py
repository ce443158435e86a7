"""The LLaMA family in GGUF files, as llama.cpp's converters write it.

They store the rows of query and key in another order for the architecture 'llama', and for
no other: those of a pair that turns together stand side by side. NumPy only.
"""

import dataclasses
import re
from collections.abc import Callable, Mapping

import numpy as np

from tpv_jax.backbones import decoder_gguf
from tpv_jax.backbones.llama.config import Config, checked, places
from tpv_jax.core.leaves import Leaf
from tpv_jax.formats import hugging_face
from tpv_jax.formats.gguf import File

_PERMUTED = "llama"
"""The architecture whose query and key rows are stored in another order."""

_LAYER_NAMES = {**decoder_gguf.LAYER_NAMES, "ffn_norm": "post_attention_layernorm"}

_WINDOW = "attention.sliding_window"


def read(file: File) -> tuple[Config, dict[str, Leaf]]:
  """Returns the network's config and its leaves by path, to be read while the file is open.

  Every key of the architecture is obeyed or refused by its name.

  Raises:
    UserError: a key states what the network does not support, or the tensors don't fit.
  """
  keys = decoder_gguf.Keys(file, (_WINDOW,))
  config = _config(keys)
  found = {}
  for name, leaf in keys.leaves(_LAYER_NAMES).items():
    heads = {"q": config.num_heads, "k": config.num_kv_heads}
    turned = re.search(r"\.self_attn\.([qk])_proj\.(?:weight|bias)$", name)
    permuted = keys.architecture == _PERMUTED and turned
    if permuted and leaf.shape[0] % heads[permuted[1]] == 0:
      leaf = _in_order(leaf, heads[permuted[1]])
    found[name] = leaf
  by_path = hugging_face.by_path(file.shown, places(config), found, "its keys")
  return config, by_path


READERS: Mapping[str, Callable[[File], tuple[Config, dict[str, Leaf]]]] = {
  "llama": read,
  "qwen2": read,
  "qwen3": read,
}
"""By general.architecture; that of Mistral is 'llama'."""


def _config(keys: decoder_gguf.Keys) -> Config:
  """Returns the config that the keys of the architecture state."""
  found = {
    **keys.numbers(),
    "rope_theta": keys.number("rope.freq_base", 10_000.0),
    "attention_bias": keys.architecture == "qwen2",
    "qk_norm": keys.architecture == "qwen3",
  }
  if _WINDOW in keys.stated:
    found["max_positions"] = min(found["max_positions"], keys.whole(_WINDOW))
  return checked(keys.architecture, found, keys.file.shown)


def _in_order(leaf: Leaf, heads: int) -> Leaf:
  """Returns a leaf whose rows of a head stand in two halves, as Hugging Face's do."""

  def ordered() -> np.ndarray:
    values = leaf.read()
    rows = len(values) // heads
    pairs = values.reshape(heads, rows // 2, 2, *values.shape[1:])
    return np.ascontiguousarray(pairs.swapaxes(1, 2)).reshape(values.shape)

  return dataclasses.replace(leaf, read=ordered)

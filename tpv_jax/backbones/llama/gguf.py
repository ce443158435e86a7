"""The LLaMA family in GGUF files, as llama.cpp's converters write it.

They store the rows of query and key in another order for the architecture 'llama', and for
no other: those of a pair that turns together stand side by side. LLaMA 3.1's scaling of
rotary positions is a tensor, the divisors. NumPy only.
"""

import dataclasses
import re
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from tpv_jax.backbones.llama import config as numbers
from tpv_jax.backbones.llama import rotary
from tpv_jax.backbones.llama.config import Config, places
from tpv_jax.core.errors import UserError
from tpv_jax.core.leaves import Leaf
from tpv_jax.formats import hugging_face
from tpv_jax.formats.gguf import File
from tpv_jax.formats.hugging_face import short

_PERMUTED = "llama"
"""The architecture whose query and key rows are stored in another order."""

_DIVISORS = "rope_freqs.weight"

_NAMES = {
  "token_embd": "model.embed_tokens",
  "output_norm": "model.norm",
  "output": "lm_head",
}

_LAYER_NAMES = {
  "attn_norm": "input_layernorm",
  "attn_q": "self_attn.q_proj",
  "attn_k": "self_attn.k_proj",
  "attn_v": "self_attn.v_proj",
  "attn_q_norm": "self_attn.q_norm",
  "attn_k_norm": "self_attn.k_norm",
  "attn_output": "self_attn.o_proj",
  "ffn_norm": "post_attention_layernorm",
  "ffn_gate": "mlp.gate_proj",
  "ffn_up": "mlp.up_proj",
  "ffn_down": "mlp.down_proj",
}
"""Hugging Face's names of a layer's parts."""

_READ = frozenset(
  (
    *("block_count", "context_length", "embedding_length", "feed_forward_length"),
    *("attention.head_count", "attention.head_count_kv", "attention.key_length"),
    *("attention.value_length", "attention.layer_norm_rms_epsilon", "vocab_size"),
    *("attention.sliding_window", "rope.dimension_count", "rope.freq_base"),
    *("rope.scaling.type", "rope.scaling.factor", "rope.scale_linear"),
  )
)
"""Keys of the architecture that are obeyed."""

_HARMLESS = {
  "attention.causal": True,
  "expert_count": 0,
  "expert_used_count": 0,
  "rope.scaling.attn_factor": 1.0,
  "use_parallel_residual": False,
}
"""Keys that the network obeys with one value only."""

_UNUSED = (
  "tensor_data_layout",
  "rope.scaling.finetuned",
  "rope.scaling.original_context_length",
)
"""Keys that change no number of a network without other scaling."""


def read(file: File) -> tuple[Config, dict[str, Leaf]]:
  """Returns the network's config and its leaves by path, to be read while the file is open.

  Every key of the architecture is obeyed or refused by its name.

  Raises:
    UserError: a key states what the network does not support, or the tensors don't fit.
  """
  architecture = file.text("general.architecture")
  if (kind := file.text("general.type", "model")) != "model":
    raise UserError(
      f"'{file.shown}' states general.type {short(kind)}; only a 'model' is read. Give "
      "the file of the whole model."
    )
  stated = {
    key.removeprefix(f"{architecture}."): value
    for key, value in file.metadata.items()
    if key.startswith(f"{architecture}.")
  }
  leaves = dict(file.leaves)
  divisors = leaves.pop(_DIVISORS, None)
  config = _config(architecture, stated, file, divisors)
  found = {}
  for name, leaf in leaves.items():
    theirs = _hugging_faces(name)
    heads = {"q": config.num_heads, "k": config.num_kv_heads}
    turned = re.search(r"\.attn_([qk])\.(?:weight|bias)$", name)
    if architecture == _PERMUTED and turned and leaf.shape[0] % heads[turned[1]] == 0:
      leaf = _in_order(leaf, heads[turned[1]])
    found[theirs] = leaf
  by_path = hugging_face.by_path(file.shown, places(config), found, "its keys")
  return config, by_path


READERS: Mapping[str, Callable[[File], tuple[Config, dict[str, Leaf]]]] = {
  "llama": read,
  "qwen2": read,
  "qwen3": read,
}
"""By general.architecture; that of Mistral is 'llama'."""


def _config(
  architecture: str, stated: Mapping[str, Any], file: File, divisors: Leaf | None
) -> Config:
  """Returns the config that the keys of the architecture state."""
  _refuse_other_keys(architecture, stated, file.shown)
  scaling = file.text(f"{architecture}.rope.scaling.type", "none")

  def number(key: str, otherwise: Any = None) -> Any:
    found = stated.get(key, otherwise)
    if isinstance(found, np.ndarray) and found.size and (found == found[0]).all():
      found = found[0].item()  # One for each layer.
    if isinstance(found, float):  # 1e-5, and not the nearest number of 32 bits.
      return float(str(np.float32(found)))
    return found

  def whole(key: str, otherwise: Any = None) -> int:
    return hugging_face.whole(
      number(key, otherwise), f"{architecture}.{key}", file.shown
    )

  width, heads = whole("embedding_length"), whole("attention.head_count")
  head_dim = whole("attention.key_length", width // heads)
  for key in ("attention.value_length", "rope.dimension_count"):
    if whole(key, head_dim) != head_dim:
      raise UserError(
        f"'{file.shown}' states {architecture}.{key} {stated[key]} for heads of width "
        f"{head_dim}; the network has no such heads. Choose another model."
      )
  most = whole("context_length")
  if "attention.sliding_window" in stated:
    most = min(most, whole("attention.sliding_window"))
  table = file.leaves.get("token_embd.weight")
  found = {
    "vocab_size": whole("vocab_size", table.shape[0] if table is not None else None),
    "emb_dim": width,
    "num_heads": heads,
    "num_kv_heads": whole("attention.head_count_kv", heads),
    "head_dim": head_dim,
    "num_layers": whole("block_count"),
    "mlp_dim": whole("feed_forward_length"),
    "rope_theta": number("rope.freq_base", 10_000.0),
    "rope_divisors": _divisors(scaling, stated, head_dim, file.shown, divisors),
    "norm_epsilon": number("attention.layer_norm_rms_epsilon"),
    "attention_bias": architecture == "qwen2",
    "qk_norm": architecture == "qwen3",
    "logits_via_embedding": "output.weight" not in file.leaves,
    "max_positions": most,
  }
  return numbers.checked(architecture, found, file.shown)


def _refuse_other_keys(
  architecture: str, stated: Mapping[str, Any], shown: str
) -> None:
  for key, value in stated.items():
    if key in _READ or key in _UNUSED:
      continue
    if key not in _HARMLESS or isinstance(value, np.ndarray) or value != _HARMLESS[key]:
      raise UserError(
        f"'{shown}' states {architecture}.{key} {short(value)}, which the network does "
        "not support. Choose another model."
      )


def _divisors(
  kind: str,
  stated: Mapping[str, Any],
  head_dim: int,
  shown: str,
  tensor: Leaf | None,
) -> tuple[float, ...]:
  """Returns what the rotary frequencies are divided by."""
  factor = stated.get("rope.scaling.factor", 1.0)
  if "rope.scale_linear" in stated:
    kind, factor = "linear", stated["rope.scale_linear"]
  if kind not in ("none", "linear"):
    raise UserError(
      f"'{shown}' states rope.scaling.type {short(kind)}; only 'none', 'linear' and the "
      f"tensor '{_DIVISORS}' are read. Choose another model."
    )
  numbers.refuse_not_positive(factor, "rope.scaling.factor", shown)
  scale = float(factor) if kind == "linear" else 1.0
  if tensor is None:
    return () if scale == 1.0 else rotary.linear(head_dim, scale)
  if tensor.shape != (head_dim // 2,):
    raise UserError(
      f"'{shown}' holds '{_DIVISORS}' of shape {tensor.shape}; heads of width {head_dim} "
      f"need {head_dim // 2} divisors. Take another copy."
    )
  return tuple(scale * float(str(value)) for value in np.asarray(tensor, np.float32))


def _hugging_faces(name: str) -> str:
  """Returns Hugging Face's name of a tensor; an unknown one keeps its own."""
  stem, _, last = name.rpartition(".")
  if stem in _NAMES:
    return f"{_NAMES[stem]}.{last}"
  layer = re.fullmatch(r"blk\.(\d{1,4})\.(\w+)", stem)
  if layer and layer[2] in _LAYER_NAMES:
    return f"model.layers.{layer[1]}.{_LAYER_NAMES[layer[2]]}.{last}"
  return name


def _in_order(leaf: Leaf, heads: int) -> Leaf:
  """Returns a leaf whose rows of a head stand in two halves, as Hugging Face's do."""

  def ordered() -> np.ndarray:
    values = leaf.read()
    rows = len(values) // heads
    pairs = values.reshape(heads, rows // 2, 2, *values.shape[1:])
    return np.ascontiguousarray(pairs.swapaxes(1, 2)).reshape(values.shape)

  return dataclasses.replace(leaf, read=ordered)

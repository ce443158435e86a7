"""What GGUF files of decoder-only networks have in common.

llama.cpp's converters write them. A family names the keys and tensors that it reads. NumPy
only.
"""

import re
from collections.abc import Mapping
from typing import Any

import numpy as np

from tpv_jax.backbones import rotary
from tpv_jax.core.errors import UserError
from tpv_jax.core.leaves import Leaf
from tpv_jax.formats import hugging_face
from tpv_jax.formats.gguf import File
from tpv_jax.formats.hugging_face import short

DIVISORS = "rope_freqs.weight"
"""The tensor of LLaMA 3.1's scaling of rotary positions: the divisors."""

LAYER_NAMES = {
  "attn_norm": "input_layernorm",
  "attn_q": "self_attn.q_proj",
  "attn_k": "self_attn.k_proj",
  "attn_v": "self_attn.v_proj",
  "attn_q_norm": "self_attn.q_norm",
  "attn_k_norm": "self_attn.k_norm",
  "attn_output": "self_attn.o_proj",
  "ffn_gate": "mlp.gate_proj",
  "ffn_up": "mlp.up_proj",
  "ffn_down": "mlp.down_proj",
}
"""Hugging Face's names of a layer's parts, those that all families have."""

_NAMES = {
  "token_embd": "model.embed_tokens",
  "output_norm": "model.norm",
  "output": "lm_head",
}

_READ = frozenset(
  (
    *("block_count", "context_length", "embedding_length", "feed_forward_length"),
    *("attention.head_count", "attention.head_count_kv", "attention.key_length"),
    *("attention.value_length", "attention.layer_norm_rms_epsilon", "vocab_size"),
    *("rope.dimension_count", "rope.freq_base", "rope.scaling.type"),
    *("rope.scaling.factor", "rope.scale_linear"),
  )
)
"""Keys of an architecture that are obeyed."""

_HARMLESS = {
  "attention.causal": True,
  "expert_count": 0,
  "expert_used_count": 0,
  "rope.scaling.attn_factor": 1.0,
  "use_parallel_residual": False,
}
"""Keys that networks obey with one value only."""

_UNUSED = (
  "tensor_data_layout",
  "rope.scaling.finetuned",
  "rope.scaling.original_context_length",
)
"""Keys that change no number of a network without other scaling."""


class Keys:
  """The keys of a file's architecture, by their names without it."""

  def __init__(self, file: File, also: tuple[str, ...]):
    """Takes the keys of a file.

    Args:
      file: of a whole model.
      also: the keys that the family obeys beside those of all.

    Raises:
      UserError: the file is no whole model, or a key states what no network supports.
    """
    if (kind := file.text("general.type", "model")) != "model":
      raise UserError(
        f"'{file.shown}' states general.type {short(kind)}; only a 'model' is read. Give "
        "the file of the whole model."
      )
    self.file = file
    self.architecture = file.text("general.architecture")
    self.stated = {
      key.removeprefix(f"{self.architecture}."): value
      for key, value in file.metadata.items()
      if key.startswith(f"{self.architecture}.")
    }
    for key, value in self.stated.items():
      if key in _READ or key in _UNUSED or key in also:
        continue
      wanted = _HARMLESS.get(key)
      if wanted is None or isinstance(value, np.ndarray) or value != wanted:
        raise self.error(key, ", which the network does not support")

  def error(self, key: str, why: str) -> UserError:
    """Returns the error about the value of a key, with what follows it in the message."""
    return UserError(
      f"'{self.file.shown}' states {self.architecture}.{key} "
      f"{short(self.stated.get(key))}{why}. Choose another model."
    )

  def number(self, key: str, otherwise: Any = None) -> Any:
    """Returns the value of a key, one for all layers if each states the same."""
    found = self.stated.get(key, otherwise)
    if isinstance(found, np.ndarray) and found.size and (found == found[0]).all():
      found = found[0].item()
    if isinstance(found, float):  # 1e-5, and not the nearest number of 32 bits.
      return float(str(np.float32(found)))
    return found

  def whole(self, key: str, otherwise: Any = None) -> int:
    """Returns the value of a key, which is whole and at least 1."""
    return hugging_face.whole(
      self.number(key, otherwise), f"{self.architecture}.{key}", self.file.shown
    )

  def numbers(self) -> dict[str, Any]:
    """Returns the numbers that all families have, by the names of their config."""
    width, heads = self.whole("embedding_length"), self.whole("attention.head_count")
    head_dim = self.whole("attention.key_length", width // heads)
    for key in ("attention.value_length", "rope.dimension_count"):
      if self.whole(key, head_dim) != head_dim:
        raise self.error(
          key, f" for heads of width {head_dim}; the network has no such heads"
        )
    table = self.file.leaves.get("token_embd.weight")
    return {
      "vocab_size": self.whole(
        "vocab_size", table.shape[0] if table is not None else None
      ),
      "emb_dim": width,
      "num_heads": heads,
      "num_kv_heads": self.whole("attention.head_count_kv", heads),
      "head_dim": head_dim,
      "num_layers": self.whole("block_count"),
      "mlp_dim": self.whole("feed_forward_length"),
      "rope_divisors": self._divisors(head_dim),
      "norm_epsilon": self.number("attention.layer_norm_rms_epsilon"),
      "logits_via_embedding": "output.weight" not in self.file.leaves,
      "max_positions": self.whole("context_length"),
    }

  def _divisors(self, head_dim: int) -> tuple[float, ...]:
    """Returns what the rotary frequencies are divided by."""
    shown = self.file.shown
    kind = self.file.text(f"{self.architecture}.rope.scaling.type", "none")
    factor = self.stated.get("rope.scaling.factor", 1.0)
    if "rope.scale_linear" in self.stated:
      kind, factor = "linear", self.stated["rope.scale_linear"]
    if kind not in ("none", "linear"):
      raise UserError(
        f"'{shown}' states rope.scaling.type {short(kind)}; only 'none', 'linear' and the "
        f"tensor '{DIVISORS}' are read. Choose another model."
      )
    factor = hugging_face.positive(factor, "rope.scaling.factor", shown)
    scale = factor if kind == "linear" else 1.0
    tensor = self.file.leaves.get(DIVISORS)
    if tensor is None:
      return () if scale == 1.0 else rotary.linear(head_dim, scale)
    if tensor.shape != (head_dim // 2,):
      raise UserError(
        f"'{shown}' holds '{DIVISORS}' of shape {tensor.shape}; heads of width {head_dim} "
        f"need {head_dim // 2} divisors. Take another copy."
      )
    return tuple(scale * float(str(value)) for value in np.asarray(tensor, np.float32))

  def leaves(self, layer_names: Mapping[str, str]) -> dict[str, Leaf]:
    """Returns the tensors of parameters by Hugging Face's names.

    Args:
      layer_names: of a layer's parts: llama.cpp's name -> Hugging Face's. A tensor with
        another name keeps it.
    """
    return {
      _hugging_faces(name, layer_names): leaf
      for name, leaf in self.file.leaves.items()
      if name != DIVISORS
    }


def _hugging_faces(name: str, layer_names: Mapping[str, str]) -> str:
  stem, _, last = name.rpartition(".")
  if stem in _NAMES:
    return f"{_NAMES[stem]}.{last}"
  layer = re.fullmatch(r"blk\.(\d{1,4})\.(\w+)", stem)
  if layer and layer[2] in layer_names:
    return f"model.layers.{layer[1]}.{layer_names[layer[2]]}.{last}"
  return name

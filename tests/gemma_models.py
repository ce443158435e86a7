"""Models of Gemma 3 as folders of Hugging Face and GGUF files, with tiny random weights."""

import json

import llama_models
import numpy as np
import safetensors.numpy

from tpv_jax.backbones.gemma3 import config

CONFIG = {
  "architectures": ["Gemma3ForCausalLM"],
  "attention_bias": False,
  "attn_logit_softcapping": None,
  "final_logit_softcapping": None,
  "head_dim": 4,
  "hidden_activation": "gelu_pytorch_tanh",
  "hidden_size": 12,
  "intermediate_size": 20,
  "max_position_embeddings": 64,
  "model_type": "gemma3_text",
  "num_attention_heads": 2,
  "num_hidden_layers": 3,
  "num_key_value_heads": 1,
  "query_pre_attn_scalar": 4,
  "rms_norm_eps": 1e-06,
  "rope_local_base_freq": 100.0,
  "rope_scaling": {"rope_type": "linear", "factor": 8.0},
  "rope_theta": 5000.0,
  "sliding_window": 5,
  "sliding_window_pattern": 3,
  "vocab_size": 24,
}
"""What `transformers` 4 wrote, with numbers that differ wherever two could be confused."""

# Written down by hand: what CONFIG says.
NUMBERS = {
  "vocab_size": 24,
  "emb_dim": 12,
  "num_heads": 2,
  "num_kv_heads": 1,
  "head_dim": 4,
  "num_layers": 3,
  "mlp_dim": 20,
  "rope_theta": 5_000.0,
  "rope_divisors": (8.0, 8.0),
  "local_rope_theta": 100.0,
  "window": 5,
  "full_period": 3,
  "query_scalar": 4.0,
  "norm_epsilon": 1e-6,
  "logits_via_embedding": True,
  "max_positions": 64,
}


def weights(numbers=NUMBERS, seed=0):
  """Returns random fp32 weights by Hugging Face's names."""
  rng = np.random.default_rng(seed)
  return {
    place.name: rng.standard_normal(place.shape).astype(np.float32)
    for place in config.places(config.Config("gemma3_text", **numbers))
  }


def write(folder, content=CONFIG, leaves=None):
  """Writes config.json and model.safetensors into a new folder, which is returned."""
  folder.mkdir()
  (folder / "config.json").write_text(json.dumps(content))
  leaves = weights() if leaves is None else leaves
  safetensors.numpy.save_file(leaves, folder / "model.safetensors", {"format": "pt"})
  return folder


def write_with_images(folder, names="language_model.model.", **changed):
  """Writes such a folder as part of a model that sees images; returns it.

  Args:
    folder: to be made.
    names: how those of the text part begin instead of with 'model.'.
    changed: fields of the config.
  """
  leaves = {
    names + name.removeprefix("model."): leaf for name, leaf in weights().items()
  }
  above = "model." if names.startswith("model.") else ""
  image = np.ones((3, 3), np.float32)
  leaves[f"{above}vision_tower.vision_model.embeddings.patch_embedding.weight"] = image
  leaves[f"{above}multi_modal_projector.mm_input_projection_weight"] = image
  content = {
    "architectures": ["Gemma3ForConditionalGeneration"],
    "image_token_index": 23,
    "model_type": "gemma3",
    "text_config": CONFIG,
    "vision_config": {"hidden_size": 3},
    **changed,
  }
  return write(folder, content, leaves)


NAMES = {
  **llama_models.GGUF_NAMES,
  "post_attention_layernorm": "post_attention_norm",
  "pre_feedforward_layernorm": "ffn_norm",
  "post_feedforward_layernorm": "post_ffw_norm",
}


def write_gguf(path, leaves=None, kind="F32", keys=None):
  """Writes what llama.cpp's converter makes of the folder; returns the path.

  Args:
    path: of the new file.
    leaves: by Hugging Face's names.
    kind: the type of matrices whose rows have whole blocks.
    keys: further keys, or other values for them; None leaves one out.
  """
  leaves = weights() if leaves is None else leaves
  stored = {
    name: leaf + 1 if name.endswith("norm.weight") else leaf
    for name, leaf in leaves.items()
  }
  stated = {
    "gemma3.attention.sliding_window": CONFIG["sliding_window"],
    "gemma3.attention.sliding_window_pattern": CONFIG["sliding_window_pattern"],
    "gemma3.rope.freq_base_swa": CONFIG["rope_local_base_freq"],
    "gemma3.rope.scaling.type": "linear",
    "gemma3.rope.scaling.factor": 8.0,
    **(keys or {}),
  }
  content = {**CONFIG, "rope_scaling": None}
  return llama_models.write_gguf(
    path, content, stored, kind, stated, of="gemma3", names=NAMES
  )

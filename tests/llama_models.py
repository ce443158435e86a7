"""Models of the LLaMA family as folders of Hugging Face, with tiny random weights."""

import json

import numpy as np
import safetensors.numpy

from tpv_jax.backbones import rotary
from tpv_jax.backbones.llama import config, sizes

# As `transformers` writes them, with numbers that differ wherever two could be confused.
COMMON = {
  "hidden_act": "silu",
  "hidden_size": 12,
  "intermediate_size": 20,
  "max_position_embeddings": 64,
  "num_attention_heads": 4,
  "num_hidden_layers": 2,
  "num_key_value_heads": 2,
  "rms_norm_eps": 1e-05,
  "vocab_size": 24,
}
CONFIGS = {
  "llama": {
    **COMMON,
    "model_type": "llama",
    "architectures": ["LlamaForCausalLM"],
    "head_dim": 6,
    "pretraining_tp": 1,
    "rope_theta": 500000.0,
    "rope_scaling": {
      "rope_type": "llama3",
      "factor": 8.0,
      "low_freq_factor": 1.0,
      "high_freq_factor": 4.0,
      "original_max_position_embeddings": 8192,
    },
    "tie_word_embeddings": False,
    "torch_dtype": "bfloat16",
  },
  "llama tied": {
    **COMMON,
    "model_type": "llama",
    "head_dim": 4,
    "tie_word_embeddings": True,
  },
  "mistral": {**COMMON, "model_type": "mistral", "head_dim": 4, "sliding_window": 16},
  "qwen2": {
    **COMMON,
    "model_type": "qwen2",
    "hidden_size": 16,
    "max_window_layers": 28,
    "rope_theta": 1000000.0,
    "sliding_window": 32,
    "tie_word_embeddings": True,
    "use_sliding_window": False,
  },
  "qwen3": {
    **COMMON,
    "model_type": "qwen3",
    "attention_bias": False,
    "head_dim": 8,
    "layer_types": ["full_attention"] * 2,
    "rope_parameters": {"rope_theta": 1000000.0, "rope_type": "default"},
    "use_sliding_window": False,
  },
}
"""Contents of config.json."""


def weights(content, seed=0):
  """Returns random fp32 weights by Hugging Face's names for the content of config.json."""
  width, heads = content["hidden_size"], content["num_attention_heads"]
  numbers = config.Config(
    content["model_type"],
    vocab_size=content["vocab_size"],
    emb_dim=width,
    num_heads=heads,
    num_kv_heads=content["num_key_value_heads"],
    head_dim=content.get("head_dim", width // heads),
    num_layers=content["num_hidden_layers"],
    mlp_dim=content["intermediate_size"],
    attention_bias=content["model_type"] == "qwen2",
    qk_norm=content["model_type"] == "qwen3",
    logits_via_embedding=content.get("tie_word_embeddings", False),
  )
  rng = np.random.default_rng(seed)
  return {
    place.name: rng.standard_normal(place.shape).astype(np.float32)
    for place in config.places(numbers)
  }


def write(folder, content, leaves=None):
  """Writes config.json and model.safetensors into a new folder, which is returned."""
  folder.mkdir()
  (folder / "config.json").write_text(json.dumps(content))
  leaves = weights(content) if leaves is None else leaves
  safetensors.numpy.save_file(leaves, folder / "model.safetensors", {"format": "pt"})
  return folder


def tiny(form):
  """Returns the config of a tiny size."""
  numbers = dict(sizes.TINY[form])
  kind = "qwen3" if numbers.get("qk_norm") else "llama"
  return config.Config("qwen2" if numbers.get("attention_bias") else kind, **numbers)


GGUF_NAMES = {
  "model.embed_tokens": "token_embd",
  "model.norm": "output_norm",
  "lm_head": "output",
  "input_layernorm": "attn_norm",
  "self_attn.q_proj": "attn_q",
  "self_attn.k_proj": "attn_k",
  "self_attn.v_proj": "attn_v",
  "self_attn.q_norm": "attn_q_norm",
  "self_attn.k_norm": "attn_k_norm",
  "self_attn.o_proj": "attn_output",
  "post_attention_layernorm": "ffn_norm",
  "mlp.gate_proj": "ffn_gate",
  "mlp.up_proj": "ffn_up",
  "mlp.down_proj": "ffn_down",
}


def gguf_name(name, parts=GGUF_NAMES):
  """Returns the name that llama.cpp's converter gives a tensor of Hugging Face."""
  stem, _, last = name.rpartition(".")
  if stem.startswith("model.layers."):
    _, _, number, part = stem.split(".", 3)
    return f"blk.{number}.{parts[part]}.{last}"
  return f"{parts[stem]}.{last}"


def permuted(rows, heads):
  """Returns rows in the order of `LlamaModel.permute` in llama.cpp's converter."""
  size = len(rows) // heads
  return np.stack(
    [
      rows[head * size + half * (size // 2) + pair]
      for head in range(heads)
      for pair in range(size // 2)
      for half in range(2)
    ]
  )


def write_gguf(
  path, content, leaves=None, kind="F32", keys=None, raw=None, of=None, names=GGUF_NAMES
):
  """Writes what llama.cpp's converter makes of a folder; returns the path.

  Args:
    path: of the new file.
    content: of config.json.
    leaves: by Hugging Face's names.
    kind: the type of matrices whose rows have whole blocks.
    keys: further keys or other values for them; None leaves one out.
    raw: name -> (uint8 rows, type), instead of a tensor's values.
    of: the architecture, if it is not named as the model_type.
    names: Hugging Face's names of parts -> llama.cpp's.
  """
  import gguf

  leaves = weights(content) if leaves is None else leaves
  kind_of = content["model_type"]
  architecture = of or ("llama" if kind_of == "mistral" else kind_of)
  heads = content["num_attention_heads"]
  writer = gguf.GGUFWriter(path, architecture)
  stated = {
    "general.name": "A tiny model",
    f"{architecture}.block_count": content["num_hidden_layers"],
    f"{architecture}.context_length": content["max_position_embeddings"],
    f"{architecture}.embedding_length": content["hidden_size"],
    f"{architecture}.feed_forward_length": content["intermediate_size"],
    f"{architecture}.attention.head_count": heads,
    f"{architecture}.attention.head_count_kv": content["num_key_value_heads"],
    f"{architecture}.attention.key_length": content.get("head_dim"),
    f"{architecture}.attention.value_length": content.get("head_dim"),
    f"{architecture}.attention.layer_norm_rms_epsilon": content["rms_norm_eps"],
    f"{architecture}.rope.freq_base": content.get("rope_theta")
    or content.get("rope_parameters", {}).get("rope_theta"),
    "tokenizer.ggml.model": "gpt2",
    "tokenizer.ggml.tokens": [f"t{row}" for row in range(content["vocab_size"])],
    "tokenizer.ggml.token_type": [1] * content["vocab_size"],
    **(keys or {}),
  }
  for key, value in stated.items():
    add = {
      bool: writer.add_bool,
      int: writer.add_uint32,
      float: writer.add_float32,
      str: writer.add_string,
      list: writer.add_array,
    }.get(type(value))
    if add is not None:
      add(key, value)
  for name, values in leaves.items():
    if architecture == "llama" and "self_attn.q_proj" in name:
      values = permuted(values, heads)
    if architecture == "llama" and "self_attn.k_proj" in name:
      values = permuted(values, content["num_key_value_heads"])
    wanted = gguf.GGMLQuantizationType[kind]
    if values.ndim < 2 or values.shape[-1] % gguf.GGML_QUANT_SIZES[wanted][0]:
      wanted = gguf.GGMLQuantizationType.F32
    name = gguf_name(name, names)
    if raw and name in raw:
      rows, wanted = raw[name]
      writer.add_tensor(name, rows, raw_dtype=gguf.GGMLQuantizationType[wanted])
      continue
    writer.add_tensor(name, gguf.quantize(values, wanted), raw_dtype=wanted)
  if content.get("rope_scaling"):
    divisors = rotary.llama3(
      content["head_dim"], content["rope_theta"], content["rope_scaling"]["factor"]
    )
    writer.add_tensor("rope_freqs.weight", np.asarray(divisors, np.float32))
  writer.write_header_to_file()
  writer.write_kv_data_to_file()
  writer.write_tensors_to_file()
  writer.close()
  return path

"""The sizes of public models of the LLaMA family, as arguments of `network.Llama`.

Sources: the models' own config.json. Any other size is read from such a file.
"""

from typing import Any

from tpv_jax.backbones import rotary

_LLAMA_3_1 = rotary.llama3(128, 500_000.0, 8.0)
_LLAMA_3_2 = rotary.llama3(64, 500_000.0, 32.0)

SIZES: dict[str, dict[str, Any]] = {
  "llama_2_7b": {
    "vocab_size": 32_000,
    "emb_dim": 4_096,
    "num_heads": 32,
    "num_kv_heads": 32,
    "head_dim": 128,
    "num_layers": 32,
    "mlp_dim": 11_008,
    "max_positions": 4_096,
  },
  "llama_3_1_8b": {
    "vocab_size": 128_256,
    "emb_dim": 4_096,
    "num_heads": 32,
    "num_kv_heads": 8,
    "head_dim": 128,
    "num_layers": 32,
    "mlp_dim": 14_336,
    "rope_theta": 500_000.0,
    "rope_divisors": _LLAMA_3_1,
    "max_positions": 131_072,
  },
  "llama_3_2_1b": {
    "vocab_size": 128_256,
    "emb_dim": 2_048,
    "num_heads": 32,
    "num_kv_heads": 8,
    "head_dim": 64,
    "num_layers": 16,
    "mlp_dim": 8_192,
    "rope_theta": 500_000.0,
    "rope_divisors": _LLAMA_3_2,
    "logits_via_embedding": True,
    "max_positions": 131_072,
  },
  "smollm2_135m": {
    "vocab_size": 49_152,
    "emb_dim": 576,
    "num_heads": 9,
    "num_kv_heads": 3,
    "head_dim": 64,
    "num_layers": 30,
    "mlp_dim": 1_536,
    "rope_theta": 100_000.0,
    "logits_via_embedding": True,
    "max_positions": 8_192,
  },
  "deepseek_llm_7b": {
    "vocab_size": 102_400,
    "emb_dim": 4_096,
    "num_heads": 32,
    "num_kv_heads": 32,
    "head_dim": 128,
    "num_layers": 30,
    "mlp_dim": 11_008,
    "norm_epsilon": 1e-6,
    "max_positions": 4_096,
  },
  "qwen_2_5_0_5b": {
    "vocab_size": 151_936,
    "emb_dim": 896,
    "num_heads": 14,
    "num_kv_heads": 2,
    "head_dim": 64,
    "num_layers": 24,
    "mlp_dim": 4_864,
    "rope_theta": 1_000_000.0,
    "norm_epsilon": 1e-6,
    "attention_bias": True,
    "logits_via_embedding": True,
    "max_positions": 32_768,
  },
  "qwen_2_5_7b": {
    "vocab_size": 152_064,
    "emb_dim": 3_584,
    "num_heads": 28,
    "num_kv_heads": 4,
    "head_dim": 128,
    "num_layers": 28,
    "mlp_dim": 18_944,
    "rope_theta": 1_000_000.0,
    "norm_epsilon": 1e-6,
    "attention_bias": True,
    "max_positions": 131_072,
  },
  "qwen_3_0_6b": {
    "vocab_size": 151_936,
    "emb_dim": 1_024,
    "num_heads": 16,
    "num_kv_heads": 8,
    "head_dim": 128,
    "num_layers": 28,
    "mlp_dim": 3_072,
    "rope_theta": 1_000_000.0,
    "norm_epsilon": 1e-6,
    "qk_norm": True,
    "logits_via_embedding": True,
    "max_positions": 40_960,
  },
  "mistral_7b_v0_1": {
    "vocab_size": 32_000,
    "emb_dim": 4_096,
    "num_heads": 32,
    "num_kv_heads": 8,
    "head_dim": 128,
    "num_layers": 32,
    "mlp_dim": 14_336,
    "max_positions": 4_096,
  },
}
"""Name to arguments of `Llama`; Mistral's positions are those within its window."""

_TINY = {
  "vocab_size": 32,
  "emb_dim": 8,
  "num_heads": 4,
  "num_kv_heads": 4,
  "head_dim": 2,
  "num_layers": 2,
  "mlp_dim": 16,
  "max_positions": 64,
}

TINY: dict[str, dict[str, Any]] = {
  "llama_tiny": {**_TINY, "logits_via_embedding": True},
  "llama_tiny_untied": {**_TINY, "num_kv_heads": 2, "head_dim": 4},
  "llama_tiny_scaled": {
    **_TINY,
    "head_dim": 16,
    "num_heads": 2,
    "num_kv_heads": 1,
    "rope_theta": 500_000.0,
    "rope_divisors": rotary.llama3(16, 500_000.0, 8.0),
  },
  "qwen_2_tiny": {
    **_TINY,
    "num_kv_heads": 2,
    "norm_epsilon": 1e-6,
    "attention_bias": True,
    "logits_via_embedding": True,
  },
  "qwen_3_tiny": {**_TINY, "num_kv_heads": 2, "head_dim": 6, "qk_norm": True},
}
"""Sizes for tests, one for each variant; no public model has them."""

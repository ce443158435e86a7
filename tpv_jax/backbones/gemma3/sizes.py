"""The sizes of the public models of Gemma 3, as arguments of `network.Gemma3`.

Sources: the models' own config.json. Those from 4B on also see images; this is their text
part. Any other size is read from such a file.
"""

from typing import Any

from tpv_jax.backbones import rotary

_SMALL = {
  "vocab_size": 262_144,
  "num_heads": 4,
  "num_kv_heads": 1,
  "head_dim": 256,
  "max_positions": 32_768,
}

_LARGE = {
  "vocab_size": 262_208,
  "head_dim": 256,
  "rope_divisors": rotary.linear(256, 8.0),
  "window": 1_024,
  "max_positions": 131_072,
}

SIZES: dict[str, dict[str, Any]] = {
  "gemma_3_270m": {**_SMALL, "emb_dim": 640, "num_layers": 18, "mlp_dim": 2_048},
  "gemma_3_1b": {**_SMALL, "emb_dim": 1_152, "num_layers": 26, "mlp_dim": 6_912},
  "gemma_3_4b": {
    **_LARGE,
    "emb_dim": 2_560,
    "num_heads": 8,
    "num_kv_heads": 4,
    "num_layers": 34,
    "mlp_dim": 10_240,
  },
  "gemma_3_12b": {
    **_LARGE,
    "emb_dim": 3_840,
    "num_heads": 16,
    "num_kv_heads": 8,
    "num_layers": 48,
    "mlp_dim": 15_360,
  },
  "gemma_3_27b": {
    **_LARGE,
    "emb_dim": 5_376,
    "num_heads": 32,
    "num_kv_heads": 16,
    "head_dim": 128,
    "rope_divisors": rotary.linear(128, 8.0),
    "num_layers": 62,
    "mlp_dim": 21_504,
    "query_scalar": 168.0,
  },
}
"""Name to arguments of `Gemma3`."""

_TINY = {
  "vocab_size": 32,
  "emb_dim": 8,
  "num_heads": 4,
  "num_kv_heads": 2,
  "head_dim": 4,
  "num_layers": 2,
  "mlp_dim": 16,
  "window": 4,
  "full_period": 2,
  "query_scalar": 3.0,
  "max_positions": 64,
}

TINY: dict[str, dict[str, Any]] = {
  "gemma_3_tiny": _TINY,
  "gemma_3_tiny_untied": {
    **_TINY,
    "num_layers": 3,
    "full_period": 3,
    "rope_divisors": rotary.linear(4, 8.0),
    "logits_via_embedding": False,
  },
}
"""Sizes for tests, one for each variant; no public model has them."""

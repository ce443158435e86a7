"""The sizes of the public T5 models, as arguments of `network.Transformer`.

Sources: the configurations that T5X and the papers give (Raffel et al. 2020; Shazeer
2020 for v1.1; Xue et al. 2021 for mT5). LM-adapted T5 and Flan-T5 have the sizes of v1.1.
"""

from typing import Any

T5_VOCABULARY = 32_128
"""Rows of T5's table: 32,100 pieces, rounded up to a multiple of 128."""

MT5_VOCABULARY = 250_112
"""Rows of mT5's table: 250,100 pieces, rounded up to a multiple of 128."""


def _v1_0(
  emb_dim: int, layers: int, heads: int, head_dim: int, mlp_dim: int
) -> dict[str, Any]:
  return {
    "vocab_size": T5_VOCABULARY,
    "emb_dim": emb_dim,
    "num_heads": heads,
    "head_dim": head_dim,
    "num_encoder_layers": layers,
    "num_decoder_layers": layers,
    "mlp_dim": mlp_dim,
    "mlp_activations": ("relu",),
    "logits_via_embedding": True,
  }


def _v1_1(
  vocab_size: int, emb_dim: int, layers: int, heads: int, mlp_dim: int
) -> dict[str, Any]:
  return {
    "vocab_size": vocab_size,
    "emb_dim": emb_dim,
    "num_heads": heads,
    "head_dim": 64,
    "num_encoder_layers": layers,
    "num_decoder_layers": layers,
    "mlp_dim": mlp_dim,
    "mlp_activations": ("gelu", "linear"),
    "logits_via_embedding": False,
  }


SIZES: dict[str, dict[str, Any]] = {
  "t5_v1_0_small": _v1_0(512, 6, 8, 64, 2_048),
  "t5_v1_0_base": _v1_0(768, 12, 12, 64, 3_072),
  "t5_v1_0_large": _v1_0(1_024, 24, 16, 64, 4_096),
  "t5_v1_0_xl": _v1_0(1_024, 24, 32, 128, 16_384),
  "t5_v1_0_xxl": _v1_0(1_024, 24, 128, 128, 65_536),
  "t5_v1_1_small": _v1_1(T5_VOCABULARY, 512, 8, 6, 1_024),
  "t5_v1_1_base": _v1_1(T5_VOCABULARY, 768, 12, 12, 2_048),
  "t5_v1_1_large": _v1_1(T5_VOCABULARY, 1_024, 24, 16, 2_816),
  "t5_v1_1_xl": _v1_1(T5_VOCABULARY, 2_048, 24, 32, 5_120),
  "t5_v1_1_xxl": _v1_1(T5_VOCABULARY, 4_096, 24, 64, 10_240),
  "mt5_small": _v1_1(MT5_VOCABULARY, 512, 8, 6, 1_024),
  "mt5_base": _v1_1(MT5_VOCABULARY, 768, 12, 12, 2_048),
  "mt5_large": _v1_1(MT5_VOCABULARY, 1_024, 24, 16, 2_816),
  "mt5_xl": _v1_1(MT5_VOCABULARY, 2_048, 24, 32, 5_120),
  "mt5_xxl": _v1_1(MT5_VOCABULARY, 4_096, 24, 64, 10_240),
}
"""Name to arguments of `Transformer`; v1.0's xl and xxl are known as 3B and 11B."""

TINY: dict[str, dict[str, Any]] = {
  "t5_v1_0_tiny": {**_v1_0(8, 2, 2, 6, 16), "vocab_size": 32},
  "t5_v1_1_tiny": {**_v1_1(32, 8, 2, 2, 16), "head_dim": 6},
}
"""Sizes for tests; no public model has them."""

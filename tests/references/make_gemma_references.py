"""Makes the parity references of Gemma 3, with tiny random weights.

Writes `hf_<family>.npz` beside this file for each of `FAMILIES`, with the arrays and cases of
make_llama_references.py. Rows are longer than the windows, and both kinds of layers have
other rotary frequencies, so that logits tell which layer sees what. It imports nothing of
tpv_jax. Needs the extra 'parity' (torch, transformers).

  python tests/references/make_gemma_references.py           # writes the files
  python tests/references/make_gemma_references.py --check   # regenerates and compares
"""

import functools
import sys

import make_hf_references as hf
import make_llama_references as llama

GEMMA = {
  "architectures": ["Gemma3ForCausalLM"],
  "attention_bias": False,
  "attention_dropout": 0.0,
  "attn_logit_softcapping": None,
  "bos_token_id": 2,
  "eos_token_id": [1, 5],
  "final_logit_softcapping": None,
  "head_dim": 6,
  "hidden_activation": "gelu_pytorch_tanh",
  "hidden_size": 16,
  "intermediate_size": 24,
  "layer_types": ["sliding_attention", "full_attention"],
  "max_position_embeddings": 512,
  "model_type": "gemma3_text",
  "num_attention_heads": 4,
  "num_hidden_layers": 2,
  "num_key_value_heads": 2,
  "pad_token_id": None,
  "query_pre_attn_scalar": 10,
  "rms_norm_eps": 1e-06,
  "rope_local_base_freq": 100.0,
  "rope_scaling": None,
  "rope_theta": 5000.0,
  "sliding_window": 9,
  "tie_word_embeddings": True,
  "use_cache": True,
  "vocab_size": 48,
}
FAMILIES = {
  "gemma3": GEMMA,
  # As the sizes from 4B on: the frequencies of the layer that sees everything are divided.
  "gemma3_scaled": {
    **GEMMA,
    "head_dim": 8,
    "hidden_size": 24,
    "layer_types": ["sliding_attention", "sliding_attention", "full_attention"],
    "num_attention_heads": 3,
    "num_hidden_layers": 3,
    "num_key_value_heads": 1,
    "query_pre_attn_scalar": 5,
    "rope_scaling": {"factor": 8.0, "rope_type": "linear"},
    "sliding_window": 16,
    "tie_word_embeddings": False,
  },
}
NORMS = (
  *("input_layernorm", "post_attention_layernorm"),
  *("pre_feedforward_layernorm", "post_feedforward_layernorm"),
)


def references(family: str, seed: int) -> hf.Arrays:
  """Returns the arrays of one file."""
  weights = functools.partial(
    llama.random_weights, norms=NORMS, norm_mean=0.0, qk_norm=True
  )
  return llama.of_model(FAMILIES[family], seed, weights)


if __name__ == "__main__":
  sys.exit(hf.write_or_check(__doc__, FAMILIES, references))

"""The table of sizes against the models' published numbers of parameters."""

import json
import math

import pytest

from tpv_jax.backbones.llama import config, hugging_face, sizes

# Counted in the public checkpoints (Hugging Face), each table once where it is tied.
PUBLISHED = {
  "llama_2_7b": 6_738_415_616,
  "llama_3_1_8b": 8_030_261_248,
  "llama_3_2_1b": 1_235_814_400,
  "smollm2_135m": 134_515_008,
  "deepseek_llm_7b": 6_910_365_696,
  "qwen_2_5_0_5b": 494_032_768,
  "qwen_2_5_7b": 7_615_616_512,
  "qwen_3_0_6b": 596_049_920,
  "mistral_7b_v0_1": 7_241_732_096,
}


@pytest.mark.parametrize("name", sizes.SIZES)
def test_a_size_has_the_published_number_of_parameters(name):
  places = config.places(config.Config("llama", **sizes.SIZES[name]))
  assert sum(math.prod(place.shape) for place in places) == PUBLISHED[name]


# What the config.json of the public models says, but for what no network reads.
LLAMA_3 = {
  "factor": 8.0,
  "high_freq_factor": 4.0,
  "low_freq_factor": 1.0,
  "original_max_position_embeddings": 8192,
  "rope_type": "llama3",
}
PUBLIC = {
  "llama_3_1_8b": {
    "attention_bias": False,
    "eos_token_id": [128001, 128008, 128009],
    "hidden_act": "silu",
    "hidden_size": 4096,
    "intermediate_size": 14336,
    "max_position_embeddings": 131072,
    "mlp_bias": False,
    "model_type": "llama",
    "num_attention_heads": 32,
    "num_hidden_layers": 32,
    "num_key_value_heads": 8,
    "pretraining_tp": 1,
    "rms_norm_eps": 1e-05,
    "rope_scaling": LLAMA_3,
    "rope_theta": 500000.0,
    "tie_word_embeddings": False,
    "vocab_size": 128256,
  },
  "llama_3_2_1b": {
    "attention_bias": False,
    "head_dim": 64,
    "hidden_act": "silu",
    "hidden_size": 2048,
    "intermediate_size": 8192,
    "max_position_embeddings": 131072,
    "mlp_bias": False,
    "model_type": "llama",
    "num_attention_heads": 32,
    "num_hidden_layers": 16,
    "num_key_value_heads": 8,
    "rms_norm_eps": 1e-05,
    "rope_scaling": {**LLAMA_3, "factor": 32.0},
    "rope_theta": 500000.0,
    "tie_word_embeddings": True,
    "vocab_size": 128256,
  },
  "deepseek_llm_7b": {
    "bos_token_id": 100000,
    "eos_token_id": 100001,
    "hidden_act": "silu",
    "hidden_size": 4096,
    "intermediate_size": 11008,
    "max_position_embeddings": 4096,
    "model_type": "llama",
    "num_attention_heads": 32,
    "num_hidden_layers": 30,
    "num_key_value_heads": 32,
    "pretraining_tp": 1,
    "rms_norm_eps": 1e-06,
    "rope_scaling": None,
    "rope_theta": 10000.0,
    "tie_word_embeddings": False,
    "vocab_size": 102400,
  },
  "qwen_2_5_7b": {
    "hidden_act": "silu",
    "hidden_size": 3584,
    "intermediate_size": 18944,
    "max_position_embeddings": 131072,
    "max_window_layers": 28,
    "model_type": "qwen2",
    "num_attention_heads": 28,
    "num_hidden_layers": 28,
    "num_key_value_heads": 4,
    "rms_norm_eps": 1e-06,
    "rope_theta": 1000000.0,
    "sliding_window": 131072,
    "tie_word_embeddings": False,
    "use_mrope": False,
    "use_sliding_window": False,
    "vocab_size": 152064,
  },
  "qwen_3_0_6b": {
    "attention_bias": False,
    "head_dim": 128,
    "hidden_act": "silu",
    "hidden_size": 1024,
    "intermediate_size": 3072,
    "max_position_embeddings": 40960,
    "max_window_layers": 28,
    "model_type": "qwen3",
    "num_attention_heads": 16,
    "num_hidden_layers": 28,
    "num_key_value_heads": 8,
    "rms_norm_eps": 1e-06,
    "rope_scaling": None,
    "rope_theta": 1000000,
    "sliding_window": None,
    "tie_word_embeddings": True,
    "use_sliding_window": False,
    "vocab_size": 151936,
  },
  "mistral_7b_v0_1": {
    "hidden_act": "silu",
    "hidden_size": 4096,
    "intermediate_size": 14336,
    "max_position_embeddings": 32768,
    "model_type": "mistral",
    "num_attention_heads": 32,
    "num_hidden_layers": 32,
    "num_key_value_heads": 8,
    "rms_norm_eps": 1e-05,
    "rope_theta": 10000.0,
    "sliding_window": 4096,
    "tie_word_embeddings": False,
    "vocab_size": 32000,
  },
}


@pytest.mark.parametrize("name", PUBLIC)
def test_a_public_config_gives_the_numbers_of_the_table(tmp_path, name):
  (tmp_path / "config.json").write_text(json.dumps(PUBLIC[name]))
  found = hugging_face.read_config(tmp_path)
  assert found == config.Config(PUBLIC[name]["model_type"], **sizes.SIZES[name])

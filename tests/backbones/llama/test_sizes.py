"""The table of sizes against the models' published numbers of parameters."""

import math

import pytest

from tpv_jax.backbones.llama import config, sizes

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

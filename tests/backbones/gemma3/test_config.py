"""Gemma 3 in Hugging Face's folders and GGUF files: every form, and what is refused."""

import json
import math

import decoder_parity
import gemma_models as models
import numpy as np
import pytest

from tpv_jax.backbones import conversion, loading, networks, registry
from tpv_jax.backbones.gemma3 import config, hugging_face, sizes
from tpv_jax.core import identity
from tpv_jax.core.errors import UserError
from tpv_jax.io import safetensors


def read(tmp_path, without=(), **changed):
  content = {**models.CONFIG, **changed}
  content = {key: value for key, value in content.items() if key not in without}
  return hugging_face.read_config(models.write(tmp_path / "model", content, {}))


def test_a_config_gives_the_numbers_of_its_network(tmp_path):
  assert read(tmp_path).numbers == models.NUMBERS


def test_a_config_that_says_little_means_what_transformers_means(tmp_path):
  found = read(
    tmp_path, without=[name for name in models.CONFIG if name != "model_type"]
  )
  assert found.numbers == {
    "vocab_size": 262_208,
    "emb_dim": 2_304,
    "num_heads": 8,
    "num_kv_heads": 4,
    "head_dim": 256,
    "num_layers": 26,
    "mlp_dim": 9_216,
    "rope_theta": 1_000_000.0,
    "rope_divisors": (),
    "local_rope_theta": 10_000.0,
    "window": 4_096,
    "full_period": 6,
    "query_scalar": 256.0,
    "norm_epsilon": 1e-6,
    "logits_via_embedding": True,
    "max_positions": 131_072,
  }


NEWER = {
  "layer_types": ["sliding_attention"] * 2 + ["full_attention"],
  "rope_parameters": {
    "full_attention": {"rope_type": "linear", "factor": 8.0, "rope_theta": 5000.0},
    "sliding_attention": {"rope_type": "default", "rope_theta": 100.0},
  },
}


def test_what_transformers_5_writes_is_read_alike(tmp_path):
  older = ("rope_theta", "rope_scaling", "rope_local_base_freq")
  found = read(tmp_path, without=(*older, "sliding_window_pattern"), **NEWER)
  assert found.numbers == models.NUMBERS


@pytest.mark.parametrize(
  ("kinds", "period"), [("ff", 1), ("sf", 2), ("sfs", 2), ("sss", 4), ("ssfss", 3)]
)
def test_the_pattern_of_layers_is_told_by_their_names(tmp_path, kinds, period):
  names = {"f": "full_attention", "s": "sliding_attention"}
  found = read(
    tmp_path,
    without=["sliding_window_pattern"],
    num_hidden_layers=len(kinds),
    layer_types=[names[kind] for kind in kinds],
  )
  assert found.full_period == period


BAD = {
  "another activation": ({"hidden_activation": "gelu"}, "hidden_activation 'gelu'"),
  "soft-capped logits": (
    {"final_logit_softcapping": 30.0},
    "final_logit_softcapping 30.0; .* no soft-capped logits",
  ),
  "soft-capped attention": ({"attn_logit_softcapping": 50.0}, "attn_logit_soft"),
  "both directions": (
    {"use_bidirectional_attention": True},
    "use_bidirectional_attention True; .* no attention to what stands behind",
  ),
  "biases": ({"attention_bias": True}, "attention_bias True"),
  "no window": ({"sliding_window": None}, "window None; .* whole number"),
  "layers without a pattern": (
    {"layer_types": ["full_attention", "sliding_attention", "full_attention"]},
    "layer_types .* in each n-th",
  ),
  "other layers": ({"layer_types": ["chunked_attention"] * 3}, "layer_types .'chunked"),
  "layers of another count": ({"layer_types": ["full_attention"]}, "for 3 layers"),
  "two patterns": (
    {"layer_types": ["sliding_attention", "full_attention", "sliding_attention"]},
    "sliding_window_pattern 3 and layer_types",
  ),
  "rotary settings for all": (
    {"rope_parameters": {"rope_type": "default"}},
    "rope_parameters .* full_attention and sliding_attention",
  ),
  "scaled windows": (
    {
      "rope_parameters": {
        **NEWER["rope_parameters"],
        "sliding_attention": {"rope_type": "linear", "factor": 2.0},
      }
    },
    "scales the rotary positions of sliding_attention",
  ),
  "yarn": ({"rope_scaling": {"type": "yarn", "factor": 4}}, "of the type 'yarn'"),
  "no heads": ({"num_key_value_heads": 0}, "num_kv_heads 0; .* whole number"),
  "quantised": ({"quantization_config": {"bits": 4}}, "weights that are quantised"),
  "rules of tokens": ({"suppress_tokens": [1]}, "suppress_tokens"),
}


@pytest.mark.parametrize("fault", BAD)
def test_what_the_network_does_not_support_is_refused_by_name(tmp_path, fault):
  changed, expected = BAD[fault]
  with pytest.raises(UserError, match=expected):
    read(tmp_path, **changed)


@pytest.mark.parametrize(
  ("kind", "reason"), [("gemma2", "soft-capped"), ("gemma", "has no norm")]
)
def test_older_models_are_refused_with_the_reason(tmp_path, kind, reason):
  folder = models.write(tmp_path / "model", {**models.CONFIG, "model_type": kind})
  with pytest.raises(UserError, match=f"'{kind}' .*{reason}.*'gemma3_text'"):
    registry.of_folder(folder)


@pytest.mark.parametrize("names", ["language_model.model.", "model.language_model."])
def test_the_text_part_of_a_model_with_images_is_read(tmp_path, names):
  text = models.write(tmp_path / "text")
  both = models.write_with_images(tmp_path / "both", names)
  assert networks.network(str(both)) == networks.network(str(text))
  one, other = (loading.load_backbone(path) for path in (text, both))
  assert one.fingerprint == other.fingerprint
  out = tmp_path / "out"
  with conversion.planned(both, "hugging-face") as plan:
    conversion.convert(plan, both, out, lambda *_: None)
  assert json.loads((out / "config.json").read_text())["model_type"] == "gemma3_text"


def test_what_is_said_above_the_text_part_counts(tmp_path):
  folder = models.write_with_images(tmp_path / "a", quantization_config={"bits": 4})
  with pytest.raises(UserError, match="weights that are quantised"):
    loading.load_backbone(folder)
  folder = models.write_with_images(tmp_path / "b", text_config=None)
  with pytest.raises(UserError, match="text_config None, which is no object"):
    loading.load_backbone(folder)


def test_a_model_goes_through_every_format_and_keeps_its_numbers(tmp_path):
  chain = [models.write(tmp_path / "model")]
  for output, to in (
    ("one.safetensors", "safetensors"),
    ("checkpoint_0", "t5x"),
    ("back", "hugging-face"),
    ("two.safetensors", "safetensors"),
  ):
    with conversion.planned(chain[-1], to) as plan:
      conversion.convert(plan, chain[-1], tmp_path / output, lambda *_: None)
    chain.append(tmp_path / output)
  for path in chain:
    with loading.opened(path) as source:
      assert source.numbers == models.NUMBERS, path
      assert registry.key_of(source.family) == "gemma3"
  theirs = models.weights()
  _, again = safetensors.read(tmp_path / "back" / "model.safetensors")
  assert again.keys() == theirs.keys()
  assert all(np.array_equal(again[leaf], theirs[leaf]) for leaf in theirs)


def test_transformers_computes_the_same_of_what_is_written(tmp_path):
  decoder_parity.needs_transformers()
  folder = models.write(tmp_path / "model")
  with conversion.planned(folder, "hugging-face") as plan:
    conversion.convert(plan, folder, tmp_path / "back", lambda *_: None)
  length = 20  # Four windows.
  np.testing.assert_array_equal(
    decoder_parity.logits_of_transformers(folder, length),
    decoder_parity.logits_of_transformers(tmp_path / "back", length),
  )


def test_a_gguf_file_is_the_model_of_its_folder(tmp_path):
  pytest.importorskip("gguf")
  folder, path = tmp_path / "model", models.write_gguf(tmp_path / "model.gguf")
  models.write(folder)
  assert networks.network(str(path)) == networks.network(str(folder))
  theirs, ours = (
    identity.flatten(loading.load_backbone(one).params) for one in (folder, path)
  )
  assert ours.keys() == theirs.keys()
  for leaf, values in theirs.items():
    if leaf.endswith("scale"):  # Stored as 1 + w in fp32.
      np.testing.assert_allclose(ours[leaf], values, rtol=0, atol=2e-7, err_msg=leaf)
    else:
      np.testing.assert_array_equal(ours[leaf], values, err_msg=leaf)


def test_a_gguf_file_that_says_little_means_what_llama_cpp_means(tmp_path):
  pytest.importorskip("gguf")
  unsaid = ("attention.sliding_window_pattern", "rope.freq_base_swa")
  unsaid += ("rope.scaling.type", "rope.scaling.factor")
  keys = dict.fromkeys(f"gemma3.{key}" for key in unsaid)
  path = models.write_gguf(tmp_path / "model.gguf", keys=keys)
  with loading.opened(path, whole=False) as source:
    assert source.numbers == {
      **models.NUMBERS,
      "rope_divisors": (),
      "local_rope_theta": 10_000.0,
      "full_period": 6,
      "query_scalar": 4.0,
    }


def test_gemma_27b_in_a_gguf_file_divides_queries_by_another_number(tmp_path):
  pytest.importorskip("gguf")
  numbers = {**models.NUMBERS, "num_layers": 62}
  path = models.write_gguf(
    tmp_path / "model.gguf", models.weights(numbers), keys={"gemma3.block_count": 62}
  )
  with loading.opened(path, whole=False) as source:
    assert source.numbers["query_scalar"] == 6.0  # 12 features of 2 heads.


@pytest.mark.parametrize(
  ("keys", "expected"),
  [
    ({"gemma3.final_logit_softcapping": 30.0}, "final_logit_softcapping 30.0, which"),
    ({"gemma3.attention.sliding_window": None}, "sliding_window None; .* whole"),
    ({"gemma3.rope.freq_base": None}, "rope_theta None; .* positive"),
    ({"gemma3.attention.sliding_window_pattern": [True, True]}, "_pattern array"),
    (
      {"gemma3.attention.sliding_window_pattern": [False, True, False]},
      "_pattern array.* which the network does not support",
    ),
  ],
)
def test_keys_that_the_network_does_not_support_are_refused(tmp_path, keys, expected):
  pytest.importorskip("gguf")
  path = models.write_gguf(tmp_path / "model.gguf", keys=keys)
  with pytest.raises(UserError, match=expected):
    loading.load_backbone(path)


def test_the_pattern_of_a_gguf_file_may_be_a_list_of_layers(tmp_path):
  pytest.importorskip("gguf")
  keys = {"gemma3.attention.sliding_window_pattern": [True, True, False]}
  path = models.write_gguf(tmp_path / "model.gguf", keys=keys)
  with loading.opened(path, whole=False) as source:
    assert source.numbers == models.NUMBERS


# Counted in the public checkpoints (Hugging Face), without the 416,866,032 parameters of
# the tower of images and the 1152 x (D + 1) of its projector.
PUBLISHED = {
  "gemma_3_270m": 268_098_176,
  "gemma_3_1b": 999_885_952,
  "gemma_3_4b": 4_300_079_472 - 416_866_032 - 1_152 * (2_560 + 1),
  "gemma_3_12b": 12_187_325_040 - 416_866_032 - 1_152 * (3_840 + 1),
  "gemma_3_27b": 27_432_406_640 - 416_866_032 - 1_152 * (5_376 + 1),
}


@pytest.mark.parametrize("name", sizes.SIZES)
def test_a_size_has_the_published_number_of_parameters(name):
  places = config.places(config.Config("gemma3_text", **sizes.SIZES[name]))
  assert sum(math.prod(place.shape) for place in places) == PUBLISHED[name]

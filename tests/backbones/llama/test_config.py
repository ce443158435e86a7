"""config.json of the LLaMA family: every form in which it comes, and what is refused."""

import math
import re

import decoder_parity
import llama_models as models
import numpy as np
import pytest

from tpv_jax import cli
from tpv_jax.backbones import conversion, loading, rotary
from tpv_jax.backbones.llama import config, hugging_face, sizes
from tpv_jax.core import identity
from tpv_jax.core.errors import UserError
from tpv_jax.io import safetensors

# Written down by hand: what the configs of `models` say.
NUMBERS = {
  "vocab_size": 24,
  "emb_dim": 12,
  "num_heads": 4,
  "num_kv_heads": 2,
  "num_layers": 2,
  "mlp_dim": 20,
  "rope_theta": 10_000.0,
  "rope_divisors": (),
  "norm_epsilon": 1e-5,
  "attention_bias": False,
  "qk_norm": False,
  "logits_via_embedding": False,
  "max_positions": 64,
}
EXPECTED = {
  "llama": {
    "head_dim": 6,
    "rope_theta": 500_000.0,
    # 1/divisor of 8192 positions' 1304, 16.4 and 0.207 turns: kept, kept, an eighth.
    "rope_divisors": (1.0, 1.0, 8.0),
  },
  "llama tied": {"head_dim": 4, "logits_via_embedding": True},
  "mistral": {"head_dim": 4, "max_positions": 16},
  "qwen2": {
    "emb_dim": 16,
    "head_dim": 4,
    "rope_theta": 1_000_000.0,
    "attention_bias": True,
    "logits_via_embedding": True,
  },
  "qwen3": {"head_dim": 8, "rope_theta": 1_000_000.0, "qk_norm": True},
}


def read(tmp_path, name, without=(), **changed):
  content = {**models.CONFIGS[name], **changed}
  content = {key: value for key, value in content.items() if key not in without}
  return hugging_face.read_config(models.write(tmp_path / "model", content, {}))


@pytest.mark.parametrize("name", models.CONFIGS)
def test_a_config_gives_the_numbers_of_its_network(tmp_path, name):
  assert read(tmp_path, name).numbers == {**NUMBERS, **EXPECTED[name]}


def test_a_config_that_says_little_means_what_transformers_means(tmp_path):
  found = read(
    tmp_path, "mistral", without=[*models.COMMON, "head_dim", "sliding_window"]
  )
  assert found.numbers == {
    **NUMBERS,
    "vocab_size": 32_000,
    "emb_dim": 4_096,
    "num_heads": 32,
    "num_kv_heads": 8,
    "head_dim": 128,
    "num_layers": 32,
    "mlp_dim": 14_336,
    "norm_epsilon": 1e-6,
    "max_positions": 4_096,
  }


SCALING = {"factor": 4.0, "low_freq_factor": 1, "high_freq_factor": 4}


@pytest.mark.parametrize(
  ("stated", "theta", "divisors"),
  [
    ({"rope_scaling": {"type": "linear", "factor": 2.0}}, 10_000.0, (2.0, 2.0)),
    ({"rope_scaling": None, "rope_theta": 5}, 5.0, ()),
    (
      {"rope_parameters": {"rope_type": "linear", "factor": 3, "rope_theta": 50.0}},
      50.0,
      (3.0, 3.0),
    ),
    ({"rope_parameters": {"rope_type": "default", "rope_theta": 7.0}}, 7.0, ()),
    (
      {
        "rope_parameters": {"rope_type": "linear", "factor": 2.0, "rope_theta": 9.0},
        "rope_scaling": {"rope_type": "linear", "factor": 2.0},
        "rope_theta": 9.0,
      },
      9.0,
      (2.0, 2.0),
    ),
    # The first length is that of the config where the scaling states none: 64 positions,
    # so 10.19 and 0.10 turns.
    ({"rope_scaling": {"rope_type": "llama3", **SCALING}}, 10_000.0, (1.0, 4.0)),
  ],
)
def test_both_spellings_of_rotary_settings_are_obeyed(
  tmp_path, stated, theta, divisors
):
  found = read(tmp_path, "llama tied", **stated)
  assert (found.rope_theta, found.rope_divisors) == (theta, divisors)


def test_the_smooth_part_of_the_scaling_follows_the_formula():
  # 8192 positions, 500,000 ** (-72 / 128) / 2 pi turns each: 0.812 to 4 are smoothed.
  divisors = rotary.llama3(128, 500_000.0, 8.0)
  turns = 8_192 * 500_000.0 ** (-64 / 128) / (2 * math.pi)
  kept = (turns - 1) / 3
  assert 0 < kept < 1
  assert divisors[32] == pytest.approx(1 / (kept + (1 - kept) / 8))
  assert divisors[0] == 1.0
  assert divisors[-1] == 8.0


@pytest.mark.parametrize(
  ("name", "changed", "positions"),
  [
    ("mistral", {"sliding_window": None}, 64),
    ("mistral", {"sliding_window": 100}, 64),
    ("qwen2", {"use_sliding_window": True}, 32),
    ("qwen3", {"use_sliding_window": True, "sliding_window": 8}, 8),
    ("qwen3", {"use_sliding_window": True, "sliding_window": None}, 64),
    ("llama", {"sliding_window": 8}, 64),  # No code of LLaMA reads it.
  ],
)
def test_positions_end_where_a_window_would_hide_one(
  tmp_path, name, changed, positions
):
  assert read(tmp_path, name, **changed).max_positions == positions


BAD = {
  "another activation": ({"hidden_act": "gelu"}, "hidden_act 'gelu'; .* only 'silu'"),
  "biases": ({"attention_bias": True}, "attention_bias True; .* no biases on the"),
  "other biases": ({"mlp_bias": True}, "mlp_bias True"),
  "an encoder": ({"is_encoder_decoder": True}, "is_encoder_decoder True"),
  "quantised": ({"quantization_config": {"bits": 4}}, "weights that are quantised"),
  "code": ({"auto_map": {"AutoModel": "x.Y"}}, "Python code"),
  "half a head": ({"partial_rotary_factor": 0.5}, "partial_rotary_factor 0.5"),
  "half a head in 5": (
    {"rope_parameters": {"partial_rotary_factor": 0.25, "rope_type": "default"}},
    "partial_rotary_factor 0.25",
  ),
  "yarn": ({"rope_scaling": {"type": "yarn", "factor": 4}}, "of the type 'yarn'"),
  "dynamic": (
    {"rope_parameters": {"rope_type": "dynamic", "factor": 4}},
    "of the type 'dynamic'",
  ),
  "scaling by layers": (
    {"rope_parameters": {"rope_type": {"full_attention": {}}}},
    "of the type {'full",
  ),
  "no scaling": ({"rope_scaling": [2]}, r"rope_scaling \[2\], which is no object"),
  "no factor": ({"rope_scaling": {"type": "linear"}}, "whose factor is None"),
  "text": ({"rope_scaling": {"type": "linear", "factor": "4"}}, "factor is '4'"),
  "low above high": (
    {"rope_scaling": {"type": "llama3", **SCALING, "low_freq_factor": 4}},
    "low_freq_factor 4.0 is not below",
  ),
  "two bases": (
    {"rope_theta": 1.0, "rope_parameters": {"rope_theta": 2.0}},
    "rope_theta twice, 1.0 and 2.0",
  ),
  "two scalings": (
    {
      "rope_parameters": {"rope_type": "default"},
      "rope_scaling": {"type": "linear", "factor": 2},
    },
    "which differ",
  ),
  "no base": ({"rope_theta": "x"}, "rope_theta 'x'; it must be a positive"),
  "an endless base": ({"rope_theta": 1e39}, "rope_theta 1e.39; it must be a positive"),
  "windows": ({"layer_types": ["chunked_attention"]}, r"layer_types \['chunked"),
  "no heads": ({"num_attention_heads": 0}, "num_attention_heads 0; .* whole number"),
  "odd heads": ({"head_dim": 5}, "width of 5; .* must be even"),
  "heads that do not divide": ({"num_key_value_heads": 3}, "4 heads .* and 3"),
  "no width": ({"head_dim": None, "hidden_size": 13}, "do not divide it"),
  "a layer for each byte": ({"num_hidden_layers": 10**6}, "1000000 layers"),
  "a tie that is none": ({"tie_word_embeddings": "no"}, "logits_via_embedding 'no'"),
  "no epsilon": ({"rms_norm_eps": 0}, "norm_epsilon 0; .* positive"),
  "rules of tokens": ({"suppress_tokens": [1]}, "suppress_tokens"),
}


@pytest.mark.parametrize("fault", BAD)
def test_what_the_network_does_not_support_is_refused_by_name(tmp_path, fault):
  changed, expected = BAD[fault]
  with pytest.raises(UserError, match=expected):
    read(tmp_path, "llama tied", **changed)


def test_a_window_that_is_said_to_be_used_in_words_is_refused(tmp_path):
  with pytest.raises(UserError, match="use_sliding_window 'yes'"):
    read(tmp_path, "qwen2", use_sliding_window="yes")


def test_settings_of_sampling_are_the_users(tmp_path):
  folder = models.write(tmp_path / "model", models.CONFIGS["qwen2"])
  path = folder / "generation_config.json"
  path.write_text('{"repetition_penalty": 1.05, "top_p": 0.8, "do_sample": true}')
  hugging_face.read_config(folder)
  path.write_text('{"forced_eos_token_id": 3}')
  with pytest.raises(UserError, match="states forced_eos_token_id 3"):
    hugging_face.read_config(folder)


@pytest.mark.parametrize("name", models.CONFIGS)
def test_a_model_goes_through_every_format_and_keeps_its_numbers(tmp_path, name):
  content = models.CONFIGS[name]
  folder = models.write(tmp_path / "model", content)
  chain = [folder]
  for output, to in (
    ("one.safetensors", "safetensors"),
    ("checkpoint_0", "t5x"),
    ("back", "hugging-face"),
    ("two.safetensors", "safetensors"),
  ):
    output = tmp_path / output
    with conversion.planned(chain[-1], to) as plan:
      conversion.convert(plan, chain[-1], output, lambda *_: None)
    chain.append(output)
  for path in chain:
    with loading.opened(path) as source:
      assert source.numbers == {**NUMBERS, **EXPECTED[name]}, path
      assert source.config.model_type == content["model_type"]
      assert source.family.table in source.leaves
  theirs = models.weights(content)
  _, again = safetensors.read(tmp_path / "back" / "model.safetensors")
  assert again.keys() == theirs.keys()
  assert all(np.array_equal(again[leaf], theirs[leaf]) for leaf in theirs)


def test_a_copy_of_the_table_and_old_buffers_are_left_out(tmp_path):
  content = models.CONFIGS["llama tied"]
  leaves = models.weights(content)
  more = {
    "lm_head.weight": leaves["model.embed_tokens.weight"],
    "model.layers.0.self_attn.rotary_emb.inv_freq": np.ones(2, np.float32),
  }
  plain = loading.load_backbone(models.write(tmp_path / "plain", content))
  full = loading.load_backbone(models.write(tmp_path / "full", content, leaves | more))
  assert full.fingerprint == plain.fingerprint
  more["lm_head.weight"] = more["lm_head.weight"] + 1
  with pytest.raises(UserError, match=r"with other values than .* \(tie_word"):
    loading.load_backbone(models.write(tmp_path / "other", content, leaves | more))


@pytest.mark.parametrize("form", sizes.TINY)
def test_numbers_are_stated_by_files_because_leaves_do_not_tell_them(tmp_path, form):
  made = models.tiny(form)
  rng = np.random.default_rng(0)
  leaves = {
    place.path: rng.standard_normal(
      place.shape[::-1] if place.turned else place.shape
    ).astype(np.float32)
    for place in config.places(made)
  }
  path = tmp_path / "tiny.safetensors"
  stated = {"family": "llama", **made.numbers}
  loading.save_backbone(path, leaves, form, network=stated)
  with loading.opened(path, whole=False) as source:
    assert source.config == made
  silent = tmp_path / "silent.safetensors"
  loading.save_backbone(silent, leaves, form)
  assert loading.load_backbone(silent).fingerprint == identity.backbone_fingerprint(
    leaves
  )
  with (
    loading.opened(silent) as source,
    pytest.raises(UserError, match="heads, rotary"),
  ):
    _ = source.config


STATED = {
  "no JSON": ("{", "states no network that can be read"),
  "a list": ("[1]", "no object with a family"),
  "another family": ({"family": "gemma"}, "family 'gemma'; only t5, llama, gemma3"),
  "a family that is a list": ({"family": ["t5"]}, r"the family \['t5'\]"),
  "the wrong family": ({"family": "t5"}, "belongs to no known family"),
  "a number too many": ({"experts": 8}, "an unknown number 'experts'"),
  "a number too few": ({"num_heads": None}, "no number 'num_heads'"),
  "other leaves": ({"mlp_dim": 17}, "are not those of this LLaMA"),
  "no number": ({"emb_dim": "8"}, "emb_dim '8'; .* whole number"),
  "divisors of another head": ({"rope_divisors": [1.0, 2.0]}, "2 divisors .* need 1"),
  "no divisors": ({"rope_divisors": 3}, "rope_divisors 3, which is no list"),
}


@pytest.mark.parametrize("fault", STATED)
def test_a_damaged_statement_of_numbers_is_one_line(tmp_path, capsys, fault):
  made = models.tiny("llama_tiny")
  leaves = {
    place.path: np.ones(place.shape[::-1] if place.turned else place.shape, np.float32)
    for place in config.places(made)
  }
  change, expected = STATED[fault]
  path = tmp_path / "tiny.safetensors"
  network = {"family": "llama", **made.numbers}
  metadata = {}
  if isinstance(change, str):
    metadata, network = {"network": change}, None
  else:
    network = {k: v for k, v in (network | change).items() if v is not None}
  loading.save_backbone(path, leaves, "tiny", metadata=metadata, network=network)
  assert (
    cli.main(["convert", str(path), "-o", str(tmp_path / "out"), "--to", "t5x"]) == 2
  )
  capsys.readouterr()
  arguments = ["convert", str(path), "-o", str(tmp_path / "o.safetensors")]
  assert cli.main(arguments) == 2
  printed = capsys.readouterr().err
  assert printed.count("\n") == 1
  assert re.search(expected, printed), printed


def test_divisors_that_config_json_has_no_name_for_are_not_written(tmp_path, capsys):
  made = models.tiny("llama_tiny")
  leaves = {
    place.path: np.ones(place.shape[::-1] if place.turned else place.shape, np.float32)
    for place in config.places(made)
  }
  path = tmp_path / "tiny.safetensors"
  made = {**made.numbers, "head_dim": 4, "num_heads": 2, "num_kv_heads": 2}
  made["rope_divisors"] = [1.0, 3.0]
  made["rope_theta"] = 10.0
  loading.save_backbone(path, leaves, "tiny", network={"family": "llama", **made})
  assert (
    cli.main(["convert", str(path), "-o", str(tmp_path / "out"), "--to=hugging-face"])
    == 2
  )
  assert "has no name: neither linear" in capsys.readouterr().err
  assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("name", models.CONFIGS)
def test_transformers_computes_the_same_of_what_is_written(tmp_path, name):
  decoder_parity.needs_transformers()
  folder = models.write(tmp_path / "model", models.CONFIGS[name])
  with conversion.planned(folder, "hugging-face") as plan:
    conversion.convert(plan, folder, tmp_path / "back", lambda *_: None)
  length = 10  # Fewer than a window has.
  np.testing.assert_array_equal(
    decoder_parity.logits_of_transformers(folder, length),
    decoder_parity.logits_of_transformers(tmp_path / "back", length),
  )

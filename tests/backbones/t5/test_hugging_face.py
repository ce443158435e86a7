"""Folders of Hugging Face: every form in which a T5 comes, and what is refused.

That the numbers are right is shown in test_parity.py.
"""

import json
import os
import pathlib
import re
import subprocess
import sys
import tracemalloc

import hf_references as references
import ml_dtypes
import numpy as np
import pytest
import safetensors.numpy

from tpv_jax import cli
from tpv_jax.backbones import loading
from tpv_jax.backbones.t5 import hugging_face, network
from tpv_jax.core import identity
from tpv_jax.core.errors import UserError
from tpv_jax.formats import hugging_face as folders

UNUSED = "decoder.block.0.layer.1.EncDecAttention.relative_attention_bias.weight"
WO = "encoder.block.0.layer.1.DenseReluDense.wo.weight"


@pytest.fixture(scope="module")
def expected(tmp_path_factory):
  """The leaves of the family 't5_1_1' by T5X path, from its plain folder."""
  folder = tmp_path_factory.mktemp("plain") / "model"
  return leaves_of(references.write_folder(folder, "t5_1_1"))


def leaves_of(folder, family="t5_1_1"):
  net = network.Transformer(**references.numbers(family))
  return identity.flatten(loading.load_backbone(folder, net).params)


def same(one, other):
  return one.keys() == other.keys() and all(
    one[path].dtype == other[path].dtype and np.array_equal(one[path], other[path])
    for path in one
  )


def shard(folder):
  """Splits the weights into two files and an index, as for a large model."""
  weights = safetensors.numpy.load_file(folder / "model.safetensors")
  (folder / "model.safetensors").unlink()
  names = ("model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors")
  parts = {name: sorted(weights)[index::2] for index, name in enumerate(names)}
  for name, part in parts.items():
    safetensors.numpy.save_file({leaf: weights[leaf] for leaf in part}, folder / name)
  index = {
    "metadata": {"total_size": 1},
    "weight_map": {leaf: name for name, part in parts.items() for leaf in part},
  }
  (folder / "model.safetensors.index.json").write_text(json.dumps(index))


def change_weights(change):
  """Returns what changes the leaves of a folder; `change` gets and returns them."""

  def changed(folder):
    weights = change(references.weights("t5_1_1") | {})
    safetensors.numpy.save_file(weights, folder / "model.safetensors")

  return changed


def change_config(**changed):
  def change(folder):
    content = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**content, **changed}))

  return change


def change_config_to_null(name):
  def change(folder):
    content = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**content, name: None}))

  return change


def write_generation(**content):
  return lambda folder: (folder / "generation_config.json").write_text(
    json.dumps(content)
  )


def test_sharded_files_are_one_model(tmp_path, expected):
  folder = references.write_folder(tmp_path / "model", "t5_1_1")
  shard(folder)
  assert same(leaves_of(folder), expected)


@pytest.mark.parametrize("dtype", [ml_dtypes.bfloat16, np.float16])
def test_half_precision_keeps_its_values(tmp_path, dtype):
  rounded = {
    name: leaf.astype(dtype) for name, leaf in references.weights("t5_1_1").items()
  }
  found = leaves_of(references.write_folder(tmp_path / "half", "t5_1_1", rounded))
  kept = np.float32 if dtype == np.float16 else dtype
  table = found["token_embedder/embedding"]
  assert table.dtype == kept
  assert np.array_equal(table, rounded["shared.weight"].astype(kept))


def test_copies_of_the_table_and_the_bias_that_no_one_reads_are_left_out(
  tmp_path, expected
):
  weights = references.weights("t5_1_1")
  copies = {
    f"{stack}.embed_tokens.weight": weights["shared.weight"]
    for stack in ("encoder", "decoder")
  }
  extra = {**weights, **copies, UNUSED: np.ones((32, 3), np.float32)}
  folder = references.write_folder(tmp_path / "copies", "t5_1_1", extra)
  assert same(leaves_of(folder), expected)
  del extra["shared.weight"]
  folder = references.write_folder(tmp_path / "renamed", "t5_1_1", extra)
  assert same(leaves_of(folder), expected)


@pytest.mark.parametrize("family", ["t5", "t5_1_1"])
def test_what_transformers_5_writes_of_tied_tables_is_understood(tmp_path, family):
  # It writes tie_word_embeddings true for both, and whether logits are scaled.
  changed = {"tie_word_embeddings": True, "scale_decoder_outputs": family == "t5"}
  folder = references.write_folder(tmp_path / "model", family, **changed)
  assert ("decoder/logits_dense/kernel" in leaves_of(folder, family)) == (
    family == "t5_1_1"
  )


def test_a_head_that_transformers_5_saved_as_the_table_is_the_table(tmp_path):
  # As it saves a new T5 1.1: it scales no logits, and there is no lm_head of its own.
  weights = references.weights("t5_1_1")
  del weights["lm_head.weight"]
  changed = {"tie_word_embeddings": True, "scale_decoder_outputs": False}
  folder = references.write_folder(tmp_path / "model", "t5_1_1", weights, **changed)
  flat = leaves_of(folder)
  table = flat["token_embedder/embedding"]
  assert np.array_equal(flat["decoder/logits_dense/kernel"], table.T)
  # A config of an older transformers says that the head has weights of its own.
  folder = references.write_folder(tmp_path / "damaged", "t5_1_1", weights)
  with pytest.raises(UserError, match=r"1 missing \(lm_head.weight\)"):
    leaves_of(folder)


def test_a_silent_config_means_what_transformers_means(tmp_path):
  (tmp_path / "config.json").write_text('{"model_type": "t5"}')
  config = hugging_face.read_config(tmp_path)
  assert (config.d_model, config.d_ff, config.num_decoder_layers) == (512, 2048, 6)
  assert config.tied
  assert not config.gated
  (tmp_path / "config.json").write_text('{"model_type": "mt5", "num_layers": 12}')
  config = hugging_face.read_config(tmp_path)
  assert (config.vocab_size, config.d_ff, config.num_heads) == (250_112, 1024, 6)
  assert config.num_decoder_layers == 12
  assert config.gated
  assert not config.tied


@pytest.mark.parametrize(
  "stated",
  [
    {"dense_act_fn": "gelu_new", "is_gated_act": True},  # Flan-T5's public files
    {"feed_forward_proj": "relu", "dense_act_fn": "gelu_new", "is_gated_act": True},
    {"feed_forward_proj": "gated-gelu_new"},
    {"feed_forward_proj": "gated-gelu_pytorch_tanh"},
  ],
)
def test_every_spelling_of_the_gated_gelu_is_obeyed(tmp_path, expected, stated):
  folder = references.write_folder(tmp_path / "model", "t5_1_1", **stated)
  assert same(leaves_of(folder), expected)


def test_an_activation_may_override_a_projection_that_says_nothing(tmp_path):
  stated = {"model_type": "t5", "feed_forward_proj": "relu", "dense_act_fn": "relu"}
  (tmp_path / "config.json").write_text(json.dumps(stated))
  assert not hugging_face.read_config(tmp_path).gated


def test_fields_that_no_code_of_t5_reads_mean_nothing(tmp_path, expected):
  # Of t5-small's and Flan-T5's public files, and of fine-tuned ones.
  stated = {
    **{"n_positions": 512, "output_past": True, "layer_norm_eps": 1e-5, "use_cache": 0},
    **{"dropout_rate": 0.3, "classifier_dropout": 0.1, "initializer_factor": 0.05},
    **{"torch_dtype": "float16", "_name_or_path": "x", "transformers_version": "4.9"},
    **{"hidden_size": 16, "head_dim": 6, "num_beams": 4, "max_length": 20},
    **{"min_length": 0, "suppress_tokens": [], "bos_token_id": 7},
    "task_specific_params": {"summarization": {"no_repeat_ngram_size": 3}},
    "eos_token_id": [1],
  }
  folder = references.write_folder(tmp_path / "model", "t5_1_1", **stated)
  write_generation(
    decoder_start_token_id=0, eos_token_id=1, pad_token_id=0, num_beams=4
  )(folder)
  assert same(leaves_of(folder), expected)


ADVICE = {
  "transformers 5.0's T5 1.1": (
    {"tie_word_embeddings": False, "scale_decoder_outputs": True},
    {"tie_word_embeddings": False, "scale_decoder_outputs": False},
  ),
  "the same, saved again": (
    {"tie_word_embeddings": True, "scale_decoder_outputs": True},
    {"tie_word_embeddings": False, "scale_decoder_outputs": False},
  ),
  "ties of an older one": (
    {"tie_word_embeddings": True},
    {"tie_word_embeddings": False, "scale_decoder_outputs": False},
  ),
  "ties of an mT5": (
    {"model_type": "mt5", "tie_word_embeddings": True, "transformers_version": "4.1"},
    {"tie_word_embeddings": False},
  ),
}


@pytest.mark.parametrize("case", ADVICE)
def test_following_the_advice_about_ties_reads_the_model(tmp_path, expected, case):
  stated, followed = ADVICE[case]
  folder = references.write_folder(tmp_path / "model", "t5_1_1", **stated)
  with pytest.raises(UserError, match="tie_word_embeddings") as caught:
    leaves_of(folder)
  assert "both to false for T5 1.1" in str(caught.value) or case == "ties of an mT5"
  change_config(**followed)(folder)
  assert same(leaves_of(folder), expected)


def test_an_mt5_is_tied_where_the_transformers_that_wrote_it_scales_its_logits(
  tmp_path,
):
  stated = {"model_type": "mt5", "tie_word_embeddings": True}
  for version, tied in (("4.57.6", True), ("5.24.0", False)):
    content = json.dumps({**stated, "transformers_version": version})
    (tmp_path / "config.json").write_text(content)
    config = hugging_face.read_config(tmp_path)
    assert config.tied == tied
    assert config.head_is_table == (not tied)


def test_a_network_with_scaled_logits_is_written_as_a_t5(tmp_path):
  # transformers 5 never scales those of an mT5, whatever config.json says.
  weights = references.weights("mt5")
  del weights["lm_head.weight"]
  stated = {"tie_word_embeddings": True, "transformers_version": "4.57.6"}
  folder = references.write_folder(tmp_path / "model", "mt5", weights, **stated)
  output = tmp_path / "again"
  assert cli.main(["convert", str(folder), "-o", str(output), "--to=hugging-face"]) == 0
  content = json.loads((output / "config.json").read_text())
  assert (content["model_type"], content["tie_word_embeddings"]) == ("t5", True)
  config = hugging_face.read_config(output)
  assert config.tied
  assert config.gated


def test_a_file_inside_a_snapshot_of_the_hub_is_a_link_to_its_blobs(tmp_path, expected):
  model = references.write_folder(tmp_path / "hub" / "blobs", "t5_1_1")
  snapshot = tmp_path / "hub" / "snapshots" / "abc"
  snapshot.mkdir(parents=True)
  for name in ("config.json", "model.safetensors"):
    (snapshot / name).symlink_to(f"../../blobs/{name}")
  assert model.is_dir()
  assert same(leaves_of(snapshot), expected)


def test_a_folder_in_a_bucket_is_read(bucket, tmp_path, expected):
  from object_store import ObjectStore

  folder = references.write_folder(tmp_path / "model", "t5_1_1")
  shard(folder)
  for path in folder.iterdir():
    ObjectStore.objects[f"bucket/model/{path.name}"] = path.read_bytes()
  assert same(leaves_of(f"{bucket}/model"), expected)


def test_a_written_model_is_split_like_theirs_and_read_again(
  tmp_path, expected, monkeypatch
):
  monkeypatch.setattr(folders, "FILE_BYTES", 20_000)
  config = hugging_face.config_of(expected, "model")
  places = hugging_face.places(config)
  folders.save(tmp_path, config.to_json("float32"), places, expected)
  names = sorted(path.name for path in tmp_path.glob("*.safetensors"))
  assert names[0] == f"model-00001-of-0000{len(names)}.safetensors"
  assert len(names) > 2
  stored = {}
  for name in names:
    stored |= safetensors.numpy.load_file(tmp_path / name)
  weights = references.weights("t5_1_1")
  assert stored.keys() == weights.keys()
  assert all(np.array_equal(stored[name], weights[name]) for name in weights)
  index = json.loads((tmp_path / "model.safetensors.index.json").read_text())
  assert index["weight_map"].keys() == weights.keys()
  assert index["metadata"]["total_size"] == sum(w.nbytes for w in weights.values())
  assert same(leaves_of(tmp_path), expected)


def truncate(folder):
  path = folder / "model.safetensors"
  path.write_bytes(path.read_bytes()[:-5])


def claim_terabytes(folder):
  path = folder / "model.safetensors"
  content = path.read_bytes()
  length = int.from_bytes(content[:8], "little")
  text = content[8 : 8 + length].replace(b'"shape":[48,16]', b'"shape":[1099511627776]')
  path.write_bytes(len(text).to_bytes(8, "little") + text + content[8 + length :])


def claim_a_huge_header(folder):
  path = folder / "model.safetensors"
  path.write_bytes((1 << 43).to_bytes(8, "little") + path.read_bytes()[8:])


def link_out(folder):
  path = folder / "model.safetensors"
  path.rename(folder.parent / "elsewhere.safetensors")
  path.symlink_to(folder.parent / "elsewhere.safetensors")


def link_config_out(folder):
  path = folder / "config.json"
  path.rename(folder.parent / "elsewhere.json")
  path.symlink_to(folder.parent / "elsewhere.json")


def only_pickle(folder):
  (folder / "model.safetensors").unlink()
  (folder / "pytorch_model.bin").write_bytes(b"PK\x03\x04")


def pickle_as_safetensors(folder):
  (folder / "model.safetensors").write_bytes(b"\x80\x04" + b"x" * 100)


def index_of(content):
  def change(folder):
    shard(folder)
    (folder / "model.safetensors.index.json").write_text(json.dumps(content))

  return change


def lose_a_shard(folder):
  shard(folder)
  (folder / "model-00002-of-00002.safetensors").unlink()


def repeat_a_leaf(folder):
  shard(folder)
  first = folder / "model-00001-of-00002.safetensors"
  (folder / "model-00002-of-00002.safetensors").write_bytes(first.read_bytes())


def write_config(text):
  return lambda folder: (folder / "config.json").write_text(text)


def with_leaf(name, change):
  return change_weights(lambda weights: {**weights, name: change(weights.get(name))})


def holed(leaf):
  leaf = leaf.copy()
  leaf[2, 3] = np.nan
  return leaf


BAD = {
  "truncated": (truncate, "is no safetensors file, or a truncated or damaged one"),
  "a leaf of terabytes": (
    claim_terabytes,
    "in F32 needs 4398046511104 bytes, and its of",
  ),
  "a header of terabytes": (claim_a_huge_header, "a header of 8796093022208 bytes"),
  "a link out": (link_out, r"symbolic link out of its folder, to '.*elsewhere"),
  "a config behind a link": (link_config_out, "symbolic link out of its folder"),
  "only a pickle": (only_pickle, r"pickle \(pytorch_model.bin\).*save_pretrained"),
  "a pickle by another name": (pickle_as_safetensors, r"is a pickle .* never opened"),
  "no weights": (
    lambda folder: (folder / "model.safetensors").unlink(),
    "neither model.safetensors nor",
  ),
  "no config": (
    lambda folder: (folder / "config.json").unlink(),
    "has no config.json",
  ),
  "a config that is no JSON": (write_config('{"model_type": '), "config.json' is no"),
  "a config that is a list": (write_config("[]"), "config.json' is no JSON object"),
  "another model": (
    change_config(model_type="umt5"),
    r"model_type 'umt5' \(its layers have a relative bias each\); only",
  ),
  "a quantised model": (
    change_config(quantization_config={"quant_method": "bitsandbytes"}),
    r"states quantization_config \{'quant_method': .*: weights that are quantised",
  ),
  "heads left out": (change_config(pruned_heads={"0": [1]}), "states pruned_heads"),
  "one stack for both": (
    change_config(tie_encoder_decoder=True),
    "tie_encoder_decoder True: one stack for encoder and decoder",
  ),
  "layers of different forms": (
    change_config(per_layer_config={"0": {"d_ff": 8}}),
    "states per_layer_config",
  ),
  "another file of weights": (
    change_config(transformers_weights="other.safetensors"),
    "transformers_weights 'other.safetensors': weights in a file of another name",
  ),
  "a network of its own": (
    change_config(auto_map={"AutoModel": "modeling.T5"}),
    "auto_map .*: a network in Python code of its own",
  ),
  "an adapter beside the weights": (
    lambda folder: (folder / "adapter_config.json").write_text("{}"),
    "holds an adapter_config.json beside its weights",
  ),
  "another activation": (
    change_config(feed_forward_proj="gated-silu"),
    "feed_forward_proj 'gated-silu'; the network supports 'relu'",
  ),
  "an activation that overrides": (
    change_config(dense_act_fn="relu"),
    "feed_forward_proj 'gated-gelu' with dense_act_fn 'relu', which overrides it; the",
  ),
  "the exact gelu": (change_config(dense_act_fn="gelu"), "dense_act_fn 'gelu', which"),
  "a gate that is overridden": (
    change_config(is_gated_act=False),
    "with is_gated_act False, which overrides it",
  ),
  "another width by its second name": (
    change_config(hidden_size=32),
    "hidden_size 32, another name of d_model, which is 16 there",
  ),
  "a depth by its second name": (
    change_config(num_hidden_layers=2),
    "num_hidden_layers 2, another name of num_layers, which is 3 there",
  ),
  "no end": (change_config_to_null("eos_token_id"), "eos_token_id None; .* only 1"),
  "two ends": (change_config(eos_token_id=[1, 5]), r"eos_token_id \[1, 5\]; the"),
  "a start by the name of another token": (
    change_config(decoder_start_token_id=None, bos_token_id=3),
    "bos_token_id 3 and no decoder_start_token_id",
  ),
  "a rule for tokens": (
    change_config(no_repeat_ngram_size=3),
    "config.json' states no_repeat_ngram_size 3, with which transformers generates",
  ),
  "a token that is forced": (
    write_generation(forced_bos_token_id=5),
    "generation_config.json' states forced_bos_token_id 5",
  ),
  "another end of what is generated": (
    write_generation(eos_token_id=[1, 7]),
    r"generation_config.json' states eos_token_id \[1, 7\]; the network supports only 1",
  ),
  "a generation that is no JSON": (
    lambda folder: (folder / "generation_config.json").write_text("["),
    "generation_config.json' is no JSON",
  ),
  "scaled logits by mistake": (
    change_config(scale_decoder_outputs=True),
    "tie_word_embeddings false and scale_decoder_outputs true, as .* 5.0 wrote by mis",
  ),
  "other buckets": (
    change_config(relative_attention_num_buckets=64),
    "relative_attention_num_buckets 64; the network supports only 32",
  ),
  "another distance": (change_config(relative_attention_max_distance=20), "only 128"),
  "another epsilon": (change_config(layer_norm_epsilon=1e-5), "only 1e-06"),
  "another padding": (change_config(pad_token_id=1), "pad_token_id 1; .* only 0"),
  "another end": (change_config(eos_token_id=2), "eos_token_id 2; .* only 1"),
  "no decoder": (change_config(is_encoder_decoder=False), "is_encoder_decoder False"),
  "a width that is text": (
    change_config(d_model="16"),
    "d_model '16'; it must be a wh",
  ),
  "a negative width": (change_config(d_ff=-1), "d_ff -1; it must be a whole number"),
  "a million layers": (change_config(num_layers=10**6), "no T5 has over 1000"),
  "ties that are text": (
    change_config(tie_word_embeddings="no"),
    "'no'; it must be true or",
  ),
  "a config of more layers": (
    change_config(num_layers=4),
    r"do not fit its config.json: of 70 leaves 9 missing \(encoder.block.3.layer.0",
  ),
  "a config of another width": (
    change_config(d_ff=32),
    r"15 of another shape \(decoder.block.0.layer.2.* is \(24, 16\) and must be \(32,",
  ),
  "a config of T5 1.0": (
    change_config(feed_forward_proj="relu", tie_word_embeddings=True),
    "'lm_head.weight' with other values than 'shared.weight'",
  ),
  "a missing leaf": (
    change_weights(lambda w: {name: w[name] for name in w if name != WO}),
    r"1 missing \(encoder.block.0.layer.1.DenseReluDense.wo.weight\)",
  ),
  "a foreign leaf": (
    with_leaf("decoder.adapter.weight", lambda _: np.ones(3, np.float32)),
    r"1 foreign \(decoder.adapter.weight\)",
  ),
  "a turned leaf": (
    with_leaf(WO, lambda leaf: np.ascontiguousarray(leaf.T)),
    r"wo.weight is \(24, 16\) and must be \(16, 24\)",
  ),
  "a leaf of integers": (
    with_leaf(WO, lambda leaf: leaf.astype(np.int8)),
    r"wo.weight' in I8; the only dtypes read here are F32, F16, BF16",
  ),
  "a leaf in fp64": (with_leaf(WO, lambda leaf: leaf.astype(np.float64)), "in F64"),
  "NaN": (
    with_leaf(WO, holed),
    r"'encoder/layers_0/mlp/wo/kernel' .* 1 values that are NaN .* at \(3, 2\)",
  ),
  "two tables": (
    with_leaf("encoder.embed_tokens.weight", lambda _: np.ones((48, 16), np.float32)),
    "'encoder.embed_tokens.weight' with other values than 'shared.weight'",
  ),
  "an index without files": (index_of({}), "states no weight_map"),
  "an index that leads out": (
    index_of({"weight_map": {"a": "../elsewhere.safetensors"}}),
    "names the file '../elsewhere.safetensors', and only .safetensors files beside it",
  ),
  "an index of pickles": (index_of({"weight_map": {"a": "b.bin"}}), "the file 'b.bin'"),
  "an index of numbers": (index_of({"weight_map": {"a": 3}}), "names the file ''"),
  "a lost shard": (lose_a_shard, r"lacks 1 of the 2 files .*\(model-00002-of-00002"),
  "a leaf in two shards": (repeat_a_leaf, "in two files"),
}


@pytest.mark.parametrize("fault", BAD)
def test_bad_input_is_one_line_and_nothing_is_written(tmp_path, capsys, fault):
  change, expected = BAD[fault]
  folder = references.write_folder(tmp_path / "in" / "model", "t5_1_1")
  change(folder)
  tracemalloc.start()
  with pytest.raises(UserError, match=expected) as caught:
    loading.load_backbone(folder)
  assert tracemalloc.get_traced_memory()[1] < 4 << 20
  tracemalloc.stop()
  assert "\n" not in str(caught.value)
  assert len(str(caught.value)) < 800
  (tmp_path / "out").mkdir()
  output = tmp_path / "out" / "model.safetensors"
  assert cli.main(["convert", str(folder), "-o", str(output)]) == 2
  error = capsys.readouterr().err.splitlines()[-1]
  assert error == f"error: {caught.value}"
  assert list((tmp_path / "out").iterdir()) == []


def test_the_command_for_pickled_weights_saves_them_as_printed(tmp_path):
  # On a stand-in: that transformers itself reads pickles is its own to test.
  (tmp_path / "transformers.py").write_text(
    "class AutoModelForSeq2SeqLM:\n"
    "  def __init__(self, path): self.path = path\n"
    "  from_pretrained = classmethod(lambda cls, path: cls(path))\n"
    "  def save_pretrained(self, out): print(self.path, end='', file=open(out, 'w'))\n"
  )
  folder = references.write_folder(tmp_path / 'it\'s a "model"', "t5")
  only_pickle(folder)
  with pytest.raises(UserError) as caught:
    loading.load_backbone(folder)
  command = re.search(r"python -c '.*'$", str(caught.value))[0]
  path = f"{pathlib.Path(sys.executable).parent}:{os.environ['PATH']}"
  environment = {**os.environ, "PATH": path, "PYTHONPATH": str(tmp_path)}
  subprocess.run(command, shell=True, check=True, cwd=tmp_path, env=environment)
  assert (tmp_path / "OUT").read_text() == str(folder)

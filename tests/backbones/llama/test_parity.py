"""LLaMA and its relatives against Hugging Face's (make_llama_references.py)."""

import importlib.util
import json
import subprocess
import sys

import decoder_parity as parity
import hf_references as references
import numpy as np
import pytest
import safetensors.numpy
from decoder_parity import (
  QUICK,
  TOLERANCE,
  bf16_distances,
  distances,
  greedy,
  network,
  unnoticed,
)

from tpv_jax.backbones import loading
from tpv_jax.backbones.llama import config, hugging_face
from tpv_jax.core import identity

pytestmark = pytest.mark.usefixtures("compiles_faster")

FAMILIES = references.LLAMAS
NAMES = {
  "llama": "LLaMA",
  "llama_tied": "LLaMA, tied",
  "llama_3_1": "LLaMA 3.1",
  "qwen2": "Qwen 2.5",
  "qwen3": "Qwen 3",
  "mistral": "Mistral",
}


def parity_rows():
  """Returns the rows of the parity table."""
  return parity.parity_rows(NAMES)


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize(
  "case", [pytest.param(case, marks=marks) for case, marks in QUICK.items()]
)
def test_logits_and_loss_equal_those_of_hugging_face(family, case):
  found = distances(family, case)
  assert max(found.values()) < TOLERANCE, found


@pytest.mark.parametrize("family", ["llama_tied", "qwen2", "qwen3"])
def test_bf16_logits_are_as_near_as_hugging_faces_own(family):
  ours, theirs = bf16_distances(family)
  assert 1e-4 < ours < 2 * theirs


@pytest.mark.parametrize("family", FAMILIES)
def test_any_leaf_moved_by_a_thousandth_is_noticed(family):
  assert unnoticed(family) == []


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize(
  "case", ["padded", pytest.param("prompted", marks=pytest.mark.slow)]
)
def test_greedy_decoding_writes_what_hugging_face_generates(family, case):
  tokens, expected = greedy(family, case)
  assert np.array_equal(tokens, expected)


def test_each_end_token_ends_an_answer_of_the_references():
  written = [references.case(family, "padded")["greedy"] for family in FAMILIES]
  stated = [references.config(family)["eos_token_id"] for family in FAMILIES]
  assert any(isinstance(ends, list) for ends in stated)
  for rows, ends in zip(written, stated, strict=True):
    assert np.isin(rows, ends).any()


def stored_leaves(family):
  """Returns Hugging Face's weights by T5X path, matrices transposed."""
  numbers = config.Config(family, **references.decoder_numbers(family))
  theirs = references.weights(family)
  return {
    place.path: theirs[place.name].T if place.turned else theirs[place.name]
    for place in config.places(numbers)
  }


def assert_equal_leaves(folder, family):
  found = identity.flatten(loading.load_backbone(folder, network(family)).params)
  expected = stored_leaves(family)
  assert found.keys() == expected.keys()
  for path, leaf in expected.items():
    np.testing.assert_array_equal(found[path], leaf)


@pytest.mark.parametrize("family", ["llama", "llama_tied"])
def test_shards_give_the_leaves_bit_by_bit(family, tmp_path):
  folder = references.write_folder(tmp_path / family, family)
  leaves = safetensors.numpy.load_file(folder / "model.safetensors")
  (folder / "model.safetensors").unlink()
  places = {}
  for number, names in enumerate(np.array_split(sorted(leaves), 3), 1):
    shard = f"model-0000{number}-of-00003.safetensors"
    own = {str(name): leaves[name] for name in names}
    safetensors.numpy.save_file(own, folder / shard, {"format": "pt"})
    places |= dict.fromkeys(own, shard)
  index = {"metadata": {"total_size": 0}, "weight_map": places}
  (folder / "model.safetensors.index.json").write_text(json.dumps(index))
  assert_equal_leaves(folder, family)


def test_references_are_small():
  stored = [references.FOLDER / f"hf_{family}.npz" for family in FAMILIES]
  assert sum(path.stat().st_size for path in stored) < 600_000


def needs_parity():
  for package in ("torch", "transformers"):
    if importlib.util.find_spec(package) is None:
      pytest.skip(f"needs the extra 'parity': {package} is not installed")


@pytest.mark.slow
def test_the_script_regenerates_the_references():
  needs_parity()
  script = references.FOLDER / "make_llama_references.py"
  done = subprocess.run(
    [sys.executable, script, "--check"], capture_output=True, text=True
  )
  assert done.returncode == 0, done.stdout + done.stderr


def test_folders_that_transformers_writes_in_shards_are_read_bit_by_bit(tmp_path):
  needs_parity()
  for family in FAMILIES:
    references.write_folder(tmp_path / family, family)
  code = """if True:
    import pathlib, sys
    import torch, transformers
    for folder in map(pathlib.Path, sys.argv[1:]):
      model = transformers.AutoModelForCausalLM.from_pretrained(
        folder, dtype=torch.float32)
      model.save_pretrained(folder / "saved", max_shard_size="8KB")
  """
  folders = [tmp_path / family for family in FAMILIES]
  done = subprocess.run(
    [sys.executable, "-c", code, *folders], capture_output=True, text=True
  )
  assert done.returncode == 0, done.stderr
  for family in FAMILIES:
    saved = tmp_path / family / "saved"
    assert len([*saved.glob("*.safetensors")]) > 1
    read = hugging_face.read_config(saved)
    assert read.numbers == hugging_face.read_config(tmp_path / family).numbers
    assert_equal_leaves(saved, family)

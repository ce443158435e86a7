"""Folders of LLaMA and its relatives in shards; numbers: `test_decoder_parity`."""

import json
import subprocess
import sys

import hf_references as references
import numpy as np
import pytest
import safetensors.numpy
from decoder_parity import needs_transformers, network

from tpv_jax.backbones import loading
from tpv_jax.backbones.llama import config, hugging_face
from tpv_jax.core import identity

FAMILIES = references.LLAMAS


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


def test_folders_that_transformers_writes_in_shards_are_read_bit_by_bit(tmp_path):
  needs_transformers()
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

"""The table of sizes against the models' published numbers of parameters."""

import pathlib
import re

import jax
import numpy as np
import pytest

from tpv_jax.backbones.t5 import network, sizes

# Counted in the public checkpoints (Hugging Face: t5-*, google/t5-v1_1-*, google/mt5-*).
PUBLISHED = {
  "t5_v1_0_small": 60_506_624,
  "t5_v1_0_base": 222_903_552,
  "t5_v1_0_large": 737_668_096,
  "t5_v1_0_xl": 2_851_598_336,
  "t5_v1_0_xxl": 11_307_321_344,
  "t5_v1_1_small": 76_961_152,
  "t5_v1_1_base": 247_577_856,
  "t5_v1_1_large": 783_150_080,
  "t5_v1_1_xl": 2_849_757_184,
  "t5_v1_1_xxl": 11_135_332_352,
  "mt5_small": 300_176_768,
  "mt5_base": 582_401_280,
  "mt5_large": 1_229_581_312,
  "mt5_xl": 3_742_619_648,
  "mt5_xxl": 12_921_057_280,
}


def count(numbers):
  net = network.Transformer(**numbers)
  token = jax.ShapeDtypeStruct((1, 1), np.int32)
  variables = jax.eval_shape(net.init, jax.random.key(0), token, token, token)
  return sum(int(np.prod(leaf.shape)) for leaf in jax.tree.leaves(variables["params"]))


@pytest.mark.parametrize("name", sizes.SIZES)
def test_a_size_has_the_published_number_of_parameters(name):
  assert count(sizes.SIZES[name]) == PUBLISHED[name]


@pytest.mark.parametrize(
  ("file", "name"),
  [
    ("t5_1_0_small", "t5_v1_0_small"),
    ("t5_1_0_base", "t5_v1_0_base"),
    ("t5_1_1_small", "t5_v1_1_small"),
    ("t5_1_1_base", "t5_v1_1_base"),
  ],
)
def test_a_gin_file_has_the_numbers_of_the_table(file, name):
  folder = pathlib.Path(__file__).parents[3] / "gin_configs" / "backbones"
  text = (folder / f"{file}.gin").read_text()
  for field, value in sizes.SIZES[name].items():
    shown = "EMB_DIM" if field == "emb_dim" else field
    [stated] = re.findall(rf"^\s*{shown} = (.+)$", text, re.MULTILINE)
    assert stated.replace(" ", "") == repr(value).replace(" ", ""), field

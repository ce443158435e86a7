"""Random weights by NumPy have the distributions of the networks' own."""

import importlib
import pathlib

import jax
import numpy as np
import pytest

from tpv_jax.backbones.llama.network import Llama
from tpv_jax.backbones.t5 import network
from tpv_jax.core import identity

FOLDER = pathlib.Path(__file__).parents[2] / "benchmarks"
T5 = {
  "vocab_size": 96,
  "emb_dim": 64,
  "num_heads": 4,
  "head_dim": 8,
  "num_encoder_layers": 1,
  "num_decoder_layers": 1,
  "mlp_dim": 96,
}
LLAMA = {
  **{"vocab_size": 96, "emb_dim": 64, "num_heads": 4, "num_kv_heads": 2, "head_dim": 8},
  **{"num_layers": 1, "mlp_dim": 96},
}
NETWORKS = {
  "T5 v1.0": network.Transformer(
    **T5, mlp_activations=("relu",), logits_via_embedding=True
  ),
  "T5 v1.1": network.Transformer(
    **T5, mlp_activations=("gelu", "linear"), logits_via_embedding=False
  ),
  "LLaMA": Llama(**LLAMA),
}


@pytest.fixture
def weights(monkeypatch):
  monkeypatch.syspath_prepend(FOLDER)
  return importlib.import_module("weights")


@pytest.mark.parametrize("name", NETWORKS)
def test_each_leaf_has_the_deviation_of_the_networks_own(weights, name):
  made = NETWORKS[name]
  variables = made.init(jax.random.key(0), *made.init_inputs())
  own = {
    path: np.asarray(leaf)
    for path, leaf in identity.flatten(variables["params"]).items()
  }
  drawn = weights.drawn(made)
  assert drawn.keys() == own.keys()
  for path, leaf in own.items():
    assert (drawn[path].shape, drawn[path].dtype) == (leaf.shape, leaf.dtype), path
    # 128 numbers at least: their deviation is off by 6 % (1 sigma) on either side.
    assert drawn[path].std() == pytest.approx(leaf.std(), rel=0.25), path
    assert abs(drawn[path].mean() - leaf.mean()) < 0.4 * max(leaf.std(), 1e-6), path


def test_a_file_of_weights_is_written_once(weights, tmp_path):
  assert weights.main(["tiny", "llama_tiny", f"--folder={tmp_path}"]) == 0
  assert sorted(path.name for path in tmp_path.iterdir()) == [
    "llama_tiny.safetensors",
    "tiny.safetensors",
  ]
  for path in tmp_path.iterdir():
    path.write_bytes(b"kept")
  assert weights.main(["tiny", f"--folder={tmp_path}"]) == 0
  assert (tmp_path / "tiny.safetensors").read_bytes() == b"kept"

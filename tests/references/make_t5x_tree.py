"""Writes `t5x_tree.json`: paths, shapes and logical axes of T5X's own network.

Needs T5X's source, not its installation: only `t5x/examples/t5/network.py` and `layers.py`
are imported, past `t5x/__init__.py`, which needs much more. Imports nothing of tpv_jax.

  python tests/references/make_t5x_tree.py --t5x path/to/t5x

The stored file was made with T5X cc342d4 (2026-04), flax 0.12.8 and jax 0.10.2.
"""

import argparse
import json
import pathlib
import sys
import types

import jax
import jax.numpy as jnp
from flax import traverse_util

OUTPUT = pathlib.Path(__file__).parent / "t5x_tree.json"

NUMBERS = {
  "vocab_size": 48,
  "emb_dim": 16,
  "num_heads": 3,
  "head_dim": 6,
  "num_encoder_layers": 2,
  "num_decoder_layers": 3,
  "mlp_dim": 24,
}
VERSIONS = {
  "v1_0": {"mlp_activations": ["relu"], "logits_via_embedding": True},
  "v1_1": {"mlp_activations": ["gelu", "linear"], "logits_via_embedding": False},
}


def tree(network: types.ModuleType, config: dict) -> dict[str, dict[str, list]]:
  """Returns path -> {'shape', 'axes'} of T5X's network."""
  module = network.Transformer(network.T5Config(**config))
  tokens = jnp.ones((1, 2), jnp.int32)
  variables = jax.eval_shape(
    lambda: module.init(
      jax.random.PRNGKey(0), tokens, tokens, tokens, enable_dropout=False
    )
  )
  params = traverse_util.flatten_dict(variables["params"], sep="/")
  axes = traverse_util.flatten_dict(variables["params_axes"], sep="/")
  return {
    path: {"shape": list(leaf.shape), "axes": list(axes[f"{path}_axes"].names)}
    for path, leaf in sorted(params.items())
  }


def main() -> None:
  parser = argparse.ArgumentParser(
    description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
  )
  parser.add_argument("--t5x", required=True, help="a clone of T5X")
  package = types.ModuleType("t5x")
  package.__path__ = [str(pathlib.Path(parser.parse_args().t5x) / "t5x")]
  sys.modules["t5x"] = package
  from t5x.examples.t5 import network

  content = {}
  for version, numbers in VERSIONS.items():
    config = {**NUMBERS, **numbers}
    content[version] = {"config": config, "leaves": tree(network, config)}
  lines = json.dumps(content, indent=1)
  OUTPUT.write_text(lines + "\n")
  print(f"{OUTPUT.name}: {OUTPUT.stat().st_size} bytes")


if __name__ == "__main__":
  main()

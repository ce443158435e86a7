"""Reads the stored references of Hugging Face's T5s (see make_hf_references.py).

Imports nothing of tpv_jax: `numbers` is written down here, so that our reading of
config.json is compared with something.
"""

import functools
import json
import pathlib

import numpy as np
import safetensors.numpy

FAMILIES = ("t5", "t5_1_1", "flan_t5", "mt5")
FOLDER = pathlib.Path(__file__).parent / "references"


@functools.cache
def stored(family):
  """Returns all arrays of a family."""
  path = FOLDER / f"hf_{family}.npz"
  with np.load(path, allow_pickle=False) as file:
    return dict(file)


def case(family, name):
  """Returns the arrays of one case: tokens, logits, loss, generations."""
  return _under(family, f"{name}/")


def weights(family):
  """Returns the fp32 weights by Hugging Face's names."""
  return _under(family, "weights/")


def config(family):
  """Returns the content of config.json."""
  return json.loads(str(stored(family)["config"]))


def numbers(family):
  """Returns the arguments of our network for a family."""
  gated = family != "t5"
  return {
    "vocab_size": 56 if family == "mt5" else 48,
    "emb_dim": 16,
    "num_heads": 2 if family == "mt5" else 3,
    "head_dim": 6,
    "num_encoder_layers": 3 if gated else 2,
    "num_decoder_layers": 2,
    "mlp_dim": 20 if family == "flan_t5" else 24,
    "mlp_activations": ("gelu", "linear") if gated else ("relu",),
    "logits_via_embedding": not gated,
  }


def write_folder(folder, family, leaves=None, **changed):
  """Writes config.json and model.safetensors as Hugging Face does; returns the folder.

  Args:
    folder: to be made.
    family: whose weights and config.
    leaves: other leaves by Hugging Face's names.
    changed: fields of the config; None leaves one out.
  """
  folder.mkdir(parents=True)
  content = {**config(family), **changed}
  content = {name: value for name, value in content.items() if value is not None}
  (folder / "config.json").write_text(json.dumps(content))
  leaves = weights(family) if leaves is None else leaves
  safetensors.numpy.save_file(leaves, folder / "model.safetensors", {"format": "pt"})
  return folder


def _under(family, prefix):
  return {
    name.removeprefix(prefix): value
    for name, value in stored(family).items()
    if name.startswith(prefix)
  }

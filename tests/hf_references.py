"""Reads the stored references of Hugging Face's models (see make_hf_references.py).

Those of decoder-only families are made by make_llama_references.py and
make_gemma_references.py. Imports nothing of tpv_jax:
`numbers` is written down here, so that our reading of config.json is compared with
something.
"""

import functools
import json
import math
import pathlib

import numpy as np
import safetensors.numpy

FAMILIES = ("t5", "t5_1_1", "flan_t5", "mt5")
LLAMAS = ("llama", "llama_tied", "llama_3_1", "qwen2", "qwen3", "mistral")
GEMMAS = ("gemma3", "gemma3_scaled")
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


def decoder_numbers(family):
  """Returns the arguments of our network for a family of `LLAMAS` or `GEMMAS`."""
  return gemma_numbers(family) if family in GEMMAS else llama_numbers(family)


def gemma_numbers(family):
  """Returns the arguments of our network for a family of `GEMMAS`."""
  scaled = family == "gemma3_scaled"
  return {
    "vocab_size": 48,
    "emb_dim": 24 if scaled else 16,
    "num_heads": 3 if scaled else 4,
    "num_kv_heads": 1 if scaled else 2,
    "head_dim": 8 if scaled else 6,
    "num_layers": 3 if scaled else 2,
    "mlp_dim": 24,
    "rope_theta": 5e3,
    "rope_divisors": (8.0,) * 4 if scaled else (),
    "local_rope_theta": 100.0,
    "window": 16 if scaled else 9,
    "full_period": 3 if scaled else 2,
    "query_scalar": 5.0 if scaled else 10.0,
    "norm_epsilon": 1e-6,
    "logits_via_embedding": not scaled,
    "max_positions": 512,
  }


def llama_numbers(family):
  """Returns the arguments of our network for a family of `LLAMAS`.

  Those of LLaMA 3.1's scaling are the formula of its paper's code, written out: of the four
  frequencies the second goes over from whole to an eighth.
  """
  tied, scaled = family == "llama_tied", family == "llama_3_1"
  turns = 128 / (2 * math.pi) * 10_000 ** (-1 / 4)
  whole = (turns - 1) / 3
  return {
    "vocab_size": 48,
    "emb_dim": 24 if tied else 16,
    "num_heads": 3 if tied else 4,
    "num_kv_heads": {"llama_tied": 1, "llama_3_1": 4}.get(family, 2),
    "head_dim": {"llama": 6, "qwen2": 4, "mistral": 6}.get(family, 8),
    "num_layers": 2,
    "mlp_dim": 24,
    "rope_theta": {"llama": 5e5, "llama_tied": 1e5, "qwen2": 1e6, "qwen3": 1e6}.get(
      family, 1e4
    ),
    "rope_divisors": (1.0, 1 / ((1 - whole) / 8 + whole), 8.0, 8.0) if scaled else (),
    "norm_epsilon": 1e-6 if family.startswith("qwen") else 1e-5,
    "attention_bias": family == "qwen2",
    "qk_norm": family == "qwen3",
    "logits_via_embedding": family in ("llama_tied", "qwen2"),
    "max_positions": 160 if family == "mistral" else 512,
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

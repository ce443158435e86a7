"""Reads the stored references of PEFT's prompt tuning, and trains as they were trained.

They are made by make_peft_references.py and make_causal_peft_references.py, on the weights
of `hf_references`.
"""

import functools
import hashlib
import pathlib
import tempfile

import hf_references
import jax
import jax.numpy as jnp
import numpy as np

from tpv_jax.backbones import loading
from tpv_jax.core.leaves import read_all
from tpv_jax.devices import partitioning
from tpv_jax.training import optimizers, steps

TOLERANCE = 1e-5
"""Of one pass in fp32; about a hundred roundings."""

TRAINING_TOLERANCE = 1e-4
"""Of a hundred steps: each starts from what rounding left of the one before."""


@functools.cache
def stored(name):
  """Returns all arrays of a file."""
  with np.load(hf_references.FOLDER / f"{name}.npz", allow_pickle=False) as file:
    return dict(file)


def part(name, section):
  """Returns the arrays of a section of a file."""
  return {
    path.removeprefix(f"{section}/"): value
    for path, value in stored(name).items()
    if path.startswith(f"{section}/")
  }


@functools.cache
def backbone(name, family):
  """Returns the leaves by T5X path, from those that a file was made with."""
  theirs = hf_references.weights(family)
  digest = hashlib.sha256(b"".join(theirs[leaf].tobytes() for leaf in sorted(theirs)))
  assert digest.hexdigest() == str(stored(name)["backbone"]), (
    f"{name}.npz was made with other weights than hf_{family}.npz has: make it again"
  )
  with tempfile.TemporaryDirectory() as folder:
    path = hf_references.write_folder(pathlib.Path(folder) / family, family)
    with loading.opened(path) as source:
      return read_all(source.leaves)


def distance(ours, theirs):
  """Returns the largest difference over the largest value."""
  return float(np.abs(ours - theirs).max() / np.abs(theirs).max())


def train(model, initial, frozen, batches, rate, warmup):
  """Returns the loss of each step, one for each batch, and the prompt after them."""
  schedule = optimizers.constant(rate, warmup)
  built = steps.build(model, schedule, 1, partitioning.make_mesh())
  state, report = built.train(
    built.initialise({"prompt/prompt": jnp.asarray(initial)}),
    {path: jnp.asarray(leaf) for path, leaf in frozen.items()},
    steps.put_batches(built, batches),
    jax.random.key(0),
  )
  return np.asarray(report["loss"]), np.asarray(state.trainable["prompt/prompt"])

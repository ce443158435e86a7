"""Runs and vectors small enough to compare value by value."""

import json

import numpy as np
import pytest

from tpv_jax import identity
from tpv_jax.vectors import store
from tpv_jax.vectors.algebra import Loaded
from tpv_jax.vectors.provenance import Provenance, Term

BACKBONE = "ab" * 32


def _initial(seed, shape=(4, 6), backbone=BACKBONE) -> Loaded:
  """An initial prompt as a run writes it."""
  values = np.random.default_rng(seed).uniform(-0.5, 0.5, shape).astype(np.float32)
  leaves = {"prompt": values}
  known = Provenance(
    kind="prompt",
    backbone_name="tiny",
    backbone_fingerprint=backbone,
    initial_digest=identity.prompt_digest(leaves),
    initial_seed=seed,
    steps=0,
    versions={"jax": "0.10.2", "tpv_jax": "0.1.0"},
  )
  return Loaded(leaves, known, f"initial{seed}")


def _tuned(initial, task, change) -> Loaded:
  """A prompt that a run tuned from `initial`; `change` seeds what training did."""
  known = initial.provenance
  step = np.random.default_rng([7, change]).normal(size=initial.leaves["prompt"].shape)
  leaves = {"prompt": initial.leaves["prompt"] + step.astype(np.float32)}
  provenance = Provenance(
    kind="prompt",
    terms=(Term(task, 1.0),),
    backbone_name=known.backbone_name,
    backbone_fingerprint=known.backbone_fingerprint,
    initial_digest=known.initial_digest,
    initial_seed=known.initial_seed,
    steps=250,
    versions=known.versions,
  )
  return Loaded(leaves, provenance, task)


@pytest.fixture
def initial_prompt():
  """The function (seed, shape, backbone) -> an initial prompt."""
  return _initial


@pytest.fixture
def tuned_prompt():
  """The function (initial, task, change) -> a prompt tuned from it."""
  return _tuned


@pytest.fixture
def make_run(tmp_path):
  """Writes a run folder and returns its path."""

  def make(name, task="sst2", seed=0, change=1, which=("initial", "best", "last")):
    run = tmp_path / name
    run.mkdir(parents=True)
    initial = _initial(seed)
    prompts = {
      "initial": initial,
      "best": _tuned(initial, task, change),
      "last": _tuned(initial, task, change + 1000),
    }
    for one in which:
      item = prompts[one]
      store.write(run / f"{one}_prompt.safetensors", item.leaves, item.provenance)
    (run / "manifest.json").write_text(json.dumps({"status": "finished"}))
    return run

  return make

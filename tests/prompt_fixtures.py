"""Runs and vectors small enough to compare value by value."""

import dataclasses
import json

import numpy as np
import pytest

from tpv_jax.core import identity
from tpv_jax.prompts import equations
from tpv_jax.vectors import store
from tpv_jax.vectors.loaded import Loaded
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


def _ept_leaves(rng, tokens=3, source=5, width=6, rank=2, fusion=2, spaces=2):
  """Parameters of an EPT prompt, all of them random: no part is switched off by zeros."""
  shapes = {
    "short_prompt": (tokens, width),
    "low_rank_a": (source, rank),
    "low_rank_b": (rank, width),
    "fusion_query": (width, fusion),
    "fusion_key": (width, fusion),
    "fusion_gamma": (),
    "space_down": (spaces, width, 2),
    "space_up": (spaces, 2, width),
    "gate_kernel": (width, spaces),
    "gate_bias": (spaces,),
  }
  return {
    name: np.asarray(rng.normal(size=shape), np.float32)
    for name, shape in shapes.items()
  }


def _ept_initial(seed, alpha=8.0, **sizes) -> Loaded:
  """The initial parameters of an EPT run, as the run writes them."""
  leaves = _ept_leaves(np.random.default_rng([seed, 3]), **sizes)
  folded = equations.fold_exactly(leaves, alpha).leaves()
  known = dataclasses.replace(
    _initial(seed).provenance,
    method="ept",
    space="factor",
    alpha=alpha,
    initial_digest=identity.prompt_digest(leaves),
    initial_folded_digest=identity.prompt_digest(folded),
  )
  return Loaded(leaves, known, f"ept{seed}")


def _ept_tuned(initial, task, *change) -> Loaded:
  """EPT parameters that a run tuned from `initial`; `change` seeds what training did."""
  rng = np.random.default_rng([8, *change])
  leaves = {
    name: np.asarray(leaf + 0.5 * rng.normal(size=leaf.shape), np.float32)
    for name, leaf in initial.leaves.items()
  }
  known = dataclasses.replace(initial.provenance, terms=(Term(task, 1.0),), steps=250)
  return Loaded(leaves, known, task)


def _fold(leaves, alpha):
  """docs/methods.md, (3.12), sum by sum in fp64: not the package's own code."""
  p = {name: np.asarray(leaf, np.float64) for name, leaf in leaves.items()}
  rank, width = p["low_rank_b"].shape
  delta = np.einsum("mr,rd->md", p["low_rank_a"], p["low_rank_b"])
  delta = delta * alpha / rank**0.5
  prompt = p["short_prompt"].copy()
  for token, row in enumerate(p["short_prompt"]):
    query = row @ p["fusion_query"]
    scores = np.array([query @ (d @ p["fusion_key"]) for d in delta])
    weights = np.exp(scores / len(query) ** 0.5)
    prompt[token] += p["fusion_gamma"] * sum(
      w * d for w, d in zip(weights / weights.sum(), delta, strict=True)
    )
    gate = np.exp(row @ p["gate_kernel"] + p["gate_bias"])
    for space, weight in enumerate(gate / gate.sum()):
      hidden = np.maximum(row @ p["space_down"][space], 0)
      prompt[token] += weight * (hidden @ p["space_up"][space])
  assert prompt.shape == (len(p["short_prompt"]), width)
  return {"prompt": prompt, "delta": delta}


@pytest.fixture(scope="session")
def ept_initial():
  """The function (seed, alpha, sizes) -> the initial parameters of an EPT run."""
  return _ept_initial


@pytest.fixture(scope="session")
def ept_tuned():
  """The function (initial, task, change) -> EPT parameters tuned from them."""
  return _ept_tuned


@pytest.fixture(scope="session")
def numpy_fold():
  """The function (leaves, alpha) -> fp64 `prompt` and `delta`, in plain NumPy."""
  return _fold


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

  def make(
    name,
    task="sst2",
    seed=0,
    change=1,
    which=("initial", "best", "last"),
    method="plain",
  ):
    run = tmp_path / name
    run.mkdir(parents=True)
    start, tune = {
      "plain": (_initial, _tuned),
      "ept": (_ept_initial, _ept_tuned),
    }[method]
    initial = start(seed)
    prompts = {
      "initial": initial,
      "best": tune(initial, task, change),
      "last": tune(initial, task, change + 1000),
    }
    for one in which:
      item = prompts[one]
      store.write(run / f"{one}_prompt.safetensors", item.leaves, item.provenance)
    (run / "manifest.json").write_text(json.dumps({"status": "finished"}))
    return run

  return make

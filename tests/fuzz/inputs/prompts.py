"""Prompts and vectors: ours, signed, and those of other tools."""

import functools
import json
import pathlib
import random
import shutil

import numpy as np

from fuzz import mutations
from fuzz.campaign import ROOT, Kind
from fuzz.inputs import tpv


def leaves(seed: int = 0, delta: bool = False) -> dict[str, np.ndarray]:
  """Returns the leaves of a small prompt."""
  rng = np.random.default_rng(seed)
  found = {"prompt": rng.standard_normal((4, 8)).astype(np.float32)}
  if delta:
    found["delta"] = rng.standard_normal((6, 8)).astype(np.float32)
  return found


def loaded(values: dict[str, np.ndarray]):
  """Returns leaves as the product holds what it has read."""
  from tpv_jax.vectors.loaded import Loaded
  from tpv_jax.vectors.provenance import of_leaves

  return Loaded(values, of_leaves(values), "made here")


def tuned() -> tuple:
  """Returns an initial prompt, a prompt tuned from it, and their vector."""
  import dataclasses

  from tpv_jax.vectors import algebra
  from tpv_jax.vectors.provenance import Term

  initial = loaded(leaves(0))
  after = loaded(leaves(1))
  known = dataclasses.replace(
    after.provenance,
    initial_digest=initial.provenance.initial_digest,
    terms=(Term("sst2", 1.0),),
    backbone_fingerprint="0" * 64,
  )
  after = dataclasses.replace(after, provenance=known)
  known = dataclasses.replace(initial.provenance, backbone_fingerprint="0" * 64)
  initial = dataclasses.replace(initial, provenance=known)
  return initial, after, algebra.diff(after, initial, allow_mixed_origin=True)


def write(path: str, item) -> None:
  """Writes a prompt or vector as a file of ours."""
  from tpv_jax.vectors import store

  store.write(path, item.leaves, item.provenance)


def _make_prompt() -> None:
  initial, after, vector = tuned()
  write("initial.safetensors", initial)
  write("a.safetensors", after)
  write("v.safetensors", vector)
  write("w.safetensors", vector)


def factors(seed: int) -> dict[str, np.ndarray]:
  """Returns the parameters of a small EPT prompt."""
  import prompt_fixtures

  return prompt_fixtures._ept_leaves(np.random.default_rng(seed))


def _make_factors() -> None:
  """EPT prompts as runs write them: an initial one, and one tuned from it."""
  import dataclasses

  from tpv_jax.core import identity
  from tpv_jax.prompts import equations
  from tpv_jax.vectors.provenance import Term

  values = factors(3)
  folded = equations.fold_exactly(values, 8.0).leaves()
  initial = loaded(values)
  known = dataclasses.replace(
    initial.provenance,
    method="ept",
    space="factor",
    alpha=8.0,
    backbone_fingerprint="0" * 64,
    initial_digest=identity.prompt_digest(values),
    initial_folded_digest=identity.prompt_digest(folded),
  )
  after = {name: leaf + np.float32(0.25) for name, leaf in values.items()}
  later = dataclasses.replace(known, terms=(Term("sst2", 1.0),), steps=250)
  write("initial.safetensors", dataclasses.replace(initial, provenance=known))
  write(
    "a.safetensors", dataclasses.replace(loaded(after), provenance=later, name="sst2")
  )


def _make_dept() -> None:
  """DePT's parameters in a file of another tool."""
  values = {name: factors(4)[name] for name in ("low_rank_a", "low_rank_b")}
  np.savez("p.npz", prompt=factors(4)["short_prompt"], **values)


def _make_run() -> None:
  initial, after, _ = tuned()
  pathlib.Path("run").mkdir()
  write("run/initial_prompt.safetensors", initial)
  write("run/best_prompt.safetensors", after)
  write("run/last_prompt.safetensors", after)
  manifest = {
    "format": "tpv_jax run 1",
    "status": "running",
    "task": "a",
    "steps": 3,
    "best_step": 2,
    "settings": {
      "total_steps": 3,
      "best_metric": "loss",
      "learning_rate": [0.0, 0.1, 0.3, 0.3],
      "data": {"batch_size": 4, "lengths": {"inputs": 8, "targets": 2}},
    },
    "untuned": {"loss": 2.0, "exact_match": 0.0},
    "majority": {"label": "a", "share": 0.5},
  }
  pathlib.Path("run/manifest.json").write_text(json.dumps(manifest))


def _make_checkpoint() -> None:
  """An Orbax checkpoint of a prompt, as a run of ours or T5X's leaves it."""
  from tpv_jax.io import orbax

  orbax.save_checkpoint(
    pathlib.Path("checkpoint_1").absolute(),
    {f"prompt/{name}": leaf for name, leaf in leaves().items()},
  )


def _make_adapter() -> None:
  shutil.copytree(ROOT / "tests" / "references" / "peft_tuned", "adapter")


def _make_dept_adapter() -> None:
  """An adapter as DePT's own code saves it."""
  from safetensors.numpy import save_file

  values = factors(4)
  a, b = values["low_rank_a"], values["low_rank_b"]
  tokens, width = values["short_prompt"].shape
  weights = {
    "prompt_embeddings": values["short_prompt"],
    "prompt_encoder.lora_embedding_A": a,
    "prompt_encoder.lora_embedding_B": b,
  }
  config = {
    "peft_type": "PROMPT_TUNING_LORA",
    "task_type": "SEQ_2_SEQ_LM",
    "num_transformer_submodules": 1,
    "num_virtual_tokens": tokens,
    "token_dim": width,
    "max_length": len(a),
    "r": a.shape[1],
    "lora_alpha": 8.0,
  }
  pathlib.Path("adapter").mkdir()
  save_file(weights, "adapter/adapter_model.safetensors")
  pathlib.Path("adapter/adapter_config.json").write_text(json.dumps(config))


def _make_numpy_checkpoint() -> None:
  """The folder `numpy_checkpoints` of google-research/prompt-tuning."""
  folder = pathlib.Path("numpy_checkpoints/checkpoint_1")
  folder.mkdir(parents=True)
  with open(folder / "encoder.prompt.prompt.prompt", "wb") as file:
    np.save(file, leaves()["prompt"])


def _make_our_adapter() -> None:
  from tpv_jax.formats import peft

  peft.write(pathlib.Path("adapter"), loaded(leaves()))


def _make_npy() -> None:
  np.save("p.npy", leaves()["prompt"])


def _make_our_npy() -> None:
  from tpv_jax.formats import arrays

  arrays.write(pathlib.Path("p.npy"), loaded(leaves()))


def _make_npz() -> None:
  values = {f"a/{name}": leaf for name, leaf in leaves(delta=True).items()}
  np.savez_compressed("p.npz", **values)


def _make_our_npz() -> None:
  from tpv_jax.formats import arrays

  arrays.write(pathlib.Path("p.npz"), loaded(leaves(delta=True)))


def _make_safetensors() -> None:
  from safetensors.numpy import save_file

  save_file(leaves(), "p.safetensors")


def _check_written() -> None:
  """Reads what a command wrote, whose values must be finite."""
  from tpv_jax.vectors import store

  for path in pathlib.Path().glob("out*.safetensors"):
    values, _ = store.read(path)
    assert values
    for leaf in values.values():
      assert leaf.size, path
      assert np.isfinite(leaf).all(), path


def _damage_one(
  folder: pathlib.Path, rng: random.Random, own: tuple[str, ...]
) -> mutations.Done:
  """Damages the files of ours that the command in question reads."""
  return mutations.damage(folder, rng, kept=("w.safetensors",), own=own)


_SIGNED = functools.partial(_damage_one, own=(".safetensors",))
_ALL = tuple(
  f"tpv {what}".removeprefix("tpv ")
  for what in (
    "show {0}",
    "show {0} --json",
    "import {0} -o out.safetensors",
    "export {0} --to npz -o out.npz",
    "export {0} --to npy -o out.npy",
    "export {0} --to peft -o out",
    "fold {0} -o out.safetensors",
    "cosine {0} {0}",
  )
)


def _reads(path: str, *more: str):
  return tpv.one_of(*(line.format(path) for line in _ALL), *more)


_OUT = ("out*",)

KINDS = {
  "our prompts and vectors": Kind(
    _make_prompt,
    tpv.one_of(
      "diff a.safetensors initial.safetensors -o out.safetensors --allow-mixed-origin",
      "sum v.safetensors w.safetensors -o out.safetensors",
      "apply v.safetensors initial.safetensors -o out.safetensors",
      "analogy v.safetensors w.safetensors v.safetensors -o out.safetensors",
      "scale v.safetensors 0.5 -o out.safetensors",
      "cosine v.safetensors w.safetensors --json",
      "cosine a.safetensors initial.safetensors",
    ),
    mutations.damage,
    _OUT,
    _check_written,
  ),
  "our EPT prompts": Kind(
    _make_factors,
    _reads(
      "a.safetensors",
      "diff a.safetensors initial.safetensors -o out.safetensors",
      "diff a.safetensors initial.safetensors --space factor -o out.safetensors",
      "inspect a.safetensors -o out",
    ),
    outputs=_OUT,
    check=_check_written,
  ),
  "our prompt file": Kind(
    lambda: write("a.safetensors", tuned()[1]),
    _reads("a.safetensors", "negate a.safetensors -o out.safetensors"),
    _SIGNED,
    _OUT,
    _check_written,
  ),
  "run folder of a prompt": Kind(
    _make_run,
    _reads("run", "diff run -o out.safetensors --allow-mixed-origin", "diagnose run"),
    outputs=_OUT,
    check=_check_written,
  ),
  "checkpoint of a prompt": Kind(
    _make_checkpoint, _reads("checkpoint_1"), outputs=_OUT, check=_check_written
  ),
  "PEFT adapter": Kind(
    _make_adapter, _reads("adapter"), outputs=_OUT, check=_check_written
  ),
  "our PEFT adapter": Kind(
    _make_our_adapter, _reads("adapter"), outputs=_OUT, check=_check_written
  ),
  "DePT's adapter": Kind(
    _make_dept_adapter, _reads("adapter"), outputs=_OUT, check=_check_written
  ),
  "numpy checkpoint": Kind(
    _make_numpy_checkpoint,
    _reads("numpy_checkpoints/checkpoint_1"),
    outputs=_OUT,
    check=_check_written,
  ),
  "npy file": Kind(_make_npy, _reads("p.npy"), outputs=_OUT, check=_check_written),
  "our npy file": Kind(
    _make_our_npy, _reads("p.npy"), outputs=_OUT, check=_check_written
  ),
  "npz file": Kind(_make_npz, _reads("p.npz"), outputs=_OUT, check=_check_written),
  "our npz file": Kind(
    _make_our_npz, _reads("p.npz"), outputs=_OUT, check=_check_written
  ),
  "DePT's npz file": Kind(
    _make_dept,
    tpv.one_of(
      "import p.npz --alpha 8 -o out.safetensors",
      "fold p.npz --alpha 8 -o out.safetensors",
      "export p.npz --alpha 8 --to npz -o out.npz",
      "show p.npz",
    ),
    outputs=_OUT,
    check=_check_written,
  ),
  "foreign safetensors": Kind(
    _make_safetensors, _reads("p.safetensors"), outputs=_OUT, check=_check_written
  ),
}

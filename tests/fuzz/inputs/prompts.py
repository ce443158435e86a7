"""Prompts and vectors: ours, signed, and those of other tools."""

import functools
import json
import pathlib
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


def _make_merged() -> None:
  """A merge by TIES of the vectors of two tasks, and what it was made of."""
  import dataclasses

  from tpv_jax.core import identity
  from tpv_jax.vectors import algebra
  from tpv_jax.vectors.merging import merge
  from tpv_jax.vectors.provenance import Term

  start = loaded(leaves(0))
  known = dataclasses.replace(
    start.provenance,
    backbone_fingerprint="0" * 64,
    initial_digest=identity.prompt_digest(start.leaves),
  )
  start = dataclasses.replace(start, provenance=known)
  vectors = []
  for seed, task in enumerate(("sst2", "rte"), 1):
    after = dataclasses.replace(known, terms=(Term(task, 1.0),), steps=9)
    tuned = dataclasses.replace(loaded(leaves(seed)), provenance=after)
    vectors.append(algebra.diff(tuned, start))
  write("initial.safetensors", start)
  write("v.safetensors", vectors[0])
  merged = merge.merge(vectors, "ties", [1.0, 0.7], options={"density": 0.5})
  write("m.safetensors", merged)


def _make_bundle() -> None:
  """The runs of two tasks, one of which states its scores and its data's licence."""
  from tpv_jax.core import identity
  from tpv_jax.formats import bundles

  initial, after, _ = tuned()
  prompts = {"best": after, "last": after, "initial": initial}
  manifest = {
    "status": "finished",
    "subject": {"recipe": {"labels": {"0": "bad", "1": "good"}}},
    "best_digest": identity.prompt_digest(after.leaves),
  }
  hits = {"exact_match": "0110", "label_accuracy": "1110"}
  measured = bundles.Measured("0" * 64, hits)
  metrics = '{"step": 1, "kind": "train", "loss": 2.0}\n'
  runs = [
    bundles.Bundled("sst2-0", prompts, manifest, metrics, measured, "MIT"),
    bundles.Bundled("sst2-1", prompts, manifest, ""),
  ]
  bundles.write("b.safetensors", runs)


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


def _check_unpacked() -> None:
  """Reads the runs and vectors that were taken out of a bundle."""
  from tpv_jax.formats import sources

  for path in [
    *pathlib.Path().glob("out/runs/*"),
    *pathlib.Path().glob("out/vectors/*"),
  ]:
    for leaf in sources.load(path).leaves.values():
      assert np.isfinite(leaf).all(), path


_SIGNED = functools.partial(mutations.damage, own=(".safetensors",))
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
  "merged vectors": Kind(
    _make_merged,
    _reads(
      "m.safetensors",
      "merge m.safetensors v.safetensors --rule ties --density 0.5 -o out.safetensors",
      "merge m.safetensors v.safetensors --rule slerp --t 0.3 -o out.safetensors",
      "sum m.safetensors v.safetensors -w 0.5 1 -o out.safetensors",
      "apply m.safetensors initial.safetensors -o out.safetensors",
      "scale m.safetensors 0.5 -o out.safetensors",
      "negate m.safetensors -o out.safetensors",
      "nearest m.safetensors .",
      "nearest v.safetensors . --by dot --json",
      "conflicts m.safetensors v.safetensors",
      "group m.safetensors v.safetensors -k 2 --json",
    ),
    functools.partial(mutations.damage, kept=("v.", "initial."), own=(".safetensors",)),
    _OUT,
    _check_written,
  ),
  "bundle of prompts": Kind(
    _make_bundle,
    tpv.one_of(
      "prompts list --file b.safetensors",
      "prompts list --file b.safetensors --json",
      "prompts unpack --file b.safetensors -o out",
      "prompts unpack sst2-1 --file b.safetensors -o out",
      "show b.safetensors",
    ),
    _SIGNED,
    _OUT,
    _check_unpacked,
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

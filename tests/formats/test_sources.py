"""Loading from run folders, Orbax checkpoints and files."""

import dataclasses
import hashlib
import json
import logging
import os
import re
import shutil
import subprocess
import sys

import jax.numpy as jnp
import numpy as np
import orbax.checkpoint as ocp
import pytest

from tpv_jax import cli
from tpv_jax.core import identity
from tpv_jax.core.errors import UserError
from tpv_jax.formats import sources
from tpv_jax.io import safetensors
from tpv_jax.vectors import algebra, store
from tpv_jax.vectors.provenance import Provenance, Term

logging.getLogger("absl").setLevel(logging.ERROR)


def save_checkpoint(path, prompt):
  """Writes what T5X and the standalone runner write, by Orbax itself."""
  leaves = prompt if isinstance(prompt, dict) else {"prompt": prompt}
  tree = {
    "target": {"prompt": leaves},
    "state": {"step": np.int32(7), "param_states": {"prompt": {"m": leaves}}},
  }
  with ocp.Checkpointer(ocp.PyTreeCheckpointHandler()) as checkpointer:
    checkpointer.save((path / "state").absolute(), args=ocp.args.PyTreeSave(tree))
  return path


def test_a_run_folder_means_its_best_prompt_unless_another_is_asked_for(make_run):
  run = make_run("run")
  for which in ("best", "last", "initial"):
    leaves, known = store.read(run / f"{which}_prompt.safetensors")
    loaded = sources.load(run, which)
    np.testing.assert_array_equal(loaded.leaves["prompt"], leaves["prompt"])
    assert loaded.provenance == known
  assert sources.load(run).leaves["prompt"].tobytes() == (
    sources.load(run, "best").leaves["prompt"].tobytes()
  )
  assert sources.load(run).provenance.terms == (Term("sst2", 1.0),)
  assert sources.load(run, "initial").provenance.terms == ()


def test_a_vector_of_an_unfinished_run_says_so(make_run, tmp_path, capsys):
  run = make_run("run")
  assert sources.load(run).provenance.notes == ()
  (run / "manifest.json").write_text('{"status": "running"}')
  output = str(tmp_path / "v.safetensors")
  assert cli.main(["diff", str(run), "-o", output]) == 0
  note = "its run had not finished when it was read (its status is 'running')"
  assert f"note: {note}." in capsys.readouterr().out
  assert note in store.read(output)[1].notes
  assert sources.load(run, "initial").provenance.notes == ()


def test_a_run_without_that_prompt_says_which_it_has(make_run):
  run = make_run("run", which=("initial", "last"))
  expected = (
    r"has no best prompt \(its status is 'finished'\)\. It has the last and the initial "
    "prompt: pass which='last'"
  )
  with pytest.raises(UserError, match=expected):
    sources.load(run)
  with pytest.raises(UserError, match="continue the run that was stopped"):
    sources.load(make_run("new", which=()))


def test_a_prompt_of_a_run_must_be_whole(make_run):
  run = make_run("run")
  os.truncate(run / "best_prompt.safetensors", 900)
  with pytest.raises(UserError, match=r"best_prompt.safetensors' (was|is) truncated"):
    sources.load(run)


def test_a_file_is_what_it_says_it_is_and_refuses_which(make_run, tmp_path):
  loaded = sources.load(make_run("run"))
  known = Provenance(kind="vector", terms=(Term("a", -2.0),))
  store.write(tmp_path / "v.safetensors", loaded.leaves, known)
  assert sources.load(tmp_path / "v.safetensors").provenance == known
  for which in ("last", "initial"):
    assert sources.load_any(tmp_path / "v.safetensors", which).provenance == known
    with pytest.raises(
      UserError, match=rf"which='{which}' says .*safetensors' is none"
    ):
      sources.load(tmp_path / "v.safetensors", which)
  with pytest.raises(
    UserError, match=r"'worst' is no prompt of a run\. Choose best or last or initial"
  ):
    sources.load(tmp_path / "v.safetensors", "worst")


def test_an_orbax_checkpoint_is_a_prompt_of_unknown_origin(tmp_path):
  prompt = np.random.default_rng(0).normal(size=(4, 6)).astype(np.float32)
  path = save_checkpoint(tmp_path / "model" / "checkpoint_500", prompt)
  for given in (path, path / "state"):
    loaded = sources.load(given)
    np.testing.assert_array_equal(loaded.leaves["prompt"], prompt)
    terms = (Term(None, 1.0),)
    assert loaded.provenance == Provenance(kind="prompt", terms=terms, steps=500)


def test_a_bf16_checkpoint_is_widened_to_fp32(tmp_path):
  prompt = jnp.asarray([[1.5, -2.0, 0.1]], "bfloat16")
  loaded = sources.load(save_checkpoint(tmp_path / "checkpoint_1", prompt))
  assert loaded.leaves["prompt"].dtype == np.float32
  np.testing.assert_array_equal(
    loaded.leaves["prompt"], np.asarray(prompt).astype(np.float32)
  )


def test_a_checkpoint_with_nan_or_whole_numbers_is_refused(tmp_path):
  broken = save_checkpoint(tmp_path / "checkpoint_1", np.float32([[1, np.nan]]))
  with pytest.raises(UserError, match=r"checkpoint_1: prompt' holds 1 values.*NaN"):
    sources.load(broken)
  whole = save_checkpoint(tmp_path / "checkpoint_2", np.int32([[1, 2]]))
  with pytest.raises(UserError, match=r"checkpoint_2' is int32"):
    sources.load(whole)


def test_a_checkpoint_inside_a_run_knows_what_the_run_knows(make_run):
  run = make_run("run", seed=3)
  initial = sources.load(run, "initial")
  tuned = initial.leaves["prompt"] + np.float32(1)
  loaded = sources.load(save_checkpoint(run / "checkpoints" / "checkpoint_120", tuned))
  known = loaded.provenance
  assert known.terms == (Term("sst2", 1.0),)
  assert known.steps == 120
  assert known.initial_digest == identity.prompt_digest(initial.leaves)
  assert known.backbone_name == "tiny"
  vector = algebra.diff(loaded, initial)
  np.testing.assert_allclose(vector.leaves["prompt"], 1, atol=2**-22)


def test_the_first_checkpoint_of_a_run_is_its_initial_prompt(make_run):
  run = make_run("run")
  initial = sources.load(run, "initial").leaves["prompt"]
  path = save_checkpoint(run / "checkpoints" / "checkpoint_0", initial)
  known = sources.load(path).provenance
  assert (known.terms, known.steps) == ((), 0)


def test_a_checkpoint_inside_an_ept_run_knows_its_space_and_alpha(make_run):
  run = make_run("run", seed=3, method="ept")
  start = sources.load(run, "initial")
  tuned = {name: leaf + np.float32(0.25) for name, leaf in start.leaves.items()}
  loaded = sources.load(save_checkpoint(run / "checkpoints" / "checkpoint_120", tuned))
  assert loaded.leaves["fusion_gamma"].shape == ()
  known = loaded.provenance
  assert known == dataclasses.replace(
    sources.load(run, "last").provenance, terms=(Term("sst2", 1.0),), steps=120
  )
  assert (known.method, known.space, known.alpha) == ("ept", "factor", 8.0)
  vector = algebra.diff(loaded, start)
  assert vector.provenance.initial_digest == start.provenance.initial_folded_digest
  factors = algebra.diff(loaded, start, space="factor")
  for name, leaf in factors.leaves.items():
    np.testing.assert_allclose(leaf, 0.25, atol=2**-22, err_msg=name)
  path = save_checkpoint(run / "checkpoints" / "checkpoint_0", dict(start.leaves))
  assert sources.load(path).provenance.terms == ()


def states(folder, **fields):
  """Adds fields to the manifest of the run in a folder."""
  path = folder / "manifest.json"
  path.write_text(json.dumps(json.loads(path.read_text()) | fields))


def test_a_prompt_that_the_manifest_of_its_run_does_not_state_is_refused(make_run):
  run, other = make_run("run"), make_run("other", task="rte", change=2)
  for which in sources.WHICH:
    digest = identity.prompt_digest(sources.load(run, which).leaves)
    states(run, **{f"{which}_digest": digest})
    assert sources.load(run, which).provenance.backbone_name == "tiny"
  foreign = run / "best_prompt.safetensors"
  shutil.copy(other / foreign.name, foreign)
  with pytest.raises(UserError, match=r"is not the best prompt of its run: .* states"):
    sources.load(run)
  assert sources.load(foreign).provenance.terms == (Term("rte", 1.0),)


def save_as(run, step, prompt, stated):
  """Writes a checkpoint into a run's folder that states a run."""
  path = save_checkpoint(run / "checkpoints" / f"checkpoint_{step}", prompt)
  about = {"custom_metadata": {"run": stated}}
  (path / "_CHECKPOINT_METADATA").write_text(json.dumps(about))
  return path


def test_a_checkpoint_that_states_another_run_gets_none_of_its_provenance(make_run):
  run = make_run("run")
  last = sources.load(run, "last").leaves["prompt"]
  own, foreign = (
    save_as(run, step, last, stated) for step, stated in ((1, "aa"), (2, "bb"))
  )
  states(run, run="aa")
  assert sources.load(own).provenance.terms == (Term("sst2", 1.0),)
  with pytest.raises(UserError, match=r"checkpoint_2' lies in .*the run bb…"):
    sources.load(foreign)


@pytest.mark.parametrize(
  ("prompt", "why"),
  [
    (np.ones((4, 8), np.float32), r"its prompt is \(4, 8\)"),
    (np.ones((4, 6), np.float32), "the last prompt of its step is another one"),
  ],
)
def test_a_checkpoint_that_contradicts_its_run_gets_none_of_its_provenance(
  make_run, prompt, why
):
  run = make_run("run")
  path = save_checkpoint(run / "checkpoints" / "checkpoint_250", prompt)
  with pytest.raises(UserError, match=why):
    sources.load(path)


@pytest.mark.parametrize(
  ("dropped", "method"),
  [
    ("nothing", "ept"),
    ("gate_|space_", "ept"),
    ("fusion_", "ept"),
    ("gate_|fusion_|space_", "dept"),
  ],
)
def test_a_foreign_checkpoint_of_ept_is_parameters_of_an_unknown_alpha(
  ept_initial, tmp_path, dropped, method
):
  leaves = {
    name: leaf
    for name, leaf in ept_initial(0).leaves.items()
    if not re.match(dropped, name)
  }
  loaded = sources.load(save_checkpoint(tmp_path / "checkpoint_5", leaves))
  assert loaded.provenance == Provenance(
    kind="prompt",
    terms=(Term(None, 1.0),),
    steps=5,
    method=method,
    space="factor",
    alpha=None,
  )
  with pytest.raises(UserError, match=r"does not state their alpha.*--alpha"):
    algebra.fold(loaded)


def test_the_run_of_a_path_is_found(make_run, tmp_path):
  run = make_run("run")
  checkpoint = save_checkpoint(
    run / "checkpoints" / "checkpoint_3", np.ones((1, 2), np.float32)
  )
  for path in (run, checkpoint, checkpoint / "state", run / "best_prompt.safetensors"):
    assert sources.run_of(path) == run
  (run / "my_vectors").mkdir()
  for path in (tmp_path, run / "my_vectors" / "v.safetensors", tmp_path / "none"):
    assert sources.run_of(path) is None


def test_a_model_folder_says_which_checkpoints_it_holds(tmp_path):
  for step in (0, 20, 100):
    save_checkpoint(tmp_path / f"checkpoint_{step}", np.ones((1, 2), np.float32))
  expected = r"\(checkpoint_0, checkpoint_20, checkpoint_100\).*'.*checkpoint_100'"
  with pytest.raises(UserError, match=expected):
    sources.load(tmp_path)


def test_a_folder_of_runs_says_so(make_run, tmp_path):
  make_run("sst2")
  make_run("rte")
  with pytest.raises(UserError, match=r"is no run folder.*It holds rte, sst2: give"):
    sources.load(tmp_path)


def test_folders_with_nothing_usable_are_refused(tmp_path):
  (tmp_path / "empty").mkdir()
  with pytest.raises(UserError, match="is an empty folder"):
    sources.load(tmp_path / "empty")
  (tmp_path / "other").mkdir()
  (tmp_path / "other" / "x.txt").write_text("x")
  with pytest.raises(
    UserError, match="no run folder, Orbax checkpoint or PEFT adapter"
  ):
    sources.load(tmp_path / "other")
  (tmp_path / "legacy").mkdir()
  (tmp_path / "legacy" / "checkpoint").write_bytes(b"\x83")
  with pytest.raises(UserError, match="is truncated or damaged"):
    sources.load(tmp_path / "legacy")


def test_a_missing_path_names_its_near_misses(make_run):
  run = make_run("sst2")
  with pytest.raises(UserError, match=r"sst' does not exist. Did you mean 'sst2'"):
    sources.load(run.with_name("sst"))


def test_a_manifest_that_is_no_json_does_not_hide_the_reason(make_run):
  run = make_run("run", which=("initial",))
  for text in ("{", "[]", json.dumps({"task": "x"})):
    (run / "manifest.json").write_text(text)
    with pytest.raises(UserError, match=r"has no best prompt\. It has the initial"):
      sources.load(run)


def test_reading_files_and_runs_imports_no_jax(make_run):
  code = (
    "import sys; from tpv_jax.formats import sources; sources.load(sys.argv[1])\n"
    "print({'jax', 'orbax', 'flax', 'tensorflow'} & set(sys.modules))"
  )
  result = subprocess.run(
    [sys.executable, "-c", code, make_run("run")],
    capture_output=True,
    text=True,
    check=True,
  )
  assert result.stdout == "set()\n"


@pytest.mark.parametrize(
  ("leaves", "known", "expected"),
  [
    ({"x": (4, 6)}, {}, r"is no prompt: it holds x \[4, 6\]"),
    ({"prompt": (4, 6), "x": (1,)}, {}, r"it holds prompt \[4, 6\], x \[1\]"),
    ({"prompt": (4, 6), "delta": (3, 5)}, {}, r"it holds delta \[3, 5\], prompt"),
    ({"prompt": (4,)}, {}, r"it holds prompt \[4\]"),
  ],
)
def test_a_file_of_ours_with_other_leaves_than_it_states_is_refused(
  tmp_path, leaves, known, expected
):
  path = tmp_path / "x.safetensors"
  made = {name: np.ones(shape, np.float32) for name, shape in leaves.items()}
  store.write(path, made, Provenance(kind="prompt", **known))
  with pytest.raises(UserError, match=expected):
    sources.load(path)


def test_a_file_of_ours_whose_provenance_nests_too_deeply_is_refused(tmp_path):
  path = tmp_path / "x.safetensors"
  store.write(path, {"prompt": np.ones((2, 3), np.float32)}, Provenance(kind="prompt"))
  metadata, leaves = safetensors.read(path)
  metadata["provenance"] = '{"x":' + "[" * 100_000 + "]" * 100_000 + "}"
  metadata["content_digest"] = "0" * 64
  content = bytearray(safetensors.encode(leaves, metadata))
  digest = hashlib.sha256(content).hexdigest().encode()
  path.write_bytes(bytes(content).replace(b"0" * 64, digest, 1))
  with pytest.raises(
    UserError, match=r"cannot be read by tpv_jax .* nested too deeply"
  ):
    sources.load(path)


def test_a_file_of_ours_longer_than_any_prompt_is_refused_unread(tmp_path):
  path = tmp_path / "x.safetensors"
  store.write(path, {"prompt": np.ones((2, 3), np.float32)}, Provenance(kind="prompt"))
  with open(path, "ab") as file:
    file.truncate(1 << 33)
  with pytest.raises(UserError, match=r"has 8589934592 bytes, and no prompt or"):
    sources.load(path)


def test_what_google_prompt_tuning_saves_is_read(tmp_path):
  # `Checkpointer.save_numpy` of google-research/prompt-tuning: no ending.
  values = np.random.default_rng(0).normal(size=(5, 6)).astype(np.float32)
  folder = tmp_path / "numpy_checkpoints" / "checkpoint_1150000"
  folder.mkdir(parents=True)
  with open(folder / "encoder.prompt.prompt.prompt", "wb") as file:
    np.save(file, values)
  for path in (folder, folder / "encoder.prompt.prompt.prompt"):
    loaded = sources.load(path)
    np.testing.assert_array_equal(loaded.leaves["prompt"], values)
    assert loaded.provenance.method == "plain"
  with open(folder / "encoder.task_prompts", "wb") as file:
    np.save(file, np.stack([values] * 3))
  with pytest.raises(UserError, match=r"It holds encoder.prompt.prompt.prompt, "):
    sources.load(folder)
  with pytest.raises(UserError, match=r"checkpoint_1150000"):
    sources.load(tmp_path / "numpy_checkpoints")


@pytest.mark.parametrize("nested", [True, False])
def test_the_prompt_inside_of_an_encoder_is_read(tmp_path, nested):
  # Where google-research/prompt-tuning keeps it under T5X.
  values = np.random.default_rng(0).normal(size=(5, 6)).astype(np.float32)
  prompt = {"prompt": {"prompt": values}} if nested else {"prompt": values}
  encoder = {"prompt": prompt, "encoder_norm": {"scale": np.ones(6, np.float32)}}
  path = tmp_path / "checkpoint_1150000"
  with ocp.Checkpointer(ocp.PyTreeCheckpointHandler()) as checkpointer:
    tree = {"target": {"encoder": encoder}, "state": {"step": np.int32(1)}}
    checkpointer.save((path / "state").absolute(), args=ocp.args.PyTreeSave(tree))
  loaded = sources.load(path)
  np.testing.assert_array_equal(loaded.leaves["prompt"], values)
  assert loaded.provenance.steps is None  # It counts those of pre-training, too.

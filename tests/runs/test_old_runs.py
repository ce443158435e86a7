"""What earlier code wrote goes on with today's, to the result that it had then."""

import json
import pathlib
import shutil
import sys

import numpy as np
import pytest

from tpv_jax.core.errors import UserError
from tpv_jax.runs.run_folder import RunFolder
from tpv_jax.vectors import store

FIXTURES = pathlib.Path(__file__).parents[1] / "fixtures"
sys.path.append(str(FIXTURES))

import write_runs  # noqa: E402

WRITERS = {
  "runs": write_runs.Runs(),
  "v0_1_0/runs": write_runs.TinyRuns(FIXTURES / "v0_1_0/backbone/ours.safetensors"),
}
"""What wrote each folder, and goes on with a copy of it."""

TOLERANCES = {"runs": (5e-3, 1e-2), "v0_1_0/runs": (1e-5, 1e-5)}
"""Of prompts and metrics, by folder. The same bits where the one was written; another
processor or JAX rounds otherwise, and a few steps of AdamW at 0.3 make some 1e-4 of it.
In the later runs a step is smooth in the gradient (see `TinyRuns`): six of them make 3e-7
of it, with SSE4.2 in place of AVX-512 and with jax 0.12 in place of 0.10."""


@pytest.fixture(params=WRITERS)
def folder(request):
  return request.param


@pytest.fixture
def runs(folder, tmp_path):
  return pathlib.Path(shutil.copytree(FIXTURES / folder, tmp_path / "runs"))


@pytest.fixture
def writer(folder):
  return WRITERS[folder]


def ended_alike(resumed, unbroken, folder):
  """Asserts that two runs ended with the same prompts and metrics, see `TOLERANCES`."""
  of_prompts, of_metrics = TOLERANCES[folder]
  assert RunFolder(resumed).manifest()["status"] == "finished"
  for which in ("initial", "last", "best"):
    mine, made = store.read(RunFolder(resumed).prompt(which))
    then, known = store.read(RunFolder(unbroken).prompt(which))
    assert mine.keys() == then.keys()
    for name, leaf in then.items():
      np.testing.assert_allclose(
        mine[name], leaf, rtol=of_prompts, atol=of_prompts, err_msg=f"{which} {name}"
      )
    assert (made.terms, made.steps) == (known.terms, known.steps)
    assert made.initial_digest == known.initial_digest
  lines = [RunFolder(path).metrics() for path in (resumed, unbroken)]
  for one, other in zip(*lines, strict=True):
    assert one.pop("kind") == other.pop("kind")
    assert one == pytest.approx(other, rel=of_metrics)


@pytest.mark.parametrize(
  ("folder", "method"),
  [
    ("runs", "plain"),
    pytest.param("runs", "ept", marks=pytest.mark.slow),
    ("v0_1_0/runs", "plain"),
    pytest.param("v0_1_0/runs", "dept", marks=pytest.mark.slow),
    ("v0_1_0/runs", "ept"),
  ],
)
def test_a_stopped_run_goes_on_and_ends_as_it_would_have(runs, writer, folder, method):
  writer.train(runs / f"{method}_stopped", method)
  ended_alike(runs / f"{method}_stopped", runs / f"{method}_finished", folder)
  manifest = RunFolder(runs / f"{method}_stopped").manifest()
  assert manifest["settings_version"] == 2
  assert len(manifest["run"]) == 64


@pytest.mark.parametrize(
  "folder", [pytest.param("runs", marks=pytest.mark.slow), "v0_1_0/runs"]
)
def test_a_stopped_bank_goes_on_and_ends_as_it_would_have(runs, writer, folder):
  writer.train_bank(runs / "bank_stopped")
  for name in ("run-0", "run-1"):
    ended_alike(runs / "bank_stopped" / name, runs / "bank_finished" / name, folder)


def test_finished_runs_and_a_bank_are_left_as_they_are(runs, writer):
  before = {p: p.stat().st_mtime_ns for p in runs.rglob("*") if p.is_file()}
  for method in writer.methods:
    assert writer.train(runs / f"{method}_finished", method)["last_step"] == 12
  writer.train_bank(runs / "bank_finished")
  assert {p: p.stat().st_mtime_ns for p in runs.rglob("*") if p.is_file()} == before


@pytest.mark.parametrize(
  ("change", "message"),
  [
    ({"total_steps": 11}, "another total_steps: 12 there, 11 now"),
    ({"initial_seed": 1}, "another initial_seed: 0 there, 1 now"),
    ({"data": 1}, "another data/seed: 0 there, 1 now"),
    ({"best_metric": "accuracy"}, "another best_metric: loss there, accuracy now"),
  ],
)
def test_an_old_run_with_other_settings_is_refused_by_name(
  runs, writer, change, message
):
  before = (runs / "plain_stopped" / "manifest.json").read_bytes()
  if "data" in change:
    change = {"data": writer.data(change["data"])}
  with pytest.raises(UserError, match=message):
    writer.train(runs / "plain_stopped", "plain", **change)
  assert (runs / "plain_stopped" / "manifest.json").read_bytes() == before


def test_an_old_bank_of_another_size_is_refused(runs, writer):
  with pytest.raises(UserError, match="another size: 2 there, 1 now"):
    writer.train_bank(runs / "bank_stopped", size=1)


@pytest.mark.parametrize(
  ("folder", "message"),
  [
    ("runs", "checkpoint_6' is not of this run: .*last_prompt"),
    ("v0_1_0/runs", "checkpoint_6' is not of this run: it states the run"),
  ],
)
def test_a_checkpoint_of_another_run_in_an_old_folder_is_refused(runs, writer, message):
  """The older ones state no run; their prompts lie beside them."""
  stopped, other = (runs / name for name in ("plain_stopped", "bank_stopped/run-1"))
  checkpoint = stopped / "checkpoints" / "checkpoint_6"
  shutil.rmtree(checkpoint)
  shutil.copytree(other / "checkpoints" / "checkpoint_6", checkpoint)
  with pytest.raises(UserError, match=message):
    writer.train(stopped, "plain")


def test_the_list_of_an_old_bank_under_t5x_is_that_of_today(runs):
  from tpv_jax.t5x import saving

  there = saving.read_members(str(runs / "t5x_bank"))
  assert there == json.loads(json.dumps(saving.described(write_runs.members())))

"""What earlier code wrote goes on with today's, to the result that it had then."""

import json
import pathlib
import shutil
import sys

import numpy as np
import pytest

from tpv_jax.errors import UserError
from tpv_jax.runner.run_folder import RunFolder
from tpv_jax.vectors import store

FIXTURES = pathlib.Path(__file__).parents[1] / "fixtures"
sys.path.append(str(FIXTURES))

import write_runs  # noqa: E402


@pytest.fixture
def runs(tmp_path):
  return pathlib.Path(shutil.copytree(FIXTURES / "runs", tmp_path / "runs"))


def ended_alike(resumed, unbroken):
  """Asserts that two runs ended with the same prompts and metrics.

  The same bits where the one was written; another processor or JAX rounds otherwise, and
  a few steps of AdamW at 0.3 make some 1e-4 of it.
  """
  assert RunFolder(resumed).manifest()["status"] == "finished"
  for which in ("initial", "last", "best"):
    mine, made = store.read(RunFolder(resumed).prompt(which))
    then, known = store.read(RunFolder(unbroken).prompt(which))
    for name, leaf in then.items():
      np.testing.assert_allclose(mine[name], leaf, rtol=5e-3, atol=5e-3)
    assert (made.terms, made.steps) == (known.terms, known.steps)
    assert made.initial_digest == known.initial_digest
  lines = [RunFolder(path).metrics() for path in (resumed, unbroken)]
  for one, other in zip(*lines, strict=True):
    assert one.pop("kind") == other.pop("kind")
    assert one == pytest.approx(other, rel=1e-2)


@pytest.mark.parametrize(
  "method", ["plain", pytest.param("ept", marks=pytest.mark.slow)]
)
def test_a_stopped_run_goes_on_and_ends_as_it_would_have(runs, method):
  write_runs.train(runs / f"{method}_stopped", method)
  ended_alike(runs / f"{method}_stopped", runs / f"{method}_finished")
  manifest = RunFolder(runs / f"{method}_stopped").manifest()
  assert manifest["settings_version"] == 2 and len(manifest["run"]) == 64


@pytest.mark.slow
def test_a_stopped_bank_goes_on_and_ends_as_it_would_have(runs):
  write_runs.train_bank(runs / "bank_stopped")
  for name in ("run-0", "run-1"):
    ended_alike(runs / "bank_stopped" / name, runs / "bank_finished" / name)


def test_a_finished_run_and_bank_are_left_as_they_are(runs):
  before = {p: p.stat().st_mtime_ns for p in runs.rglob("*") if p.is_file()}
  assert write_runs.train(runs / "plain_finished", "plain")["last_step"] == 12
  write_runs.train_bank(runs / "bank_finished")
  assert {p: p.stat().st_mtime_ns for p in runs.rglob("*") if p.is_file()} == before


@pytest.mark.parametrize(
  ("change", "message"),
  [
    ({"total_steps": 13}, "another total_steps: 12 there, 13 now"),
    ({"initial_seed": 1}, "another initial_seed: 0 there, 1 now"),
    ({"data": write_runs.data(seed=1)}, "another data/seed: 0 there, 1 now"),
    ({"best_metric": "accuracy"}, "another best_metric: loss there, accuracy now"),
  ],
)
def test_an_old_run_with_other_settings_is_refused_by_name(runs, change, message):
  before = (runs / "plain_stopped" / "manifest.json").read_bytes()
  with pytest.raises(UserError, match=message):
    write_runs.train(runs / "plain_stopped", "plain", **change)
  assert (runs / "plain_stopped" / "manifest.json").read_bytes() == before


def test_an_old_bank_of_another_size_is_refused(runs):
  with pytest.raises(UserError, match="another size: 2 there, 1 now"):
    write_runs.train_bank(runs / "bank_stopped", size=1)


def test_a_checkpoint_of_another_run_in_an_old_folder_is_refused(runs):
  """It states no run; its prompts lie beside it."""
  stopped, other = (runs / name for name in ("plain_stopped", "bank_stopped/run-1"))
  checkpoint = stopped / "checkpoints" / "checkpoint_6"
  shutil.rmtree(checkpoint)
  shutil.copytree(other / "checkpoints" / "checkpoint_6", checkpoint)
  with pytest.raises(
    UserError, match=r"checkpoint_6' is not of this run: .*last_prompt"
  ):
    write_runs.train(stopped, "plain")


def test_the_list_of_an_old_bank_under_t5x_is_that_of_today(runs):
  from tpv_jax.t5x import saving

  there = saving.read_members(str(runs / "t5x_bank"))
  assert there == json.loads(json.dumps(saving.described(write_runs.members())))

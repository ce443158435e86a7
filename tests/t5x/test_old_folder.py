"""A model folder that T5X wrote with an earlier version is read, and goes on, alike."""

import json
import pathlib
import shutil
import sys

import numpy as np
import pytest

from tpv_jax import cli
from tpv_jax.core.errors import UserError
from tpv_jax.io import orbax
from tpv_jax.t5x import saving
from tpv_jax.vectors import store

FIXTURES = pathlib.Path(__file__).parents[1] / "fixtures"
sys.path.append(str(FIXTURES))

import write_t5x  # noqa: E402

FOLDER = FIXTURES / "v0_1_0" / "t5x"
KILLED = FOLDER / "killed"

TOLERANCE = 1e-5
"""Of what goes on. The same bits where it was written; the steps are smooth in the
gradient (see `write_runs.TinyRuns`), so another processor's rounding stays what it is."""


def stored(name):
  """Returns the leaves that reading gave then, by the name that `write_t5x` gave them."""
  with np.load(FOLDER / "expected.npz", allow_pickle=False) as file:
    return {
      key.removeprefix(f"{name}/"): file[key]
      for key in file
      if key.startswith(f"{name}/")
    }


def provenance(name):
  return json.loads((FOLDER / "expected.json").read_text())[name]


def as_then(known):
  """Returns a provenance as JSON without what is stated since 0.2.0."""
  return {key: one for key, one in known.to_json().items() if key != "initial_norm"}


def assert_same_bits(leaves, others):
  assert leaves.keys() == others.keys()
  for name, leaf in others.items():
    assert (leaves[name].dtype, leaves[name].shape) == (leaf.dtype, leaf.shape), name
    assert leaves[name].tobytes() == leaf.tobytes(), name


def test_its_prompts_checkpoint_and_vector_are_read_bit_by_bit():
  found = write_t5x.read(KILLED)
  assert set(found) == set(json.loads((FOLDER / "expected.json").read_text()))
  for name, item in found.items():
    assert_same_bits(item.leaves, stored(name))
    assert as_then(item.provenance) == provenance(name), name


def test_the_state_of_its_optimizer_is_read_bit_by_bit():
  assert_same_bits(write_t5x.state(KILLED), stored("state"))
  steps = [path.name for path in orbax.checkpoints_in(KILLED)]
  assert steps == ["checkpoint_0", "checkpoint_20"]
  assert orbax.run_of_checkpoint(KILLED / steps[-1]) is None


def test_saving_knows_it_as_the_run_that_it_is_and_as_no_other():
  folder = str(KILLED)
  start, last = stored("initial"), stored("last")
  known = saving.read_provenance(folder, saving.INITIAL)
  assert known.to_json() == provenance("initial")
  saving.check_folders(folder, "sentiment", None)
  saving.check_start(folder, known)
  saving.check_saved(folder, write_t5x.KILLED_AT, last)
  with pytest.raises(UserError, match=r"of sentiment, and this run trains topic"):
    saving.check_folders(folder, "topic", None)
  with pytest.raises(UserError, match="checkpoint of step 20 holds the prompt"):
    saving.check_saved(folder, write_t5x.KILLED_AT, start)
  assert saving.read_members(folder) is None


def test_tpv_makes_the_vector_of_then(tmp_path):
  made = tmp_path / "vector.safetensors"
  assert cli.main(["diff", str(KILLED), "-o", str(made)]) == 0
  leaves, known = store.read(made)
  assert_same_bits(leaves, stored("vector"))
  assert as_then(known) == provenance("vector")


@pytest.mark.slow
@pytest.mark.usefixtures("t5x")
def test_it_goes_on_to_the_prompts_of_the_run_that_was_not_killed(tmp_path):
  shutil.copytree(KILLED, tmp_path / "killed")
  write_t5x.finish(tmp_path, "killed", tmp_path / "log")
  for name in (
    saving.INITIAL,
    saving.BEST,
    saving.LAST,
    "prompts/prompt_40.safetensors",
  ):
    leaves, known = store.read(tmp_path / "killed" / name)
    then, expected = store.read(FOLDER / "finished" / name)
    assert (known.terms, known.steps) == (expected.terms, expected.steps)
    assert known.initial_digest == expected.initial_digest
    np.testing.assert_allclose(
      leaves["prompt"], then["prompt"], rtol=0, atol=TOLERANCE, err_msg=name
    )

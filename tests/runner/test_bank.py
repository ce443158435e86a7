"""A bank's run folders are those of solo runs, whatever happens to the bank on the way."""

import functools
import json
import pathlib
import subprocess
import sys

import numpy as np
import pytest

from tpv_jax import train_bank
from tpv_jax.errors import UserError
from tpv_jax.prompts import initial
from tpv_jax.runner import bank
from tpv_jax.runner.run_folder import RunFolder
from tpv_jax.runner.task_data import TaskData
from tpv_jax.vectors import sources

COUNT = 3
START = functools.partial(initial.sampled_vocabulary, length=4)


def entries(tiny, folder, rates=(1.0, 0.5, 1.0)):
  return [
    bank.Entry(
      TaskData(tiny.task, tiny.vocabulary, tiny.lengths, 8, seed=number),
      folder / f"run-{number}",
      initial_seed=number,
      seed=number,
      rate=rates[number],
    )
    for number in range(COUNT)
  ]


def train(tiny, folder, made=None, **settings):
  defaults = {
    "total_steps": 20,
    "learning_rate": tiny.schedule,
    "backbone": tiny.backbone,
    "initial_prompt": START,
    "eval_period": 10,
    "log_period": 5,
    "progress": False,
  }
  return bank.train_bank(
    tiny.plain_model, made or entries(tiny, folder), **(defaults | settings)
  )


@pytest.fixture(scope="module")
def finished(tiny, tmp_path_factory):
  folder = tmp_path_factory.mktemp("bank")
  return folder, train(tiny, folder)


def leaves(run, which):
  return sources.load(run, which).leaves["prompt"]


def test_each_folder_is_that_of_a_solo_run(tiny, finished, tmp_path):
  folder, manifests = finished
  entry = entries(tiny, folder)[1]
  tiny.train(
    tmp_path / "solo",
    data=entry.data,
    initial_seed=1,
    seed=1,
    learning_rate=lambda step: 0.5 * tiny.schedule(step),
  )
  mine, solo = (RunFolder(path) for path in (folder / "run-1", tmp_path / "solo"))
  assert mine.manifest()["settings"] == solo.manifest()["settings"]
  assert manifests[1]["status"] == "finished"

  def names(run):
    found = {path.name for path in run.path.iterdir()}
    # gin's text was given to neither; the time is in the name of the event file.
    return {name for name in found if not name.startswith("events")}

  assert names(mine) == names(solo)
  for which in ("initial", "best", "last"):
    # fp32 sums in another order, 20 steps of AdamW at 0.15.
    np.testing.assert_allclose(
      leaves(mine.path, which), leaves(solo.path, which), rtol=1e-3, atol=1e-3
    )
    assert (
      sources.load(mine.path, which).provenance
      == sources.load(solo.path, which).provenance
    )
  for one, other in zip(mine.metrics(), solo.metrics(), strict=True):
    assert one.keys() == other.keys()
    assert one.pop("kind") == other.pop("kind")
    assert one == pytest.approx(other, rel=1e-2, abs=1e-3)


def test_prompts_of_different_seeds_are_not_the_same(finished):
  folder, _ = finished
  assert (
    np.abs(leaves(folder / "run-0", "last") - leaves(folder / "run-2", "last")).max()
    > 0.1
  )


def test_a_finished_bank_is_left_as_it_is(tiny, finished, capsys):
  folder, manifests = finished
  before = {p: p.stat().st_mtime_ns for p in folder.rglob("*") if p.is_file()}
  assert train(tiny, folder) == json.loads(json.dumps(manifests))
  assert "All 3 prompts are finished" in "".join(capsys.readouterr())
  assert {p: p.stat().st_mtime_ns for p in folder.rglob("*") if p.is_file()} == before


def test_a_bank_that_is_split_gives_prompts_of_the_same_quality(
  tiny, finished, tmp_path
):
  folder, _ = finished
  train(tiny, tmp_path, size=2)
  for number in range(COUNT):
    split, whole = (
      leaves(path / f"run-{number}", "last") for path in (tmp_path, folder)
    )
    # fp32 sums in another order: 1e-6 of two prompts. The first has gradients as small as
    # Adam's eps, which decide on the size of its first step: 0.4% of its norm.
    assert np.linalg.norm(split - whole) < (1e-2, 1e-5, 1e-5)[number] * np.linalg.norm(
      whole
    )


KILLED = """
import os, pathlib, sys
sys.path[:0] = sys.argv[4:]
from conftest import Tiny
import test_bank
from tpv_jax.runner import training
save, count = training.Run.save, 0
def counted(self, state, best):
  global count
  save(self, state, best)
  count += 1
  if count == int(sys.argv[2]):
    os._exit(9)
training.Run.save = counted
test_bank.train_as(sys.argv[3], Tiny(), pathlib.Path(sys.argv[1]))
"""


def train_as(name, tiny, folder):
  if name == "whole":
    return train(tiny, folder)
  made = entries(tiny, folder, rates=(1.0, 0.0, 1.0))
  return train(tiny, folder, made, total_steps=40, patience=2)


@pytest.mark.parametrize(
  ("name", "saves"), [("whole", 2), ("whole", 5), ("patient", 13)]
)
def test_a_bank_that_is_killed_between_the_saves_of_its_runs_goes_on_to_the_same_bits(
  tiny, finished, tmp_path, name, saves
):
  # Three saves at step 0 and at each validation: a kill in between leaves runs behind.
  # The patient bank has by then a prompt that ended early.
  expected = finished[0] if name == "whole" else tmp_path / "unbroken"
  if name == "patient":
    train_as(name, tiny, expected)
  folder, here = tmp_path / "killed", pathlib.Path(__file__).parent
  done = subprocess.run(
    [sys.executable, "-c", KILLED, str(folder), str(saves), name, str(here), *sys.path],
    capture_output=True,
    text=True,
    check=False,
  )
  assert done.returncode == 9, done.stderr[-2000:]
  train_as(name, tiny, folder)
  for number in range(COUNT):
    for file in ("best_prompt.safetensors", "last_prompt.safetensors", "metrics.jsonl"):
      path = f"run-{number}/{file}"
      assert (folder / path).read_bytes() == (expected / path).read_bytes(), path


def test_a_prompt_that_diverges_leaves_the_others_as_they_are(tiny, finished, tmp_path):
  folder, _ = finished
  made = entries(tiny, tmp_path, rates=(1.0, 0.5, 1e38))
  with pytest.raises(UserError, match=r"1 of 3 prompts diverged .*NaN or infinite"):
    train(tiny, tmp_path, made, learning_rate=tiny.schedule)
  assert RunFolder(tmp_path / "run-2").manifest()["status"] == "failed"
  for number in (0, 1):
    assert RunFolder(tmp_path / f"run-{number}").manifest()["status"] == "finished"
    np.testing.assert_allclose(
      leaves(tmp_path / f"run-{number}", "last"),
      leaves(folder / f"run-{number}", "last"),
      rtol=1e-3,
      atol=1e-3,
    )


def test_a_prompt_that_gets_no_better_ends_early_and_the_others_go_on(tiny, tmp_path):
  made = entries(tiny, tmp_path, rates=(1.0, 0.0, 1.0))
  manifests = train(tiny, tmp_path, made, total_steps=40, patience=2)
  assert manifests[1]["status"] == "finished"
  assert (
    manifests[1]["last_step"] == 30
  )  # best at 10, when all are equal; 20 and 30 are not better
  assert manifests[0]["last_step"] > 30 or manifests[2]["last_step"] > 30


@pytest.mark.parametrize(
  ("change", "message"),
  [
    ({"made": []}, "The bank is empty"),
    ({"size": 0}, "size"),
    ({"patience": 0}, "patience"),
    ({"patience": 2, "best_metric": None}, "without a metric that chooses the best"),
  ],
)
def test_settings_that_make_no_bank_are_refused(tiny, tmp_path, change, message):
  arguments = {"made": entries(tiny, tmp_path), **change}
  made = arguments.pop("made")
  with pytest.raises(UserError, match=message):
    bank.train_bank(
      tiny.plain_model, made, 20, tiny.schedule, tiny.backbone, START, **arguments
    )
  assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("rate", [-1.0, float("nan")])
def test_a_rate_that_is_none_is_refused(tiny, tmp_path, rate):
  made = entries(tiny, tmp_path, rates=(1.0, 1.0, rate))
  with pytest.raises(UserError, match=r"The rate of the prompt for .*run-2' is"):
    train(tiny, tmp_path, made)
  assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
  ("change", "message"),
  [
    ({"tasks": []}, r"TASKS is \[\], which leaves no prompt"),
    ({"initial_seeds": ()}, r"INITIAL_SEEDS is \(\), which"),
    ({"rates": []}, r"RATES is \[\], which"),
  ],
)
def test_a_grid_of_nothing_is_refused(tiny, tmp_path, change, message):
  arguments = {"tasks": [tiny.task], **change}
  with pytest.raises(UserError, match=message):
    bank.grid(
      vocabulary=tiny.vocabulary,
      lengths=tiny.lengths,
      output_dir=tmp_path,
      batch_size=8,
      **arguments,
    )


def test_two_prompts_with_one_folder_are_refused(tiny, tmp_path):
  made = entries(tiny, tmp_path)
  with pytest.raises(UserError, match="Entries 0 and 2 of the bank have the same run"):
    train(tiny, tmp_path, [made[0], made[1], made[0]])


def test_a_grid_has_a_run_for_each_task_initial_prompt_and_rate(tiny, tmp_path):
  arguments = (tiny.vocabulary, tiny.lengths, tmp_path, 8)
  made = bank.grid([tiny.task], *arguments, initial_seeds=(0, 4))
  assert [entry.run_dir.name for entry in made] == ["parity-0", "parity-4"]
  assert [(e.initial_seed, e.seed, e.rate) for e in made] == [(0, 0, 1.0), (4, 4, 1.0)]
  made = bank.grid([tiny.task], *arguments, rates=(0.1, 3))
  assert [entry.run_dir.name for entry in made] == ["parity-0-0.1", "parity-0-3"]
  assert [entry.rate for entry in made] == [0.1, 3]


def test_the_command_trains_what_gin_names(tmp_path, capsys):
  code = train_bank.main(
    [
      "--gin_file=gin_configs/runs/bank_embedded.gin",
      "--gin.TASK_NAMES=['sentiment', 'topic']",
      f"--gin.OUTPUT_DIR='{tmp_path}'",
      "--gin.TRAIN_STEPS=2",
      "--gin.EVAL_PERIOD=2",
    ]
  )
  assert code == 0, capsys.readouterr().err
  for name in ("sentiment-0", "topic-0"):
    loaded = sources.load(tmp_path / name)
    assert [term.task for term in loaded.provenance.terms] == [name[:-2]]
    assert "train_bank" in (tmp_path / name / "config.gin").read_text()


@pytest.mark.parametrize(
  ("name", "meant"),
  [("INITIAL_SEED", "INITIAL_SEEDS"), ("RUN_DIR", ""), ("RANDOM_SEED", "")]
  + [("MICROBATCHES", ""), ("TASK", "TASKS"), ("TASK_NAME", "TASK_NAMES")],
)
def test_a_setting_that_a_bank_does_not_read_is_an_unknown_name(
  tmp_path, capsys, name, meant
):
  code = train_bank.main(
    [
      "--gin_file=gin_configs/runs/bank_embedded.gin",
      f"--gin.OUTPUT_DIR='{tmp_path}'",
      f"--gin.{name}=3",
    ]
  )
  error = capsys.readouterr().err
  assert code == 2 and f"defines {name}, so --gin.{name} would change nothing" in error
  assert f"Did you mean '{meant}'" in error or not meant
  assert not list(tmp_path.iterdir())

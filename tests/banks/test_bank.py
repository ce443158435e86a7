"""A bank's run folders are those of solo runs, whatever happens to the bank on the way."""

import dataclasses
import functools
import json
import pathlib
import re
import shutil
import subprocess
import sys
import types

import gin
import jax
import numpy as np
import pytest

from tpv_jax import cli
from tpv_jax.banks import bank, bank_steps, loop, plan
from tpv_jax.core import screen
from tpv_jax.core.errors import UserError
from tpv_jax.formats import sources
from tpv_jax.runs.run_folder import RunFolder
from tpv_jax.settings import gin_files
from tpv_jax.training import initial, training
from tpv_jax.training.task_data import TaskData

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
    # gin's text was given to neither; the time is in the name of the event file. A bank
    # draws one picture for all of its prompts.
    return {name for name in found if not name.startswith(("events", "curves.png"))}

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
from tpv_jax.training import training
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
  same_runs(folder, expected)


class Killed(BaseException):
  """What a test raises where a kill would come."""


def killed_after(monkeypatch, number):
  """Lets the writes go on until the `number`-th; returns the list of all of them."""
  writes = []

  def counted(owner, name):
    function = getattr(owner, name)

    def write(self, *arguments):
      function(self, *arguments)
      writes.append(name)
      if len(writes) == number:
        raise Killed

    monkeypatch.setattr(owner, name, write)

  counted(training.Run, "save")
  counted(RunFolder, "write_manifest")
  return writes


# One diverges in the first steps, one loses patience at step 30, between two checkpoints.
LEAVING = {"total_steps": 40, "patience": 2, "checkpoint_period": 20}
LEAVING_RATES = (1.0, 0.0, 1e38)


def train_leaving(tiny, folder):
  with pytest.raises(UserError, match=r"1 of 3 prompts diverged"):
    train(tiny, folder, entries(tiny, folder, LEAVING_RATES), **LEAVING)


@pytest.fixture(scope="module")
def unbroken(tiny, tmp_path_factory):
  folder = tmp_path_factory.mktemp("leaving")
  train_leaving(tiny, folder)
  return folder


# Of 31 writes: the divergence is noted, one of two others is saved, both are; at the loss
# of patience one is saved, both are. (All 31 were tried once.)
@pytest.mark.parametrize("number", [17, 19, 21, 28, 30])
def test_a_kill_while_a_prompt_leaves_its_bank_changes_nothing(
  tiny, unbroken, tmp_path, monkeypatch, number
):
  with monkeypatch.context() as patch:
    writes = killed_after(patch, number)
    with pytest.raises(Killed):
      train_leaving(tiny, tmp_path)
  assert len(writes) == number
  train_leaving(tiny, tmp_path)
  same_runs(tmp_path, unbroken)
  for run in ("run-0", "run-1"):
    one, other = (RunFolder(path / run).manifest() for path in (tmp_path, unbroken))
    assert one["bank"] == other["bank"]  # The whole run's padding.


def test_a_bank_that_was_to_start_over_goes_on_after_a_kill(
  tiny, finished, tmp_path, monkeypatch
):
  one_by_one = {"size": 1, "overwrite": True}
  train(tiny, tmp_path, total_steps=10, size=1)
  with monkeypatch.context() as patch:
    killed_after(patch, 18)  # Of the second of three groups.
    with pytest.raises(Killed):
      train(tiny, tmp_path, **one_by_one)
  last = tmp_path / "run-0" / "last_prompt.safetensors"
  written = last.stat().st_mtime_ns
  statuses = [RunFolder(tmp_path / f"run-{n}").manifest()["status"] for n in range(3)]
  # The third one's first steps had not come, so what it replaces is back.
  assert statuses == ["finished", "running", "finished"]
  train(tiny, tmp_path, **one_by_one)
  assert last.stat().st_mtime_ns == written
  train(tiny, tmp_path, **one_by_one)  # All are finished: from the beginning.
  assert last.stat().st_mtime_ns > written


@pytest.fixture(scope="module")
def stopped(tiny, tmp_path_factory):
  """A bank of which no prompt is finished."""
  folder = tmp_path_factory.mktemp("stopped")
  with pytest.MonkeyPatch.context() as patch:
    killed_after(patch, 21)  # Of its writes, when all have a checkpoint at step 10.
    with pytest.raises(Killed):
      train(tiny, folder, patience=3)
  return folder


@pytest.mark.parametrize(
  ("change", "message"),
  [
    ({"patience": 2}, "another patience: 3 there, 2 now"),
    ({"patience": None}, "another patience: 3 there, None now"),
    ({"size": 2}, "another size: 3 there, 2 now"),
    ({"size": 2, "split": True}, "another size: 3 there, 2 now"),
    ({"made": [0, 2]}, "another list of prompts: now without run-1"),
    ({"made": [0, 1, 2, 3]}, "another list of prompts: now with run-3"),
    ({"made": [0, 2, 3]}, "now without run-1 and with run-3"),
    ({"made": [1, 0, 2]}, "another list of prompts: now in another order"),
  ],
)
def test_an_unfinished_bank_goes_on_as_it_was_begun_only(
  tiny, stopped, change, message
):
  made = entries(tiny, stopped)
  made.append(dataclasses.replace(made[1], run_dir=stopped / "run-3"))
  chosen = [made[number] for number in change.get("made", range(COUNT))]
  before = {p: p.stat().st_mtime_ns for p in stopped.rglob("*") if p.is_file()}
  with pytest.raises(UserError, match=message):
    train(tiny, stopped, **({"patience": 3} | change | {"made": chosen}))
  after = {p: p.stat().st_mtime_ns for p in stopped.rglob("*") if p.is_file()}
  assert {p for p in after if not p.name.startswith(".")} == set(before)


def test_no_checkpoint_is_deleted_if_a_prompt_of_the_bank_cannot_go_on(
  tiny, stopped, tmp_path
):
  folder = pathlib.Path(shutil.copytree(stopped, tmp_path / "bank"))
  saved = [sorted((folder / f"run-{i}/checkpoints").iterdir()) for i in (0, 1)]
  for path in [saved[0][-1], *saved[1]]:  # The newest of one, all of another.
    (path / "state" / "manifest.ocdbt").write_bytes(b"")
  with pytest.raises(UserError, match=r"run-1' cannot be continued"):
    train(tiny, folder, patience=3)
  assert sorted((folder / "run-0/checkpoints").iterdir()) == saved[0]


def test_another_bank_is_not_begun_beside_an_unfinished_one(tiny, stopped, tmp_path):
  """As with other INITIAL_SEEDS, whose folders have other names."""
  folder = pathlib.Path(shutil.copytree(stopped, tmp_path / "bank"))
  others = [
    dataclasses.replace(entry, run_dir=folder / f"run-{number + 3}")
    for number, entry in enumerate(entries(tiny, folder))
  ]
  message = (
    "holds an unfinished prompt of another bank, 'run-0'. Finish that bank first"
  )
  with pytest.raises(UserError, match=message):
    train(tiny, folder, others, total_steps=5)
  assert not (folder / "run-3" / "manifest.json").exists()
  for number in range(COUNT):
    shutil.rmtree(folder / f"run-{number}")  # As the message says.
  train(tiny, folder, others, total_steps=5)


def test_a_bank_that_went_on_says_from_which_step_its_seconds_count(
  tiny, stopped, finished, tmp_path
):
  folder = pathlib.Path(shutil.copytree(stopped, tmp_path / "bank"))
  train(tiny, folder, patience=3)
  for number in range(COUNT):
    manifest = RunFolder(folder / f"run-{number}").manifest()
    assert manifest["status"] == "finished"
    assert manifest["seconds_from_step"] == 10
    unbroken = RunFolder(finished[0] / f"run-{number}").manifest()
    assert "seconds_from_step" not in unbroken


def test_a_bank_that_has_ended_takes_more_prompts_and_fewer(tiny, finished, tmp_path):
  folder = pathlib.Path(shutil.copytree(finished[0], tmp_path / "bank"))
  before = {p: p.read_bytes() for p in folder.rglob("*") if p.is_file()}
  made = entries(tiny, folder)
  train(tiny, folder, made[:1])
  more = dataclasses.replace(made[1], run_dir=folder / "run-3", seed=3, initial_seed=3)
  train(tiny, folder, [*made, more])
  assert RunFolder(folder / "run-3").manifest()["status"] == "finished"
  assert {p: p.read_bytes() for p in before} == before


def test_overwrite_begins_another_bank(tiny, stopped, tmp_path):
  folder = pathlib.Path(shutil.copytree(stopped, tmp_path / "bank"))
  train(tiny, folder, entries(tiny, folder)[:2], patience=3, overwrite=True)
  for number in (0, 1):
    manifest = RunFolder(folder / f"run-{number}").manifest()
    assert manifest["bank"]["members"] == ["run-0", "run-1"]
  assert RunFolder(folder / "run-2").manifest()["status"] == "running"


def same_runs(folder, expected):
  """Asserts that prompts and metrics are the same bytes."""
  for number in range(COUNT):
    for file in ("best_prompt.safetensors", "last_prompt.safetensors", "metrics.jsonl"):
      path = f"run-{number}/{file}"
      if (expected / path).exists() or (folder / path).exists():
        assert (folder / path).read_bytes() == (expected / path).read_bytes(), path
  for number in range(COUNT):
    one, other = (
      RunFolder(path / f"run-{number}").manifest() for path in (folder, expected)
    )
    for name in ("status", "last_step", "best_step"):
      assert one.get(name) == other.get(name)


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
    (
      {"patience": 2, "best_metric": None},
      "BEST_METRIC is None, so no prompt is better",
    ),
    ({"block_positions": 0}, "block_positions"),
    ({"memory_gib": 0}, "memory_gib is 0; it must be a number above 0"),
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


def test_a_diverged_prompt_stays_so_until_its_folder_is_removed(tiny, tmp_path):
  def again(rate):
    return train(tiny, tmp_path, entries(tiny, tmp_path, (1.0, 0.5, rate))[1:])

  with pytest.raises(UserError, match="1 of 2 prompts diverged"):
    again(1e38)
  before = {p: p.stat().st_mtime_ns for p in tmp_path.rglob("*") if p.is_file()}
  with pytest.raises(UserError, match=r"1 of 2 .*NaN or inf.*remove its folder"):
    again(1e38)
  assert {p: p.stat().st_mtime_ns for p in tmp_path.rglob("*") if p.is_file()} == before
  shutil.rmtree(tmp_path / "run-2")
  assert [manifest["status"] for manifest in again(1.0)] == ["finished"] * 2
  (kept,) = (tmp_path / "run-1").glob("events*")
  assert kept.stat().st_mtime_ns == before[kept]


def test_the_log_says_shapes_padding_needs_recompilations_and_every_prompt(
  tiny, finished, tmp_path, capsys, monkeypatch
):
  assert finished[1][0]["bank"]["recompiled"] == 0
  train_step, steps = bank_steps.train_step, []

  def compiling(*arguments):
    steps.append(0)
    if len(steps) in (1, 6):  # The first step of all may compile; others should not.
      jax.jit(lambda x: x + len(steps))(np.ones(7))
    return train_step(*arguments)

  monkeypatch.setattr(bank_steps, "train_step", compiling)
  manifests = train(tiny, tmp_path, progress=True)
  text = capsys.readouterr().out
  note = manifests[0]["bank"]
  (wide, width, _), (short, narrow, _) = note["shapes"]
  assert f"rows x positions {wide} x {width} and {short} x {narrow}, " in text
  assert re.search(
    r"needs .*B \(backbone 22.9 KiB, prompts .* a step .*B\) of .*iB", text
  )
  assert re.search(r"step 10, validation loss .*run-0 \S+\*, run-1 \S+, run-2", text)
  assert f"{note['padding_share']:.1%} of " in text
  assert "recompilations: 1" in text


def test_the_bar_moves_with_each_step(tiny, tmp_path, monkeypatch):
  train_step, events = bank_steps.train_step, []

  def noted(*arguments):
    events.append("step")
    return train_step(*arguments)

  class Noted(screen.Bar):
    def update(self, count=1):
      events.extend(["moved"] * count)
      return super().update(count)

  monkeypatch.setattr(bank_steps, "train_step", noted)
  monkeypatch.setattr(loop, "Bar", Noted)
  train(tiny, tmp_path, total_steps=4, eval_period=4, log_period=4, progress=True)
  assert events == ["step", *["step", "moved"] * 3, "moved"]


@pytest.mark.parametrize("rate", [-1.0, float("nan")])
def test_a_rate_that_is_none_is_refused(tiny, tmp_path, rate):
  with pytest.raises(UserError, match=r"rates\[2\] is |rate is "):
    entries(tiny, tmp_path, rates=(1.0, 1.0, rate))
  assert not list(tmp_path.iterdir())


def test_rates_that_are_alike_in_six_digits_have_folders_of_their_own(tiny, tmp_path):
  rates = (0.3, 0.30000001, 1 / 3, 1e-7)
  made = bank.grid([tiny.task], tiny.vocabulary, tiny.lengths, tmp_path, 8, rates=rates)
  assert [
    float(entry.run_dir.name.removeprefix("parity-0-")) for entry in made
  ] == list(rates)
  assert made[0].run_dir.name == "parity-0-0.3"


def test_prompts_of_another_form_are_named_before_anything_is_written(tiny, tmp_path):
  made = entries(tiny, tmp_path)
  longer = functools.partial(initial.sampled_vocabulary, length=5)
  made[1] = dataclasses.replace(made[1], initial_prompt=longer)
  with pytest.raises(
    UserError,
    match=r"1 of the 3 entries cannot be trained with the others.*: 1 \('.*run-1'\): "
    r"The initial prompt has \{'prompt': \(5, 16\)\}; this run needs .*\(4, 16\).*"
    "in a separate bank",
  ):
    train(tiny, tmp_path, made)
  assert not list(tmp_path.iterdir())


def test_a_name_among_the_tasks_is_refused_with_near_misses(tiny, tmp_path):
  with pytest.raises(UserError, match=r"'sentimnt', not a task. Did you mean 'sen"):
    bank.grid(["sentimnt"], tiny.vocabulary, tiny.lengths, tmp_path, 8)


def test_a_typo_in_the_task_names_is_one_line_with_near_misses(tmp_path, capsys):
  code = cli.main(
    [
      "bank",
      "--gin_file=gin_configs/runs/bank_embedded.gin",
      "--gin.TASK_NAMES=['sentiment', 'topics']",
      f"--gin.OUTPUT_DIR='{tmp_path}'",
    ]
  )
  error = capsys.readouterr().err
  assert code == 2
  assert error.count("\n") == 1
  assert "no embedded task 'topics'. Did you mean 'topic'" in error


class Longer:
  """A task's data whose batches are longer from a step on."""

  def __init__(self, data):
    self.data, self.name, self.batch_size = data, data.name, data.batch_size
    self.losses, self.describe = data.losses, data.describe
    self.settings = data.settings

  def validation_batches(self):
    return self.data.validation_batches()

  def batch_at(self, step):
    features = self.data.batch_at(step)
    if step < plan.SAMPLED_STEPS:
      return features
    return {name: np.tile(values, (1, 9)) for name, values in features.items()}


def test_an_example_that_is_too_long_is_refused_with_its_task_and_tokens(
  tiny, tmp_path
):
  made = entries(tiny, tmp_path)
  made[2] = dataclasses.replace(made[2], data=Longer(made[2].data))
  message = r"example of 'parity' with 54 source and 18 target tokens does not fit"
  with pytest.raises(UserError, match=message):
    train(tiny, tmp_path, made, total_steps=25)


class LongerValidation(Longer):
  """A task's data whose validation rows are longer than its batches."""

  def batch_at(self, step):
    return self.data.batch_at(step)

  def validation_batches(self):
    for features in self.data.validation_batches():
      yield {name: np.tile(values, (1, 9)) for name, values in features.items()}


def test_validation_rows_longer_than_the_batches_fit_and_share_calls(
  tiny, tmp_path, monkeypatch
):
  validate, calls = bank_steps.validate, []

  def noted(*arguments):
    calls.append(len(arguments[-1]))
    return validate(*arguments)

  monkeypatch.setattr(bank_steps, "validate", noted)
  made = entries(tiny, tmp_path)
  train(tiny, tmp_path / "short", entries(tiny, tmp_path / "short"), total_steps=10)
  assert calls[0] < len(made) * len(list(made[0].data.validation_batches()))
  made[2] = dataclasses.replace(made[2], data=LongerValidation(made[2].data))
  train(tiny, tmp_path, made, total_steps=10)
  (line,) = (m for m in RunFolder(made[2].run_dir).metrics() if m["kind"] != "train")
  assert line["step"] == 10
  assert np.isfinite(line["loss"])


def needed(text):
  """Returns the bytes that the first line of a bank's log says are needed."""
  number, unit = re.search(r"needs ([\d.]+) (\w+) \(", text).groups()
  return float(number) * 1024 ** ["B", "KiB", "MiB", "GiB"].index(unit)


def test_a_bank_that_does_not_fit_says_how_many_prompts_would_before_it_writes(
  tiny, tmp_path, capsys
):
  train(tiny, tmp_path / "three")
  three = needed(capsys.readouterr().out)
  limit = {"memory_gib": (three - 1024) / 2**30}
  with pytest.raises(
    UserError,
    match=r"A bank of 3 needs .*KiB \(.*\) on each device, and .*KiB are free "
    r"there. About 2 would fit: set BANK_SIZE = 2, or SPLIT = True",
  ):
    train(tiny, tmp_path / "no", **limit)
  assert not (tmp_path / "no").exists()
  train(tiny, tmp_path / "split", split=True, **limit)
  first = RunFolder(tmp_path / "split" / "run-0").manifest()["bank"]
  last = RunFolder(tmp_path / "split" / "run-2").manifest()["bank"]
  assert (first["prompts"], last["prompts"], first["size"]) == (2, 1, 2)
  assert "3 prompts in 2 banks" in capsys.readouterr().out
  # Runs that have ended do not say how large the bank of new ones is.
  few = entries(tiny, tmp_path / "few")
  train(tiny, None, few[:1], split=True)
  train(tiny, None, few, split=True)
  assert RunFolder(tmp_path / "few" / "run-2").manifest()["bank"]["size"] == 3


def test_a_bank_that_is_cut_is_made_smaller_by_as_many_prompts_as_devices(tiny):
  made = []

  class Plan(plan.Plan):
    _devices, need, available = 4, types.SimpleNamespace(total=1600), 900
    cut, size = True, 16

    def __init__(self):
      pass

    def _measure(self, prompts):
      made.append(prompts)
      return types.SimpleNamespace(total=100 * prompts)

  assert Plan()._most_prompts() == 8
  assert made == [8]
  small = Plan()
  small.size = 4
  assert small._most_prompts() == 0


def test_blocks_are_made_smaller_where_not_one_prompt_fits(tiny, tmp_path, capsys):
  one = entries(tiny, tmp_path)[:1]
  tight = {"memory_gib": 60 * 1024 / 2**30}
  with pytest.raises(
    UserError, match=r"Not even one would fit with blocks of .*BLOCK_PO"
  ):
    train(tiny, tmp_path, one, **tight)
  train(tiny, tmp_path, one, split=True, **tight)
  assert needed(capsys.readouterr().out) <= 60 * 1024
  with pytest.raises(UserError, match=r"Not even one would fit. Shorten LENGTHS"):
    train(tiny, tmp_path / "none", one, split=True, overwrite=True, memory_gib=1e-6)


@pytest.mark.parametrize(
  ("change", "message"),
  [
    ({"tasks": []}, r"TASKS is \[\], which leaves no prompt"),
    ({"initial_seeds": ()}, r"INITIAL_SEEDS is \(\), which"),
    ({"rates": []}, r"RATES is \[\], which"),
    ({"rates": [1.0, -1.0]}, r"rates\[1\] is -1.0; it must be a number of at least 0"),
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
  code = cli.main(
    [
      "bank",
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
  [
    *[
      ("INITIAL_SEED", "INITIAL_SEEDS"),
      ("TASK", "TASKS"),
      ("TASK_NAME", "TASK_NAMES"),
    ],
    *[("RUN_DIR", ""), ("RANDOM_SEED", ""), ("MICROBATCHES", "")],
  ],
)
def test_a_setting_that_a_bank_does_not_read_is_an_unknown_name(
  tmp_path, capsys, name, meant
):
  code = cli.main(
    [
      "bank",
      "--gin_file=gin_configs/runs/bank_embedded.gin",
      f"--gin.OUTPUT_DIR='{tmp_path}'",
      f"--gin.{name}=3",
    ]
  )
  error = capsys.readouterr().err
  assert code == 2
  assert f"{name} (--gin) is read by nothing" in error
  assert f"Did you mean '{meant}'" in error or not meant
  assert not list(tmp_path.iterdir())


def test_gin_takes_any_list_of_entries_as_bank_gin_says(tmp_path):
  comments = pathlib.Path("gin_configs/runs/bank.gin").read_text().splitlines()
  lines = [line.removeprefix("#   ") for line in comments if line.startswith("#   ")]
  first = lines.index("ENTRIES = [@one/bank.Entry(), @two/bank.Entry()]")
  head = [
    "from __gin__ import dynamic_registration",
    "from tpv_jax.embedded import suite",
    "from tpv_jax.banks import bank",
    "from tpv_jax.training import task_data",
  ]
  (tmp_path / "mine.gin").write_text("\n".join([*head, *lines[first:]]))
  gin_files.parse(
    ["gin_configs/runs/bank_embedded.gin", str(tmp_path / "mine.gin")],
    ["OUTPUT_DIR='unused'"],
  )
  made = [one.scoped_configurable_fn() for one in gin.query_parameter("%ENTRIES")]
  gin.clear_config()
  assert [(e.data.name, str(e.run_dir), e.initial_seed, e.rate) for e in made] == [
    ("topic", "runs/one", 0, 1.0),
    ("nli", "runs/two", 3, 0.5),
  ]

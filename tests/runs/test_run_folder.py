"""A run's folder has one user at a time, and keeps a run until another one stands."""

import contextlib
import json
import os
import pathlib

import pytest

from tpv_jax.core.errors import UserError
from tpv_jax.devices import processes
from tpv_jax.runs import run_folder
from tpv_jax.runs.records import FORMAT
from tpv_jax.runs.run_folder import RunFolder
from tpv_jax.runs.run_settings import Settings


def content(folder):
  return {
    str(path.relative_to(folder)): path.read_bytes()
    for path in sorted(folder.rglob("*"))
    if path.is_file()
  }


def test_a_second_run_in_the_same_folder_is_refused_and_harms_nothing(tiny, tmp_path):
  data = tiny.data()
  batch_at, refusals = data.batch_at, []

  def meanwhile(step):
    if step == 7:
      for overwrite in (False, True):
        with pytest.raises(UserError, match="is in use by process") as refused:
          tiny.train(tmp_path / "run", overwrite=overwrite)
        refusals.append(refused)
    return batch_at(step)

  data.batch_at = meanwhile
  assert tiny.train(tmp_path / "run", data=data)["status"] == "finished"
  assert len(refusals) == 2
  tiny.train(tmp_path / "alone")
  files = ("metrics.jsonl", "best_prompt.safetensors", "last_prompt.safetensors")
  for name in files:
    alone = (tmp_path / "alone" / name).read_bytes()
    assert (tmp_path / "run" / name).read_bytes() == alone
  assert not list((tmp_path / "run").glob(".*"))


def test_two_studies_in_one_folder_are_refused(tmp_path):
  with run_folder.open_output(tmp_path / "out", "study", "vectors") as folder:
    second = run_folder.open_output(folder, "study", "vectors")
    with pytest.raises(UserError, match="' of the study is in use by process"), second:
      pass
  assert os.listdir(folder) == ["vectors"]


def test_a_study_in_the_folder_of_another_kind_of_study_is_refused(tmp_path):
  folder = tmp_path / "out"
  with run_folder.open_output(folder, "study", "vectors"):
    (folder / "results.json").write_text('{"work": "study"}')
  with run_folder.open_output(folder, "study", "vectors"):
    pass
  other = run_folder.open_output(folder, "comparison of merge rules", "vectors")
  with (
    pytest.raises(UserError, match="holds the results of another work, 'study'"),
    other,
  ):
    pass


def test_two_evaluations_of_one_output_are_refused(tmp_path):
  output = str(tmp_path / "results.json")

  @run_folder.alone_at_output
  def evaluate(output, again=True):
    if again:
      with pytest.raises(UserError, match=r"The output '.*json' is in use by"):
        evaluate(output=output, again=False)
    return os.listdir(tmp_path)

  assert evaluate(output=output) == [".results.json.lock"]
  assert os.listdir(tmp_path) == []
  assert evaluate(output=str(tmp_path / "none" / "x"), again=False) == []


SETTINGS = Settings({"total_steps": 5}, {})


@pytest.fixture
def old(tmp_path):
  """A finished run, and beside it a file that is none of its own."""
  run = tmp_path / "run"
  (run / "checkpoints" / "checkpoint_5").mkdir(parents=True)
  (run / "checkpoints" / "checkpoint_5" / "state").write_text("old")
  for name in ("config.gin", "best_prompt.safetensors", "notes.txt"):
    (run / name).write_text(f"old {name}")
  manifest = {"format": FORMAT, "status": "finished", **SETTINGS.saved()}
  (run / "manifest.json").write_text(json.dumps(manifest))
  return run


def begin_another(run):
  folder = RunFolder(run)
  folder.open(Settings({"total_steps": 9}, {}), overwrite=True)
  (run / "checkpoints").mkdir()
  (run / "checkpoints" / "checkpoint_0").write_text("new")
  (run / "metrics.jsonl").write_text("new")
  return folder


def test_a_run_is_replaced_only_by_one_that_has_done_its_first_steps(old):
  before = content(old)

  def begin_and_fail():
    with run_folder.alone(RunFolder(old)):
      begin_another(old)
      raise ZeroDivisionError

  with pytest.raises(ZeroDivisionError):
    begin_and_fail()
  assert content(old) == before
  with run_folder.alone(RunFolder(old)):
    begin_another(old).stands()
  names = {"checkpoints/checkpoint_0", "manifest.json", "metrics.jsonl", "notes.txt"}
  assert content(old).keys() == names


class Killed(BaseException):
  pass


@pytest.mark.parametrize("nth", range(1, 14))
def test_a_kill_while_a_run_is_put_aside_or_comes_back_costs_nothing(
  old, nth, monkeypatch
):
  before, left = content(old), [nth]

  def killing(call):
    def run(*arguments, **options):
      if left == [0]:
        raise Killed
      left[0] -= 1
      return call(*arguments, **options)

    return run

  with monkeypatch.context() as patch:
    for name in ("rename", "unlink", "mkdir", "rmdir"):
      patch.setattr(pathlib.Path, name, killing(getattr(pathlib.Path, name)))
    with contextlib.suppress(Killed):
      begin_another(old)
      RunFolder(old).tidy()
  with run_folder.alone(RunFolder(old)):
    pass
  assert content(old) == before


def test_a_run_whose_first_steps_fail_leaves_nothing(tiny, tmp_path, monkeypatch):
  def too_large(self, *_):
    raise MemoryError("Unable to allocate 9 GiB for an array")

  monkeypatch.setattr("tpv_jax.training.training.Run._loop", too_large)
  told = (
    r"has too little memory \(Unable to allocate 9 GiB for an array\)\. Lower BATCH"
  )
  with pytest.raises(UserError, match=told):
    tiny.train(tmp_path / "run")
  assert os.listdir(tmp_path) == []


def test_where_process_0_cannot_lock_a_folder_no_other_goes_on(monkeypatch, tmp_path):
  monkeypatch.setattr(processes, "is_writer", lambda: False)
  monkeypatch.setattr(processes, "agreed", lambda problem: 1)
  with (
    pytest.raises(UserError, match="Process 0 cannot go on; it says why"),
    run_folder.alone(RunFolder(tmp_path / "run")),
  ):
    pass


def test_a_folder_of_something_else_is_refused_by_no_setting_that_a_bank_lacks(
  tmp_path,
):
  """A bank's folders follow from its OUTPUT_DIR."""
  (tmp_path / "notes.txt").write_text("mine")
  with pytest.raises(UserError, match=r"Choose another folder\.$"):
    RunFolder(tmp_path).manifest()
  run = RunFolder(tmp_path / "run")
  run.open(Settings({"seed": 0}, {}), overwrite=False)
  with pytest.raises(UserError, match="choose another folder, or start again"):
    run.open(Settings({"seed": 1}, {}), overwrite=False)

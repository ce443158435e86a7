"""Runs that differ in their seeds only: their mean and deviation."""

import json
import statistics

import pytest

from tpv_jax import cli
from tpv_jax.core.errors import UserError
from tpv_jax.evaluation import candidates

EVAL = ("--gin.BACKBONE=embedded", "--gin.TASK_NAMES=[topic]")


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
  """Three runs of one bank, and one with another batch size."""
  folder = tmp_path_factory.mktemp("runs")
  bank = ("bank", *EVAL, f"--gin.OUTPUT_DIR={folder}", "--gin.INITIAL_SEEDS=[0, 1, 10]")
  assert cli.main([*bank, "--gin.TRAIN_STEPS=20", "--gin.EVAL_PERIOD=10"]) == 0
  train = ("train", "--gin.BACKBONE=embedded", "--gin.TASK_NAME=topic")
  other = (f"--gin.RUN_DIR={folder}/topic-other", "--gin.BATCH_SIZE=4")
  assert cli.main([*train, *other, "--gin.TRAIN_STEPS=2", "--gin.EVAL_PERIOD=1"]) == 0
  (folder / "topic-notes.txt").write_text("mine")
  return folder


def test_runs_of_several_seeds_get_mean_and_deviation(runs, tmp_path, capsys):
  output = tmp_path / "scores.json"
  assert cli.main(["eval", f"{runs}/topic-*", *EVAL, f"--gin.OUTPUT={output}"]) == 0
  said = capsys.readouterr().out
  content = json.loads(output.read_text())
  (group,) = content["groups"]
  assert group["group"] == f"{runs}/topic-*"
  names = [f"{runs}/topic-{seed}" for seed in (0, 1, 10)]
  assert group["candidates"] == names
  by_name = {one["candidate"]: one for one in content["results"]}
  assert set(by_name) == {*names, f"{runs}/topic-other"}
  for score, found in group["scores"].items():
    each = [by_name[name][score] for name in names]
    assert found["mean"] == pytest.approx(sum(each) / 3)
    assert found["deviation"] == pytest.approx(statistics.stdev(each))
  assert "of runs that differ in their seeds only" in said
  label = group["scores"]["label_accuracy"]
  assert f"{100 * label['mean']:.1f} ± {100 * label['deviation']:.1f}" in said


def test_the_backbone_of_the_first_run_is_taken_if_none_is_set(runs, capsys):
  own = ["eval", f"{runs}/topic-[01]", "--gin.TASK_NAMES=[topic]", "--show-config"]
  assert cli.main(own) == 0
  said = capsys.readouterr().out
  assert "BACKBONE = 'embedded'" in said
  assert "PROMPT_PATH = " in said


def test_prompts_of_other_settings_are_no_group(runs, capsys):
  two = (
    f"{runs}/topic-0",
    f"{runs}/topic-other",
    f"{runs}/topic-1/last_prompt.safetensors",
  )
  assert cli.main(["eval", *two, *EVAL]) == 0
  assert "seeds" not in capsys.readouterr().out


def test_a_pattern_that_matches_nothing_is_named(runs):
  with pytest.raises(UserError, match="no run or file matches 'topics-"):
    candidates.matching(["topics-*"])


def test_a_pattern_gives_runs_in_their_natural_order(runs):
  found = candidates.matching([None, f"{runs}/topic-?*"])
  assert found[0] is None
  assert [path.rpartition("-")[2] for path in found[1:]] == ["0", "1", "10", "other"]
  texts = candidates.matching([f"{runs}/*.txt"])
  assert texts == [f"{runs}/topic-notes.txt"]

"""Runs that differ in their seeds only: their mean and deviation."""

import dataclasses
import json
import statistics

import pytest

from tpv_jax import cli
from tpv_jax.core.errors import UserError
from tpv_jax.evaluation import candidates
from tpv_jax.runs import subject

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


def test_each_run_of_a_bank_states_what_its_prompt_needs(runs):
  for seed in (0, 1, 10):
    known = subject.read(runs / f"topic-{seed}")
    assert (known.backbone, known.family) == ("embedded", "t5")
    assert known.recipe.words


def test_the_table_is_written_as_markdown_or_csv(runs, tmp_path):
  import csv

  call = ["eval", f"{runs}/topic-[01]", *EVAL, f"--gin.OUTPUT={tmp_path}/all.json"]
  assert cli.main([*call, f"--gin.TABLE={tmp_path}/all.csv"]) == 0
  content = json.loads((tmp_path / "all.json").read_text())
  (group,) = content["groups"]
  with open(tmp_path / "all.csv", newline="") as file:
    first, second, mean = csv.DictReader(file)
  for row, result in zip((first, second), content["results"], strict=True):
    assert row["candidate"] == result["candidate"]
    assert float(row["label_accuracy"]) == result["label_accuracy"]
  assert (mean["candidate"], mean["runs"]) == (group["group"], "2")
  deviation = group["scores"]["exact_match"]["deviation"]
  assert float(mean["exact_match_deviation"]) == deviation
  again = [f"--gin.TABLE={tmp_path}/all.md", "--gin.OVERWRITE=True"]
  assert cli.main([*call, *again]) == 0
  header, _, *rows = (tmp_path / "all.md").read_text().splitlines()
  assert header.startswith("| candidate | task | split | examples |")
  found = group["scores"]["label_accuracy"]
  assert f"{100 * found['mean']:.1f} ± {100 * found['deviation']:.1f}" in rows[-1]


@pytest.mark.parametrize("name", ["all.txt", "there.md"])
def test_a_table_that_could_not_be_written_is_refused_first(
  runs, tmp_path, name, capsys
):
  (tmp_path / "there.md").write_text("mine")
  call = ["eval", f"{runs}/topic-0", *EVAL, f"--gin.TABLE={tmp_path / name}"]
  assert cli.main(call) == 2
  error = capsys.readouterr().err
  assert ".md or .csv" in error if name == "all.txt" else "exists" in error
  assert (tmp_path / "there.md").read_text() == "mine"


def test_a_users_file_comes_before_what_the_run_says(
  runs, capsys, tmp_path, monkeypatch
):
  of_run = subject.read(f"{runs}/topic-0")
  in_bf16 = dataclasses.replace(of_run, dtype="bfloat16")
  monkeypatch.setattr(subject, "read", lambda _: in_bf16)
  own = ["eval", f"{runs}/topic-0", "--gin.TASK_NAMES=[topic]", "--show-config"]
  assert cli.main(own) == 0
  assert "DTYPE = 'bfloat16'" in capsys.readouterr().out
  mine = tmp_path / "mine.gin"
  mine.write_text("DTYPE = 'float32'\n")
  assert cli.main([*own, f"--gin_file={mine}"]) == 0
  assert "DTYPE = 'float32'" in capsys.readouterr().out


def test_the_backbone_of_the_first_run_is_taken_if_none_is_set(runs, capsys):
  own = ["eval", f"{runs}/topic-[01]", "--gin.TASK_NAMES=[topic]", "--show-config"]
  assert cli.main(own) == 0
  said = capsys.readouterr().out
  assert "BACKBONE = 'embedded'" in said
  assert "PROMPT_PATH = " in said


@pytest.mark.parametrize("name", ["PROMPT_PATH", "evaluation.evaluate.prompt"])
def test_prompts_are_given_in_one_way(runs, capsys, name):
  call = ["eval", f"{runs}/topic-0", *EVAL, f"--gin.{name}={runs}/topic-1"]
  assert cli.main(call) == 2
  assert f"topic-0' and --gin.{name} both say which" in capsys.readouterr().err


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

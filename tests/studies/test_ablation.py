"""The ablation: its arithmetic by hand, its fairness, and a tiny one from end to end."""

import json

import numpy as np
import pytest
import studies_at_work

from tpv_jax import cli
from tpv_jax.core.errors import UserError
from tpv_jax.studies import ablation, methods
from tpv_jax.studies.report import ablation as report
from tpv_jax.training import cost

FORM = ablation.Form(fusion_width=2, spaces=2, bottleneck=1)


def test_the_summary_is_what_its_words_say():
  scores = {
    "32": {
      "plain": {"a": [0.4, 0.6], "b": [0.8, 1.0]},
      "dept": {"a": [0.5, 0.5], "b": [0.9, 0.9]},
      "ept": {"a": [0.6, 0.6], "b": [0.7, 1.0]},
    }
  }
  row = methods.summarise(scores)["32"]["ept"]
  assert row["mean"] == pytest.approx((0.6 + 0.6 + 0.7 + 1.0) / 4)
  # The means over tasks are 0.65 and 0.8: two numbers lie 0.15 / sqrt(2) from each other.
  assert row["deviation"] == pytest.approx(0.15 / np.sqrt(2))
  # The tasks' means are 0.6 and 0.85.
  assert row["spread"] == pytest.approx(0.25 / np.sqrt(2))
  assert row["worst"] == pytest.approx(0.6)
  # Pairs: +0.2, 0, -0.1, 0; over tasks +0.05 and 0.
  minus = row["minus_plain"]
  assert minus["mean"] == pytest.approx(0.025)
  assert minus["deviation"] == pytest.approx(0.05 / np.sqrt(2))
  assert (minus["higher"], minus["lower"]) == (1, 1)
  # Pairs: +0.1, +0.1, -0.2, +0.1.
  assert row["minus_dept"]["mean"] == pytest.approx(0.025)
  assert (row["minus_dept"]["higher"], row["minus_dept"]["lower"]) == (3, 1)


def test_every_method_stays_within_the_budget_and_uses_most_of_it():
  for tokens in (32, 48, 64):
    for method in methods.METHODS:
      sizes = methods.sizes(FORM.module(method, tokens, 128, 24))
      assert sizes["parameters"] <= tokens * 128
      if sizes["rank"] < 24:  # Full: DePT at 64 has no use for the rest.
        assert sizes["parameters"] > tokens * 128 - (128 + 24)
      if method != "plain":
        assert sizes["prompt_tokens"] == tokens // 2
  parts = {
    m: set(methods.sizes(FORM.module(m, 32, 128, 24))["parts"]) for m in methods.METHODS
  }
  assert parts["plain"] == {"prompt"}
  assert parts["dept"] == parts["ept_without_both"] == {"prompt", "low_rank"}
  assert parts["ept"] == {"prompt", "low_rank", "fusion", "spaces"}
  assert parts["ept_without_fusion"] == {"prompt", "low_rank", "spaces"}
  assert parts["ept_without_spaces"] == {"prompt", "low_rank", "fusion"}


def test_the_rates_with_the_best_validation_are_chosen():
  tries = [
    {"rates": {"prompt": rate}, "mean": mean}
    for rate, mean in ((0.1, 0.5), (0.3, 0.7), (1.0, 0.7), (3.0, 0.6))
  ]
  assert methods.chosen(tries, "exact_match") == {"prompt": 0.3}
  assert methods.chosen(tries, "loss") == {"prompt": 0.1}


def test_ratios_are_of_the_times_within_a_round():
  costs = {
    "a": cost.Cost(10, 200.0, 2**20, (1.0, 4.0, 2.0)),
    "b": cost.Cost(20, 100.0, 2**21, (1.0, 1.0, 3.0)),
  }
  row = cost.summary(costs)["b"]
  assert row["flops_ratio"] == 0.5
  assert row["temporary_mebibytes"] == 2
  # 1, 0.25 and 1.5 in order: 0.25, 1, 1.5.
  assert row["time_ratio"] == {
    "minimum": 0.25,
    "lower_quartile": 0.625,
    "median": 1.0,
    "upper_quartile": 1.25,
    "maximum": 1.5,
  }


@pytest.fixture(scope="module")
def at_work(tiny, tmp_path_factory):
  return studies_at_work.finished("ablation", tiny, tmp_path_factory.mktemp)


@pytest.fixture(scope="module")
def arguments(at_work):
  """Of an ablation of two tasks on a random backbone: its numbers mean nothing."""
  return at_work[0]


@pytest.fixture(scope="module")
def finished(at_work):
  """Each method takes seconds to compile, so three are left out."""
  with studies_at_work.three_methods():
    yield at_work[1:]


def test_every_method_is_trained_on_every_task_and_initial_prompt(finished):
  folder, results = finished
  assert json.loads((folder / "results.json").read_text()) == results
  assert len(list((folder / "runs").iterdir())) == 3 * 2 * 2
  assert len(list((folder / "tuning").iterdir())) == 3
  for method in methods.METHODS:
    (tried,) = results["tuning"]["methods"][method]["tries"]
    assert len(tried["validation"]) == 1
    assert tried["rates"]["prompt"] == 0.3
    for task in ("one", "two"):
      assert len(results["scores"]["16"][method][task]) == 2
    manifest = json.loads(
      (folder / "runs" / f"{method}-16-one-0" / "manifest.json").read_text()
    )
    assert manifest["data"]["seed"] == manifest["initial_seed"] == 0
  assert list(results["cost"]) == [*methods.METHODS, "plain, again"]


def test_the_report_has_its_tables_and_plots(finished):
  folder, results = finished
  text = (folder / "report.md").read_text()
  assert results["date"] in text
  assert "python -m x" in text
  for label in (method.label for method in methods.METHODS.values()):
    assert text.count(f"| {label} |") >= 4
  for name in ("tasks", "lengths"):
    assert f"({name}.png)" in text
    assert (folder / f"{name}.png").read_bytes().startswith(b"\x89PNG")
  assert (folder / "config.gin").read_text() == "x = 1\n"


def test_the_report_says_so_if_ept_does_not_win(finished):
  _, results = finished
  minus = {"mean": -0.1, "deviation": 0.0, "higher": 0, "lower": 4}
  row = {"deviation": 0.05, "worst": 0.1, "spread": 0.1}
  row |= {"minus_plain": minus, "minus_dept": minus}
  name, label = "ept_without_fusion", "EPT without fusion"
  means = {"plain": 0.5, "dept": 0.9, "ept": 0.8, name: 0.6}
  results = {
    **results,
    "methods": {**results["methods"], name: results["methods"]["ept"]},
    "labels": {**results["labels"], name: label},
  }
  made_up = {m: row | {"mean": mean} for m, mean in means.items()}
  text = report.markdown({**results, "summary": {"16": made_up}})
  assert "EPT does **not** win here (place 2 of 4)" in text
  assert "minus plain tuning -10.0 ± 0.0 (0 : 4)" in text
  assert "EPT without fusion: 20.0 points less than EPT" in text
  assert "a method's mean has a standard deviation of up to 5.0 points" in text
  made_up["ept"]["mean"] = 0.95
  text = report.markdown({**results, "summary": {"16": made_up}})
  assert "EPT has the highest mean here (place 1 of 4)" in text


def test_a_second_call_trains_nothing_and_finds_the_same_scores(
  finished, arguments, monkeypatch
):
  folder, results = finished
  # Timing compiles every step again, and is not what is tried here.
  monkeypatch.setattr(methods.Runs, "cost", lambda *_: results["cost"])
  before = {p: p.stat().st_mtime_ns for p in folder.rglob("*.safetensors")}
  with studies_at_work.kept(folder):
    again = ablation.ablation(**arguments, output_dir=folder)
  assert again["scores"] == results["scores"]
  assert before == {p: p.stat().st_mtime_ns for p in folder.rglob("*.safetensors")}


@pytest.mark.parametrize(
  ("changed", "message"),
  [
    ({"initial_seeds": (3,)}, "at least two of each"),
    ({"tuning_seed": 1}, "initial prompt 1, which is also in the comparison"),
    ({"tuning_tasks": ["tow"]}, "Did you mean 'two'"),
    ({"plain_rates": [0.1, 0.3]}, "give equally many"),
    ({"decomposed_rates": [(0.1,)]}, "must be two rates"),
    ({"prompt_length": 1}, "prompt_length is 1"),
    ({"output_dir": "gs://bucket/x"}, "needs a folder of this machine"),
  ],
)
def test_unfair_or_impossible_settings_are_refused_before_anything_is_written(
  arguments, tmp_path, changed, message
):
  folder = tmp_path / "out"
  with pytest.raises(UserError, match=message):
    ablation.ablation(**{**arguments, "output_dir": folder, **changed})
  assert not folder.exists()


def test_a_users_own_tasks_are_taken_and_what_names_others_is_named(tmp_path, capsys):
  mine = tmp_path / "mine.gin"
  mine.write_text(
    "from __gin__ import dynamic_registration\n"
    "from tpv_jax.data import text_files\n"
    "TASKS = [@one/text_files.text_file_task(), @two/text_files.text_file_task()]\n"
    "text_files.text_file_task.template = '{x}'\n"
    "text_files.text_file_task.target = 'y'\n"
    "text_files.text_file_task.labels = ['positive', 'negative']\n"
    "one/text_files.text_file_task.name = 'one'\n"
    "one/text_files.text_file_task.paths = 'one.tsv'\n"
    "two/text_files.text_file_task.name = 'two'\n"
    "two/text_files.text_file_task.paths = 'two.tsv'\n"
  )
  flags = [
    "--gin_file=gin_configs/runs/ablation.gin",
    f"--gin_file={mine}",
    f"--gin.OUTPUT_DIR='{tmp_path}/out'",
  ]
  assert cli.main(["ablation", *flags]) == 2
  said = capsys.readouterr().err
  assert "TUNING_TASKS has 'topic', which is not among the TASKS one, two" in said
  assert not (tmp_path / "out").exists()


def test_a_task_is_tuned_on_once(tmp_path, capsys):
  flags = [
    "--gin_file=gin_configs/runs/ablation.gin",
    "--gin.TUNING_TASKS=['topic', 'topic']",
    f"--gin.OUTPUT_DIR='{tmp_path}/out'",
  ]
  assert cli.main(["ablation", *flags]) == 2
  assert "Two TUNING_TASKS are 'topic'" in capsys.readouterr().err


def test_the_command_refuses_a_folder_of_something_else(tmp_path, capsys):
  (tmp_path / "mine.txt").write_text("mine")
  flags = ["--gin_file=gin_configs/runs/ablation.gin", f"--gin.OUTPUT_DIR='{tmp_path}'"]
  assert cli.main(["ablation", *flags]) == 2
  assert "holds no ablation of tpv_jax" in capsys.readouterr().err
  assert [path.name for path in tmp_path.iterdir()] == ["mine.txt"]

"""The study: its arithmetic on scores, and the job of `make demo` with its floors."""

import json
import pathlib

import numpy as np
import pytest

from tpv_jax import study as study_command
from tpv_jax.runner import report, study
from tpv_jax.vectors import store


def made_up_results():
  """Two tasks, two initial prompts, numbers that are easy to average by hand."""

  def scores(exact, label):
    return {"exact_match": exact, "label_accuracy": label}

  return {
    "tasks": ["a", "b"],
    "initial_seeds": [0, 1],
    "backbone": {"name": "x", "fingerprint": "0" * 64},
    "coefficients": [0.5, 1.0],
    "single": {
      "a": {
        "no_prompt": scores(0.0, 0.5),
        "own": [scores(1.0, 1.0), scores(0.8, 0.9)],
        "other_initial": [0.6, 0.4],
        "control": [0.1, 0.1],
      },
      "b": {
        "no_prompt": scores(0.0, 0.8),
        "own": [scores(0.5, 0.6), scores(0.5, 0.6)],
        "other_initial": [0.5, 0.3],
        "control": [0.3, 0.1],
      },
    },
    "sums": [
      {
        "tasks": ["a", "b"],
        "coefficient": [1.0, 0.5],
        "scores": {"a": [0.5, 0.4], "b": [0.5, 0.25]},
      },
    ],
    "negation": {
      name: {
        "before": [0.5, 0.4],
        "after": [0.0, 0.0],
        "partner_before": [0.5, 0.5],
        "partner_after": [0.75, 0.25],
      }
      for name in ("a", "b")
    },
    "cosine": {
      "names": ["a-0", "a-1", "b-0", "b-1"],
      "prompts": [
        [1, 0.8, 0.6, 0.1],
        [0.8, 1, 0.2, 0.4],
        [0.6, 0.2, 1, 0.3],
        [0.1, 0.4, 0.3, 1],
      ],
      "vectors": np.eye(4).tolist(),
    },
    "device": "cpu",
    "seconds": {"tuning": 1.0, "all": 2.0},
  }


def test_the_summary_averages_as_its_words_say():
  summary = study.summarise(made_up_results())
  assert summary["own"] == pytest.approx((0.9 + 0.5) / 2)
  assert summary["tasks_with_own_at_least_0.90"] == 1
  assert summary["other_initial"] == pytest.approx((0.5 + 0.4) / 2)
  assert summary["control"] == pytest.approx((0.1 + 0.2) / 2)
  assert summary["own_minus_control"] == pytest.approx((0.8 + 0.3) / 2)
  assert summary["pair_sums"] == pytest.approx((0.5 + 0.4 + 0.5 + 0.25) / 4)
  assert summary["pair_sums_relative"] == pytest.approx((0.5 + 0.5 + 1.0 + 0.5) / 4)
  assert summary["pair_sums_minus_control"] == pytest.approx((0.35 + 0.175) / 2)
  assert summary["sum_of_all"] is None
  assert summary["tasks_with_label_accuracy_at_most_0.75_without_prompt"] == 1


def test_sums_of_a_task_that_its_own_prompt_does_not_solve_are_not_relative_to_0():
  results = made_up_results()
  results["single"]["a"]["own"] = [{"exact_match": 0.0, "label_accuracy": 0.5}] * 2
  assert study.summarise(results)["pair_sums_relative"] == pytest.approx(
    (1.0 + 0.5) / 2
  )
  results["single"]["b"]["own"] = [{"exact_match": 0.0, "label_accuracy": 0.5}] * 2
  assert study.summarise(results)["pair_sums_relative"] is None


def test_cosines_are_grouped_by_task_and_initial_prompt():
  groups = study.cosine_groups(made_up_results()["cosine"], seeds=2)["prompts"]
  assert groups["same_task_other_initial"] == pytest.approx((0.8 + 0.3) / 2)
  assert groups["other_task_same_initial"] == pytest.approx((0.6 + 0.4) / 2)
  assert groups["other_task_other_initial"] == pytest.approx((0.1 + 0.2) / 2)


def test_the_report_has_every_table_and_plot(tmp_path, capsys):
  results = made_up_results()
  results["summary"] = study.summarise(results)
  report.write(tmp_path, results)
  text = (tmp_path / "report.md").read_text()
  assert (
    "| a | 0.0 | 90.0 ± 14.1 | 50.0 ± 14.1 | 10.0 ± 0.0 | 50.0 | 95.0 ± 7.1 |" in text
  )
  assert "| a + b | 1, 0.5 | a 45.0 ± 7.1, b 37.5 ± 17.7 | 62.5 |" in text
  assert "| a | 45.0 ± 7.1 | 0.0 ± 0.0 | 50.0 ± 0.0 | 50.0 ± 35.4 |" in text
  for name in ("single", "sums", "cosine"):
    assert f"({name}.png)" in text
    assert (tmp_path / f"{name}.png").read_bytes().startswith(b"\x89PNG")
  assert str(tmp_path / "report.md") in capsys.readouterr().out.replace("\n", "")


@pytest.fixture(scope="module")
def demo(tmp_path_factory):
  """The job of `make demo`, whole: about two minutes alone on two cores."""
  folder = tmp_path_factory.mktemp("a demo") / "out put"
  code = study_command.main(
    ["--gin_file=gin_configs/runs/demo.gin", f"--gin.OUTPUT_DIR='{folder}'"]
  )
  assert code == 0
  return folder, json.loads((folder / "results.json").read_text())


def test_the_demo_reaches_its_floors_on_the_test_split(demo):
  summary = demo[1]["summary"]
  assert summary["tasks_with_own_at_least_0.90"] >= 4
  assert summary["own_minus_control"] >= 0.50
  assert summary["pair_sums_minus_control"] >= 0.30
  assert summary["tasks_with_label_accuracy_at_most_0.75_without_prompt"] >= 2


def test_the_demo_writes_its_report_vectors_and_plots(demo):
  folder, results = demo
  for name in ("report.md", "config.gin", "single.png", "sums.png", "cosine.png"):
    assert (folder / name).stat().st_size > 1000 or name == "config.gin"
  for task in results["tasks"]:
    for seed in results["initial_seeds"]:
      _, provenance = store.read(folder / "vectors" / f"{task}-{seed}.safetensors")
      assert provenance.kind == "vector" and provenance.initial_seed == seed
      assert [(term.task, term.coefficient) for term in provenance.terms] == [
        (task, 1.0)
      ]


def test_negating_a_task_in_a_sum_forgets_it_and_not_its_partner(demo):
  for negation in demo[1]["negation"].values():
    assert np.mean(negation["after"]) <= 0.2 * np.mean(negation["before"])
    assert np.mean(negation["partner_after"]) >= 0.6 * np.mean(
      negation["partner_before"]
    )


def test_a_study_does_not_write_into_a_folder_of_something_else(tmp_path, capsys):
  (tmp_path / "report.md").write_text("mine")
  arguments = ["--gin_file=gin_configs/runs/demo.gin", f"--gin.OUTPUT_DIR='{tmp_path}'"]
  assert study_command.main(arguments) == 2
  assert "holds no study of tpv_jax" in capsys.readouterr().err
  assert [path.name for path in tmp_path.iterdir()] == ["report.md"]


def test_a_study_with_other_settings_does_not_take_the_old_prompts(demo, capsys):
  arguments = ["--gin_file=gin_configs/runs/demo.gin", f"--gin.OUTPUT_DIR='{demo[0]}'"]
  assert study_command.main([*arguments, "--gin.PROMPT_LENGTH=5"]) == 2
  err = capsys.readouterr().err
  assert (
    "holds a run with another prompt/length: 8 there, 5 now" in err
    and "OVERWRITE=True" in err
  )
  assert len(err) < 600


def test_a_demo_vector_is_the_difference_of_its_files(demo):
  folder, results = demo
  task = results["tasks"][0]
  run = pathlib.Path(folder) / "runs" / f"{task}-0"
  best, _ = store.read(run / "best_prompt.safetensors")
  initial, _ = store.read(run / "initial_prompt.safetensors")
  vector, _ = store.read(folder / "vectors" / f"{task}-0.safetensors")
  np.testing.assert_array_equal(vector["prompt"], best["prompt"] - initial["prompt"])

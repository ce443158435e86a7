"""The comparison of starts: its arithmetic by hand, and a tiny one from end to end."""

import dataclasses
import json

import gin
import numpy as np
import pytest
import studies_at_work

from tpv_jax import cli
from tpv_jax.core.errors import UserError
from tpv_jax.data import few_shot as sampling
from tpv_jax.data import tasks
from tpv_jax.embedded import suite
from tpv_jax.evaluation.evaluation import Evaluator
from tpv_jax.formats import sources
from tpv_jax.settings import gin_files
from tpv_jax.studies import base, few_shot, starts
from tpv_jax.studies.report import few_shot as report
from tpv_jax.studies.report import writer
from tpv_jax.training.task_data import TaskData
from tpv_jax.vectors import algebra, store
from tpv_jax.vectors.merging.merge import merge


@pytest.fixture(scope="module")
def at_work(tiny, tmp_path_factory):
  return studies_at_work.finished("few-shot", tiny, tmp_path_factory.mktemp)


@pytest.fixture(scope="module")
def arguments(at_work):
  """Of a comparison of one target on a random backbone: its numbers mean nothing."""
  return at_work[0]


@pytest.fixture(scope="module")
def finished(at_work):
  return at_work[1:]


def manifest(folder, name):
  return json.loads((folder / "runs" / name / "manifest.json").read_text())


def prompt(path):
  return store.read(path)[0]["prompt"]


def test_every_start_is_trained_on_every_target_number_and_initial_prompt(finished):
  folder, results = finished
  assert json.loads((folder / "results.json").read_text()) == results
  assert len(list((folder / "runs").iterdir())) == 4 * 2
  assert len(list((folder / "sources").iterdir())) == 3 * 2
  assert list(results["scores"]) == ["0", "30"]
  for by_start in results["scores"].values():
    assert list(by_start) == list(starts.STARTS)
    for by_target in by_start.values():
      assert {name: len(scores) for name, scores in by_target.items()} == {"d": 2}


def test_the_starts_are_the_initial_prompt_plus_the_vectors_that_they_name(finished):
  folder, _ = finished
  for seed in (0, 1):
    begin, moved = {}, {}
    for name in ("a", "b", "c"):
      run = folder / "sources" / f"{name}-{seed}"
      begin[name] = prompt(run / "initial_prompt.safetensors")
      moved[name] = prompt(run / "best_prompt.safetensors") - begin[name]
    np.testing.assert_array_equal(begin["a"], begin["b"])
    expected = {
      "random": 0.0,
      "related": moved["a"],
      "sum": moved["a"] + moved["b"],
      "unrelated": moved["c"],
    }
    for start, vector in expected.items():
      run = folder / "runs" / f"d-{start}-30-{seed}"
      np.testing.assert_allclose(
        prompt(run / "initial_prompt.safetensors"),
        begin["a"] + 0.5 * vector,
        atol=1e-6,  # A few roundings of numbers of size 1 in fp32.
      )


def test_all_starts_see_one_sample_and_manifests_and_results_name_it(
  finished, arguments
):
  folder, results = finished
  task = arguments["targets"][0].task
  for seed in (0, 1):
    drawn = sampling.few_shot(task, 30, seed).examples("train")
    assert results["samples"]["30"]["d"][seed] == tasks.digest(drawn)
    for start in starts.STARTS:
      data = manifest(folder, f"d-{start}-30-{seed}")["data"]
      assert data["train_digest"] == tasks.digest(drawn)
      assert data["batch_size"] == 8
      assert data["seed"] == seed
      assert data["train"].startswith("30 examples")
      assert data["validation"].startswith("8 examples")


class Sums(Evaluator):
  """A prompt's score is the sum of its numbers, more for more examples."""

  def __init__(self):
    pass

  def tokenize(self, examples, what=None):
    return len(examples)

  def exact_matches(self, pairs):
    return [float(leaves["prompt"].sum()) + 100 * test for leaves, test in pairs]


def test_scores_are_of_the_best_prompts_and_of_the_starts_themselves(
  finished, arguments, tiny
):
  folder, _ = finished
  jobs = few_shot._jobs(
    folder, arguments["targets"], (0, 1), arguments["initial_prompt"], 0.5
  )
  asked = [(job.start, job.seed) for job in jobs]
  begin = base.drawn(tiny.plain_model, asked, tiny.backbone)
  tuned = starts.tuned(jobs, [0, 30], begin)
  test = base.Split(Sums(), [arguments["targets"][0].task], most=25)
  found = starts.scores(test, {key: one.leaves for key, one in tuned.items()})
  for start in starts.STARTS:
    for number, which in (("30", "best"), ("0", "initial")):
      expected = [
        prompt(
          folder / "runs" / f"d-{start}-30-{seed}" / f"{which}_prompt.safetensors"
        ).sum()
        + 2500
        for seed in (0, 1)
      ]
      assert found[number][start]["d"] == pytest.approx(expected, abs=1e-3)


def test_the_report_has_its_tables_and_its_plot(finished, capsys):
  folder, results = finished
  with studies_at_work.kept(folder):
    writer.write(folder, results, report)
  text = (folder / "report.md").read_text()
  assert results["date"] in text
  assert "python -m x" in text
  for label in starts.STARTS.values():
    assert text.count(f"| {label} |") >= 3
  assert "in batches of 8 (30 examples)" in text
  assert "P + 0.5 v" in text
  assert "Of copied words. Related: a; the sum: a + b; unrelated: c." in text
  assert (folder / "scores.png").read_bytes().startswith(b"\x89PNG")
  assert (folder / "config.gin").read_text() == "x = 1\n"
  assert "Report: " in capsys.readouterr().out


def test_the_report_says_which_start_is_best_and_what_the_control_gains(finished):
  _, results = finished

  def scores(value):
    return {"d": [value, value], "e": [value, value + 0.2]}

  made_up = {"random": 0.1, "related": 0.3, "sum": 0.2, "unrelated": 0.4}
  summary = starts.summarise({"5": {s: scores(v) for s, v in made_up.items()}})
  assert summary["5"]["related"]["mean"] == pytest.approx(0.35)
  text = report.markdown({**results, "summary": summary})
  assert (
    "5 examples: an unrelated vector **45.0**, one related vector **35.0**, sum of two "
    "vectors **25.0**, random **15.0**"
  ) in text
  assert "one related vector minus random: +20.0 ± 0.0 (4 : 0) at 5" in text
  assert "sum of two vectors minus one related vector: -10.0 ± 0.0 (0 : 4) at 5" in text
  assert "an unrelated vector minus random: +30.0 ± 0.0 (4 : 0) at 5" in text


def test_a_second_call_trains_nothing_and_finds_the_same_scores(finished, arguments):
  folder, results = finished
  before = {p: p.stat().st_mtime_ns for p in folder.glob("*/*/*.safetensors")}
  with studies_at_work.kept(folder):
    again = few_shot.compare_starts(**arguments, output_dir=folder)
  assert again["scores"] == results["scores"]
  assert again["curves"] == results["curves"]
  assert before
  assert before == {p: p.stat().st_mtime_ns for p in folder.glob("*/*/*.safetensors")}


def test_curves_are_means_over_initial_prompts(finished):
  folder, results = finished
  values = []
  for seed in (0, 1):
    text = (folder / "runs" / f"d-sum-30-{seed}" / "metrics.jsonl").read_text()
    for line in map(json.loads, text.splitlines()):
      if line["kind"] == "validation" and line["step"] == 2:
        values.append(line["exact_match"])
  assert len(values) == 2
  assert results["curves"]["30"]["sum"]["2"] == pytest.approx(np.mean(values))
  assert list(results["curves"]["30"]["sum"]) == ["2", "4"]


@pytest.mark.parametrize(
  ("changed", "message"),
  [
    ({"shots": []}, r"SHOTS is \[\]"),
    ({"shots": [2, 2]}, "Two numbers in SHOTS are '2'"),
    ({"shots": [1001]}, "SHOTS is 1001"),
    ({"shots": [41]}, "has 40 training examples, of which 41 were"),
    ({"targets": []}, r"TARGETS is \[\]"),
    ({"initial_seeds": (3,)}, r"at least two INITIAL_SEEDS \(now \[3\]\)"),
    ({"test_examples": 0}, "test_examples is 0"),
    ({"output_dir": "gs://bucket/x"}, "needs a folder of this machine"),
  ],
)
def test_settings_that_compare_nothing_are_refused_before_anything_is_written(
  arguments, tmp_path, changed, message
):
  folder = tmp_path / "out"
  with pytest.raises(UserError, match=message):
    few_shot.compare_starts(**{**arguments, "output_dir": folder, **changed})
  assert not folder.exists()


def test_the_two_vectors_of_a_sum_may_be_merged_by_a_rule(arguments, finished):
  folder, _ = finished
  both = [
    algebra.diff(
      sources.load(str(folder / "sources" / f"{name}-0"), "best"),
      sources.load(str(folder / "sources" / f"{name}-0"), "initial"),
    )
    for name in ("a", "b")
  ]
  with studies_at_work.kept(folder):
    merge_by = {"rule": "ties", "density": 0.5}
    few_shot._write_vectors(folder, arguments["targets"], (0,), merge_by)
    written = prompt(folder / "vectors" / "a+b-0.safetensors")
  expected = merge(both, "ties", options={"density": 0.5}).leaves["prompt"]
  np.testing.assert_array_equal(written, expected)


@pytest.mark.parametrize(
  ("merge_by", "message"),
  [
    ({"rule": "tise"}, "Did you mean 'ties'"),
    ({"rule": "ties", "of": ["x"]}, "MERGE has 'of'"),
    ({"rule": "ties", "densty": 1}, "has no option 'densty'"),
    ({"rule": "concat"}, "makes a prompt"),
    ({"rule": "fisher"}, "reads data"),
    ({"density": 1}, "'rule' of MERGE is None"),
  ],
)
def test_a_merge_that_cannot_be_is_refused(arguments, tmp_path, merge_by, message):
  with pytest.raises(UserError, match=message):
    few_shot.compare_starts(
      **{**arguments, "output_dir": tmp_path / "x", "merge": merge_by}
    )


def test_sources_that_do_not_fit_their_targets_are_refused(arguments, tmp_path):
  task = arguments["targets"][0].task

  def refused(message, **changed):
    with pytest.raises(UserError, match=message):
      few_shot.compare_starts(**{**arguments, "output_dir": tmp_path / "x", **changed})

  twice = [arguments["source_tasks"][0]] * 2
  refused("Two source tasks are 'a'", source_tasks=twice)
  refused("Two targets are 'd'", targets=[arguments["targets"][0]] * 2)
  refused(
    "the vector of 'aa', which is not among the sources a, b, c. Did you mean 'a'",
    targets=[few_shot.Target(task, "aa", "b", "c")],
  )
  refused("one source in two roles", targets=[few_shot.Target(task, "a", "b", "a")])


def test_the_command_refuses_a_folder_of_something_else(tmp_path, capsys):
  (tmp_path / "mine.txt").write_text("mine")
  flags = [
    "--gin_file=gin_configs/runs/few_shot_embedded.gin",
    f"--gin.OUTPUT_DIR='{tmp_path}'",
    "--gin.SHOTS=[0]",  # So that no examples are made.
  ]
  assert cli.main(["few-shot", *flags]) == 2
  assert "holds no few-shot comparison of tpv_jax" in capsys.readouterr().err
  assert [path.name for path in tmp_path.iterdir()] == ["mine.txt"]


def test_the_protocols_file_samples_the_task_and_sets_its_batch_size():
  gin_files.parse(
    ["gin_configs/runs/embedded.gin", "gin_configs/runs/few_shot.gin"],
    ["TASK_NAME='topic'", "RUN_DIR='x'", "SHOTS=50", "SHOT_SEED=3"],
  )
  assert gin.query_parameter("%TRAIN_STEPS") == 1000
  assert gin.query_parameter("%WARMUP_STEPS") == 500
  assert gin.query_parameter("%EVAL_PERIOD") == 100
  data = gin.get_configurable(TaskData)()
  drawn = sampling.few_shot(suite.task("topic"), 50, 3)
  assert data.batch_size == 8
  assert data.describe()["train_digest"] == drawn.split_digest("train")
  assert data.name == "topic_50shot_seed3"


def test_a_target_may_have_one_source_only(arguments, finished):
  """So two tasks are enough: the starts that need more sources are left out."""
  target = few_shot.Target(arguments["targets"][0].task, "a")
  assert target.starts() == {"random": (), "related": ("a",)}
  whole = few_shot.Target(target.task, "a", "b", "c").starts()
  assert list(whole) == list(starts.STARTS)
  assert whole["sum"] == ("a", "b")
  _, results = finished
  few = {
    **results,
    "starts": {name: starts.STARTS[name] for name in target.starts()},
    "targets": {"d": target.roles()},
    "summary": {
      number: {name: rows[name] for name in target.starts()}
      for number, rows in results["summary"].items()
    },
    "curves": {
      number: {name: rows[name] for name in target.starts()}
      for number, rows in results["curves"].items()
    },
  }
  said = report.markdown(few)
  assert "Related: a." in said
  assert "sum of two vectors" not in said
  other = dataclasses.replace(target.task, name="e")
  mixed = {"targets": [target, few_shot.Target(other, "a", "b")]}
  with pytest.raises(UserError, match=r"'e' has other starts than 'd'"):
    few_shot.compare_starts(**arguments | mixed, output_dir="no")

"""What makes vectors move and add: the variants, what is measured, what is kept."""

import csv
import dataclasses
import json
import os
import signal

import numpy as np
import pytest
import studies_at_work

from tpv_jax.core.errors import UserError
from tpv_jax.evaluation.evaluator import Evaluator
from tpv_jax.formats import sources
from tpv_jax.studies import base, moved, moving
from tpv_jax.studies.report import moving as report
from tpv_jax.training import loop, signals
from tpv_jax.vectors import algebra, arithmetic

BASE = moving.Variant("small_normal", 0.1, 1.0, 2, 4)


@pytest.fixture(scope="module")
def finished(tiny, tmp_path_factory):
  return studies_at_work.finished("moving", tiny, tmp_path_factory.mktemp)


@pytest.fixture(scope="module")
def evaluator(tiny):
  return Evaluator(
    tiny.plain_model, tiny.backbone.params, tiny.vocabulary, tiny.lengths
  )


def test_a_variant_changes_what_it_says_and_a_new_start_has_its_own_scale():
  assert BASE.with_changes({"rate": 3.0}) == dataclasses.replace(BASE, rate=3.0)
  assert BASE.with_changes({"start": "uniform"}).scale is None
  assert BASE.with_changes({"start": "uniform", "scale": 0.5}).scale == 0.5
  assert BASE.name == "small_normal-0.1-rate-1-steps-2-length-4"


@pytest.mark.parametrize(
  ("changed", "message"),
  [
    ({"variants": [{"lenght": 5}]}, r"'lenght'.* Did you mean 'length'"),
    ({"variants": [{"steps": 0}]}, "steps is 0"),
    ({"variants": [{"rate": -1.0}]}, "rate is -1"),
    ({"variants": [{"scale": 0.1}]}, "Two VARIANTS are"),
    ({"variants": [{"start": "small_norm"}]}, "Did you mean 'small_normal'"),
    (
      {"variants": [{"start": "sampled_vocabulary", "scale": 1.0}]},
      "takes no scale",
    ),
    ({"learning_rate": lambda step: 0.1 * (step < 1)}, "learning rate is 0 before"),
  ],
)
def test_variants_that_cannot_be_are_refused_first(tiny, tmp_path, changed, message):
  given = studies_at_work.moving(tiny, tmp_path) | changed
  with pytest.raises(UserError, match=message):
    moving.moving(**given, output_dir=tmp_path / "out")
  assert not (tmp_path / "out").exists()


def test_the_scores_are_those_of_the_prompts_that_the_words_name(
  tiny, finished, evaluator
):
  _, folder, results = finished
  variant = results["variants"][0]
  assert variant["changed"] == {}
  run = folder / "runs" / variant["name"]
  own = sources.load(str(run / "a-0"))
  starts = [sources.load(str(run / f"a-{seed}"), "initial") for seed in (0, 1)]
  other = sources.load(str(run / "a-1"))
  vector = algebra.diff(other, starts[1])
  prompts = {
    "own": own,
    "untuned": starts[0],
    "moved": algebra.apply(vector, starts[0]),
    "control": sources.load(str(run / "b-0")),
  }
  task = dataclasses.replace(
    tiny.task, load=lambda split: tiny.task.examples(split)[:16]
  )
  for kind, prompt in prompts.items():
    scores = evaluator.evaluate(prompt.leaves, task, "test").scores
    assert variant["tasks"]["a"][kind][0] == pytest.approx(
      {name: scores[name] for name in base.METRICS}
    )
  ratio = arithmetic.norm(vector.leaves) / arithmetic.norm(starts[1].leaves)
  assert variant["tasks"]["a"]["ratio"][1] == pytest.approx(ratio)
  vectors = [algebra.diff(own, starts[0]), vector]
  assert variant["tasks"]["a"]["cosine_same_task"] == pytest.approx(
    [algebra.cosine(vectors)[0, 1]] * 2
  )


class Sums(base.Split):
  """Stands in for a split: the score of a prompt is the sum of its values."""

  def __init__(self):
    pass

  def hits(self, asked):
    return {
      key: dict.fromkeys(base.METRICS, np.asarray([leaves["prompt"].sum()], float))
      for key, (leaves, _) in asked.items()
    }


def test_each_measurement_scores_the_prompt_that_it_names(tiny, finished):
  arguments, folder, results = finished
  name = results["variants"][0]["name"]
  run = folder / "runs" / name
  tuned = {
    (task, seed): sources.load(str(run / f"{task}-{seed}"))
    for task in "ab"
    for seed in (0, 1)
  }
  starts = [sources.load(str(run / f"a-{seed}"), "initial") for seed in (0, 1)]
  vectors = moved.Vectors(folder, name, arguments["tasks"], (0, 1), starts[1])

  def total(prompt):
    return float(prompt.leaves["prompt"].astype(np.float64).sum())

  own = {key: total(one) for key, one in tuned.items()}
  untuned = [total(one) for one in starts]
  change = {(task, seed): own[task, seed] - untuned[seed] for task, seed in own}
  expected = {
    "untuned": untuned,
    "own": [own["a", 0], own["a", 1]],
    "moved": [untuned[0] + change["a", 1], untuned[1] + change["a", 0]],
    "control": [own["b", 0], own["b", 1]],
  }
  single = vectors._single(Sums())["a"]
  for kind, values in expected.items():
    found = [one["exact_match"] for one in single[kind]]
    assert found == pytest.approx(values, abs=1e-4), kind
  assert abs(change["a", 0] - change["a", 1]) > 1e-2  # Else 'moved' would show nothing.
  (pair,) = vectors._sums(Sums(), [[0.5, 1.0]])
  assert [one["exact_match"] for one in pair["scores"]["b"]] == pytest.approx(
    [
      untuned[seed] + weight * (change["a", seed] + change["b", seed])
      for seed, weight in ((0, 0.5), (1, 1.0))
    ],
    abs=1e-4,
  )
  averaged = vectors._averaged(Sums())["a"]["exact_match"]
  mean = (change["a", 0] + change["a", 1]) / 2
  assert averaged == pytest.approx(untuned[1] + mean, abs=1e-4)


def test_coefficients_of_equal_exact_match_are_told_apart_by_the_labels(finished):
  arguments, folder, results = finished
  name = results["variants"][0]["name"]
  fresh = sources.load(str(folder / "runs" / name / "a-0"), "initial")
  vectors = moved.Vectors(folder, name, arguments["tasks"], (0, 1), fresh)

  class Telling(Sums):
    def hits(self, asked):  # Only sums with the second one tell labels apart.
      none = np.zeros(4, bool)
      return {
        (pair, seed, coefficient, task): {
          "exact_match": none,
          "label_accuracy": none | (coefficient == 0.5),
        }
        for pair, seed, coefficient, task in asked
      }

  assert vectors._search(Telling(), (0.25, 0.5, 1.0)) == [[0.5, 0.5]]
  assert vectors._search(Telling(), (0.25, 1.0)) == [[0.25, 0.25]]


def test_a_variant_that_is_added_is_all_that_is_trained(
  finished, tmp_path, monkeypatch
):
  arguments, folder, results = finished
  trained = []
  tune = base.Session.tune_each

  def counted(self, jobs, *rest):
    jobs = list(jobs)
    found = [
      entry.run_dir
      for _, entry in jobs
      if not (entry.run_dir / "manifest.json").exists()
    ]
    trained.extend(found)
    return tune(self, jobs, *rest)

  monkeypatch.setattr(base.Session, "tune_each", counted)
  more = {"variants": [*arguments["variants"], {"scale": 1.0}]}
  with studies_at_work.kept(folder):
    again = moving.moving(**arguments | more, output_dir=folder)
  assert len(trained) == 4
  assert {path.parent.name for path in trained} == {
    "small_normal-1-rate-1-steps-2-length-4"
  }
  assert again["variants"][:3] == results["variants"]


@pytest.mark.parametrize(("more", "period"), [(0, 2), (1, 4)])
def test_runs_on_a_large_backbone_write_checkpoints(
  tiny, tmp_path, monkeypatch, more, period
):
  monkeypatch.setattr(base, "LARGE", tiny.backbone.parameters + more)
  given = {"total_steps": 4, "eval_period": 2, "variants": [], "as_bank": True}
  given = studies_at_work.moving(tiny, tmp_path) | given
  moving.moving(**given, output_dir=tmp_path / "out")
  manifests = [json.loads(one.read_text()) for one in tmp_path.rglob("manifest.json")]
  assert {one["settings"]["checkpoint_period"] for one in manifests} == {period}


@pytest.mark.parametrize("as_bank", [True, False])
def test_a_signal_at_the_end_of_a_run_stops_the_study_and_keeps_the_run(
  tiny, tmp_path, monkeypatch, as_bank
):
  """As if it came during the run's last call of compiled steps."""
  record, sent = loop.Run.record, []

  def signalled(run, start, stop, *rest):
    if stop == run.total_steps and not sent:
      sent.append(True)
      os.kill(os.getpid(), signal.SIGTERM)
    return record(run, start, stop, *rest)

  given = studies_at_work.moving(tiny, tmp_path) | {"as_bank": as_bank}
  monkeypatch.setattr(loop.Run, "record", signalled)
  with pytest.raises(signals.Stopped, match="SIGTERM at the end of a run"):
    moving.moving(**given, output_dir=tmp_path / "out")
  manifests = [json.loads(one.read_text()) for one in tmp_path.rglob("manifest.json")]
  assert [one["status"] for one in manifests] == ["finished"] * (4 if as_bank else 1)
  monkeypatch.setattr(loop.Run, "record", record)
  assert moving.moving(**given, output_dir=tmp_path / "out")["variants"]


def test_each_variant_keeps_its_own_measurements(finished):
  _, folder, results = finished
  for variant in results["variants"]:
    content = json.loads(
      (folder / "runs" / variant["name"] / "measured.json").read_text()
    )
    assert {"subject", "single", "coefficients", "sums", "averaged"} == set(content)
    assert content["subject"]["test_examples"] == 16


def test_the_table_has_a_row_for_each_variant_task_and_start(finished):
  _, folder, results = finished
  with (folder / "results.csv").open() as file:
    rows = list(csv.DictReader(file))
  assert len(rows) == 3 * 2 * 2
  last = results["variants"][2]
  assert last["settings"]["learning_rate"] == pytest.approx(
    0.5 * results["variants"][0]["settings"]["learning_rate"], rel=1e-4
  )
  row = rows[-1]
  assert (row["length"], row["rate"], row["task"], row["initial_seed"]) == (
    *("5", "0.5"),
    *("b", "1"),
  )
  assert float(row["ratio"]) == last["tasks"]["b"]["ratio"][1]
  assert report.label(last).endswith("P = 5")


def test_class_words_of_all_tasks_begin_the_start(tiny, finished):
  _, folder, results = finished
  run = folder / "runs" / results["variants"][1]["name"] / "a-0"
  start = sources.load(str(run), "initial").leaves["prompt"]
  table = np.asarray(tiny.backbone.table, np.float32)
  ids = tiny.vocabulary.encode_target(tiny.task.labels[0])
  np.testing.assert_allclose(start[0], table[ids].mean(axis=0), rtol=1e-6)


def test_what_the_worst_task_keeps_decides():
  def scores(*values):
    return [{"exact_match": value} for value in values]

  def task(own, other, summed):
    return {
      "own": scores(*own),
      "moved": scores(*other),
      "summed": scores(*summed),
      "control": scores(0.0, 0.0),
      "ratio": [1.0, 3.0],
    }

  good = task((0.8, 0.8), (0.8, 0.72), (0.4, 0.4))
  bad = task((1.0, 0.0), (0.9, 0.5), (0.2, 0.2))
  summary = moved.summarise([{"name": "v", "tasks": {"a": good, "b": bad}}])
  assert summary["variants"]["v"] == pytest.approx(
    {"ratio": 2.0, "moving": 0.95, "adding": 0.4, "control": 0.0}
  )
  assert summary["moving_keeps"] == ["v"]
  assert summary["adding_keeps"] == []
  nothing = task((0.0, 0.0), (0.5, 0.5), (0.5, 0.5))
  summary = moved.summarise([{"name": "v", "tasks": {"a": nothing}}])
  assert summary["variants"]["v"]["moving"] is None
  assert summary["moving_keeps"] == []

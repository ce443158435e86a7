"""The study: its arithmetic on scores, and the job of `make demo` with its floors."""

import copy
import dataclasses
import functools
import itertools
import json
import pathlib

import gin
import numpy as np
import pytest

from tpv_jax import cli
from tpv_jax.backbones import loading
from tpv_jax.core import identity
from tpv_jax.core.errors import UserError
from tpv_jax.data.batches import Tokenized
from tpv_jax.data.tasks import Example, Task
from tpv_jax.embedded import suite
from tpv_jax.evaluation.evaluator import Evaluator, Result
from tpv_jax.formats import sources
from tpv_jax.settings import gin_files
from tpv_jax.studies import hits, study
from tpv_jax.studies.arithmetic import Measurements
from tpv_jax.studies.measured import Measured
from tpv_jax.studies.report import arithmetic as report
from tpv_jax.studies.report import writer
from tpv_jax.vectors import algebra, store
from tpv_jax.vectors.provenance import Provenance, Term


def rows(*scores):
  """Hits on ten rows, [initial prompts, rows], with these scores."""
  return np.stack(
    [(np.arange(10) < round(10 * score)).astype(float) for score in scores]
  )


class MadeUp(hits.Answers):
  """Stands in for the answers of a study: scores that are easy to average by hand."""

  def __init__(self):
    """Holds no answers."""

  def single(self, metric):
    low = 0.1 if metric == "label_accuracy" else 0.0
    return {
      "a": {
        "own": rows(1.0, 0.8),
        "untuned": rows(low, low),
        "other_initial": rows(0.6, 0.4),
        "control": rows(0.1, 0.1),
      },
      "b": {
        "own": rows(0.5, 0.5),
        "untuned": rows(low, 0.2),
        "other_initial": rows(0.5, 0.3),
        "control": rows(0.3, 0.1),
      },
    }

  def sums(self, names, metric):
    return {"a": rows(0.5, 0.4), "b": rows(0.5, 0.3)}

  def negated(self, task, pairs, metric):
    return {
      "before": [0.5, 0.4],
      "after": [0.0, 0.0],
      "partner_before": [0.5, 0.5],
      "partner_after": [0.75, 0.25],
    }


def made_up_results():
  """Two tasks, two initial prompts, numbers that are easy to average by hand."""

  def full(exact, label):
    return {"exact_match": exact, "label_accuracy": label}

  sums = {("a", "b"): (1.0, 0.5)}
  results = {
    "tasks": ["a", "b"],
    "initial_seeds": [0, 1],
    "backbone": {"name": "x", "fingerprint": "0" * 64},
    "coefficients": [0.5, 1.0],
    **hits.tables(MadeUp(), sums, "exact_match"),
    "labels": hits.tables(MadeUp(), sums, "label_accuracy"),
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
  results["single"]["a"] |= {
    "no_prompt": full(0.0, 0.5),
    "own": [full(1.0, 1.0), full(0.8, 0.9)],
  }
  results["single"]["b"] |= {
    "no_prompt": full(0.0, 0.8),
    "own": [full(0.5, 0.6), full(0.5, 0.6)],
  }
  return results


def test_the_summary_averages_as_its_words_say():
  summary = study.summarise(made_up_results())
  assert summary["own"] == pytest.approx((0.9 + 0.5) / 2)
  assert summary["tasks_with_own_at_least_0.90"] == 1
  assert summary["other_initial"] == pytest.approx((0.5 + 0.4) / 2)
  assert summary["control"] == pytest.approx((0.1 + 0.2) / 2)
  assert summary["own_minus_control"] == pytest.approx((0.8 + 0.3) / 2)
  assert summary["pair_sums"] == pytest.approx((0.5 + 0.4 + 0.5 + 0.3) / 4)
  assert summary["pair_sums_relative"] == pytest.approx((0.5 + 0.5 + 1.0 + 0.6) / 4)
  assert summary["pair_sums_minus_control"] == pytest.approx((0.35 + 0.2) / 2)
  assert summary["untuned"] == pytest.approx((0 + 0.1) / 2)
  assert summary["labels"]["untuned"] == pytest.approx((0.1 + 0.15) / 2)
  assert (summary["pairs"], summary["pairs_that_keep_0.90"]) == (1, 0)
  assert summary["sum_of_all"] is None
  assert summary["tasks_with_label_accuracy_at_most_0.75_without_prompt"] == 1


def test_sums_of_a_task_that_its_own_prompt_does_not_solve_are_not_relative_to_0():
  results = made_up_results()
  results["single"]["a"]["own"] = [{"exact_match": 0.0, "label_accuracy": 0.5}] * 2
  assert study.summarise(results)["pair_sums_relative"] == pytest.approx(
    (1.0 + 0.6) / 2
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
  writer.write(tmp_path, results, report)
  text = (tmp_path / "report.md").read_text()
  assert "| a | 0.0 | 0.0 ± 0.0 | 90.0 ± 14.1 | 50.0 ± 14.1 | 10.0 ± 0.0 |" in text
  assert "| a | 50.0 | 10.0 ± 0.0 | 95.0 ± 7.1 | 50.0 ± 14.1 | 10.0 ± 0.0 |" in text
  assert "| a + b | 1, 0.5 | a 45.0 ± 7.1, b 40.0 ± 14.1 | 65.0 | -27.5 (" in text
  assert "| all | exact match | +65.0 (" in text
  assert "| a | 45.0 ± 7.1 | 0.0 ± 0.0 | 50.0 ± 0.0 | 50.0 ± 35.4 |" in text
  for name in ("single", "sums", "cosine"):
    assert f"({name}.png)" in text
    assert (tmp_path / f"{name}.png").read_bytes().startswith(b"\x89PNG")
  assert str(tmp_path / "report.md") in capsys.readouterr().out.replace("\n", "")


ROWS = 500
"""Hits on so many rows have the score that they stand for to 1e-3."""


class Scorer(Evaluator):
  """Stands in for the evaluator: the score of a prompt on a task is a smooth function."""

  def __init__(self):
    self.lengths = {"inputs": 8, "targets": 2}
    self.passes = []

  def tokenize(self, examples, what=None):
    seeds = np.full((len(examples), 1), seed_of(examples[0]), np.int32)
    return Tokenized(seeds, np.ones_like(seeds))

  def hits(self, requests):
    self.passes.append(len(requests))
    found = []
    for leaves, tokenized, *_ in requests:
      score = smooth(leaves["prompt"], int(tokenized.inputs[0, 0]), len(tokenized))
      right = np.arange(ROWS) < round(score * ROWS)
      found.append((right, ~right))
    return found

  def evaluate_all(self, cells):
    self.passes.append(len(cells))
    results = []
    for leaves, task, split in cells:
      examples = task.examples(split)
      prompt = None if leaves is None else leaves["prompt"]
      scores = {"exact_match": smooth(prompt, seed_of(examples[0]), len(examples))}
      results.append(Result(task.name, split, len(examples), scores, [], None, 0))
    return results


def seed_of(example):
  return sum(example.inputs.encode())


def smooth(prompt, seed, count):
  """A number in [0, 1] that depends on the prompt, the examples and their number."""
  if prompt is None:
    return 0.0
  weights = np.random.default_rng(seed).standard_normal(prompt.shape)
  return float(0.5 + 0.5 * np.sin((weights * prompt).sum() + count))


NAMES, SEEDS, COEFFICIENTS = ("a", "b", "c"), (0, 7), (0.25, 0.5, 1.0)


@pytest.fixture
def arithmetic(tmp_path):
  """The measurements of a study on made-up prompts, and these by task and seed."""
  rng = np.random.default_rng(0)
  start = {seed: rng.standard_normal((2, 3)).astype(np.float32) for seed in SEEDS}
  best = {}
  for name, seed in itertools.product(NAMES, SEEDS):
    best[name, seed] = start[seed] + rng.standard_normal((2, 3)).astype(np.float32)
    digest = identity.prompt_digest({"prompt": start[seed]})
    for which, leaf in (("initial", start[seed]), ("best", best[name, seed])):
      path = tmp_path / "runs" / f"{name}-{seed}" / f"{which}_prompt.safetensors"
      path.parent.mkdir(parents=True, exist_ok=True)
      terms = (Term(name, 1.0),) if which == "best" else ()
      known = Provenance(
        "prompt",
        terms,
        initial_digest=digest,
        initial_seed=seed,
        backbone_fingerprint="0" * 64,
      )
      store.write(path, {"prompt": leaf}, known)
  (tmp_path / "vectors").mkdir()
  tasks = [
    Task(
      name,
      ("x", "y"),
      "exact_match",
      lambda split, name=name: [Example(name + split, "x")] * 3,
    )
    for name in NAMES
  ]
  made = Measurements(Scorer(), tasks, SEEDS, tmp_path, COEFFICIENTS, 2)
  return made, start, best


def test_one_pass_gives_every_measurement_what_its_own_prompt_scores(arithmetic):
  made, start, best = arithmetic
  vector = {key: best[key] - start[key[1]] for key in best}

  def score(prompt, name, split="test"):
    return smooth(
      prompt, seed_of(Example(name + split, "x")), 3 if split == "test" else 2
    )

  single = made.single()
  chosen = [made.search(seed) for seed in SEEDS]
  answers = hits.Answers({**single["hits"], **made.sums(chosen)}, NAMES, SEEDS)
  by_sum = dict(zip(made.combinations, zip(*chosen, strict=True), strict=True))
  found = hits.tables(answers, by_sum, "exact_match")
  for name in NAMES:
    scores = single["scores"][name]
    assert scores["no_prompt"] == {"exact_match": 0.0}
    expected = [score(best[name, seed], name) for seed in SEEDS]
    assert [one["exact_match"] for one in scores["own"]] == pytest.approx(expected)
    kinds = found["single"][name]
    assert kinds["own"] == pytest.approx(expected, abs=1.1e-3)
    untuned = [score(start[seed], name) for seed in SEEDS]
    assert kinds["untuned"] == pytest.approx(untuned, abs=1.1e-3)
    crossed = [
      score(start[seed] + vector[name, other], name)
      for seed, other in (SEEDS, SEEDS[::-1])
    ]
    assert kinds["other_initial"] == pytest.approx(crossed, abs=1.1e-3)
    control = [
      np.mean([score(best[other, seed], name) for other in NAMES if other != name])
      for seed in SEEDS
    ]
    assert kinds["control"] == pytest.approx(control, abs=1.1e-3)
    difference = found["differences"][name]["other_initial_minus_control"]
    assert difference["mean"] == pytest.approx(
      np.mean(crossed) - np.mean(control), abs=1.1e-3
    )
    assert difference["low"] <= difference["mean"] <= difference["high"]

  pairs = [("a", "b"), ("a", "c"), ("b", "c")]
  sums, negation = found["sums"], found["negation"]
  assert [tuple(total["tasks"]) for total in sums] == [*pairs, NAMES]
  for total in sums:
    for index, seed in enumerate(SEEDS):
      both = sum(vector[name, seed] for name in total["tasks"])
      means = [
        np.mean(
          [score(start[seed] + c * both, n, "validation") for n in total["tasks"]]
        )
        for c in COEFFICIENTS
      ]
      best_one = COEFFICIENTS[int(np.argmax(means))]
      assert total["coefficient"][index] == best_one
      for name in total["tasks"]:
        expected = score(start[seed] + best_one * both, name)
        assert total["scores"][name][index] == pytest.approx(expected, abs=1.1e-3)
    losses = [
      np.subtract(scores, found["single"][name]["own"])
      for name, scores in total["scores"].items()
    ]
    assert total["minus_own"]["mean"] == pytest.approx(np.mean(losses), abs=1e-9)
  for name in NAMES:
    for index, seed in enumerate(SEEDS):
      kept = {key: [] for key in negation[name]}
      for total in sums[:3]:
        if name in total["tasks"]:
          (partner,) = {*total["tasks"]} - {name}
          c = total["coefficient"][index]
          prompt = start[seed] + c * (vector[partner, seed] - vector[name, seed])
          kept["before"].append(total["scores"][name][index])
          kept["after"].append(score(prompt, name))
          kept["partner_before"].append(total["scores"][partner][index])
          kept["partner_after"].append(score(prompt, partner))
      for key, values in kept.items():
        assert negation[name][key][index] == pytest.approx(np.mean(values), abs=1.1e-3)
  # Among labels the stand-in is right where exact match is wrong.
  labels = hits.tables(answers, by_sum, "label_accuracy")
  for name in NAMES:
    assert labels["single"][name]["own"] == pytest.approx(
      [1 - one for one in found["single"][name]["own"]]
    )
  # 6 own and 3 without; 6 own, 6 untuned, 6 on another initial prompt and 12 controls; 3
  # coefficients of 3 pairs and a sum of three, by initial prompt; 9 of sums and 12 of
  # negations, likewise.
  assert made.evaluator.passes == [9, 30, 27, 27, 21, 21]


def test_equal_scores_choose_the_smaller_coefficient(arithmetic):
  made = arithmetic[0]
  half = np.arange(4) < 2
  made.evaluator.hits = lambda asked: [(half, half)] * len(asked)
  assert made.search(0) == [0.25] * 4


def test_equal_exact_matches_choose_the_coefficient_that_tells_labels_apart(arithmetic):
  made = arithmetic[0]
  none, asked = np.zeros(4, bool), []

  def hits(requests):  # The second coefficient of each combination is right.
    for leaves, *_ in requests:
      asked.append(leaves["prompt"].tobytes())
    order = list(dict.fromkeys(asked))
    return [
      (none, none | (order.index(leaves["prompt"].tobytes()) % 3 == 1))
      for leaves, *_ in requests
    ]

  made.evaluator.hits = hits
  assert made.search(0) == [0.5] * 4


def test_a_killed_study_keeps_what_it_has_measured_of_the_same_prompts(
  tmp_path, capsys
):
  path, asked = tmp_path / "measured.json", []

  def measured(subject, overwrite=False):
    def measure(name):
      asked.append(name)
      if name == "sums" and len(asked) < 3:
        raise KeyboardInterrupt
      return {name: [0.1, 1 / 3]}

    kept = Measured(path, subject, {"beams": 1}, overwrite)
    return [kept.get(n, functools.partial(measure, n)) for n in ("single", "sums")]

  with pytest.raises(KeyboardInterrupt):
    measured({"prompts": ("x",)})
  whole = measured({"prompts": ("x",)})
  assert asked == ["single", "sums", "sums"]
  assert (
    measured({"prompts": ("x",)})
    == whole
    == [
      {"single": [0.1, 1 / 3]},
      {"sums": [0.1, 1 / 3]},
    ]
  )
  assert len(asked) == 3
  before = path.read_bytes()
  measured({"prompts": ("y",)})
  assert len(asked) == 5
  assert path.with_name("measured-1.json").read_bytes() == before
  assert "anew" in (told := capsys.readouterr().out)
  assert "(prompts: ['x'] there, ['y'] now), which is now 'measured-1.json'" in told
  measured({"prompts": ("y",)}, overwrite=True)
  assert len(asked) == 7
  # What was measured before there were beams was measured with one.
  measured({"prompts": ("y",), "beams": 1})
  assert len(asked) == 7
  for damage in ("{", "[]"):
    path.write_text(damage)
    measured({"prompts": ("y",)})
  assert len(asked) == 11
  kept = [path.with_name(f"measured-{i}.json").read_text() for i in (2, 3)]
  assert kept == ["{", "[]"]


def test_other_prompts_tasks_or_coefficients_are_measured_again(arithmetic):
  made = arithmetic[0]
  before = made.subject()
  changes = [
    {"coefficients": (0.5,)},
    {"search_examples": 1},
    {"tasks": [dataclasses.replace(made.tasks[0], labels=("x", "z")), *made.tasks[1:]]},
    {"best": {**made.prompts.best, ("a", 0): made.prompts.best["a", 7]}},
    {"initial": {**made.prompts.initial, 0: made.prompts.initial[7]}},
  ]
  for change in changes:
    other = copy.copy(made)
    if {*change} <= {"best", "initial"}:
      change = {"prompts": dataclasses.replace(made.prompts, **change)}
    vars(other).update(change)
    assert other.subject() != before, change


SMALL = (
  "--gin.TASK_NAMES=['sentiment', 'topic']",
  *("--gin.INITIAL_SEEDS=[0, 1]", "--gin.TRAIN_STEPS=100"),
)


def run_demo(folder, *flags):
  flags = (f"--gin.OUTPUT_DIR='{folder}'", *flags)
  return cli.main(["study", "--gin_file=gin_configs/runs/demo.gin", *flags])


@pytest.fixture(scope="module")
def demo(tmp_path_factory):
  """The job of `make demo` with fewer tasks, initial prompts and steps."""
  folder = tmp_path_factory.mktemp("a demo") / "out put"
  assert run_demo(folder, *SMALL) == 0
  return folder, json.loads((folder / "results.json").read_text())


@pytest.mark.slow
def test_the_whole_demo_reaches_its_floors_on_the_test_split(tmp_path):
  assert run_demo(tmp_path) == 0
  results = json.loads((tmp_path / "results.json").read_text())
  summary = results["summary"]
  assert summary["tasks_with_own_at_least_0.90"] >= 4
  assert summary["own_minus_control"] >= 0.50
  assert summary["pair_sums_minus_control"] >= 0.30
  assert summary["tasks_with_label_accuracy_at_most_0.75_without_prompt"] >= 2
  forgets_and_keeps(results)


def test_two_tasks_of_the_demo_reach_its_floors_on_the_test_split(demo):
  summary = demo[1]["summary"]
  assert summary["tasks_with_own_at_least_0.90"] == 2
  assert summary["own_minus_control"] >= 0.50
  assert summary["pair_sums_minus_control"] >= 0.30
  forgets_and_keeps(demo[1])


def forgets_and_keeps(results):
  """Checks that a sum which a task is negated in forgets it and not its partner."""
  for negation in results["negation"].values():
    assert np.mean(negation["after"]) <= 0.2 * np.mean(negation["before"])
    assert np.mean(negation["partner_after"]) >= 0.6 * np.mean(
      negation["partner_before"]
    )


def test_the_demo_writes_its_report_vectors_and_plots(demo):
  folder, results = demo
  for name in ("report.md", "config.gin", "single.png", "sums.png", "cosine.png"):
    assert (folder / name).stat().st_size > 1000 or name == "config.gin"
  for task in results["tasks"]:
    for seed in results["initial_seeds"]:
      _, provenance = store.read(folder / "vectors" / f"{task}-{seed}.safetensors")
      assert provenance.kind == "vector"
      assert provenance.initial_seed == seed
      assert [(term.task, term.coefficient) for term in provenance.terms] == [
        (task, 1.0)
      ]


def test_the_numbers_of_the_demo_are_those_of_each_prompt_by_itself(demo):
  folder, results = demo
  gin_files.parse(["gin_configs/runs/demo.gin"], ["OUTPUT_DIR='unused'"])
  model, vocabulary = (
    gin.query_parameter(name).scoped_configurable_fn()
    for name in ("%MODEL", "%VOCABULARY")
  )
  gin.clear_config()
  backbone = loading.load_backbone("embedded", model.network, vocabulary)
  evaluator = Evaluator(
    model, backbone.params, vocabulary, {"inputs": 24, "targets": 2}, at_once=1
  )
  names = ("sentiment", "topic")
  tasks = {name: suite.task(name) for name in names}
  test = {name: evaluator.tokenize(tasks[name].examples("test")) for name in names}
  runs = [str(folder / "runs" / f"{name}-1") for name in names]
  best, start = sources.load(runs[0], "best"), sources.load(runs[0], "initial")
  alone = evaluator.evaluate(best.leaves, tasks["sentiment"], "test")
  assert alone.scores == results["single"]["sentiment"]["own"][1]
  nothing = evaluator.evaluate(None, tasks["topic"], "test")
  assert nothing.scores == results["single"]["topic"]["no_prompt"]
  (pair,) = (total for total in results["sums"] if total["tasks"] == list(names))
  both = algebra.sum_vectors(
    [algebra.diff(sources.load(run, "best"), start) for run in runs]
  )
  prompt = algebra.apply(both, start, pair["coefficient"][1])
  for name in names:
    assert evaluator.exact_match(prompt.leaves, test[name]) == pair["scores"][name][1]


def test_a_finished_demo_is_not_measured_again(demo, monkeypatch):
  folder, results = demo

  def score(*_):
    raise AssertionError("measured again")

  monkeypatch.setattr(Evaluator, "score", score)
  assert run_demo(folder, *SMALL) == 0
  again = json.loads((folder / "results.json").read_text())
  del again["seconds"]
  assert again == {name: value for name, value in results.items() if name != "seconds"}


def test_a_study_of_a_task_without_labels_is_refused_before_it_trains(tiny, tmp_path):
  tasks = [tiny.task, dataclasses.replace(tiny.task, name="free", labels=None)]
  with pytest.raises(UserError, match="the task 'free' has none"):
    study.study(
      tiny.plain_model,
      "unused",
      tasks,
      tiny.vocabulary,
      tiny.lengths,
      tmp_path,
      lambda table, seed: table[:4],
      tiny.schedule,
      1,
      8,
      1,
    )
  assert not list(tmp_path.iterdir())


def test_a_study_does_not_write_into_a_folder_of_something_else(tmp_path, capsys):
  (tmp_path / "report.md").write_text("mine")
  assert run_demo(tmp_path) == 2
  assert "holds no study of tpv_jax" in capsys.readouterr().err
  assert [path.name for path in tmp_path.iterdir()] == ["report.md"]


def test_a_study_with_other_settings_does_not_take_the_old_prompts(demo, capsys):
  assert run_demo(demo[0], *SMALL, "--gin.PROMPT_LENGTH=5") == 2
  err = capsys.readouterr().err
  assert "holds a run with another prompt/length: 8 there, 5 now" in err
  assert "OVERWRITE=True" in err
  assert len(err) < 600


def test_a_demo_vector_is_the_difference_of_its_files(demo):
  folder, results = demo
  task = results["tasks"][0]
  run = pathlib.Path(folder) / "runs" / f"{task}-0"
  best, _ = store.read(run / "best_prompt.safetensors")
  initial, _ = store.read(run / "initial_prompt.safetensors")
  vector, _ = store.read(folder / "vectors" / f"{task}-0.safetensors")
  np.testing.assert_array_equal(vector["prompt"], best["prompt"] - initial["prompt"])

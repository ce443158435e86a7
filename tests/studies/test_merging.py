"""The comparison of merge rules: what rules try, how scores are averaged, the whole job."""

import itertools
import json

import numpy as np
import pytest
import studies_at_work

from tpv_jax import cli
from tpv_jax.core.errors import UserError
from tpv_jax.evaluation.evaluator import Evaluator
from tpv_jax.studies import data_merges, merge_settings, merge_summary, merging, tuned
from tpv_jax.vectors import algebra, arithmetic
from tpv_jax.vectors.merging.registry import BY_DATA, RULES


@pytest.fixture
def vectors(initial_prompt, tuned_prompt):
  """Two vectors of one initial prompt, the second three times as long."""
  start = initial_prompt(0)
  first, second = (
    algebra.diff(tuned_prompt(start, task, i), start) for i, task in enumerate("ab")
  )
  return [first, algebra.scale(second, 3.0)]


@pytest.mark.parametrize(
  "rule", [r for r in RULES if not merge_settings.is_of_prompts(r)]
)
def test_every_rule_tries_lengths_in_units_of_the_mean_norm_within_the_budget(
  rule, vectors
):
  found = merge_settings.candidates(rule, vectors, 12)
  assert 1 <= len(found) <= 12
  options = merge_settings.options_of(rule)
  assert len(found) % (12 // len(options)) == 0
  mean = np.mean([arithmetic.norm(one.leaves) for one in vectors])
  for settings, merged, coefficient in found:
    length = coefficient * arithmetic.norm(merged.leaves)
    assert length == pytest.approx(settings["lambda"] * mean)
  longest = max(settings["lambda"] for settings, _, _ in found)
  assert longest == pytest.approx(1.25 * 2**0.5)


def test_what_leaves_nothing_and_a_budget_that_is_too_small_are_refused(vectors):
  same = [vectors[0], algebra.negate(vectors[0])]
  with pytest.raises(UserError, match="leaves nothing"):
    merge_settings.candidates("task_arithmetic", same, 12)
  with pytest.raises(UserError, match="BUDGET is 2"):
    merge_settings.candidates("ties", vectors, 2)


@pytest.fixture
def data_merges_of(tiny):
  """Returns what rules that read data are tried with, for options of the user."""
  model = tiny.model(prompt=None)
  evaluator = Evaluator(model, tiny.backbone.params, tiny.vocabulary, tiny.lengths)
  prompts = tuned.Tuned([], [], {}, {}, {})

  def made(**options):
    tasks = {"parity": tiny.task}
    return data_merges.DataMerges(evaluator, tasks, prompts, options, 12, 50)

  return made


def test_rules_that_read_data_try_their_choices_but_what_the_user_has_set(
  data_merges_of,
):
  ours = data_merges_of()
  ((settings, search),) = ours.rules("coefficient_search")
  assert (settings, search.budget, search.examples) == ({}, 12, 50)
  found = ours.rules("adamerging")
  assert [settings for settings, _ in found] == [
    {"objective": objective, "per_token": per_token}
    for per_token in (False, True)
    for objective in ("entropy", "loss")
  ]
  assert {rule.steps for _, rule in found} == {50}
  given = data_merges_of(
    adamerging={"objective": "loss", "steps": 7}, coefficient_search={"budget": 99}
  )
  assert given.rules("coefficient_search")[0][1].budget == 99
  found = given.rules("adamerging")
  assert [settings for settings, _ in found] == [
    {"per_token": False},
    {"per_token": True},
  ]
  assert {(rule.steps, rule.objective) for _, rule in found} == {(7, "loss")}


def test_what_a_rule_reads_and_its_options_decide_whether_it_is_measured_again(
  data_merges_of,
):
  one, other = data_merges_of(), data_merges_of(fisher={"examples": 9})
  assert one.subject("fisher") != other.subject("fisher")
  assert one.subject("adamerging") == other.subject("adamerging")


def measured(*methods):
  work = {one: {"evaluations": 12, "gradient_rows": 0} for one in methods}
  return {"chosen": {one: {} for one in methods}, "left_out": {}, "work": work}


def made_up():
  """Two sets of two tasks, two starts, two test rows; ties loses one row of b once."""
  yes, no = np.ones((2, 2)), np.zeros((2, 2))
  half = np.array([[1.0, 0.0], [1.0, 1.0]])
  rows = {((task,), "own", task): yes for task in "abc"}
  for names in (("a", "b"), ("a", "c")):
    rows[names, "task_arithmetic", names[0]] = yes
    rows[names, "task_arithmetic", names[1]] = yes
    rows[names, "ties", names[0]] = yes
    rows[names, "ties", names[1]] = half if names[1] == "b" else no
  found = {
    names: [measured("task_arithmetic", "ties")] * 2
    for names in (("a", "b"), ("a", "c"))
  }
  return [merge_summary.of_set(names, found[names], rows) for names in found], rows


def test_the_summary_averages_as_its_words_say():
  sets, rows = made_up()
  assert sets[0]["methods"]["ties"]["retention"] == {"a": [1, 1], "b": [0.5, 1]}
  found = merge_summary.summarise(sets, rows)["2"]["ties"]
  assert found["score"] == pytest.approx((1 + 1 + 0.5 + 1 + 1 + 1 + 0 + 0) / 8)
  assert found["worst"] == pytest.approx((0.5 + 1 + 0 + 0) / 4)
  assert found["kept"] == pytest.approx(1 / 4)
  assert found["tasks"] == {"a": 1.0, "b": 0.75, "c": 0.0}
  assert found["minus_sum"]["mean"] == pytest.approx((0 - 0.25 - 1) / 3)
  assert found["minus_sum"]["low"] <= found["minus_sum"]["mean"]
  same = merge_summary.summarise(sets, rows)["2"]["task_arithmetic"]["minus_sum"]
  assert same == {"mean": 0, "low": 0, "high": 0}


def test_a_task_that_its_own_prompt_does_not_solve_has_no_retention():
  _, rows = made_up()
  rows[("b",), "own", "b"] = np.zeros((2, 2))
  found = [measured("task_arithmetic", "ties")] * 2
  (one,) = [merge_summary.of_set(("a", "b"), found, rows)]
  assert one["methods"]["ties"]["retention"]["b"] == [None, None]
  summary = merge_summary.summarise([one], rows)["2"]["ties"]
  assert summary["tasks"] == {"a": 1.0, "b": None}
  assert summary["retention"] == 1.0


@pytest.mark.parametrize(
  ("changed", "message"),
  [
    ({"rules": ["tise"]}, "no merge rule 'tise'.*'ties'"),
    ({"rules": ["fishr"]}, "no merge rule 'fishr'.*'fisher'.*adamerging"),
    ({"rules": ["ram"]}, "'ram' is not offered"),
    (
      {"rules": ["fisher"], "budget": 2},
      "BUDGET is 2, and the merge rule 'fisher' has 3",
    ),
    ({"data_options": {"fisher": {"flor": 1.0}}}, "no option 'flor'.*fisher_floor"),
    ({"data_options": {"adamerge": {}}}, "adamerge.*'adamerging'"),
    ({"data_options": {"ties": {}}}, "'ties' reads no data"),
    (
      {"rules": ["ties"], "data_options": {"fisher": {}}},
      "'fisher', which is not compared",
    ),
    ({"budget": 2}, "BUDGET is 2, and the merge rule 'ties' has 3"),
    ({"larger_sets": [2]}, "LARGER_SETS has 2"),
    ({"larger_sets": [4]}, "LARGER_SETS has 4"),
  ],
)
def test_settings_that_compare_nothing_are_refused(tiny, tmp_path, changed, message):
  given = studies_at_work.ARGUMENTS["merging"](tiny, tmp_path)
  with pytest.raises(UserError, match=message):
    merging.compare_rules(**{**given, **changed}, output_dir=tmp_path / "out")
  assert not (tmp_path / "out").exists()


def test_two_embedded_tasks_keep_most_in_a_sum_and_rules_join_a_comparison(
  tmp_path, monkeypatch
):
  flags = (
    "--gin_file=gin_configs/runs/merging_embedded.gin",
    "--gin.TASK_NAMES=['sentiment', 'topic']",
    "--gin.INITIAL_SEEDS=[0, 1]",
    "--gin.TRAIN_STEPS=60",
    "--gin.EVAL_PERIOD=30",
    "--gin.BUDGET=6",
    "--gin.SEARCH_EXAMPLES=40",
    "--gin.TEST_EXAMPLES=100",
    f"--gin.OUTPUT_DIR='{tmp_path / 'out'}'",
  )
  free = ["norm_balanced", "slerp", "concat"]
  assert cli.main(["merging", *flags, f"--gin.RULES={free}"]) == 0
  before = (tmp_path / "out" / "measured.json").read_bytes()

  # Rules that read data join a finished comparison, whose measurements stay.
  def again(*_):
    raise AssertionError("it is measured again")

  monkeypatch.setattr(merging._Compared, "merges", again)
  brief = {"adamerging": {"steps": 8, "per_token": False}, "fisher": {"examples": 16}}
  flags = (*flags, f"--gin.DATA_OPTIONS={brief}")
  assert cli.main(["merging", *flags, f"--gin.RULES={[*free, *BY_DATA]}"]) == 0
  assert (tmp_path / "out" / "measured.json").read_bytes() == before
  results = json.loads((tmp_path / "out" / "results.json").read_text())
  assert results["rules"] == ["task_arithmetic", *free, *BY_DATA]
  (one,) = results["sets"]
  assert one["left_out"] == {}
  methods = results["summary"]["2"]
  assert set(methods) == {*merging.BASELINES, *results["rules"]}
  assert methods["initial"]["score"] < 0.1
  assert methods["joint"]["score"] > 0.8
  assert methods["task_arithmetic"]["score"] > methods["best_single"]["score"]
  for method, start in itertools.product(("task_arithmetic", "slerp"), range(2)):
    chosen = one["methods"][method]["chosen"][start]
    assert 0 < chosen["lambda"] <= 1.25 * 2**0.5 + 1e-9
  work = {
    method: (methods[method]["evaluations"], methods[method]["gradient_rows"])
    for method in methods
  }
  assert work["slerp"] == (6, 0)
  assert work["joint"] == (0, 60 * 16)
  assert work["coefficient_search"] == (6, 0)
  assert work["fisher"] == (6, 16 * 2 + 16 * 4)  # Two labels, and four.
  assert work["adamerging"] == (2, 2 * 8 * 16 * 2)  # Two objectives, two tasks.
  assert methods["coefficient_search"]["score"] > methods["best_single"]["score"]
  chosen = one["methods"]["coefficient_search"]["chosen"][0]
  assert len(chosen["coefficients"]) == 2
  assert {*one["methods"]["fisher"]["chosen"][0]} == {"fisher_floor", "lambda"}
  text = (tmp_path / "out" / "report.md").read_text()
  assert "| tuned on all tasks |" in text
  assert "- adamerging: per_token False, steps 8" in text
  assert "rules that read data: coefficient_search" in text

  # A third call measures nothing.
  monkeypatch.setattr(merging._Compared, "_scored", again)
  assert cli.main(["merging", *flags, f"--gin.RULES={[*free, *BY_DATA]}"]) == 0
  assert "tpv merging --gin_file=" in text

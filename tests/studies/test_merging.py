"""The comparison of merge rules: what rules try, how scores are averaged, the whole job."""

import itertools
import json

import numpy as np
import pytest
import studies_at_work

from tpv_jax import cli
from tpv_jax.core.errors import UserError
from tpv_jax.studies import merge_settings, merging
from tpv_jax.vectors import algebra, arithmetic
from tpv_jax.vectors.merging.registry import RULES


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
    names: [{"chosen": {"task_arithmetic": {}, "ties": {}}, "hits": {}, "left_out": {}}]
    * 2
    for names in (("a", "b"), ("a", "c"))
  }
  return [merging._of_set(names, found[names], rows) for names in found], rows


def test_the_summary_averages_as_its_words_say():
  sets, rows = made_up()
  assert sets[0]["methods"]["ties"]["retention"] == {"a": [1, 1], "b": [0.5, 1]}
  found = merging.summarise(sets, rows)["2"]["ties"]
  assert found["score"] == pytest.approx((1 + 1 + 0.5 + 1 + 1 + 1 + 0 + 0) / 8)
  assert found["worst"] == pytest.approx((0.5 + 1 + 0 + 0) / 4)
  assert found["kept"] == pytest.approx(1 / 4)
  assert found["tasks"] == {"a": 1.0, "b": 0.75, "c": 0.0}
  assert found["minus_sum"]["mean"] == pytest.approx((0 - 0.25 - 1) / 3)
  assert found["minus_sum"]["low"] <= found["minus_sum"]["mean"]
  same = merging.summarise(sets, rows)["2"]["task_arithmetic"]["minus_sum"]
  assert same == {"mean": 0, "low": 0, "high": 0}


def test_a_task_that_its_own_prompt_does_not_solve_has_no_retention():
  _, rows = made_up()
  rows[("b",), "own", "b"] = np.zeros((2, 2))
  chosen = {"task_arithmetic": {}, "ties": {}}
  found = [{"chosen": chosen, "hits": {}, "left_out": {}}] * 2
  (one,) = [merging._of_set(("a", "b"), found, rows)]
  assert one["methods"]["ties"]["retention"]["b"] == [None, None]
  summary = merging.summarise([one], rows)["2"]["ties"]
  assert summary["tasks"] == {"a": 1.0, "b": None}
  assert summary["retention"] == 1.0


@pytest.mark.parametrize(
  ("changed", "message"),
  [
    ({"rules": ["tise"]}, "no merge rule 'tise'.*'ties'"),
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


def test_two_embedded_tasks_keep_most_in_a_sum_and_less_of_the_initial_prompt(tmp_path):
  flags = (
    "--gin_file=gin_configs/runs/merging_embedded.gin",
    "--gin.TASK_NAMES=['sentiment', 'topic']",
    "--gin.INITIAL_SEEDS=[0, 1]",
    "--gin.TRAIN_STEPS=60",
    "--gin.EVAL_PERIOD=30",
    "--gin.RULES=['norm_balanced', 'slerp', 'concat']",
    "--gin.BUDGET=6",
    "--gin.SEARCH_EXAMPLES=40",
    f"--gin.OUTPUT_DIR='{tmp_path / 'out'}'",
  )
  assert cli.main(["merging", *flags]) == 0
  results = json.loads((tmp_path / "out" / "results.json").read_text())
  assert results["rules"] == ["task_arithmetic", "norm_balanced", "slerp", "concat"]
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
  text = (tmp_path / "out" / "report.md").read_text()
  assert "| tuned on all tasks |" in text
  assert "tpv merging --gin_file=" in text

"""The joint search for coefficients, on scores whose best coefficients are known."""

import numpy as np
import pytest

from tpv_jax.data.tasks import Task
from tpv_jax.devices import partitioning
from tpv_jax.evaluation import searching
from tpv_jax.evaluation.evaluator import Evaluator
from tpv_jax.evaluation.merging import search
from tpv_jax.evaluation.merging.subject import Subject
from tpv_jax.vectors.loaded import Loaded
from tpv_jax.vectors.merging.by_data import CoefficientSearch
from tpv_jax.vectors.provenance import Provenance, Term


@pytest.fixture
def searched(monkeypatch):
  """Searches among sums of as many vectors as there are, scored by given functions."""

  def call(number, scores, **options):
    asked = []

    def tried(evaluator, cells, *settings):
      asked.append(settings)
      return [scores[task.name](leaves["prompt"][0]) for leaves, task in cells]

    monkeypatch.setattr(searching, "tried", tried)
    known = {"initial_digest": "a" * 64, "backbone_fingerprint": "b" * 64}
    zeros = {"prompt": np.zeros((1, number), np.float32)}
    initial = Loaded(zeros, Provenance("prompt", **known))
    vectors = [
      Loaded(
        {"prompt": np.eye(number, dtype=np.float32)[[place]]},
        Provenance("vector", (Term(f"t{place}", 1.0),), **known),
      )
      for place in range(number)
    ]
    subject = Subject(
      vectors,
      weights=np.ones(number),
      initial=initial,
      tasks=[Task(name, None, "exact_match", lambda _: []) for name in scores],
      evaluator=object.__new__(Evaluator),
      mesh=partitioning.make_mesh(),
    )
    rule = CoefficientSearch(**options)
    outcome = search.searched(rule, subject)
    assert set(asked) == {(rule.split, rule.examples, rule.metric)}
    return outcome

  return call


def near(*best):
  return lambda c: -float(np.square(c - np.array(best)).sum())


def test_a_search_finds_the_coefficients_of_the_best_sum_within_its_last_step(searched):
  best = (0.4, -0.3, 1.2)
  outcome = searched(3, {"t": near(*best)}, budget=400, low=-0.5)
  # The last steps are 1/256 of the distance of the bounds, 2.
  np.testing.assert_allclose(outcome.coefficients, best, atol=2 / 256)
  assert len(outcome.report["tried"]) < 400


def test_half_of_the_budget_goes_into_steps_from_the_best(searched):
  outcome = searched(2, {"t": near(0.37, 0.81)}, budget=40)
  tried = [np.array(one["coefficients"]) for one in outcome.report["tried"]]
  scores = [one["scores"]["t"] for one in outcome.report["tried"]]
  assert len(tried) == 40
  best = tried[int(np.argmax(scores[:20]))]
  # The first round moves one coefficient by a quarter of the bounds, or both by one.
  for one in tried[20:26]:
    alone = np.isclose(np.abs(one - best), 0.375, atol=1e-3).sum() == 1
    clipped = np.isin(one, (0.0, 1.5)).any()
    together = np.isclose(one / best, one[0] / best[0], rtol=1e-2).all()
    assert alone or clipped or together, (one, best)
  assert max(scores[20:]) > max(scores[:20])


def test_every_task_counts_the_same(searched):
  scores = {"a": near(0.2), "b": near(0.8), "c": near(0.8)}
  outcome = searched(1, scores, budget=200)
  assert outcome.coefficients[0] == pytest.approx(0.6, abs=1.5 / 256)
  last = outcome.report["tried"][0]
  assert last["coefficients"] == [1.0]
  assert last["scores"] == pytest.approx({"a": -0.64, "b": -0.04, "c": -0.04})
  assert outcome.report["best"] == pytest.approx(-0.08, abs=1e-3)


def test_coefficients_that_must_stay_in_proportion_are_moved_together(searched):
  def ridge(c):  # One coefficient alone only makes it worse.
    return -1000 * float(np.abs(c - c[0]).sum()) - abs(float(c.sum()) - 1.8)

  outcome = searched(3, {"t": ridge}, budget=200)
  np.testing.assert_allclose(outcome.coefficients, 0.6, atol=0.01)


def test_of_equal_sums_the_plain_one_is_taken(searched, capfd):
  outcome = searched(3, {"t": lambda _: 0.5}, budget=30)
  assert outcome.coefficients.tolist() == [1, 1, 1]
  assert "the search took the plain sum" in capfd.readouterr().out


def test_among_the_random_sums_some_are_small_in_all_coefficients(searched):
  outcome = searched(20, {"t": near(*[1.0] * 20)}, budget=200)
  drawn = np.array([one["coefficients"] for one in outcome.report["tried"][2:100]])
  assert drawn.min() >= 0
  assert drawn.max() <= 1.5
  # Of 20 uniform ones the largest is almost never below half of the bound.
  assert np.mean(drawn.max(axis=1) < 0.75) > 0.3
  assert np.mean(drawn.max(axis=1) > 0.75) > 0.3
  other = searched(20, {"t": near(*[1.0] * 20)}, budget=10, seed=1).report["tried"]
  assert other[2]["coefficients"] != drawn[0].tolist()


def test_no_coefficient_passes_the_bounds(searched):
  rising = {"t": lambda c: float(c[0] - c[1])}
  outcome = searched(2, rising, budget=100, low=-0.5)
  assert outcome.coefficients.tolist() == [1.5, -0.5]

"""What every metric of the registry does; a new one is tested by being registered."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tpv_jax.core.errors import UserError
from tpv_jax.data.metrics import registry
from tpv_jax.data.metrics.registry import METRICS

every_metric = pytest.mark.parametrize("name", METRICS)

TEXTS = ("0.0", "1.0", "no", "A. boxed", "", "4", "another", r"\boxed{1.0}")
"""Labels (the first ones) and what a model may say beside them."""


def of(name, targets, predictions, labels):
  """Returns the score of predictions whose pairs are one group."""
  groups = ["a"] * len(targets)
  return registry.compute([name], targets, predictions, labels, groups=groups)[name]


def labels_for(name):
  """Returns as many labels as the metric needs."""
  return TEXTS[: registry.metric(name).labels or 3]


@every_metric
def test_it_is_documented(name):
  assert registry.metric(name).score.__doc__.startswith("Returns ")


@every_metric
def test_perfect_predictions_score_one(name):
  texts = ["0.0", "1.0", "1.0", "0.0"]
  found = registry.compute(
    [name], texts, texts, ("0.0", "1.0"), groups=["a", "a", "b", "c"]
  )
  assert found == pytest.approx({name: 1.0})


@every_metric
@settings(deadline=None, max_examples=30)  # The first example imports scikit-learn.
@given(data=st.data())
def test_any_prediction_scores_a_finite_number_up_to_one(name, data):
  labels = labels_for(name)
  pair = st.tuples(st.sampled_from(labels), st.sampled_from(TEXTS))
  targets, predictions = zip(*data.draw(st.lists(pair, min_size=1)), strict=True)
  score = of(name, targets, predictions, labels)
  assert -1.0 - 1e-12 <= score <= 1.0 + 1e-12
  assert type(score) is float


@every_metric
def test_wrong_predictions_score_less_than_right_ones(name):
  targets = ["0.0", "1.0", "0.0", "1.0"]
  wrong = ["1.0", "0.0", "1.0", "0.0"]
  assert of(name, targets, wrong, ("0.0", "1.0")) < of(
    name, targets, targets, ("0.0", "1.0")
  )


@every_metric
def test_the_order_of_the_examples_changes_nothing(name):
  targets, predictions = ["0.0", "1.0", "1.0", "0.0", "1.0"], ["0.0", "1.0", "0.0"] * 2
  pairs = list(zip(targets, predictions, strict=False))
  labels = ("0.0", "1.0")
  turned = zip(*reversed(pairs), strict=True)
  assert of(name, *zip(*pairs, strict=True), labels) == pytest.approx(
    of(name, *turned, labels), abs=1e-12
  )


@every_metric
def test_labels_that_it_can_not_measure_are_refused_before_anything_runs(name):
  needed = registry.metric(name).labels
  if needed is None:
    registry.check_name(name, None)
    registry.check_name(name, TEXTS[:3])
    return
  registry.check_name(name, TEXTS[:needed])
  for labels in (None, TEXTS[: needed - 1], TEXTS[: needed + 1]):
    with pytest.raises(UserError, match=f"{name} .*the task has {len(labels or ())}"):
      registry.check_name(name, labels)

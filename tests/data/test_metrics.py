import json
import math
import pathlib
import subprocess
import sys

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tpv_jax.core.errors import UserError
from tpv_jax.data.metrics import registry as metrics

LABELS = ("yes", "no", "maybe")

REFERENCES = json.loads(
  (pathlib.Path(__file__).parents[1] / "references" / "metrics.json").read_text()
)
"""What the T5 package and MATH's authors say; see make_metric_references.py there."""


def one(name, targets, predictions, labels=None):
  return metrics.compute([name], targets, predictions, labels)[name]


def test_exact_match_is_the_share_of_equal_texts_white_space_collapsed():
  targets = ["yes", "a  b", "no", "no"]
  assert one("exact_match", targets, [" yes ", "a b", "No", ""]) == 0.5


def test_a_prediction_that_is_no_label_is_wrong_in_exact_match():
  assert one("exact_match", ["yes", "no"], ["yes", "noo"], LABELS) == 0.5


def test_chosen_labels_have_the_same_metrics_under_names_of_their_own():
  scores = metrics.compute(["exact_match", "matthews"], ["a", "b"], ["a", "b"])
  assert metrics.of_labels(scores) == {"label_accuracy": 1.0, "label_matthews": 1.0}


def test_macro_f1_is_the_mean_of_the_labels_f1():
  # yes: precision 2/3, recall 2/2, F1 4/5; no: precision 1/1, recall 1/2, F1 2/3.
  targets, predictions = ["yes", "yes", "no", "no"], ["yes", "yes", "yes", "no"]
  assert one("macro_f1", targets, predictions, ("yes", "no")) == pytest.approx(
    (4 / 5 + 2 / 3) / 2
  )


def test_a_prediction_that_is_no_label_costs_recall_and_is_no_class():
  # yes: precision 1/1, recall 1/2, F1 2/3; no: F1 1. 'what' has no part in the mean.
  targets, predictions = ["yes", "yes", "no"], ["yes", "what", "no"]
  assert one("macro_f1", targets, predictions, ("yes", "no")) == pytest.approx(
    (2 / 3 + 1) / 2
  )
  assert one("macro_f1", targets, predictions) == pytest.approx((2 / 3 + 1) / 2)


def test_a_label_that_never_occurs_counts_as_zero_in_macro_f1():
  assert one("macro_f1", ["yes", "no"], ["yes", "no"], LABELS) == pytest.approx(2 / 3)


def binary_matthews(targets, predictions, positive):
  """The closed form for two classes."""
  t = np.array([text == positive for text in targets])
  p = np.array([text == positive for text in predictions])
  tp, tn = np.sum(t & p), np.sum(~t & ~p)
  fp, fn = np.sum(~t & p), np.sum(t & ~p)
  product = (tp + fp) * (tp + fn) * (tn + fp) * (tn + fn)
  return float((tp * tn - fp * fn) / math.sqrt(product)) if product else 0.0


@given(st.lists(st.tuples(st.booleans(), st.booleans()), min_size=1, max_size=30))
def test_matthews_equals_the_closed_form_of_two_classes(pairs):
  targets = ["yes" if t else "no" for t, _ in pairs]
  predictions = ["yes" if p else "no" for _, p in pairs]
  found = one("matthews", targets, predictions, ("yes", "no"))
  # Tens of additions in float64.
  assert found == pytest.approx(binary_matthews(targets, predictions, "yes"), abs=1e-12)


def test_all_predictions_that_are_no_labels_are_one_extra_class_for_matthews():
  # Gorodkin's coefficient from the confusion matrix of three classes.
  confusion = np.array([[2, 0, 0], [0, 1, 2], [0, 0, 0]])
  count, correct = confusion.sum(), np.trace(confusion)
  true, predicted = confusion.sum(axis=1), confusion.sum(axis=0)
  expected = (correct * count - true @ predicted) / math.sqrt(
    (count**2 - predicted @ predicted) * (count**2 - true @ true)
  )
  targets = ["yes", "no", "yes", "no", "no"]
  mixed = one("matthews", targets, ["yes", "x", "yes", "y", "no"], ("yes", "no"))
  equal = one("matthews", targets, ["yes", "x", "yes", "x", "no"], ("yes", "no"))
  right = one("matthews", targets, targets, ("yes", "no"))
  assert mixed == equal == pytest.approx(expected)
  assert right == 1.0


def test_matthews_is_zero_for_constant_predictions():
  assert one("matthews", ["yes", "no"], ["yes", "yes"], ("yes", "no")) == 0.0


def test_correlations_are_those_of_numpy():
  right, predicted = [0.0, 1.2, 3.8, 5.0, 2.0], [0.4, 1.0, 5.0, 3.0, 2.2]
  texts = [str(x) for x in right], [str(x) for x in predicted]
  expected = np.corrcoef(right, predicted)[0, 1]
  assert one("pearson", *texts) == pytest.approx(expected, abs=1e-12)
  ranks = [np.argsort(np.argsort(x)) for x in (right, predicted)]
  assert one("spearman", *texts) == pytest.approx(np.corrcoef(*ranks)[0, 1], abs=1e-12)


@pytest.mark.parametrize("text", ["", "high", "nan", "inf", "3.8.1"])
@pytest.mark.parametrize("name", ["pearson", "spearman"])
def test_a_prediction_that_is_no_number_counts_as_minus_one(name, text):
  targets = ["0.0", "1.0", "5.0", "2.0"]
  assert one(name, targets, ["1.0", "2.0", text, "0.0"]) == pytest.approx(
    one(name, targets, ["1.0", "2.0", "-1.0", "0.0"])
  )


@pytest.mark.parametrize("name", ["pearson", "spearman"])
def test_a_correlation_that_is_not_defined_is_zero(name):
  assert one(name, ["1.0", "2.0"], ["3.0", "3.0"]) == 0.0
  assert one(name, ["1.0"], ["3.0"]) == 0.0


@pytest.mark.parametrize("name", [name for name in REFERENCES if name != "math"])
def test_scores_are_those_of_the_t5_package(name):
  case = dict(REFERENCES[name])
  scores = case.pop("scores")
  found = metrics.compute(scores, **case)
  assert found == pytest.approx(scores, abs=1e-12)  # Sums of 60 numbers in float64.
  assert all(0 < value < 1 for value in found.values())


@pytest.mark.parametrize(
  ("pair", "equal"),
  list(zip(*REFERENCES["math"].values(), strict=True)),
  ids=lambda value: None if isinstance(value, bool) else " ".join(value),
)
def test_answers_of_math_are_equal_where_its_authors_say_so(pair, equal):
  target, prediction = pair
  assert one("math_match", [target], [prediction]) == equal
  solution = f"So $3$, or \\boxed{{9}}, and then \\boxed{{{target}}}, which is it."
  assert one("math_match", [solution], [f"\\fbox{{{prediction}}}."]) == equal


@pytest.mark.parametrize(
  ("prediction", "right"),
  [
    (r"first \boxed{3}, then \boxed{\frac{1}{2}} or 3", True),
    (r"\boxed{\frac12}", True),
    (r"\boxed {1/2}", True),
    ("0.5", True),
    (r"\boxed{\frac{1}{2}", False),
    (r"\boxed{}", False),
    ("the answer is 1/2", False),
    ("", False),
  ],
)
def test_the_last_box_that_is_closed_holds_the_answer_of_math(prediction, right):
  assert one("math_match", [r"It is $\boxed{\frac{1}{2}}$."], [prediction]) == right


def test_nothing_in_nothing_is_squads_whole_f1_as_in_the_script_of_version_2():
  assert one("squad_f1", [""], ["the"]) == one("squad_exact_match", [""], ["the"]) == 1
  assert one("squad_f1", ["", "a cat"], ["cat", "an"]) == 0


def test_the_positive_label_of_f1_is_the_second():
  targets, predictions = ["yes", "no", "no"], ["yes", "no", "yes"]
  # 'no': precision 1, recall 1/2. 'yes': precision 1/2, recall 1.
  assert one("f1", targets, predictions, ("yes", "no")) == pytest.approx(2 / 3)
  assert one("f1", targets, predictions, ("no", "yes")) == pytest.approx(2 / 3)
  predictions = ["what", "no", "what"]
  assert one("f1", targets, predictions, ("yes", "no")) == pytest.approx(1 / 2)
  assert one("f1", targets, predictions, ("no", "yes")) == 0.0


@pytest.mark.parametrize("labels", [None, ("yes",), LABELS])
def test_f1_is_refused_without_two_labels(labels):
  with pytest.raises(UserError, match="f1 is of the second of two labels"):
    one("f1", ["yes"], ["yes"], labels)


def test_group_exact_match_needs_groups():
  assert metrics.compute(
    ["group_exact_match"], "aabb", "aaba", groups=["x", "y", "x", "y"]
  ) == {"group_exact_match": 0.5}
  with pytest.raises(UserError, match=r"state no group\. Give Example\.group"):
    metrics.compute(["group_exact_match"], ["a", "b"], ["a", "b"], groups=["x", ""])


def test_an_unknown_metric_is_refused_with_near_misses():
  with pytest.raises(
    UserError, match=r"no metric 'exact_mach'.*Did you mean 'exact_match'"
  ):
    one("exact_mach", ["a"], ["a"])


@pytest.mark.parametrize(("targets", "predictions"), [([], []), (["a"], ["a", "b"])])
def test_nothing_to_compare_is_our_own_mistake(targets, predictions):
  with pytest.raises(ValueError, match=f"{len(targets)} targets"):
    one("exact_match", targets, predictions)
  with pytest.raises(ValueError, match="2 groups"):
    metrics.compute(["exact_match"], ["a"], ["a"], groups=["x", "y"])


def test_exact_match_needs_no_scikit_learn():
  code = (
    "import sys; from tpv_jax.data.metrics import registry as metrics; "
    "metrics.compute(['exact_match', 'squad_f1'], ['a'], ['a'], ['a']); "
    "print({'sklearn', 'scipy'} & set(sys.modules))"
  )
  done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
  assert done.stdout == "set()\n", done.stderr

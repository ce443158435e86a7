"""Metrics of predicted texts, by name; for all of them more is better.

Texts are compared after white space is collapsed, with their case. Scores are fractions
or coefficients (T5's own evaluation multiplies them by 100). scikit-learn and SciPy do
the arithmetic and are imported at the first use.
"""

import math
import warnings
from collections.abc import Callable, Iterable, Sequence

import numpy as np

from tpv_jax.errors import UserError, near_misses

NOT_A_NUMBER = -1.0
"""What a prediction counts as that is no finite number (T5's `string_to_float`)."""

Labels = Sequence[str] | None


def exact_match(
  targets: Sequence[str], predictions: Sequence[str], labels: Labels = None
) -> float:
  """Returns the share of predictions equal to their targets.

  A prediction that is no label counts as wrong, so over all examples of a
  classification task this is the accuracy of generated labels.
  """
  return float(np.mean([t == p for t, p in zip(targets, predictions, strict=True)]))


def label_accuracy(
  targets: Sequence[str], predictions: Sequence[str], labels: Labels = None
) -> float:
  """Returns the accuracy among the task's own labels.

  The predictions are the labels that the model scores highest (rank classification),
  never generated text.

  Raises:
    ValueError: no labels are given, or a prediction is none of them.
  """
  foreign = set(predictions) - set(labels or ())
  if foreign:
    raise ValueError(
      f"label_accuracy is for predictions chosen among {labels}, but {min(foreign)!r} "
      "is not one of them: give the labels with the highest scores, not decoded text."
    )
  return exact_match(targets, predictions)


def macro_f1(
  targets: Sequence[str], predictions: Sequence[str], labels: Labels = None
) -> float:
  """Returns the mean over the labels of each one's F1.

  A prediction that is no label lowers the recall of the target's label and is no class
  of its own (as T5's `mean_multiclass_f1`). A label that is neither a target nor
  predicted has F1 0. Without labels, the classes are those among the targets.
  """
  import sklearn.metrics

  classes = list(labels) if labels is not None else sorted(set(targets))
  return float(
    sklearn.metrics.f1_score(
      list(targets), list(predictions), labels=classes, average="macro", zero_division=0
    )
  )


def matthews(
  targets: Sequence[str], predictions: Sequence[str], labels: Labels = None
) -> float:
  """Returns Matthews' correlation coefficient, in [-1, 1].

  All predictions that are no labels form one extra class, which is always wrong (as in
  T5, where they get the class id -1). It is 0 if all predictions are equal.
  """
  import sklearn.metrics

  classes = {label: index for index, label in enumerate(labels or sorted(set(targets)))}
  with warnings.catch_warnings():
    # One class only: scikit-learn says 0, which is what we document.
    warnings.simplefilter("ignore")
    return float(
      sklearn.metrics.matthews_corrcoef(
        [classes.get(text, -1) for text in targets],
        [classes.get(text, -1) for text in predictions],
      )
    )


def pearson(
  targets: Sequence[str], predictions: Sequence[str], labels: Labels = None
) -> float:
  """Returns Pearson's correlation of the numbers that the texts spell, in [-1, 1].

  A prediction that is no finite number counts as `NOT_A_NUMBER`. It is 0 (ours; not
  NaN) for fewer than two examples, or if one side is constant.
  """
  import scipy.stats

  return _correlation(scipy.stats.pearsonr, targets, predictions)


def spearman(
  targets: Sequence[str], predictions: Sequence[str], labels: Labels = None
) -> float:
  """Returns Spearman's rank correlation, in [-1, 1]; otherwise like `pearson`."""
  import scipy.stats

  return _correlation(scipy.stats.spearmanr, targets, predictions)


METRICS: dict[str, Callable[[Sequence[str], Sequence[str], Labels], float]] = {
  function.__name__: function
  for function in (exact_match, label_accuracy, macro_f1, matthews, pearson, spearman)
}
"""Every metric by its name."""


def check_name(name: str) -> None:
  """Raises `UserError` with near misses if there is no metric of that name."""
  if name not in METRICS:
    raise UserError(
      f"There is no metric '{name}'; there are {', '.join(METRICS)}."
      f"{near_misses(name, METRICS)}"
    )


def compute(
  names: Iterable[str],
  targets: Sequence[str],
  predictions: Sequence[str],
  labels: Labels = None,
) -> dict[str, float]:
  """Returns each named metric of the predictions.

  Args:
    names: of `METRICS`.
    targets: the right answers, in the order of the predictions.
    predictions: generated texts; for `label_accuracy`, chosen labels.
    labels: the task's labels, or None where the targets are free.

  Raises:
    UserError: an unknown metric.
    ValueError: nothing to measure, or unequal numbers of targets and predictions.
  """
  names = tuple(names)
  for name in names:
    check_name(name)
  if not targets or len(targets) != len(predictions):
    raise ValueError(f"{len(targets)} targets but {len(predictions)} predictions")
  targets, predictions = _collapsed(targets), _collapsed(predictions)
  labels = None if labels is None else _collapsed(labels)
  return {name: METRICS[name](targets, predictions, labels) for name in names}


def _collapsed(texts: Sequence[str]) -> list[str]:
  return [" ".join(text.split()) for text in texts]


def _number(text: str) -> float:
  try:
    value = float(text)
  except ValueError:
    return NOT_A_NUMBER
  return value if math.isfinite(value) else NOT_A_NUMBER


def _correlation(
  function: Callable, targets: Sequence[str], predictions: Sequence[str]
) -> float:
  right, predicted = [_number(t) for t in targets], [_number(p) for p in predictions]
  if len(set(right)) < 2 or len(set(predicted)) < 2:
    return 0.0
  return float(function(right, predicted)[0])

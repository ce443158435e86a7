"""The metrics: each is a function and one line here, and `compute` applies them.

Texts are compared with their case, after white space is collapsed. A prediction that cannot
be read (as a label, number or answer) counts as wrong. Scores are fractions or coefficients
(T5's own evaluation multiplies them by 100).
"""

from collections.abc import Iterable, Sequence

from tpv_jax.core.errors import UserError, near_misses
from tpv_jax.core.registry import entry
from tpv_jax.data.metrics.protocol import Metric, Predicted

METRICS = {
  "exact_match": "tpv_jax.data.metrics.classes:exact_match",
  "macro_f1": "tpv_jax.data.metrics.classes:macro_f1",
  "f1": "tpv_jax.data.metrics.classes:F1",
  "matthews": "tpv_jax.data.metrics.classes:matthews",
  "pearson": "tpv_jax.data.metrics.correlations:pearson",
  "spearman": "tpv_jax.data.metrics.correlations:spearman",
  "group_exact_match": "tpv_jax.data.metrics.classes:group_exact_match",
  "squad_exact_match": "tpv_jax.data.metrics.answers:squad_exact_match",
  "squad_f1": "tpv_jax.data.metrics.answers:squad_f1",
  "math_match": "tpv_jax.data.metrics.mathematics:math_match",
  "wsc_match": "tpv_jax.data.metrics.answers:wsc_match",
}
"""Name -> module:attribute of a `protocol.Score` or `protocol.Metric`."""


def metric(name: str) -> Metric:
  """Returns the metric of that name.

  Raises:
    UserError: there is none; near misses are named.
  """
  if name not in METRICS:
    raise UserError(
      f"There is no metric '{name}'; there are {', '.join(METRICS)}."
      f"{near_misses(name, METRICS)}"
    )
  found = entry(METRICS[name])
  return found if isinstance(found, Metric) else Metric(found)


def check_name(name: str, labels: Sequence[str] | None = None) -> None:
  """Raises `UserError` if there is no such metric, or it does not apply to these labels."""
  needed, given = metric(name), len(labels or ())
  if needed.labels not in (None, given):
    raise UserError(f"{needed.advice}; the task has {given}.")


def compute(
  names: Iterable[str],
  targets: Sequence[str],
  predictions: Sequence[str],
  labels: Sequence[str] | None = None,
  answers: Sequence[Sequence[str]] | None = None,
  groups: Sequence[str] | None = None,
  written: Sequence[str | None] | None = None,
) -> dict[str, float]:
  """Returns each named metric of the predictions.

  Args:
    names: of `METRICS`.
    targets: the right answers, in the order of the predictions.
    predictions: generated texts, or chosen labels (see `of_labels`).
    labels: the task's labels, or None if the targets are free.
    answers: all right answers of each example; () if only its target is right.
    groups: of each example, '' for none.
    written: see `Predicted`; by default the targets.

  Raises:
    UserError: a metric is unknown, or needs something that these examples lack.
    ValueError: there are no examples, or the arguments have different lengths.
  """
  names = tuple(names)
  for name in names:
    check_name(name, labels)
  answers = answers or [()] * len(targets)
  groups = groups or [""] * len(targets)
  if not targets or {len(predictions), len(answers), len(groups)} != {len(targets)}:
    raise ValueError(
      f"{len(targets)} targets but {len(predictions)} predictions, {len(answers)} lists "
      f"of answers and {len(groups)} groups"
    )
  given = Predicted(
    targets=_collapsed(targets),
    predictions=_collapsed(predictions),
    labels=None if labels is None else _collapsed(labels),
    answers=[
      _collapsed(several or [target])
      for target, several in zip(targets, answers, strict=True)
    ],
    groups=groups,
    written=[None if text is None else _collapsed([text])[0] for text in written or ()],
  )
  return {name: metric(name).score(given) for name in names}


def of_labels(scores: dict[str, float]) -> dict[str, float]:
  """Returns the scores of rank classification under the names for reports.

  These are the same metrics, applied to the labels that score highest instead of generated
  text: 'label_<metric>', and 'label_accuracy' for exact match.
  """
  names = {"exact_match": "label_accuracy"}
  return {names.get(name, f"label_{name}"): value for name, value in scores.items()}


def _collapsed(texts: Sequence[str]) -> list[str]:
  return [" ".join(text.split()) for text in texts]

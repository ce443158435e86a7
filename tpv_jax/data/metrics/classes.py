"""Metrics of labels, and exact matches of any text.

scikit-learn does the arithmetic where it has it, and is imported at the first use.
"""

import warnings

import numpy as np

from tpv_jax.core.errors import UserError
from tpv_jax.data.metrics.protocol import Metric, Predicted


def exact_match(given: Predicted) -> float:
  """Returns the share of predictions equal to their targets, as the vocabulary writes them.

  What the vocabulary writes is the decoded tokens of the target. A target that was trimmed
  or has unknown tokens can't be written, so no prediction of it is right. Training
  (`model`), searches (`Evaluator.exact_match`) and evaluation share this definition, but
  the first two compare tokens: greedy decoding writes a target if and only if each of its
  tokens, EOS included, is the arg max after the tokens before it and none is unknown.
  (A text is right here whatever its tokens; those two require the vocabulary's own.)

  A prediction that is not a label counts as wrong, so over all examples of a
  classification task this is the accuracy of generated labels.
  """
  written = given.written or given.targets
  pairs = zip(written, given.predictions, strict=True)
  return float(np.mean([target == text for target, text in pairs]))


def macro_f1(given: Predicted) -> float:
  """Returns the mean of the labels' F1 scores.

  A prediction that is not a label lowers the recall of the target's label and is not a
  class of its own (as in T5's `mean_multiclass_f1`). A label that is neither a target nor
  predicted has F1 0. Without labels, the classes are the different targets.
  """
  scores = []
  for label in given.classes:
    hits = sum(target == text == label for target, text in given.pairs)
    named = sum((target == label) + (text == label) for target, text in given.pairs)
    scores.append(2 * hits / named if named else 0.0)
  return float(np.mean(scores))


def f1(given: Predicted) -> float:
  """Returns the F1 of the second of two labels, the positive one as in GLUE.

  A prediction that is not a label counts as the opposite of its target (T5's
  `f1_score_with_invalid`). Over all answers of MultiRC this is its F1a. It is 0 if there
  is no positive target or no positive prediction.
  """
  import sklearn.metrics

  negative, positive = given.classes
  opposite = {negative: positive, positive: negative}
  read = [
    text if text in opposite else opposite[target] for target, text in given.pairs
  ]
  return float(
    sklearn.metrics.f1_score(given.targets, read, pos_label=positive, zero_division=0)
  )


F1 = Metric(
  f1,
  labels=2,
  advice="f1 is of the second of two labels: give the negative and the positive one, or "
  "choose macro_f1",
)


def matthews(given: Predicted) -> float:
  """Returns Matthews' correlation coefficient, in [-1, 1].

  All predictions that are not labels form one extra class, which is always wrong (as in
  T5, where they get the class id -1). It is 0 if all predictions are equal.
  """
  import sklearn.metrics

  ids = {label: index for index, label in enumerate(given.classes)}
  with warnings.catch_warnings():
    # With only one class scikit-learn warns and gives 0, as documented here.
    warnings.simplefilter("ignore")
    return float(
      sklearn.metrics.matthews_corrcoef(
        [ids.get(text, -1) for text in given.targets],
        [ids.get(text, -1) for text in given.predictions],
      )
    )


def group_exact_match(given: Predicted) -> float:
  """Returns the share of groups whose predictions are all equal to their targets.

  This is MultiRC's exact match: a question counts if all its answers are judged correctly.
  A split that separates the answers of a question makes two easier ones of it.

  Raises:
    UserError: an example states no group.
  """
  if not all(given.groups):
    raise UserError(
      "group_exact_match needs to know which examples belong together, and some state "
      "no group. Give Example.group (MultiRC: the question's id), or choose exact_match."
    )
  right: dict[str, bool] = {}
  for group, (target, text) in zip(given.groups, given.pairs, strict=True):
    right[group] = right.get(group, True) and target == text
  return float(np.mean(list(right.values())))

"""Metrics of predicted texts, by name; for all of them more is better.

Texts are compared after white space is collapsed, with their case. A prediction that
cannot be read (no label, no number, no answer) counts as wrong. Scores are fractions or
coefficients (T5's own evaluation multiplies them by 100). scikit-learn and SciPy do
the arithmetic where they have it, and are imported at the first use.
"""

import collections
import dataclasses
import math
import re
import string
import warnings
from collections.abc import Callable, Iterable, Sequence

import numpy as np

from tpv_jax.core.errors import UserError, near_misses

NOT_A_NUMBER = -1.0
"""What a prediction counts as that is no finite number (T5's `string_to_float`)."""

DETERMINERS = frozenset(
  (
    *("a", "an", "few", "her", "his", "each", "every", "many", "much", "my", "our"),
    *("some", "that", "the", "their", "these", "this", "those", "which", "whose"),
    "your",
  )
)
"""Words that do not count in the answers of WSC (those of T5's `wsc_simple`)."""


@dataclasses.dataclass(frozen=True)
class Predicted:
  """What was predicted beside what is right, one entry an example.

  Attributes:
    targets: the right answers, or WSC's candidates.
    predictions: decoded texts, or chosen labels.
    labels: the task's labels, or None where the targets are free.
    answers: all right answers of each example.
    groups: what each example belongs to; MultiRC: its question.
    written: each target as the vocabulary writes it (`labels.spelling`), None if it
      can't; () means the targets.
  """

  targets: Sequence[str]
  predictions: Sequence[str]
  labels: Sequence[str] | None
  answers: Sequence[Sequence[str]]
  groups: Sequence[str]
  written: Sequence[str | None] = ()

  @property
  def pairs(self) -> Iterable[tuple[str, str]]:
    """The pairs of target and prediction."""
    return zip(self.targets, self.predictions, strict=True)

  @property
  def classes(self) -> list[str]:
    """The labels; without any, the different targets in alphabetical order."""
    return sorted(set(self.targets)) if self.labels is None else list(self.labels)


def exact_match(given: Predicted) -> float:
  """Returns the share of predictions equal to their targets, as the vocabulary writes them.

  That is what the target's tokens are decoded to. A target that was trimmed or has
  unknown tokens can't be written, so no prediction of it is right. Training (`model`),
  searches (`Evaluator.exact_match`) and evaluation count by this one definition, the
  first two by tokens: a target is written by greedy decoding if and only if each of its
  tokens, EOS included, is the arg max after the ones before it and none is unknown.
  (Text is right here by whatever tokens; to those two, by the vocabulary's own.)

  A prediction that is no label counts as wrong, so over all examples of a
  classification task this is the accuracy of generated labels.
  """
  written = given.written or given.targets
  pairs = zip(written, given.predictions, strict=True)
  return float(np.mean([target == text for target, text in pairs]))


def macro_f1(given: Predicted) -> float:
  """Returns the mean over the labels of each one's F1.

  A prediction that is no label lowers the recall of the target's label and is no class
  of its own (as T5's `mean_multiclass_f1`). A label that is neither a target nor
  predicted has F1 0. Without labels, the classes are those among the targets.
  """
  scores = []
  for label in given.classes:
    hits = sum(target == text == label for target, text in given.pairs)
    named = sum((target == label) + (text == label) for target, text in given.pairs)
    scores.append(2 * hits / named if named else 0.0)
  return float(np.mean(scores))


def f1(given: Predicted) -> float:
  """Returns the F1 of the second of two labels, the positive one as in GLUE.

  A prediction that is no label counts as the opposite of its target (T5's
  `f1_score_with_invalid`). Over all answers of MultiRC this is its F1a. It is 0 without
  a positive target or prediction.
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


def matthews(given: Predicted) -> float:
  """Returns Matthews' correlation coefficient, in [-1, 1].

  All predictions that are no labels form one extra class, which is always wrong (as in
  T5, where they get the class id -1). It is 0 if all predictions are equal.
  """
  import sklearn.metrics

  ids = {label: index for index, label in enumerate(given.classes)}
  with warnings.catch_warnings():
    # One class only: scikit-learn says 0, which is what we document.
    warnings.simplefilter("ignore")
    return float(
      sklearn.metrics.matthews_corrcoef(
        [ids.get(text, -1) for text in given.targets],
        [ids.get(text, -1) for text in given.predictions],
      )
    )


def pearson(given: Predicted) -> float:
  """Returns Pearson's correlation of the numbers that the texts spell, in [-1, 1].

  A prediction that is no finite number counts as `NOT_A_NUMBER`. It is 0 (ours; not
  NaN) for fewer than two examples, or if one side is constant.
  """
  import scipy.stats

  return _correlation(scipy.stats.pearsonr, given)


def spearman(given: Predicted) -> float:
  """Returns Spearman's rank correlation, in [-1, 1]; otherwise like `pearson`."""
  import scipy.stats

  return _correlation(scipy.stats.spearmanr, given)


def group_exact_match(given: Predicted) -> float:
  """Returns the share of groups whose predictions are all equal to their targets.

  MultiRC's exact match: a question counts if each of its answers is judged rightly. A
  split that cuts a question in two makes two easier ones of it.

  Raises:
    UserError: the examples state no groups.
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


def squad_exact_match(given: Predicted) -> float:
  """Returns the share of predictions that are one of the right answers, as SQuAD says it.

  Both are lower-cased, ASCII punctuation and the articles a, an and the are removed, and
  white space is collapsed (official script; T5's `normalize_squad`).
  """
  return _best_answers(lambda answer, text: float(answer == text), given)


def squad_f1(given: Predicted) -> float:
  """Returns SQuAD's F1: of the common words, for the closest of the right answers.

  Normalised as in `squad_exact_match`. If nothing is left of both, it is 1, as in the
  script of SQuAD v2 and not in T5's, which says 0; that is where "" answers "".
  """
  return _best_answers(_word_f1, given)


def math_match(given: Predicted) -> float:
  r"""Returns the share of predictions with the answer of their targets, for MATH.

  The answer is what the last `\boxed{}` (or `\fbox{}`) holds, or the whole text without
  one (ours: a target may be the bare answer). Answers are compared as texts after the
  normalisation of the data set's authors (Hendrycks et al. 2021, `is_equiv`): they drop
  spaces, `\left`, `\right`, `\!`, degrees, percent, `\$`, a unit in `\text{ ...}` at the
  end, and 'x =' in front; and write `dfrac` and `tfrac` as `frac`, `\frac12` as
  `\frac{1}{2}`, `\sqrt3` as `\sqrt{3}`, 3/4 as `\frac{3}{4}`, .5 as 0.5 and 0.5 as a half.

  Nothing is computed: 0.25 is not 1/4, 2/4 not 1/2, 1,000 not 1000, x+1 not 1+x, and a
  set in another order is another answer. A box that is not closed holds no answer.
  """
  pairs = ((_math_answer(target), _math_answer(text)) for target, text in given.pairs)
  return float(np.mean([right is not None and right == said for right, said in pairs]))


def wsc_match(given: Predicted) -> float:
  """Returns WSC's accuracy when the model says what a pronoun refers to.

  As T5's `wsc_simple`: the target is a candidate, which is right if it is among the
  answers of its example (a wrong one has `answers=("",)`). A prediction names it if the
  words of one are all among those of the other, without case and `DETERMINERS`; unless
  only one has an apostrophe ("Bob's hat" is not Bob). A prediction is right if it names
  a right candidate, or does not name a wrong one. An empty one is wrong.
  """
  return float(
    np.mean(
      [
        bool(_referent(text)) and _names(text, target) == (target in answers)
        for (target, text), answers in zip(given.pairs, given.answers, strict=True)
      ]
    )
  )


METRICS: dict[str, Callable[[Predicted], float]] = {
  function.__name__: function
  for function in (
    exact_match,
    macro_f1,
    f1,
    matthews,
    pearson,
    spearman,
    group_exact_match,
    squad_exact_match,
    squad_f1,
    math_match,
    wsc_match,
  )
}
"""Every metric by its name."""


def check_name(name: str, labels: Sequence[str] | None = None) -> None:
  """Raises `UserError` if there is no metric of that name, or not for these labels."""
  if name not in METRICS:
    raise UserError(
      f"There is no metric '{name}'; there are {', '.join(METRICS)}."
      f"{near_misses(name, METRICS)}"
    )
  if name == "f1" and (labels is None or len(labels) != 2):
    raise UserError(
      f"f1 is of the second of two labels, and there are {len(labels or ())}. Give the "
      "negative and the positive label, or choose macro_f1."
    )


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
    labels: the task's labels, or None where the targets are free.
    answers: all right answers of each example, () for its target alone.
    groups: of each example, '' for none.
    written: see `Predicted`; by default the targets.

  Raises:
    UserError: an unknown metric, or one that these examples lack something for.
    ValueError: nothing to measure, or unequal numbers.
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
  return {name: METRICS[name](given) for name in names}


def of_labels(scores: dict[str, float]) -> dict[str, float]:
  """Returns the scores of rank classification under the names that reports have.

  They are the same metrics, of the labels that score highest instead of generated
  text: 'label_<metric>', and 'label_accuracy' for their exact match.
  """
  names = {"exact_match": "label_accuracy"}
  return {names.get(name, f"label_{name}"): value for name, value in scores.items()}


def _collapsed(texts: Sequence[str]) -> list[str]:
  return [" ".join(text.split()) for text in texts]


def _number(text: str) -> float:
  try:
    value = float(text)
  except ValueError:
    return NOT_A_NUMBER
  return value if math.isfinite(value) else NOT_A_NUMBER


def _correlation(function: Callable, given: Predicted) -> float:
  right, predicted = map(_number, given.targets), map(_number, given.predictions)
  sides = list(right), list(predicted)
  return (
    0.0 if min(len(set(side)) for side in sides) < 2 else float(function(*sides)[0])
  )


def _best_answers(score: Callable[[str, str], float], given: Predicted) -> float:
  """Returns the mean of each prediction's best score among its normalised answers."""
  return float(
    np.mean(
      [
        max(score(_squad_text(one), _squad_text(text)) for one in answers)
        for text, answers in zip(given.predictions, given.answers, strict=True)
      ]
    )
  )


_PUNCTUATION = dict.fromkeys(map(ord, string.punctuation))


def _squad_text(text: str) -> str:
  text = text.lower().translate(_PUNCTUATION)
  return " ".join(re.sub(r"\b(a|an|the)\b", " ", text).split())


def _word_f1(answer: str, text: str) -> float:
  right, said = answer.split(), text.split()
  if not right or not said:
    return float(right == said)
  common = (collections.Counter(right) & collections.Counter(said)).total()
  return 2 * common / (len(right) + len(said))


def _referent(text: str) -> list[str]:
  return [word for word in text.lower().split() if word not in DETERMINERS]


def _names(text: str, candidate: str) -> bool:
  said, meant = _referent(text), _referent(candidate)
  if any("'" in word for word in said) != any("'" in word for word in meant):
    return False
  return set(said) <= set(meant) or set(meant) <= set(said)


def _math_answer(text: str) -> str | None:
  """Returns the normalised answer of a text, None if its last box is not closed."""
  boxes = list(re.finditer(r"\\(?:boxed|fbox)\s*\{", text))
  if not boxes:
    return _normal_math(text)
  depth = 0
  for place in range(start := boxes[-1].end() - 1, len(text)):
    depth += {"{": 1, "}": -1}.get(text[place], 0)
    if not depth:
      return _normal_math(text[start + 1 : place])
  return None


def _normal_math(answer: str) -> str:
  for old, new in _MATH_SPELLINGS:
    answer = answer.replace(old, new)
  if answer.count(r"\text{ ") == 1:  # A unit: there is a space before it.
    answer = answer.partition(r"\text{ ")[0]
  answer = answer.replace(" .", " 0.").replace("{.", "{0.")
  answer = re.sub(r"^\.", "0.", answer)
  answer = re.sub(r"^[^=]{0,2}=(?=[^=]*$)", "", answer)
  answer = re.sub(r"\\sqrt([^{])", r"\\sqrt{\1}", answer).replace(" ", "")
  answer = re.sub(r"\\frac([^{])([^{])", r"\\frac{\1}{\2}", answer)
  answer = re.sub(r"\\frac([^{])\{", r"\\frac{\1}{", answer)
  answer = r"\frac{1}{2}" if answer == "0.5" else answer
  return re.sub(r"^(-?\d+)/(-?\d+)$", r"\\frac{\1}{\2}", answer)


_MATH_SPELLINGS = (
  ("\\!", ""),
  ("\\\\", "\\"),
  ("tfrac", "frac"),
  ("dfrac", "frac"),
  ("\\left", ""),
  ("\\right", ""),
  ("^{\\circ}", ""),
  ("^\\circ", ""),
  ("\\$", ""),
  ("\\%", ""),
  ("%", ""),
)

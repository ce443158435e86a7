"""Metrics of free answers: SQuAD's and WSC's."""

import collections
import re
import string
from collections.abc import Callable

import numpy as np

from tpv_jax.data.metrics.protocol import Predicted

DETERMINERS = frozenset(
  (
    *("a", "an", "few", "her", "his", "each", "every", "many", "much", "my", "our"),
    *("some", "that", "the", "their", "these", "this", "those", "which", "whose"),
    "your",
  )
)
"""Words that do not count in the answers of WSC (those of T5's `wsc_simple`)."""


def squad_exact_match(given: Predicted) -> float:
  """Returns SQuAD's exact match: the share of predictions that equal a right answer.

  Both are normalised: lower-cased, without ASCII punctuation and the articles a, an and
  the, and with white space collapsed (official script; T5's `normalize_squad`).
  """
  return _best_answers(lambda answer, text: float(answer == text), given)


def squad_f1(given: Predicted) -> float:
  """Returns SQuAD's F1: of the words in common with the closest right answer.

  Texts are normalised as in `squad_exact_match`. If both become empty, it is 1, as in the
  script of SQuAD v2; T5's gives 0.
  """
  return _best_answers(_word_f1, given)


def wsc_match(given: Predicted) -> float:
  """Returns WSC's accuracy for predictions that say what a pronoun refers to.

  As in T5's `wsc_simple`, the target is a candidate, which is right if it is among the
  answers of its example (a wrong one has `answers=("",)`). A prediction names the candidate
  if all words of one occur in the other, ignoring case and `DETERMINERS`, unless only one
  of them has an apostrophe ("Bob's hat" is not Bob). A prediction is right if it names a
  right candidate, or does not name a wrong one. An empty prediction is wrong.
  """
  return float(
    np.mean(
      [
        bool(_referent(text)) and _names(text, target) == (target in answers)
        for (target, text), answers in zip(given.pairs, given.answers, strict=True)
      ]
    )
  )


def _best_answers(score: Callable[[str, str], float], given: Predicted) -> float:
  """Returns the mean, over predictions, of the best score with any normalised answer."""
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

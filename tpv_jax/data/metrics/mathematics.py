"""The metric of MATH: equal answers after its authors' normalisation."""

import re

import numpy as np

from tpv_jax.data.metrics.protocol import Predicted


def math_match(given: Predicted) -> float:
  r"""Returns MATH's accuracy: the share of predictions with the answer of their targets.

  The answer is the content of the last `\boxed{}` (or `\fbox{}`), or the whole text if
  there is none (ours: a target may be the bare answer). Answers are compared as texts after
  the normalisation of the data set's authors (Hendrycks et al. 2021, `is_equiv`). It drops
  spaces, `\left`, `\right`, `\!`, degrees, percent, `\$`, a unit in `\text{ ...}` at the
  end, and 'x =' in front; it writes `dfrac` and `tfrac` as `frac`, `\frac12` as
  `\frac{1}{2}`, `\sqrt3` as `\sqrt{3}`, 3/4 as `\frac{3}{4}`, .5 as 0.5 and 0.5 as a half.

  Nothing is computed: 0.25 is not 1/4, 2/4 not 1/2, 1,000 not 1000, x+1 not 1+x, and a
  set in another order is another answer. A box that is not closed has no answer.
  """
  pairs = ((_math_answer(target), _math_answer(text)) for target, text in given.pairs)
  return float(np.mean([right is not None and right == said for right, said in pairs]))


def _math_answer(text: str) -> str | None:
  """Returns the normalised answer of a text, or None if its last box is not closed."""
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

"""What each merge rule may choose from on validation: its settings, equally many a rule."""

import itertools
import math
from collections.abc import Mapping, Sequence
from typing import Any

from tpv_jax.core.errors import UserError
from tpv_jax.vectors import arithmetic
from tpv_jax.vectors.loaded import Loaded
from tpv_jax.vectors.merging import registry
from tpv_jax.vectors.merging.merge import merge
from tpv_jax.vectors.merging.protocol import PromptRule

OPTIONS: Mapping[str, Sequence[Any]] = {
  "density": (0.2, 0.5, 0.8),
  "select_topk": (0.2, 0.5, 1.0),
  "tall_lambda": (0.2, 0.4, 0.6),
  "t": (0.3, 0.5, 0.7),
  "nuslerp_flatten": (True, False),
}
"""The values that are tried of a rule's options; other options keep their defaults."""

LONGEST = 1.25
"""The largest lambda, in units of sqrt(N): a sum of N orthogonal vectors of one length, each
with the coefficient c, has lambda = c sqrt(N)."""


def lambdas(number: int, count: int) -> list[float]:
  """Returns `count` lambdas for `number` vectors: equal steps up to the largest one.

  Lambda is the norm of the merged vector divided by the mean norm of the vectors, so that
  rules that take means and rules that take sums try the same lengths.
  """
  return [LONGEST * math.sqrt(number) * (i + 1) / count for i in range(count)]


def is_of_prompts(rule: str) -> bool:
  """Returns whether a rule makes a prompt of prompts, and so has no lambda."""
  return isinstance(registry.with_options(rule, {}), PromptRule)


def options_of(rule: str) -> list[dict[str, Any]]:
  """Returns the combinations of a rule's options that are tried."""
  names = [name for name in registry.options(rule) if name in OPTIONS]
  return [
    dict(zip(names, values, strict=True))
    for values in itertools.product(*(OPTIONS[name] for name in names))
  ]


def candidates(
  rule: str, vectors: Sequence[Loaded], budget: int
) -> list[tuple[dict[str, Any], Loaded, float]]:
  """Returns what a rule tries: settings, the merged vector and its coefficient.

  There are at most `budget`: each combination of options has budget // combinations
  lambdas. A merged vector of zeros has none.

  Raises:
    UserError: the rule does not take these vectors, or the budget is too small for it.
  """
  combinations = options_of(rule)
  count = budget // len(combinations)
  if not count:
    raise UserError(
      f"The merge rule '{rule}' has {len(combinations)} combinations of options to try, and "
      f"BUDGET is {budget}. Set BUDGET to at least {len(combinations)}."
    )
  mean = sum(arithmetic.norm(one.leaves) for one in vectors) / len(vectors)
  found = []
  for options in combinations:
    merged = merge(vectors, rule, options=options)
    norm = arithmetic.norm(merged.leaves)
    if norm:
      found += [
        ({**options, "lambda": one}, merged, one * mean / norm)
        for one in lambdas(len(vectors), count)
      ]
  if not found:
    raise UserError(f"The merge rule '{rule}' leaves nothing of these vectors.")
  return found

"""What each merge rule may choose from on validation: its settings, at most a budget."""

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

OPTIONS_BY_DATA: Mapping[str, Sequence[Any]] = {
  "fisher_floor": (1e-6, 1e-8, 1e-10),
  "objective": ("entropy", "loss"),
  "per_token": (False, True),
}
"""The same of rules that read data, where the user does not set them."""

DATA_DEFAULTS: Mapping[str, Mapping[str, Any]] = {
  "adamerging": {"steps": 50, "learning_rate": 0.02},
}
"""Options of rules that read data that are not those of `tpv merge-by-data`: fewer and
larger steps, of as many rows in all as tuning takes, for each of many sets."""

LONGEST = 1.25
"""The largest lambda, in units of sqrt(N): a sum of N orthogonal vectors of one length, each
with the coefficient c, has lambda = c sqrt(N)."""

Candidate = tuple[dict[str, Any], Loaded, float]
"""Settings, the vector that they give, and its coefficient."""


def lambdas(number: int, count: int) -> list[float]:
  """Returns `count` lambdas for `number` vectors: equal steps up to the largest one.

  Lambda is the norm of the merged vector divided by the mean norm of the vectors, so that
  rules that take means and rules that take sums try the same lengths.
  """
  return [LONGEST * math.sqrt(number) * (i + 1) / count for i in range(count)]


def is_of_prompts(rule: str) -> bool:
  """Returns whether a rule makes a prompt of prompts, and so has no lambda."""
  return isinstance(registry.with_options(rule, {}), PromptRule)


def options_of(
  rule: str, given: Mapping[str, Any] | None = None
) -> list[dict[str, Any]]:
  """Returns the combinations of a rule's options that are tried.

  Args:
    rule: its name.
    given: options that the user has set, for a rule that reads data; they are in each
      combination.
  """
  values = OPTIONS_BY_DATA if rule in registry.BY_DATA else OPTIONS
  given = given or {}
  names = [one for one in registry.options(rule) if one in values and one not in given]
  return [
    {**given, **dict(zip(names, some, strict=True))}
    for some in itertools.product(*(values[name] for name in names))
  ]


def check_budget(
  rule: str, budget: int, given: Mapping[str, Any] | None = None
) -> None:
  """Raises `UserError` if a rule has more `options_of` to try than the budget."""
  if (count := len(options_of(rule, given))) > budget:
    raise UserError(
      f"BUDGET is {budget}, and the merge rule '{rule}' has {count} combinations of options "
      f"to try. Set BUDGET to at least {count}."
    )


def evaluations(rule: str, budget: int) -> int:
  """Returns how many settings a rule that reads no data tries, at most."""
  if is_of_prompts(rule):
    return 0  # There is nothing to choose.
  combinations = len(options_of(rule))
  return combinations * (budget // combinations)


def candidates(rule: str, vectors: Sequence[Loaded], budget: int) -> list[Candidate]:
  """Returns what a rule that reads no data tries.

  There are at most `budget`: each combination of options has budget // combinations
  lambdas. A merged vector of zeros has none.

  Raises:
    UserError: the rule does not take these vectors, or the budget is too small for it.
  """
  check_budget(rule, budget)
  combinations = options_of(rule)
  count = budget // len(combinations)
  found = []
  for options in combinations:
    merged = merge(vectors, rule, options=options)
    found += of_lengths(options, merged, vectors, count)
  if not found:
    raise UserError(f"The merge rule '{rule}' leaves nothing of these vectors.")
  return found


def of_lengths(
  options: Mapping[str, Any], merged: Loaded, vectors: Sequence[Loaded], count: int
) -> list[Candidate]:
  """Returns `count` lengths of a merged vector; none of a vector of zeros."""
  norm = arithmetic.norm(merged.leaves)
  if not norm:
    return []
  mean = sum(arithmetic.norm(one.leaves) for one in vectors) / len(vectors)
  return [
    ({**options, "lambda": one}, merged, one * mean / norm)
    for one in lambdas(len(vectors), count)
  ]

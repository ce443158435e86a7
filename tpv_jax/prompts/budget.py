"""EPT's parameters by part, and the rank that a budget leaves.

docs/methods.md, (3.10) and (3.11), ours. The budget is the number of parameters of a plain
prompt, P*D. What the short prompt, the fusion and the subspaces leave goes to the low-rank
update, which takes M + D for each rank. So R is less than P, and a long prompt of P tokens
has at least R directions to start from. Letters are those of `equations`.
"""

import dataclasses
import inspect
import math
from collections.abc import Sequence
from typing import Any

from tpv_jax.core.checks import Size, SizeOrNone, checked
from tpv_jax.core.errors import UserError, at_least
from tpv_jax.core.tables import aligned
from tpv_jax.prompts import equations

PARTS = ("prompt", "low_rank", "fusion", "spaces")
"""The parts of EPT's parameters, in the order of the table's columns."""


@dataclasses.dataclass(frozen=True)
class Count:
  """The number of parameters of an EPT prompt by part, with its budget.

  Attributes:
    length: S.
    rank: R.
    parts: part -> number of parameters, for each of `PARTS`.
    budget: P*D.
    limit: what keeps the rank from being larger by one: 'source_length', 'features' or
      'budget'; None if nothing does.
  """

  length: int
  rank: int
  parts: dict[str, int]
  budget: int
  limit: str | None

  @property
  def total(self) -> int:
    """The number of parameters of all parts."""
    return sum(self.parts.values())

  def to_json(self) -> dict[str, Any]:
    """Returns everything as plain values, with `total` and its `share` of the budget."""
    return {
      **dataclasses.asdict(self),
      "total": self.total,
      "share": self.total / self.budget,
    }


@checked
def rank(
  tokens: Size,
  length: Size,
  features: Size,
  source_length: Size,
  fusion_width: SizeOrNone = 0,
  spaces: SizeOrNone = 0,
  bottleneck: Size = 1,
) -> int:
  """Returns the largest rank R with at most P*D parameters in all, (3.11).

  It is also at most min(M, D), the largest rank of a delta.

  Args:
    tokens: P, the tokens of the plain prompt whose parameters are the budget.
    length: S.
    features: D.
    source_length: M.
    fusion_width: H; 0 for no fusion.
    spaces: K; 0 for no multi-space projection.
    bottleneck: Q.

  Raises:
    UserError: impossible sizes, or a budget that leaves no rank at all.
  """
  at_least("tokens", tokens, 1)
  shape = (length, features, source_length)
  others = (fusion_width, spaces, bottleneck)
  equations.refuse_impossible(*shape, 1, *others)
  parts = _parts(*shape, 0, *others)
  left = tokens * features - sum(parts.values())
  each = source_length + features
  if left < each:
    without_update = ""
    if left + parts["fusion"] >= 0:
      without_update = "; to go without an update, set RANK and FUSION_WIDTH to 0"
    raise UserError(
      f"A budget of {_product(tokens, features)} parameters leaves no rank for the "
      f"low-rank update: the other parts have {_describe(parts)}, and each rank takes "
      f"{source_length} + {features} = {each:,}. Take a shorter prompt (SHORT_LENGTH), "
      f"a narrower fusion, fewer spaces or a larger PROMPT_LENGTH{without_update}."
    )
  return min(left // each, source_length, features)


def check(
  tokens: int,
  length: int,
  features: int,
  source_length: int,
  rank: int,
  fusion_width: int = 0,
  spaces: int = 0,
  bottleneck: int = 1,
) -> Count:
  """Returns the number of parameters by part, at most the budget in all, (3.10).

  The arguments are those of the function `rank` and the rank itself, 0 for no update.

  Raises:
    UserError: impossible sizes, or parameters over the budget.
  """
  at_least("tokens", tokens, 1)
  shape = (length, features, source_length)
  others = (fusion_width, spaces, bottleneck)
  equations.refuse_impossible(*shape, rank, *others)
  parts, budget = _parts(*shape, rank, *others), tokens * features
  left = budget - sum(parts.values())
  if left < 0:
    raise UserError(
      f"S = {length} and R = {rank} make {_describe(parts)}: {-left:,} over the budget "
      f"of {_product(tokens, features)}. Lower one of them, or have the largest rank "
      "found (RANK = @budget.rank())."
    )
  limits = {"source_length": source_length - rank, "features": features - rank}
  limits["budget"] = left // (source_length + features)
  limit = next((name for name, more in limits.items() if not more), None)
  return Count(length, rank, parts, budget, limit)


def within(tokens: Size, prompt: Any) -> Any:
  """Returns the given `ept.EPT` if it has at most P*D parameters, where P is `tokens`.

  Raises:
    UserError: it has more.
  """
  sizes = inspect.signature(rank).parameters.keys() - {"tokens"}
  check(tokens, rank=prompt.rank, **{name: getattr(prompt, name) for name in sizes})
  return prompt


def table(counts: Sequence[Count]) -> str:
  """Returns the counts as a text table with one row for each."""
  cells = [["S", "R", *(part.replace("_", "-") for part in PARTS), "total", "share"]]
  for each in counts:
    numbers = (each.length, each.rank, *each.parts.values(), each.total)
    # Rounded down: 100.0% is a budget that is used to the last parameter.
    share = math.floor(1000 * each.total / each.budget) / 10
    cells.append([*(f"{number:,}" for number in numbers), f"{share:.1f}%"])
  lines = [aligned(cells, left=0)]
  lines += [
    f"S = {each.length}: the rank is limited by {_LIMITS[each.limit]}, not by the budget."
    for each in counts
    if each.limit in _LIMITS
  ]
  return "\n".join(lines)


_LIMITS = {
  "source_length": "the source's length",
  "features": "the backbone's width",
}


def _parts(*sizes: int) -> dict[str, int]:
  parts = dict.fromkeys(PARTS, 0)
  for form in equations.parameters(*sizes).values():
    parts[form.part] += form.size
  return parts


def _describe(parts: dict[str, int]) -> str:
  sizes = (f"{part.replace('_', '-')} {size:,}" for part, size in parts.items() if size)
  return f"{sum(parts.values()):,} ({', '.join(sizes)})"


def _product(tokens: int, features: int) -> str:
  return f"{tokens} x {features} = {tokens * features:,}"

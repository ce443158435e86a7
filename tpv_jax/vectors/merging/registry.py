"""The merge rules, each a dataclass and one line here."""

import dataclasses
from collections.abc import Mapping
from typing import TYPE_CHECKING, cast

from tpv_jax.core.errors import UserError, near_misses
from tpv_jax.core.registry import find

if TYPE_CHECKING:
  from tpv_jax.vectors.merging.protocol import Rule

RULES = {
  "task_arithmetic": "tpv_jax.vectors.merging.sums:TaskArithmetic",
  "linear": "tpv_jax.vectors.merging.sums:Linear",
  "norm_balanced": "tpv_jax.vectors.merging.sums:NormBalanced",
  "metagpt": "tpv_jax.vectors.merging.sums:MetaGPT",
  "slerp": "tpv_jax.vectors.merging.spheres:Slerp",
  "model_stock": "tpv_jax.vectors.merging.spheres:ModelStock",
}
"""Name (mergekit's, where it has the rule) -> module:attribute of a `protocol.Rule`."""


def rule(name: str) -> "type[Rule]":
  """Returns the rule of that name.

  Raises:
    UserError: there is none; near misses are named.
  """
  found: type[Rule] = find(
    RULES, name, "merge rule", plural="rules", hint=" (tpv merge --list)"
  )
  return found


def options(name: str) -> dict[str, float]:
  """Returns the options of a rule with their defaults."""
  fields = dataclasses.fields(rule(name))
  return {field.name: float(cast(float, field.default)) for field in fields}


def with_options(name: str, given: Mapping[str, float]) -> "Rule":
  """Returns the rule with these options, the others at their defaults.

  Raises:
    UserError: there is no such rule, it lacks an option, or an option cannot be.
  """
  known = options(name)
  for option in given:
    if option not in known:
      raise UserError(
        f"The merge rule '{name}' has no option '{option}'; it has "
        f"{', '.join(known) or 'none'}.{near_misses(option, known)}"
      )
  return rule(name)(**given)

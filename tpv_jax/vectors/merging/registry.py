"""The merge rules, each a dataclass and one line here."""

import dataclasses
from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any

from tpv_jax.core import checks
from tpv_jax.core.errors import UserError, near_misses
from tpv_jax.core.registry import find

if TYPE_CHECKING:
  from tpv_jax.vectors.merging.by_data import DataRule
  from tpv_jax.vectors.merging.protocol import Rule

RULES = {
  "task_arithmetic": "tpv_jax.vectors.merging.sums:TaskArithmetic",
  "linear": "tpv_jax.vectors.merging.sums:Linear",
  "norm_balanced": "tpv_jax.vectors.merging.sums:NormBalanced",
  "metagpt": "tpv_jax.vectors.merging.sums:MetaGPT",
  "magnitude_prune": "tpv_jax.vectors.merging.pruning:MagnitudePrune",
  "ties": "tpv_jax.vectors.merging.pruning:Ties",
  "dare_linear": "tpv_jax.vectors.merging.dropping:DareLinear",
  "dare_ties": "tpv_jax.vectors.merging.dropping:DareTies",
  "della_linear": "tpv_jax.vectors.merging.dropping:DellaLinear",
  "della": "tpv_jax.vectors.merging.dropping:Della",
  "breadcrumbs": "tpv_jax.vectors.merging.pruning:Breadcrumbs",
  "breadcrumbs_ties": "tpv_jax.vectors.merging.pruning:BreadcrumbsTies",
  "sce": "tpv_jax.vectors.merging.choosing:SCE",
  "consensus": "tpv_jax.vectors.merging.choosing:Consensus",
  "token_choice": "tpv_jax.vectors.merging.choosing:TokenChoice",
  "slerp": "tpv_jax.vectors.merging.spheres:Slerp",
  "nuslerp": "tpv_jax.vectors.merging.spheres:NuSlerp",
  "multislerp": "tpv_jax.vectors.merging.spheres:MultiSlerp",
  "karcher": "tpv_jax.vectors.merging.spheres:Karcher",
  "model_stock": "tpv_jax.vectors.merging.spheres:ModelStock",
  "tsv": "tpv_jax.vectors.merging.matrices:TSV",
  "iso_c": "tpv_jax.vectors.merging.matrices:IsoC",
  "wudi": "tpv_jax.vectors.merging.matrices:WUDI",
  "concat": "tpv_jax.vectors.merging.concatenation:Concat",
}
"""Name (mergekit's, where it has the rule) -> module:attribute of a `protocol.Rule`."""

BY_DATA = {
  "coefficient_search": "tpv_jax.vectors.merging.by_data:CoefficientSearch",
  "fisher": "tpv_jax.vectors.merging.by_data:Fisher",
  "adamerging": "tpv_jax.vectors.merging.by_data:AdaMerging",
}
"""Those that read data -> module:attribute of a `by_data.DataRule`."""

NOT_OFFERED = {
  "nearswap": "it draws one model towards another where their weights are near, and "
  "vectors of tasks have no such base",
  "arcee_fusion": "it asks which of a model's weights changed, and in a vector all did",
  "passthrough": "it stacks layers, and a prompt has none; the rule concat joins prompts",
  "regmean": "it needs the inputs of a weight matrix, and a prompt is itself an input",
  "ram": "of vectors without zeros it is the average: use the rule linear",
}
"""Names that a user may know -> why there is no such rule here."""


def rule(name: str) -> "type[Rule]":
  """Returns the rule of that name, which reads no data.

  Raises:
    UserError: there is none; near misses are named, or why it is not offered.
  """
  if name in BY_DATA:
    raise UserError(
      f"The merge rule '{name}' reads data: 'tpv merge-by-data' tries the vectors on their "
      "backbone and writes the merged one to a file. Give that file instead."
    )
  _refuse_not_offered(name)
  found: type[Rule] = find(
    RULES, name, "merge rule", plural="rules", hint=" (tpv merge --list)"
  )
  return found


def data_rule(name: str) -> "type[DataRule]":
  """Returns the rule of that name, which reads data.

  Raises:
    UserError: there is none; near misses are named, or why it is not offered.
  """
  if name in RULES:
    raise UserError(
      f"The merge rule '{name}' reads no data: merge with 'tpv merge --rule {name}'."
    )
  _refuse_not_offered(name)
  found: type[DataRule] = find(
    BY_DATA, name, "merge rule that reads data", plural="rules that do", hint=""
  )
  return found


def check(name: str) -> None:
  """Raises `UserError` for a name that is of no rule, whether it reads data or not."""
  _refuse_not_offered(name)
  hint = " (tpv merge --list)"
  find({**RULES, **BY_DATA}, name, "merge rule", plural="rules", hint=hint)


def options(name: str) -> dict[str, Any]:
  """Returns the options of a rule, which may read data, with their defaults."""
  found = data_rule(name) if name in BY_DATA else rule(name)
  return {field.name: field.default for field in dataclasses.fields(found)}


def rules_by_option(names: Iterable[str] = RULES) -> dict[str, list[str]]:
  """Returns option -> those of the rules that have it."""
  found: dict[str, list[str]] = {}
  for name in names:
    for option in options(name):
      found.setdefault(option, []).append(name)
  return found


def with_options(name: str, given: Mapping[str, Any]) -> "Rule":
  """Returns a rule that reads no data with these options, the others at their defaults.

  Raises:
    UserError: there is no such rule, it lacks an option, or an option cannot be.
  """
  found = rule(name)
  _check_options(name, found, given, RULES)
  return found(**given)


def data_rule_with_options(name: str, given: Mapping[str, Any]) -> "DataRule":
  """Returns a rule that reads data as `with_options` does one that reads none."""
  found = data_rule(name)
  _check_options(name, found, given, BY_DATA)
  return found(**given)


def _refuse_not_offered(name: str) -> None:
  if name in NOT_OFFERED:
    raise UserError(f"The merge rule '{name}' is not offered: {NOT_OFFERED[name]}.")


def _check_options(
  name: str, found: "type[Rule]", given: Mapping[str, Any], rules: Iterable[str]
) -> None:
  """Raises `UserError` for options that the rule lacks, or that cannot be."""
  known, annotations = options(name), checks.annotations(found)
  for option, value in given.items():
    if option not in known:
      others = rules_by_option(rules).get(option)
      raise UserError(
        f"The merge rule '{name}' has no option '{option}'; it has "
        f"{', '.join(known) or 'none'}."
        + (
          f" It is an option of {', '.join(others)}."
          if others
          else near_misses(option, known)
        )
      )
    wrong = checks.misfit(value, annotations.get(option), f"{option} of {name}")
    if wrong is not None:
      raise UserError(str(wrong))

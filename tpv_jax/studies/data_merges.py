"""The merge rules that read data in a comparison: what each makes of a set of vectors."""

import dataclasses
from collections.abc import Hashable, Mapping
from typing import Any

import numpy as np

from tpv_jax.core.errors import UserError
from tpv_jax.data.tasks import Task
from tpv_jax.devices import partitioning
from tpv_jax.evaluation.evaluator import Evaluator
from tpv_jax.evaluation.merging import merge_by_data
from tpv_jax.evaluation.merging.subject import Subject
from tpv_jax.studies import merge_settings
from tpv_jax.studies.measured import describe
from tpv_jax.studies.tuned import Tuned
from tpv_jax.vectors.merging import merge, registry
from tpv_jax.vectors.merging.by_data import DataRule

Options = Mapping[str, Mapping[str, Any]]
"""Rule -> the options that the user sets."""


def check(options: Options) -> None:
  """Raises `UserError` for options of what is no rule that reads data, or lacks them."""
  for rule, given in options.items():
    registry.data_rule_with_options(rule, given)


@dataclasses.dataclass(frozen=True)
class DataMerges:
  """Merges by rules that read data.

  Attributes:
    evaluator: has the backbone on the devices.
    tasks: all of the comparison.
    prompts: their tuned prompts and vectors.
    options: those that the user sets.
    budget: how many settings a rule may try on validation.
    search_examples: validation examples per task in that search.
    memory: what merges share (`Subject.memory`).
  """

  evaluator: Evaluator
  tasks: Mapping[str, Task]
  prompts: Tuned
  options: Options
  budget: int
  search_examples: int
  memory: dict[Hashable, Any] = dataclasses.field(default_factory=dict)

  def rules(self, rule: str) -> list[tuple[dict[str, Any], DataRule]]:
    """Returns what is tried of a rule: the options that differ, and the rule with all."""
    given = dict(merge_settings.DATA_DEFAULTS.get(rule, {}))
    if "budget" in registry.options(rule):  # It is itself a search on validation.
      given |= {"budget": self.budget, "examples": self.search_examples}
    given |= self.options.get(rule, {})
    return [
      (
        {name: value for name, value in one.items() if name not in given},
        registry.data_rule_with_options(rule, one),
      )
      for one in merge_settings.options_of(rule, given)
    ]

  def subject(self, rule: str) -> dict[str, Any]:
    """Returns what a rule's merges depend on beyond prompts and validation."""
    return {
      "by_data": [merge.settings_of(one) for _, one in self.rules(rule)],
      "rows": describe(list(self.tasks.values()), ("train",)),
      "budget": self.budget,
      "longest": merge_settings.LONGEST,
    }

  def tried(
    self, rule: str, names: tuple[str, ...], seed: int
  ) -> tuple[list[merge_settings.Candidate], dict[str, int]]:
    """Returns what validation chooses from, and what making it has cost.

    The cost is the numbers of `Outcome`: evaluations of the rule's own search, and rows of
    gradients.

    Raises:
      UserError: the rule does not take these vectors or tasks.
    """
    tasks = [self.tasks[name] for name in names]
    vectors = [self.prompts.vectors[name, seed] for name in names]
    choices = self.rules(rule)
    kept, notes = merge.without_zeros(vectors, choices[0][1], rule)
    some = [vectors[place] for place in kept]
    found: list[merge_settings.Candidate] = []
    cost = {"evaluations": 0, "gradient_rows": 0}
    for settings, merging in choices:
      merge_by_data.check_labels(merging, rule, tasks)
      subject = Subject(
        some,
        np.ones(len(some)),
        self.prompts.initial[seed],
        tasks,
        self.evaluator,
        partitioning.make_mesh(),
        self.memory,
      )
      merged, outcome, _ = merge_by_data.computed(rule, merging, subject, notes)
      cost["evaluations"] += outcome.evaluations
      rows = outcome.gradient_rows
      if merging.finds_length:
        if outcome.coefficients is not None:
          settings |= {"coefficients": outcome.coefficients.tolist()}
        found.append((settings, merged, 1.0))
        cost["gradient_rows"] += rows
      else:
        count = self.budget // len(choices)
        found += merge_settings.of_lengths(settings, merged, some, count)
        # The choices differ in what they make of the same gradients.
        cost["gradient_rows"] = rows
    if not found:
      raise UserError(f"The merge rule '{rule}' leaves nothing of these vectors.")
    return found, cost

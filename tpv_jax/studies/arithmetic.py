"""Measurements of arithmetic on the vectors of a grid of prompts.

They are: each task's vector alone, on another initial prompt and against a control; sums
of vectors; negation; similarity (docs/methods.md, (8.4) to (8.9), after arXiv
2408.01119).
"""

import dataclasses
import itertools
import pathlib
from collections.abc import Sequence
from typing import Any

import numpy as np

from tpv_jax.banks import grid
from tpv_jax.data.tasks import Task
from tpv_jax.devices import processes
from tpv_jax.evaluation import candidates
from tpv_jax.evaluation.evaluator import Evaluator, Prompt
from tpv_jax.formats import sources
from tpv_jax.runs.run_folder import versions
from tpv_jax.studies.base import Split
from tpv_jax.studies.measured import describe, digests
from tpv_jax.vectors import algebra, store
from tpv_jax.vectors.loaded import Loaded


@dataclasses.dataclass
class Measurements:
  """The prompts and vectors of a study, and every measurement on them.

  Each measurement evaluates all of its prompts in one pass.
  """

  evaluator: Evaluator
  tasks: Sequence[Task]
  seeds: Sequence[int]
  folder: pathlib.Path
  coefficients: Sequence[float]
  search_examples: int

  def __post_init__(self) -> None:
    self.names = [task.name for task in self.tasks]
    self.combinations: list[tuple[str, ...]] = [*itertools.combinations(self.names, 2)]
    if len(self.names) > 2:
      self.combinations.append(tuple(self.names))
    self.test = Split(self.evaluator, self.tasks)
    self.validation = Split(
      self.evaluator, self.tasks, "validation", self.search_examples
    )
    self.initial: dict[int, Loaded] = {}
    self.tuned: dict[tuple[str, int], Loaded] = {}
    self.vectors: dict[tuple[str, int], Loaded] = {}
    self.folded: dict[tuple[str, int], Prompt] = {}
    for name, seed in itertools.product(self.names, self.seeds):
      run = str(self.folder / "runs" / grid.name_of(name, seed, None))
      self.initial[seed] = sources.load(run, "initial")
      self.tuned[name, seed] = sources.load(run, "best")
      self.folded[name, seed] = algebra.fold(self.tuned[name, seed]).leaves
      vector = algebra.diff(self.tuned[name, seed], self.initial[seed])
      self.vectors[name, seed] = dataclasses.replace(vector, name=f"{name}-{seed}")
      path = self.folder / "vectors" / f"{name}-{seed}.safetensors"
      if processes.is_writer():
        store.write(path, vector.leaves, vector.provenance, overwrite=True)

  def subject(self) -> dict[str, Any]:
    """Returns what the measurements depend on, except decoding and the backbone."""
    return {
      "initial_prompts": digests(self.initial),
      "prompts": digests({f"{n}-{seed}": one for (n, seed), one in self.tuned.items()}),
      "tasks": describe(self.tasks, ("validation", "test")),
      "lengths": self.evaluator.lengths,
      "coefficients": list(self.coefficients),
      "search_examples": self.search_examples,
      "versions": versions(),
    }

  def _applied(self, vector: Loaded, seed: int, coefficient: float = 1.0) -> Prompt:
    prompt = algebra.apply(vector, self.initial[seed], coefficient)
    return algebra.fold(prompt).leaves

  def _sum(self, names: Sequence[str], seed: int) -> Loaded:
    return algebra.sum_vectors([self.vectors[name, seed] for name in names])

  def single(self) -> dict[str, dict[str, Any]]:
    """Returns, for each task, the scores of no prompt, own, other initial, and control."""
    keys = [(task, seed) for task in self.tasks for seed in self.seeds]
    found = self.evaluator.evaluate_all(
      [
        *((self.folded[task.name, seed], task, "test") for task, seed in keys),
        *((None, task, "test") for task in self.tasks),
      ]
    )
    own: dict[str, list[dict[str, float]]] = {name: [] for name in self.names}
    for (task, _), result in zip(keys, found[: len(keys)], strict=True):
      own[task.name].append(result.scores)
    no_prompt = {result.task: result.scores for result in found[len(keys) :]}
    asked: dict[Any, tuple[Prompt, str]] = {}
    for name, seed in itertools.product(self.names, self.seeds):
      for other in self.seeds:
        if other != seed:
          applied = self._applied(self.vectors[name, other], seed)
          asked["other_initial", name, seed, other] = applied, name
      for another in self.names:
        if another != name:
          asked["control", name, seed, another] = self.folded[another, seed], name
    scores = self.test.scores(asked)

    def means(kind: str, name: str) -> list[float]:
      return [
        float(
          np.mean([v for key, v in scores.items() if key[:3] == (kind, name, seed)])
        )
        for seed in self.seeds
      ]

    return {
      name: {
        "no_prompt": no_prompt[name],
        "own": own[name],
        "other_initial": means("other_initial", name),
        "control": means("control", name),
      }
      for name in self.names
    }

  def search(self, seed: int) -> list[float]:
    """Returns the coefficient of each combination's sum on an initial prompt.

    All vectors of a sum share one coefficient: the one with the best mean exact match
    over the summed tasks on validation; the smaller one wins a tie.
    """
    asked: dict[Any, tuple[Prompt, str]] = {}
    for names in self.combinations:
      total = self._sum(names, seed)
      for coefficient in self.coefficients:
        applied = self._applied(total, seed, coefficient)
        for name in names:
          asked[names, coefficient, name] = applied, name
    scores = self.validation.scores(asked)
    chosen = []
    for names in self.combinations:
      means = {
        coefficient: np.mean([scores[names, coefficient, name] for name in names])
        for coefficient in self.coefficients
      }
      chosen.append(max(means, key=lambda one: (means[one], -one)))
      candidates.say_equal_scores(
        f"Coefficient of {' + '.join(names)} on initial prompt {seed}",
        [float(mean) for mean in means.values()],
        f"{chosen[-1]:g}, the smallest",
      )
    return chosen

  def sums(
    self, chosen: Sequence[Sequence[float]]
  ) -> tuple[list[dict[str, Any]], dict[str, dict[str, list[float]]]]:
    """Returns the scores of the sums, and those after negating a task's vector in them.

    The sums are those of all pairs and of all tasks, on each initial prompt. Negation
    turns P_i + c (v_t + v_u) into P_i + c (v_u - v_t), with the c chosen for the sum. For
    each task t and initial prompt, its results are the means over the partners u of the
    scores of t and of u, before and after.

    Args:
      chosen: the coefficients, [initial prompt][combination].
    """
    by_sum = dict(zip(self.combinations, zip(*chosen, strict=True), strict=True))
    scores: dict[Any, float] = {}
    for place, seed in enumerate(
      self.seeds
    ):  # All at once may not fit the host's memory.
      asked: dict[Any, tuple[Prompt, str]] = {}
      for names, coefficients in by_sum.items():
        coefficient = coefficients[place]
        applied = self._applied(self._sum(names, seed), seed, coefficient)
        for name in names:
          asked[names, None, seed, name] = applied, name
        for name in names if len(names) == 2 else ():
          (partner,) = (other for other in names if other != name)
          negated = algebra.negate(self.vectors[name, seed])
          difference = algebra.sum_vectors([self.vectors[partner, seed], negated])
          applied = self._applied(difference, seed, coefficient)
          for one in (name, partner):
            asked[names, name, seed, one] = applied, one
      scores |= self.test.scores(asked)
    sums = [
      {
        "tasks": list(names),
        "coefficient": list(coefficients),
        "scores": {
          name: [scores[names, None, seed, name] for seed in self.seeds]
          for name in names
        },
      }
      for names, coefficients in by_sum.items()
    ]
    negation: dict[str, dict[str, list[float]]] = {}
    for name in self.names:
      pairs = [
        names for names in self.combinations if len(names) == 2 and name in names
      ]
      partners = [names[1 - names.index(name)] for names in pairs]
      negation[name] = {
        prefix + when: [
          float(
            np.mean(
              [
                scores[names, negated, seed, partner if prefix else name]
                for names, partner in zip(pairs, partners, strict=True)
              ]
            )
          )
          for seed in self.seeds
        ]
        for prefix in ("", "partner_")
        for when, negated in (("before", None), ("after", name))
      }
    return sums, negation

  def cosine(self) -> dict[str, Any]:
    """Returns the cosine matrices of all prompts and of all vectors, and their names."""
    keys = [(name, seed) for name in self.names for seed in self.seeds]
    return {
      "names": [f"{name}-{seed}" for name, seed in keys],
      "prompts": algebra.cosine([self.tuned[key] for key in keys]).tolist(),
      "vectors": algebra.cosine([self.vectors[key] for key in keys]).tolist(),
    }

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
from tpv_jax.studies import hits
from tpv_jax.studies.base import METRICS, Hits, Split
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
      "metrics": list(METRICS),
      "versions": versions(),
    }

  def _applied(self, vector: Loaded, seed: int, coefficient: float = 1.0) -> Prompt:
    prompt = algebra.apply(vector, self.initial[seed], coefficient)
    return algebra.fold(prompt).leaves

  def _sum(self, names: Sequence[str], seed: int) -> Loaded:
    return algebra.sum_vectors([self.vectors[name, seed] for name in names])

  def single(self) -> dict[str, Any]:
    """Returns the scores without a prompt and with the tuned ones, and all hits.

    'scores': for each task all metrics of no prompt, and of its own prompt by initial
    prompt. 'hits': `hits.to_json` of own prompt, untuned one, other initial and control.
    """
    keys = [(task, seed) for task in self.tasks for seed in self.seeds]
    found = self.evaluator.evaluate_all(
      [
        *((self.folded[task.name, seed], task, "test") for task, seed in keys),
        *((None, task, "test") for task in self.tasks),
      ]
    )
    scores: dict[str, Any] = {
      one.task: {"no_prompt": one.scores, "own": []} for one in found[len(keys) :]
    }
    for (task, _), result in zip(keys, found[: len(keys)], strict=True):
      scores[task.name]["own"].append(result.scores)
    asked: dict[Any, tuple[Prompt, str]] = {}
    for name, seed in itertools.product(self.names, self.seeds):
      asked["own", name, seed, None] = self.folded[name, seed], name
      initial = algebra.fold(self.initial[seed]).leaves
      asked["untuned", name, seed, None] = initial, name
      for other in self.seeds:
        if other != seed:
          applied = self._applied(self.vectors[name, other], seed)
          asked["other_initial", name, seed, other] = applied, name
      for another in self.names:
        if another != name:
          asked["control", name, seed, another] = self.folded[another, seed], name
    return {"scores": scores, "hits": hits.to_json(self.test.hits(asked))}

  def search(self, seed: int) -> list[float]:
    """Returns the coefficient of each combination's sum on an initial prompt.

    All vectors of a sum share one coefficient: the one with the best mean exact match
    over the summed tasks on validation; of equal ones that with the best accuracy among
    labels, then the smallest.
    """
    asked: dict[Any, tuple[Prompt, str]] = {}
    for names in self.combinations:
      total = self._sum(names, seed)
      for coefficient in self.coefficients:
        applied = self._applied(total, seed, coefficient)
        for name in names:
          asked[names, coefficient, name] = applied, name
    found = self.validation.hits(asked)
    chosen = []
    for names in self.combinations:
      means = {
        coefficient: tuple(
          float(
            np.mean([found[names, coefficient, name][metric].mean() for name in names])
          )
          for metric in METRICS
        )
        for coefficient in self.coefficients
      }
      chosen.append(max(means, key=lambda one: (*means[one], -one)))
      if len({labels for _, labels in means.values()}) == 1:
        candidates.say_equal_scores(
          f"Coefficient of {' + '.join(names)} on initial prompt {seed}",
          [exact for exact, _ in means.values()],
          f"{chosen[-1]:g}, the smallest",
        )
    return chosen

  def sums(self, chosen: Sequence[Sequence[float]]) -> dict[str, dict[str, str]]:
    """Returns the hits of the sums, and those after negating a task's vector in them.

    The sums are those of all pairs and of all tasks, on each initial prompt. Negation
    turns P_i + c (v_t + v_u) into P_i + c (v_u - v_t), with the c chosen for the sum.

    Args:
      chosen: the coefficients, [initial prompt][combination].
    """
    found: dict[Any, Hits] = {}
    # One initial prompt after the other: all at once may not fit the host's memory.
    for seed, coefficients in zip(self.seeds, chosen, strict=True):
      asked: dict[Any, tuple[Prompt, str]] = {}
      for names, coefficient in zip(self.combinations, coefficients, strict=True):
        applied = self._applied(self._sum(names, seed), seed, coefficient)
        for name in names:
          asked["sum", names, seed, name] = applied, name
        for name in names if len(names) == 2 else ():
          (partner,) = (other for other in names if other != name)
          negated = algebra.negate(self.vectors[name, seed])
          difference = algebra.sum_vectors([self.vectors[partner, seed], negated])
          applied = self._applied(difference, seed, coefficient)
          for one in names:
            asked["negated", names, seed, one, name] = applied, one
      found |= self.test.hits(asked)
    return hits.to_json(found)

  def cosine(self) -> dict[str, Any]:
    """Returns the cosine matrices of all prompts and of all vectors, and their names."""
    keys = [(name, seed) for name in self.names for seed in self.seeds]
    return {
      "names": [f"{name}-{seed}" for name, seed in keys],
      "prompts": algebra.cosine([self.tuned[key] for key in keys]).tolist(),
      "vectors": algebra.cosine([self.vectors[key] for key in keys]).tolist(),
    }

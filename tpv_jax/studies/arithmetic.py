"""Measurements of arithmetic on the vectors of a grid of prompts.

They are: each task's vector alone, on another initial prompt and against a control; sums
of vectors; negation; similarity (docs/methods.md, (8.4) to (8.9), after arXiv
2408.01119).
"""

import dataclasses
import functools
import itertools
import pathlib
from collections.abc import Sequence
from typing import Any

from tpv_jax.data.tasks import Task
from tpv_jax.evaluation.evaluator import Evaluator, Prompt
from tpv_jax.studies import hits, tuned
from tpv_jax.studies.base import METRICS, Hits, Split, best_coefficients
from tpv_jax.vectors import algebra


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
    self.prompts = tuned.load(
      self.names, self.seeds, self.folder / "runs", self.folder / "vectors"
    )

  def subject(self) -> dict[str, Any]:
    """Returns what the measurements depend on, except decoding and the backbone."""
    return {
      **self.prompts.subject(self.tasks),
      "lengths": self.evaluator.lengths,
      "coefficients": list(self.coefficients),
      "search_examples": self.search_examples,
      "metrics": list(METRICS),
    }

  def single(self) -> dict[str, Any]:
    """Returns the scores without a prompt and with the tuned ones, and all hits.

    'scores': for each task all metrics of no prompt, and of its own prompt by initial
    prompt. 'hits': `hits.to_json` of own prompt, untuned one, other initial and control.
    """
    keys = [(task, seed) for task in self.tasks for seed in self.seeds]
    found = self.evaluator.evaluate_all(
      [
        *((self.prompts.folded(task.name, seed), task, "test") for task, seed in keys),
        *((None, task, "test") for task in self.tasks),
      ]
    )
    scores: dict[str, Any] = {
      one.task: {"no_prompt": one.scores, "own": []} for one in found[len(keys) :]
    }
    for (task, _), result in zip(keys, found[: len(keys)], strict=True):
      scores[task.name]["own"].append(result.scores)
    answered = self.test.hits(self.prompts.single())
    return {"scores": scores, "hits": hits.to_json(answered)}

  def search(self, seed: int) -> list[float]:
    """Returns the coefficient of each combination's sum on an initial prompt."""
    sums = {
      (names, seed): functools.partial(
        self.prompts.applied, self.prompts.sum_of(names, seed), seed
      )
      for names in self.combinations
    }
    return best_coefficients(self.validation, sums, self.coefficients)

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
        applied = self.prompts.applied(
          self.prompts.sum_of(names, seed), seed, coefficient
        )
        for name in names:
          asked["sum", names, seed, name] = applied, name
        for name in names if len(names) == 2 else ():
          (partner,) = (other for other in names if other != name)
          negated = algebra.negate(self.prompts.vectors[name, seed])
          difference = algebra.sum_vectors(
            [self.prompts.vectors[partner, seed], negated]
          )
          applied = self.prompts.applied(difference, seed, coefficient)
          for one in names:
            asked["negated", names, seed, one, name] = applied, one
      found |= self.test.hits(asked)
    return hits.to_json(found)

  def cosine(self) -> dict[str, Any]:
    """Returns the cosine matrices of all prompts and of all vectors, and their names."""
    best, vectors = self.prompts.best, self.prompts.vectors
    return {
      "names": [f"{name}-{seed}" for name, seed in self.prompts.keys],
      "prompts": algebra.cosine([best[key] for key in self.prompts.keys]).tolist(),
      "vectors": algebra.cosine([vectors[key] for key in self.prompts.keys]).tolist(),
    }

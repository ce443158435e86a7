"""The prompts that were tuned for each task from each initial prompt, and their vectors."""

import dataclasses
import itertools
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

from tpv_jax.banks import grid
from tpv_jax.data.tasks import Task
from tpv_jax.devices import processes
from tpv_jax.evaluation.evaluator import Prompt
from tpv_jax.formats import sources
from tpv_jax.runs.run_folder import versions
from tpv_jax.studies.measured import describe, digests
from tpv_jax.vectors import algebra, store
from tpv_jax.vectors.loaded import Loaded

Key = tuple[str, int]
"""The name of a task, and the seed of an initial prompt."""


@dataclasses.dataclass(frozen=True)
class Tuned:
  """The prompts and vectors of a study.

  Attributes:
    names: of the tasks.
    seeds: of the initial prompts.
    initial: the initial prompts.
    best: the best prompt of each run.
    vectors: their differences from the initial prompts, named as the runs.
  """

  names: Sequence[str]
  seeds: Sequence[int]
  initial: Mapping[int, Loaded]
  best: Mapping[Key, Loaded]
  vectors: Mapping[Key, Loaded]

  @property
  def keys(self) -> list[Key]:
    """All tasks and initial prompts, ordered by task."""
    return list(itertools.product(self.names, self.seeds))

  @property
  def parameters(self) -> int:
    """How many parameters a prompt has; all of them are tuned."""
    return sum(leaf.size for leaf in self.best[self.keys[0]].leaves.values())

  def subject(self, tasks: Sequence[Task]) -> dict[str, Any]:
    """Returns what measurements of these prompts depend on, with the tasks' examples."""
    return {
      "initial_prompts": digests(self.initial),
      "prompts": digests(
        {f"{name}-{seed}": self.best[name, seed] for name, seed in self.keys}
      ),
      "tasks": describe(tasks, ("validation", "test")),
      "versions": versions(),
    }

  def folded(self, name: str, seed: int) -> Prompt:
    """Returns a task's best prompt, folded."""
    return algebra.fold(self.best[name, seed]).leaves

  def start(self, seed: int) -> Prompt:
    """Returns an initial prompt, folded."""
    return algebra.fold(self.initial[seed]).leaves

  def applied(self, vector: Loaded, seed: int, coefficient: float = 1.0) -> Prompt:
    """Returns a vector on an initial prompt, folded."""
    return algebra.fold(algebra.apply(vector, self.initial[seed], coefficient)).leaves

  def sum_of(self, names: Sequence[str], seed: int) -> Loaded:
    """Returns the sum of the tasks' vectors from one initial prompt."""
    return algebra.sum_vectors([self.vectors[name, seed] for name in names])

  def single(self) -> dict[tuple[str, str, int, Any], tuple[Prompt, str]]:
    """Returns what is asked of single prompts, as `base.Split` takes it.

    docs/methods.md, (8.4) to (8.6). Keys are (kind, task, initial prompt, other): 'own' and
    'untuned', whose other is None; 'other_initial', the vector from another initial prompt;
    'control', another task's prompt.
    """
    asked: dict[tuple[str, str, int, Any], tuple[Prompt, str]] = {}
    for name, seed in self.keys:
      asked["own", name, seed, None] = self.folded(name, seed), name
      asked["untuned", name, seed, None] = self.start(seed), name
      for other in self.seeds:
        if other != seed:
          moved = self.applied(self.vectors[name, other], seed)
          asked["other_initial", name, seed, other] = moved, name
      for another in self.names:
        if another != name:
          asked["control", name, seed, another] = self.folded(another, seed), name
    return asked


def load(
  names: Sequence[str], seeds: Sequence[int], runs: pathlib.Path, vectors: pathlib.Path
) -> Tuned:
  """Returns the prompts of a grid of runs, and writes their vectors.

  Args:
    names: of the tasks.
    seeds: of the initial prompts.
    runs: the folder of the runs, named as `bank.grid` names them.
    vectors: the folder to which the vectors are written.
  """
  found = Tuned(names, seeds, initial := {}, best := {}, made := {})
  for name, seed in found.keys:
    run = grid.name_of(name, seed, None)
    initial[seed] = sources.load(str(runs / run), "initial")
    best[name, seed] = sources.load(str(runs / run), "best")
    vector = algebra.diff(best[name, seed], initial[seed])
    made[name, seed] = dataclasses.replace(vector, name=run)
    if processes.is_writer():
      vectors.mkdir(parents=True, exist_ok=True)
      path = vectors / f"{run}.safetensors"
      store.write(path, vector.leaves, vector.provenance, overwrite=True)
  return found

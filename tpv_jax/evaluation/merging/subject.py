"""What a merge rule that reads data is given, and what it returns."""

import dataclasses
from collections.abc import Callable, Hashable, Mapping, Sequence
from typing import Any, TypeVar

import numpy as np
from jax.sharding import Mesh
from jaxtyping import Float, Float64

from tpv_jax.data import batches, packing
from tpv_jax.data import tasks as of_tasks
from tpv_jax.data.tasks import Example, Task
from tpv_jax.evaluation.evaluator import Evaluator, Prompt
from tpv_jax.vectors import algebra
from tpv_jax.vectors.loaded import Loaded
from tpv_jax.vectors.merging.by_data import DataRule

T = TypeVar("T")


@dataclasses.dataclass(frozen=True)
class Subject:
  """The vectors, and where they are tried.

  Attributes:
    vectors: those to merge; none of them is all zeros.
    weights: one for each; all 1 where the user gives none.
    initial: the initial prompt that they are put on.
    tasks: whose examples are read.
    evaluator: has the backbone on the devices.
    mesh: the devices.
    memory: what `once` has made; subjects of one evaluator may share it.
  """

  vectors: Sequence[Loaded]
  weights: Float64[np.ndarray, " N"]
  initial: Loaded
  tasks: Sequence[Task]
  evaluator: Evaluator
  mesh: Mesh
  memory: dict[Hashable, Any] = dataclasses.field(default_factory=dict)

  def once(self, key: Hashable, make: Callable[[], T]) -> T:
    """Returns what is remembered under a key, made now if it is not there.

    It may depend on the evaluator and the key only: a compiled function, or the Fisher
    information of a prompt.
    """
    if key not in self.memory:
      self.memory[key] = make()
    found: T = self.memory[key]
    return found

  def prompt(self, vector: Loaded) -> Prompt:
    """Returns a vector on the initial prompt, folded."""
    return algebra.fold(algebra.apply(vector, self.initial)).leaves

  def note_gradients(self, length: int, block: batches.Features) -> None:
    """Counts a call that takes gradients of rows behind a prompt of this length."""
    work, widths = self.evaluator.work, batches.widths(block)
    rows, width = packing.row_count(block), widths["inputs"]
    if "prompt_positions" in block:
      work.used += packing.used_positions(block)
    else:
      work.used += batches.source_tokens(block) + length * rows
      width += length
    work.note("gradients", (rows, width, widths["targets"]), 1)


@dataclasses.dataclass(frozen=True)
class Outcome:
  """What a rule made of the vectors: coefficients where it is linear, else leaves.

  Attributes:
    coefficients: of each vector.
    leaves: the merged vector.
    notes: what a user of the vector has to know, for its provenance.
    report: what else is worth keeping, as JSON.
    tasks: those whose examples were read; None for all of the subject's.
    evaluations: how many prompts were scored on all tasks.
    gradient_rows: how many rows had a forward and a backward pass, padding not counted.
  """

  coefficients: Float64[np.ndarray, " N"] | None = None
  leaves: Mapping[str, Float[np.ndarray, "P D"]] | None = None
  notes: tuple[str, ...] = ()
  report: Mapping[str, Any] = dataclasses.field(default_factory=dict)
  tasks: Sequence[Task] | None = None
  evaluations: int = 0
  gradient_rows: int = 0


def examples_of(rule: DataRule, task: Task) -> Sequence[Example]:
  """Returns the examples of a task that a rule reads."""
  return task.examples(rule.split)[: rule.examples]


def digest_of(rule: DataRule, task: Task) -> str:
  """Returns the digest of the examples of a task that a rule reads."""
  return of_tasks.digest(examples_of(rule, task))

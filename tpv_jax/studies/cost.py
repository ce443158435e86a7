"""What a study costs, counted from its settings and data; nothing is trained or loaded.

Runs, steps and scored rows are exact, and the tests compare them with those of studies that
run. Tokens are means over the data. Operations are those of matrix products, traced as
`training.estimate` does it, without padding.
"""

import dataclasses
import itertools
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import jax
import numpy as np

from tpv_jax.core import identity
from tpv_jax.core.errors import UserError
from tpv_jax.data import batches
from tpv_jax.data.tasks import Example, Task
from tpv_jax.data.vocabularies import Vocabulary
from tpv_jax.model import PROMPT, SoftPromptModel
from tpv_jax.prompts import plain
from tpv_jax.studies import base
from tpv_jax.studies.moving import Moving
from tpv_jax.studies.study import Arithmetic
from tpv_jax.training import estimate, task_data

SAMPLE = 1000
"""Most rows of a split whose tokens are counted, the first ones."""

ROWS_A_CALL = 64
"""The evaluator's batch size, by default: how often scoring reads the backbone."""


@dataclasses.dataclass(frozen=True)
class Tuning:
  """Runs of one length.

  Attributes:
    tasks: of each run.
    steps: of each run.
    batch_size: rows of a step.
    validations: of each run, the one before the first step included.
    validation_rows: of each, by task.
    prompt_length: P.
  """

  tasks: Sequence[str]
  steps: int
  batch_size: int
  validations: int
  validation_rows: Mapping[str, int]
  prompt_length: int


@dataclasses.dataclass(frozen=True)
class Jobs:
  """What a study does.

  Attributes:
    tuning: its runs.
    scoring: what is measured -> task -> rows that are scored, all prompts together.
  """

  tuning: Sequence[Tuning]
  scoring: Mapping[str, Mapping[str, int]]

  @property
  def runs(self) -> int:
    """How many prompts are tuned."""
    return sum(len(one.tasks) for one in self.tuning)

  @property
  def steps(self) -> int:
    """The training steps of all runs."""
    return sum(len(one.tasks) * one.steps for one in self.tuning)


def jobs_of(study: base.Study) -> Jobs:
  """Returns what a study does.

  Raises:
    UserError: this kind of study is not counted.
  """
  if isinstance(study, Arithmetic):
    return _of_arithmetic(study)
  if isinstance(study, Moving):
    return _of_moving(study)
  raise UserError(
    f"The cost of '{study.work}' is not counted; that of 'tpv study' and 'tpv moving' is."
  )


def _of_arithmetic(study: Arithmetic) -> Jobs:
  """See `arithmetic.Measurements` for what is scored."""
  seeds = len(study.settings.initial_seeds)
  test = _rows(study.tasks, "test", study.test_examples)
  search = _rows(study.tasks, "validation", study.search_examples)
  pairs = list(itertools.combinations(test, 2))
  sums = [*pairs, tuple(test)] if len(test) > 2 else pairs
  tuning = Tuning(
    [name for name in test for _ in range(seeds)],
    study.tuning.total_steps,
    study.batch_size,
    validations(study.tuning.total_steps, study.tuning.eval_period),
    _rows(study.tasks, "validation", task_data.VALIDATION_EXAMPLES),
    _length(study.model),
  )
  return Jobs(
    [tuning],
    {
      "single prompts": _summed(
        (name, rows * seeds * _singles(seeds, len(test)) + rows * (seeds + 1))
        for name, rows in test.items()
      ),
      "coefficients": _summed(
        (name, search[name] * seeds * len(study.coefficients))
        for names in sums
        for name in names
      ),
      "sums": _summed((name, test[name] * seeds) for names in sums for name in names),
      "negation": _summed(
        (name, test[name] * seeds * 2) for names in pairs for name in names
      ),
    },
  )


def _of_moving(study: Moving) -> Jobs:
  """See `moved.Vectors` for what is scored of each variant."""
  seeds, count = len(study.settings.initial_seeds), len(study.variants)
  test = _rows(study.tasks, "test", study.test_examples)
  search = _rows(study.tasks, "validation", study.search_examples)
  validation = _rows(study.tasks, "validation", study.validation_examples)
  pairs = list(itertools.combinations(test, 2))
  tuning = [
    Tuning(
      [name for name in test for _ in range(seeds)],
      variant.steps,
      study.batch_size,
      validations(variant.steps, min(study.eval_period, variant.steps)),
      validation,
      variant.length,
    )
    for variant in study.variants
  ]
  return Jobs(
    tuning,
    {
      "single prompts": _summed(
        (name, count * rows * seeds * _singles(seeds, len(test)))
        for name, rows in test.items()
      ),
      "coefficients": _summed(
        (name, count * search[name] * seeds * len(study.coefficients))
        for names in pairs
        for name in names
      ),
      "sums": _summed(
        (name, count * test[name] * seeds) for names in pairs for name in names
      ),
      "mean vectors": {name: count * rows for name, rows in test.items()},
    },
  )


def _singles(seeds: int, tasks: int) -> int:
  """Returns how many prompts `Tuned.single` asks for a task and start.

  The own one, the untuned one, the vectors of other starts and the other tasks' prompts.
  """
  return 1 + 1 + (seeds - 1) + (tasks - 1)


def validations(steps: int, period: int) -> int:
  """Returns how often a run validates: before the first step, each period, at the end."""
  return 1 + -(-steps // period)


def _rows(tasks: Iterable[Task], split: str, most: int | None) -> dict[str, int]:
  return {task.name: len(task.examples(split)[:most]) for task in tasks}


def _summed(pairs: Iterable[tuple[str, int]]) -> dict[str, int]:
  found: dict[str, int] = {}
  for name, rows in pairs:
    found[name] = found.get(name, 0) + rows
  return found


def _length(model: SoftPromptModel) -> int:
  """Returns the tokens that stand before a source."""
  prompt: Any = model.prompt
  return int(prompt.length)


@dataclasses.dataclass(frozen=True)
class Tokens:
  """Mean tokens of a task: of a source, of a target, and of all labels together."""

  source: float
  target: float
  labels: int


def tokens_of(task: Task, vocabulary: Vocabulary, lengths: Mapping[str, int]) -> Tokens:
  """Returns the tokens of the first rows of a task's training split."""
  found = batches.tokenize(task.examples("train")[:SAMPLE], vocabulary, lengths)
  source, target = (
    float(batches.token_counts(rows).mean()) for rows in (found.inputs, found.targets)
  )
  labels = batches.tokenize(
    [Example("", word) for word in task.labels or ()], vocabulary, lengths
  )
  return Tokens(source, target, int(batches.token_counts(labels.targets).sum()))


@dataclasses.dataclass(frozen=True)
class Cost:
  """What jobs cost on a backbone.

  Attributes:
    tuning: operations of the training steps.
    validating: of the validations.
    scoring: of what is measured, decoding apart.
    reads: how often the backbone is read from the memory of a device.
    trained: tokens of the training rows, prompts included.
    backbone: bytes of the frozen backbone.
    kept: the most bytes that a step of one prompt keeps for its backward pass.
  """

  tuning: int
  validating: int
  scoring: int
  reads: int
  trained: int
  backbone: int
  kept: int

  @property
  def flops(self) -> int:
    """All operations."""
    return self.tuning + self.validating + self.scoring

  def hours(self, chip: estimate.Chip) -> float:
    """Returns the hours on one chip, as `estimate.step` counts a step's seconds."""
    compute = self.flops / (chip.flops * estimate.UTILISATION)
    return max(compute, self.reads * self.backbone / chip.bandwidth) / 3600


def cost_of(jobs: Jobs, model: SoftPromptModel, tokens: Mapping[str, Tokens]) -> Cost:
  """Returns what jobs cost.

  Args:
    jobs: a study's.
    model: has the network.
    tokens: of each task.
  """
  network: Any = model.network
  layers = {
    name: getattr(network, name)
    for name in ("num_layers", "num_encoder_layers", "num_decoder_layers")
    if hasattr(network, name)
  }

  def traced(
    rows: int, length: int, source: float, target: float, backward: bool
  ) -> estimate.Work:
    def build(**numbers: int) -> SoftPromptModel:
      prompt = plain.Prompt(length, network.emb_dim)
      return SoftPromptModel(network.clone(**numbers), prompt, None, None)

    sizes = (round(source), max(1, round(target)))
    return estimate.work(build, layers, rows, *sizes, backward)

  tuning = validating = scoring = reads = trained = kept = 0
  for one in jobs.tuning:
    for task in dict.fromkeys(one.tasks):
      runs, mine = list(one.tasks).count(task), tokens[task]
      sizes = (one.prompt_length, mine.source, mine.target)
      step = traced(one.batch_size, *sizes, True)
      forward = traced(ROWS, *sizes, False).flops
      rows = runs * one.steps * one.batch_size
      validated = runs * one.validations * one.validation_rows[task]
      tuning += runs * one.steps * step.flops
      validating += validated * forward // ROWS
      reads += runs * 2 * one.steps + -(-validated // one.batch_size)
      trained += round(rows * (one.prompt_length + mine.source + mine.target))
      kept = max(kept, step.kept)
  length = max(one.prompt_length for one in jobs.tuning)
  for task, mine in tokens.items():
    forward = traced(ROWS, length, mine.source, mine.labels, False).flops
    rows = sum(by_task.get(task, 0) for by_task in jobs.scoring.values())
    scoring += rows * forward // ROWS
    reads += -(-rows // ROWS_A_CALL)
  return Cost(tuning, validating, scoring, reads, trained, _backbone_bytes(model), kept)


ROWS = 8
"""Rows of a traced forward pass; operations grow with them in proportion."""


def _backbone_bytes(model: SoftPromptModel) -> int:
  """Returns the bytes of the frozen parameters as they are stored."""
  bare = SoftPromptModel(model.network, None, None, None)
  variables = jax.eval_shape(lambda: bare.get_initial_variables(jax.random.key(0), {}))
  leaves = identity.flatten(variables["params"])
  return sum(
    int(np.prod(leaf.shape)) * np.dtype(model.network.stored(path, leaf.dtype)).itemsize
    for path, leaf in leaves.items()
    if not path.startswith(f"{PROMPT}/")
  )

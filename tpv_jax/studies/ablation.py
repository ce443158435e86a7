"""An ablation: plain tuning, DePT, EPT, and EPT without its parts, at one budget.

The questions are those of EPT's paper (arXiv 2405.11464): is EPT better than the others
at the same number of parameters, which part of it matters, does it do equally well on
all tasks, how does the prompt's length matter, what does a step cost? All methods
start from the same initial prompts (the decomposed ones from the long prompt that plain
tuning starts from; DePT with its own random low-rank matrices), see the same batches in
the same order, and choose their learning rates from equally many candidates.
"""

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any, ClassVar

import numpy as np
import optax

from tpv_jax.backbones.protocol import Network
from tpv_jax.core import files
from tpv_jax.core.checks import (
  Lengths,
  NotNegative,
  Seed,
  Size,
  SizeOrNone,
  Steps,
  check_fields,
  checked,
)
from tpv_jax.core.errors import UserError, at_least, near_misses
from tpv_jax.data import transforms
from tpv_jax.data.tasks import SPLITS, Task
from tpv_jax.data.vocabularies import Vocabulary
from tpv_jax.devices import processes
from tpv_jax.prompts import budget, ept, plain
from tpv_jax.studies import base, methods
from tpv_jax.studies.methods import METHODS
from tpv_jax.studies.report import ablation as report
from tpv_jax.studies.report.writer import Report
from tpv_jax.training.loop import Metric


@dataclasses.dataclass(frozen=True)
class Form:
  """The sizes of EPT's parts.

  The short prompt has S = P / 2 tokens, half of the budget of a plain prompt of P tokens;
  the rank is the largest that the rest of the budget allows, at most M.

  Attributes:
    fusion_width: H.
    spaces: K.
    bottleneck: Q.
  """

  fusion_width: SizeOrNone
  spaces: SizeOrNone
  bottleneck: Size

  def __post_init__(self) -> None:
    check_fields(self)

  def module(
    self, method: str, tokens: int, features: int, source_length: int
  ) -> plain.Prompt | ept.EPT:
    """Returns a method's prompt with at most the parameters of `tokens` plain tokens.

    Raises:
      UserError: the budget is too small.
    """
    if method == "plain":
      return plain.Prompt(tokens, features)
    parts = METHODS[method]
    length, width = max(tokens // 2, 1), self.fusion_width if parts.fusion else 0
    spaces = self.spaces if parts.spaces else 0
    rank = budget.rank(
      tokens=tokens,
      length=length,
      features=features,
      source_length=source_length,
      fusion_width=width,
      spaces=spaces,
      bottleneck=self.bottleneck,
    )
    return ept.EPT(
      length,
      features,
      source_length,
      rank,
      width,
      spaces,
      self.bottleneck,
      decomposition=parts.decomposition,
    )


@checked
def ablation(
  network: Network,
  backbone: str,
  tasks: Sequence[Task],
  vocabulary: Vocabulary,
  lengths: Lengths,
  output_dir: files.PathLike,
  initial_prompt: Callable[..., np.ndarray],
  transformation: optax.GradientTransformation,
  prompt_length: Size,
  total_steps: Steps,
  batch_size: Size,
  eval_period: Steps,
  plain_rates: Sequence[NotNegative],
  decomposed_rates: Sequence[Sequence[NotNegative]],
  tuning_tasks: Sequence[str] | None,
  form: Form,
  prompt_lengths: Sequence[Size] = (),
  initial_seeds: Sequence[Seed] = (0, 1, 2),
  length_seeds: Sequence[Seed] = (0, 1),
  tuning_seed: Seed = 100,
  rotate_labels: bool = True,
  best_metric: Metric = "exact_match",
  repetitions: Size = 100,
  overwrite: bool = False,
  progress: bool = True,
  config: Callable[[], str] | None = None,
  command: str | None = None,
) -> dict[str, Any]:
  """Runs the whole ablation and returns its results, which it writes and prints.

  Writes `report.md`, `results.json`, PNG plots and the runs to `output_dir`. Started
  again it continues: finished runs are not trained again.

  Args:
    network: the backbone's; its longest source, `lengths['inputs']`, is M.
    backbone: what `load_backbone` takes.
    tasks: at least two, all with labels.
    vocabulary: the backbone's.
    lengths: `{'inputs': T, 'targets': L}` in tokens, EOS included.
    output_dir: the ablation's folder.
    initial_prompt: (embedding table, seed, length) -> [P, D], the long prompt.
    transformation: gives the direction of the steps; the groups' rates scale it.
    prompt_length: P of plain tuning, whose parameters are the budget of all methods.
    total_steps: optimizer steps of each prompt.
    batch_size: training examples per step.
    eval_period: steps between validations, which choose the best prompt.
    plain_rates: the learning rates that plain tuning chooses from.
    decomposed_rates: equally many pairs that each other method chooses from: the short
      prompt's rate, and that of the low-rank matrices, fusion and spaces.
    tuning_tasks: the tasks on whose validation splits the rates are chosen; None for all.
    form: the sizes of EPT's parts.
    prompt_lengths: more values of P, which use the rates chosen at `prompt_length`.
    initial_seeds: the initial prompts; means and deviations are over them.
    length_seeds: the initial prompts of the other lengths.
    tuning_seed: the initial prompt with which the rates are chosen; not one of the others.
    rotate_labels: give each class the label word of the next one (`transforms.rotated`).
    best_metric: the metric that chooses a run's best prompt, and the rates.
    repetitions: rounds in which each method's step is timed.
    overwrite: train runs again that are finished or have other settings.
    progress: show progress.
    config: returns the text of config.gin.
    command: the command line, for the report.

  Raises:
    UserError: settings that do not fit each other; a folder that holds something else,
      or runs with other settings.
  """
  if tuning_tasks is None:
    tuning_tasks = [task.name for task in tasks]
  if rotate_labels:
    tasks = [transforms.rotated(task) for task in tasks]
  return base.conduct(
    Ablation(
      base.Settings(
        network,
        backbone,
        vocabulary,
        lengths,
        output_dir,
        initial_seeds,
        overwrite,
        progress,
        config,
        command,
      ),
      tasks,
      methods.Tuning(
        initial_prompt,
        transformation,
        total_steps,
        batch_size,
        eval_period,
        best_metric,
      ),
      form,
      prompt_length,
      prompt_lengths,
      length_seeds,
      plain_rates,
      decomposed_rates,
      tuning_tasks,
      tuning_seed,
      rotate_labels,
      repetitions,
    )
  )


@dataclasses.dataclass(frozen=True)
class Ablation:
  """The ablation; the attributes are described at `ablation`, the tasks are `rotated`."""

  work: ClassVar[str] = "ablation"
  part: ClassVar[str] = "tuning"
  report: ClassVar[Report] = report
  run: ClassVar[Callable[..., dict[str, Any]]] = staticmethod(ablation)

  settings: base.Settings
  tasks: Sequence[Task]
  tuning: methods.Tuning
  form: Form
  prompt_length: int
  prompt_lengths: Sequence[int]
  length_seeds: Sequence[int]
  plain_rates: Sequence[float]
  decomposed_rates: Sequence[Sequence[float]]
  tuning_tasks: Sequence[str]
  tuning_seed: int
  rotate_labels: bool
  repetitions: int

  @property
  def lengths(self) -> list[int]:
    """All values of P, in order."""
    return sorted({self.prompt_length, *self.prompt_lengths})

  def check(self) -> None:
    """Raises `UserError` for settings that would make the comparison unfair."""
    _check_seeds(
      self.tasks, (self.settings.initial_seeds, self.length_seeds), self.tuning_seed
    )
    _check_rates(self.tasks, self.tuning_tasks, self.plain_rates, self.decomposed_rates)
    at_least("prompt_length", self.prompt_length, 2)
    base.check_tasks(self.tasks, self.settings, SPLITS)
    self._modules()

  def results(self, session: base.Session) -> dict[str, Any]:
    """Chooses rates, tunes and measures the prompts, and returns all numbers."""
    modules, at = self._modules(), self.prompt_length
    runs = methods.Runs(session, self.tuning, modules)
    found = runs.tune(self._tries(), at, self._tuned_on(), self.tuning_seed)
    rates = {method: tried["rates"] for method, tried in found.items()}
    seeds = dict.fromkeys(self.lengths, self.length_seeds)
    tuned = runs.tuned(rates, seeds | {at: self.settings.initial_seeds}, self.tasks)
    processes.wait_for_all("all prompts are tuned")
    measured = session.measured(runs.subject(tuned, self.tasks), {})
    scores = measured.get("scores", lambda: runs.score(tuned, self.tasks))
    cost = measured.get(
      f"cost-{self.repetitions}",
      lambda: runs.cost(rates, at, self.tasks[0], self.repetitions),
    )
    results = {
      **session.head(),
      "labels": {name: method.label for name, method in METHODS.items()},
      "methods": {
        method: {str(p): methods.sizes(modules[method, p]) for p in self.lengths}
        for method in METHODS
      },
      "tasks": [task.name for task in self.tasks],
      "rotated_labels": self.rotate_labels,
      "test_examples": {task.name: len(task.examples("test")) for task in self.tasks},
      "initial_seeds": list(self.settings.initial_seeds),
      "length_seeds": list(self.length_seeds),
      "prompt_length": at,
      "prompt_lengths": self.lengths,
      "form": dataclasses.asdict(self.form),
      "total_steps": self.tuning.total_steps,
      "batch_size": self.tuning.batch_size,
      "best_metric": self.tuning.best_metric,
      "tuning": {
        "seed": self.tuning_seed,
        "tasks": list(self.tuning_tasks),
        "methods": found,
      },
      "scores": scores,
      "cost": cost,
      "backbone": session.subject(),
      **session.machine(),
      "summary": methods.summarise(scores),
    }
    return results | {"seconds": session.seconds()}

  def _modules(self) -> dict[tuple[str, int], plain.Prompt | ept.EPT]:
    """Returns the prompt of each method and P."""
    features = self.settings.network.emb_dim
    longest = self.settings.lengths["inputs"]
    return {
      (method, tokens): self.form.module(method, tokens, features, longest)
      for tokens in self.lengths
      for method in METHODS
    }

  def _tries(self) -> dict[str, list[dict[str, float]]]:
    """Returns the rates that each method chooses from."""
    decomposed = [
      {"prompt": prompt, "low_rank": others, "fusion": others, "spaces": others}
      for prompt, others in self.decomposed_rates
    ]
    tries = dict.fromkeys(METHODS, decomposed)
    return tries | {"plain": [{"prompt": rate} for rate in self.plain_rates]}

  def _tuned_on(self) -> list[Task]:
    by_name = {task.name: task for task in self.tasks}
    return [by_name[name] for name in self.tuning_tasks]


def _check_seeds(
  tasks: Sequence[Task], seeds: Sequence[Sequence[int]], tuning_seed: int
) -> None:
  fewest = min(map(len, seeds))
  if len(tasks) < 2 or fewest < 2:
    raise UserError(
      "An ablation compares over tasks and initial prompts: give at least two of each "
      f"(now {len(tasks)} and {fewest}), in INITIAL_SEEDS and in LENGTH_SEEDS."
    )
  base.refuse_repeated("TASKS", [task.name for task in tasks])
  for name, some in zip(("INITIAL_SEEDS", "LENGTH_SEEDS"), seeds, strict=True):
    base.refuse_repeated(name, some)
    if tuning_seed in some:
      raise UserError(
        f"The learning rates would be chosen on initial prompt {tuning_seed}, which is "
        f"also in the comparison ({name}). Set TUNING_SEED to one that is in neither "
        "INITIAL_SEEDS nor LENGTH_SEEDS."
      )


def _check_rates(
  tasks: Sequence[Task],
  tuning_tasks: Sequence[str],
  plain_rates: Sequence[float],
  decomposed_rates: Sequence[Sequence[float]],
) -> None:
  names = [task.name for task in tasks]
  if isinstance(tuning_tasks, str) or not tuning_tasks:
    raise UserError("TUNING_TASKS must be a list of at least one of the tasks' names.")
  base.refuse_repeated("TUNING_TASKS", tuning_tasks)
  for name in tuning_tasks:
    if name not in names:
      raise UserError(
        f"TUNING_TASKS has '{name}', which is not among the TASKS {', '.join(names)}."
        f"{near_misses(name, names)} Name the tasks on which to choose the learning rates."
      )
  if len(plain_rates) != len(decomposed_rates) or not plain_rates:
    raise UserError(
      f"Plain tuning has {len(plain_rates)} learning rates to choose from, the others "
      f"{len(decomposed_rates)}. For a fair comparison give equally many."
    )
  if any(len(pair) != 2 for pair in decomposed_rates):
    raise UserError(
      "Each entry of DECOMPOSED_RATES must be two rates: the short prompt's, and that "
      "of the low-rank matrices, fusion and spaces."
    )

"""The methods of an ablation, their runs, and the cost of a step of each."""

import dataclasses
import functools
import itertools
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import optax

from tpv_jax.banks.bank import Entry
from tpv_jax.data.tasks import Task
from tpv_jax.evaluation import candidates
from tpv_jax.formats import sources
from tpv_jax.model import SoftPromptModel
from tpv_jax.prompts import ept, plain
from tpv_jax.studies import base
from tpv_jax.studies.comparison import compare
from tpv_jax.studies.measured import describe, digests
from tpv_jax.training import cost, optimizers
from tpv_jax.training.initial import Initial
from tpv_jax.training.loop import HIGHER_IS_BETTER, Metric
from tpv_jax.training.task_data import TaskData
from tpv_jax.vectors import algebra
from tpv_jax.vectors.loaded import Loaded


@dataclasses.dataclass(frozen=True)
class Method:
  """A method: its name in the report, its parts, how its long prompt is decomposed."""

  label: str
  fusion: bool = False
  spaces: bool = False
  decomposition: str = "svd"


METHODS = {
  "plain": Method("plain tuning"),
  "dept": Method("DePT", decomposition="dept"),
  "ept": Method("EPT", fusion=True, spaces=True),
  "ept_without_fusion": Method("EPT without fusion", spaces=True),
  "ept_without_spaces": Method("EPT without spaces", fusion=True),
  "ept_without_both": Method("EPT without both"),
}
"""The methods by their names in files. EPT without both is DePT with EPT's start."""

Scores = Mapping[str, Mapping[str, Mapping[str, Sequence[float]]]]
"""Exact match on test, [P][method][task][initial prompt]; P is text, as a JSON key."""


Key = tuple[int, str, str, int]
"""P, method, task, initial prompt."""

Rates = Mapping[str, float]
"""Learning rates by group of parameters."""


@dataclasses.dataclass(frozen=True)
class Tuning:
  """How the prompts of an ablation are tuned.

  Attributes:
    initial_prompt: (embedding table, seed, length) -> [P, D], the long prompt.
    transformation: gives the direction of the steps; the groups' rates scale it.
    total_steps: optimizer steps of each prompt.
    batch_size: training examples per step.
    eval_period: steps between validations, which choose the best prompt.
    best_metric: the metric that chooses a run's best prompt, and the rates.
  """

  initial_prompt: Callable[..., np.ndarray]
  transformation: optax.GradientTransformation
  total_steps: int
  batch_size: int
  eval_period: int
  best_metric: Metric


@dataclasses.dataclass
class Runs:
  """The runs of an ablation, by method, P, rates, task and initial prompt.

  Attributes:
    session: the ablation's.
    tuning: how all of them are tuned.
    modules: the prompts by method and P.
  """

  session: base.Session
  tuning: Tuning
  modules: Mapping[tuple[str, int], plain.Prompt | ept.EPT]

  def __post_init__(self) -> None:
    # One object for all runs, like the models: `steps.build` caches by its arguments.
    self._learning_rate = optimizers.constant(1.0)
    self._models: dict[Any, SoftPromptModel] = {}
    self._tokenized: dict[tuple[str, int], TaskData] = {}

  def tune(
    self,
    tries: Mapping[str, Sequence[Rates]],
    tokens: int,
    tasks: Sequence[Task],
    seed: int,
  ) -> dict[str, Any]:
    """Returns for each method its rates, chosen on validation, and all tries."""
    jobs = [
      (method, number, rates)
      for method, all_rates in tries.items()
      for number, rates in enumerate(all_rates)
    ]
    grid = itertools.product(jobs, tasks)
    manifests = self._train(
      [
        (method, tokens, rates, task, seed, f"tuning/{method}-{number}-{task.name}")
        for (method, number, rates), task in grid
      ],
      "1/3 learning rates",
    )
    metric = self.tuning.best_metric
    best = iter(manifest["best_metric"][metric] for manifest in manifests)
    found: dict[str, Any] = {method: {"tries": []} for method in tries}
    for method, _, rates in jobs:
      values = [next(best) for _ in tasks]
      mean = float(np.mean(values))
      found[method]["tries"].append(
        {"rates": rates, "validation": values, "mean": mean}
      )
    for method, tried in found.items():
      tried["rates"] = chosen(tried["tries"], metric)
      candidates.say_equal_scores(
        f"Learning rates of {method}",
        [one["mean"] for one in tried["tries"]],
        f"{tried['rates']}, the first",
      )
    return found

  def tuned(
    self,
    rates: Mapping[str, Rates],
    seeds: Mapping[int, Sequence[int]],
    tasks: Sequence[Task],
  ) -> dict[Key, Loaded]:
    """Tunes and returns the best prompt of each run, folded; `seeds` are by P."""
    runs = {
      (tokens, method, task.name, seed): (
        *(method, tokens, rates[method], task, seed),
        f"runs/{method}-{tokens}-{task.name}-{seed}",
      )
      for tokens, some in seeds.items()
      for method, task, seed in itertools.product(rates, tasks, some)
    }
    self._train(list(runs.values()), "2/3 tuning prompts")
    return {
      key: algebra.fold(sources.load(str(self.session.folder / run), "best"))
      for key, (*_, run) in runs.items()
    }

  def subject(
    self, tuned: Mapping[Key, Loaded], tasks: Sequence[Task]
  ) -> dict[str, Any]:
    """Returns what the measurements depend on, except the backbone."""
    return {
      "prompts": digests({"-".join(map(str, key)): p for key, p in tuned.items()}),
      "tasks": describe(tasks, ("test",)),
      "lengths": self.session.settings.lengths,
      **self.session.machine(),
    }

  def score(
    self, tuned: Mapping[Key, Loaded], tasks: Sequence[Task]
  ) -> dict[str, dict[str, dict[str, list[float]]]]:
    """Returns `Scores`: the exact match of each prompt on test."""
    # Prompts are given folded, so any of the models will do.
    model = next(iter(self._models.values()))
    test = base.Split(self.session.evaluator(model), tasks)
    found = test.scores({key: (one.leaves, key[2]) for key, one in tuned.items()})
    scores: dict[str, dict[str, dict[str, list[float]]]] = {}
    for (tokens, method, task, _), score in found.items():
      by_method = scores.setdefault(str(tokens), {})
      by_method.setdefault(method, {}).setdefault(task, []).append(score)
    return scores

  def cost(
    self, rates: Mapping[str, Rates], tokens: int, task: Task, repetitions: int
  ) -> dict[str, Any]:
    """Returns the cost of a step of each method (`cost.summary`)."""
    backbone = self.session.backbone
    start = self._start(tokens)(np.asarray(backbone.table, np.float32), 0)
    prompts = {
      method: (
        self._model(method, tokens, rates[method]),
        self.modules[method, tokens].initial_leaves(start, 0),
      )
      for method in rates
    }
    batch = self._data(task, 0).batch_at(0)
    self.session.say("3/3 timing a step of each method")
    return cost.summary(
      cost.measure(prompts, backbone.params, batch, repetitions, progress=False)
    )

  def _train(
    self, jobs: Sequence[tuple[str, int, Rates, Task, int, str]], title: str
  ) -> list[dict[str, Any]]:
    """Trains jobs (method, P, rates, task, seed, folder), and returns their manifests."""
    entries = [
      (
        self._model(method, tokens, rates),
        Entry(
          self._data(task, seed),
          self.session.folder / run,
          initial_seed=seed,
          seed=seed,
          initial_prompt=self._start(tokens),
        ),
      )
      for method, tokens, rates, task, seed, run in jobs
    ]
    tuning = base.Tuning(
      self._learning_rate,
      None,
      self.tuning.total_steps,
      self.tuning.eval_period,
      self.tuning.best_metric,
      checkpoints=False,
    )
    return self.session.tune_each(entries, tuning, title)

  def _model(self, method: str, tokens: int, rates: Rates) -> SoftPromptModel:
    key = method, tokens, tuple(rates.items())
    if key not in self._models:
      vocabulary = self.session.settings.vocabulary
      self._models[key] = SoftPromptModel(
        self.session.settings.network,
        self.modules[method, tokens],
        vocabulary,
        vocabulary,
        optimizers.by_group(self.tuning.transformation, rates),
      )
    return self._models[key]

  def _start(self, tokens: int) -> Initial:
    return functools.partial(self.tuning.initial_prompt, length=tokens)

  def _data(self, task: Task, seed: int) -> TaskData:
    key = task.name, seed
    if key not in self._tokenized:
      settings = self.session.settings
      self._tokenized[key] = TaskData(
        *(task, settings.vocabulary, settings.lengths),
        *(self.tuning.batch_size, seed, 250, 125),
      )
    return self._tokenized[key]


def chosen(tries: Sequence[Mapping[str, Any]], metric: str) -> dict[str, float]:
  """Returns the `rates` of the try with the best `mean` of a validation metric.

  The first wins a tie.
  """
  sign = 1 if HIGHER_IS_BETTER[metric] else -1
  return dict(max(tries, key=lambda one: sign * one["mean"])["rates"])


def sizes(module: plain.Prompt | ept.EPT) -> dict[str, Any]:
  """Returns the prompt tokens, the rank, and the parameters by part and in total."""
  if isinstance(module, plain.Prompt):
    parts = {"prompt": module.length * module.features}
  else:
    parts = {}
    for form in module.parameters().values():
      parts[form.part] = parts.get(form.part, 0) + form.size
  return {
    "prompt_tokens": module.length,
    "rank": getattr(module, "rank", 0),
    "parts": parts,
    "parameters": sum(parts.values()),
  }


def summarise(scores: Scores) -> dict[str, dict[str, dict[str, Any]]]:
  """Returns for each P and method the numbers that the report compares.

  They are those of `comparison.compare`, with 'plain' and 'dept' as the others; the
  spread over tasks is the paper's consistency.
  """
  return {
    tokens: {
      method: compare(by_task, {k: methods[k] for k in ("plain", "dept")})
      for method, by_task in methods.items()
    }
    for tokens, methods in scores.items()
  }

"""An ablation: plain tuning, DePT, EPT, and EPT without its parts, at one budget.

The questions are those of EPT's paper (arXiv 2405.11464): is it better than the others
at the same number of parameters, which part of it matters, does it do equally well on
all tasks, what does the length of the prompt do, what does a step cost. All methods
start from the same initial prompts (the decomposed ones from the long prompt that plain
tuning starts from; DePT with its own random low-rank matrices), see the same batches in
the same order, and choose their learning rates among equally many.
"""

import dataclasses
import datetime
import functools
import itertools
import pathlib
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import numpy as np
import optax
from tqdm import tqdm

from tpv_jax.backbones import loading
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
from tpv_jax.core.screen import Bar
from tpv_jax.data import transforms
from tpv_jax.data.labels import check_task
from tpv_jax.data.tasks import SPLITS, Task
from tpv_jax.data.vocabularies import Vocabulary
from tpv_jax.devices import processes
from tpv_jax.evaluation import candidates
from tpv_jax.evaluation.evaluator import Evaluator
from tpv_jax.formats import sources
from tpv_jax.model import SoftPromptModel
from tpv_jax.prompts import budget, ept, plain
from tpv_jax.runs.run_folder import open_output, versions, write_results
from tpv_jax.studies.report import ablation as ablation_report
from tpv_jax.studies.report import arithmetic as report
from tpv_jax.training import cost, optimizers, training
from tpv_jax.training.initial import Initial
from tpv_jax.training.loop import Metric
from tpv_jax.training.task_data import TaskData
from tpv_jax.vectors import algebra


@dataclasses.dataclass(frozen=True)
class Method:
  """What is compared: its name in the report, its parts, how its long prompt is decomposed."""

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
"""Exact match on test, [P][method][task][initial prompt]; P as text, as JSON has it."""


@dataclasses.dataclass(frozen=True)
class Form:
  """The sizes of EPT's parts.

  The short prompt has S = P / 2 tokens, half of the budget of a plain prompt of P, and
  the rank is the largest that the rest leaves, at most M.

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
  tuning_tasks: Sequence[str],
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
    transformation: gives the direction of the steps, before the groups' rates.
    prompt_length: P of plain tuning, whose parameters are the budget of all methods.
    total_steps: optimizer steps of each prompt.
    batch_size: training examples a step.
    eval_period: steps between validations, the best prompt being kept.
    plain_rates: learning rates that plain tuning chooses from.
    decomposed_rates: as many pairs for each other method: the short prompt's rate, and
      that of the low-rank matrices, fusion and spaces.
    tuning_tasks: on whose validation splits the rates are chosen.
    form: the sizes of EPT's parts.
    prompt_lengths: more values of P, with the rates that were chosen at `prompt_length`.
    initial_seeds: the initial prompts; means and deviations are over them.
    length_seeds: the initial prompts of the other lengths.
    tuning_seed: the initial prompt with which the rates are chosen, not one of those.
    rotate_labels: give each class the label word of the next one (`transforms.rotated`).
    best_metric: by which a run keeps its best prompt, and by which rates are chosen.
    repetitions: rounds in which each method's step is timed.
    overwrite: train runs again that are finished or have other settings.
    progress: show progress.
    config: gives the text for config.gin.
    command: the command line, for the report.

  Raises:
    UserError: settings that do not fit each other; a folder that holds something else,
      or runs with other settings.
  """
  started = time.time()
  _check(
    tasks,
    (initial_seeds, length_seeds),
    tuning_tasks,
    tuning_seed,
    plain_rates,
    decomposed_rates,
  )
  at_least("prompt_length", prompt_length, 2)
  if rotate_labels:
    tasks = [transforms.rotated(task) for task in tasks]
  for task in tasks:
    check_task(task, vocabulary, lengths, SPLITS)
  all_lengths = sorted({prompt_length, *prompt_lengths})
  modules = {
    (method, tokens): form.module(method, tokens, network.emb_dim, lengths["inputs"])
    for tokens in all_lengths
    for method in METHODS
  }
  with open_output(output_dir, "ablation", "tuning") as folder:
    loaded = loading.load_backbone(backbone, network, vocabulary)
    runs = _Runs(
      loaded=loaded,
      folder=folder,
      modules=modules,
      network=network,
      vocabulary=vocabulary,
      lengths=lengths,
      batch_size=batch_size,
      initial_prompt=initial_prompt,
      transformation=transformation,
      settings={
        "total_steps": total_steps,
        "eval_period": eval_period,
        "best_metric": best_metric,
        "overwrite": overwrite,
        "config": config,
      },
    )
    by_name = {task.name: task for task in tasks}
    decomposed = [
      {"prompt": prompt, "low_rank": others, "fusion": others, "spaces": others}
      for prompt, others in decomposed_rates
    ]
    tries = dict.fromkeys(METHODS, decomposed) | {
      "plain": [{"prompt": rate} for rate in plain_rates]
    }
    tuning = runs.tune(
      tries,
      prompt_length,
      [by_name[name] for name in tuning_tasks],
      tuning_seed,
      progress,
    )
    rates = {method: found["rates"] for method, found in tuning.items()}
    seeds = dict.fromkeys(all_lengths, length_seeds) | {prompt_length: initial_seeds}
    scores = runs.score(rates, seeds, tasks, progress)
    processes.wait_for_all("all prompts are tuned")
    results = {
      "command": command,
      "date": datetime.date.today().isoformat(),
      "labels": {name: method.label for name, method in METHODS.items()},
      "methods": {
        method: {str(tokens): _sizes(modules[method, tokens]) for tokens in all_lengths}
        for method in METHODS
      },
      "tasks": [task.name for task in tasks],
      "rotated_labels": rotate_labels,
      "test_examples": {task.name: len(task.examples("test")) for task in tasks},
      "initial_seeds": list(initial_seeds),
      "length_seeds": list(length_seeds),
      "prompt_length": prompt_length,
      "prompt_lengths": all_lengths,
      "form": dataclasses.asdict(form),
      "total_steps": total_steps,
      "batch_size": batch_size,
      "best_metric": best_metric,
      "tuning": {"seed": tuning_seed, "tasks": list(tuning_tasks), "methods": tuning},
      "scores": scores,
      "cost": runs.cost(rates, prompt_length, tasks[0], repetitions, progress),
      "backbone": {"name": loaded.name, "fingerprint": loaded.fingerprint},
      "versions": versions(),
      "device": jax.devices()[0].device_kind,
    }
    results["summary"] = summarise(scores)
    results["seconds"] = round(time.time() - started, 1)
    write_results(folder, results, ablation_report.write, config)
    return results


def chosen(tries: Sequence[Mapping[str, Any]], metric: str) -> dict[str, float]:
  """Returns the `rates` of the try with the best `mean` of a validation metric.

  The first of several equal ones wins.
  """
  sign = 1 if loop.HIGHER_IS_BETTER[metric] else -1
  return dict(max(tries, key=lambda one: sign * one["mean"])["rates"])


def _check(
  tasks: Sequence[Task],
  seeds: Sequence[Sequence[int]],
  tuning_tasks: Sequence[str],
  tuning_seed: int,
  plain_rates: Sequence[float],
  decomposed_rates: Sequence[Sequence[float]],
) -> None:
  """Raises `UserError` for settings that would make the comparison an unfair one."""
  fewest = min(map(len, seeds))
  if len(tasks) < 2 or fewest < 2:
    raise UserError(
      "An ablation compares over tasks and initial prompts: give at least two of each "
      f"(now {len(tasks)} and {fewest}), in INITIAL_SEEDS and in LENGTH_SEEDS."
    )
  if tuning_seed in itertools.chain(*seeds):
    raise UserError(
      f"The learning rates would be chosen on initial prompt {tuning_seed}, which is in "
      "the comparison too. Set TUNING_SEED to one that is in neither INITIAL_SEEDS nor "
      "LENGTH_SEEDS."
    )
  names = [task.name for task in tasks]
  if isinstance(tuning_tasks, str) or not tuning_tasks:
    raise UserError("TUNING_TASKS must be a list of at least one of the tasks' names.")
  for name in tuning_tasks:
    if name not in names:
      raise UserError(
        f"The learning rates cannot be chosen on '{name}', which is none of the tasks "
        f"{', '.join(names)}.{near_misses(name, names)}"
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


@dataclasses.dataclass
class _Runs:
  """What all runs of an ablation share, and the runs."""

  loaded: loading.Backbone
  folder: pathlib.Path
  modules: Mapping[tuple[str, int], plain.Prompt | ept.EPT]
  network: Network
  vocabulary: Vocabulary
  lengths: Mapping[str, int]
  batch_size: int
  initial_prompt: Callable[..., np.ndarray]
  transformation: optax.GradientTransformation
  settings: dict[str, Any]

  def __post_init__(self) -> None:
    # One object for all runs, as the models are: the compiled steps are found by them.
    self.learning_rate = optimizers.constant(1.0)
    self._models: dict[Any, SoftPromptModel] = {}
    self._tokenized: dict[tuple[str, int], TaskData] = {}

  def tune(
    self,
    tries: Mapping[str, Sequence[Mapping[str, float]]],
    tokens: int,
    tasks: Sequence[Task],
    seed: int,
    progress: bool,
  ) -> dict[str, Any]:
    """Returns for each method its rates, `chosen` on validation, and all its tries."""
    jobs = [
      (method, number, rates)
      for method, all_rates in tries.items()
      for number, rates in enumerate(all_rates)
    ]
    found: dict[str, Any] = {method: {"tries": []} for method in tries}
    for method, number, rates in Bar(
      jobs, desc="1/3 learning rates", disable=not progress
    ):
      model = self._model(method, tokens, rates)
      values = []
      for task in tasks:
        run = self.folder / "tuning" / f"{method}-{number}-{task.name}"
        best = self._train(model, tokens, task, seed, run)["best_metric"]
        values.append(best[self.settings["best_metric"]])
      found[method]["tries"].append(
        {"rates": rates, "validation": values, "mean": float(np.mean(values))}
      )
    for method, tried in found.items():
      tried["rates"] = chosen(tried["tries"], self.settings["best_metric"])
      candidates.say_equal_scores(
        f"Learning rates of {method}",
        [one["mean"] for one in tried["tries"]],
        f"{tried['rates']}, the first",
      )
    return found

  def score(
    self,
    rates: Mapping[str, Mapping[str, float]],
    seeds: Mapping[int, Sequence[int]],
    tasks: Sequence[Task],
    progress: bool,
  ) -> dict[str, dict[str, dict[str, list[float]]]]:
    """Returns `Scores`: the best prompt of each run, on test; `seeds` are by P."""
    jobs = [
      (tokens, *job)
      for tokens, some in seeds.items()
      for job in itertools.product(rates, tasks, some)
    ]
    tuned = []
    for tokens, method, task, seed in Bar(
      jobs, desc="2/3 tuning prompts", disable=not progress
    ):
      run = self.folder / "runs" / f"{method}-{tokens}-{task.name}-{seed}"
      model = self._model(method, tokens, rates[method])
      self._train(model, tokens, task, seed, run)
      tuned.append(algebra.fold(sources.load(str(run), "best")).leaves)
    scores: dict[str, dict[str, dict[str, list[float]]]] = {
      str(tokens): {m: {t.name: [] for t in tasks} for m in rates} for tokens in seeds
    }
    evaluator = Evaluator(
      self._model("plain", min(seeds), rates["plain"]),
      self.loaded.params,
      self.vocabulary,
      self.lengths,
      progress=progress,
    )
    test = {
      task.name: evaluator.tokenize(task.examples("test"), f"{task.name}, test")
      for task in tasks
    }
    found = evaluator.exact_matches(
      [
        (leaves, test[task.name])
        for leaves, (_, _, task, _) in zip(tuned, jobs, strict=True)
      ]
    )
    for (tokens, method, task, _), score in zip(jobs, found, strict=True):
      scores[str(tokens)][method][task.name].append(score)
    return scores

  def cost(
    self,
    rates: Mapping[str, Mapping[str, float]],
    tokens: int,
    task: Task,
    repetitions: int,
    progress: bool,
  ) -> dict[str, Any]:
    """Returns what a step of each method costs (`cost.summary`)."""
    table = self.loaded.table
    start = self._start(tokens)(np.asarray(table, np.float32), 0)
    prompts = {
      method: (
        self._model(method, tokens, rates[method]),
        self.modules[method, tokens].initial_leaves(start, 0),
      )
      for method in rates
    }
    batch = self._data(task, 0).batch_at(0)
    if progress:
      tqdm.write("3/3 timing a step of each method")
    return cost.summary(
      cost.measure(prompts, self.loaded.params, batch, repetitions, progress=False)
    )

  def _model(
    self, method: str, tokens: int, rates: Mapping[str, float]
  ) -> SoftPromptModel:
    key = method, tokens, tuple(rates.items())
    if key not in self._models:
      self._models[key] = SoftPromptModel(
        self.network,
        self.modules[method, tokens],
        self.vocabulary,
        self.vocabulary,
        optimizers.by_group(self.transformation, rates),
      )
    return self._models[key]

  def _start(self, tokens: int) -> Initial:
    return functools.partial(self.initial_prompt, length=tokens)

  def _data(self, task: Task, seed: int) -> TaskData:
    key = task.name, seed
    if key not in self._tokenized:
      self._tokenized[key] = TaskData(
        task, self.vocabulary, self.lengths, self.batch_size, seed, 250, 125
      )
    return self._tokenized[key]

  def _train(
    self,
    model: SoftPromptModel,
    tokens: int,
    task: Task,
    seed: int,
    run: pathlib.Path,
  ) -> dict[str, Any]:
    return training.train(
      model=model,
      data=self._data(task, seed),
      run_dir=run,
      learning_rate=self.learning_rate,
      backbone=self.loaded,
      initial_prompt=self._start(tokens),
      initial_seed=seed,
      seed=seed,
      # Runs are so short that one that is killed starts again.
      checkpoint_period=self.settings["total_steps"],
      log_period=self.settings["eval_period"],
      progress=False,
      **self.settings,
    )


def _sizes(module: plain.Prompt | ept.EPT) -> dict[str, Any]:
  """Returns prompt tokens, rank, and parameters by part and in all."""
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

  They are those of `report.compare`, the others being 'plain' and 'dept'; the spread
  over tasks is the paper's consistency.
  """
  return {
    tokens: {
      method: report.compare(by_task, {k: methods[k] for k in ("plain", "dept")})
      for method, by_task in methods.items()
    }
    for tokens, methods in scores.items()
  }

"""A task-vector study: tune prompts, make vectors, and measure arithmetic on them.

The questions are those of the task-vector paper (arXiv 2408.01119; docs/methods.md,
"Evaluation"): does a vector work on another initial prompt, do sums solve several tasks,
does negation forget a task, how similar are vectors? The controls are ours: another
task's vector (zero would be the wrong baseline) and the accuracy among the task's own
labels.
"""

import dataclasses
import functools
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Annotated, Any, ClassVar

import numpy as np
from jaxtyping import Float

from tpv_jax.banks import bank
from tpv_jax.core import files
from tpv_jax.core.checks import Lengths, NotEmpty, Seed, Size, Steps, checked
from tpv_jax.data.tasks import Task
from tpv_jax.data.vocabularies import Vocabulary
from tpv_jax.devices import processes
from tpv_jax.model import SoftPromptModel
from tpv_jax.runs.run_settings import defaults_of
from tpv_jax.studies import base, hits
from tpv_jax.studies.arithmetic import Measurements
from tpv_jax.studies.report import arithmetic as report
from tpv_jax.studies.report.writer import Report
from tpv_jax.training.initial import Initial
from tpv_jax.training.loop import Metric
from tpv_jax.training.optimizers import LearningRate

GRID = tuple(round(0.1 * tenth, 1) for tenth in range(1, 11))
"""Coefficients tried on validation: 0.1 to 1 (task arithmetic tries 21 in [0, 1])."""


@checked
def study(
  model: SoftPromptModel,
  backbone: str,
  tasks: Sequence[Task],
  vocabulary: Vocabulary,
  lengths: Lengths,
  output_dir: files.PathLike,
  initial_prompt: Initial,
  learning_rate: LearningRate,
  total_steps: Steps,
  batch_size: Size,
  eval_period: Steps,
  initial_seeds: Sequence[Seed] = (0, 1, 2),
  coefficients: Annotated[Sequence[float], NotEmpty()] = GRID,
  search_examples: Size = 100,
  test_examples: Size | None = None,
  best_metric: Metric = "loss",
  as_bank: bool = False,
  overwrite: bool = False,
  progress: bool = True,
  config: Callable[[], str] | None = None,
) -> dict[str, Any]:
  """Runs the whole study and returns its results, which it writes and prints.

  Writes `report.md`, `results.json`, PNG plots, the runs and the vectors to
  `output_dir`. Started again, it continues: finished runs are not trained again, and what
  was measured on them (`measured.json`) is not measured again.

  Args:
    model: has a trainable prompt.
    backbone: what `load_backbone` takes.
    tasks: at least two, all with labels.
    vocabulary: the backbone's.
    lengths: `{'inputs': T, 'targets': L}` in tokens, EOS included.
    output_dir: the study's folder.
    initial_prompt: (embedding table, seed) -> [P, D].
    learning_rate: a schedule: step, counted from 0, to learning rate.
    total_steps: optimizer steps of each prompt.
    batch_size: training examples per step.
    eval_period: steps between validations, which choose the best prompt.
    initial_seeds: the initial prompts; means and deviations are over them.
    coefficients: tried on validation for each sum.
    search_examples: validation examples per task in that search.
    test_examples: the number used, from the start of the test split; None for all.
    best_metric: the metric that chooses a run's best prompt.
    as_bank: train all prompts at once (`bank.train_bank`) instead of one after the other;
      the numbers differ only by the order in which fp32 sums are taken.
    overwrite: train runs again that are finished or have other settings, and measure all
      of them again.
    progress: show progress.
    config: returns the text of config.gin.

  Raises:
    UserError: fewer than two tasks or initial prompts, or a task without labels; a
      folder that holds something else, or runs with other settings.
  """
  return base.conduct(
    Arithmetic(
      base.Settings(
        model.network,
        backbone,
        vocabulary,
        lengths,
        output_dir,
        initial_seeds,
        overwrite,
        progress,
        config,
      ),
      base.Tuning(learning_rate, initial_prompt, total_steps, eval_period, best_metric),
      model,
      tasks,
      batch_size,
      coefficients,
      search_examples,
      test_examples,
      as_bank,
    )
  )


@dataclasses.dataclass(frozen=True)
class Arithmetic:
  """The study of arithmetic on vectors; the attributes are described at `study`."""

  work: ClassVar[str] = "study"
  part: ClassVar[str] = "vectors"
  report: ClassVar[Report] = report
  run: ClassVar[Callable[..., dict[str, Any]]] = staticmethod(study)

  settings: base.Settings
  tuning: base.Tuning
  model: SoftPromptModel
  tasks: Sequence[Task]
  batch_size: int
  coefficients: Sequence[float]
  search_examples: int
  test_examples: int | None
  as_bank: bool

  def check(self) -> None:
    """Raises `UserError` for tasks or initial prompts that can't be compared."""
    base.check_vectors(self.tasks, self.settings)

  def results(self, session: base.Session) -> dict[str, Any]:
    """Tunes the prompts, measures their vectors, and returns all numbers."""
    self._tune(session)
    tuned = session.seconds()
    seeds = self.settings.initial_seeds
    evaluator = session.evaluator(self.model)
    tasks = [task.shortened("test", self.test_examples) for task in self.tasks]
    measurements = Measurements(
      evaluator, tasks, seeds, session.folder, self.coefficients, self.search_examples
    )
    measured = session.measured(
      measurements.subject(), defaults_of(study, type(self.model)), self.model
    )
    evaluator.title = "2/3 single vectors"
    single = measured.get("single", measurements.single)
    evaluator.title = "3/3 sums"
    # One initial prompt after the other: all at once may not fit the host's memory.
    chosen = [
      measured.get(f"coefficients-{seed}", functools.partial(measurements.search, seed))
      for seed in seeds
    ]
    sums = measured.get("sums", functools.partial(measurements.sums, chosen))
    names = [task.name for task in tasks]
    answers = hits.Answers({**single["hits"], **sums}, names, seeds)
    by_sum = dict(
      zip(measurements.combinations, zip(*chosen, strict=True), strict=True)
    )
    results = {
      "tasks": names,
      "initial_seeds": list(seeds),
      "backbone": session.subject(),
      "parameters": measurements.prompts.parameters,
      "test_examples": {task.name: len(task.examples("test")) for task in tasks},
      "coefficients": list(self.coefficients),
      **hits.tables(answers, by_sum, "exact_match"),
      "labels": hits.tables(answers, by_sum, "label_accuracy"),
      "cosine": measurements.cosine(),
      **session.machine(),
    }
    for name, scores in single["scores"].items():
      results["single"][name] |= scores
    results["summary"] = summarise(results)
    results["seconds"] = {"tuning": tuned, "all": session.seconds()}
    return results

  def _tune(self, session: base.Session) -> None:
    settings = self.settings
    entries = bank.grid(
      self.tasks,
      settings.vocabulary,
      settings.lengths,
      session.folder / "runs",
      self.batch_size,
      settings.initial_seeds,
    )
    if self.as_bank:
      session.tune_bank(self.model, entries, self.tuning)
    else:
      jobs = [(self.model, entry) for entry in entries]
      session.tune_each(jobs, self.tuning, "1/3 tuning prompts")
    processes.wait_for_all("all prompts are tuned")


def summarise(results: Mapping[str, Any]) -> dict[str, Any]:
  """Returns the means that the report opens with; scores are exact match on test.

  `pair_sums` averages over pairs, their tasks and initial prompts; `pair_sums_relative`
  first divides each score by that of the task's own prompt from the same initial prompt.
  Each sum in `results` is given its own such mean, as `relative`. The same means of the
  accuracy among labels are `labels`.
  """
  single, labels = results["single"], results["labels"]
  own = {name: [s["exact_match"] for s in one["own"]] for name, one in single.items()}
  own_labels = {name: one["own"] for name, one in labels["single"].items()}
  return {
    **_means(results, own),
    "labels": _means(labels, own_labels),
    "tasks_with_label_accuracy_at_most_0.75_without_prompt": sum(
      one["no_prompt"]["label_accuracy"] <= 0.75 for one in single.values()
    ),
    "cosine": cosine_groups(results["cosine"], len(results["initial_seeds"])),
  }


def _means(
  tables: Mapping[str, Any], own: Mapping[str, Sequence[float]]
) -> dict[str, Any]:
  """Returns the means of one metric over tasks, pairs and initial prompts.

  Args:
    tables: as `hits.tables` returns them; their sums are given `relative`.
    own: the scores of the tasks' own prompts, by initial prompt.
  """
  single, names = tables["single"], list(own)
  *pairs, everything = tables["sums"] if len(names) > 2 else [*tables["sums"], None]

  def mean(values: Iterable[float]) -> float:
    return float(np.mean(list(values)))

  def absolute(sums: Sequence[Mapping[str, Any]]) -> float:
    return mean(
      score for total in sums for scores in total["scores"].values() for score in scores
    )

  def relative(sums: Sequence[Mapping[str, Any]]) -> float | None:
    known = [total["relative"] for total in sums if total["relative"] is not None]
    return mean(known) if known else None

  for total in tables["sums"]:
    total["relative"] = _relative(total["scores"], own)
  control = {name: mean(single[name]["control"]) for name in names}
  return {
    "own": mean(mean(scores) for scores in own.values()),
    "untuned": mean(mean(single[name]["untuned"]) for name in names),
    "tasks_with_own_at_least_0.90": sum(mean(scores) >= 0.9 for scores in own.values()),
    "other_initial": mean(mean(single[name]["other_initial"]) for name in names),
    "control": mean(control.values()),
    "own_minus_control": mean(mean(own[name]) - control[name] for name in names),
    "pair_sums": absolute(pairs),
    "pair_sums_relative": relative(pairs),
    "pair_sums_minus_control": mean(
      mean(scores) - control[name]
      for total in pairs
      for name, scores in total["scores"].items()
    ),
    "pairs": len(pairs),
    "pairs_that_keep_0.90": sum(keeps(total, own) for total in pairs),
    "sum_of_all": None if everything is None else absolute([everything]),
    "sum_of_all_relative": None if everything is None else relative([everything]),
  }


def keeps(total: Mapping[str, Any], own: Mapping[str, Sequence[float]]) -> bool:
  """Returns whether each task of a sum keeps `base.KEPT` of its own score on average."""
  return all(
    np.mean(scores) >= base.KEPT * np.mean(own[name])
    for name, scores in total["scores"].items()
  )


def _relative(
  scores: Mapping[str, Sequence[float]], own: Mapping[str, Sequence[float]]
) -> float | None:
  """Returns the mean of score / own score, over tasks and initial prompts.

  Pairs in which the task's own prompt scores 0 are left out; the result is None if all
  are.
  """
  ratios = [
    score / alone
    for name, values in scores.items()
    for score, alone in zip(values, own[name], strict=True)
    if alone > 0
  ]
  return float(np.mean(ratios)) if ratios else None


def cosine_groups(cosine: Mapping[str, Any], seeds: int) -> dict[str, dict[str, float]]:
  """Returns mean cosines: of one task across initial prompts, and of different tasks.

  The rows are ordered by task, then by initial prompt, with `seeds` rows per task.
  """
  count = len(cosine["names"])
  task, seed = np.arange(count) // seeds, np.arange(count) % seeds
  same_task = task[:, None] == task[None, :]
  same_seed = seed[:, None] == seed[None, :]
  groups = {
    "same_task_other_initial": same_task & ~same_seed,
    "other_task_same_initial": ~same_task & same_seed,
    "other_task_other_initial": ~same_task & ~same_seed,
  }

  def means(matrix: Float[np.ndarray, "N N"]) -> dict[str, float]:
    return {name: float(matrix[mask].mean()) for name, mask in groups.items()}

  return {kind: means(np.asarray(cosine[kind])) for kind in ("prompts", "vectors")}

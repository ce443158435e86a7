"""A few-shot comparison of starts: random, a related vector, a sum, an unrelated vector.

The question is that of the task-vector paper's few-shot part (arXiv 2408.01119;
methods.md, section 4): does prompt tuning on few examples of a target do better from
P_i + v of a source task than from P_i? The unrelated vector is our control: what it
gains as well is owed to any tuned prompt and not to the source.
"""

import dataclasses
import datetime
import functools
import itertools
import pathlib
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import jax
import numpy as np
from tqdm import tqdm

from tpv_jax.backbones import loading
from tpv_jax.banks import bank
from tpv_jax.core import files
from tpv_jax.core.checks import Lengths, Seed, Size, Steps, check_fields, checked
from tpv_jax.core.errors import UserError, near_misses
from tpv_jax.data import few_shot as sampling
from tpv_jax.data.batches import Tokenized
from tpv_jax.data.labels import check_task
from tpv_jax.data.tasks import SPLITS, Task
from tpv_jax.data.vocabularies import Vocabulary
from tpv_jax.devices import processes
from tpv_jax.evaluation.evaluator import Evaluator
from tpv_jax.formats import sources
from tpv_jax.model import SoftPromptModel
from tpv_jax.runs.run_folder import RunFolder, open_output, versions, write_results
from tpv_jax.studies.report import arithmetic as report
from tpv_jax.studies.report import few_shot as few_shot_report
from tpv_jax.training import initial
from tpv_jax.training.initial import Initial
from tpv_jax.training.loop import Metric
from tpv_jax.training.optimizers import LearningRate
from tpv_jax.training.task_data import TaskData
from tpv_jax.vectors import algebra, store
from tpv_jax.vectors.algebra import Loaded

STARTS = {
  "random": "random",
  "related": "one related vector",
  "sum": "sum of two vectors",
  "unrelated": "an unrelated vector",
}
"""The starts, with their names in the report; 'random' is the initial prompt alone."""

Scores = Mapping[str, Mapping[str, Mapping[str, Sequence[float]]]]
"""[number of examples][start][target][initial prompt]; numbers as text, as JSON has it."""


@dataclasses.dataclass(frozen=True)
class Target:
  """A task that is learnt from few examples, and the sources it is started from.

  Attributes:
    task: the target.
    related: the source whose vector is the one related vector.
    second: the source whose vector is added to it in the sum.
    unrelated: the source of the control.
    note: what the report says of the target.
  """

  task: Task
  related: str
  second: str
  unrelated: str
  note: str = ""

  def __post_init__(self) -> None:
    check_fields(self)


@checked
def compare_starts(
  model: SoftPromptModel,
  backbone: str,
  source_tasks: Sequence[Task],
  targets: Sequence[Target],
  vocabulary: Vocabulary,
  lengths: Lengths,
  output_dir: files.PathLike,
  initial_prompt: Initial,
  learning_rate: LearningRate,
  shots: Sequence[int],
  source_steps: Steps,
  source_batch_size: Size,
  source_eval_period: Steps,
  total_steps: Steps,
  eval_period: Steps,
  initial_seeds: Sequence[Seed] = (0, 1, 2),
  coefficient: float = 1.0,
  best_metric: Metric = "loss",
  validation_examples: Size = 250,
  test_examples: Size = 500,
  bank_size: Size | None = None,
  overwrite: bool = False,
  progress: bool = True,
  config: Callable[[], str] | None = None,
  command: str | None = None,
) -> dict[str, Any]:
  """Runs the whole comparison and returns its results, which it writes and prints.

  Source prompts are tuned on whole tasks, and their vectors and the sums of two written.
  Then each target is tuned from each start on each number of its examples. All starts
  of a target see the same examples in the same order, drawn by the seed of the initial
  prompt, and a smaller sample is part of a larger one. With 0 examples the start itself
  is measured.

  Writes `report.md`, `results.json`, a plot, the vectors and the runs to `output_dir`.
  Started again it continues: what is finished is not trained again.

  Args:
    model: with a trainable prompt.
    backbone: what `load_backbone` takes.
    source_tasks: the tasks of the vectors, of different names.
    targets: what is learnt, of different names.
    vocabulary: the backbone's.
    lengths: `{'inputs': T, 'targets': L}` in tokens, EOS included.
    output_dir: the folder of the comparison.
    initial_prompt: (embedding table, seed) -> [P, D].
    learning_rate: step, from 0, to learning rate.
    shots: numbers of examples, each from 0 to `few_shot.MOST`.
    source_steps: optimizer steps of each source prompt.
    source_batch_size: examples a step of these.
    source_eval_period: steps between their validations.
    total_steps: optimizer steps on a target, whatever the number of examples; batches
      have `few_shot.batch_size`.
    eval_period: steps between validations on a target, the best prompt being kept.
    initial_seeds: the initial prompts and the samples; deviations are over them.
    coefficient: of all vectors, also of the two in a sum.
    best_metric: by which a run keeps its best prompt.
    validation_examples: the first so many are validated on.
    test_examples: the first so many are measured on.
    bank_size: prompts that are trained at once; None: all of one number of examples.
    overwrite: train runs again that are finished or have other settings.
    progress: show progress.
    config: gives the text for config.gin.
    command: the command line, for the report.

  Raises:
    UserError: settings that do not fit each other; a folder that holds something else,
      or runs with other settings.
  """
  started = time.time()
  _check(source_tasks, targets, shots, initial_seeds)
  for task in (*source_tasks, *(target.task for target in targets)):
    check_task(task, vocabulary, lengths, SPLITS)
  with open_output(output_dir, "few-shot comparison", "vectors") as folder:
    loaded = loading.load_backbone(backbone, model.network, vocabulary)
    train = functools.partial(
      bank.train_bank,
      model=model,
      learning_rate=learning_rate,
      backbone=loaded,
      initial_prompt=initial_prompt,
      best_metric=best_metric,
      size=bank_size,
      overwrite=overwrite,
      progress=progress,
      config=config,
    )
    _say("1/3 source prompts", progress)
    train(
      entries=bank.grid(
        source_tasks,
        vocabulary,
        lengths,
        folder / "sources",
        source_batch_size,
        initial_seeds,
      ),
      total_steps=source_steps,
      eval_period=source_eval_period,
      log_period=source_eval_period,
      checkpoint_period=source_steps,
    )
    _write_vectors(folder, targets, initial_seeds)
    jobs = _jobs(folder, targets, initial_seeds, initial_prompt, coefficient)
    for number in shots:
      if number:
        _say(f"2/3 targets, {number} examples each", progress)
        data = {
          (target.task.name, seed): TaskData(
            sampling.few_shot(target.task, number, seed),
            vocabulary,
            lengths,
            sampling.batch_size(number),
            seed,
            validation_examples,
          )
          for target, seed in itertools.product(targets, initial_seeds)
        }
        train(
          entries=[
            bank.Entry(
              data[job.target.task.name, job.seed],
              job.run(number),
              initial_seed=job.seed,
              seed=job.seed,
              initial_prompt=job.start,
            )
            for job in jobs
          ],
          total_steps=total_steps,
          eval_period=eval_period,
          log_period=eval_period,
          checkpoint_period=total_steps,
        )
    processes.wait_for_all("all prompts are tuned")
    evaluator = Evaluator(model, loaded.params, vocabulary, lengths, progress=progress)
    _say("3/3 scores on test", progress)
    starts = _drawn(jobs, model, loaded)
    results = {
      "command": command,
      "date": datetime.date.today().isoformat(),
      "starts": STARTS,
      "sources": _source_scores(
        evaluator, folder, source_tasks, initial_seeds, test_examples
      ),
      "targets": {
        target.task.name: {
          "related": target.related,
          "second": target.second,
          "unrelated": target.unrelated,
          "note": target.note,
        }
        for target in targets
      },
      "shots": list(shots),
      "batch_sizes": {str(n): sampling.batch_size(n) for n in shots if n},
      "initial_seeds": list(initial_seeds),
      "coefficient": coefficient,
      "source_steps": source_steps,
      "source_batch_size": source_batch_size,
      "total_steps": total_steps,
      "eval_period": eval_period,
      "best_metric": best_metric,
      "test_examples": test_examples,
      "scores": _scores(evaluator, jobs, shots, test_examples, starts),
      "curves": _curves(jobs, shots),
      "samples": _samples(jobs, shots),
      "backbone": {"name": loaded.name, "fingerprint": loaded.fingerprint},
      "versions": versions(),
      "device": jax.devices()[0].device_kind,
    }
    results["summary"] = summarise(results["scores"])
    results["seconds"] = round(time.time() - started, 1)
    write_results(folder, results, few_shot_report.write, config)
    return results


def summarise(scores: Scores) -> dict[str, dict[str, dict[str, Any]]]:
  """Returns `report.compare` of each start, against all of them, by number of examples."""
  return {
    number: {
      start: report.compare(by_target, starts) for start, by_target in starts.items()
    }
    for number, starts in scores.items()
  }


def _check(
  source_tasks: Sequence[Task],
  targets: Sequence[Target],
  shots: Sequence[int],
  seeds: Sequence[int],
) -> None:
  """Raises `UserError` for settings with which nothing could be compared."""
  for name, values in (("SHOTS", shots), ("TARGETS", targets)):
    if not isinstance(values, list | tuple) or not values:
      raise UserError(f"{name} is {values!r}. Give a list with at least one entry.")
  if len(set(seeds)) < 2:
    raise UserError(
      f"The starts are compared over initial prompts: give at least two INITIAL_SEEDS "
      f"(now {list(seeds)})."
    )
  known = [task.name for task in source_tasks]
  named: dict[str, list[Any]] = {
    "source tasks": known,
    "targets": [target.task.name for target in targets],
    "numbers in SHOTS": list(shots),
  }
  for title, names in named.items():
    if twice := [name for name in names if names.count(name) > 1]:
      raise UserError(
        f"Two {title} are '{twice[0]}', so their runs would share a folder. Name them "
        "differently, or leave one out."
      )
  for target in targets:
    used = (target.related, target.second, target.unrelated)
    for name in used:
      if name not in known:
        raise UserError(
          f"Target '{target.task.name}' is to start from the vector of '{name}', which "
          f"is none of the sources {', '.join(known)}.{near_misses(name, known)}"
        )
    if len(set(used)) < len(used):
      raise UserError(
        f"Target '{target.task.name}' has one source in two roles ({', '.join(used)}), so "
        "two starts would be one. Give three different sources."
      )
  for number in shots:
    sampling.batch_size(number)
  if most := max(shots):
    for target in targets:
      sampling.few_shot(target.task, most).examples("train")


def _say(text: str, progress: bool) -> None:
  if progress and processes.is_writer():
    tqdm.write(text)


def _vector_file(folder: pathlib.Path, seed: int, *names: str) -> pathlib.Path:
  return folder / "vectors" / f"{'+'.join(names)}-{seed}.safetensors"


def _write_vectors(
  folder: pathlib.Path, targets: Sequence[Target], seeds: Sequence[int]
) -> None:
  """Writes the vectors that the targets start from, and their sums."""
  singles = {name for t in targets for name in (t.related, t.second, t.unrelated)}
  for seed in seeds:
    vectors = {}
    for name in sorted(singles):
      run = str(folder / "sources" / f"{name}-{seed}")
      tuned, start = sources.load(run, "best"), sources.load(run, "initial")
      vectors[name] = algebra.diff(tuned, start)
    written: dict[tuple[str, ...], Loaded] = {(n,): v for n, v in vectors.items()}
    for target in targets:
      pair = target.related, target.second
      written[pair] = algebra.sum_vectors([vectors[name] for name in pair])
    if processes.is_writer():
      for names, vector in written.items():
        path = _vector_file(folder, seed, *names)
        store.write(path, vector.leaves, vector.provenance, overwrite=True)
  processes.wait_for_all("the vectors are written")


@dataclasses.dataclass(frozen=True)
class _Job:
  """A target, a start and an initial prompt; `start` gives the prompt it begins with."""

  folder: pathlib.Path
  target: Target
  start_name: str
  seed: int
  start: Initial

  def run(self, number: int) -> pathlib.Path:
    """Returns the run folder for so many examples."""
    name = f"{self.target.task.name}-{self.start_name}-{number}-{self.seed}"
    return self.folder / "runs" / name


def _jobs(
  folder: pathlib.Path,
  targets: Sequence[Target],
  seeds: Sequence[int],
  initial_prompt: Initial,
  coefficient: float,
) -> list[_Job]:
  def starts(target: Target, seed: int) -> Iterator[tuple[str, Initial]]:
    names = {
      "related": (target.related,),
      "sum": (target.related, target.second),
      "unrelated": (target.unrelated,),
    }
    for start in STARTS:
      if start == "random":
        yield start, initial_prompt
      else:
        yield (
          start,
          functools.partial(
            initial.from_vector,
            path=str(_vector_file(folder, seed, *names[start])),
            initial=initial_prompt,
            coefficient=coefficient,
          ),
        )

  return [
    _Job(folder, target, name, seed, start)
    for target, seed in itertools.product(targets, seeds)
    for name, start in starts(target, seed)
  ]


def _source_scores(
  evaluator: Evaluator,
  folder: pathlib.Path,
  tasks: Sequence[Task],
  seeds: Sequence[int],
  most: int,
) -> dict[str, list[float]]:
  """Returns the exact match on test of each source prompt on its own task."""
  pairs = []
  for task in tasks:
    test = evaluator.tokenize(task.examples("test")[:most], f"{task.name}, test")
    for seed in seeds:
      tuned = algebra.fold(
        sources.load(str(folder / "sources" / f"{task.name}-{seed}"), "best")
      )
      pairs.append((tuned.leaves, test))
  found = np.reshape(evaluator.exact_matches(pairs), (len(tasks), len(seeds)))
  return {task.name: row.tolist() for task, row in zip(tasks, found, strict=True)}


def _drawn(
  jobs: Sequence[_Job], model: SoftPromptModel, backbone: loading.Backbone
) -> list[Loaded]:
  """Returns the folded prompt that each job begins with."""
  table = np.asarray(backbone.table, np.float32)
  return [
    algebra.fold(
      initial.draw(
        model.prompt, job.start, table, job.seed, backbone.name, backbone.fingerprint
      )
    )
    for job in jobs
  ]


def _scores(
  evaluator: Evaluator,
  jobs: Sequence[_Job],
  shots: Sequence[int],
  most: int,
  starts: Sequence[Loaded],
) -> dict[str, dict[str, dict[str, list[float]]]]:
  """Returns `Scores`: exact match on test of each best prompt, with 0 of the start."""
  test: dict[str, Tokenized] = {}
  keys, pairs = [], []
  for number in shots:
    for job, start in zip(jobs, starts, strict=True):
      task = job.target.task
      if task.name not in test:
        test[task.name] = evaluator.tokenize(
          task.examples("test")[:most], f"{task.name}, test"
        )
      best = number and algebra.fold(sources.load(str(job.run(number)), "best"))
      keys.append((str(number), job.start_name, task.name))
      pairs.append(((best or start).leaves, test[task.name]))
  scores: dict[str, dict[str, dict[str, list[float]]]] = {}
  values = evaluator.exact_matches(pairs)
  for (shot, start_name, name), value in zip(keys, values, strict=True):
    by_start = scores.setdefault(shot, {})
    by_start.setdefault(start_name, {}).setdefault(name, []).append(value)
  return scores


def _samples(
  jobs: Sequence[_Job], shots: Sequence[int]
) -> dict[str, dict[str, list[str]]]:
  """Returns the digest of each sample, [number][target][initial prompt]."""
  found: dict[str, dict[str, list[str]]] = {}
  for number, job in itertools.product(filter(None, shots), jobs):
    if job.start_name == "random":
      digest = RunFolder(job.run(number)).manifest()["data"]["train_digest"]
      by_target = found.setdefault(str(number), {})
      by_target.setdefault(job.target.task.name, []).append(digest)
  return found


def _curves(
  jobs: Sequence[_Job], shots: Sequence[int]
) -> dict[str, dict[str, dict[str, float]]]:
  """Returns exact match on validation, [number][start][step], the mean over the rest."""
  found: dict[str, dict[str, dict[str, list[float]]]] = {}
  for number, job in itertools.product(filter(None, shots), jobs):
    steps = found.setdefault(str(number), {}).setdefault(job.start_name, {})
    for line in RunFolder(job.run(number)).metrics():
      if line["kind"] == "validation":
        steps.setdefault(str(line["step"]), []).append(line["exact_match"])
  return {
    shot: {
      start: {step: float(np.mean(values)) for step, values in steps.items()}
      for start, steps in starts.items()
    }
    for shot, starts in found.items()
  }

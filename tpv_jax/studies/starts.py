"""The starts of few-shot prompt tuning: the runs from each of them, and their scores."""

import dataclasses
import itertools
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from tpv_jax.data.tasks import Task
from tpv_jax.evaluation.evaluator import Prompt
from tpv_jax.formats import sources
from tpv_jax.runs.run_folder import RunFolder
from tpv_jax.studies import base
from tpv_jax.studies.comparison import compare
from tpv_jax.training.initial import Initial
from tpv_jax.vectors import algebra
from tpv_jax.vectors.loaded import Loaded

STARTS = {
  "random": "random",
  "related": "one related vector",
  "sum": "sum of two vectors",
  "unrelated": "an unrelated vector",
}
"""The starts, with their names in the report; 'random' is the initial prompt alone."""

Scores = Mapping[str, Mapping[str, Mapping[str, Sequence[float]]]]
"""[number of examples][start][target][initial prompt]; numbers are text, as JSON keys."""

Key = tuple[int, str, str, int]
"""Number of examples, start, target, initial prompt."""


@dataclasses.dataclass(frozen=True)
class Job:
  """A target, a start and an initial prompt; `start` makes the prompt to begin with."""

  folder: pathlib.Path
  task: Task
  start_name: str
  seed: int
  start: Initial

  def run(self, number: int) -> pathlib.Path:
    """Returns the folder of the run on `number` examples."""
    name = f"{self.task.name}-{self.start_name}-{number}-{self.seed}"
    return self.folder / "runs" / name


def summarise(scores: Scores) -> dict[str, dict[str, dict[str, Any]]]:
  """Returns `comparison.compare` of each start with all starts, by number of examples."""
  return {
    number: {start: compare(by_target, starts) for start, by_target in starts.items()}
    for number, starts in scores.items()
  }


def tuned(
  jobs: Sequence[Job], shots: Sequence[int], starts: Sequence[Loaded]
) -> dict[Key, Loaded]:
  """Returns the best prompt of each job and number, folded; for 0 examples, its start."""
  return {
    (number, job.start_name, job.task.name, job.seed): algebra.fold(
      sources.load(str(job.run(number)), "best")
    )
    if number
    else start
    for number in shots
    for job, start in zip(jobs, starts, strict=True)
  }


def scores(
  test: base.Split, tuned: Mapping[Key, Prompt]
) -> dict[str, dict[str, dict[str, list[float]]]]:
  """Returns `Scores`: exact match on test of each prompt."""
  found = test.scores({key: (leaves, key[2]) for key, leaves in tuned.items()})
  scores: dict[str, dict[str, dict[str, list[float]]]] = {}
  for (number, start, target, _), score in found.items():
    by_start = scores.setdefault(str(number), {})
    by_start.setdefault(start, {}).setdefault(target, []).append(score)
  return scores


def samples(
  jobs: Sequence[Job], shots: Sequence[int]
) -> dict[str, dict[str, list[str]]]:
  """Returns the digest of each sample, [number][target][initial prompt]."""
  found: dict[str, dict[str, list[str]]] = {}
  for number, job in itertools.product(filter(None, shots), jobs):
    if job.start_name == "random":
      digest = RunFolder(job.run(number)).manifest()["data"]["train_digest"]
      by_target = found.setdefault(str(number), {})
      by_target.setdefault(job.task.name, []).append(digest)
  return found


def curves(
  jobs: Sequence[Job], shots: Sequence[int]
) -> dict[str, dict[str, dict[str, float]]]:
  """Returns exact match on validation, [number][start][step], averaged over the rest."""
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

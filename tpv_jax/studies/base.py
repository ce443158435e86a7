"""What all studies share: they check settings, tune a grid of prompts, measure and report.

A study is an object that holds its settings and defines what is its own (`Study`);
`conduct` does the rest. `registry` lists the studies.
"""

import contextlib
import dataclasses
import datetime
import pathlib
import time
from collections.abc import Callable, Hashable, Iterable, Iterator, Mapping, Sequence
from typing import Any, ClassVar, Protocol, TypeVar, runtime_checkable

import jax
import numpy as np
from jaxtyping import Bool, Int

from tpv_jax.backbones import loading, quantization
from tpv_jax.backbones.protocol import Network
from tpv_jax.banks import bank
from tpv_jax.banks.bank import Entry
from tpv_jax.core import files
from tpv_jax.core.errors import UserError
from tpv_jax.core.screen import Bar
from tpv_jax.data.batches import Tokenized
from tpv_jax.data.labels import check_task
from tpv_jax.data.tasks import Task
from tpv_jax.data.vocabularies import Vocabulary
from tpv_jax.devices import processes
from tpv_jax.evaluation import candidates
from tpv_jax.evaluation.evaluator import Evaluator, Prompt
from tpv_jax.model import SoftPromptModel
from tpv_jax.runs.run_folder import open_output, versions, write_results
from tpv_jax.studies.measured import NAME, Measured
from tpv_jax.studies.report.writer import Report, write
from tpv_jax.training import initial, signals, training
from tpv_jax.training.initial import Initial
from tpv_jax.training.loop import Metric
from tpv_jax.training.optimizers import LearningRate
from tpv_jax.vectors import algebra
from tpv_jax.vectors.loaded import Loaded

Key = TypeVar("Key", bound=Hashable)


LARGE = 50_000_000
"""The parameters of a backbone from which on every run of a study writes checkpoints (ours):
there a step takes about a second on a CPU."""


@dataclasses.dataclass(frozen=True)
class Settings:
  """The settings that every study has.

  Attributes:
    network: the backbone's.
    backbone: what `load_backbone` takes.
    vocabulary: the backbone's.
    lengths: `{'inputs': T, 'targets': L}` in tokens, EOS included.
    output_dir: the study's folder.
    initial_seeds: the initial prompts; means and deviations are over them.
    overwrite: train runs again that are finished or have other settings, and measure all
      of them again.
    progress: show progress.
    config: returns the text of config.gin.
    command: the command line, for the report.
  """

  network: Network
  backbone: str
  vocabulary: Vocabulary
  lengths: Mapping[str, int]
  output_dir: files.PathLike
  initial_seeds: Sequence[int]
  overwrite: bool
  progress: bool
  config: Callable[[], str] | None
  command: str | None = None


@dataclasses.dataclass(frozen=True)
class Tuning:
  """How prompts are tuned.

  Attributes:
    learning_rate: a schedule: step, counted from 0, to learning rate.
    initial_prompt: (embedding table, seed) -> [P, D], for entries without their own.
    total_steps: optimizer steps of each prompt.
    eval_period: steps between validations, which choose the best prompt.
    best_metric: the metric that chooses a run's best prompt.
    checkpoints: write checkpoints during a run on a backbone smaller than `LARGE` too;
      without them, a killed run starts again, which suits runs of seconds.
  """

  learning_rate: LearningRate
  initial_prompt: Initial | None
  total_steps: int
  eval_period: int
  best_metric: Metric
  checkpoints: bool = True

  def arguments(self, parameters: int) -> dict[str, Any]:
    """Returns the keyword arguments for `training.train` and `bank.train_bank`.

    Args:
      parameters: of the backbone.
    """
    found = {
      field.name: getattr(self, field.name)
      for field in dataclasses.fields(self)
      if field.name != "checkpoints"
    }
    if not self.checkpoints and parameters < LARGE:
      found |= {"log_period": self.eval_period, "checkpoint_period": self.total_steps}
    return found


@runtime_checkable
class Study(Protocol):
  """What differs between studies: a dataclass whose fields are the study's settings.

  Attributes:
    work: its name in messages, such as 'ablation'.
    part: a folder in its output, by which an earlier output is recognised.
    report: the module that writes its report.
    run: the function that gin configures, which fills the dataclass and conducts it.
    settings: those that every study has.
  """

  work: ClassVar[str]
  part: ClassVar[str]
  report: ClassVar[Report]
  run: ClassVar[Callable[..., dict[str, Any]]]

  @property
  def settings(self) -> Settings:
    """Returns the settings that every study has."""
    ...

  def check(self) -> None:
    """Raises `UserError` for settings that do not fit each other, before any work."""
    ...

  def results(self, session: "Session") -> dict[str, Any]:
    """Tunes and measures the prompts, and returns what becomes `results.json`."""
    ...


_set_up: list[Study] | None = None
"""The studies that `conduct` was to run, within `set_up`."""


@contextlib.contextmanager
def set_up() -> Iterator[list[Study]]:
  """Yields a list to which `conduct` adds a checked study within the block, unconducted."""
  global _set_up
  before, _set_up = _set_up, []
  try:
    yield _set_up
  finally:
    _set_up = before


def conduct(study: Study) -> dict[str, Any]:
  """Runs a study and returns its results, which it writes and prints.

  Started again, it continues: finished runs are not trained again, and what was measured
  on their prompts (`measured.json`) is not measured again.

  Raises:
    UserError: settings that do not fit each other; a folder that holds something else, or
      runs with other settings.
  """
  started, settings = time.time(), study.settings
  study.check()
  if _set_up is not None:
    _set_up.append(study)
    return {}
  with (
    open_output(settings.output_dir, study.work, study.part) as folder,
    processes.one_clear_line_if_memory_is_short(
      "Shorten LENGTHS, set DTYPE = 'bfloat16', or lower the batch_size of merge rules that "
      "read data; what was tuned and measured is kept."
    ),
  ):
    backbone = loading.load_backbone(
      settings.backbone, settings.network, settings.vocabulary
    )
    session = Session(settings, folder, backbone, started)
    results = {"work": study.work, **study.results(session)}

    def report(folder: pathlib.Path, results: Mapping[str, Any]) -> None:
      write(folder, results, study.report)

    write_results(folder, results, report, settings.config)
    return results


@dataclasses.dataclass(frozen=True)
class Session:
  """A study in progress, with its folder and its backbone.

  Attributes:
    settings: the study's.
    folder: of its output.
    backbone: as loaded.
    started: the time at which it started, in seconds (`time.time`).
  """

  settings: Settings
  folder: pathlib.Path
  backbone: loading.Backbone
  started: float

  def tune_bank(
    self,
    model: SoftPromptModel,
    entries: Sequence[Entry],
    tuning: Tuning,
    size: int | None = None,
  ) -> None:
    """Tunes prompts of one form, at most `size` of them at once; None tunes all at once."""
    with signals.more_follows():
      bank.train_bank(
        model=model,
        entries=entries,
        backbone=self.backbone,
        size=size,
        progress=self.settings.progress,
        **self._of_all_runs(tuning),
      )

  def tune_each(
    self, jobs: Iterable[tuple[SoftPromptModel, Entry]], tuning: Tuning, title: str
  ) -> list[dict[str, Any]]:
    """Tunes prompts one after the other, and returns the manifests of their runs."""
    shared = self._of_all_runs(tuning)
    disable = not self.settings.progress
    with signals.more_follows():
      return [
        training.train(
          model=model,
          data=entry.data,
          run_dir=entry.run_dir,
          backbone=self.backbone,
          initial_seed=entry.initial_seed,
          seed=entry.seed,
          progress=False,
          **shared | {"initial_prompt": entry.initial_prompt or tuning.initial_prompt},
        )
        for model, entry in Bar(list(jobs), desc=title, disable=disable)
      ]

  def _of_all_runs(self, tuning: Tuning) -> dict[str, Any]:
    settings = self.settings
    given = {"overwrite": settings.overwrite, "config": settings.config}
    return tuning.arguments(self.backbone.parameters) | given

  def evaluator(self, model: SoftPromptModel) -> Evaluator:
    """Returns an evaluator of prompts on the backbone."""
    settings = self.settings
    return Evaluator(
      model,
      self.backbone.params,
      settings.vocabulary,
      settings.lengths,
      progress=settings.progress,
    )

  def measured(
    self,
    subject: Mapping[str, Any],
    defaults: Mapping[str, Any],
    decoding: SoftPromptModel | None = None,
    name: str = NAME,
  ) -> Measured:
    """Returns the study's measurements, with those made before on the same subject.

    Args:
      subject: what they depend on, except the backbone and decoding.
      defaults: the values of entries that an older subject may lack.
      decoding: the model that decodes, if decoded text is measured.
      name: of the file, in the study's folder.
    """
    whole = {**subject, "backbone": self.backbone.fingerprint}
    if mode := quantization.mode_of(self.settings.network):
      whole["quantize"] = mode
    if decoding is not None:
      choice = decoding.choice
      whole |= {"beams": choice.num_beams, "length_penalty": choice.length_penalty}
      whole |= {"temperature": choice.temperature, "top_p": choice.top_p}
      whole |= {"sampling_seed": choice.sampling_seed}
    overwrite = self.settings.overwrite
    return Measured(self.folder / name, whole, defaults, overwrite)

  def say(self, text: str) -> None:
    """Shows a line of progress."""
    if self.settings.progress:
      processes.say(text)

  def head(self) -> dict[str, Any]:
    """Returns the part of the results that states the command and the date."""
    today = datetime.date.today().isoformat()
    return {"command": self.settings.command, "date": today}

  def subject(self) -> dict[str, Any]:
    """Returns the part of the results that states the backbone."""
    return self.backbone.stated(self.settings.network)

  def machine(self) -> dict[str, Any]:
    """Returns the part of the results that states the software and the device."""
    return {"versions": versions(), "device": jax.devices()[0].device_kind}

  def seconds(self) -> float:
    """Returns the seconds since the study started."""
    return round(time.time() - self.started, 1)


Hits = dict[str, Bool[np.ndarray, " _"]]
"""Which examples a prompt answers right, by metric (`METRICS`)."""

METRICS = ("exact_match", "label_accuracy")
"""Exact match of greedy decoding; whether the right one of the labels scores highest."""


KEPT = 0.9
"""The part of its own prompt's score from which on a task counts as kept (ours)."""


class Split:
  """One split of some tasks, each tokenized once, on which prompts are scored."""

  def __init__(
    self,
    evaluator: Evaluator,
    tasks: Iterable[Task],
    split: str = "test",
    most: int | None = None,
  ):
    """Tokenizes the first `most` examples of each task; for 'test', says what was lost."""
    tasks = list(tasks)
    self._evaluator = evaluator
    self._examples = {task.name: task.examples(split)[:most] for task in tasks}
    self._labels = {task.name: task.labels for task in tasks}
    self._tokenized: dict[str, Tokenized] = {
      name: evaluator.tokenize(some, f"{name}, {split}" if split == "test" else None)
      for name, some in self._examples.items()
    }

  def scores(self, asked: Mapping[Key, tuple[Prompt, str]]) -> dict[Key, float]:
    """Returns the exact match of each prompt on its task, in one pass.

    Args:
      asked: key -> the folded prompt and the task's name.
    """
    pairs = [(leaves, self._tokenized[task]) for leaves, task in asked.values()]
    return dict(zip(asked, self._evaluator.exact_matches(pairs), strict=True))

  def hits(self, asked: Mapping[Key, tuple[Prompt, str]]) -> dict[Key, Hits]:
    """Returns which examples each prompt answers right, in one pass.

    Args:
      asked: key -> the folded prompt and the name of its task, which has labels.
    """
    right = {task: self._right(task) for task in {name for _, name in asked.values()}}
    answers = self._evaluator.hits(
      [
        (leaves, self._tokenized[task], self._labels[task] or (), right[task])
        for leaves, task in asked.values()
      ]
    )
    return {
      key: dict(zip(METRICS, found, strict=True))
      for key, found in zip(asked, answers, strict=True)
    }

  def _right(self, task: str) -> Int[np.ndarray, " _"]:
    """Returns the index of the right label of each example of a task."""
    labels = self._labels[task] or ()
    return np.asarray([labels.index(one.targets) for one in self._examples[task]])


def mean_hits(found: Mapping[Key, Hits], keys: Iterable[Key]) -> tuple[float, ...]:
  """Returns the mean score over keys by each of `METRICS`, the first of which ranks first."""
  some = [found[key] for key in keys]
  return tuple(
    float(np.mean([one[metric].mean() for one in some])) for metric in METRICS
  )


def best_coefficients(
  validation: Split,
  sums: Mapping[tuple[tuple[str, ...], int], Callable[[float], Prompt]],
  coefficients: Sequence[float],
) -> list[float]:
  """Returns a coefficient for each sum: all vectors of a sum share one.

  It is the one with the best mean exact match over the summed tasks on validation; of equal
  ones that with the best accuracy among labels, then the smallest. Where all are equal, a
  line says so.

  Args:
    validation: has the tasks.
    sums: (the names of the tasks, the seed of the initial prompt) -> what gives the folded
      prompt of a coefficient.
    coefficients: what is tried.
  """
  asked: dict[Any, tuple[Prompt, str]] = {}
  for (names, seed), applied in sums.items():
    for one in coefficients:
      prompt = applied(one)
      asked |= {(names, seed, one, name): (prompt, name) for name in names}
  found = validation.hits(asked)
  return [
    _best(
      {
        one: mean_hits(found, [(names, seed, one, name) for name in names])
        for one in coefficients
      },
      f"{' + '.join(names)} on initial prompt {seed}",
    )
    for names, seed in sums
  ]


def _best(means: Mapping[float, tuple[float, ...]], what: str) -> float:
  """Returns the coefficient with the best means, as `mean_hits` gives them."""
  best = max(means, key=lambda one: (*means[one], -one))
  if len({*means.values()}) == 1:
    candidates.say_equal_scores(
      f"Coefficient of {what}",
      [first for first, *_ in means.values()],
      f"{best:g}, the smallest",
    )
  return best


def drawn(
  model: SoftPromptModel,
  starts: Iterable[tuple[Initial, int]],
  backbone: loading.Backbone,
) -> list[Loaded]:
  """Returns the folded prompts that runs would begin with, of (function, seed) each."""
  table = np.asarray(backbone.table, np.float32)
  known = backbone.name, backbone.fingerprint, model.network
  return [
    algebra.fold(initial.draw(model.prompt, start, table, seed, *known))
    for start, seed in starts
  ]


def check_tasks(
  tasks: Iterable[Task], settings: Settings, splits: Sequence[str]
) -> None:
  """Raises `UserError` for tasks that exact match cannot judge or the model cannot answer.

  Args:
    tasks: the study's.
    settings: give the vocabulary and the lengths.
    splits: the splits whose targets are checked where a task has no labels.
  """
  for task in tasks:
    if task.labels is None and task.metric != "exact_match":
      raise UserError(
        f"TASKS has '{task.name}', whose answers are free texts and whose metric is "
        f"{task.metric}; a study compares exact matches, which say little of them. Leave "
        "it out, or give it labels."
      )
    check_task(task, settings.vocabulary, settings.lengths, splits)


def check_vectors(tasks: Sequence[Task], settings: Settings) -> None:
  """Raises `UserError` unless there are two tasks with labels and two initial prompts."""
  seeds = settings.initial_seeds
  if len(tasks) < 2 or len(seeds) < 2:
    raise UserError(
      f"A study compares tasks and initial prompts: give at least two of each (now "
      f"{len(tasks)} and {len(seeds)})."
    )
  refuse_repeated("TASKS", [task.name for task in tasks])
  refuse_repeated("INITIAL_SEEDS", seeds)
  for task in tasks:
    if task.labels is None:
      raise UserError(
        f"A study compares accuracies among labels, and the task '{task.name}' has "
        "none. Give it labels, or leave it out."
      )
  check_tasks(tasks, settings, ())


def refuse_repeated(what: str, names: Sequence[Any]) -> None:
  """Raises `UserError` if two of the names, which name run folders, are equal."""
  for index, name in enumerate(names):
    if name in names[:index]:
      raise UserError(
        f"Two {what} are '{name}', so their runs would share a folder. Name them "
        "differently, or leave one out."
      )

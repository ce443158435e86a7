"""A few-shot comparison of starts: random, a related vector, a sum, an unrelated vector.

The question is that of the task-vector paper's few-shot part (arXiv 2408.01119;
docs/methods.md, (9.1)): does prompt tuning on few examples of a target do better from
P_i + v of a source task than from P_i? The unrelated vector is our control: a gain that
it has too comes from starting at any tuned prompt, not from the source.
"""

import dataclasses
import functools
import itertools
import pathlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, ClassVar

from tpv_jax.banks import bank
from tpv_jax.core import files
from tpv_jax.core.checks import Lengths, Seed, Size, Steps, check_fields, checked
from tpv_jax.core.errors import UserError, near_misses
from tpv_jax.data import few_shot as sampling
from tpv_jax.data.tasks import SPLITS, Task
from tpv_jax.data.vocabularies import Vocabulary
from tpv_jax.devices import processes
from tpv_jax.evaluation import candidates
from tpv_jax.formats import sources
from tpv_jax.model import SoftPromptModel
from tpv_jax.runs.run_folder import versions
from tpv_jax.runs.run_settings import defaults_of
from tpv_jax.studies import base, merge_settings, starts
from tpv_jax.studies.measured import describe, digests
from tpv_jax.studies.report import few_shot as report
from tpv_jax.studies.report.writer import Report
from tpv_jax.studies.starts import Job
from tpv_jax.training import initial
from tpv_jax.training.initial import Initial
from tpv_jax.training.loop import Metric
from tpv_jax.training.optimizers import LearningRate
from tpv_jax.training.task_data import TaskData
from tpv_jax.vectors import algebra, store
from tpv_jax.vectors.loaded import Loaded


@dataclasses.dataclass(frozen=True)
class Target:
  """A task that is learnt from few examples, and the sources it is started from.

  Attributes:
    task: the target.
    related: the source of the related vector.
    second: the source whose vector is added to that in the sum; None for no sum.
    unrelated: the source of the control; None for no control.
    note: what the report says of the target.
  """

  task: Task
  related: str
  second: str | None = None
  unrelated: str | None = None
  note: str = ""

  def __post_init__(self) -> None:
    check_fields(self)

  def roles(self) -> dict[str, str | None]:
    """Returns the sources by their roles, and the note, for the report."""
    names = ("related", "second", "unrelated", "note")
    return {name: getattr(self, name) for name in names}

  def starts(self) -> dict[str, tuple[str, ...]]:
    """Returns the starts of `starts.STARTS` that it has: the sources of each one's vector."""
    found: dict[str, tuple[str, ...]] = {"random": (), "related": (self.related,)}
    if self.second is not None:
      found["sum"] = (self.related, self.second)
    if self.unrelated is not None:
      found["unrelated"] = (self.unrelated,)
    return found


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
  merge: Mapping[str, Any] | None = None,
  overwrite: bool = False,
  progress: bool = True,
  config: Callable[[], str] | None = None,
  command: str | None = None,
) -> dict[str, Any]:
  """Runs the whole comparison and returns its results, which it writes and prints.

  First, source prompts are tuned on whole tasks, and their vectors and sums of two are
  written. Then each target is tuned from each start on each number of its examples. All
  starts of a target see the same examples in the same order, drawn by the seed of the
  initial prompt, and a smaller sample is part of a larger one. With 0 examples the start
  itself is measured.

  Writes `report.md`, `results.json`, a plot, the vectors and the runs to `output_dir`.
  Started again, it continues: finished runs are not trained again.

  Args:
    model: has a trainable prompt.
    backbone: what `load_backbone` takes.
    source_tasks: the tasks of the vectors, with different names.
    targets: the tasks to learn from few examples, with different names.
    vocabulary: the backbone's.
    lengths: `{'inputs': T, 'targets': L}` in tokens, EOS included.
    output_dir: the folder of the comparison.
    initial_prompt: (embedding table, seed) -> [P, D].
    learning_rate: a schedule: step, counted from 0, to learning rate.
    shots: numbers of examples, each from 0 to `few_shot.MOST`.
    source_steps: optimizer steps of each source prompt.
    source_batch_size: examples per step of a source prompt.
    source_eval_period: steps between validations of a source prompt.
    total_steps: optimizer steps on a target, whatever the number of examples; the size
      of a batch is `few_shot.batch_size`.
    eval_period: steps between validations on a target, which choose the best prompt.
    initial_seeds: the initial prompts and the samples; deviations are over them.
    coefficient: of all vectors, also of the two in a sum.
    best_metric: the metric that chooses a run's best prompt.
    validation_examples: the number used, from the start of the validation split.
    test_examples: the number used, from the start of the test split.
    bank_size: prompts that are trained at once; None trains all of one number of examples.
    merge: how the two vectors of the start 'sum' are merged, such as {'rule': 'ties',
      'density': 0.2}; None adds them.
    overwrite: train runs again that are finished or have other settings.
    progress: show progress.
    config: returns the text of config.gin.
    command: the command line, for the report.

  Raises:
    UserError: settings that do not fit each other; a folder that holds something else,
      or runs with other settings.
  """

  def tuning(steps: int, period: int) -> base.Tuning:
    return base.Tuning(
      learning_rate, initial_prompt, steps, period, best_metric, checkpoints=False
    )

  return base.conduct(
    FewShot(
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
        command,
      ),
      model,
      initial_prompt,
      source_tasks,
      targets,
      shots,
      tuning(source_steps, source_eval_period),
      source_batch_size,
      tuning(total_steps, eval_period),
      coefficient,
      validation_examples,
      test_examples,
      bank_size,
      merge,
    )
  )


@dataclasses.dataclass(frozen=True)
class FewShot:
  """The comparison of starts; the attributes are described at `compare_starts`.

  `source_tuning` and `target_tuning` have the steps and periods of the two.
  """

  work: ClassVar[str] = "few-shot comparison"
  part: ClassVar[str] = "vectors"
  report: ClassVar[Report] = report
  run: ClassVar[Callable[..., dict[str, Any]]] = staticmethod(compare_starts)

  settings: base.Settings
  model: SoftPromptModel
  initial_prompt: Initial
  source_tasks: Sequence[Task]
  targets: Sequence[Target]
  shots: Sequence[int]
  source_tuning: base.Tuning
  source_batch_size: int
  target_tuning: base.Tuning
  coefficient: float
  validation_examples: int
  test_examples: int
  bank_size: int | None
  merge: Mapping[str, Any] | None

  def check(self) -> None:
    """Raises `UserError` for settings with which nothing could be compared."""
    _check(self.source_tasks, self.targets, self.shots, self.settings.initial_seeds)
    tasks = (*self.source_tasks, *(target.task for target in self.targets))
    base.check_tasks(tasks, self.settings, SPLITS)
    if self.merge is not None:
      _check_merge(self.merge, self.targets)

  def results(self, session: base.Session) -> dict[str, Any]:
    """Tunes sources and targets, measures them, and returns all numbers."""
    session.say("1/3 source prompts")
    self._tune_sources(session)
    seeds = self.settings.initial_seeds
    _write_vectors(session.folder, self.targets, seeds, self.merge)
    jobs = _jobs(
      session.folder, self.targets, seeds, self.initial_prompt, self.coefficient
    )
    for number in filter(None, self.shots):
      session.say(f"2/3 targets, {number} examples each")
      self._tune_targets(session, jobs, number)
    processes.wait_for_all("all prompts are tuned")
    session.say("3/3 scores on test")
    of_sources, scores = self._measure(session, jobs)
    results = {
      **session.head(),
      "starts": self._names(),
      **({} if self.merge is None else {"merge": dict(self.merge)}),
      "sources": of_sources,
      "targets": {target.task.name: target.roles() for target in self.targets},
      "shots": list(self.shots),
      "batch_sizes": {str(n): sampling.batch_size(n) for n in self.shots if n},
      "initial_seeds": list(seeds),
      "coefficient": self.coefficient,
      "source_steps": self.source_tuning.total_steps,
      "source_batch_size": self.source_batch_size,
      "total_steps": self.target_tuning.total_steps,
      "eval_period": self.target_tuning.eval_period,
      "best_metric": self.target_tuning.best_metric,
      "test_examples": self.test_examples,
      "scores": scores,
      "curves": starts.curves(jobs, self.shots),
      "samples": starts.samples(jobs, self.shots),
      "backbone": session.subject(),
      **session.machine(),
      "summary": starts.summarise(scores),
    }
    return results | {"seconds": session.seconds()}

  def _names(self) -> dict[str, str]:
    """Returns the starts with their names in the report."""
    found = {name: starts.STARTS[name] for name in self.targets[0].starts()}
    if self.merge is not None and "sum" in found:
      found["sum"] = f"merge of two vectors by {self.merge['rule']}"
    return found

  def _tune_sources(self, session: base.Session) -> None:
    settings = self.settings
    entries = bank.grid(
      self.source_tasks,
      settings.vocabulary,
      settings.lengths,
      session.folder / "sources",
      self.source_batch_size,
      settings.initial_seeds,
    )
    session.tune_bank(self.model, entries, self.source_tuning, self.bank_size)

  def _tune_targets(
    self, session: base.Session, jobs: Sequence[Job], number: int
  ) -> None:
    data = {
      (target.task.name, seed): TaskData(
        sampling.few_shot(target.task, number, seed),
        self.settings.vocabulary,
        self.settings.lengths,
        sampling.batch_size(number),
        seed,
        self.validation_examples,
      )
      for target, seed in itertools.product(self.targets, self.settings.initial_seeds)
    }
    entries = [
      bank.Entry(
        data[job.task.name, job.seed],
        job.run(number),
        initial_seed=job.seed,
        seed=job.seed,
        initial_prompt=job.start,
      )
      for job in jobs
    ]
    session.tune_bank(self.model, entries, self.target_tuning, self.bank_size)

  def _measure(
    self, session: base.Session, jobs: Sequence[Job]
  ) -> tuple[dict[str, list[float]], dict[str, dict[str, dict[str, list[float]]]]]:
    """Returns the scores of the sources on their own tasks, and `starts.Scores`."""
    seeds, settings = self.settings.initial_seeds, self.settings
    of_sources = {
      (task.name, seed): algebra.fold(
        sources.load(str(session.folder / "sources" / f"{task.name}-{seed}"), "best")
      )
      for task, seed in itertools.product(self.source_tasks, seeds)
    }
    begin = [(job.start, job.seed) for job in jobs]
    tuned = starts.tuned(
      jobs, self.shots, base.drawn(self.model, begin, session.backbone)
    )
    tasks = {task.name: task for task in self.source_tasks}
    targets = {target.task.name: target.task for target in self.targets}
    subject = {
      "sources": digests(
        {f"{task}-{seed}": p for (task, seed), p in of_sources.items()}
      ),
      "prompts": digests({"-".join(map(str, key)): p for key, p in tuned.items()}),
      "source_tasks": describe([*tasks.values()], ("test",)),
      "targets": describe([*targets.values()], ("test",)),
      "lengths": settings.lengths,
      "test_examples": self.test_examples,
      "versions": versions(),
    }
    measured = session.measured(subject, defaults_of(compare_starts))
    evaluator = session.evaluator(self.model)

    def score_sources() -> dict[str, list[float]]:
      test = base.Split(evaluator, tasks.values(), most=self.test_examples)
      found = test.scores(
        {key: (one.leaves, key[0]) for key, one in of_sources.items()}
      )
      return {name: [found[name, seed] for seed in seeds] for name in tasks}

    def score_targets() -> dict[str, dict[str, dict[str, list[float]]]]:
      test = base.Split(evaluator, targets.values(), most=self.test_examples)
      return starts.scores(test, {key: one.leaves for key, one in tuned.items()})

    return measured.get("sources", score_sources), measured.get("scores", score_targets)


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
  base.refuse_repeated("source tasks", known)
  base.refuse_repeated("targets", [target.task.name for target in targets])
  base.refuse_repeated("numbers in SHOTS", list(shots))
  base.refuse_repeated("INITIAL_SEEDS", list(seeds))
  for target in targets:
    roles = (target.related, target.second, target.unrelated)
    used = [name for name in roles if name is not None]
    for name in used:
      if name not in known:
        raise UserError(
          f"Target '{target.task.name}' starts from the vector of '{name}', which is not "
          f"among the sources {', '.join(known)}.{near_misses(name, known)} Give TARGETS "
          "whose related, second and unrelated are in SOURCES."
        )
    if len(set(used)) < len(used):
      raise UserError(
        f"Target '{target.task.name}' has one source in two roles ({', '.join(used)}), so "
        "two starts would be equal. Give different sources."
      )
    if [*target.starts()] != [*targets[0].starts()]:
      raise UserError(
        f"Target '{target.task.name}' has other starts than '{targets[0].task.name}' "
        f"({', '.join(target.starts())}; {', '.join(targets[0].starts())}), so they can't be "
        "averaged. Give all TARGETS a second and an unrelated source, or none."
      )
  for number in shots:
    sampling.batch_size(number)
  if most := max(shots):
    for target in targets:
      sampling.few_shot(target.task, most).examples("train")


def _check_merge(merge: Mapping[str, Any], targets: Sequence[Target]) -> None:
  """Raises `UserError` for a merge that cannot be of the two vectors of a start."""
  if targets[0].second is None:
    raise UserError(
      "MERGE says how the vector of SECOND is merged with RELATED's, and there is no "
      "second source. Set SECOND, or leave MERGE out."
    )
  if "of" in merge:
    raise UserError(
      "MERGE has 'of', and the two vectors are those of each target. Leave 'of' out."
    )
  candidates.check_merge({**merge, "of": ["related", "second"]}, "MERGE")
  if merge_settings.is_of_prompts(merge["rule"]):
    raise UserError(
      f"The merge rule '{merge['rule']}' makes a prompt, and MERGE a vector. Use another."
    )


def _vector_file(folder: pathlib.Path, seed: int, *names: str) -> pathlib.Path:
  return folder / "vectors" / f"{'+'.join(names)}-{seed}.safetensors"


def _write_vectors(
  folder: pathlib.Path,
  targets: Sequence[Target],
  seeds: Sequence[int],
  merge: Mapping[str, Any] | None,
) -> None:
  """Writes the vectors that the targets start from, and their sums, or merges."""
  needed = {names for target in targets for names in target.starts().values() if names}
  singles = {name for names in needed for name in names}
  for seed in seeds:
    vectors = {}
    for name in sorted(singles):
      run = str(folder / "sources" / f"{name}-{seed}")
      tuned, start = sources.load(run, "best"), sources.load(run, "initial")
      vectors[name] = algebra.diff(tuned, start)
    written: dict[tuple[str, ...], Loaded] = {(n,): v for n, v in vectors.items()}
    for pair in sorted(names for names in needed if len(names) > 1):
      both = [vectors[name] for name in pair]
      written[pair] = (
        algebra.sum_vectors(both)
        if merge is None
        else candidates.load_vector({**merge, "of": both})
      )
    if processes.is_writer():
      for names, vector in written.items():
        path = _vector_file(folder, seed, *names)
        store.write(path, vector.leaves, vector.provenance, overwrite=True)
  processes.wait_for_all("the vectors are written")


def _jobs(
  folder: pathlib.Path,
  targets: Sequence[Target],
  seeds: Sequence[int],
  initial_prompt: Initial,
  coefficient: float,
) -> list[Job]:
  def of(target: Target, seed: int) -> Iterator[tuple[str, Initial]]:
    for start, names in target.starts().items():
      if not names:
        yield start, initial_prompt
      else:
        yield (
          start,
          functools.partial(
            initial.from_vector,
            path=str(_vector_file(folder, seed, *names)),
            initial=initial_prompt,
            coefficient=coefficient,
          ),
        )

  return [
    Job(folder, target.task, name, seed, start)
    for target, seed in itertools.product(targets, seeds)
    for name, start in of(target, seed)
  ]

"""A study of what makes a vector move to another start, and add to another task's vector.

The axis is norm(vector) / norm(start) (docs/methods.md, (4.26)). Around base settings one
thing at a time is varied: the start, the learning rate, the steps, the prompt's length. Of
each variant the same is measured: a task's own prompt, its vector on other starts, sums of
two tasks, cosines and norms, and a control. The question and the variants are ours.
"""

import dataclasses
import functools
import inspect
import itertools
from collections.abc import Callable, Mapping, Sequence
from typing import Annotated, Any, ClassVar

from tpv_jax.banks import grid
from tpv_jax.banks.bank import Entry
from tpv_jax.core import files, tables
from tpv_jax.core.checks import (
  Lengths,
  NotEmpty,
  Positive,
  Seed,
  Size,
  Steps,
  check_fields,
  checked,
)
from tpv_jax.core.errors import UserError, near_misses
from tpv_jax.data.tasks import Task
from tpv_jax.data.vocabularies import Vocabulary
from tpv_jax.devices import processes
from tpv_jax.model import SoftPromptModel
from tpv_jax.prompts import plain
from tpv_jax.runs.run_settings import defaults_of
from tpv_jax.studies import base, moved
from tpv_jax.studies.measured import NAME
from tpv_jax.studies.report import moving as report
from tpv_jax.studies.report.writer import Report
from tpv_jax.training.initial import Initial
from tpv_jax.training.loop import Metric
from tpv_jax.training.optimizers import LearningRate
from tpv_jax.training.task_data import TaskData


@dataclasses.dataclass(frozen=True)
class Variant:
  """What is varied: how prompts start and how they are tuned.

  Attributes:
    start: a name of STARTS.
    scale: of that function; None for its default, or if it has none.
    rate: a factor of the learning rate.
    steps: optimizer steps of each prompt.
    length: tokens of the prompt, P.
  """

  start: str
  scale: Positive | None
  rate: Positive
  steps: Steps
  length: Size

  def __post_init__(self) -> None:
    check_fields(self)

  @property
  def name(self) -> str:
    """All values as one word, which names a folder."""
    scale = "" if self.scale is None else f"-{self.scale:g}"
    return (
      f"{self.start}{scale}-rate-{self.rate:g}-steps-{self.steps}-length-{self.length}"
    )

  def with_changes(self, changes: Mapping[str, Any]) -> "Variant":
    """Returns another variant; a new start without a scale has its own default.

    Raises:
      UserError: a key is none of a variant's, or a value is refused.
    """
    known = [field.name for field in dataclasses.fields(self)]
    for key in changes:
      if key not in known:
        raise UserError(
          f"VARIANTS has '{key}', which is nothing that varies.{near_misses(key, known)} "
          f"Choose among {', '.join(known)}."
        )
    own_scale = {"scale": None} if "start" in changes else {}
    return dataclasses.replace(self, **{**own_scale, **changes})


@checked
def moving(
  model: SoftPromptModel,
  backbone: str,
  tasks: Sequence[Task],
  vocabulary: Vocabulary,
  lengths: Lengths,
  output_dir: files.PathLike,
  starts: Mapping[str, Callable[..., Any]],
  start: str,
  scale: Positive | None,
  learning_rate: LearningRate,
  total_steps: Steps,
  batch_size: Size,
  eval_period: Steps,
  variants: Sequence[Mapping[str, Any]],
  initial_seeds: Sequence[Seed] = (0, 1),
  coefficients: Annotated[Sequence[float], NotEmpty()] = (0.25, 0.5, 0.75, 1.0),
  validation_examples: Size = 250,
  search_examples: Size = 100,
  test_examples: Size | None = None,
  best_metric: Metric = "loss",
  as_bank: bool = False,
  overwrite: bool = False,
  progress: bool = True,
  config: Callable[[], str] | None = None,
  command: str | None = None,
) -> dict[str, Any]:
  """Runs the whole study and returns its results, which it writes and prints.

  Writes `report.md`, `results.json`, `results.csv`, pictures, the runs and the vectors to
  `output_dir`. Started again, it continues: finished runs are not trained again, and what
  was measured on them (`measured.json` of each variant) is not measured again; a variant
  that is added later is all that is trained. `results.csv` grows with each variant.

  Args:
    model: has a trainable plain prompt; its length is that of the base variant.
    backbone: what `load_backbone` takes.
    tasks: at least two, all with labels.
    vocabulary: the backbone's.
    lengths: `{'inputs': T, 'targets': L}` in tokens, EOS included.
    output_dir: the study's folder.
    starts: name -> function of `training.initial`, (table, seed, length) -> [P, D]; one
      that takes `label_token_ids` gets the label words of all tasks.
    start: the name of the base variant's start.
    scale: of that start; None for the function's default.
    learning_rate: a schedule: step, counted from 0, to learning rate.
    total_steps: optimizer steps of the base variant.
    batch_size: training examples per step.
    eval_period: steps between validations, which choose the best prompt.
    variants: what each changes of the base variant, which is always measured: 'start',
      'scale', 'rate' (a factor of the learning rate), 'steps', 'length'.
    initial_seeds: the initial prompts; means and deviations are over them.
    coefficients: tried on validation for each sum.
    validation_examples: the number used to choose the best prompt.
    search_examples: validation examples per task in the search of coefficients.
    test_examples: the number used, from the start of the test split; None uses all.
    best_metric: the metric that chooses a run's best prompt.
    as_bank: train all prompts of a variant at once (`bank.train_bank`).
    overwrite: train runs again that are finished or have other settings, and measure all
      of them again.
    progress: show progress.
    config: returns the text of config.gin.
    command: the command line, for the report.

  Raises:
    UserError: fewer than two tasks or initial prompts, a task without labels, a variant
      that cannot be; a folder that holds something else, or runs with other settings.
  """
  if not isinstance(model.prompt, plain.Prompt):
    raise UserError(
      "This study varies the start and the length of plain prompts, and PROMPT is none. "
      "Set PROMPT = @plain.Prompt()."
    )
  first = Variant(start, scale, 1.0, total_steps, model.prompt.length)
  return base.conduct(
    Moving(
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
      tasks,
      starts,
      [first, *(first.with_changes(one) for one in variants)],
      learning_rate,
      batch_size,
      eval_period,
      best_metric,
      coefficients,
      validation_examples,
      search_examples,
      test_examples,
      as_bank,
    )
  )


@dataclasses.dataclass(frozen=True)
class Moving:
  """The study of what moves and adds; the attributes are described at `moving`.

  `variants` are whole, the base variant first.
  """

  work: ClassVar[str] = "study of moving"
  part: ClassVar[str] = "vectors"
  report: ClassVar[Report] = report
  run: ClassVar[Callable[..., dict[str, Any]]] = staticmethod(moving)

  settings: base.Settings
  model: SoftPromptModel
  tasks: Sequence[Task]
  starts: Mapping[str, Callable[..., Any]]
  variants: Sequence[Variant]
  learning_rate: LearningRate
  batch_size: int
  eval_period: int
  best_metric: Metric
  coefficients: Sequence[float]
  validation_examples: int
  search_examples: int
  test_examples: int | None
  as_bank: bool

  def check(self) -> None:
    """Raises `UserError` for tasks, initial prompts or variants that can't be compared."""
    base.check_vectors(self.tasks, self.settings)
    base.refuse_repeated("VARIANTS", [one.name for one in self.variants])
    for variant in self.variants:
      _check_start(variant, self.starts)
      if not float(self.learning_rate(variant.steps - 1)) > 0:
        raise UserError(
          f"The learning rate is 0 before the {variant.steps} steps of a variant end, so "
          "the last ones would change nothing. Set LEARNING_RATE_FN = "
          "@optimizers.constant()."
        )

  def results(self, session: base.Session) -> dict[str, Any]:
    """Tunes and measures one variant after the other, and returns all numbers."""
    evaluator = session.evaluator(self.model)
    splits = moved.Splits(
      base.Split(evaluator, self.tasks, most=self.test_examples),
      base.Split(evaluator, self.tasks, "validation", self.search_examples),
    )
    data = {
      (task.name, seed): TaskData(
        task,
        self.settings.vocabulary,
        self.settings.lengths,
        self.batch_size,
        seed,
        self.validation_examples,
      )
      for task, seed in itertools.product(self.tasks, self.settings.initial_seeds)
    }
    found = []
    for number, variant in enumerate(self.variants, 1):
      session.say(f"{number}/{len(self.variants)} {variant.name}")
      evaluator.title = f"{number}/{len(self.variants)}"
      found.append(self._of_variant(session, variant, data, splits))
      if processes.is_writer():
        rows = tables.csv_text(report.csv_rows(found, self.settings.initial_seeds))
        files.write_text(session.folder / "results.csv", rows)
    test = {task.name: len(task.examples("test")) for task in self.tasks}
    return {
      **session.head(),
      "tasks": list(test),
      "initial_seeds": list(self.settings.initial_seeds),
      "batch_size": self.batch_size,
      "best_metric": self.best_metric,
      "coefficients": list(self.coefficients),
      "test_examples": {
        name: min(n, self.test_examples or n) for name, n in test.items()
      },
      "variants": found,
      "backbone": session.subject(),
      **session.machine(),
      "summary": moved.summarise(found),
      "seconds": session.seconds(),
    }

  def _of_variant(
    self,
    session: base.Session,
    variant: Variant,
    data: Mapping[tuple[str, int], TaskData],
    splits: moved.Splits,
  ) -> dict[str, Any]:
    """Tunes the prompts of a variant, and returns what is measured of them."""
    model = self.model.with_prompt(
      plain.Prompt(variant.length, self.model.network.emb_dim)
    )
    start = self._start(variant)
    self._tune(session, variant, model, start, data)
    seeds = self.settings.initial_seeds
    (fresh,) = base.drawn(model, [(start, max(seeds) + 1)], session.backbone)
    vectors = moved.Vectors(session.folder, variant.name, self.tasks, seeds, fresh)
    measured = session.measured(
      vectors.subject()
      | {
        "lengths": self.settings.lengths,
        "coefficients": list(self.coefficients),
        "search_examples": self.search_examples,
        "test_examples": self.test_examples,
      },
      defaults_of(moving),
      name=f"runs/{variant.name}/{NAME}",
    )
    rates = [float(self.learning_rate(step)) for step in range(variant.steps)]
    return {
      "name": variant.name,
      "changed": _changed(variant, self.variants[0]),
      "settings": dataclasses.asdict(variant)
      | {"learning_rate": float(f"{variant.rate * max(rates):.5g}")},
      **vectors.measure(measured, splits, self.coefficients),
    }

  def _start(self, variant: Variant) -> Initial:
    """Returns the function (embedding table, seed) -> start of a variant."""
    function = self.starts[variant.start]
    given: dict[str, Any] = {"length": variant.length}
    if variant.scale is not None:
      given["scale"] = variant.scale
    if "label_token_ids" in inspect.signature(function).parameters:
      words = dict.fromkeys(word for task in self.tasks for word in task.labels or ())
      encode = self.settings.vocabulary.encode_target
      given["label_token_ids"] = [encode(word) for word in words]
    return functools.partial(function, **given)

  def _tune(
    self,
    session: base.Session,
    variant: Variant,
    model: SoftPromptModel,
    start: Initial,
    data: Mapping[tuple[str, int], TaskData],
  ) -> None:
    folder = session.folder / "runs" / variant.name
    entries = [
      Entry(
        one,
        folder / grid.name_of(task, seed, None),
        initial_seed=seed,
        seed=seed,
        initial_prompt=start,
      )
      for (task, seed), one in data.items()
    ]
    tuning = base.Tuning(
      _scaled(self.learning_rate, variant.rate),
      None,
      variant.steps,
      min(self.eval_period, variant.steps),
      self.best_metric,
      checkpoints=False,
    )
    if self.as_bank:
      session.tune_bank(model, entries, tuning)
    else:
      session.tune_each([(model, entry) for entry in entries], tuning, "tuning prompts")
    processes.wait_for_all("all prompts are tuned")


@functools.cache
def _scaled(learning_rate: LearningRate, rate: float) -> LearningRate:
  # One object for equal variants: `steps.build` caches by its arguments.
  return learning_rate if rate == 1 else lambda step: rate * learning_rate(step)


def _check_start(variant: Variant, starts: Mapping[str, Callable[..., Any]]) -> None:
  """Raises `UserError` if a variant's start is none, or takes no scale."""
  if variant.start not in starts:
    raise UserError(
      f"There is no start '{variant.start}'.{near_misses(variant.start, starts)} The "
      f"starts are {', '.join(starts)}."
    )
  taken = inspect.signature(starts[variant.start]).parameters
  if variant.scale is not None and "scale" not in taken:
    raise UserError(
      f"The start '{variant.start}' takes no scale, and a variant has {variant.scale:g}. "
      "Leave it out."
    )


def _changed(variant: Variant, first: Variant) -> dict[str, Any]:
  """Returns what distinguishes a variant from the base variant."""
  mine, others = dataclasses.asdict(variant), dataclasses.asdict(first)
  return {
    name: value
    for name, value in mine.items()
    if value != others[name] and value is not None
  }

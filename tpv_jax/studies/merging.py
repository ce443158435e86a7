"""A comparison of merge rules: which one makes one prompt for several tasks?

Ours. Prompts are tuned as in `study`. For each set of tasks and each initial prompt, every
rule of the registry chooses its settings on validation with the same budget, and all
winners are scored on test, beside what a merge has to beat: the initial prompt, the best
single prompt, and a prompt tuned on all tasks of the set together. The prompts one after
the other (concat) and the plain sum (task_arithmetic) are rules of the registry.
"""

import dataclasses
import functools
import itertools
from collections.abc import Callable, Mapping, Sequence
from typing import Any, ClassVar

import numpy as np
from jaxtyping import Float

from tpv_jax.banks import bank, grid
from tpv_jax.core import files, identity
from tpv_jax.core.checks import Lengths, Seed, Size, Steps, checked
from tpv_jax.core.errors import UserError
from tpv_jax.data import transforms
from tpv_jax.data.tasks import Task
from tpv_jax.data.vocabularies import Vocabulary
from tpv_jax.devices import processes
from tpv_jax.evaluation.evaluator import Prompt
from tpv_jax.formats import sources
from tpv_jax.model import SoftPromptModel
from tpv_jax.runs.run_settings import defaults_of
from tpv_jax.studies import base, hits, merge_settings
from tpv_jax.studies.arithmetic import Measurements
from tpv_jax.studies.report import merging as report
from tpv_jax.studies.report.writer import Report
from tpv_jax.training.initial import Initial
from tpv_jax.training.loop import Metric
from tpv_jax.training.optimizers import LearningRate
from tpv_jax.vectors import algebra
from tpv_jax.vectors.merging import registry
from tpv_jax.vectors.merging.merge import merge

SUM = "task_arithmetic"
"""The rule that all are compared with."""

BASELINES = ("initial", "best_single", "joint")
"""What is not a merge: the untuned prompt, one task's own prompt, a jointly tuned one."""


@checked
def compare_rules(
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
  rules: Sequence[str] | None = None,
  larger_sets: Sequence[Size] | None = None,
  budget: Size = 12,
  search_examples: Size = 100,
  best_metric: Metric = "loss",
  bank_size: Size | None = None,
  overwrite: bool = False,
  progress: bool = True,
  config: Callable[[], str] | None = None,
  command: str | None = None,
) -> dict[str, Any]:
  """Runs the whole comparison and returns its results, which it writes and prints.

  Writes `report.md`, `results.json`, a PNG picture, the runs and the vectors to
  `output_dir`. Started again, it continues: finished runs are not trained again, and what
  was measured on them (`measured.json`) is not measured again.

  Args:
    model: has a trainable prompt.
    backbone: what `load_backbone` takes.
    tasks: at least two, all with labels.
    vocabulary: the backbone's.
    lengths: `{'inputs': T, 'targets': L}` in tokens, EOS included.
    output_dir: the comparison's folder.
    initial_prompt: (embedding table, seed) -> [P, D].
    learning_rate: a schedule: step, counted from 0, to learning rate.
    total_steps: optimizer steps of each prompt, also of one for several tasks.
    batch_size: training examples per step.
    eval_period: steps between validations, which choose the best prompt.
    initial_seeds: the initial prompts; means and deviations are over them.
    rules: the names of merge rules; None for all of the registry. The plain sum is always
      compared.
    larger_sets: beside all pairs, sets of the first so many tasks; None for all tasks.
    budget: how many settings each rule tries on validation, for a set and an initial prompt.
    search_examples: validation examples per task in that search.
    best_metric: the metric that chooses a run's best prompt.
    bank_size: prompts that are tuned at once; None for all.
    overwrite: train runs again that are finished or have other settings, and measure all
      of them again.
    progress: show progress.
    config: returns the text of config.gin.
    command: the command line, for the report.

  Raises:
    UserError: fewer than two tasks or initial prompts, or a task without labels; a rule
      that is not there; a budget that is too small for a rule; a folder that holds
      something else, or runs with other settings.
  """
  names = list(registry.RULES) if rules is None else list(rules)
  if larger_sets is None:
    larger_sets = [len(tasks)] if len(tasks) > 2 else []
  return base.conduct(
    Merging(
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
      base.Tuning(learning_rate, initial_prompt, total_steps, eval_period, best_metric),
      model,
      tasks,
      names if SUM in names else [SUM, *names],
      larger_sets,
      batch_size,
      budget,
      search_examples,
      bank_size,
    )
  )


@dataclasses.dataclass(frozen=True)
class Merging:
  """The comparison of merge rules; the attributes are described at `compare_rules`."""

  work: ClassVar[str] = "comparison of merge rules"
  part: ClassVar[str] = "vectors"
  report: ClassVar[Report] = report
  run: ClassVar[Callable[..., dict[str, Any]]] = staticmethod(compare_rules)

  settings: base.Settings
  tuning: base.Tuning
  model: SoftPromptModel
  tasks: Sequence[Task]
  rules: Sequence[str]
  larger_sets: Sequence[int]
  batch_size: int
  budget: int
  search_examples: int
  bank_size: int | None

  @property
  def sets(self) -> list[tuple[str, ...]]:
    """The sets of tasks: all pairs, and the first so many."""
    names = [task.name for task in self.tasks]
    pairs = itertools.combinations(names, 2)
    return [*pairs, *(tuple(names[:size]) for size in self.larger_sets)]

  def check(self) -> None:
    """Raises `UserError` for tasks, rules or a budget that can't be compared."""
    base.check_vectors(self.tasks, self.settings)
    for size in self.larger_sets:
      if not 2 < size <= len(self.tasks):
        raise UserError(
          f"LARGER_SETS has {size}; all pairs are compared anyway, and there are "
          f"{len(self.tasks)} tasks. Give numbers from 3 to the number of tasks."
        )
    base.refuse_repeated("LARGER_SETS", self.larger_sets)
    base.refuse_repeated("RULES", self.rules)
    for rule in self.rules:
      if (count := len(merge_settings.options_of(rule))) > self.budget:
        raise UserError(
          f"BUDGET is {self.budget}, and the merge rule '{rule}' has {count} combinations "
          f"of options to try. Set BUDGET to at least {count}."
        )

  def results(self, session: base.Session) -> dict[str, Any]:
    """Tunes the prompts, merges their vectors, and returns all numbers."""
    self._tune(session)
    tuned = session.seconds()
    seeds = self.settings.initial_seeds
    evaluator = session.evaluator(self.model)
    made = Measurements(
      evaluator, self.tasks, seeds, session.folder, (), self.search_examples
    )
    compared = _Compared(made, self.rules, self.budget, self._joint(session))
    measured = session.measured(
      compared.subject(), defaults_of(compare_rules, type(self.model)), self.model
    )
    evaluator.title = "own prompts"
    own = measured.get("own", compared.own)
    found: dict[tuple[str, ...], list[dict[str, Any]]] = {}
    for names in self.sets:
      evaluator.title = " + ".join(names)
      # One set and initial prompt after the other, so that a killed study keeps them.
      found[names] = [
        measured.get(
          f"merges-{'+'.join(names)}-{seed}",
          functools.partial(compared.merges, names, seed),
        )
        for seed in seeds
      ]
    rows = _rows_of(found, own, seeds)
    sets = [_of_set(names, found[names], rows) for names in self.sets]
    results = {
      **session.head(),
      "tasks": [task.name for task in self.tasks],
      "initial_seeds": list(seeds),
      "rules": list(self.rules),
      "budget": self.budget,
      "search_examples": self.search_examples,
      "total_steps": self.tuning.total_steps,
      "test_examples": {task.name: len(task.examples("test")) for task in self.tasks},
      "backbone": session.subject(),
      "own": {
        task.name: hits.scores(rows[(task.name,), "own", task.name])
        for task in self.tasks
      },
      "sets": sets,
      **session.machine(),
      "summary": summarise(sets, rows),
    }
    return results | {"seconds": {"tuning": tuned, "all": session.seconds()}}

  def _tune(self, session: base.Session) -> None:
    """Tunes a prompt for each task and for each set, from each initial prompt."""
    settings, by_name = self.settings, {task.name: task for task in self.tasks}
    joint = [
      transforms.mixture("+".join(names), [by_name[name] for name in names])
      for names in self.sets
    ]
    entries = [
      entry
      for tasks, folder in ((self.tasks, "runs"), (joint, "joint"))
      for entry in bank.grid(
        tasks,
        settings.vocabulary,
        settings.lengths,
        session.folder / folder,
        self.batch_size,
        settings.initial_seeds,
      )
    ]
    session.tune_bank(self.model, entries, self.tuning, self.bank_size)
    processes.wait_for_all("all prompts are tuned")

  def _joint(self, session: base.Session) -> dict[tuple[tuple[str, ...], int], Prompt]:
    """Returns the prompts tuned on all tasks of a set, folded."""
    found: dict[tuple[tuple[str, ...], int], Prompt] = {}
    for names, seed in itertools.product(self.sets, self.settings.initial_seeds):
      run = session.folder / "joint" / grid.name_of("+".join(names), seed, None)
      found[names, seed] = algebra.fold(sources.load(str(run), "best")).leaves
    return found


Tried = tuple[dict[str, Any], Prompt]
"""Settings, and the prompt that they give."""

Rows = Mapping[tuple[tuple[str, ...], str, str], Float[np.ndarray, "S R"]]
"""(set, method, task) -> the hits of each start on each test row."""


@dataclasses.dataclass(frozen=True)
class _Compared:
  """The measurements: of single prompts, and of a set of tasks on an initial prompt."""

  made: Measurements
  rules: Sequence[str]
  budget: int
  joint: Mapping[tuple[tuple[str, ...], int], Prompt]

  def subject(self) -> dict[str, Any]:
    """Returns what the measurements depend on, except decoding and the backbone."""
    joint = {
      f"{'+'.join(names)}-{seed}": identity.prompt_digest(leaves or {})
      for (names, seed), leaves in self.joint.items()
    }
    return {
      **self.made.subject(),
      "joint": joint,
      "rules": list(self.rules),
      "budget": self.budget,
      "options": {name: list(some) for name, some in merge_settings.OPTIONS.items()},
      "longest": merge_settings.LONGEST,
    }

  def own(self) -> dict[str, dict[str, str]]:
    """Returns the hits of each task's own prompts, by task and initial prompt."""
    made = self.made
    asked: dict[Any, tuple[Prompt, str]] = {
      (name, seed): (made.prompts.folded(name, seed), name)
      for name, seed in itertools.product(made.names, made.seeds)
    }
    return hits.to_json(made.test.hits(asked))

  def merges(self, names: tuple[str, ...], seed: int) -> dict[str, Any]:
    """Returns the chosen settings and the test hits of all methods, by method.

    'left_out' says why methods are missing.
    """
    tried: dict[str, list[Tried]] = {
      "initial": [({}, self.made.prompts.start(seed))],
      "best_single": [
        ({"task": one}, self.made.prompts.folded(one, seed)) for one in names
      ],
      "joint": [({}, self.joint[names, seed])],
    }
    left_out = {}
    for rule in self.rules:
      try:
        tried[rule] = self._tried(rule, names, seed)
      except UserError as error:
        left_out[rule] = str(error)
    chosen = self._chosen(tried, names)
    asked: dict[Any, tuple[Prompt, str]] = {
      (method, name): (tried[method][place][1], name)
      for method, place in chosen.items()
      for name in names
    }
    return {
      "chosen": {method: tried[method][place][0] for method, place in chosen.items()},
      "hits": hits.to_json(self.made.test.hits(asked)),
      "left_out": left_out,
    }

  def _tried(self, rule: str, names: Sequence[str], seed: int) -> list[Tried]:
    if merge_settings.is_of_prompts(rule):
      prompts = [self.made.prompts.best[name, seed] for name in names]
      return [({}, algebra.fold(merge(prompts, rule)).leaves)]
    vectors = [self.made.prompts.vectors[name, seed] for name in names]
    return [
      (settings, self.made.prompts.applied(merged, seed, coefficient))
      for settings, merged, coefficient in merge_settings.candidates(
        rule, vectors, self.budget
      )
    ]

  def _chosen(
    self, tried: Mapping[str, Sequence[Tried]], names: Sequence[str]
  ) -> dict[str, int]:
    """Returns which try of each method is best on validation; of equal ones the first.

    Exact match decides, then the accuracy among labels, both averaged over the tasks.
    """
    asked: dict[Any, tuple[Prompt, str]] = {
      (method, place, name): (leaves, name)
      for method, some in tried.items()
      for place, (_, leaves) in enumerate(some)
      for name in names
      if len(some) > 1
    }
    found = self.made.validation.hits(asked)

    def score(method: str, place: int) -> tuple[float, ...]:
      return base.mean_hits(found, [(method, place, name) for name in names])

    return {
      method: max(range(len(some)), key=functools.partial(score, method))
      if len(some) > 1
      else 0
      for method, some in tried.items()
    }


def _rows_of(
  found: Mapping[tuple[str, ...], Sequence[Mapping[str, Any]]],
  own: Mapping[str, Mapping[str, str]],
  seeds: Sequence[int],
) -> Rows:
  """Returns the exact matches of all methods and of own prompts; a method that was left out
  on one initial prompt of a set is left out on all."""
  rows: dict[tuple[tuple[str, ...], str, str], Float[np.ndarray, "S R"]] = {}
  for task in dict.fromkeys(itertools.chain(*found)):
    some = [hits.rows(own[hits.name_of((task, seed))]["exact_match"]) for seed in seeds]
    rows[(task,), "own", task] = np.stack(some)
  for names, by_seed in found.items():
    methods = [
      method
      for method in by_seed[0]["chosen"]
      if all(method in one["chosen"] for one in by_seed)
    ]
    for method, task in itertools.product(methods, names):
      some = [
        hits.rows(one["hits"][hits.name_of((method, task))]["exact_match"])
        for one in by_seed
      ]
      rows[names, method, task] = np.stack(some)
  return rows


def _of_set(
  names: tuple[str, ...], found: Sequence[Mapping[str, Any]], rows: Rows
) -> dict[str, Any]:
  """Returns the scores of a set by method and task, and its retention, by start."""
  methods = {}
  for method in dict.fromkeys(m for some, m, _ in rows if some == names):
    scores = {task: hits.scores(rows[names, method, task]) for task in names}
    methods[method] = {
      "chosen": [one["chosen"][method] for one in found],
      "scores": scores,
      "retention": {
        task: [
          score / own if own else None
          for score, own in zip(
            scores[task], hits.scores(rows[(task,), "own", task]), strict=True
          )
        ]
        for task in names
      },
    }
  left_out = {rule: why for one in found for rule, why in one["left_out"].items()}
  return {"tasks": list(names), "methods": methods, "left_out": left_out}


def summarise(sets: Sequence[Mapping[str, Any]], rows: Rows) -> dict[str, Any]:
  """Returns what the report opens with: {number of tasks: {method: means}}.

  `score`: the mean exact match on test. `retention`: of score / own score; `worst`: of the
  lowest one in a set. `kept`: the part of the sets and starts where every task keeps at
  least `base.KEPT`. All are means over sets and starts; tasks that their own prompt does not
  solve at all have no retention. `minus_sum`: the mean difference to the plain sum and its
  interval (`bootstrap.paired`); each task's rows are averaged over the sets first.
  `tasks`: the mean retention of each task.
  """
  summary: dict[str, Any] = {}
  for size in dict.fromkeys(len(one["tasks"]) for one in sets):
    some = [one for one in sets if len(one["tasks"]) == size]
    methods = dict.fromkeys(m for one in some for m in one["methods"])
    summary[str(size)] = {
      method: _means(method, [one for one in some if method in one["methods"]], rows)
      for method in methods
    }
  return summary


def _means(
  method: str, sets: Sequence[Mapping[str, Any]], rows: Rows
) -> dict[str, Any]:
  scores: list[float] = []
  kept: list[float] = []
  worst: list[float] = []
  by_task: dict[str, list[float]] = {}
  differences: dict[str, list[Float[np.ndarray, "S R"]]] = {}
  for one in sets:
    names, found = tuple(one["tasks"]), one["methods"][method]
    scores += [score for some in found["scores"].values() for score in some]
    for starts in zip(*found["retention"].values(), strict=True):
      known = [value for value in starts if value is not None]
      if known:
        worst.append(min(known))
        kept.append(min(known) >= base.KEPT)
    for task in names:
      known = [value for value in found["retention"][task] if value is not None]
      by_task.setdefault(task, []).extend(known)
      if (names, SUM, task) in rows:
        difference = rows[names, method, task] - rows[names, SUM, task]
        differences.setdefault(task, []).append(difference)
  retention = [value for some in by_task.values() for value in some]
  by_sets = [np.mean(some, axis=0) for some in differences.values()]
  return {
    "sets": len(sets),
    "score": float(np.mean(scores)),
    "retention": _mean(retention),
    "worst": _mean(worst),
    "kept": _mean(kept),
    "minus_sum": hits.interval(by_sets),
    "tasks": {task: _mean(some) for task, some in by_task.items()},
  }


def _mean(values: Sequence[float]) -> float | None:
  return float(np.mean(values)) if values else None

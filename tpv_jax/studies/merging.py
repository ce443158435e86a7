"""A comparison of merge rules: which one makes one prompt for several tasks?

Ours. Prompts are tuned as in `study`. For each set of tasks and each initial prompt, every
rule of the registry chooses its settings on validation with the same budget, and all
winners are scored on test, beside what a merge has to beat: the initial prompt, the best
single prompt, and a prompt tuned on all tasks of the set together. The prompts one after
the other (concat) and the plain sum (task_arithmetic) are rules of the registry.

Rules that read data have the same budget of evaluations on validation. What they compute
besides, rows with a forward and a backward pass, is counted and stated.
"""

import dataclasses
import functools
import itertools
from collections.abc import Callable, Mapping, Sequence
from typing import Any, ClassVar

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
from tpv_jax.studies import base, data_merges, hits, merge_settings, merge_summary
from tpv_jax.studies.arithmetic import Measurements
from tpv_jax.studies.data_merges import DataMerges
from tpv_jax.studies.measured import Measured
from tpv_jax.studies.merge_summary import SUM
from tpv_jax.studies.report import merging as report
from tpv_jax.studies.report.writer import Report
from tpv_jax.training.initial import Initial
from tpv_jax.training.loop import Metric
from tpv_jax.training.optimizers import LearningRate
from tpv_jax.vectors import algebra
from tpv_jax.vectors.merging import merge, registry

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
  test_examples: Size | None = None,
  data_options: Mapping[str, Mapping[str, Any]] | None = None,
  joint: bool = True,
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
  was measured on them (`measured.json`, and a file for each rule that reads data) is not
  measured again.

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
    rules: the names of merge rules, also of those that read data; None for all of the
      registry. The plain sum is always compared.
    larger_sets: beside all pairs, sets of the first so many tasks; None for all tasks.
    budget: how many settings each rule tries on validation, for a set and an initial prompt.
    search_examples: validation examples per task in that search.
    test_examples: the number used, from the start of the test split; None for all.
    data_options: options of rules that read data, by the rule's name. Of others the values
      in `merge_settings.OPTIONS_BY_DATA` are tried, or they have the defaults there.
    joint: tune a prompt on all tasks of each set, which a merge has to be compared with;
      without it, runs that are there already are all that is needed.
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
  names = [*registry.RULES, *registry.BY_DATA] if rules is None else list(rules)
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
      test_examples,
      data_options or {},
      joint,
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
  test_examples: int | None
  data_options: data_merges.Options
  joint: bool
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
      registry.check(rule)
    data_merges.check(self.data_options)
    for rule in self.data_options:
      if rule not in self.rules:
        raise UserError(
          f"DATA_OPTIONS has options of '{rule}', which is not compared. Add it to RULES, or "
          "leave its options out."
        )
    for rule in self.rules:
      merge_settings.check_budget(rule, self.budget, self.data_options.get(rule))

  def results(self, session: base.Session) -> dict[str, Any]:
    """Tunes the prompts, merges their vectors, and returns all numbers."""
    self._tune(session)
    tuned = session.seconds()
    seeds = self.settings.initial_seeds
    evaluator = session.evaluator(self.model)
    tasks = [task.shortened("test", self.test_examples) for task in self.tasks]
    made = Measurements(
      evaluator, tasks, seeds, session.folder, (), self.search_examples
    )
    data = DataMerges(
      evaluator,
      {task.name: task for task in tasks},
      made.prompts,
      self.data_options,
      self.budget,
      self.search_examples,
    )
    own, found = self._measure(session, made, data)
    rows = merge_summary.rows_of(found, own, seeds)
    sets = [merge_summary.of_set(names, found[names], rows) for names in self.sets]
    results = {
      **session.head(),
      "tasks": [task.name for task in self.tasks],
      "initial_seeds": list(seeds),
      "rules": list(self.rules),
      "budget": self.budget,
      "search_examples": self.search_examples,
      "data_options": {
        rule: [merge.settings_of(one) for _, one in data.rules(rule)]
        for rule in self._by_data
      },
      "total_steps": self.tuning.total_steps,
      "test_examples": {task.name: len(task.examples("test")) for task in tasks},
      "backbone": session.subject(),
      "own": {
        task.name: hits.scores(rows[(task.name,), "own", task.name])
        for task in self.tasks
      },
      "sets": sets,
      **session.machine(),
      "summary": merge_summary.summarise(sets, rows),
    }
    return results | {"seconds": {"tuning": tuned, "all": session.seconds()}}

  @property
  def _by_data(self) -> list[str]:
    """The rules that read data."""
    return [rule for rule in self.rules if rule in registry.BY_DATA]

  @property
  def _free(self) -> list[str]:
    """The rules that read no data."""
    return [rule for rule in self.rules if rule not in registry.BY_DATA]

  def _measure(
    self, session: base.Session, made: Measurements, data: DataMerges
  ) -> tuple[dict[str, dict[str, str]], merge_summary.Found]:
    """Returns the hits of own prompts, and of each set, by start, what was measured."""
    compared = _Compared(made, self._free, self.budget, self._joint(session))

    def measured(more: Mapping[str, Any], name: str) -> Measured:
      defaults = defaults_of(compare_rules, type(self.model))
      return session.measured(more, defaults, self.model, name)

    free = measured(compared.subject(), "measured.json")
    # A file for each rule, so that one joins a comparison that was measured without it.
    by_data = {
      rule: measured({**made.subject(), **data.subject(rule)}, f"measured_{rule}.json")
      for rule in self._by_data
    }

    def of_start(names: tuple[str, ...], seed: int) -> dict[str, Any]:
      name = f"{'+'.join(names)}-{seed}"
      merges = functools.partial(compared.merges, names, seed)
      parts = [free.get(f"merges-{name}", merges) | {"work": self._work(names)}]
      for rule, one in by_data.items():
        merge_of = functools.partial(compared.by_data, data, rule, names, seed)
        parts.append(one.get(name, merge_of))
      return merge_summary.joined(parts)

    made.evaluator.title = "own prompts"
    own = free.get("own", compared.own)
    found: dict[tuple[str, ...], list[dict[str, Any]]] = {}
    for names in self.sets:
      made.evaluator.title = " + ".join(names)
      # One set and initial prompt after the other, so that a killed study keeps them.
      found[names] = [of_start(names, seed) for seed in made.seeds]
    return own, found

  def _work(self, names: Sequence[str]) -> dict[str, dict[str, int]]:
    """Returns what each method computes that reads no data, as `DataMerges.tried` counts.

    The rows of the jointly tuned prompt are those of its training.
    """
    evaluations = {
      **dict.fromkeys(BASELINES, 0),
      "best_single": len(names),
      **{rule: merge_settings.evaluations(rule, self.budget) for rule in self._free},
    }
    rows = {"joint": self.tuning.total_steps * self.batch_size}
    return {
      method: {"evaluations": number, "gradient_rows": rows.get(method, 0)}
      for method, number in evaluations.items()
    }

  def _tune(self, session: base.Session) -> None:
    """Tunes a prompt for each task and for each set, from each initial prompt."""
    settings, by_name = self.settings, {task.name: task for task in self.tasks}
    groups = [(self.tasks, "runs")]
    if self.joint:
      mixtures = [
        transforms.mixture("+".join(names), [by_name[name] for name in names])
        for names in self.sets
      ]
      groups.append((mixtures, "joint"))
    entries = [
      entry
      for tasks, folder in groups
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
    if not self.joint:
      return found
    for names, seed in itertools.product(self.sets, self.settings.initial_seeds):
      run = session.folder / "joint" / grid.name_of("+".join(names), seed, None)
      found[names, seed] = algebra.fold(sources.load(str(run), "best")).leaves
    return found


Tried = tuple[dict[str, Any], Prompt]
"""Settings, and the prompt that they give."""


@dataclasses.dataclass(frozen=True)
class _Compared:
  """The measurements: of single prompts, and of a set of tasks on an initial prompt."""

  made: Measurements
  rules: Sequence[str]  # Those that read no data.
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
    """Returns the chosen settings and the test hits of methods that read no data.

    'left_out' says why methods are missing.
    """
    tried: dict[str, list[Tried]] = {
      "initial": [({}, self.made.prompts.start(seed))],
      "best_single": [
        ({"task": one}, self.made.prompts.folded(one, seed)) for one in names
      ],
    }
    if self.joint:
      tried["joint"] = [({}, self.joint[names, seed])]
    left_out = {}
    for rule in self.rules:
      try:
        tried[rule] = self._tried(rule, names, seed)
      except UserError as error:
        left_out[rule] = str(error)
    return {**self._scored(tried, names), "left_out": left_out}

  def by_data(
    self, data: DataMerges, rule: str, names: tuple[str, ...], seed: int
  ) -> dict[str, Any]:
    """Returns the same of a rule that reads data, and its work."""
    try:
      candidates, cost = data.tried(rule, names, seed)
    except UserError as error:
      return {"chosen": {}, "hits": {}, "left_out": {rule: str(error)}, "work": {}}
    scored = self._scored({rule: self._applied(candidates, seed)}, names)
    cost["evaluations"] += len(candidates) if len(candidates) > 1 else 0
    return {**scored, "left_out": {}, "work": {rule: cost}}

  def _scored(
    self, tried: Mapping[str, Sequence[Tried]], names: Sequence[str]
  ) -> dict[str, Any]:
    """Returns which try of each method is best on validation, and its hits on test."""
    chosen = self._chosen(tried, names)
    asked: dict[Any, tuple[Prompt, str]] = {
      (method, name): (tried[method][place][1], name)
      for method, place in chosen.items()
      for name in names
    }
    return {
      "chosen": {method: tried[method][place][0] for method, place in chosen.items()},
      "hits": hits.to_json(self.made.test.hits(asked)),
    }

  def _tried(self, rule: str, names: Sequence[str], seed: int) -> list[Tried]:
    if merge_settings.is_of_prompts(rule):
      prompts = [self.made.prompts.best[name, seed] for name in names]
      return [({}, algebra.fold(merge.merge(prompts, rule)).leaves)]
    vectors = [self.made.prompts.vectors[name, seed] for name in names]
    return self._applied(merge_settings.candidates(rule, vectors, self.budget), seed)

  def _applied(
    self, candidates: Sequence[merge_settings.Candidate], seed: int
  ) -> list[Tried]:
    return [
      (settings, self.made.prompts.applied(merged, seed, coefficient))
      for settings, merged, coefficient in candidates
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

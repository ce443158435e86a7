"""A task-vector study: tune prompts, make vectors, and measure what arithmetic on them does.

The questions are those of the task-vector paper (arXiv 2408.01119; methods.md, section
4): does a vector work on another initial prompt, do sums solve several tasks, does
negation forget, how similar are vectors. The controls are ours: "another task's vector"
(zero would be the wrong baseline) and the accuracy among the task's own labels.
"""

import contextlib
import dataclasses
import functools
import itertools
import json
import pathlib
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Annotated, Any

import jax
import numpy as np
from jaxtyping import Float

from tpv_jax.backbones import loading
from tpv_jax.banks import bank
from tpv_jax.core import files, identity
from tpv_jax.core.checks import Lengths, NotEmpty, Seed, Size, Steps, checked
from tpv_jax.core.errors import UserError
from tpv_jax.core.screen import Bar
from tpv_jax.data.batches import Tokenized
from tpv_jax.data.labels import check_task
from tpv_jax.data.tasks import Task
from tpv_jax.data.vocabularies import Vocabulary
from tpv_jax.devices import processes
from tpv_jax.evaluation import candidates
from tpv_jax.evaluation.evaluator import Evaluator, Prompt
from tpv_jax.formats import sources
from tpv_jax.model import SoftPromptModel
from tpv_jax.runs.run_folder import open_output, versions, write_results
from tpv_jax.runs.run_settings import defaults_of, same
from tpv_jax.studies.report import arithmetic as report
from tpv_jax.training import training
from tpv_jax.training.initial import Initial
from tpv_jax.training.loop import Metric
from tpv_jax.training.optimizers import LearningRate
from tpv_jax.vectors import algebra, store
from tpv_jax.vectors.algebra import Loaded

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
  best_metric: Metric = "loss",
  as_bank: bool = False,
  overwrite: bool = False,
  progress: bool = True,
  config: Callable[[], str] | None = None,
) -> dict[str, Any]:
  """Runs the whole study and returns its results, which it writes and prints.

  Writes `report.md`, `results.json`, PNG plots, the runs and the vectors to
  `output_dir`. Started again it continues: finished runs are not trained again, and what
  was measured on them (`measured.json`) is not measured again.

  Args:
    model: with a trainable prompt.
    backbone: what `load_backbone` takes.
    tasks: at least two, all with labels.
    vocabulary: the backbone's.
    lengths: `{'inputs': T, 'targets': L}` in tokens, EOS included.
    output_dir: the study's folder.
    initial_prompt: (embedding table, seed) -> [P, D].
    learning_rate: step, from 0, to learning rate.
    total_steps: optimizer steps of each prompt.
    batch_size: training examples a step.
    eval_period: steps between validations, the best prompt being kept.
    initial_seeds: the initial prompts; means and deviations are over them.
    coefficients: tried on validation for each sum.
    search_examples: validation examples a task in that search.
    best_metric: by which a run keeps its best prompt.
    as_bank: train all prompts at once (`bank.train_bank`), not one after the other; the
      numbers differ by the order in which fp32 sums are taken.
    overwrite: train runs again that are finished or have other settings, and measure all
      of them again.
    progress: show progress.
    config: gives the text for config.gin.

  Raises:
    UserError: fewer than two tasks or initial prompts, or a task without labels; a
      folder that holds something else, or runs with other settings.
  """
  if len(tasks) < 2 or len(initial_seeds) < 2:
    raise UserError(
      f"A study compares tasks and initial prompts: give at least two of each (now "
      f"{len(tasks)} and {len(initial_seeds)})."
    )
  for task in tasks:
    if task.labels is None:
      raise UserError(
        f"A study compares accuracies among labels, and the task '{task.name}' has none. "
        "Give it labels, or leave it out."
      )
    check_task(task, vocabulary, lengths)
  started = time.time()
  with open_output(output_dir, "study", "vectors") as folder:
    loaded = loading.load_backbone(backbone, model.network, vocabulary)
    entries = bank.grid(
      tasks, vocabulary, lengths, folder / "runs", batch_size, initial_seeds
    )
    common: dict[str, Any] = {
      "model": model,
      "total_steps": total_steps,
      "learning_rate": learning_rate,
      "backbone": loaded,
      "initial_prompt": initial_prompt,
      "eval_period": eval_period,
      "best_metric": best_metric,
      "overwrite": overwrite,
      "config": config,
    }
    if as_bank:
      bank.train_bank(entries=entries, progress=progress, **common)
    else:
      for entry in Bar(entries, desc="1/3 tuning prompts", disable=not progress):
        training.train(
          data=entry.data,
          run_dir=entry.run_dir,
          initial_seed=entry.initial_seed,
          seed=entry.seed,
          progress=False,
          **common,
        )
    processes.wait_for_all("all prompts are tuned")
    tuned = time.time()
    evaluator = Evaluator(model, loaded.params, vocabulary, lengths, progress=progress)
    arithmetic = _Arithmetic(
      evaluator, tasks, initial_seeds, folder, coefficients, search_examples
    )
    subject = arithmetic.subject() | {
      "backbone": loaded.fingerprint,
      "beams": model.num_beams,
      "length_penalty": model.length_penalty,
    }
    defaults = defaults_of(study, type(model))
    measured = _Measured(folder / "measured.json", subject, defaults, overwrite)
    evaluator.title = "2/3 single vectors"
    single = measured.get("single", arithmetic.single)
    evaluator.title = "3/3 sums"
    # One initial prompt after the other: their candidates together may not fit the host.
    chosen = [
      measured.get(f"coefficients-{seed}", functools.partial(arithmetic.search, seed))
      for seed in initial_seeds
    ]
    sums, negation = measured.get("sums", functools.partial(arithmetic.sums, chosen))
    results = {
      "tasks": [task.name for task in tasks],
      "initial_seeds": list(initial_seeds),
      "backbone": {"name": loaded.name, "fingerprint": loaded.fingerprint},
      "test_examples": {task.name: len(task.examples("test")) for task in tasks},
      "coefficients": list(coefficients),
      "single": single,
      "sums": sums,
      "cosine": arithmetic.cosine(),
      "versions": versions(),
      "device": jax.devices()[0].device_kind,
      "negation": negation,
    }
    results["summary"] = summarise(results)
    results["seconds"] = {
      "tuning": round(tuned - started, 1),
      "all": round(time.time() - started, 1),
    }
    write_results(folder, results, report.write, config)
    return results


def _run(folder: pathlib.Path, task: str, seed: int) -> pathlib.Path:
  return folder / "runs" / f"{task}-{seed}"


class _Measured:
  """Measurements that are written as they are made: a killed study keeps them."""

  def __init__(
    self,
    path: pathlib.Path,
    subject: Mapping[str, Any],
    defaults: Mapping[str, Any],
    overwrite: bool,
  ):
    """Reads what was measured before, if it was on the same subject.

    Args:
      path: of the JSON file.
      subject: what all measurements depend on, as JSON.
      defaults: of what a subject that was written before may lack.
      overwrite: read nothing.
    """
    self._path = path
    self._found: dict[str, Any] = {"subject": json.loads(json.dumps(subject))}
    if not overwrite and path.exists():
      with contextlib.suppress(ValueError):  # Damaged: to be measured again.
        before = json.loads(files.read_bytes(path))
        if _is_measured(before) and same(before["subject"], subject, defaults):
          self._found = before

  def get(self, name: str, measure: Callable[[], Any]) -> Any:
    """Returns what was measured before by that name, or is now."""
    if name not in self._found:
      self._found[name] = measure()
      if processes.is_writer():
        files.write_json(self._path, self._found)
    return self._found[name]


def _is_measured(content: Any) -> bool:
  return isinstance(content, dict) and isinstance(content.get("subject"), dict)


@dataclasses.dataclass
class _Arithmetic:
  """The prompts and vectors of a study, and every measurement on them.

  What a measurement needs of all prompts is evaluated in one pass.
  """

  evaluator: Evaluator
  tasks: Sequence[Task]
  seeds: Sequence[int]
  folder: pathlib.Path
  coefficients: Sequence[float]
  search_examples: int

  def __post_init__(self) -> None:
    self.names = [task.name for task in self.tasks]
    self.combinations: list[tuple[str, ...]] = [*itertools.combinations(self.names, 2)]
    if len(self.names) > 2:
      self.combinations.append(tuple(self.names))
    tokenize = self.evaluator.tokenize
    self.test = {
      t.name: tokenize(t.examples("test"), f"{t.name}, test") for t in self.tasks
    }
    self.validation = {
      t.name: tokenize(t.examples("validation")[: self.search_examples])
      for t in self.tasks
    }
    self.initial: dict[int, Loaded] = {}
    self.tuned: dict[tuple[str, int], Loaded] = {}
    self.vectors: dict[tuple[str, int], Loaded] = {}
    self.folded: dict[tuple[str, int], Prompt] = {}
    for name, seed in itertools.product(self.names, self.seeds):
      run = str(_run(self.folder, name, seed))
      self.initial[seed] = sources.load(run, "initial")
      self.tuned[name, seed] = sources.load(run, "best")
      self.folded[name, seed] = algebra.fold(self.tuned[name, seed]).leaves
      vector = algebra.diff(self.tuned[name, seed], self.initial[seed])
      self.vectors[name, seed] = dataclasses.replace(vector, name=f"{name}-{seed}")
      path = self.folder / "vectors" / f"{name}-{seed}.safetensors"
      if processes.is_writer():
        store.write(path, vector.leaves, vector.provenance, overwrite=True)

  def subject(self) -> dict[str, Any]:
    """Returns what the measurements depend on, decoding and the backbone aside."""
    return {
      "initial_prompts": {
        seed: identity.prompt_digest(one.leaves) for seed, one in self.initial.items()
      },
      "prompts": {
        f"{name}-{seed}": identity.prompt_digest(one.leaves)
        for (name, seed), one in self.tuned.items()
      },
      "tasks": {
        task.name: [
          task.labels,
          task.metric,
          task.more_metrics,
          task.split_digest("validation"),
          task.split_digest("test"),
        ]
        for task in self.tasks
      },
      "lengths": self.evaluator.lengths,
      "coefficients": list(self.coefficients),
      "search_examples": self.search_examples,
      "versions": versions(),
    }

  def _scores(
    self, asked: Mapping[Any, tuple[Prompt, str]], examples: Mapping[str, Tokenized]
  ) -> dict[Any, float]:
    """Returns, by key, the exact match of each prompt on the examples of its task."""
    pairs = [(leaves, examples[name]) for leaves, name in asked.values()]
    return dict(zip(asked, self.evaluator.exact_matches(pairs), strict=True))

  def _applied(self, vector: Loaded, seed: int, coefficient: float = 1.0) -> Prompt:
    prompt = algebra.apply(vector, self.initial[seed], coefficient)
    return algebra.fold(prompt).leaves

  def _sum(self, names: Sequence[str], seed: int) -> Loaded:
    return algebra.sum_vectors([self.vectors[name, seed] for name in names])

  def single(self) -> dict[str, dict[str, Any]]:
    """Returns, for each task, the scores of no prompt, own, other initial, and control."""
    keys = [(task, seed) for task in self.tasks for seed in self.seeds]
    found = self.evaluator.evaluate_all(
      [
        *((self.folded[task.name, seed], task, "test") for task, seed in keys),
        *((None, task, "test") for task in self.tasks),
      ]
    )
    own: dict[str, list[dict[str, float]]] = {name: [] for name in self.names}
    for (task, _), result in zip(keys, found[: len(keys)], strict=True):
      own[task.name].append(result.scores)
    no_prompt = {result.task: result.scores for result in found[len(keys) :]}
    asked: dict[Any, tuple[Prompt, str]] = {}
    for name, seed in itertools.product(self.names, self.seeds):
      for other in self.seeds:
        if other != seed:
          applied = self._applied(self.vectors[name, other], seed)
          asked["other_initial", name, seed, other] = applied, name
      for another in self.names:
        if another != name:
          asked["control", name, seed, another] = self.folded[another, seed], name
    scores = self._scores(asked, self.test)

    def means(kind: str, name: str) -> list[float]:
      return [
        float(
          np.mean([v for key, v in scores.items() if key[:3] == (kind, name, seed)])
        )
        for seed in self.seeds
      ]

    return {
      name: {
        "no_prompt": no_prompt[name],
        "own": own[name],
        "other_initial": means("other_initial", name),
        "control": means("control", name),
      }
      for name in self.names
    }

  def search(self, seed: int) -> list[float]:
    """Returns the coefficient of each combination's sum on an initial prompt.

    It is one for all vectors of a sum: the one with the best mean exact match over the
    summed tasks on validation; the smaller one wins a tie.
    """
    asked: dict[Any, tuple[Prompt, str]] = {}
    for names in self.combinations:
      total = self._sum(names, seed)
      for coefficient in self.coefficients:
        applied = self._applied(total, seed, coefficient)
        for name in names:
          asked[names, coefficient, name] = applied, name
    scores = self._scores(asked, self.validation)
    chosen = []
    for names in self.combinations:
      means = {
        coefficient: np.mean([scores[names, coefficient, name] for name in names])
        for coefficient in self.coefficients
      }
      chosen.append(max(means, key=lambda one: (means[one], -one)))
      candidates.say_equal_scores(
        f"Coefficient of {' + '.join(names)} on initial prompt {seed}",
        [float(mean) for mean in means.values()],
        f"{chosen[-1]:g}, the smallest",
      )
    return chosen

  def sums(
    self, chosen: Sequence[Sequence[float]]
  ) -> tuple[list[dict[str, Any]], dict[str, dict[str, list[float]]]]:
    """Returns the scores of the sums, and what negating a task's vector in them does.

    The sums are those of all pairs and of all tasks, on each initial prompt. Negation:
    P_i + c (v_t + v_u) becomes P_i + c (v_u - v_t), c as it was chosen for the sum. For
    each task t and initial prompt, the means over the partners u of the scores of t
    and of u, before and after.

    Args:
      chosen: the coefficients, by initial prompt and combination.
    """
    by_sum = dict(zip(self.combinations, zip(*chosen, strict=True), strict=True))
    scores: dict[Any, float] = {}
    for place, seed in enumerate(self.seeds):  # As in `search`, for the host's memory.
      asked: dict[Any, tuple[Prompt, str]] = {}
      for names, coefficients in by_sum.items():
        coefficient = coefficients[place]
        applied = self._applied(self._sum(names, seed), seed, coefficient)
        for name in names:
          asked[names, None, seed, name] = applied, name
        for name in names if len(names) == 2 else ():
          (partner,) = (other for other in names if other != name)
          negated = algebra.negate(self.vectors[name, seed])
          difference = algebra.sum_vectors([self.vectors[partner, seed], negated])
          applied = self._applied(difference, seed, coefficient)
          for one in (name, partner):
            asked[names, name, seed, one] = applied, one
      scores |= self._scores(asked, self.test)
    sums = [
      {
        "tasks": list(names),
        "coefficient": list(coefficients),
        "scores": {
          name: [scores[names, None, seed, name] for seed in self.seeds]
          for name in names
        },
      }
      for names, coefficients in by_sum.items()
    ]
    negation: dict[str, dict[str, list[float]]] = {}
    for name in self.names:
      pairs = [
        names for names in self.combinations if len(names) == 2 and name in names
      ]
      partners = [names[1 - names.index(name)] for names in pairs]
      negation[name] = {
        prefix + when: [
          float(
            np.mean(
              [
                scores[names, negated, seed, partner if prefix else name]
                for names, partner in zip(pairs, partners, strict=True)
              ]
            )
          )
          for seed in self.seeds
        ]
        for prefix in ("", "partner_")
        for when, negated in (("before", None), ("after", name))
      }
    return sums, negation

  def cosine(self) -> dict[str, Any]:
    """Returns the cosine matrices of all prompts and of all vectors, and their names."""
    keys = [(name, seed) for name in self.names for seed in self.seeds]
    return {
      "names": [f"{name}-{seed}" for name, seed in keys],
      "prompts": algebra.cosine([self.tuned[key] for key in keys]).tolist(),
      "vectors": algebra.cosine([self.vectors[key] for key in keys]).tolist(),
    }


def summarise(results: Mapping[str, Any]) -> dict[str, Any]:
  """Returns the means that the report opens with; scores are exact match on test.

  `pair_sums` averages over pairs, their tasks and initial prompts; `pair_sums_relative`
  divides each score by the task's own prompt's on the same initial prompt, which it also
  writes to each sum as `relative`.
  """
  single, names = results["single"], results["tasks"]
  own = {name: [s["exact_match"] for s in single[name]["own"]] for name in names}
  *pairs, everything = results["sums"] if len(names) > 2 else [*results["sums"], None]

  def mean(values: Iterable[float]) -> float:
    return float(np.mean(list(values)))

  def absolute(sums: Sequence[Mapping[str, Any]]) -> float:
    return mean(
      score for total in sums for scores in total["scores"].values() for score in scores
    )

  def relative(sums: Sequence[Mapping[str, Any]]) -> float | None:
    known = [total["relative"] for total in sums if total["relative"] is not None]
    return mean(known) if known else None

  for total in results["sums"]:
    total["relative"] = _relative(total["scores"], own)
  control = {name: mean(single[name]["control"]) for name in names}
  return {
    "own": mean(mean(scores) for scores in own.values()),
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
    "sum_of_all": None if everything is None else absolute([everything]),
    "sum_of_all_relative": None if everything is None else relative([everything]),
    "tasks_with_label_accuracy_at_most_0.75_without_prompt": sum(
      single[name]["no_prompt"]["label_accuracy"] <= 0.75 for name in names
    ),
    "cosine": cosine_groups(results["cosine"], len(results["initial_seeds"])),
  }


def _relative(
  scores: Mapping[str, Sequence[float]], own: Mapping[str, Sequence[float]]
) -> float | None:
  """Returns the mean of score / own score, over tasks and initial prompts.

  Where a task's own prompt scores 0 there is nothing to be relative to: such pairs are
  left out, and the result is None if all are.
  """
  ratios = [
    score / alone
    for name, values in scores.items()
    for score, alone in zip(values, own[name], strict=True)
    if alone > 0
  ]
  return float(np.mean(ratios)) if ratios else None


def cosine_groups(cosine: Mapping[str, Any], seeds: int) -> dict[str, dict[str, float]]:
  """Returns mean cosines: one task across initial prompts, other tasks within and across.

  The rows are ordered by task, then by initial prompt, `seeds` of them a task.
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

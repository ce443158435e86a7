"""A task-vector study: tune prompts, make vectors, and measure what arithmetic on them does.

The questions are those of the task-vector paper (arXiv 2408.01119; methods.md, section
4): does a vector work on another initial prompt, do sums solve several tasks, does
negation forget, how similar are vectors. The controls are ours: "another task's vector"
(zero would be the wrong baseline) and the accuracy among the task's own labels.
"""

import dataclasses
import itertools
import pathlib
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import jax
import numpy as np
from jaxtyping import Float
from tqdm import tqdm

from tpv_jax import files
from tpv_jax.backbone import loading
from tpv_jax.data.tasks import Task
from tpv_jax.data.vocabularies import Vocabulary
from tpv_jax.errors import UserError
from tpv_jax.model import SoftPromptModel
from tpv_jax.optimizers import LearningRate
from tpv_jax.prompts.initial import Initial
from tpv_jax.runner import bank, processes, report, training
from tpv_jax.runner.evaluation import Evaluator
from tpv_jax.runner.run_folder import open_output, versions
from tpv_jax.vectors import algebra, sources, store
from tpv_jax.vectors.algebra import Loaded

GRID = tuple(round(0.1 * tenth, 1) for tenth in range(1, 11))
"""Coefficients tried on validation: 0.1 to 1 (task arithmetic tries 21 in [0, 1])."""


def study(
  model: SoftPromptModel,
  backbone: str,
  tasks: Sequence[Task],
  vocabulary: Vocabulary,
  lengths: Mapping[str, int],
  output_dir: files.PathLike,
  initial_prompt: Initial,
  learning_rate: LearningRate,
  total_steps: int,
  batch_size: int,
  eval_period: int,
  initial_seeds: Sequence[int] = (0, 1, 2),
  coefficients: Sequence[float] = GRID,
  search_examples: int = 100,
  best_metric: str = "loss",
  as_bank: bool = False,
  overwrite: bool = False,
  progress: bool = True,
  config: Callable[[], str] | None = None,
) -> dict[str, Any]:
  """Runs the whole study and returns its results, which it writes and prints.

  Writes `report.md`, `results.json`, PNG plots, the runs and the vectors to
  `output_dir`. Started again it continues: finished runs are not trained again.

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
    overwrite: train runs again that are finished or have other settings.
    progress: show progress.
    config: gives the text for config.gin.

  Raises:
    UserError: fewer than two tasks or initial prompts; a folder that holds something
      else, or runs with other settings.
  """
  if len(tasks) < 2 or len(initial_seeds) < 2:
    raise UserError(
      f"A study compares tasks and initial prompts: give at least two of each (now "
      f"{len(tasks)} and {len(initial_seeds)})."
    )
  started = time.time()
  folder = open_output(output_dir, "study", "vectors")
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
    for entry in tqdm(entries, desc="1/3 tuning prompts", disable=not progress):
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
  evaluator = Evaluator(model, loaded.params, vocabulary, lengths)
  arithmetic = _Arithmetic(
    evaluator, tasks, initial_seeds, folder, coefficients, search_examples, progress
  )
  results = {
    "tasks": [task.name for task in tasks],
    "initial_seeds": list(initial_seeds),
    "backbone": {"name": loaded.name, "fingerprint": loaded.fingerprint},
    "test_examples": {task.name: len(task.examples("test")) for task in tasks},
    "coefficients": list(coefficients),
    "single": arithmetic.single(),
    "sums": arithmetic.sums(),
    "cosine": arithmetic.cosine(),
    "versions": versions(),
    "device": jax.devices()[0].device_kind,
  }
  results["negation"] = arithmetic.negation(results["sums"])
  results["summary"] = summarise(results)
  results["seconds"] = {
    "tuning": round(tuned - started, 1),
    "all": round(time.time() - started, 1),
  }
  if processes.is_writer():
    files.write_json(folder / "results.json", results)
    if config is not None:
      files.write_text(folder / "config.gin", config())
    report.write(folder, results)
  return results


def _run(folder: pathlib.Path, task: str, seed: int) -> pathlib.Path:
  return folder / "runs" / f"{task}-{seed}"


@dataclasses.dataclass
class _Arithmetic:
  """The prompts and vectors of a study, and every measurement on them."""

  evaluator: Evaluator
  tasks: Sequence[Task]
  seeds: Sequence[int]
  folder: pathlib.Path
  coefficients: Sequence[float]
  search_examples: int
  progress: bool

  def __post_init__(self) -> None:
    self.names = [task.name for task in self.tasks]
    self.test = {t.name: self._tokenize(t.examples("test")) for t in self.tasks}
    self.search = {
      t.name: self._tokenize(t.examples("validation")[: self.search_examples])
      for t in self.tasks
    }
    self.initial: dict[int, Loaded] = {}
    self.tuned: dict[tuple[str, int], Loaded] = {}
    self.vectors: dict[tuple[str, int], Loaded] = {}
    for name, seed in itertools.product(self.names, self.seeds):
      run = str(_run(self.folder, name, seed))
      self.initial[seed] = sources.load(run, "initial")
      self.tuned[name, seed] = sources.load(run, "best")
      vector = algebra.diff(self.tuned[name, seed], self.initial[seed])
      self.vectors[name, seed] = dataclasses.replace(vector, name=f"{name}-{seed}")
      path = self.folder / "vectors" / f"{name}-{seed}.safetensors"
      if processes.is_writer():
        store.write(path, vector.leaves, vector.provenance, overwrite=True)

  def _tokenize(self, examples: Sequence[Any]) -> Any:
    return self.evaluator.tokenize(examples)

  def _score(self, prompt: Loaded | None, name: str) -> float:
    """Returns the exact match of a prompt on a task's test split."""
    leaves = None if prompt is None else algebra.fold(prompt).leaves
    return self.evaluator.exact_match(leaves, self.test[name])

  def _applied(self, name: str, vector_seed: int, seed: int) -> Loaded:
    return algebra.apply(self.vectors[name, vector_seed], self.initial[seed])

  def single(self) -> dict[str, dict[str, Any]]:
    """Returns, for each task, the scores of no prompt, own, other initial, and control."""
    results = {}
    for task in tqdm(self.tasks, desc="2/3 single vectors", disable=not self.progress):
      own = [
        self.evaluator.evaluate(
          algebra.fold(self.tuned[task.name, seed]).leaves, task, "test"
        )
        for seed in self.seeds
      ]
      results[task.name] = {
        "no_prompt": self.evaluator.evaluate(None, task, "test").scores,
        "own": [result.scores for result in own],
        "other_initial": [
          float(
            np.mean(
              [
                self._score(self._applied(task.name, other, seed), task.name)
                for other in self.seeds
                if other != seed
              ]
            )
          )
          for seed in self.seeds
        ],
        "control": [
          float(
            np.mean(
              [
                self._score(self.tuned[other, seed], task.name)
                for other in self.names
                if other != task.name
              ]
            )
          )
          for seed in self.seeds
        ],
      }
    return results

  def sums(self) -> list[dict[str, Any]]:
    """Returns the scores of every pair's sum and of the sum of all, on each initial prompt.

    The coefficient, one for all vectors of a sum, is the one with the best mean exact
    match over the summed tasks on validation; the smaller one wins a tie.
    """
    combinations: list[tuple[str, ...]] = [*itertools.combinations(self.names, 2)]
    if len(self.names) > 2:
      combinations.append(tuple(self.names))
    results = []
    for names in tqdm(combinations, desc="3/3 sums", disable=not self.progress):
      chosen: list[float] = []
      scores: dict[str, list[float]] = {name: [] for name in names}
      for seed in self.seeds:
        total = algebra.sum_vectors([self.vectors[name, seed] for name in names])
        best = self._best_coefficient(total, seed, names)
        chosen.append(best)
        prompt = algebra.apply(total, self.initial[seed], best)
        for name in names:
          scores[name].append(self._score(prompt, name))
      results.append({"tasks": list(names), "coefficient": chosen, "scores": scores})
    return results

  def _best_coefficient(self, total: Loaded, seed: int, names: Sequence[str]) -> float:
    pairs = [
      (algebra.apply(total, self.initial[seed], c).leaves, self.search[name])
      for c in self.coefficients
      for name in names
    ]
    scores = np.reshape(self.evaluator.exact_matches(pairs), (-1, len(names)))
    ranked = zip(scores.mean(axis=1), self.coefficients, strict=True)
    return max(ranked, key=lambda one: (one[0], -one[1]))[1]

  def negation(
    self, sums: Sequence[Mapping[str, Any]]
  ) -> dict[str, dict[str, list[float]]]:
    """Returns what turning the sign of a task's vector does in the sums of two.

    P_i + c (v_t + v_u) becomes P_i + c (v_u - v_t), c as it was chosen for the sum. For
    each task t and initial prompt, the means over the partners u of the scores of t
    and of u, before and after.
    """
    results: dict[str, dict[str, list[float]]] = {
      name: {key: [] for key in ("before", "after", "partner_before", "partner_after")}
      for name in self.names
    }
    for index, seed in enumerate(self.seeds):
      for name in self.names:
        scores: dict[str, list[float]] = {key: [] for key in results[name]}
        for total in sums:
          if len(total["tasks"]) != 2 or name not in total["tasks"]:
            continue
          (partner,) = (other for other in total["tasks"] if other != name)
          difference = algebra.sum_vectors(
            [self.vectors[partner, seed], algebra.negate(self.vectors[name, seed])]
          )
          prompt = algebra.apply(
            difference, self.initial[seed], total["coefficient"][index]
          )
          scores["before"].append(total["scores"][name][index])
          scores["after"].append(self._score(prompt, name))
          scores["partner_before"].append(total["scores"][partner][index])
          scores["partner_after"].append(self._score(prompt, partner))
        for key, values in scores.items():
          results[name][key].append(float(np.mean(values)))
    return results

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

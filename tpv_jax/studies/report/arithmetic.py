"""The report of a study of arithmetic on vectors."""

from collections.abc import Mapping
from typing import Any

import numpy as np

from tpv_jax.core.figures import Sheet
from tpv_jax.core.tables import markdown_table
from tpv_jax.studies.report import charts
from tpv_jax.studies.report.charts import Score
from tpv_jax.studies.report.tables import (
  Results,
  Table,
  interval,
  mean_and_deviation,
  percent,
  subject,
)


def markdown(results: Results) -> str:
  """Returns the report: what was done, tables, plots, and what the numbers do not show."""
  seconds = results["seconds"]
  parts = [
    "# Task prompt vectors: report",
    f"{len(results['tasks'])} tasks x {subject(results)}, {results['device']}; "
    f"{seconds['all']:.0f} s for this call, {seconds['tuning']:.0f} of them for tuning. "
    "Scores are exact match in percent on the test split, mean ± sample standard deviation "
    "over initial prompts, unless stated otherwise.",
    "## In short",
    "\n".join(f"- {line}" for line in in_short(results)),
    "## (a) Single vectors",
    markdown_table(*table(results)),
    "*No prompt*: the backbone alone. *Untuned*: the initial prompt. *Other initial*: the "
    "vector applied to an initial prompt that it was not tuned from. *Control*: the mean over "
    "all other tasks' vectors, on their own initial prompt.",
    "![single vectors](single.png)",
    "Accuracy among the task's labels, that is, how often the right one scores highest; if "
    "it is high without a prompt, most of the prompt's gain lies in the choice of label "
    "words:",
    markdown_table(*table(results, labels=True)),
    "Differences in points, with the 95 % interval of a paired bootstrap over test rows and "
    "initial prompts:",
    markdown_table(*_differences_table(results)),
    "## (b) Sums",
    markdown_table(*_sums_table(results)),
    "One coefficient for all vectors of a sum, chosen on validation among "
    f"{', '.join(f'{c:g}' for c in results['coefficients'])}. *Relative*: divided by the "
    "score of the task's own prompt from the same initial prompt. *Minus own*: the mean "
    "difference from the tasks' own prompts in points, with its interval. Exact match "
    "first, then accuracy among each task's labels.",
    markdown_table(*_sums_table(results["labels"])),
    "![sums](sums.png)",
    "### Negation",
    markdown_table(*_negation_table(results)),
    "Sums of two before and after the negation of the task's vector, P + c (v_t + v_u) and "
    "P + c (v_u - v_t): the task's own score, and the mean score of its partners u.",
    "## (c) Similarity",
    markdown_table(*_cosine_table(results)),
    "![cosine similarity](cosine.png)",
    "Rows are ordered by task, then by initial prompt. All numbers: `results.json`.",
  ]
  return "\n\n".join(parts) + "\n"


def in_short(results: Results) -> list[str]:
  """Returns the means that the report opens with, as text."""
  summary = results["summary"]
  lines = [
    *_means(summary, len(results["tasks"])),
    "among the task's labels: "
    + "; ".join(_means(summary["labels"], len(results["tasks"]))),
  ]
  few = summary["tasks_with_label_accuracy_at_most_0.75_without_prompt"]
  lines.append(
    f"without a prompt, accuracy among own labels is at most 75 on {few} of "
    f"{len(results['tasks'])} tasks"
  )
  return lines


def _means(summary: Mapping[str, Any], tasks: int) -> list[str]:
  """Returns what the means of one metric say of single vectors and of sums."""
  single = (
    f"own prompt **{percent(summary['own'])}** (untuned {percent(summary['untuned'])}), on "
    f"another initial prompt {percent(summary['other_initial'])}, control (another task's "
    f"vector) {percent(summary['control'])}"
  )
  sums = (
    f"sums of two **{percent(summary['pair_sums'])}** "
    f"({percent(summary['pair_sums_relative'])} % of the single prompts' scores; "
    f"{summary['pairs_that_keep_0.90']} of {summary['pairs']} keep 90 % of both tasks)"
  )
  if summary["sum_of_all"] is not None:
    sums += (
      f"; sum of all {tasks}: {percent(summary['sum_of_all'])} "
      f"({percent(summary['sum_of_all_relative'])} %)"
    )
  return [single, sums]


def table(results: Results, labels: bool = False) -> Table:
  """Returns the scores of single vectors, mean ± deviation over initial prompts.

  Args:
    results: the study's.
    labels: accuracy among labels instead of exact match.
  """
  metric = "label_accuracy" if labels else "exact_match"
  header = ["task", "no prompt", "untuned", "own prompt", "other initial", "control"]
  single = (results["labels"] if labels else results)["single"]
  rows = []
  for name in results["tasks"]:
    alone = results["single"][name]
    rows.append(
      [
        name,
        percent(alone["no_prompt"][metric]),
        mean_and_deviation(single[name]["untuned"]),
        mean_and_deviation([scores[metric] for scores in alone["own"]]),
        mean_and_deviation(single[name]["other_initial"]),
        mean_and_deviation(single[name]["control"]),
      ]
    )
  return header, rows


def _differences_table(results: Results) -> Table:
  kinds = {
    "own_minus_untuned": "own - untuned",
    "own_minus_control": "own - control",
    "other_initial_minus_own": "other initial - own",
    "other_initial_minus_control": "other initial - control",
  }
  rows = [
    [name, what, *(interval(found[kind]) for kind in kinds)]
    for name in ("all", *results["tasks"])
    for what, found in (
      ("exact match", results["differences"][name]),
      ("labels", results["labels"]["differences"][name]),
    )
  ]
  return ["task", "score", *kinds.values()], rows


def _sums_table(results: Results) -> Table:
  rows = []
  for total in results["sums"]:
    rows.append(
      [
        " + ".join(total["tasks"]),
        ", ".join(f"{c:g}" for c in total["coefficient"]),
        ", ".join(
          f"{name} {mean_and_deviation(s)}" for name, s in total["scores"].items()
        ),
        percent(total["relative"]),
        interval(total["minus_own"]),
      ]
    )
  return ["sum", "coefficients", "scores", "relative", "minus own"], rows


def _negation_table(results: Results) -> Table:
  columns = ("before", "after", "partner_before", "partner_after")
  rows = [
    [name, *(mean_and_deviation(negation[column]) for column in columns)]
    for name, negation in results["negation"].items()
  ]
  header = ["negated task", "its score before", "after"]
  return [*header, "partners' scores before", "after"], rows


def _cosine_table(results: Results) -> Table:
  groups = results["summary"]["cosine"]
  names = {
    "same_task_other_initial": "same task, other initial prompts",
    "other_task_same_initial": "other tasks, same initial prompt",
    "other_task_other_initial": "other tasks, other initial prompts",
  }
  rows = [
    [text, f"{groups['prompts'][key]:.3f}", f"{groups['vectors'][key]:.3f}"]
    for key, text in names.items()
  ]
  return ["mean cosine", "prompts", "vectors"], rows


def pictures(results: Results) -> Mapping[str, Sheet]:
  """Returns bars of single vectors, and matrices of sums and of cosines."""
  return {
    "single.png": _draw_single(results),
    "sums.png": _draw_sums(results),
    "cosine.png": _draw_cosine(results),
  }


def _draw_single(results: Results) -> Sheet:
  tasks, single = results["tasks"], results["single"]
  series = {
    "no prompt": [[single[t]["no_prompt"]["exact_match"]] for t in tasks],
    "own prompt": [[s["exact_match"] for s in single[t]["own"]] for t in tasks],
    "other initial prompt": [single[t]["other_initial"] for t in tasks],
    "another task's vector": [single[t]["control"] for t in tasks],
  }
  scores = {name: list(map(Score.of, values)) for name, values in series.items()}
  return charts.bars(tasks, scores, len(results["initial_seeds"]))


def _draw_sums(results: Results) -> Sheet:
  """Returns a matrix: the row task's score in its sum with the column task, or alone."""
  tasks, single = results["tasks"], results["single"]
  means = np.full((len(tasks), len(tasks) + (len(tasks) > 2)), np.nan)
  for row, name in enumerate(tasks):
    means[row, row] = np.mean([s["exact_match"] for s in single[name]["own"]])
  for total in results["sums"]:
    for name, scores in total["scores"].items():
      row = tasks.index(name)
      others = [tasks.index(other) for other in total["tasks"] if other != name]
      means[row, others[0] if len(others) == 1 else -1] = np.mean(scores)
  columns = [f"+ {name}" for name in tasks] + ["+ all others"] * (len(tasks) > 2)
  title = (
    "Exact match of the row's task in sums of vectors (diagonal: alone), %, mean over "
    f"n = {len(results['initial_seeds'])} initial prompts"
  )
  sheet, bounds = Sheet(), (0, 100)
  charts.matrix(
    sheet, 100 * means, tasks, columns, bounds, "viridis", title, text="{:.0f}"
  )
  return sheet


def _draw_cosine(results: Results) -> Sheet:
  tasks, seeds = results["tasks"], [str(seed) for seed in results["initial_seeds"]]
  count = len(tasks) * len(seeds)
  sheet = Sheet(2 if count <= 20 else 1)
  for kind in ("prompts", "vectors"):
    charts.matrix(
      sheet,
      np.asarray(results["cosine"][kind], float),
      tasks,
      tasks,
      (-1, 1),
      "RdBu_r",
      f"Cosine similarity of {kind} (task, initial prompt)",
      cell=0.2,
      parts=seeds,
    )
  return sheet

"""The report of an ablation."""

from collections.abc import Mapping

import numpy as np

from tpv_jax.core.figures import Sheet
from tpv_jax.core.tables import markdown_table
from tpv_jax.studies.report import charts
from tpv_jax.studies.report.charts import Score
from tpv_jax.studies.report.tables import (
  Results,
  Table,
  difference,
  mean_and_deviation,
  of_the_suite,
  percent,
  provenance,
  subject,
)


def markdown(results: Results) -> str:
  """Returns the report: what was done, tables, plots, and what the numbers do not show."""
  tuning, form, steps = results["tuning"], results["form"], results["total_steps"]
  parts = [
    "# Plain tuning, DePT, EPT and its parts: an ablation",
    *provenance(results),
    f"{len(results['tasks'])} tasks x {subject(results)}, {steps} steps of "
    f"{results['batch_size']} examples, the best prompt by {results['best_metric']} on "
    f"validation. {_labels(results)}Scores are exact match in percent on the test split, "
    "mean ± sample standard deviation over the initial prompts, unless stated otherwise.",
    "## In short",
    "\n".join(f"- {line}" for line in in_short(results)),
    f"## (a) At the budget of {results['prompt_length']} plain prompt tokens",
    markdown_table(*table(results)),
    "*Spread across tasks*: sample standard deviation of the tasks' means; it is small if a "
    "method does equally well on all tasks (the paper's consistency). *Worst task*: the lowest "
    "of these means. *Minus plain*: difference of the means over tasks, mean ± standard "
    "deviation over the initial prompts, and the number of pairs of task and initial prompt "
    "in which the method is higher : lower.",
    markdown_table(*_tasks_table(results)),
    "![scores by task](tasks.png)",
    "## (b) Accuracy against prompt length",
    markdown_table(*_lengths_table(results)),
    f"Means over tasks, at P = {results['prompt_length']} over the initial prompts above, "
    f"otherwise over {', '.join(map(str, results['length_seeds']))}. All methods "
    "have at most P x D parameters and use the learning rates chosen at "
    f"P = {results['prompt_length']}. DePT and EPT have S = P / 2 prompt tokens and the "
    "largest rank that fits the rest of the budget (at most M, the longest source).",
    "![accuracy against prompt length](lengths.png)",
    "## (c) Parameters and the cost of a step",
    markdown_table(*_cost_table(results)),
    f"At P = {results['prompt_length']}, H = {form['fusion_width']}, K = {form['spaces']}, "
    f"Q = {form['bottleneck']}. The methods' steps are timed in turn, in rounds; the ratio is "
    "computed within a round and shown with its quartiles. *Again* is the same compiled step "
    "timed a second time, so differences within its quartiles are noise. For T5's sizes, see "
    "`benchmarks/ept_cost.py`.",
    "## (d) Learning rates",
    markdown_table(*_rates_table(results)),
    f"Chosen by mean {results['best_metric']} on the validation splits of "
    f"{', '.join(tuning['tasks'])}, with initial prompt {tuning['seed']}, which the comparison "
    "does not use; each method has the same number of trials. *Others*: low-rank matrices, "
    "fusion and spaces.",
    "## What this does not show",
    (_LIMITS_EMBEDDED if of_the_suite(results, results["tasks"]) else "") + _LIMITS,
    "All numbers: `results.json`.",
  ]
  return "\n\n".join(parts) + "\n"


def _labels(results: Results) -> str:
  """Returns the sentences about rotated labels."""
  if not results["rotated_labels"]:
    return ""
  if not of_the_suite(results, results["tasks"]):
    return (
      "Each class has the label word of the next class, which a prompt has to teach. "
    )
  return (
    "Each class has the label word of the next class (positive means negative), which a "
    "prompt has to teach. With the suite's own words, plain tuning reaches its final score "
    "within 20 steps, and the methods could not be distinguished. "
  )


_LIMITS_EMBEDDED = (
  "- Real language: backbone and tasks are synthetic. The width is 128 and sources have at "
  "most 24 tokens, so a low-rank update has nearly full rank, and the budget leaves little "
  "for fusion and spaces.\n"
)
_LIMITS = (
  "- Final scores: the number of steps is small, so the comparison is partly one of how fast "
  "the methods learn.\n"
  "- Other divisions of the budget: S, H, K and Q were fixed beforehand and not searched."
)


def in_short(results: Results) -> list[str]:
  """Returns the ranking of the methods, their differences, and the noise, as text."""
  rows = results["summary"][str(results["prompt_length"])]
  ranking = sorted(rows, key=lambda name: -rows[name]["mean"])
  steadiest = min(rows, key=lambda name: rows[name]["spread"])
  ept_row, place = rows["ept"], ranking.index("ept") + 1
  wins = "has the highest mean here" if place == 1 else "does **not** win here"
  lines = [
    "mean over tasks: "
    + ", ".join(
      f"{results['labels'][m]} **{percent(rows[m]['mean'])}**" for m in ranking
    ),
    f"EPT {wins} (place {place} of {len(rows)}): minus plain tuning "
    f"{difference(ept_row['minus_plain'])}, minus DePT "
    f"{difference(ept_row['minus_dept'])} (pairs higher : lower)",
  ]
  for method, row in rows.items():
    if method.startswith("ept_without_"):
      more = 100 * (row["mean"] - ept_row["mean"])
      lines.append(
        f"{results['labels'][method]}: {abs(more):.1f} points {'more' if more > 0 else 'less'}"
        " than EPT (these parameters are given to the rank)"
      )
  lines.append(
    f"spread across tasks: {percent(ept_row['spread'])} with EPT, "
    f"{percent(rows['plain']['spread'])} with plain tuning, "
    f"{percent(rows['dept']['spread'])} with DePT; lowest with {results['labels'][steadiest]} "
    f"({percent(rows[steadiest]['spread'])})"
  )
  noise = max(row["deviation"] for row in rows.values())
  lines.append(
    f"over the {len(results['initial_seeds'])} initial prompts, a method's mean has a standard "
    f"deviation of up to {percent(noise)} points; differences of that size mean nothing"
  )
  return lines


def table(results: Results) -> Table:
  """Returns the methods at the budget of `prompt_length`."""
  tokens = str(results["prompt_length"])
  header = ["method", "parameters", "S, R", "mean", "spread across tasks", "worst task"]
  rows = []
  for method, row in results["summary"][tokens].items():
    size = results["methods"][method][tokens]
    rows.append(
      [
        results["labels"][method],
        f"{size['parameters']:,}",
        f"{size['prompt_tokens']}, {size['rank']}",
        f"{percent(row['mean'])} ± {percent(row['deviation'])}",
        percent(row["spread"]),
        percent(row["worst"]),
        "" if method == "plain" else difference(row["minus_plain"]),
      ]
    )
  return [*header, "minus plain"], rows


def _tasks_table(results: Results) -> Table:
  scores = results["scores"][str(results["prompt_length"])]
  rows = [
    [task, *(mean_and_deviation(by_task[task]) for by_task in scores.values())]
    for task in results["tasks"]
  ]
  return ["task", *(results["labels"][method] for method in scores)], rows


def _lengths_table(results: Results) -> Table:
  rows = []
  for method, label in results["labels"].items():
    cells = []
    for tokens in map(str, results["prompt_lengths"]):
      row, size = results["summary"][tokens][method], results["methods"][method][tokens]
      cells.append(
        f"{percent(row['mean'])} ± {percent(row['deviation'])} ({size['parameters']:,}; "
        f"{size['prompt_tokens']}, {size['rank']})"
      )
    rows.append([label, *cells])
  header = [f"P = {n}: mean (parameters; S, R)" for n in results["prompt_lengths"]]
  return ["method", *header], rows


def _cost_table(results: Results) -> Table:
  tokens, rows = str(results["prompt_length"]), []
  for name, row in results["cost"].items():
    method, _, again = name.partition(", ")
    parts = results["methods"][method][tokens]["parts"]
    time_ratio = row["time_ratio"]
    rows.append(
      [
        results["labels"][method] + (f", {again}" if again else ""),
        ", ".join(f"{part.replace('_', ' ')} {n:,}" for part, n in parts.items()),
        f"{1000 * row['seconds']['median']:.2f}",
        f"{time_ratio['median']:.2f} ({time_ratio['lower_quartile']:.2f} to "
        f"{time_ratio['upper_quartile']:.2f})",
        f"{row['flops_ratio']:.2f}",
      ]
    )
  header = ["method", "parameters by part", "ms a step", "time ratio", "flops ratio"]
  return header, rows


def _rates_table(results: Results) -> Table:
  rows = []
  for method, found in results["tuning"]["methods"].items():

    def text(rates: Mapping[str, float]) -> str:
      others = f", {rates['low_rank']:g}" if "low_rank" in rates else ""
      return f"{rates['prompt']:g}{others}"

    tried = "; ".join(
      f"{text(one['rates'])}: {one['mean']:.3f}" for one in found["tries"]
    )
    rows.append([results["labels"][method], text(found["rates"]), tried])
  return ["method", "chosen (prompt, others)", "all tries: mean on validation"], rows


def pictures(results: Results) -> Mapping[str, Sheet]:
  """Returns bars by task, and lines of the mean over tasks against the budget."""
  return {"tasks.png": _draw_tasks(results), "lengths.png": _draw_lengths(results)}


def _draw_tasks(results: Results) -> Sheet:
  tasks, labels = results["tasks"], results["labels"]
  scores = results["scores"][str(results["prompt_length"])]
  series = {
    labels[method]: [Score.of(by_task[task]) for task in tasks]
    for method, by_task in scores.items()
  }
  return charts.bars(tasks, series, len(results["initial_seeds"]))


def _draw_lengths(results: Results) -> Sheet:
  lengths = results["prompt_lengths"]
  of_methods = {
    label: [
      Score.of(np.mean([*results["scores"][str(n)][method].values()], axis=0).tolist())
      for n in lengths
    ]
    for method, label in results["labels"].items()
  }
  counts = [len(next(iter(of_methods.values()))[i].values) for i in range(len(lengths))]
  ticks = [f"{n}\nn = {count}" for n, count in zip(lengths, counts, strict=True)]
  label = "budget: P, tokens of a plain prompt with as many parameters"
  panels, seeds = {"Mean over tasks": of_methods}, len(results["initial_seeds"])
  return charts.lines(panels, ticks, label, seeds, close=True)

"""The report of a study: `report.md`, PNG plots and the table on the terminal."""

import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from rich.box import SIMPLE
from rich.table import Column, Table

from tpv_jax.core import files, screen

Results = Mapping[str, Any]
Rows = Sequence[Sequence[str]]


def write(folder: pathlib.Path, results: Results) -> None:
  """Writes report and plots to `folder`, prints the summary and where the report is."""
  _plot_single(folder / "single.png", results)
  _plot_sums(folder / "sums.png", results)
  _plot_cosine(folder / "cosine.png", results)
  files.write_text(folder / "report.md", markdown(results))
  header, rows = _single_table(results)
  title = "Exact match on test, % (mean ± std over initial prompts)"
  table = Table(Column(header[0], no_wrap=True), *header[1:], title=title, box=SIMPLE)
  for row in rows:
    table.add_row(*row)
  console = screen.console()
  console.print(table)
  for line in _summary(results):
    console.print(line.replace("**", ""), highlight=False)
  console.print(f"Report: {folder / 'report.md'}", highlight=False, soft_wrap=True)


def markdown(results: Results) -> str:
  """Returns the report: what was done, tables, plots, and what the numbers do not show."""
  seeds = results["initial_seeds"]
  seconds = results["seconds"]
  backbone = results["backbone"]
  parts = [
    "# Task prompt vectors: report",
    f"{len(results['tasks'])} tasks x {len(seeds)} initial prompts (seeds "
    f"{', '.join(map(str, seeds))}) on the backbone `{backbone['name']}` (fingerprint "
    f"`{backbone['fingerprint'][:12]}`), {results['device']}; {seconds['tuning']:.0f} s of "
    f"tuning, {seconds['all']:.0f} s in all. Scores are exact match in percent on the test "
    "split, mean ± sample standard deviation over initial prompts, unless it says otherwise.",
    "## In short",
    "\n".join(f"- {line}" for line in _summary(results)),
    "## (a) Single vectors",
    markdown_table(*_single_table(results)),
    "*No prompt*: the backbone alone. *Own labels*: which of the task's labels scores "
    "highest, without and with the prompt; where it is high without a prompt, most of the "
    "gain is the choice of label words. *Other initial*: the vector applied to an "
    "initial prompt that it was not tuned from. *Control*: the mean of all other tasks' "
    "vectors, on their own initial prompt.",
    "![single vectors](single.png)",
    "## (b) Sums",
    markdown_table(*_sums_table(results)),
    "One coefficient for all vectors of a sum, chosen on validation among "
    f"{', '.join(f'{c:g}' for c in results['coefficients'])}. *Relative*: divided by the "
    "score of the task's own prompt from the same initial prompt.",
    "![sums](sums.png)",
    "### Negation",
    markdown_table(*_negation_table(results)),
    "Sums of two before and after the sign of the task's vector is turned, P + c (v_t + v_u) "
    "and P + c (v_u - v_t): its own score, and that of its partners u (means over them).",
    "## (c) Similarity",
    markdown_table(*_cosine_table(results)),
    "![cosine similarity](cosine.png)",
    "Rows are ordered by task, then by initial prompt. All numbers: `results.json`.",
  ]
  return "\n\n".join(parts) + "\n"


def _summary(results: Results) -> list[str]:
  summary = results["summary"]
  lines = [
    f"own prompt **{percent(summary['own'])}**, on another initial prompt "
    f"{percent(summary['other_initial'])}, control (another task's vector) "
    f"{percent(summary['control'])}",
    f"sums of two **{percent(summary['pair_sums'])}** "
    f"({percent(summary['pair_sums_relative'])} of the single prompts' scores)",
  ]
  if summary["sum_of_all"] is not None:
    lines[-1] += (
      f"; sum of all {len(results['tasks'])}: {percent(summary['sum_of_all'])} "
      f"({percent(summary['sum_of_all_relative'])})"
    )
  few = summary["tasks_with_label_accuracy_at_most_0.75_without_prompt"]
  lines.append(
    f"without a prompt, accuracy among own labels is at most 75 on {few} of "
    f"{len(results['tasks'])} tasks"
  )
  return lines


def _single_table(results: Results) -> tuple[list[str], Rows]:
  header = [
    "task",
    "no prompt",
    "own prompt",
    "other initial",
    "control",
    "own labels: none",
    "own",
  ]
  rows = []
  for name in results["tasks"]:
    single = results["single"][name]
    rows.append(
      [
        name,
        percent(single["no_prompt"]["exact_match"]),
        mean_and_deviation([scores["exact_match"] for scores in single["own"]]),
        mean_and_deviation(single["other_initial"]),
        mean_and_deviation(single["control"]),
        percent(single["no_prompt"]["label_accuracy"]),
        mean_and_deviation([scores["label_accuracy"] for scores in single["own"]]),
      ]
    )
  return header, rows


def _sums_table(results: Results) -> tuple[list[str], Rows]:
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
      ]
    )
  return ["sum", "coefficients", "scores", "relative"], rows


def _negation_table(results: Results) -> tuple[list[str], Rows]:
  columns = ("before", "after", "partner_before", "partner_after")
  rows = [
    [name, *(mean_and_deviation(negation[column]) for column in columns)]
    for name, negation in results["negation"].items()
  ]
  return ["negated task", "its score before", "after", "partners before", "after"], rows


def _cosine_table(results: Results) -> tuple[list[str], Rows]:
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


def markdown_table(header: Sequence[str], rows: Rows) -> str:
  """Returns a table in Markdown."""
  lines = [header, ["---"] * len(header), *rows]
  return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def percent(value: float | None) -> str:
  """Returns a fraction in percent, '-' for None."""
  return "-" if value is None else f"{100 * value:.1f}"


def mean_and_deviation(values: Sequence[float]) -> str:
  """Returns mean ± sample standard deviation (n - 1) of fractions, in percent."""
  deviation = np.std(values, ddof=1) if len(values) > 1 else 0.0
  return f"{100 * np.mean(values):.1f} ± {100 * deviation:.1f}"


def compare(
  by_task: Mapping[str, Sequence[float]],
  others: Mapping[str, Mapping[str, Sequence[float]]],
) -> dict[str, Any]:
  """Returns the numbers by which one of several ways of tuning is compared.

  `mean` and `deviation`: over the initial prompts, of the mean over tasks. `worst`: the
  lowest mean of a task. `spread`: the sample standard deviation over the tasks' means.
  `minus_NAME` for each of the others: mean and deviation over the initial prompts of the
  difference of the means over tasks, and how many pairs of task and initial prompt are
  `higher` and `lower`.

  Args:
    by_task: its scores, [task][initial prompt].
    others: those of others by name, of the same tasks and initial prompts.
  """
  table = np.asarray(list(by_task.values()))  # tasks x initial prompts
  of_tasks, of_seeds = table.mean(axis=1), table.mean(axis=0)
  found: dict[str, Any] = {
    "mean": float(of_seeds.mean()),
    "deviation": float(of_seeds.std(ddof=1)),
    "worst": float(of_tasks.min()),
    "spread": float(of_tasks.std(ddof=len(of_tasks) > 1)),
  }
  for name, other in others.items():
    gap = table - np.asarray([other[task] for task in by_task])
    found[f"minus_{name}"] = {
      "mean": float(gap.mean()),
      "deviation": float(gap.mean(axis=0).std(ddof=1)),
      "higher": int((gap > 0).sum()),
      "lower": int((gap < 0).sum()),
    }
  return found


def difference(found: Mapping[str, Any]) -> str:
  """Returns what `compare` calls `minus_NAME` as text, in points."""
  return (
    f"{100 * found['mean']:+.1f} ± {100 * found['deviation']:.1f} "
    f"({found['higher']} : {found['lower']})"
  )


def new_figure(width: float, height: float, columns: int = 1) -> tuple[Any, Any]:
  """Returns a figure of so many inches and its axes, an array of them if several."""
  # Without pyplot: no screen is needed and no global state is touched.
  from matplotlib.backends.backend_agg import FigureCanvasAgg
  from matplotlib.figure import Figure

  figure = Figure(figsize=(width, height), layout="constrained")
  FigureCanvasAgg(figure)
  return figure, figure.subplots(1, columns)


def draw_bars(axes: Any, groups: Sequence[str], series: Mapping[str, Any]) -> None:
  """Draws grouped bars with their standard deviation; `series` name -> [group][seed]."""
  width = 0.8 / len(series)
  for number, (name, values) in enumerate(series.items()):
    places = np.arange(len(groups)) + (number - (len(series) - 1) / 2) * width
    means = [100 * np.mean(scores) for scores in values]
    spread = [100 * np.std(scores, ddof=len(scores) > 1) for scores in values]
    axes.bar(places, means, width * 0.95, yerr=spread, label=name, capsize=2)
  axes.set_xticks(np.arange(len(groups)), groups, rotation=30, ha="right")
  axes.set_ylabel("exact match on test (%)")
  axes.set_ylim(0, 105)
  axes.spines[["top", "right"]].set_visible(False)
  axes.legend(
    frameon=False, ncols=len(series), loc="lower center", bbox_to_anchor=(0.5, 1)
  )


def _plot_single(path: pathlib.Path, results: Results) -> None:
  tasks, single = results["tasks"], results["single"]
  figure, axes = new_figure(1.5 + 1.3 * len(tasks), 4)
  draw_bars(
    axes,
    tasks,
    {
      "no prompt": [[single[t]["no_prompt"]["exact_match"]] for t in tasks],
      "own prompt": [[s["exact_match"] for s in single[t]["own"]] for t in tasks],
      "other initial prompt": [single[t]["other_initial"] for t in tasks],
      "another task's vector": [single[t]["control"] for t in tasks],
    },
  )
  save_figure(path, figure)


def _plot_sums(path: pathlib.Path, results: Results) -> None:
  """A matrix: row task's score in its sum with the column task; the diagonal is alone."""
  tasks, single = results["tasks"], results["single"]
  matrix = np.full((len(tasks), len(tasks) + (len(tasks) > 2)), np.nan)
  for row, name in enumerate(tasks):
    matrix[row, row] = np.mean([s["exact_match"] for s in single[name]["own"]])
  for total in results["sums"]:
    for name, scores in total["scores"].items():
      row = tasks.index(name)
      others = [tasks.index(other) for other in total["tasks"] if other != name]
      matrix[row, others[0] if len(others) == 1 else -1] = np.mean(scores)
  figure, axes = new_figure(2.5 + 0.9 * len(tasks), 1.5 + 0.7 * len(tasks))
  columns = [f"+ {name}" for name in tasks] + ["+ all others"] * (len(tasks) > 2)
  _matrix(axes, 100 * matrix, tasks, columns, "{:.0f}", 0, 100, "viridis")
  axes.set_title("Exact match of the row's task in sums of vectors (diagonal: alone)")
  save_figure(path, figure)


def _plot_cosine(path: pathlib.Path, results: Results) -> None:
  cosine = results["cosine"]
  count, seeds = len(cosine["names"]), len(results["initial_seeds"])
  figure, both = new_figure(2 * (1.8 + 0.32 * count), 1.6 + 0.32 * count, columns=2)
  for axes, kind in zip(both, ("prompts", "vectors"), strict=True):
    _matrix(
      axes,
      np.asarray(cosine[kind]),
      cosine["names"],
      cosine["names"],
      "",
      -1,
      1,
      "RdBu_r",
    )
    for border in np.arange(seeds, count, seeds) - 0.5:
      axes.axhline(border, color="black", linewidth=0.6)
      axes.axvline(border, color="black", linewidth=0.6)
    axes.set_title(f"Cosine similarity of {kind} (task-initial prompt)")
  save_figure(path, figure)


def _matrix(
  axes: Any,
  matrix: Any,
  rows: Sequence[str],
  columns: Sequence[str],
  text: str,
  low: float,
  high: float,
  colours: str,
) -> None:
  image = axes.imshow(matrix, vmin=low, vmax=high, cmap=colours)
  axes.figure.colorbar(image, ax=axes, shrink=0.8)
  axes.set_xticks(range(len(columns)), columns, rotation=45, ha="right", fontsize=8)
  axes.set_yticks(range(len(rows)), rows, fontsize=8)
  if text:
    for (row, column), value in np.ndenumerate(matrix):
      if np.isfinite(value):
        colour = "white" if value < (low + high) / 2 else "black"
        axes.text(
          column, row, text.format(value), ha="center", va="center", color=colour
        )


def save_figure(path: pathlib.Path, figure: Any) -> None:
  """Writes a figure as PNG."""
  import io

  buffer = io.BytesIO()
  figure.savefig(buffer, dpi=120, format="png")
  files.write_bytes(path, buffer.getvalue())

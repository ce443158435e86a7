"""The report of a few-shot comparison: `report.md`, a plot, the lines on the terminal."""

import pathlib

import numpy as np

from tpv_jax.core import files
from tpv_jax.studies.report.arithmetic import (
  Results,
  Rows,
  difference,
  markdown_table,
  mean_and_deviation,
  new_figure,
  percent,
  save_figure,
)


def write(folder: pathlib.Path, results: Results) -> None:
  """Writes report and plot to `folder`, prints the summary and where the report is."""
  _plot(folder / "scores.png", results)
  files.write_text(folder / "report.md", markdown(results))
  print("\n".join(line.replace("**", "") for line in _in_short(results)))
  print(f"Report: {folder / 'report.md'}")


def markdown(results: Results) -> str:
  """Returns the report: what was done, tables, a plot, and what the numbers do not show."""
  seeds, backbone = results["initial_seeds"], results["backbone"]
  command = [f"```\n{results['command']}\n```"] if results["command"] else []
  known = ", ".join(f"{name} {v}" for name, v in results["versions"].items())
  batches = ", ".join(f"{b} for {n}" for n, b in results["batch_sizes"].items())
  by_target = []
  for name, target in results["targets"].items():
    related, second, unrelated = (
      target[role] for role in ("related", "second", "unrelated")
    )
    roles = (
      f"Related: {related}; the sum: {related} + {second}; unrelated: {unrelated}."
    )
    by_target += [
      f"### {name}",
      f"{target['note']} {roles}".strip(),
      markdown_table(*_target_table(results, name)),
    ]
  parts = [
    "# Few-shot prompt tuning from random prompts, vectors and sums",
    f"{results['date']}, {results['device']}, {results['seconds']:.0f} s for this call; "
    f"{known}.",
    *command,
    f"{len(results['targets'])} targets x {len(results['starts'])} starts x "
    f"{len(seeds)} initial prompts (seeds {', '.join(map(str, seeds))}) on the backbone "
    f"`{backbone['name']}` (fingerprint `{backbone['fingerprint'][:12]}`). "
    f"{results['total_steps']} steps on a target whatever the number of examples, in batches "
    f"of {batches or 'none'}; the best prompt by {results['best_metric']} on validation, "
    f"every {results['eval_period']} steps. All starts of a target see the same examples "
    "in the same order; a smaller sample is part of a larger one. *Random* is the initial "
    f"prompt P, the others are P + {results['coefficient']:g} v, each v made from the same "
    f"P. Scores are exact match in percent on the first {results['test_examples']} test "
    "examples, mean ± sample standard deviation over the initial prompts and samples.",
    "## In short",
    "\n".join(f"- {line}" for line in _in_short(results)),
    "## (a) Mean over targets",
    markdown_table(*_mean_table(results)),
    "Minus the random start, mean ± deviation over the initial prompts, and in how many "
    "pairs of target and initial prompt it is higher : lower:",
    markdown_table(*_minus_table(results)),
    "![score against number of examples](scores.png)",
    "## (b) By target",
    *by_target,
    "## (c) How fast",
    "Exact match on validation after so many steps, mean over targets and initial prompts:",
    markdown_table(*_steps_table(results)),
    "## (d) The source prompts",
    markdown_table(*_sources_table(results)),
    f"On their own tasks, after {results['source_steps']} steps of "
    f"{results['source_batch_size']} examples of the whole training split.",
    "## What this does not show",
    _LIMITS + (_LIMITS_EMBEDDED if backbone["name"] == "tpv_jax embedded" else ""),
    "All numbers and the digest of each sample: `results.json`.",
  ]
  return "\n\n".join(parts) + "\n"


_LIMITS = (
  "- Other coefficients, learning rates or numbers of steps: none was searched.\n"
  "- Few-shot learning without a validation set: the best prompt is chosen on validation "
  "examples, as in the paper."
)
_LIMITS_EMBEDDED = (
  "\n- Anything about real language: backbone and tasks are made up.\n"
  "- Targets far from their sources: these are made of the sources' own training texts (no "
  "text of validation or test was trained on), and were chosen, with other initial prompts, "
  "because they tell the starts apart."
)


def _in_short(results: Results) -> list[str]:
  labels, summary = results["starts"], results["summary"]
  lines = []
  for number, rows in summary.items():
    ranking = sorted(rows, key=lambda start: -rows[start]["mean"])
    lines.append(
      f"{number} examples: "
      + ", ".join(f"{labels[s]} **{percent(rows[s]['mean'])}**" for s in ranking)
    )
  for start, other in (
    ("related", "random"),
    ("sum", "related"),
    ("unrelated", "random"),
  ):
    gains = [
      f"{difference(rows[start][f'minus_{other}'])} at {number}"
      for number, rows in summary.items()
    ]
    lines.append(f"{labels[start]} minus {labels[other]}: {', '.join(gains)}")
  return lines


def _header(results: Results) -> list[str]:
  return ["start", *(f"{number} examples" for number in results["scores"])]


def _mean_table(results: Results) -> tuple[list[str], Rows]:
  rows = [
    [
      label,
      *(
        f"{percent(rows[start]['mean'])} ± {percent(rows[start]['deviation'])}"
        for rows in results["summary"].values()
      ),
    ]
    for start, label in results["starts"].items()
  ]
  return _header(results), rows


def _minus_table(results: Results) -> tuple[list[str], Rows]:
  rows = [
    [
      label,
      *(
        difference(rows[start]["minus_random"]) for rows in results["summary"].values()
      ),
    ]
    for start, label in results["starts"].items()
    if start != "random"
  ]
  return _header(results), rows


def _target_table(results: Results, target: str) -> tuple[list[str], Rows]:
  rows = [
    [
      label,
      *(
        mean_and_deviation(by_start[start][target])
        for by_start in results["scores"].values()
      ),
    ]
    for start, label in results["starts"].items()
  ]
  return _header(results), rows


def _steps_table(results: Results) -> tuple[list[str], Rows]:
  rows, steps = [], []
  for number, starts in results["curves"].items():
    for start, curve in starts.items():
      steps = [f"{step} steps" for step in curve]
      label = results["starts"][start]
      rows.append([number, label, *(percent(value) for value in curve.values())])
  return ["examples", "start", *steps], rows


def _sources_table(results: Results) -> tuple[list[str], Rows]:
  rows = [[name, mean_and_deviation(s)] for name, s in results["sources"].items()]
  return ["source", "exact match"], rows


def _plot(path: pathlib.Path, results: Results) -> None:
  """Draws a panel for each target, scores against numbers of examples, a line a start."""
  targets, numbers = list(results["targets"]), list(results["scores"])
  figure, panels = new_figure(1 + 3.8 * len(targets), 4, columns=len(targets))
  for axes, target in zip(np.atleast_1d(panels), targets, strict=True):
    for place, (start, label) in enumerate(results["starts"].items()):
      scores = [
        100 * np.asarray(results["scores"][number][start][target]) for number in numbers
      ]
      axes.errorbar(
        # Beside each other, so that no bar hides another.
        np.arange(len(numbers)) + 0.08 * (place - 1.5),
        [values.mean() for values in scores],
        yerr=[values.std(ddof=1) for values in scores],
        label=label,
        marker="osD^"[place],
        capsize=3,
      )
    axes.set_xticks(range(len(numbers)), numbers)
    axes.set_xlabel("training examples of the target")
    axes.set_title(target)
    axes.set_ylim(-2, 105)
    axes.spines[["top", "right"]].set_visible(False)
  first = np.atleast_1d(panels)[0]
  first.set_ylabel("exact match on test (%)")
  first.legend(frameon=False, fontsize=8)
  save_figure(path, figure)

"""The report of a few-shot comparison."""

from collections.abc import Mapping

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
  """Returns the report: what was done, tables, a plot, and what the numbers do not show."""
  batches = ", ".join(f"{b} ({n} examples)" for n, b in results["batch_sizes"].items())
  shipped = [
    _SHIPPED.get(name, name.removeprefix("turned_")) for name in results["sources"]
  ]
  parts = [
    "# Few-shot prompt tuning from random prompts, vectors and sums",
    *provenance(results),
    f"{len(results['targets'])} targets x {len(results['starts'])} starts x "
    f"{subject(results)}. "
    f"{results['total_steps']} steps on a target for any number of examples, in batches of "
    f"{batches or 'none'}; every {results['eval_period']} steps the prompt is validated, and "
    f"the best one by {results['best_metric']} is kept. All starts of a target see the same "
    "examples in the same order; a smaller sample is part of a larger one. *Random* is the "
    f"initial prompt P, the others are P + {results['coefficient']:g} v, with v computed from "
    f"the same P. Scores are exact match in percent on the first {results['test_examples']} "
    "test examples, mean ± sample standard deviation over the initial prompts and samples.",
    "## In short",
    "\n".join(f"- {line}" for line in in_short(results)),
    "## (a) Mean over targets",
    markdown_table(*table(results)),
    "Difference from the random start, mean ± standard deviation over the initial prompts, "
    "and the number of pairs of target and initial prompt in which it is higher : lower:",
    markdown_table(*_minus_table(results)),
    "![score against number of examples](scores.png)",
    "## (b) By target",
    *_by_target(results),
    "## (c) Speed of learning",
    "Exact match on validation during tuning, mean over targets and initial prompts:",
    markdown_table(*_steps_table(results)),
    "## (d) The source prompts",
    markdown_table(*_sources_table(results)),
    f"Scores on their own tasks, after {results['source_steps']} steps of "
    f"{results['source_batch_size']} examples from the whole training split.",
    "## What this does not show",
    _LIMITS + (_LIMITS_EMBEDDED if of_the_suite(results, shipped) else ""),
    "All numbers and the digest of each sample: `results.json`.",
  ]
  return "\n\n".join(parts) + "\n"


def _by_target(results: Results) -> list[str]:
  by_target = []
  for name, target in results["targets"].items():
    roles = [f"Related: {target['related']}"]
    if "sum" in results["starts"]:
      roles.append(f"the sum: {target['related']} + {target['second']}")
    if "unrelated" in results["starts"]:
      roles.append(f"unrelated: {target['unrelated']}")
    by_target += [
      f"### {name}",
      f"{target['note']} {'; '.join(roles)}.".strip(),
      markdown_table(*_target_table(results, name)),
    ]
  return by_target


_SHIPPED = {"turned_question": "question_type"}
"""Sources of few_shot_embedded.gin that have another name than 'turned_' and the task's."""

_LIMITS = (
  "- Other coefficients, learning rates or numbers of steps: these were not searched.\n"
  "- Few-shot learning without a validation set: the best prompt is chosen on validation "
  "examples, as in the paper."
)
_LIMITS_EMBEDDED = (
  "\n- Real language: backbone and tasks are synthetic.\n"
  "- Targets far from their sources: these targets consist of the sources' own training texts "
  "(no validation or test text was trained on). They were chosen, with other initial "
  "prompts, because they distinguish the starts."
)


def in_short(results: Results) -> list[str]:
  """Returns the ranking of the starts and their differences, as text."""
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
    if start not in labels:
      continue
    gains = [
      f"{difference(rows[start][f'minus_{other}'])} at {number}"
      for number, rows in summary.items()
    ]
    lines.append(f"{labels[start]} minus {labels[other]}: {', '.join(gains)}")
  return lines


def _header(results: Results) -> list[str]:
  return ["start", *(f"{number} examples" for number in results["scores"])]


def table(results: Results) -> Table:
  """Returns the means over targets, by start and number of examples."""
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


def _minus_table(results: Results) -> Table:
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


def _target_table(results: Results, target: str) -> Table:
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


def _steps_table(results: Results) -> Table:
  rows, steps = [], []
  for number, starts in results["curves"].items():
    for start, curve in starts.items():
      steps = [f"{step} steps" for step in curve]
      label = results["starts"][start]
      rows.append([number, label, *(percent(value) for value in curve.values())])
  return ["examples", "start", *steps], rows


def _sources_table(results: Results) -> Table:
  rows = [[name, mean_and_deviation(s)] for name, s in results["sources"].items()]
  return ["source", "exact match"], rows


def pictures(results: Results) -> Mapping[str, Sheet]:
  """Returns a panel for each target: scores against examples, one line for each start."""
  scores = results["scores"]
  panels = {
    target: {
      label: [Score.of(by_start[start][target]) for by_start in scores.values()]
      for start, label in results["starts"].items()
    }
    for target in results["targets"]
  }
  ticks, label = list(scores), "training examples of the target"
  return {
    "scores.png": charts.lines(panels, ticks, label, len(results["initial_seeds"]))
  }

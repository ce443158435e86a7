"""The report of a comparison of merge rules."""

import collections
from collections.abc import Mapping
from typing import Any

import numpy as np

from tpv_jax.core.figures import Sheet
from tpv_jax.core.tables import markdown_table
from tpv_jax.studies.report import charts
from tpv_jax.studies.report.tables import (
  Results,
  Table,
  interval,
  of_the_suite,
  percent,
  provenance,
  subject,
)

LABELS = {
  "initial": "initial prompt",
  "best_single": "best single prompt",
  "joint": "tuned on all tasks",
  "concat": "concat",
  "task_arithmetic": "task_arithmetic (sum)",
}
"""Methods that are named otherwise than their rule."""

WORK = ("evaluations", "gradient_rows")
"""What is counted of choosing settings and of merging, see `DataMerges.tried`; results of
before 0.2 lack it."""


def markdown(results: Results) -> str:
  """Returns the report: what was done, tables, a picture, what it does not show."""
  seconds = results["seconds"]
  parts = [
    "# Merge rules: report",
    f"{len(results['tasks'])} tasks x {subject(results)}; {seconds['tuning']:.0f} s of "
    "this call for tuning.",
    *provenance({**results, "seconds": seconds["all"]}),
    "## In short",
    "\n".join(f"- {line}" for line in in_short(results)),
  ]
  for size in results["summary"]:
    parts += [
      f"## Sets of {size} tasks",
      markdown_table(*_summary(results, size)),
    ]
  parts += [
    "*Score*: exact match on test in percent, mean over sets, their tasks and initial "
    "prompts. *Retention*: divided by the score of the task's own prompt from the same "
    "initial prompt, the mean, and the mean of the worst task of each set. *Kept*: in how "
    "many sets and initial prompts every task keeps 90 % of it. *Minus sum*: points of "
    "exact match above the plain sum, with a 95 % interval of a paired bootstrap over rows "
    "and initial prompts; it does not cover other tasks.",
    f"Every rule chose among at most {results['budget']} settings on "
    f"{results['search_examples']} validation examples a task, for each set and initial "
    "prompt: its own options, and the length of the merged vector in units of the mean norm "
    "(lambda), from equal steps. The best single prompt was chosen in the same way; the "
    "prompt tuned on all tasks had as many steps as a prompt for one task. *Evaluations*: of "
    "a prompt on these examples, to choose; *gradient rows*: training examples (of fisher: "
    "with each label) with a forward and a backward pass.",
    *_by_data(results),
    "## By task",
    "![retention by rule and task](retention.png)",
    "Mean retention of each task in the pairs that it is part of, in percent.",
    "## Chosen settings",
    markdown_table(*_chosen(results)),
    *_left_out(results),
    _limits(results),
  ]
  return "\n\n".join(parts) + "\n"


def in_short(results: Results) -> list[str]:
  """Returns the lines that the report opens with."""
  lines = []
  for size, methods in results["summary"].items():
    most = max(found["sets"] for found in methods.values())
    rules = {
      method: found
      for method, found in methods.items()
      if method in results["rules"] and found["sets"] == most
    }
    free = [rule for rule in rules if rule not in results.get("data_options", {})]
    best = max(free, key=lambda one: rules[one]["score"])
    above = [m for m, found in rules.items() if found["minus_sum"]["low"] > 0]
    below = [m for m, found in rules.items() if found["minus_sum"]["high"] < 0]
    plain, joint = methods["task_arithmetic"], methods.get("joint")
    lines.append(
      f"sets of {size}: best rule without data **{_label(best)}** "
      f"{percent(rules[best]['score'])}, plain sum {percent(plain['score'])} "
      f"(retention {percent(plain['retention'])} %)"
      + (f", tuned on all tasks {percent(joint['score'])}" if joint else "")
    )
    reading = [
      f"{_label(method)} {percent(found['score'])} (retention "
      f"{percent(found['retention'])} %, {found['gradient_rows']:,.0f} gradient rows)"
      for method, found in methods.items()
      if method in results.get("data_options", {})
    ]
    if reading:
      lines.append(
        f"sets of {size}: rules that read data: {', '.join(reading)}"
        + (
          f"; tuning on all tasks takes {joint['gradient_rows']:,.0f} gradient rows"
          if joint
          else ""
        )
      )
    lines.append(
      f"sets of {size}: above the sum beyond its interval: {', '.join(above) or 'none'}; "
      f"below: {', '.join(below) or 'none'}"
    )
  return lines


def table(results: Results) -> Table:
  """Returns the table of pairs."""
  return _summary(results, next(iter(results["summary"])))


def pictures(results: Results) -> Mapping[str, Sheet]:
  """Returns a matrix of retention by rule and task, in pairs."""
  methods = results["summary"][next(iter(results["summary"]))]
  tasks = results["tasks"]
  values = [
    [found["tasks"].get(task) for task in tasks] + [found["retention"], found["worst"]]
    for found in methods.values()
  ]
  sheet = Sheet()
  charts.matrix(
    sheet,
    100 * np.array(values, float),
    [_label(method) for method in methods],
    [*tasks, "mean", "worst of a pair"],
    (0, 100),
    "viridis",
    "Score in pairs in percent of the own prompt's, mean over "
    f"n = {len(results['initial_seeds'])} initial prompts",
    cell=0.35,
    text="{:.0f}",
  )
  return {"retention.png": sheet}


def _label(method: str) -> str:
  return LABELS.get(method, method)


def _summary(results: Results, size: str) -> Table:
  methods = results["summary"][size]
  most = max(found["sets"] for found in methods.values())
  rows = [
    [
      _label(method)
      + ("" if found["sets"] == most else f" ({found['sets']} of {most} sets)"),
      percent(found["score"]),
      percent(found["retention"]),
      percent(found["worst"]),
      percent(found["kept"]),
      "" if method == "task_arithmetic" else interval(found["minus_sum"]),
      *(f"{found[name]:,.0f}" if name in found else "" for name in WORK),
    ]
    for method, found in sorted(methods.items(), key=lambda one: -one[1]["score"])
  ]
  header = ["", "score", "retention", "worst", "kept", "minus sum"]
  return [*header, "evaluations", "gradient rows"], rows


def _chosen(results: Results) -> Table:
  """Returns the ranges of the settings that rules chose, over sets and initial prompts."""
  found: dict[str, dict[str, list[Any]]] = {}
  for one in results["sets"]:
    for method, measured in one["methods"].items():
      for settings in measured["chosen"] if method in results["rules"] else ():
        for name, value in settings.items():
          found.setdefault(method, {}).setdefault(name, []).append(value)
  rows = [
    [
      _label(method),
      ", ".join(f"{name} {_range(values)}" for name, values in settings.items()),
    ]
    for method, settings in found.items()
  ]
  return ["rule", "chosen: median (least to most)"], rows


def _range(values: list[Any]) -> str:
  if isinstance(values[0], bool):
    return f"true in {sum(values)} of {len(values)}"
  if isinstance(values[0], str):
    counts = collections.Counter(values)
    return ", ".join(f"{one} in {n} of {len(values)}" for one, n in counts.items())
  if isinstance(values[0], list):
    values = [value for some in values for value in some]
  return f"{np.median(values):.2g} ({min(values):.2g} to {max(values):.2g})"


def _by_data(results: Results) -> list[str]:
  """Returns the options of the rules that read data, beside those that they chose."""
  lines = []
  for rule, choices in results.get("data_options", {}).items():
    common = ", ".join(
      f"{name} {value}"
      for name, value in choices[0].items()
      if all(choice[name] == value for choice in choices)
    )
    lines.append(f"- {rule}: {common}")
  if not lines:
    return []
  return [
    "Options of the rules that read data, beside those that they chose:",
    "\n".join(lines),
  ]


def _left_out(results: Results) -> list[str]:
  reasons: dict[tuple[str, str], int] = {}
  for one in results["sets"]:
    for rule, why in one["left_out"].items():
      reasons[rule, why] = reasons.get((rule, why), 0) + 1
  if not reasons:
    return []
  lines = [
    f"- {_label(rule)}, in {count} of {len(results['sets'])} sets: {why}"
    for (rule, why), count in reasons.items()
  ]
  return ["## Not compared", "\n".join(lines)]


def _limits(results: Results) -> str:
  limits = (
    "## What this does not show\n\nOther tasks, longer training and other prompt lengths "
    "may change the order. Weights of single vectors were not searched. Rules made for "
    "weight matrices (tsv, iso_c, wudi) have no theory for prompts."
  )
  if of_the_suite(results, results["tasks"]):
    limits += (
      " The embedded backbone is a toy: its prompts are short, its tasks are unrelated by "
      "construction, and its numbers say nothing about language."
    )
  return limits

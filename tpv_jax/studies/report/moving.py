"""The report of a study of what makes vectors move and add."""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np

from tpv_jax.core.figures import Sheet
from tpv_jax.core.tables import markdown_table
from tpv_jax.studies.report import charts
from tpv_jax.studies.report.tables import (
  METRICS,
  Results,
  Table,
  percent,
  provenance,
  subject,
)
from tpv_jax.vectors.moving import MOVES_FROM

KINDS = {
  "moved": "on another start",
  "summed": "in a sum of two",
  "control": "control: another task's prompt",
}
"""What is compared with a task's own prompt, with the names in pictures."""


def markdown(results: Results) -> str:
  """Returns the report: what was done, tables, pictures, what the numbers don't show."""
  first = results["variants"][0]["settings"]
  scale = "" if first["scale"] is None else f" of scale {first['scale']:g}"
  tried = ", ".join(f"{one:g}" for one in results["coefficients"])
  parts = [
    "# What makes a vector move, and add",
    *provenance(results),
    f"{len(results['tasks'])} tasks x {subject(results)}. The base variant: start "
    f"`{first['start']}`{scale}, learning rate {first['learning_rate']:g}, "
    f"{first['steps']} steps of {results['batch_size']} examples, P = {first['length']}; the "
    f"best prompt by {results['best_metric']} on validation. Each other variant changes what "
    "its name says. Test examples: "
    + ", ".join(f"{name} {n}" for name, n in results["test_examples"].items())
    + ".",
    "## In short",
    "\n".join(f"- {line}" for line in in_short(results)),
    "## Scores",
    markdown_table(*table(results)),
    "Exact match / accuracy among the task's labels in percent, means over the initial "
    "prompts. *Ratio*: norm(vector) / norm(start). *Untuned*: the start alone. *Other start*: "
    "the vector on each start that it was not tuned from. *Control*: the prompts of the other "
    "tasks from the same start. *In sums*: the sums with each other task's vector, one "
    f"coefficient chosen on validation among {tried}. "
    "*Averaged*: the mean of the task's vectors on a start from which nothing was tuned.",
    "![exact match against the ratio](moving.png)",
    "![accuracy among labels against the ratio](moving_labels.png)",
    f"The dashed line is at {MOVES_FROM:g}, below which `tpv show V` gives a hint.",
    "## Norms and cosines",
    markdown_table(*_lengths_table(results)),
    "Means over the initial prompts. *Same task*: cosine of the task's vectors from different "
    "starts. *Same start*: cosine with the other tasks' vectors from one start.",
    "All numbers: `results.json`; a row for each variant, task and start: `results.csv`.",
  ]
  return "\n\n".join(parts) + "\n"


def in_short(results: Results) -> list[str]:
  """Returns which variants move and add, with their ratios, as text."""
  summary = results["summary"]
  found = summary["variants"]
  names = {one["name"]: label(one) for one in results["variants"]}
  kept = percent(summary["kept"])

  def by_ratio(some: Iterable[str]) -> list[str]:
    return sorted(some, key=lambda one: float(found[one]["ratio"]))

  lines = []
  for word, told in (
    ("moving", "on another start"),
    ("adding", "in sums of two"),
  ):
    some = summary[f"{word}_keeps"]
    others = [one for one in found if one not in some]
    ratios = [
      f"{what} with {_ratios([found[one]['ratio'] for one in by_ratio(few)])}"
      for what, few in (("those", some), ("the others", others))
      if few
    ]
    lines.append(
      f"{told}, each task keeps at least {kept} % of its exact match in **{len(some)} of "
      f"{len(found)}** variants: {', '.join(ratios)}"
    )
  both = [one for one in summary["moving_keeps"] if one in summary["adding_keeps"]]
  lines.append("both: " + (", ".join(names[one] for one in both) or "none"))
  lines.append(
    "by rising ratio, what the worst task keeps on another start / in sums: "
    + ", ".join(
      f"{found[one]['ratio']:.3g}: {percent(found[one]['moving'])} / "
      f"{percent(found[one]['adding'])}"
      for one in by_ratio(found)
    )
  )
  return lines


def _ratios(rising: Sequence[float]) -> str:
  """Returns the lowest and the highest as text, one where there is only one."""
  if len(rising) == 1:
    return f"a ratio of {rising[0]:.3g}"
  return f"ratios of {rising[0]:.3g} to {rising[-1]:.3g}"


def label(variant: Mapping[str, Any]) -> str:
  """Returns a variant's name for people: what it changes."""
  changed = variant["changed"]
  told = []
  if "start" in changed or "scale" in changed:
    scale = variant["settings"]["scale"]
    told.append(variant["settings"]["start"] + ("" if scale is None else f" {scale:g}"))
  if "rate" in changed:
    told.append(f"learning rate {variant['settings']['learning_rate']:g}")
  if "steps" in changed:
    told.append(f"{changed['steps']} steps")
  if "length" in changed:
    told.append(f"P = {changed['length']}")
  return ", ".join(told) or "base"


def table(results: Results) -> Table:
  """Returns the scores of each variant and task, means over initial prompts."""
  kinds = ("untuned", "own", "moved", "control", "summed")
  rows = []
  for variant in results["variants"]:
    for name, one in variant["tasks"].items():
      scores = [_both(one[kind]) for kind in kinds]
      rows.append(
        [
          label(variant),
          name,
          f"{np.mean(one['ratio']):.3g}",
          *scores,
          _both([one["averaged"]]),
        ]
      )
  header = ["variant", "task", "ratio", "untuned", "own", "other start", "control"]
  return [*header, "in sums", "averaged"], rows


def _both(scores: Sequence[Mapping[str, float]]) -> str:
  """Returns the means of both metrics, in percent."""
  return " / ".join(percent(float(np.mean([s[m] for s in scores]))) for m in METRICS)


def _lengths_table(results: Results) -> Table:
  rows = []
  for variant in results["variants"]:
    for name, one in variant["tasks"].items():
      chosen = [
        coefficient
        for total in variant["sums"]
        if name in total["tasks"]
        for coefficient in total["coefficient"]
      ]
      rows.append(
        [
          label(variant),
          name,
          f"{np.mean(variant['start_norm']):.3g}",
          f"{np.mean(one['vector_norm']):.3g}",
          f"{np.mean(one['cosine_same_task']):.2f}",
          f"{np.mean(one['cosine_same_start']):.2f}",
          ", ".join(f"{one:g}" for one in chosen),
        ]
      )
  header = ["variant", "task", "norm of start", "of vector", "same task", "same start"]
  return [*header, "coefficients of its sums"], rows


def retention(
  of_task: Mapping[str, Any], kind: str, metric: str = "exact_match"
) -> list[float]:
  """Returns a kind's scores, one for each initial prompt, over the own prompts' mean.

  Empty where the own prompts score 0.
  """
  own = float(np.mean([score[metric] for score in of_task["own"]]))
  return [score[metric] / own for score in of_task[kind]] if own else []


def csv_rows(
  variants: Sequence[Mapping[str, Any]], seeds: Sequence[int]
) -> list[dict[str, Any]]:
  """Returns a row for each variant, task and initial prompt."""
  rows = []
  for variant in variants:
    for name, one in variant["tasks"].items():
      for place, seed in enumerate(seeds):
        row = {
          "variant": label(variant),
          **variant["settings"],
          "task": name,
          "initial_seed": seed,
          "start_norm": variant["start_norm"][place],
          **{
            key: one[key][place]
            for key in ("vector_norm", "ratio", "cosine_same_task", "cosine_same_start")
          },
        }
        for kind in ("untuned", "own", *KINDS):
          row |= {f"{kind}_{m}": one[kind][place][m] for m in METRICS}
        row |= {f"averaged_{m}": one["averaged"][m] for m in METRICS}
        rows.append(row)
  return rows


def pictures(results: Results) -> Mapping[str, Sheet]:
  """Returns a panel for each task: what is kept of its own score against the ratio."""
  return {
    "moving.png": _draw(results, "exact_match"),
    "moving_labels.png": _draw(results, "label_accuracy"),
  }


def _draw(results: Results, metric: str) -> Sheet:
  panels: dict[str, dict[str, list[charts.Point]]] = {}
  for name in results["tasks"]:
    series = panels[name] = {told: [] for told in KINDS.values()}
    for variant in results["variants"]:
      one = variant["tasks"][name]
      for kind, told in KINDS.items():
        kept = [100.0 * part for part in retention(one, kind, metric)]
        ratio = float(np.mean(one["ratio"]))
        if kept and ratio > 0:
          series[told].append((ratio, kept))
  return charts.against(
    panels,
    "norm(vector) / norm(start)",
    f"{METRICS[metric]}, % of the own prompt's\nmean and range, n = "
    f"{len(results['initial_seeds'])} initial prompts",
    MOVES_FROM,
  )

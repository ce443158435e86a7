"""The picture of a run's metrics: loss and exact match over the steps.

matplotlib is imported when a picture is drawn. The same metrics give the same bytes, so
that a run that was killed and resumed ends with the picture of an unbroken one.
"""

from collections.abc import Mapping, Sequence
from typing import Any

from tpv_jax.core import files, screen
from tpv_jax.core.errors import printable
from tpv_jax.core.figures import SIZE, Sheet, wrapped
from tpv_jax.runs import records

Lines = Sequence[Mapping[str, Any]]
"""The lines of a run's metrics.jsonl."""

_WIDTH, _HEIGHT = 4.2, 2.8
"""Of a panel, in inches."""

_PANELS = {"loss": ("loss (nats per target token)", 1.0), "exact_match": ("%", 100.0)}
"""A metric -> the label of its axis, and the factor by which it is drawn."""

_NAMED = 20
"""The most prompts of a bank that a legend names."""


def write(path: files.Path, sheet_of: Any, *arguments: Any) -> bool:
  """Writes the picture that a function of this module draws; returns whether it could.

  If it could not, a line says why: a picture that cannot be written ends no run.

  Args:
    path: of the PNG.
    sheet_of: `one` or `many`.
    *arguments: for it.
  """
  try:
    files.write_bytes(path, sheet_of(*arguments).png())
  except ImportError:
    screen.say("matplotlib is not installed: no picture of the curves is drawn.")
    return False
  except Exception as error:  # Of matplotlib, its settings or the file.
    screen.say(
      f"'{path}', the picture of the curves, is not written: "
      f"{printable(f'{type(error).__name__}: {error}'):.200}"
    )
    return False
  return True


def one(manifest: Mapping[str, Any], lines: Lines) -> Sheet:
  """Returns the curves of a run: train and validation, with untuned and majority as lines.

  Args:
    manifest: of the run.
    lines: of its metrics.
  """
  sheet = Sheet(columns=2, title=printable(str(manifest.get("task", ""))))
  for metric, (label, factor) in _PANELS.items():
    axes = _panel(sheet, metric, label)
    for kind, style in (("train", "-"), ("validation", "o-")):
      _curve(axes, lines, kind, metric, factor, style, label=kind, markersize=3)
    untuned = (manifest.get(records.UNTUNED) or {}).get(metric)
    if untuned is not None:
      axes.axhline(
        factor * untuned, color="grey", ls="--", lw=1, label="untuned, validation"
      )
    majority = manifest.get("majority")
    if metric == "exact_match" and majority:
      name = wrapped(f"always '{printable(majority['label']):.30}'", 1.6)
      axes.axhline(factor * majority["share"], color="C3", ls=":", lw=1, label=name)
    _finish(axes, metric)
  return sheet


def many(runs: Mapping[str, Lines]) -> Sheet:
  """Returns the validation curves of the prompts of a bank.

  Args:
    runs: name -> lines of its metrics.
  """
  sheet = Sheet(columns=2, title=f"{len(runs)} prompts, validation")
  for metric, (label, factor) in _PANELS.items():
    axes = _panel(sheet, metric, label)
    for name, lines in runs.items():
      named = {"label": printable(name)} if len(runs) <= _NAMED else {}
      _curve(axes, lines, "validation", metric, factor, ".-", lw=1, **named)
    _finish(axes, metric)
  return sheet


def _panel(sheet: Sheet, metric: str, label: str) -> Any:
  axes = sheet.panel(_WIDTH, _HEIGHT, metric.replace("_", " "))
  axes.set_xlabel("step", fontsize=SIZE)
  axes.set_ylabel(label, fontsize=SIZE)
  axes.tick_params(labelsize=SIZE)
  axes.grid(alpha=0.25)
  return axes


def _curve(
  axes: Any,
  lines: Lines,
  kind: str,
  metric: str,
  factor: float,
  style: str,
  **options: Any,
) -> None:
  """Draws a metric of the lines of one kind; what was not finite is a gap."""
  points = [
    (line["step"], factor * line[metric])
    for line in lines
    if line["kind"] == kind and line.get(metric) is not None
  ]
  if points:
    axes.plot(*zip(*points, strict=True), style, **options)


def _finish(axes: Any, metric: str) -> None:
  axes.set_xlim(left=0)
  if metric == "exact_match":
    axes.set_ylim(-2.5, 105.0)
  elif axes.lines:
    axes.set_ylim(bottom=0)
  if axes.get_legend_handles_labels()[1]:
    for text in axes.legend(fontsize=SIZE - 1).get_texts():
      text.set_parse_math(False)

"""Charts of scores: bars by task, lines by number, matrices of tasks; all in percent.

A score is the mean over initial prompts, with a dot for each of them and their sample
standard deviation as an error bar, cut off at 0 and 100.
"""

import dataclasses
import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from jaxtyping import Float

from tpv_jax.core.figures import SIZE, Sheet, line_height, wrapped

SCORE = "exact match on test (%)"
WIDEST, LEAST = 11.0, 2.4
"""The bounds of a panel, in inches."""

_BAR, _BETWEEN = 0.19, 0.4
"""The width of a bar and the gap between two tasks, in inches."""

_LOW, _HIGH = -2.5, 105.0
"""The ends of the axis of scores: below 0, so that bars of 0 are visible lines."""

_MARKERS = "osD^vXP*<>"


@dataclasses.dataclass(frozen=True)
class Score:
  """The scores of some initial prompts, in percent."""

  values: tuple[float, ...]

  @classmethod
  def of(cls, fractions: Sequence[float]) -> "Score":
    """Returns the score of fractions in [0, 1]."""
    return cls(tuple(100.0 * float(value) for value in fractions))

  @property
  def mean(self) -> float:
    """The mean."""
    return float(np.mean(self.values))

  @property
  def error(self) -> tuple[float, float]:
    """The error bar's lengths down and up, cut off at 0 and 100."""
    if len(self.values) < 2:
      return 0.0, 0.0
    deviation = float(np.std(self.values, ddof=1))
    return min(deviation, self.mean), min(deviation, 100.0 - self.mean)

  @property
  def reach(self) -> tuple[float, float]:
    """The smallest and the largest value drawn."""
    down, up = self.error
    return (
      min((*self.values, self.mean - down)),
      max((*self.values, self.mean + up)),
    )


Series = Mapping[str, Sequence[Score]]
"""Name -> scores, one for each group."""


def bars(groups: Sequence[str], series: Series, seeds: int) -> Sheet:
  """Returns grouped bars, in several rows if one would be too wide.

  Args:
    groups: the tasks.
    series: what is compared on each task.
    seeds: how many initial prompts there are.
  """
  each = len(series) * _BAR + _BETWEEN
  rows = math.ceil(len(groups) / max(1, int(WIDEST / each)))
  in_row = math.ceil(len(groups) / rows)
  each = max(each, LEAST / in_row)
  sheet = Sheet()
  for first in range(0, len(groups), in_row):
    some = groups[first : first + in_row]
    axes = sheet.panel(each * len(some), 3.0)
    for number, (name, scores) in enumerate(series.items()):
      beside = (number - (len(series) - 1) / 2) * _BAR / each
      places = np.arange(len(some)) + beside
      shown = scores[first : first + in_row]
      colour = f"C{number}"
      axes.bar(
        places,
        [score.mean for score in shown],
        0.85 * _BAR / each,
        label=name,
        color=colour,
        edgecolor=colour,  # A bar of 0 is this line.
        linewidth=2.0,
      )
      _spread(axes, places, shown, "black", capsize=2)
    # Half of the gap between two groups is left before the first and after the last.
    axes.set_xlim(-0.5, len(some) - 0.5)
    labels = [wrapped(name, each - 0.08) for name in some]
    axes.set_xticks(range(len(some)), labels, fontsize=SIZE, parse_math=False)
    _scores_axis(axes, seeds)
    if not first:
      _legend(axes)
  return sheet


def lines(
  panels: Mapping[str, Series],
  ticks: Sequence[str],
  label: str,
  seeds: int,
  close: bool = False,
) -> Sheet:
  """Returns a panel for each name, with a line for each of its series.

  Args:
    panels: title -> series, with a score for each tick.
    ticks: the labels of the horizontal axis, from left to right.
    label: of that axis.
    seeds: how many initial prompts there are.
    close: limit the axis of scores to the values drawn, instead of 0 to 100.
  """
  columns = min(3, len(panels))
  sheet = Sheet(columns)
  most = max(len(series) for series in panels.values())
  each = max(0.09 * most + 0.3, (4.0 if len(panels) == 1 else 3.0) / len(ticks))
  for place, (title, series) in enumerate(panels.items()):
    axes = sheet.panel(each * len(ticks), 3.2, title)
    for number, (name, scores) in enumerate(series.items()):
      # Shifted sideways, so that no error bar hides another.
      places = np.arange(len(ticks)) + (number - (len(series) - 1) / 2) * 0.09 / each
      colour = f"C{number}"
      means = [score.mean for score in scores]
      marker = _MARKERS[number % len(_MARKERS)]
      axes.plot(places, means, label=name, color=colour, marker=marker, markersize=5)
      _spread(axes, places, scores, colour, capsize=3)
    axes.set_xticks(range(len(ticks)), ticks, fontsize=SIZE)
    axes.set_xlim(-0.5, len(ticks) - 0.5)
    width = each * len(ticks)
    axes.set_xlabel(wrapped(label, width, SIZE + 1), fontsize=SIZE + 1)
    _scores_axis(axes, seeds, labelled=not place % columns)
    if close:
      values = [
        one for some in series.values() for score in some for one in score.reach
      ]
      axes.set_ylim(max(_LOW, min(values) - 3), min(_HIGH, max(values) + 3))
    if place == columns - 1:
      _legend(axes)
  return sheet


Point = tuple[float, Sequence[float]]
"""A number on the horizontal axis, and the values there, one for each initial prompt."""


def against(
  panels: Mapping[str, Mapping[str, Sequence[Point]]],
  label: str,
  scores: str,
  mark: float,
) -> Sheet:
  """Returns a panel for each name: the points of its series over a logarithmic axis.

  Args:
    panels: title -> series -> points, drawn as their mean and range.
    label: of the horizontal axis.
    scores: of the vertical axis, in percent.
    mark: where a line is drawn on the horizontal axis.
  """
  columns = min(3, len(panels))
  sheet, width = Sheet(columns), 3.0
  highest = max(
    (
      max(some)
      for one in panels.values()
      for points in one.values()
      for _, some in points
    ),
    default=0.0,
  )
  logs = [
    math.log10(at)
    for one in panels.values()
    for points in one.values()
    for at, _ in points
  ]
  # Whole decades, because only these are labelled.
  decades = math.floor(min(logs, default=0.0)), math.ceil(max(logs, default=1.0) + 1e-9)
  for place, (title, series) in enumerate(panels.items()):
    axes = sheet.panel(width, 3.0, title)
    axes.axvline(mark, color="0.7", linewidth=0.8, linestyle="--")
    axes.axhline(100, color="0.7", linewidth=0.8)
    for number, (name, points) in enumerate(series.items()):
      colour, marker = f"C{number}", _MARKERS[number]
      places = [at for at, _ in points]
      for at, values in points:
        axes.plot([at, at], [min(values), max(values)], color=colour, linewidth=0.8)
      means = [float(np.mean(values)) for _, values in points]
      style = {"linestyle": "none", "marker": marker, "markersize": 4.5}
      axes.plot(places, means, label=name, color=colour, fillstyle="none", **style)
    axes.set_xscale("log")
    axes.xaxis.set_major_formatter("{x:g}")
    axes.xaxis.set_minor_formatter("")
    axes.set_xlim(0.8 * 10 ** decades[0], 1.25 * 10 ** decades[1])
    axes.set_xlabel(wrapped(label, width, SIZE + 1), fontsize=SIZE + 1)
    axes.tick_params(labelsize=SIZE, which="both")
    axes.set_ylim(_LOW, max(_HIGH, highest + 5))
    axes.spines[["top", "right"]].set_visible(False)
    if not place % columns:
      axes.set_ylabel(scores, fontsize=SIZE)
    if place == columns - 1:
      _legend(axes)
  return sheet


def matrix(  # noqa: PLR0913 (how it looks, by keywords)
  sheet: Sheet,
  values: Float[np.ndarray, "R C"],
  rows: Sequence[str],
  columns: Sequence[str],
  bounds: tuple[float, float],
  colours: str,
  title: str,
  cell: float = 0.6,
  text: str = "",
  parts: Sequence[str] = (),
) -> None:
  """Draws a matrix of coloured cells as a panel of a sheet.

  Args:
    sheet: where the panel is drawn.
    values: NaN where there are none.
    rows: the rows' names, from the top. With `parts`, each names as many rows.
    columns: likewise.
    bounds: the values at the two ends of the colour map.
    colours: a colour map of matplotlib.
    title: of the panel.
    cell: inches of a cell, more if there are few of them.
    text: the format of the value in a cell; '' shows none.
    parts: the short names of the rows, and of the columns, of each name.
  """
  high, wide = values.shape
  cell = max(cell, LEAST / min(high, wide))
  axes = sheet.panel(cell * wide, cell * high, title)
  low, top = bounds
  image = axes.imshow(values, vmin=low, vmax=top, cmap=colours, aspect="auto")
  sheet.colorbar(axes, image)
  each = cell * max(1, len(parts))
  for axis, names in ((axes.xaxis, columns), (axes.yaxis, rows)):
    _name(axis, names, parts, each)
  if parts:
    for border in np.arange(len(parts), high, len(parts)) - 0.5:
      axes.axhline(border, color="black", linewidth=0.6)
      axes.axvline(border, color="black", linewidth=0.6)
  for (row, column), value in np.ndenumerate(values) if text else ():
    if np.isfinite(value):
      colour = "white" if value < (low + top) / 2 else "black"
      centred = {"ha": "center", "va": "center", "fontsize": SIZE}
      axes.text(column, row, text.format(value), color=colour, **centred)


def _name(axis: Any, names: Sequence[str], parts: Sequence[str], each: float) -> None:
  """Labels an axis with the names and their parts; columns are labelled upright."""
  labels = [
    wrapped(name, 2.0, lines=max(1, int(each / line_height()))) for name in names
  ]
  count = max(1, len(parts))
  upright = {"rotation": 90} if axis.axis_name == "x" else {}
  places = np.arange(len(names)) * count + (count - 1) / 2
  axis.remove_overlapping_locs = False  # Keeps a part's tick in the middle of a name.
  axis.set_ticks(places, labels, fontsize=SIZE, parse_math=False, **upright)
  if parts:
    longest = max(map(len, parts))
    every = np.arange(len(names) * count)
    axis.set_ticks(every, [*parts] * len(names), minor=True)
    axis.set_tick_params(
      which="minor", labelsize=SIZE - 2, labelrotation=90 if upright else 0
    )
    axis.set_tick_params(which="major", length=0, pad=10 + (SIZE - 2) * 0.7 * longest)


def _spread(
  axes: Any, places: Any, scores: Sequence[Score], colour: str, capsize: int
) -> None:
  """Draws error bars, and a dot for each initial prompt."""
  several = [
    (place, score)
    for place, score in zip(places, scores, strict=True)
    if len(score.values) > 1
  ]
  if not several:
    return
  at = [place for place, _ in several]
  axes.errorbar(
    at,
    [score.mean for _, score in several],
    yerr=np.transpose([score.error for _, score in several]),
    fmt="none",
    ecolor=colour,
    elinewidth=1.0,
    capsize=capsize,
  )
  dots = [(place, value) for place, score in several for value in score.values]
  axes.scatter(
    *np.transpose(dots), s=5, color="white", edgecolors=colour, linewidths=0.6, zorder=4
  )


def _scores_axis(axes: Any, seeds: int, labelled: bool = True) -> None:
  axes.set_ylim(_LOW, _HIGH)
  axes.tick_params(axis="y", labelsize=SIZE)
  axes.spines[["top", "right"]].set_visible(False)
  if labelled:
    axes.set_ylabel(
      f"{SCORE}\nmean, sd and each of n = {seeds} initial prompts", fontsize=SIZE
    )


def _legend(axes: Any) -> None:
  axes.legend(frameon=False, fontsize=SIZE, loc="upper left", bbox_to_anchor=(1.0, 1.0))

"""Pictures whose panels have exactly the requested size, however long the names are.

Text takes no room from a panel: panels are placed so that the text around them fits, and
the picture grows. matplotlib is imported when something is drawn, and pyplot never, so no
screen is needed and no global state changes.
"""

import functools
import io
import math
import re
from typing import Any

INCH = 72.0
"""Points per inch; sizes of letters are in points."""

SIZE = 8.0
"""Default size of letters, in points."""

_NARROWEST = 2.4
"""Least width of a panel's title, in inches."""

_GAP = 0.25
"""Inches between two panels with their texts; half of it at the edges."""


class Sheet:
  """A picture of panels, row by row."""

  def __init__(self, columns: int = 1, title: str = "", dpi: int = 120):
    """Makes an empty picture.

    Args:
      columns: panels in a row.
      title: above all panels.
      dpi: dots per inch.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    self.figure = Figure(dpi=dpi)
    self._canvas = FigureCanvasAgg(self.figure)
    self._columns, self._title = columns, title
    self._panels: list[tuple[Any, float, float]] = []

  def panel(self, width: float, height: float, title: str = "") -> Any:
    """Returns the axes of a new panel, whose size is in inches."""
    # The label distinguishes it from other axes at the same place.
    axes = self.figure.add_axes((0, 0, 1, 1), label=str(len(self._panels)))
    if title:
      text = wrapped(title, max(width, _NARROWEST), SIZE + 1)
      axes.set_title(text, fontsize=SIZE + 1, parse_math=False)
    self._panels.append((axes, width, height))
    wide, high = self.figure.get_size_inches()
    axes.set_position((0, 0, width / wide, height / high))
    return axes

  def colorbar(self, axes: Any, image: Any, label: str = "") -> None:
    """Draws the scale of a panel's colours beside it."""
    width = next(width for one, width, _ in self._panels if one is axes)
    place = axes.inset_axes((1 + 0.1 / width, 0, 0.13 / width, 1))
    bar = self.figure.colorbar(image, cax=place)
    place.tick_params(labelsize=SIZE)
    bar.set_label(label, fontsize=SIZE)

  def arrange(self) -> Any:
    """Gives every panel its place and the figure its size; returns the figure."""
    rows = math.ceil(len(self._panels) / self._columns)
    lefts, widths, rights = ([0.0] * self._columns for _ in range(3))
    bottoms, heights, tops = ([0.0] * rows for _ in range(3))
    for number, (axes, width, height) in enumerate(self._panels):
      row, column = divmod(number, self._columns)
      left, bottom, right, top = self._around(axes, width, height)
      lefts[column] = max(lefts[column], left)
      rights[column] = max(rights[column], right)
      widths[column] = max(widths[column], width)
      bottoms[row] = max(bottoms[row], bottom)
      tops[row] = max(tops[row], top)
      heights[row] = max(heights[row], height)
    wide = sum(lefts) + sum(widths) + sum(rights) + _GAP * self._columns
    high = sum(bottoms) + sum(heights) + sum(tops) + _GAP * rows
    title = wrapped(self._title, wide - _GAP, SIZE + 3)
    high += _GAP / 2 + (title.count("\n") + 1) * line_height(SIZE + 3) if title else 0.0
    self.figure.set_size_inches(wide, high)
    if title:
      below = 1 - _GAP / 2 / high
      self.figure.suptitle(
        title, y=below, va="top", fontsize=SIZE + 3, parse_math=False
      )
    for number, (axes, width, height) in enumerate(self._panels):
      row, column = divmod(number, self._columns)
      before = slice(column)
      x = sum(lefts[before]) + sum(widths[before]) + sum(rights[before])
      x += _GAP * (column + 0.5) + lefts[column]
      after = slice(row + 1, None)
      y = sum(bottoms[after]) + sum(heights[after]) + sum(tops[after])
      y += _GAP * (rows - row - 0.5) + bottoms[row]
      # Panels are aligned at the top of their row.
      y += heights[row] - height
      axes.set_position((x / wide, y / high, width / wide, height / high))
    return self.figure

  def png(self) -> bytes:
    """Returns the arranged picture as PNG."""
    content = io.BytesIO()
    self.arrange().savefig(content, format="png")
    return content.getvalue()

  def _around(
    self, axes: Any, width: float, height: float
  ) -> tuple[float, float, float, float]:
    """Returns the inches that its texts need left, below, right and above a panel."""
    wide, high = self.figure.get_size_inches()
    axes.set_position((0, 0, width / wide, height / high))
    renderer, dpi = self._canvas.get_renderer(), self.figure.dpi
    own, whole = axes.get_window_extent(renderer), axes.get_tightbbox(renderer)
    gaps = (own.x0 - whole.x0, own.y0 - whole.y0, whole.x1 - own.x1, whole.y1 - own.y1)
    left, bottom, right, top = (max(0.0, gap / dpi) for gap in gaps)
    return left, bottom, right, top


def line_height(size: float = SIZE) -> float:
  """Returns the inches from one line of text to the next, slightly above matplotlib's."""
  return 1.3 * size / INCH


def wrapped(
  text: str, width: float, size: float = SIZE, lines: int | None = None
) -> str:
  """Returns the text broken into lines of at most `width` inches.

  Lines are broken after spaces and the signs that join words in names, or anywhere if
  there are none.

  Args:
    text: to break; its own line ends are kept.
    width: of a line, in inches.
    size: of the letters, in points.
    lines: most lines for each line of the text; `width` is exceeded to keep to it.
  """
  if "\n" in text:
    return "\n".join(wrapped(line, width, size, lines) for line in text.split("\n"))
  pieces = re.findall(r"[^\s_\-/+.:]*[\s_\-/+.:]+|[^\s_\-/+.:]+", text)
  found, line = [], ""
  for piece in pieces:
    if line and _width((line + piece).rstrip(), size) > width:
      found.append(line.rstrip())
      line = ""
    line += piece
    while _width(line.rstrip(), size) > width and len(line.rstrip()) > 1:
      most = next(
        (n for n in range(len(line) - 1, 1, -1) if _width(line[:n], size) <= width), 1
      )
      found.append(line[:most])
      line = line[most:]
  found += [line.rstrip()] if line.strip() else []
  if lines is not None and len(found) > lines:
    return wrapped(text, 1.2 * width, size, lines)
  return "\n".join(found)


@functools.cache
def _width(text: str, size: float) -> float:
  """Returns the width of a line in inches, plus 3 % because letters start on whole dots."""
  from matplotlib.font_manager import FontProperties
  from matplotlib.textpath import TextToPath

  properties = FontProperties(size=size)
  found = TextToPath().get_text_width_height_descent(text, properties, ismath=False)
  return 1.03 * found[0] / INCH

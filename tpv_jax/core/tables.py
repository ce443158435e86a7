"""Tables as plain text, for verbs that start at once, and as HTML for notebooks."""

import csv
import io
from collections.abc import Mapping, Sequence
from html import escape
from typing import Any

from tpv_jax.core.errors import printable


def aligned(rows: Sequence[Sequence[str]], left: int = 1) -> str:
  """Returns rows as lines, their columns aligned two spaces apart.

  Each cell is made `printable`, so that a name with a line end makes no line of its own.

  Args:
    rows: all of one length; at least one.
    left: how many of the first columns are aligned to the left, the others to the right.
  """
  shown = [[printable(cell) for cell in row] for row in rows]
  widths = [max(map(len, column)) for column in zip(*shown, strict=True)]
  lines = []
  for row in shown:
    cells = [
      f"{cell:<{width}}" if number < left else f"{cell:>{width}}"
      for number, (cell, width) in enumerate(zip(row, widths, strict=True))
    ]
    lines.append("  ".join(cells).rstrip())
  return "\n".join(lines)


def markdown_table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
  """Returns a table in Markdown."""
  lines = [header, ["---"] * len(header), *rows]
  return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def spread(mean: float, deviation: float) -> str:
  """Returns the mean and deviation of fractions as text, in percent."""
  return f"{100 * mean:.1f} ± {100 * deviation:.1f}"


def csv_text(rows: Sequence[Mapping[str, Any]]) -> str:
  """Returns rows by column as CSV with a header and all digits; what is missing is empty."""
  columns = list(dict.fromkeys(name for row in rows for name in row))
  text = io.StringIO()
  writer = csv.DictWriter(text, columns, lineterminator="\n")
  writer.writeheader()
  writer.writerows(rows)
  return text.getvalue()


def html(rows: Sequence[Sequence[Any]], header: Sequence[str] = ()) -> str:
  """Returns rows as a table for notebooks, every text escaped; None is 'unknown'."""
  return (
    f"<table>{_html_row(header, 'th') if header else ''}"
    f"{''.join(_html_row(row, 'td') for row in rows)}</table>"
  )


def _html_row(cells: Sequence[Any], kind: str) -> str:
  shown = ("unknown" if cell is None else printable(str(cell)) for cell in cells)
  return f"<tr>{''.join(f'<{kind}>{escape(text)}</{kind}>' for text in shown)}</tr>"

"""Tables as plain text, for verbs that start at once."""

from collections.abc import Sequence


def aligned(rows: Sequence[Sequence[str]], left: int = 1) -> str:
  """Returns rows as lines, their columns aligned two spaces apart.

  Args:
    rows: all of one length; at least one.
    left: how many of the first columns are aligned to the left, the others to the right.
  """
  widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
  lines = []
  for row in rows:
    cells = [
      f"{cell:<{width}}" if number < left else f"{cell:>{width}}"
      for number, (cell, width) in enumerate(zip(row, widths, strict=True))
    ]
    lines.append("  ".join(cells).rstrip())
  return "\n".join(lines)

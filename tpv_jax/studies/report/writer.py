"""What is written and printed of any study: `report.md`, its pictures, a table, lines."""

import pathlib
from collections.abc import Mapping
from typing import Any, Protocol, runtime_checkable

from tpv_jax.core import files, screen
from tpv_jax.core.figures import Sheet
from tpv_jax.studies.report.tables import Results, Table


@runtime_checkable
class Report(Protocol):
  """What a study's report module offers; all of it is made of `results.json` alone."""

  def markdown(self, results: Results) -> str:
    """Returns the report: what was done, tables, pictures, what the numbers don't show."""
    ...

  def in_short(self, results: Results) -> list[str]:
    """Returns the lines that the report opens with, Markdown's bold in them."""
    ...

  def table(self, results: Results) -> Table:
    """Returns the table that is printed."""
    ...

  def pictures(self, results: Results) -> Mapping[str, Sheet]:
    """Returns the pictures by their files' names, those that `markdown` shows."""
    ...


def write(folder: pathlib.Path, results: Mapping[str, Any], report: Report) -> None:
  """Writes the report and its pictures; prints a table, the summary, where the report is."""
  for name, sheet in report.pictures(results).items():
    files.write_bytes(folder / name, sheet.png())
  files.write_text(folder / "report.md", report.markdown(results))
  screen.print_table(*report.table(results))
  for line in report.in_short(results):
    print(line.replace("**", ""))
  print(f"Report: {folder / 'report.md'}")

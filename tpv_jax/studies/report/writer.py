"""The output of any study: `report.md` and its pictures, a printed table and summary."""

import pathlib
from collections.abc import Mapping
from typing import Any, Protocol, runtime_checkable

from tpv_jax.core import files, screen
from tpv_jax.core.figures import Sheet
from tpv_jax.studies.report.tables import Results, Table


@runtime_checkable
class Report(Protocol):
  """What a study's report module offers; all of it is made from `results.json` alone."""

  def markdown(self, results: Results) -> str:
    """Returns the report: what was done, tables, pictures, what the numbers don't show."""
    ...

  def in_short(self, results: Results) -> list[str]:
    """Returns the lines that the report opens with, in Markdown."""
    ...

  def table(self, results: Results) -> Table:
    """Returns the table to print."""
    ...

  def pictures(self, results: Results) -> Mapping[str, Sheet]:
    """Returns file name -> picture, for the pictures that `markdown` shows."""
    ...


def write(folder: pathlib.Path, results: Mapping[str, Any], report: Report) -> None:
  """Writes the report and its pictures; prints a table, the summary, the report's path."""
  for name, sheet in report.pictures(results).items():
    files.write_bytes(folder / name, sheet.png())
  files.write_text(folder / "report.md", report.markdown(results))
  screen.print_table(*report.table(results))
  for line in report.in_short(results):
    print(line.replace("**", ""))
  print(f"Report: {folder / 'report.md'}")

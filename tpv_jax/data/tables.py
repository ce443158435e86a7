"""Tables: rows by column, in CSV, TSV and JSON-lines files.

All of them are UTF-8, with a byte-order mark or without, and blank lines are skipped. TSV
has columns between tabs, and quotes have no meaning, as in GLUE's files. CSV is quoted as
by Excel, and separated by commas, or by semicolons or tabs if only these give a header with
the columns in use. JSON lines have an object in each line.
"""

import csv
import dataclasses
import io
import json
import pathlib
from collections.abc import Collection, Iterator, Mapping, Sequence
from typing import Any, Literal

from tpv_jax.core.errors import UserError
from tpv_jax.core.files import PathLike
from tpv_jax.data import lines
from tpv_jax.data.recipes import as_text

Format = Literal["tsv", "csv", "jsonl"]

FORMATS: dict[str, Format] = {
  ".tsv": "tsv",
  ".csv": "csv",
  ".jsonl": "jsonl",
  ".json": "jsonl",
}
"""Ending of a path -> format."""

_DELIMITERS = (",", ";", "\t")

_MARK = "\ufeff"


def format_of(path: PathLike, given: str | None, setting: str) -> Format:
  """Returns the format of a file: the given one, or the one that its ending tells.

  Args:
    path: of the file.
    given: 'tsv', 'csv' or 'jsonl'; None for the ending.
    setting: gives the format, for the error.

  Raises:
    UserError: the ending tells none.
  """
  known = given or FORMATS.get(pathlib.PurePath(path).suffix.lower())
  for one in FORMATS.values():
    if one == known:
      return one
  raise UserError(
    f"'{path}' is of unknown format '{known or pathlib.PurePath(path).suffix}'; tsv, csv "
    f"and jsonl can be read. Set {setting}, or save the file as one of them."
  )


def rows(
  path: PathLike,
  text: str,
  form: Format,
  needed: Collection[str],
  columns: Sequence[str] | None = None,
  columns_setting: str | None = None,
  form_setting: str | None = None,
) -> Iterator[tuple[str, Mapping[str, Any]]]:
  """Yields (file and line, row by column) of the text of a file.

  Args:
    path: names the file in errors.
    text: what it holds, without a byte-order mark.
    form: its format.
    needed: the columns in use, which tell the delimiter of a CSV file.
    columns: of a TSV or CSV file without a header line.
    columns_setting: names `columns` in errors; None if they cannot be set.
    form_setting: names `form` in errors; None if it cannot be set.

  Raises:
    UserError: a line does not have the form.
  """
  if form != "csv" and "\r" in text.strip() and "\n" not in text:
    raise UserError(
      f"The lines of '{path}' end with carriage returns only, as on old Macs. Convert "
      "it: tr '\\r' '\\n' < OLD > NEW."
    )
  if form == "jsonl":
    yield from lines.json_lines(path, text, form_setting)
    return
  if form == "tsv":
    numbered = lines.tsv_lines(path, text)
  else:
    separator = delimiter(path, text, needed, columns, form_setting)
    numbered = lines.csv_lines(path, text, separator)
  header = None if columns is None else tuple(columns)
  for number, cells in numbered:
    where = f"{path}:{number}"
    if header is None:
      header = tuple(cell.strip() for cell in cells)
      if len(set(header)) < len(header):
        fix = f"; for a file without a header, set {columns_setting}"
        raise UserError(
          f"{where}: a column name appears twice in the header ({', '.join(header)}). "
          f"Correct it{fix if columns_setting else ''}."
        )
      continue
    if len(cells) != len(header):
      raise UserError(
        f"{where}: {len(cells)} columns, but {len(header)} are expected "
        f"({', '.join(header)}). Correct the line"
        + ("." if columns is None else f", or {columns_setting}.")
      )
    yield where, dict(zip(header, cells, strict=True))


def delimiter(
  path: PathLike,
  text: str,
  needed: Collection[str],
  columns: Sequence[str] | None = None,
  form_setting: str | None = None,
) -> str:
  """Returns the delimiter of a CSV file, by its first line.

  It is a comma, unless only semicolons or tabs give the columns in use, or as many columns
  as there are names. If none does, it is the one that gives the most columns.

  Raises:
    UserError: the file can be split at semicolons and at tabs.
  """
  found: dict[str, Sequence[str]] = {}
  for one in _DELIMITERS:
    try:
      _, found[one] = next(lines.csv_lines(path, text, one), (0, ()))
    except UserError:  # With this delimiter its quotes are malformed.
      continue

  def fits(one: str) -> bool:
    if columns is not None:
      return len(found[one]) == len(columns)
    return {*needed} <= {cell.strip() for cell in found[one]}

  fitting = list(filter(fits, found))
  if not fitting:
    return max(found, key=lambda one: len(found[one]), default=",")
  if len(fitting) > 1 and "," not in fitting:
    fix = f", or set {form_setting} to 'tsv' to split at tabs and ignore quotes"
    raise UserError(
      f"'{path}' can be split at semicolons and at tabs. Write it with commas"
      f"{fix if form_setting else ''}."
    )
  return fitting[0]


@dataclasses.dataclass(frozen=True)
class Table:
  """A table that was read, and how its file was written.

  Attributes:
    form: of the file.
    columns: in the order of the header; in JSON lines, in that of their first row.
    rows: by column; numbers in JSON are text, spelled as in the file.
    places: file and line of each row, for messages.
    objects: the lines of JSON, as they are written; () for other formats.
    separator: of a CSV file's columns.
    mark: whether the file begins with a byte-order mark.
    line_end: of its lines.
  """

  form: Format
  columns: tuple[str, ...]
  rows: tuple[Mapping[str, Any], ...]
  places: tuple[str, ...]
  objects: tuple[str, ...] = ()
  separator: str = ","
  mark: bool = False
  line_end: str = "\n"


def read(
  path: PathLike,
  content: bytes,
  form: Format,
  needed: Collection[str],
  form_setting: str | None = None,
) -> Table:
  """Returns the table in the content of a file.

  Args:
    path: names the file in errors.
    content: of the file.
    form: its format.
    needed: the columns in use; see `rows`.
    form_setting: likewise.

  Raises:
    UserError: it is not UTF-8, has no rows, or a line does not have the form.
  """
  text = lines.decoded(path, content)
  found = list(rows(path, text, form, needed, form_setting=form_setting))
  if not found:
    raise UserError(
      f"'{path}' has no rows, only a header or blank lines. Choose another file."
    )
  places, records = zip(*found, strict=True)
  objects: tuple[str, ...] = ()
  if form == "jsonl":
    objects = tuple(line.strip() for line in text.split("\n") if line.strip())
  return Table(
    form,
    tuple(dict.fromkeys(column for row in records for column in row)),
    records,
    places,
    objects,
    delimiter(path, text, needed) if form == "csv" else "\t",
    content.startswith(_MARK.encode()),
    "\r\n" if "\r\n" in text.split("\n", 1)[0] + "\n" else "\n",
  )


def written(table: Table, added: Sequence[Mapping[str, Any]], form: Format) -> str:
  """Returns the text of a table with further columns behind its own.

  In the table's own format, its values are spelled as they were, and a CSV file keeps its
  delimiter, byte-order mark and line ends.

  Args:
    table: what was read.
    added: the further columns of each row, which all rows have; strings or numbers.
    form: of the text.

  Raises:
    UserError: a cell of a TSV file would have a tab or a line end.
  """
  if form == "jsonl":
    return "".join(map(_json_line, _objects(table), added))
  same = form == table.form
  header = [*table.columns, *added[0]]
  cells = [
    [*own, *(as_text(value) for value in more.values())]
    for own, more in zip(_cells(table), added, strict=True)
  ]
  if form == "tsv":
    refuse_what_tsv_cannot_hold(table)
    spaced = [
      [" ".join(cell.splitlines()).replace("\t", " ") for cell in row] for row in cells
    ]
    return "".join("\t".join(row) + "\n" for row in [header, *spaced])
  separator, line_end = (table.separator, table.line_end) if same else (",", "\n")
  lines_of_text = (_csv_line(row, separator) + line_end for row in [header, *cells])
  return "".join([_MARK if same and table.mark else "", *lines_of_text])


def refuse_what_tsv_cannot_hold(table: Table) -> None:
  """Raises `UserError` if a cell of the table has a tab or a line end."""
  for where, cells in zip(table.places, _cells(table), strict=True):
    for column, cell in zip(table.columns, cells, strict=True):
      if {*cell} & {*"\t\r\n"}:
        raise UserError(
          f"{where}: column '{column}' has a tab or a line end, which a TSV file cannot "
          "hold. Write a .csv or .jsonl file instead."
        )


def _cells(table: Table) -> Iterator[list[str]]:
  """Yields the cells of each row; what a row lacks is empty."""
  for number, row in enumerate(table.rows):
    cells = []
    for column in table.columns:
      value = row.get(column)
      if isinstance(value, Mapping | list):
        value = json.loads(table.objects[number])[column]  # With numbers, not texts.
        value = json.dumps(value, ensure_ascii=False)
      cells.append(as_text(value))
    yield cells


def _csv_line(cells: Sequence[str], separator: str) -> str:
  """Returns a line of CSV without its end."""
  text = io.StringIO()
  # Cells with one of the letters of the line end are quoted, so it has both.
  csv.writer(text, delimiter=separator, lineterminator="\r\n").writerow(cells)
  return text.getvalue().removesuffix("\r\n")


def _objects(table: Table) -> Iterator[str]:
  """Yields each row as JSON; a row of a JSON-lines file as it is written."""
  if table.objects:
    yield from table.objects
  else:
    for row in table.rows:
      yield json.dumps(row, ensure_ascii=False)


def _json_line(written_row: str, more: Mapping[str, Any]) -> str:
  """Returns a line of JSON with further members behind those of a row."""
  body = written_row.removesuffix("}").rstrip()
  comma = "" if body == "{" else ", "
  line = body + comma + json.dumps(more, ensure_ascii=False, allow_nan=False)[1:]
  return line.translate(lines.LINE_ENDS) + "\n"

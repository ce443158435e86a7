"""Looks at a file of rows that nobody has described yet: its form, columns and values.

`text_files` reads a file as a task describes it. Here nothing is known of it but its path.
"""

import collections
import dataclasses
import functools
import pathlib
import re
import shlex
from collections.abc import Mapping, Sequence

from tpv_jax.core.errors import UserError, python_command
from tpv_jax.core.files import PathLike, read_bytes
from tpv_jax.data import lines
from tpv_jax.data.recipes import as_text
from tpv_jax.data.tables import FORMATS

DELIMITERS = {",": "commas", ";": "semicolons", "\t": "tabs"}

MOST_WORDS_OF_A_NAME = 6
"""Most words of a column's name; a longer first cell is a text (ours)."""

MOST_CLASSES = 50
"""Most different values of a column that may be classes (ours)."""


@dataclasses.dataclass(frozen=True)
class Column:
  """A column: its name and its cells, without white space around them."""

  name: str
  cells: tuple[str, ...]

  @functools.cached_property
  def counts(self) -> collections.Counter[str]:
    """How often each value appears, without empty cells."""
    return collections.Counter(filter(None, self.cells))

  @property
  def empty(self) -> int:
    """How many cells are empty."""
    return len(self.cells) - self.counts.total()

  @functools.cached_property
  def words(self) -> float:
    """The mean number of words of the cells that are not empty."""
    count = self.counts.total()
    return sum(len(v.split()) * n for v, n in self.counts.items()) / max(count, 1)

  @functools.cached_property
  def numbers(self) -> bool:
    """Whether all values are numbers."""
    return bool(self.counts) and all(map(is_number, self.counts))


@dataclasses.dataclass(frozen=True)
class RawTable:
  """A file's rows.

  Attributes:
    path: the file.
    file_format: 'csv', 'tsv' or 'jsonl'.
    delimiter: of a CSV file.
    header: whether the first line names the columns.
    columns: by name; those of a file without a header are 'column1', 'column2', ... The
      index of a data frame has the name ''.
    rows: how many there are.
    remarks: what is unusual, as sentences.
  """

  path: PathLike
  file_format: str
  delimiter: str | None
  header: bool
  columns: Mapping[str, Column]
  rows: int
  remarks: tuple[str, ...]

  def describe(self) -> str:
    """Returns the form of the file in a line."""
    if self.file_format == "jsonl":
      form = "JSON lines"
    else:
      form = self.file_format.upper()
      if self.delimiter is not None:
        form += f" with {DELIMITERS[self.delimiter]}"
      form += " and a header" if self.header else " without a header"
    return f"{self.path}: {form}, UTF-8, {self.rows:,} rows"


def look(path: PathLike) -> RawTable:
  """Returns the rows of a file, whose form is found out.

  Raises:
    UserError: it cannot be read, is not UTF-8, has no rows, or is no CSV, TSV or JSON-lines
      file.
  """
  text = _text(path)
  if not text.strip():
    raise UserError(f"'{path}' is empty. Give a file with rows.")
  known = FORMATS.get(pathlib.Path(path).suffix.lower())
  first = text.lstrip().split("\n", 1)[0]
  if first[0] == "[" and known in (None, "jsonl"):
    code = (
      f"import json; [print(json.dumps(row)) for row in json.load(open({str(path)!r}))]"
    )
    raise UserError(
      f"'{path}' is one JSON list; a JSON object in each line is needed. Write it so: "
      f"{python_command(code)} > NEW.jsonl"
    )
  kind = known or ("jsonl" if first[0] == "{" else "tsv" if "\t" in first else "csv")
  if kind == "jsonl":
    return _of_json(path, text)
  return _of_cells(path, text, kind)


def is_number(text: str) -> bool:
  """Returns whether a text is a number."""
  try:
    float(text)
  except ValueError:
    return False
  return True


def _text(path: PathLike) -> str:
  try:
    return lines.read_text(path, "the path")
  except UserError as error:
    raise UserError(_other_form(path) or str(error)) from None


def _other_form(path: PathLike) -> str | None:
  """Returns what a file is that is no UTF-8 text, and how to convert it, if it is known."""
  try:
    content = read_bytes(path)
  except (OSError, UserError):
    return None
  quoted = shlex.quote(str(path))
  for start, what, todo in (
    (b"PK\x03\x04", "a workbook or another archive", "save its sheet as CSV (UTF-8)"),
    (b"PAR1", "Parquet", "write it as CSV: pandas.read_parquet(OLD).to_csv(NEW)"),
    (b"\x1f\x8b", "compressed by gzip", f"unpack it: gunzip {quoted}"),
  ):
    if content.startswith(start):
      return f"'{path}' is {what}, not text. To use it, {todo}."
  if content.startswith((b"\xff\xfe", b"\xfe\xff")) or b"\0" in content[:1000]:
    name, coding = "UTF-16", "UTF-16"
  else:
    name, coding = "Windows-1252 or Latin-1", "WINDOWS-1252"
  example = ""
  if coding == "WINDOWS-1252":
    try:
      content.decode()
      return None
    except UnicodeDecodeError as error:
      found = content.decode("cp1252", errors="replace").split("\n")
      number = content[: error.start].count(b"\n")
      words = re.findall(r"\w+", found[number])
      word = next((word for word in words if not word.isascii()), "")
      example = f" (then line {number + 1} has '{word:.40}')" if word else ""
  return (
    f"'{path}' is not UTF-8; it looks like {name}{example}. Convert it: iconv -f {coding} "
    f"-t UTF-8 {quoted} > NEW"
  )


def _of_json(path: PathLike, text: str) -> RawTable:
  rows = [row for _, row in lines.json_lines(path, text)]
  names = list(dict.fromkeys(name for row in rows for name in row))
  nested = [
    name
    for name in names
    if any(isinstance(row.get(name), dict | list) for row in rows)
  ]
  columns = {
    name: Column(name, tuple(as_text(row.get(name)).strip() for row in rows))
    for name in names
    if name not in nested
  }
  remarks = (
    [f"not usable, as they hold several values: {', '.join(nested)}"] if nested else []
  )
  return RawTable(path, "jsonl", None, True, columns, len(rows), tuple(remarks))


def _of_cells(path: PathLike, text: str, kind: str) -> RawTable:
  delimiter = None
  if kind == "tsv" and (quoted := _quoted_tabs(path, text)):
    kind, delimiter, rows = "csv", "\t", quoted
  elif kind == "tsv":
    rows = [tuple(cells) for _, cells in lines.tsv_lines(path, text)]
  else:
    delimiter, rows = _split(path, text)
  header = _has_header(rows)
  width = len(rows[0])
  names = (
    [cell.strip() for cell in rows[0]]
    if header
    else [f"column{number}" for number in range(1, width + 1)]
  )
  body = rows[1:] if header else rows
  whole = [row for row in body if len(row) == width]
  remarks = []
  if len(whole) < len(body):
    remarks.append(
      f"{len(body) - len(whole)} rows have more or fewer than the {width} columns of the "
      "first line"
    )
  if not whole:
    raise UserError(f"'{path}' has a header and no rows. Give a file with rows.")
  columns = {
    name: Column(name, tuple(row[place].strip() for row in whole))
    for place, name in enumerate(names)
  }
  return RawTable(path, kind, delimiter, header, columns, len(body), tuple(remarks))


def _quoted_tabs(path: PathLike, text: str) -> list[tuple[str, ...]] | None:
  """Returns the rows of a TSV file that is quoted as CSV is; None if it is not."""
  if not any(
    len(cell) > 1 and cell[0] == cell[-1] == '"'
    for _, cells in lines.tsv_lines(path, text)
    for cell in cells
  ):
    return None
  try:
    rows = [tuple(cells) for _, cells in lines.csv_lines(path, text, "\t")]
  except UserError:
    return None
  return rows if len(set(map(len, rows))) == 1 else None


def _split(path: PathLike, text: str) -> tuple[str, list[tuple[str, ...]]]:
  """Returns the delimiter that gives the most rows of the first row's width, and the rows."""
  best: tuple[float, str, list[tuple[str, ...]]] | None = None
  wrong: UserError | None = None
  for delimiter in DELIMITERS:
    try:
      rows = [tuple(cells) for _, cells in lines.csv_lines(path, text, delimiter)]
    except UserError as error:
      wrong = wrong or error
      continue
    width = len(rows[0])
    share = sum(len(row) == width for row in rows) / len(rows) if width > 1 else 0.0
    if best is None or share > best[0]:
      best = share, delimiter, rows
  if best is None:
    assert wrong is not None
    raise wrong
  share, delimiter, rows = best
  if not share:
    raise UserError(
      f"'{path}' has one column only: commas, semicolons and tabs do not split its first "
      f"line, '{','.join(rows[0]):.60}'. A task needs a text and an answer in each row; write "
      "the file with commas."
    )
  return delimiter, rows


def _has_header(rows: Sequence[Sequence[str]]) -> bool:
  """Returns whether the first row names the columns, as far as can be told.

  A column of numbers that comes first may have no name, as the index of a data frame.
  """
  first, *rest = rows
  names = [cell.strip() for cell in first]
  if len(set(names)) < len(names) or any(map(is_number, names)):
    return False
  if not all(names[1:]) or not (names[0] or all(is_number(row[0]) for row in rest)):
    return False
  if any(len(name.split()) > MOST_WORDS_OF_A_NAME for name in names):
    return False
  for place, name in enumerate(names):
    values = {row[place].strip() for row in rest if len(row) == len(first)}
    if name in values and len(values) <= MOST_CLASSES:
      return False
  return True

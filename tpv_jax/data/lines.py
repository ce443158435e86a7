"""Reads the text of files, and lines of JSON, CSV and TSV.

Every error names the file and the line.
"""

import csv
import io
import json
import pathlib
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from tpv_jax.core.errors import UserError, near_misses
from tpv_jax.core.files import PathLike, read_bytes, to_path

LINE_ENDS = {ord(end): f"\\u{ord(end):04x}" for end in "\x85\u2028\u2029"}
"""For `str.translate`: escapes, in JSON, what some readers take for the end of a line."""

MOST_LETTERS = 2**31 - 1
"""Most letters in a cell of a CSV file: the largest C long on every platform."""

MOST_NESTED = 64
"""Most levels of a JSON object; the code that reads it later is recursive."""


def json_lines(
  path: PathLike, text: str, form_setting: str | None = None
) -> Iterator[tuple[str, Mapping[str, Any]]]:
  """Yields (file and line, object) of JSON lines, numbers as they are written.

  Args:
    path: names the file in errors.
    text: what it holds.
    form_setting: names in errors what sets the format; None if only the file's name does.
  """
  other = f"set {form_setting}" if form_setting else "give the file another ending"
  fix = f"{other} if this is no JSON-lines file"
  for number, line in enumerate(text.split("\n"), start=1):
    if line.strip():
      where = f"{path}:{number}"
      yield where, json_row(line, where, fix, parse_float=str, parse_int=str)


def json_row(line: str, where: str, fix: str = "", **options: Any) -> dict[str, Any]:
  """Returns the object that a line of a JSON-lines file holds.

  Args:
    line: the text.
    where: names the line in errors.
    fix: what to do instead of correcting the line; it follows ', or ' in the message.
    **options: for `json.loads`.

  Raises:
    UserError: it is not a JSON object, names a column twice, or has a lone surrogate.
  """
  fix = f", or {fix}" if fix else ""
  try:
    row = json.loads(line, object_pairs_hook=_once, **options)
    if "\\u" in line:
      json.dumps(row, ensure_ascii=False).encode()
  except UnicodeEncodeError as error:
    raise UserError(
      f"{where}: a lone half of a surrogate pair, which is no character. Correct the line."
    ) from error
  except json.JSONDecodeError as error:
    raise UserError(
      f"{where}: malformed JSON at column {error.colno} ({error.msg}). Correct the "
      f"line{fix}."
    ) from error
  except RecursionError:
    raise UserError(f"{where}: JSON nested too deeply. Correct the line.") from None
  except _Twice as twice:
    raise UserError(
      f"{where}: one object has '{twice!s:.80}' twice. Correct the line."
    ) from None
  except ValueError:
    raise UserError(
      f"{where}: a number has thousands of digits. Correct the line."
    ) from None
  if not isinstance(row, dict):
    raise UserError(
      f"{where}: a JSON object is expected on every line, not {line.strip()[:40]!r}."
    )
  if line.count("{") + line.count("[") > MOST_NESTED and _depth(row) > MOST_NESTED:
    raise UserError(f"{where}: JSON nested too deeply. Correct the line.")
  return row


def _depth(value: Any) -> int:
  depth, level = 0, [value]
  while level:
    depth += 1
    level = [
      inner
      for one in level
      if isinstance(one, dict | list)
      for inner in (one.values() if isinstance(one, dict) else one)
    ]
  return depth


class _Twice(ValueError):
  """A name that an object has twice; Python's JSON would keep only the last value."""


def _once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
  found = dict(pairs)
  if len(found) < len(pairs):
    names = [name for name, _ in pairs]
    raise _Twice(next(name for name in names if names.count(name) > 1))
  return found


def tsv_lines(path: PathLike, text: str) -> Iterator[tuple[int, Sequence[str]]]:
  """Yields the number and the cells of each line that is not empty."""
  for number, line in enumerate(text.split("\n"), start=1):
    if row := line.removesuffix("\r"):
      yield number, row.split("\t")


def csv_lines(
  path: PathLike, text: str, delimiter: str
) -> Iterator[tuple[int, Sequence[str]]]:
  """Yields the number of the first line and the cells of each row that is not empty."""
  csv.field_size_limit(MOST_LETTERS)  # For the whole process; the default is 131,072.
  reader = csv.reader(io.StringIO(text, newline=""), strict=True, delimiter=delimiter)
  line = 1
  try:
    for cells in reader:
      if cells:
        yield line, cells
      line = reader.line_num + 1
  except csv.Error as error:
    raise UserError(
      f"{path}:{line}: malformed CSV ({error}). Correct the quotes: put a cell that has "
      "quotes in quotes, and double each quote inside it."
    ) from error


def read_text(path: PathLike, setting: str) -> str:
  """Returns the text of a UTF-8 file, without a byte-order mark.

  Args:
    path: of the file.
    setting: the setting that names the file, for errors.

  Raises:
    UserError: it cannot be read, is not UTF-8, or has a NUL byte.
  """
  return decoded(path, read_content(path, setting))


def read_content(path: PathLike, setting: str) -> bytes:
  """Returns what a file holds; see `read_text`."""
  try:
    return read_bytes(path)
  except OSError as error:
    folder = to_path(path).parent
    beside = [p.name for p in folder.iterdir()] if folder.is_dir() else []
    raise UserError(
      f"Cannot read '{path}': {error.strerror or error}."
      f"{near_misses(pathlib.Path(path).name, beside)} Correct {setting}."
    ) from error


def decoded(path: PathLike, content: bytes) -> str:
  """Returns the text that a file holds, without a byte-order mark.

  Args:
    path: names the file in errors.
    content: of the file.

  Raises:
    UserError: it is not UTF-8, or has a NUL byte.
  """
  try:
    text = content.decode("utf-8-sig")
  except UnicodeDecodeError as error:
    line = content[: error.start].count(b"\n") + 1
    raise UserError(
      f"{path}:{line}: not UTF-8 ({error.reason}). Convert the file to UTF-8."
    ) from error
  if "\0" in text:
    line = text.partition("\0")[0].count("\n") + 1
    raise UserError(
      f"{path}:{line}: a NUL byte, which text files never have (UTF-16 has many). Convert "
      "the file to UTF-8."
    )
  return text

"""Tasks from local TSV, CSV and JSON-lines files, described by gin.

What a file means is decided here once: its rows, its splits, its labels. Every error
names the file and the line.
"""

import csv
import dataclasses
import decimal
import functools
import io
import json
import os
import pathlib
import string
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Literal

from tpv_jax.data.batches import order
from tpv_jax.data.tasks import SPLITS, Example, Task, deduplicate
from tpv_jax.errors import UserError, near_misses
from tpv_jax.files import PathLike, read_bytes, to_path

LARGE = 10_000
"""More training rows than this make a task large in the paper's split rule."""

FROM_TRAIN = 1_000
"""So many rows of a large task's training file become its validation split."""

FORMATS = {".tsv": "tsv", ".csv": "csv", ".jsonl": "jsonl", ".json": "jsonl"}


def text_file_task(
  name: str,
  paths: PathLike | Mapping[str, PathLike],
  template: str,
  target: str,
  labels: Mapping[Any, Any] | Sequence[Any] | None = None,
  metric: str = "exact_match",
  splits: Literal["paper"] | Mapping[str, int | float] | None = None,
  seed: int = 0,
  columns: Sequence[str] | None = None,
  file_format: Literal["tsv", "csv", "jsonl"] | None = None,
  round_targets_to: float | None = None,
  skip_labels: Sequence[Any] = (),
  allow_empty: bool = False,
  deduplicated: bool = False,
) -> Task:
  """Returns the task that the files hold; they are read when examples are first used.

  Formats, all in UTF-8, blank lines skipped: TSV (columns between tabs, quotes mean
  nothing, as in GLUE's files), CSV (quoted as Excel does), JSON lines (an object a
  line; numbers and true/false count as they are spelled).

  Args:
    name: of the task.
    paths: one file, or a file for each of 'train', 'validation' and 'test' (some may be
      missing). One file is the 'train' one.
    template: the source text, with columns in braces: `"question: {question} context:
      {passage}"`. `{{` and `}}` are braces.
    target: the column of the answer.
    labels: the label words. A mapping says which word each value of the target column
      gets (`{0: 'negative', 1: 'positive'}`); a sequence lists the values that serve as
      words themselves; None leaves the targets free.
    metric: the name in `metrics.METRICS` that evaluation reports beside the common ones.
    splits: where splits without a file come from.
      None: nowhere, each split is its file.
      A mapping such as `{'validation': 0.1, 'test': 500}`: they are taken from the
        train file, each a fraction (below 1, to the nearest row) or a number of rows.
      'paper': methods.md, section 4 (task prompt vectors): the files are 'train' and
        'validation'. With more than 10,000 training rows, 1,000 of them become the
        validation split and the validation file the test split; otherwise the
        validation file is split in halves, an odd row going to test (ours).
    seed: of the rows that are taken; they and the rest stay in the order of the file.
    columns: the names of the columns of a TSV or CSV file without a header line.
    file_format: 'tsv', 'csv' or 'jsonl'; by default what the path ends in.
    round_targets_to: the targets are numbers and are written as the nearest multiple,
      as T5 does for STS-B with 0.2 ("3.8"; tried: all 181 values there come out as
      T5's). Halves go to the even multiple.
    skip_labels: values of the target column whose rows are left out (SNLI: '-').
    allow_empty: whether a column of the template may be empty.
    deduplicated: whether a text is kept out of a split if a later one has it
      (`tasks.deduplicate`), after the rows were split.

  Raises:
    UserError: now, if the settings contradict each other; at the first use, if a file
      is missing or a line of it is not as described.
  """
  files = {"train": paths} if isinstance(paths, str | os.PathLike) else dict(paths)
  if not files:
    raise UserError(f"Task '{name}' has no file. Set text_file_task.paths.")
  for split in (*files, *(splits if isinstance(splits, Mapping) else ())):
    if split not in SPLITS:
      raise UserError(
        f"Task '{name}' is given the split '{split}'; the splits are "
        f"{', '.join(SPLITS)}.{near_misses(split, SPLITS)}"
      )
  _check_rule(name, files, splits)
  if round_targets_to is not None and not round_targets_to > 0:
    raise UserError(f"round_targets_to is {round_targets_to}; it must be above 0.")
  rows = _Rows(
    template=_parsed(name, template),
    target=target,
    words=_words(labels),
    skip=frozenset(map(_text, skip_labels)),
    columns=tuple(columns) if columns is not None else None,
    file_format=file_format,
    step=None if round_targets_to is None else decimal.Decimal(str(round_targets_to)),
    allow_empty=allow_empty,
  )

  @functools.cache
  def load_all() -> Mapping[str, Sequence[Example]]:
    whole = {split: rows.read(path) for split, path in files.items()}
    found = _split(name, whole, splits, seed)
    return deduplicate(found) if deduplicated else found

  def load(split: str) -> Sequence[Example]:
    found = load_all()
    if split not in found:
      raise UserError(
        f"Task '{name}' has no file for split '{split}', only for {', '.join(found)}. "
        "Add it to text_file_task.paths, or set text_file_task.splits."
      )
    return found[split]

  words = None if rows.words is None else tuple(dict.fromkeys(rows.words.values()))
  return Task(name=name, labels=words, metric=metric, load=load)


def _check_rule(name: str, files: Mapping[str, PathLike], splits: Any) -> None:
  """Raises `UserError` unless the rule of the splits fits the files."""
  if splits is None:
    return
  if splits == "paper":
    if set(files) != {"train", "validation"}:
      raise UserError(
        f"Task '{name}' is split by the paper's rule, which takes a train and a "
        f"validation file and makes test itself, but has {', '.join(files)}. Give "
        "those two, or choose another text_file_task.splits."
      )
  elif isinstance(splits, Mapping):
    for split, size in splits.items():
      whole = isinstance(size, int) and not isinstance(size, bool)
      if split in files or "train" not in files:
        raise UserError(
          f"Task '{name}' is to take split '{split}' from its train file, but "
          + ("it has a file" if split in files else "there is none")
          + ". Correct text_file_task.paths or .splits."
        )
      if not (size >= 1 if whole else 0 < size < 1):
        raise UserError(
          f"Task '{name}' is to take {size!r} of its training rows for '{split}': give "
          "a fraction between 0 and 1, or a whole number of rows from 1."
        )
  else:
    raise UserError(
      f"Task '{name}' has the split rule {splits!r}; give 'paper', sizes such as "
      "{'validation': 0.1, 'test': 500}, or None."
    )


def _split(
  name: str,
  found: Mapping[str, Sequence[Example]],
  splits: Literal["paper"] | Mapping[str, int | float] | None,
  seed: int,
) -> dict[str, Sequence[Example]]:
  """Returns the examples by split, after the rule; see `text_file_task`."""
  if splits is None:
    return dict(found)
  train = found["train"]
  if splits == "paper":
    validation = found["validation"]
    if len(train) > LARGE:
      new_validation, rest = _taken(train, [FROM_TRAIN], seed)
      return {"train": rest, "validation": new_validation, "test": validation}
    half, rest = _taken(validation, [len(validation) // 2], seed)
    return {"train": train, "validation": half, "test": rest}
  sizes = [s if isinstance(s, int) else round(s * len(train)) for s in splits.values()]
  if sum(sizes) >= len(train):
    raise UserError(
      f"Task '{name}' has {len(train)} rows, of which {sum(sizes)} are to go to "
      f"{' and '.join(splits)}, which leaves none to train on. Make "
      "text_file_task.splits smaller."
    )
  *parts, rest = _taken(train, sizes, seed)
  return {**found, **dict(zip(splits, parts, strict=True)), "train": rest}


def _taken(
  examples: Sequence[Example], sizes: Sequence[int], seed: int
) -> list[tuple[Example, ...]]:
  """Returns disjoint random parts of those sizes, then the rest, all in file order."""
  places = order(len(examples), seed)
  parts, start = [], 0
  for size in (*sizes, len(examples) - sum(sizes)):
    chosen = sorted(places[start : start + size].tolist())
    parts.append(tuple(examples[place] for place in chosen))
    start += size
  return parts


@dataclasses.dataclass(frozen=True)
class _Rows:
  """What a row of a file means; `read` gives its examples."""

  template: tuple[tuple[str, str | None], ...]
  target: str
  words: Mapping[str, str] | None
  skip: frozenset[str]
  columns: tuple[str, ...] | None
  file_format: str | None
  step: decimal.Decimal | None
  allow_empty: bool

  def read(self, path: PathLike) -> tuple[Example, ...]:
    """Returns the examples of a file in its order."""
    examples = []
    for where, row in _lines(path, self.file_format, self.columns):
      value = self._value(row, self.target, where).strip()
      if value in self.skip:
        continue
      source, fields = self._source(row, where)
      examples.append(Example(source, self._answer(value, where), fields=fields))
    if not examples:
      raise UserError(
        f"'{path}' has no examples (no line but a header, blank ones and those of "
        "text_file_task.skip_labels). Choose another file."
      )
    return tuple(examples)

  def _source(
    self, row: Mapping[str, Any], where: str
  ) -> tuple[str, tuple[tuple[int, int], ...]]:
    """Returns the source and where its columns' texts lie."""
    source, fields = "", []
    for literal, column in self.template:
      source += literal
      if column is not None:
        text = self._value(row, column, where)
        if not text.strip() and not self.allow_empty:
          raise UserError(
            f"{where}: column '{column}' is empty. Fill it, remove the line, or set "
            "text_file_task.allow_empty = True."
          )
        fields.append((len(source), len(source) + len(text)))
        source += text
    return source, tuple(fields)

  def _answer(self, value: str, where: str) -> str:
    if not value:
      raise UserError(
        f"{where}: the target column '{self.target}' is empty. Fill it, or remove the "
        "line."
      )
    if self.step is not None:
      value = _rounded(value, self.step, where)
    if self.words is None:
      return value
    if value not in self.words:
      raise UserError(
        f"{where}: '{value}' in column '{self.target}' is outside the labels "
        f"{', '.join(self.words)}.{near_misses(value, self.words)} Correct the line, "
        "add the label to text_file_task.labels, or leave such rows out by skip_labels."
      )
    return self.words[value]

  def _value(self, row: Mapping[str, Any], column: str, where: str) -> str:
    if column not in row:
      raise UserError(
        f"{where}: there is no column '{column}', only {', '.join(row) or 'none'}."
        f"{near_misses(column, row)} Correct the template, the target, or the file."
      )
    value = row[column]
    if isinstance(value, Mapping | list):
      raise UserError(
        f"{where}: '{column}' holds several values; a text or a number is needed. "
        "Flatten the file first."
      )
    return _text(value)


def _lines(
  path: PathLike, file_format: str | None, columns: tuple[str, ...] | None
) -> Iterator[tuple[str, Mapping[str, Any]]]:
  """Yields (file and line, row by column name)."""
  known = file_format or FORMATS.get(pathlib.Path(path).suffix.lower())
  if known not in FORMATS.values():
    raise UserError(
      f"'{path}' is of unknown format '{known or pathlib.Path(path).suffix}'; tsv, csv "
      "and jsonl can be read. Set text_file_task.file_format."
    )
  text = _content(path)
  if known == "jsonl":
    yield from _json_lines(path, text)
    return
  header = columns
  for number, cells in (_tsv if known == "tsv" else _csv)(path, text):
    where = f"{path}:{number}"
    if header is None:
      header = tuple(cell.strip() for cell in cells)
      if len(set(header)) < len(header):
        raise UserError(
          f"{where}: a column name appears twice in the header ({', '.join(header)}). "
          "Correct it; for a file without a header, set text_file_task.columns."
        )
      continue
    if len(cells) != len(header):
      raise UserError(
        f"{where}: {len(cells)} columns, but {len(header)} are expected "
        f"({', '.join(header)}). Correct the line"
        + ("." if columns is None else ", or text_file_task.columns.")
      )
    yield where, dict(zip(header, cells, strict=True))


def _json_lines(path: PathLike, text: str) -> Iterator[tuple[str, Mapping[str, Any]]]:
  for number, line in enumerate(text.split("\n"), start=1):
    if line.strip():
      where = f"{path}:{number}"
      yield where, json_row(line, where, parse_float=str, parse_int=str)


def json_row(line: str, where: str, **options: Any) -> dict[str, Any]:
  """Returns the object that a line of a JSON-lines file holds.

  Args:
    line: the text.
    where: names it in errors.
    **options: for `json.loads`.

  Raises:
    UserError: it is no JSON object, or holds what is no text.
  """
  try:
    row = json.loads(line, **options)
    if "\\u" in line:
      json.dumps(row, ensure_ascii=False).encode()
  except UnicodeEncodeError as error:
    raise UserError(
      f"{where}: half of a surrogate pair, which is no text. Correct the line."
    ) from error
  except json.JSONDecodeError as error:
    raise UserError(
      f"{where}: malformed JSON at column {error.colno} ({error.msg}). Correct the "
      "line, or set text_file_task.file_format if this is no JSON-lines file."
    ) from error
  if not isinstance(row, dict):
    raise UserError(
      f"{where}: a JSON object is expected on every line, not {line.strip()[:40]!r}."
    )
  return row


def _tsv(path: PathLike, text: str) -> Iterator[tuple[int, Sequence[str]]]:
  for number, line in enumerate(text.split("\n"), start=1):
    if row := line.removesuffix("\r"):
      yield number, row.split("\t")


def _csv(path: PathLike, text: str) -> Iterator[tuple[int, Sequence[str]]]:
  reader = csv.reader(io.StringIO(text, newline=""), strict=True)
  line = 1
  try:
    for cells in reader:
      if cells:
        yield line, cells
      line = reader.line_num + 1
  except csv.Error as error:
    raise UserError(
      f"{path}:{line}: malformed CSV ({error}). Correct the quotes, or set "
      "text_file_task.file_format = 'tsv' if they mean nothing."
    ) from error


def _content(path: PathLike) -> str:
  try:
    content = read_bytes(to_path(path).expanduser())
  except OSError as error:
    folder = to_path(path).parent
    beside = [p.name for p in folder.iterdir()] if folder.is_dir() else []
    raise UserError(
      f"Cannot read '{path}': {error.strerror or error}."
      f"{near_misses(pathlib.Path(path).name, beside)} Correct text_file_task.paths."
    ) from error
  try:
    return content.decode("utf-8-sig")
  except UnicodeDecodeError as error:
    line = content[: error.start].count(b"\n") + 1
    raise UserError(
      f"{path}:{line}: not UTF-8 ({error.reason}). Convert the file to UTF-8."
    ) from error


def _parsed(name: str, template: str) -> tuple[tuple[str, str | None], ...]:
  """Returns the template as pairs of literal text and the column after it."""
  try:
    parts = tuple(string.Formatter().parse(template))
  except ValueError as error:
    raise UserError(
      f"The template of task '{name}', {template!r}, cannot be read ({error}). Columns "
      "stand in braces, as in '{sentence}'; write {{ and }} for braces."
    ) from error
  for _, column, specification, conversion in parts:
    if column == "" or specification or conversion:
      raise UserError(
        f"The template of task '{name}', {template!r}, must have only the name of a "
        "column between braces, as in '{sentence}'."
      )
  if not any(column for _, column, _, _ in parts):
    raise UserError(
      f"The template of task '{name}', {template!r}, names no column, so all sources "
      "would be equal. Put columns in braces, as in '{sentence}'."
    )
  return tuple((literal, column) for literal, column, _, _ in parts)


def _words(labels: Mapping[Any, Any] | Sequence[Any] | None) -> dict[str, str] | None:
  if labels is None:
    return None
  if isinstance(labels, str) or not labels:
    raise UserError(
      f"text_file_task.labels is {labels!r}; give a mapping of values to label words, "
      "a sequence of label words, or None for free targets."
    )
  if not isinstance(labels, Mapping):
    labels = {word: word for word in labels}
  words = {_text(value).strip(): _text(word) for value, word in labels.items()}
  for value, word in words.items():
    if not word.strip():
      raise UserError(
        f"text_file_task.labels maps '{value}' to an empty word; choose a word for it."
      )
  return words


def _text(value: Any) -> str:
  """Returns a value as JSON spells it, texts as they are, null as ''."""
  if value is None:
    return ""
  if isinstance(value, bool):
    return "true" if value else "false"
  return str(value)


def nearest_multiple(value: str, step: str | decimal.Decimal) -> str | None:
  """Returns the nearest multiple of `step`, with its decimals; None if it is no number.

  Halves go to the even multiple.
  """
  step = decimal.Decimal(step)
  try:
    number = decimal.Decimal(value)
  except decimal.InvalidOperation:
    return None
  if not number.is_finite():
    return None
  multiple = (number / step).to_integral_value(decimal.ROUND_HALF_EVEN)
  return f"{multiple * step:f}"


def _rounded(value: str, step: decimal.Decimal, where: str) -> str:
  rounded = nearest_multiple(value, step)
  if rounded is None:
    raise UserError(
      f"{where}: the target '{value}' is no number, but targets are to be rounded to "
      f"multiples of {step}. Correct the line, or leave out round_targets_to."
    )
  return rounded

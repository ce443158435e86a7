"""Proposes a task for a file of rows, and writes it as a commented TOML file.

What is proposed is a guess from names and values; the file that is written says so.
"""

import dataclasses
import json
import os
import pathlib
import re
import shlex
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from tpv_jax.core.errors import UserError, near_misses, printable
from tpv_jax.core.files import PathLike, is_remote, to_path
from tpv_jax.core.tables import aligned
from tpv_jax.data import raw_tables
from tpv_jax.data.labels import spelling
from tpv_jax.data.raw_tables import MOST_CLASSES, Column, RawTable
from tpv_jax.data.tables import FORMATS
from tpv_jax.data.vocabularies import Vocabulary

TARGETS = (
  *("label", "labels", "target", "targets", "class", "category", "answer", "output"),
  *("gold", "sentiment", "stars", "rating", "score", "topic", "section", "intent"),
  *("emotion", "type", "tag", "y"),
)
"""Names of columns that usually hold the answer, the likeliest first."""

MOST_WORDS_OF_A_LABEL = 8
"""A longer value is a free text (ours)."""

WORDS_OF_A_TEXT = 3
"""Columns with as many words on average are texts (ours)."""

HELD_OUT, MOST_HELD_OUT = 0.1, 1_000
"""The part, and the most rows, that validation and the test each take (ours)."""

OTHER_SPLITS = {
  "validation": ("validation", "valid", "val", "dev", "eval"),
  "test": ("test",),
}
"""Split -> how the name of its file may call it, where the given file is called 'train'."""


@dataclasses.dataclass(frozen=True)
class Proposal:
  """A task file that is not written yet.

  Attributes:
    settings: by key of `task_files`.
    table: the rows of the training file.
    answer: its column of the answer.
    remarks: what the user should know of the choices, as sentences.
  """

  settings: Mapping[str, Any]
  table: RawTable
  answer: Column
  remarks: tuple[str, ...]


def propose(
  path: PathLike,
  output: PathLike,
  vocabulary: Vocabulary | None = None,
  texts: Sequence[str] = (),
  target: str | None = None,
) -> Proposal:
  """Returns a task for a file of rows.

  Args:
    path: a CSV, TSV or JSON-lines file.
    output: the task file that will be written; paths are relative to its folder.
    vocabulary: the backbone's, if it is known.
    texts: the columns of the template; by default all that hold texts.
    target: the column of the answer; by default it is guessed.

  Raises:
    UserError: the file cannot be read, or has no such columns, or none to choose.
  """
  table = raw_tables.look(path)
  for name in (*texts, *filter(None, [target])):
    if name not in table.columns:
      raise UserError(
        f"'{path}' has no column '{name}', only {_names(table.columns)}."
        f"{near_misses(name, table.columns)}"
      )
  answer = table.columns[target] if target else _target(table, texts)
  chosen = [table.columns[name] for name in texts] or _texts(table, answer)
  remarks: list[str] = []
  files, others = _files(table, answer, chosen)
  called = {name: name for name in table.columns}
  if not table.header:
    called |= {answer.name: "label"} | (
      {chosen[0].name: "text"} if len(chosen) == 1 else {}
    )
    remarks.append(
      f"The first line looks like data, so the columns are called {', '.join(called.values())}"
      "; change 'columns', 'template' and 'target' as you like."
    )
  settings: dict[str, Any] = {
    "name": re.sub(r"\W+", "_", to_path(path).stem).strip("_") or "task",
    "paths": {split: _relative(file, output) for split, file in files.items()},
    "template": _template(
      [called[column.name] for column in chosen], called[answer.name], vocabulary
    ),
    "target": called[answer.name],
    "metric": "exact_match",
  }
  if len(files) == 1:
    settings["paths"] = settings["paths"]["train"]
  if not table.header:
    settings["columns"] = list(called.values())
  if FORMATS.get(pathlib.Path(path).suffix.lower()) != table.file_format:
    settings["format"] = table.file_format
  if splits := _splits(table.rows, files):
    settings["splits"] = splits
  labels, more = _labels(answer, [table, *others], vocabulary)
  if labels is not None:
    settings["labels"] = labels
  if any(
    answer.name in t.columns and t.columns[answer.name].empty for t in (table, *others)
  ):
    settings["skip_labels"] = [""]
    more.append(f"Rows without '{answer.name}' are left out (skip_labels).")
  if any(column.empty for column in chosen):
    settings["allow_empty"] = True
    more.append(
      f"{' and '.join(repr(c.name) for c in chosen if c.empty)} has empty cells, which are "
      "kept (allow_empty). Remove those rows if they say nothing."
    )
  return Proposal(settings, table, answer, (*remarks, *more))


def _names(columns: Iterable[str]) -> str:
  """Returns the names of columns, without the empty one of a data frame's index."""
  return ", ".join(filter(None, columns))


def _usable(column: Column) -> bool:
  """Returns whether a template can name a column, and it has values."""
  return bool(column.name and column.counts) and not {*"{}[]!:"} & {*column.name}


def _target(table: RawTable, texts: Sequence[str]) -> Column:
  """Returns the column that likely holds the answer."""
  left = [c for n, c in table.columns.items() if n and n not in texts and c.counts]
  by_name = {column.name.lower(): column for column in left}
  for name in TARGETS:
    if name in by_name:
      return by_name[name]
  classes = [c for c in left if _are_classes(c)]
  if len(table.columns.keys() - {""}) < 2 or not left:
    raise UserError(
      f"'{table.path}' has {_names(table.columns) or 'no columns'}; a task needs a text "
      "and an answer in each row."
    )
  if not classes:
    raise UserError(
      f"No column of '{table.path}' looks like an answer. Name it: --target with one of "
      f"{', '.join(c.name for c in left)}."
    )
  return min(reversed(classes), key=lambda column: len(column.counts))


def _are_classes(column: Column) -> bool:
  """Returns whether the values look like classes: few, short, and each several times."""
  count = column.counts.total()
  return (
    1 < len(column.counts) <= min(MOST_CLASSES, max(count // 2, 2))
    and max(len(value.split()) for value in column.counts) <= MOST_WORDS_OF_A_LABEL
  )


def _texts(table: RawTable, answer: Column) -> list[Column]:
  """Returns the columns that look like texts, or the longest one."""
  left = [c for c in table.columns.values() if c is not answer and _usable(c)]
  if not left:
    raise UserError(
      f"'{table.path}' has no column beside '{answer.name}' that a template could name. Give "
      "it a column with the texts, without brackets, ':' and '!' in its name."
    )
  texts = [c for c in left if c.words >= WORDS_OF_A_TEXT]
  return texts or [max(left, key=lambda c: (not c.numbers, c.words, len(c.counts)))]


def _template(names: Sequence[str], answer: str, vocabulary: Vocabulary | None) -> str:
  """Returns a template in the usual form of the backbone's family.

  An encoder-decoder reads 'text: {text}', as in the papers' tasks. A decoder-only model goes
  on writing, so its text ends with what the answer is: 'text: {text}' and a line 'label:'.
  That form serves both and is taken if the backbone is not known. Words that the
  vocabulary does not know are left out.
  """

  def cue(name: str) -> str:
    text = f"{name}:"
    if vocabulary is not None and spelling(text, vocabulary) is None:
      return ""
    return text

  parts = [" ".join(filter(None, (cue(name), f"{{{name}}}"))) for name in names]
  if vocabulary is not None and not vocabulary.first_id:
    return " ".join(parts)
  if vocabulary is None or (last := cue(answer)):
    last = f"{answer}:"
    parts.append(last)
  return "\n".join(parts)


def _files(
  table: RawTable, answer: Column, texts: Sequence[Column]
) -> tuple[dict[str, PathLike], list[RawTable]]:
  """Returns the file of each split, and the tables of those beside the training file."""
  files: dict[str, PathLike] = {"train": table.path}
  tables = []
  path = to_path(table.path)
  for split, words in OTHER_SPLITS.items():
    for word in words if re.search("train", path.name) else ():
      beside = path.with_name(path.name.replace("train", word))
      if not beside.exists():
        continue
      other = raw_tables.look(beside)
      if {answer.name, *(column.name for column in texts)} <= set(other.columns):
        files[split] = beside
        tables.append(other)
        break
  return files, tables


def _splits(rows: int, files: Mapping[str, Any]) -> dict[str, float | int]:
  """Returns what the splits without a file take of the training rows."""
  size = HELD_OUT if rows * HELD_OUT <= MOST_HELD_OUT else MOST_HELD_OUT
  if rows * HELD_OUT < 1:
    size = 1
  return {split: size for split in OTHER_SPLITS if split not in files}


def _labels(
  answer: Column, tables: Sequence[RawTable], vocabulary: Vocabulary | None
) -> tuple[dict[str, str] | None, list[str]]:
  """Returns the label word of each value, None for free answers, and remarks."""
  counts = answer.counts
  remarks = []
  if not _are_classes(answer):
    if answer.numbers and len(counts) > 2:
      remarks.append(
        f"'{answer.name}' holds {len(counts):,} different numbers. They are learnt as texts; "
        'for a scale, set round_targets_to (such as 0.5) and metric = "spearman".'
      )
    else:
      remarks.append(
        f"'{answer.name}' holds {len(counts):,} different values of {answer.words:.1f} words, "
        "so answers are free texts. If another column has the labels, name it: --target."
      )
    return None, remarks
  for table in tables[1:]:
    counts = counts + table.columns[answer.name].counts
  words: dict[str, str] = {}
  spellings: dict[str, str] = {}
  for value, _ in counts.most_common():
    first = spellings.setdefault(" ".join(value.lower().split()), value)
    words[value] = _word(first, vocabulary)
    if first != value:
      remarks.append(f"'{value}' is taken for another spelling of '{first}'.")
  if all(map(raw_tables.is_number, words)):
    remarks.append(
      f"The labels are numbers ({', '.join(sorted(words, key=float)[:5])}). Words that say "
      "what each one means are learnt faster; write them below [labels]."
    )
    return dict(sorted(words.items(), key=lambda item: float(item[0]))), remarks
  return dict(sorted(words.items())), remarks


def _word(value: str, vocabulary: Vocabulary | None) -> str:
  """Returns a value as the vocabulary can write it; itself if it can, or if nothing helps."""
  if vocabulary is None:
    return value
  plain = value.replace("_", " ")
  for word in (value, plain, value.lower(), plain.lower()):
    if spelling(word, vocabulary) == word:
      return word
  return value


def _relative(path: PathLike, output: PathLike) -> str:
  """Returns a path as seen from the folder of the task file."""
  if is_remote(path) or is_remote(output):
    return os.fspath(path)
  folder = os.path.abspath(to_path(output).parent)
  return pathlib.PurePath(os.path.relpath(to_path(path), folder)).as_posix()


def lines(proposal: Proposal) -> list[str]:
  """Returns what was seen in the file and what was guessed, for the user to look at."""
  table, settings = proposal.table, proposal.settings
  names = settings.get("columns", list(table.columns))
  rows = [["column", "values", "empty", "words", "for example"]]
  for name, column in zip(names, table.columns.values(), strict=True):
    example = next(iter(column.counts), "")
    shown = example if len(example) <= 40 else f"{example[:37]}..."
    cells = f"{len(column.counts):,}", f"{column.empty:,}", f"{column.words:.1f}"
    rows.append([name or "(no name)", *cells, " ".join(shown.split())])
  labels = settings.get("labels")
  return [
    table.describe(),
    *(f"  {remark}" for remark in table.remarks),
    *(f"  {line}" for line in _columns(rows)),
    f"template: {json.dumps(settings['template'], ensure_ascii=False)}",
    f"target:   {settings['target']}"
    + (f", {len(set(labels.values()))} labels" if labels else ", free texts"),
  ]


def toml_text(proposal: Proposal, again: str, measured: str | None) -> str:
  """Returns the text of the task file.

  Args:
    proposal: the task.
    again: the command that looks at the task file after a change.
    measured: how long its texts are, in a line; None if that is not known.
  """
  settings, table = proposal.settings, proposal.table
  columns = _names(settings.get("columns", table.columns))
  lines = [
    f"# The task '{settings['name']}'. Written by: tpv tasks new "
    + printable(shlex.quote(str(table.path))),
    f"# After a change:  {printable(again)}",
    "",
    f"name = {_value(settings['name'])}",
    f"paths = {_value(settings['paths'])}  # relative to this file",
    *(
      f"{key} = {_value(settings[key])}"
      for key in ("format", "columns")
      if key in settings
    ),
    "",
    f"# What the model reads. In braces: columns of the file ({_comment(columns)}).",
    f"template = {_value(settings['template'])}",
    f"target = {_value(settings['target'])}  # the column of the answer",
    f"metric = {_value(settings['metric'])}  # beside exact match and macro-F1",
  ]
  if "splits" in settings:
    lines += [
      "",
      "# Taken from the training file at random: below 1 a part of its rows, else so many.",
      f"splits = {_value(settings['splits'])}",
    ]
  for key in ("skip_labels", "allow_empty", "deduplicated"):
    if key in settings:
      lines.append(f"{key} = {_value(settings[key])}")
  lines += [
    "",
    "# The longest source and target in tokens, end included; more is trimmed.",
  ]
  if "lengths" in settings:
    lines += [f"# {measured}", f"lengths = {_value(settings['lengths'])}"]
  else:
    lines += [
      "# Give --backbone to 'tpv tasks check', and it says how long yours are.",
      "# lengths = { inputs = 256, targets = 8 }",
    ]
  if "labels" in settings:
    counts = proposal.answer.counts
    lines += [
      "",
      "# Value of the target column = the words that the model answers.",
      "[labels]",
    ]
    lines += [
      f"{_value(value)} = {_value(word)}  # {counts[value]:,} rows"
      for value, word in settings["labels"].items()
    ]
  return "\n".join(lines) + "\n"


def _columns(rows: Sequence[Sequence[str]]) -> list[str]:
  """Returns aligned lines: the numbers in the middle to the right, the rest to the left."""
  middle = aligned([row[:-1] for row in rows]).split("\n")
  return [f"{line}  {row[-1]}".rstrip() for line, row in zip(middle, rows, strict=True)]


def _comment(text: str) -> str:
  """Returns a text as it may stand in a comment."""
  return json.dumps(text, ensure_ascii=False)[1:-1].replace("\x7f", " ")


def _value(value: Any) -> str:
  """Returns a value as TOML writes it; JSON's strings are TOML's."""
  if isinstance(value, Mapping):
    inner = ", ".join(f"{_key(key)} = {_value(one)}" for key, one in value.items())
    return f"{{ {inner} }}"
  if isinstance(value, list):
    return f"[{', '.join(map(_value, value))}]"
  return json.dumps(value, ensure_ascii=False).replace("\x7f", "\\u007f")


def _key(key: str) -> str:
  return key if re.fullmatch(r"[A-Za-z_-]+", key) else _value(key)

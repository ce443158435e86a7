"""Tasks from local TSV, CSV and JSON-lines files, described by gin.

This module decides what a file means: its rows, its splits, its labels. Every error names
the file and the line.
"""

import dataclasses
import functools
import os
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Literal

from tpv_jax.core.checks import Positive, Seed, checked
from tpv_jax.core.errors import UserError, near_misses
from tpv_jax.core.files import PathLike
from tpv_jax.data import lines, recipes, tables
from tpv_jax.data.batches import order
from tpv_jax.data.recipes import Recipe, as_text
from tpv_jax.data.tasks import SPLITS, Example, Task, deduplicate

LARGE = 10_000
"""A task with more training rows than this is large in the paper's split rule."""

FROM_TRAIN = 1_000
"""Number of rows of a large task's training file that become its validation split."""


@checked
def text_file_task(
  name: str,
  paths: Any,
  template: str,
  target: str,
  labels: Any = None,
  metric: str = "exact_match",
  splits: Literal["paper"] | Mapping[str, float] | None = None,
  seed: Seed = 0,
  columns: Any = None,
  file_format: Literal["tsv", "csv", "jsonl"] | None = None,
  round_targets_to: Positive | None = None,
  skip_labels: Any = (),
  allow_empty: bool = False,
  deduplicated: bool = False,
) -> Task:
  """Returns the task in the files, which are read when examples are first used.

  All formats are UTF-8, and blank lines are skipped. TSV has columns between tabs, and
  quotes have no meaning, as in GLUE's files. CSV is quoted as by Excel, and separated by
  commas, or by semicolons or tabs if only these give a header with the columns in use. JSON
  lines have an object in each line; numbers and true/false keep their spelling.

  Args:
    name: of the task.
    paths: one file, which is the 'train' one, or a file for each of 'train', 'validation'
      and 'test' (some may be missing). A list of files is read as one, in its order.
    template: the source text, with columns in braces: `"question: {question} context:
      {passage}"`. `{{` and `}}` are braces.
    target: the column of the answer.
    labels: the label words. A mapping gives the word for each value of the target column
      (`{0: 'negative', 1: 'positive'}`); a sequence lists values that are the words
      themselves; None leaves the targets free.
    metric: the name in `data.metrics.registry` that evaluation reports beside the common ones.
    splits: where splits without a file come from.
      None: every split has its own file.
      A mapping such as `{'validation': 0.1, 'test': 500}`: they are taken from the
        train file, each a fraction (below 1, to the nearest row) or a number of rows.
      'paper': the rule of docs/methods.md, "Source prompts of the papers". The files
        are 'train' and 'validation'. Of more than 10,000 training rows, 1,000 become the
        validation split and the validation file is the test split; otherwise the
        validation file is split in halves, with an odd row going to test (ours).
    seed: of the choice of these rows; all rows stay in the order of the file.
    columns: the names of the columns of a TSV or CSV file without a header line.
    file_format: 'tsv', 'csv' or 'jsonl'; by default the ending of the path decides.
    round_targets_to: the targets are numbers and are written as the nearest multiple, as
      T5 does for STS-B with 0.2 ("3.8"; all 181 values there were tried and equal T5's).
      Halves go to the even multiple.
    skip_labels: values of the target column whose rows are left out (SNLI: ['-']); a
      single value needs no list.
    allow_empty: whether a column of the template may be empty.
    deduplicated: whether, after the rows are split, texts that a later split has are left
      out of a split (`tasks.deduplicate`).

  Raises:
    UserError: now, if the settings contradict each other; at the first use, if a file is
      missing or a line does not have the described form.
  """
  files = {
    split: _several(name, some)
    for split, some in (
      paths.items() if isinstance(paths, Mapping) else [("train", paths)]
    )
  }
  if not files:
    raise UserError(f"Task '{name}' has no file. Set text_file_task.paths.")
  for split in (*files, *(splits if isinstance(splits, Mapping) else ())):
    if split not in SPLITS:
      raise UserError(
        f"Task '{name}' is given the split '{split}'; the splits are "
        f"{', '.join(SPLITS)}.{near_misses(split, SPLITS)}"
      )
  _check_rule(name, files, splits)
  recipe = Recipe(
    task=name,
    template=template,
    target=target,
    labels=None if labels is None else label_words(labels),
    metric=metric,
    allow_empty=allow_empty,
    round_targets_to=None if round_targets_to is None else str(round_targets_to),
  )
  rows = _Rows(
    recipe,
    skip=tuple(map(as_text, _listed(skip_labels))),
    columns=None if columns is None else _column_names(columns),
    file_format=file_format,
  )

  @functools.cache
  def load_all() -> Mapping[str, Sequence[Example]]:
    whole = {split: rows.read(some) for split, some in files.items()}
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

  return Task(name, recipe.words, metric, load, recipe=recipe)


def _listed(values: Any) -> list[Any]:
  """Returns the values as a list; a string or a number is one value."""
  several = isinstance(values, list | tuple | set | frozenset)
  return [] if values is None else list(values) if several else [values]


def _several(name: str, paths: Any) -> list[PathLike]:
  """Returns the files of a split."""
  found = _listed(paths)
  for path in found:
    if not isinstance(path, str | os.PathLike) or not os.fspath(path):
      raise UserError(
        f"The paths of task '{name}' include {path!r}, which is no path. Correct "
        "text_file_task.paths."
      )
  if not found:
    raise UserError(
      f"A split of task '{name}' has no file. Set text_file_task.paths, or leave the "
      "split out."
    )
  return found


def _column_names(columns: Any) -> tuple[str, ...]:
  names = tuple(_listed(columns))
  if not names or not all(isinstance(name, str) for name in names):
    raise UserError(
      f"text_file_task.columns is {columns!r}; give the names of all columns of the "
      "file, in their order: ['text', 'label']."
    )
  if len(set(names)) < len(names):
    raise UserError(
      f"text_file_task.columns has a name twice: {', '.join(names)}. Give each column its "
      "own name."
    )
  return names


def _check_rule(name: str, files: Mapping[str, Any], splits: Any) -> None:
  """Raises `UserError` unless the split rule fits the files."""
  if splits is None:
    return
  if splits == "paper":
    if set(files) != {"train", "validation"}:
      raise UserError(
        f"Task '{name}' is split by the paper's rule, which needs a train and a validation "
        f"file and makes the test split itself, but has {', '.join(files)}. Give those "
        "two, or choose another text_file_task.splits."
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
  """Returns the examples by split, according to the rule; see `text_file_task`."""
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
  """Returns disjoint random parts of these sizes, then the rest, each in file order."""
  places = order(len(examples), seed)
  parts, start = [], 0
  for size in (*sizes, len(examples) - sum(sizes)):
    chosen = sorted(places[start : start + size].tolist())
    parts.append(tuple(examples[place] for place in chosen))
    start += size
  return parts


@dataclasses.dataclass(frozen=True)
class _Rows:
  """The meaning of a file's rows; `read` returns its examples."""

  recipe: Recipe
  skip: tuple[str, ...]
  columns: tuple[str, ...] | None
  file_format: str | None

  def read(self, paths: Sequence[PathLike]) -> tuple[Example, ...]:
    """Returns the examples of files in their order.

    Raises:
      UserError: a file has no examples, or a row does not have the described form.
    """
    return tuple(example for path in paths for example in self._read(path))

  def _read(self, path: PathLike) -> list[Example]:
    examples = []
    for where, row in self._lines(path):
      value = recipes.value(row, self.recipe.target, where).strip()
      if value in self.skip:
        continue
      source, fields = self.recipe.source(
        row,
        where,
        "Fill it, remove the line, or allow it in the task (text_file_task.allow_empty = "
        "True).",
      )
      skip = [*self.skip, value]
      fix = (
        "Correct the line, add the label to text_file_task.labels, or leave such rows out: "
        f"text_file_task.skip_labels = {skip!r:.200}."
      )
      answer = self.recipe.answer(value, where, fix)
      examples.append(Example(source, answer, fields=fields))
    if not examples:
      skipped = " and those of text_file_task.skip_labels" if self.skip else ""
      raise UserError(
        f"'{path}' has no examples, only a header, blank lines{skipped}. Choose another "
        "file."
      )
    return examples

  def _lines(self, path: PathLike) -> Iterator[tuple[str, Mapping[str, Any]]]:
    """Yields (file and line, row by column name)."""
    form = tables.format_of(path, self.file_format, "text_file_task.file_format")
    yield from tables.rows(
      path,
      lines.read_text(path, "text_file_task.paths"),
      form,
      {self.recipe.target, *self.recipe.columns},
      self.columns,
      "text_file_task.columns",
      "text_file_task.file_format",
    )


def label_words(labels: Mapping[Any, Any] | Sequence[Any]) -> dict[str, str]:
  """Returns the label word of each value, as text.

  Args:
    labels: a mapping from values to words, or a sequence of words, each its own value.

  Raises:
    UserError: it is neither of these, a word is not a string or number or is empty, or a
      value has two words.
  """
  if not isinstance(labels, Mapping | list | tuple) or not labels:
    raise UserError(
      f"The labels (LABELS) are {labels!r}; give a mapping of values to label words, "
      "such as {'0': 'negative', '1': 'positive'}, a list of label words, or None for "
      "free targets."
    )
  if not isinstance(labels, Mapping):
    labels = {as_text(word): word for word in labels}
  words: dict[str, str] = {}
  for value, word in labels.items():
    if not isinstance(word, str | int | float) or not as_text(word).strip():
      raise UserError(
        f"The labels (LABELS) map {value!r} to {word!r:.200}; choose one word for it."
      )
    if words.setdefault(as_text(value).strip(), as_text(word)) != as_text(word):
      raise UserError(
        f"The labels (LABELS) map the value '{value}' to two words, one of them for its "
        "other spelling. Give it once."
      )
  return words

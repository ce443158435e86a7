"""The definition of a paper's task: source, template, labels, splits, metrics.

Plain Python. `exported` writes the data, and `seqio_tasks` streams it to T5X; both turn rows
into examples by `Definition.example`, so that they give equal strings.
"""

import dataclasses
import functools
import importlib.resources
import json
import re
import string
import zlib
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
from jaxtyping import Int

from tpv_jax.core.errors import UserError, near_misses
from tpv_jax.data.batches import order
from tpv_jax.data.papers.measured import MEASURED
from tpv_jax.data.recipes import nearest_multiple
from tpv_jax.data.tasks import Example, check_split
from tpv_jax.data.text_files import FROM_TRAIN

TPV = "TPV"
"""The task-vector paper (arXiv 2408.01119)."""

EPT = "EPT"
"""The EPT paper (arXiv 2405.11464)."""

UNANSWERABLE = "unanswerable"
"""The target of a SQuAD v2 question that its context does not answer. Ours."""

SEED = 0
"""Seed of the rows that a split rule chooses; another seed gives other splits."""

SOURCE_LENGTH = 256
"""The longest source of both papers, in tokens."""

Row = Mapping[str, Any]
"""A raw row: strings, numbers, lists of strings; a class is its name, or None if unknown."""


@dataclasses.dataclass(frozen=True)
class Definition:
  """A task: where its rows come from, and what they mean.

  Attributes:
    name: one word; it ends in `_t5` if the template is the T5 package's, and in `_instruct`
      if it is an instruction for decoder-only models.
    title: what it is about.
    tfds: the data set's name in TensorFlow Datasets, or None.
    hugging_face: its name in the Hugging Face hub, if TFDS does not have it.
    template: the source text, columns in braces.
    labels: the source's class names in their order, each with its label word; None if
      targets are free.
    papers: `TPV`, `EPT`.
    licence: of the data, according to the source.
    sizes: how many rows the source's 'train' and `held_out` splits have.
    large: the split rule: if True, 1,000 rows of train become validation, and `held_out`
      is the test split; otherwise `held_out` is halved into validation and test.
    target: the column of the answer.
    metrics: names in `data.metrics.registry`; the first is the task's own.
    held_out: the name of the source's held-out split.
    epochs: of a source prompt in the task-vector paper.
    target_length: the longest target in tokens of T5's vocabulary, EOS included.
    most_tokens: of a source; the papers' 256, except for tasks with long sources.
    change: turns the raw row into the one that the template reads; None if they are equal.
    rounded_to: for targets that are numbers: they are written as the nearest multiple.
    limits: the least and the largest of targets that are numbers.
    answers: the column of all accepted answers.
    trained_class: the only class whose rows are in train and validation; None for all.
    trained_rows: how many rows of train have this class; None for all.
    group: the column of the group that an example belongs to; only of large tasks. A
      group lies in train or in validation as a whole, by its name, whatever the seed.
    skip_unlabelled: rows without a label are left out and are no error.
    variant_of: the task on whose data this is, with another template.
    instruction: whose words an instruction has: `TPV`, from its public code, or 'ours'.
  """

  name: str
  title: str
  template: str
  labels: Mapping[str, str] | None
  papers: tuple[str, ...]
  licence: str
  sizes: tuple[int, int]
  large: bool
  target: str = "label"
  metrics: tuple[str, ...] = ("exact_match", "macro_f1")
  tfds: str | None = None
  hugging_face: str | None = None
  held_out: str = "validation"
  epochs: int = 10
  target_length: int = 8
  most_tokens: int = SOURCE_LENGTH
  change: Callable[[Row, str], Row] | None = None
  rounded_to: str | None = None
  limits: tuple[float, float] | None = None
  answers: str | None = None
  trained_class: str | None = None
  trained_rows: int | None = None
  group: str | None = None
  skip_unlabelled: bool = False
  variant_of: "Definition | None" = None
  instruction: str | None = None

  @property
  def data(self) -> str:
    """The name of the data set, which its variants share."""
    return (self.variant_of or self).name

  @property
  def classes(self) -> dict[str, list[str]]:
    """The source's class names in their order, by the column that holds them."""
    base = self.variant_of or self
    return {} if base.labels is None else {base.target: list(base.labels)}

  @property
  def words(self) -> tuple[str, ...] | None:
    """The label words in their order, or None where targets are free."""
    return None if self.labels is None else tuple(self.labels.values())

  @property
  def source(self) -> str:
    """The source of the rows, in words."""
    return f"TFDS {self.tfds}" if self.tfds else f"Hugging Face {self.hugging_face}"

  @property
  def lengths(self) -> dict[str, int]:
    """The longest source and target in tokens, EOS included.

    If sources were measured, it is the longest, rounded up to a multiple of 32, but at
    most `most_tokens`; otherwise `most_tokens`. Longer texts are trimmed, and counted.
    """
    longest = MEASURED[self.name][-1] if self.name in MEASURED else self.most_tokens
    return {
      "inputs": min(self.most_tokens, -(-longest // 32) * 32),
      "targets": self.target_length,
    }

  @property
  def steps(self) -> int:
    """The steps of training in the task-vector paper: `epochs` with batches of 32."""
    rows = self.sizes[0] if self.trained_rows is None else self.trained_rows
    train = rows - (FROM_TRAIN if self.large else 0)
    return -(-train * self.epochs // 32)

  @property
  def split_rule(self) -> str:
    """The rule by which the papers' splits are made from the source's, in words."""
    if self.group is not None:
      return (
        f"about {FROM_TRAIN:,} of train, in whole groups, become validation; "
        f"{self.held_out} is test"
      )
    if self.large:
      return f"{FROM_TRAIN:,} of train become validation; {self.held_out} is test"
    rule = f"{self.held_out} is halved into validation and test"
    if self.trained_class is not None:
      return f"{rule}; only test keeps rows that are not {self.trained_class}"
    return rule

  def places(
    self, split: str, counts: Mapping[str, int], seed: int = SEED
  ) -> tuple[str, Int[np.ndarray, " N"]]:
    """Returns the source's split from which `split` is taken, and the numbers of its rows.

    The rows are disjoint, chosen by the seed, and in the source's order, by the rules of
    arXiv 2408.01119, section 4. A train split of fewer than 2,000 rows gives half of them
    instead of 1,000; the odd row of a held-out split goes to test (both ours). If examples
    have a `group`, train and validation both get all rows of train, and `example` selects
    those of each split.

    Args:
      split: 'train', 'validation' or 'test'.
      counts: how many rows each of the source's splits has.
      seed: of the choice.

    Raises:
      UserError: there is no such split.
    """
    check_split(self.name, split)
    from_train = ("train", "validation") if self.large else ("train",)
    source = "train" if split in from_train else self.held_out
    count = counts[source]
    if split == ("test" if self.large else "train") or self.group is not None:
      return source, np.arange(count)
    taken = min(FROM_TRAIN, count // 2) if self.large else count // 2
    chosen = order(count, seed)
    return source, np.sort(chosen[:taken] if split == "validation" else chosen[taken:])

  def example(self, row: Row, where: str, split: str) -> Example | None:
    """Returns the example of a raw row, or None if it is not in the split.

    Args:
      row: by column; a class is its name in the source.
      where: names the row in errors.
      split: the split; see `trained_class` and `group`.

    Raises:
      UserError: a column or the label is missing, or the label is not one of `labels`.
    """
    if self.skip_unlabelled and row.get(self.target) is None:
      return None
    wanted = self.trained_class if split != "test" else None
    if wanted is not None and truth(row, where) != wanted:
      return None
    if self.change is not None:
      row = self.change(row, where)
    inputs = self.template.format_map(
      {name: text(row, name, where) for name in self.columns}
    )
    example = Example(
      inputs=inputs,
      targets=self._answer(text(row, self.target, where, null="").strip(), where),
      answers=tuple(row[self.answers]) if self.answers is not None else (),
      group=text(row, self.group, where) if self.group is not None else "",
      fields=self.fields(inputs),
    )
    if self.group is not None and split != "test":
      held_back = (
        zlib.crc32(example.group.encode()) % (self.sizes[0] // FROM_TRAIN) == 0
      )
      return example if held_back == (split == "validation") else None
    return example

  def fields(self, inputs: str) -> tuple[tuple[int, int], ...]:
    """Returns where the texts of the columns begin and end in a source of the template.

    The template's words are searched in their order, so a column that contains the next
    ones ends there. Columns with only white space between them count as one. Both
    `exported` and `seqio_tasks` use this, because an exported source has no columns.
    """
    found = self._pattern.fullmatch(inputs)
    return () if found is None else found.regs[1:]

  @functools.cached_property
  def _pattern(self) -> re.Pattern[str]:
    column, pattern = "(.*?)", ""
    for literal, name, _, _ in string.Formatter().parse(self.template):
      if literal.strip() or name is None or not pattern.endswith(column):
        pattern += re.escape(literal) + (column if name else "")
    return re.compile(pattern, re.DOTALL)

  @functools.cached_property
  def columns(self) -> tuple[str, ...]:
    """The columns of the template, in its order."""
    parts = string.Formatter().parse(self.template)
    return tuple(column for _, column, _, _ in parts if column)

  def _answer(self, value: str, where: str) -> str:
    if not value:
      raise UserError(
        f"{where}: no label in column '{self.target}', so there is nothing to learn. "
        "Choose a split that has labels, or remove the row."
      )
    if self.rounded_to is not None:
      rounded = nearest_multiple(value, self.rounded_to)
      if rounded is None:
        raise UserError(
          f"{where}: '{value:.80}' in column '{self.target}' is no number, but the targets "
          f"of '{self.name}' are numbers. Correct the row."
        )
      if self.limits and not self.limits[0] <= float(value) <= self.limits[1]:
        raise UserError(
          f"{where}: {value:.80} in column '{self.target}' is outside the numbers of "
          f"'{self.name}', {self.limits[0]:g} to {self.limits[1]:g}. Correct the row."
        )
      return rounded
    if self.labels is None:
      return value
    if value not in self.labels:
      raise UserError(
        f"{where}: '{value:.80}' in column '{self.target}' is outside the labels of "
        f"'{self.name}': {', '.join(self.labels)}.{near_misses(value, self.labels)} "
        "Correct the row."
      )
    return self.labels[value]


def example_rows(which: Definition) -> list[dict[str, Any]]:
  """Returns two invented rows in the data set's format, with classes as numbers."""
  file = importlib.resources.files("tpv_jax.data") / "example_rows.json"
  return json.loads(file.read_text())[which.data]


def check_classes(which: Definition, found: Mapping[str, list[str]]) -> None:
  """Raises `UserError` if the source's classes are not those of the definition.

  Args:
    which: the task.
    found: class names by column; a column that is no class column is not checked.
  """
  for column, expected in which.classes.items():
    if column in found and found[column] != expected:
      raise UserError(
        f"The label set of {which.source} has changed: it is "
        f"{', '.join(found[column])}, and task '{which.name}' knows "
        f"{', '.join(expected)}, so numbers would mean other labels. Use the version of "
        "the data set that docs/tasks.md was made with, or correct "
        "tpv_jax/data/papers."
      )


def text(row: Row, column: str, where: str, null: str | None = None) -> str:
  """Returns a column's value as text; `null` replaces a missing one, None refuses it."""
  if column not in row:
    raise UserError(
      f"{where}: there is no column '{column}', only {', '.join(row) or 'none'}."
      f"{near_misses(column, row)} Correct the file."
    )
  value = null if row[column] is None else row[column]
  if value is None:
    raise UserError(f"{where}: column '{column}' is empty. Fill it, or remove the row.")
  if isinstance(value, Mapping | list):
    raise UserError(
      f"{where}: '{column}' holds several values; it must be a string or a number. Flatten "
      "the file first."
    )
  return str(value)


def index(row: Row, column: str, where: str) -> int:
  """Returns a column's value as the number of a word, from 0."""
  number = text(row, column, where)
  if not re.fullmatch(r"\d{1,6}", number, re.ASCII):
    raise UserError(
      f"{where}: '{number:.80}' in column '{column}' is not the number of a word, from 0. "
      "Correct the row."
    )
  return int(number)


def truth(row: Row, where: str) -> str:
  """Returns WSC's label, 'False' or 'True'."""
  label = text(row, "label", where, null="")
  if label not in ("False", "True"):
    raise UserError(
      f"{where}: '{label:.80}' in column 'label' is neither False nor True, so it does not "
      "say whether the pronoun means 'span1_text'. Correct the row."
    )
  return label


def same(*words: str) -> dict[str, str]:
  """Returns labels whose words are the names of the classes."""
  return {word: word for word in words}

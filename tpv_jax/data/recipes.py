"""Recipes: how a task makes its sources and answers from the columns of a row.

A run's manifest keeps the recipe of its task, so that the prompt can answer new rows as it
was trained.
"""

import dataclasses
import decimal
import functools
import math
import string
from collections.abc import Callable, Mapping
from typing import Any

from tpv_jax.core.errors import UserError, near_misses

CHANGES = ("marked_wsc", "starred_pronoun", "without_markup")
"""The functions of `data.papers.changes` that a recipe may name."""

MOST_DIGITS = 15
"""Most digits before the point of a target that is rounded."""

Row = Mapping[str, Any]
"""A row by column: strings, numbers or truth values."""


@dataclasses.dataclass(frozen=True)
class Recipe:
  """How sources and answers are made from rows.

  Attributes:
    task: the name of the task, for messages.
    template: the source text, with columns in braces; `{{` and `}}` are braces.
    target: the column of the answer.
    labels: the label word of each value of `target`; None if the targets are free.
    metric: the name, in `data.metrics.registry`, of the task's own metric.
    allow_empty: whether a column of the template may be empty.
    round_targets_to: targets are numbers, written as the nearest multiple of this one.
    change: a function of `CHANGES`, which makes the row that the template reads from the
      raw one; None if they are equal.
  """

  task: str
  template: str
  target: str
  labels: Mapping[str, str] | None = None
  metric: str = "exact_match"
  allow_empty: bool = False
  round_targets_to: str | None = None
  change: str | None = None

  def __post_init__(self) -> None:
    """Checks the template.

    Raises:
      UserError: it cannot be read, or names no column.
    """
    if not self.columns:
      raise UserError(
        f"The template of task '{self.task}', {self.template!r}, names no column, so all "
        "sources would be equal. Put columns in braces, as in '{sentence}'."
      )

  @functools.cached_property
  def columns(self) -> tuple[str, ...]:
    """The columns of the template, each once, in its order."""
    return tuple(dict.fromkeys(column for _, column in self._parts if column))

  @property
  def words(self) -> tuple[str, ...] | None:
    """The label words in their order, or None where targets are free."""
    return None if self.labels is None else tuple(dict.fromkeys(self.labels.values()))

  @functools.cached_property
  def _parts(self) -> tuple[tuple[str, str | None], ...]:
    """The template as pairs of literal text and the column after it."""
    template = f"The template of task '{self.task}', {self.template!r}"
    try:
      parts = tuple(string.Formatter().parse(self.template))
    except ValueError as error:
      raise UserError(
        f"{template}, cannot be read ({error}). Put columns in braces, as in "
        "'{sentence}'; write {{ and }} for braces."
      ) from error
    for _, column, specification, conversion in parts:
      if column == "" or specification or conversion:
        raise UserError(
          f"{template}, must have only the name of a column between braces, as in "
          "'{sentence}'."
        )
    return tuple((literal, column) for literal, column, _, _ in parts)

  def source(
    self, row: Row, where: str, fix: str = "Fill it, or remove the row."
  ) -> tuple[str, tuple[tuple[int, int], ...]]:
    """Returns the source, and where the texts of its columns begin and end.

    Args:
      row: by column.
      where: names the row in errors.
      fix: what to do about an empty column.

    Raises:
      UserError: a column is missing, holds several values, or is empty and may not be.
    """
    if self.change is not None:
      row = _change(self.change)(row, where)
    source, fields = "", []
    for literal, column in self._parts:
      source += literal
      if column is not None:
        text = value(row, column, where)
        if not text.strip() and not self.allow_empty:
          raise UserError(f"{where}: column '{column}' is empty. {fix}")
        fields.append((len(source), len(source) + len(text)))
        source += text
    return source, tuple(fields)

  def answer(self, text: str, where: str, fix: str = "Correct the line.") -> str:
    """Returns the target of a value of the target column.

    Args:
      text: the value, without white space around it.
      where: names the row in errors.
      fix: what to do about a value that is no label.

    Raises:
      UserError: it is empty, no label, or not a number where targets are rounded.
    """
    if not text:
      raise UserError(
        f"{where}: the target column '{self.target}' is empty. Fill it, or remove the "
        "line."
      )
    if self.round_targets_to is not None:
      rounded = nearest_multiple(text, self.round_targets_to)
      if rounded is None:
        raise UserError(
          f"{where}: the target '{text:.80}' is no number (of {MOST_DIGITS} digits at "
          f"most), but targets are to be rounded to multiples of {self.round_targets_to}. "
          "Correct the line, or leave out text_file_task.round_targets_to."
        )
      text = rounded
    if self.labels is None:
      return text
    if text not in self.labels:
      raise UserError(
        f"{where}: '{text:.80}' in column '{self.target}' is outside the labels "
        f"{', '.join(self.labels)}.{near_misses(text, self.labels)} {fix}"
      )
    return self.labels[text]

  def to_json(self) -> dict[str, Any]:
    """Returns the recipe as a manifest states it."""
    stated = dataclasses.asdict(self)
    return stated | {"labels": None if self.labels is None else dict(self.labels)}

  @classmethod
  def from_json(cls, stated: Any, where: str) -> "Recipe":
    """Returns the recipe that a manifest states, which need not be trusted.

    Args:
      stated: what `to_json` gave; what it lacks has its default.
      where: names the file in errors.

    Raises:
      UserError: it states no recipe, or something that this version does not know.
    """
    kinds = {field.name: field.type for field in dataclasses.fields(cls)}
    fault = None
    if not isinstance(stated, Mapping) or not {"task", "template", "target"} <= {
      *stated
    }:
      fault = "states no template and target"
    elif unknown := [name for name in stated if name not in kinds]:
      fault = f"states '{unknown[0]}', which this version of tpv_jax does not know"
    elif wrong := [name for name in stated if not _fits(name, stated[name])]:
      fault = f"states {wrong[0]} = {stated[wrong[0]]!r:.80}"
    if fault is not None:
      raise UserError(f"The recipe in '{where}' {fault}. Take another copy of the run.")
    return cls(**stated)


def _fits(name: str, stated: Any) -> bool:
  """Returns whether a value that a manifest states can be an attribute of a recipe."""
  if name == "labels":
    return stated is None or (
      isinstance(stated, Mapping)
      and bool(stated)
      and all(isinstance(word, str) for word in stated.values())
    )
  if name == "allow_empty":
    return isinstance(stated, bool)
  if name == "change":
    return stated is None or stated in CHANGES
  if name == "round_targets_to":
    return stated is None or (
      isinstance(stated, str) and nearest_multiple("1", stated) is not None
    )
  return isinstance(stated, str)


def _change(name: str) -> Callable[[Row, str], Row]:
  from tpv_jax.data.papers import changes  # It imports this module.

  found: Callable[[Row, str], Row] = getattr(changes, name)
  return found


def value(row: Row, column: str, where: str) -> str:
  """Returns a column's value as text.

  Raises:
    UserError: there is no such column, or it holds several values.
  """
  if column not in row:
    raise UserError(
      f"{where}: there is no column '{column}', only {', '.join(row) or 'none'}."
      f"{near_misses(column, row)} Correct the template, the target, or the file."
    )
  found = row[column]
  if isinstance(found, Mapping | list):
    raise UserError(
      f"{where}: '{column}' holds several values; it must be a string or a number. "
      "Flatten the file first."
    )
  return as_text(found)


def as_text(found: Any) -> str:
  """Returns a value as JSON spells it; strings are unchanged.

  None becomes '', and so do NaN and what else pandas has for a value that is missing.
  """
  if found is None or type(found).__name__ in ("NAType", "NaTType"):
    return ""
  if isinstance(found, float) and math.isnan(found):
    return ""
  if isinstance(found, bool):
    return "true" if found else "false"
  return str(found)


def nearest_multiple(text: str, step: str | decimal.Decimal) -> str | None:
  """Returns the nearest multiple of `step`, with its decimals; None for what is no number.

  Halves go to the even multiple. A number with more than `MOST_DIGITS` gives None, too.
  """
  try:
    step, number = decimal.Decimal(step), decimal.Decimal(text)
    if not number.is_finite() or number.adjusted() >= MOST_DIGITS:
      return None
    multiple = (number / step).to_integral_value(decimal.ROUND_HALF_EVEN)
  except (decimal.InvalidOperation, decimal.DivisionByZero):
    return None
  return f"{multiple * step:f}"

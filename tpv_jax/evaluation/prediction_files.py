"""Answers to the rows of a file, of standard input, or of a person at the terminal."""

import contextlib
import os
import pathlib
import sys
from collections.abc import Sequence
from typing import Any

import jax

from tpv_jax.core import files
from tpv_jax.core.errors import UserError, option
from tpv_jax.data import lines, tables
from tpv_jax.data.tables import Format, Table
from tpv_jax.devices import processes
from tpv_jax.evaluation import predicting, streaming, terminal
from tpv_jax.evaluation.predicting import Asked, Predicted, Predictor
from tpv_jax.runs.run_folder import alone_at_output

STREAM = "-"
"""Stands for standard input and standard output."""


@alone_at_output
def predict_file(
  asked: Asked,
  input: str = STREAM,  # noqa: A002 (the name of the command's option)
  output: str = STREAM,
  format: Format | None = None,  # noqa: A002
  prefix: str = "",
  overwrite: bool = False,
  **options: Any,
) -> None:
  """Writes the rows of a table with their answers, in their order, and says what was lost.

  Args:
    asked: the prompt, and the run that says how it was trained.
    input: a CSV, TSV or JSON-lines file, or `STREAM`.
    output: a file that appears whole, in the format of its ending, or `STREAM`.
    format: of an input whose name does not tell it.
    prefix: stands before the names of the added columns.
    overwrite: replace an output that exists.
    **options: of `predicting.load`.

  Raises:
    UserError: a row does not have the form, or lacks a column; a column exists already; an
      output exists; or as `predicting.load`.
  """
  if output != STREAM:
    files.check_output(output, overwrite)
  recipe = asked.subject_of().recipe
  table = read_table(input, format, () if recipe is None else recipe.columns)
  its_form = _format_of(output, table)
  if its_form == "tsv":
    tables.refuse_what_tsv_cannot_hold(table)
  if recipe is not None:
    predicting.check_columns(recipe, table.rows, table.places)
    predicting.check_added(
      dict.fromkeys(table.columns),
      [prefix + name for name in predicting.columns_of(recipe)],
      f", or put something before the new ones: {option('prefix', 'predicted_')}",
    )
  # Where answers are printed, nothing else is.
  with contextlib.redirect_stdout(sys.stderr if output == STREAM else sys.stdout):
    predictor = predicting.load(asked, **options)
    found = predictor.predict(table.rows, table.places)
    added = [{prefix + k: v for k, v in row.items()} for row in found.added]
    text = tables.written(table, added, its_form)
    if processes.is_writer() and output != STREAM:
      files.write_text(output, text, overwrite)
    if processes.is_writer():
      for line in _said(found, predictor, output, list(added[0])):
        print(line)
  if processes.is_writer() and output == STREAM:
    sys.stdout.write(text)


def _format_of(output: str, table: Table) -> Format:
  """Returns the format of the output: by its ending, or that of the input."""
  if output == STREAM:
    return table.form
  suffix = pathlib.PurePath(output).suffix.lower()
  if suffix not in tables.FORMATS:
    raise UserError(
      f"The ending of '{output}' tells no format. Let it end in "
      f"{', '.join(tables.FORMATS)}."
    )
  return tables.FORMATS[suffix]


def read_table(
  source: str, form: Format | None = None, needed: Sequence[str] = ()
) -> Table:
  """Returns the table in a file or in standard input.

  Args:
    source: a CSV, TSV or JSON-lines file, or `STREAM`.
    form: of a file whose name does not tell it.
    needed: the columns in use.

  Raises:
    UserError: there is no such file, or it is no such table.
  """
  if source == STREAM:
    content = b"" if sys.stdin is None else sys.stdin.buffer.read()
    begins = content.removeprefix("\ufeff".encode()).lstrip()[:1]
    guessed: Format = "jsonl" if begins == b"{" else "csv"
    return tables.read(
      "standard input", content, form or guessed, needed, option("format")
    )
  suffix = pathlib.PurePath(source).suffix.lower()
  if form is None and suffix in (".xlsx", ".xls", ".parquet", ".gz", ".zip"):
    raise UserError(
      f"'{source}' is a {suffix} file, and CSV, TSV and JSON-lines files are read. Save "
      "it as one of them."
    )
  known = tables.format_of(source, form, option("format", "csv"))
  content = lines.read_content(source, "the input")
  return tables.read(source, content, known, needed, option("format"))


def _said(
  found: Predicted, predictor: Predictor, output: str, columns: Sequence[str]
) -> list[str]:
  """Returns what is said of answers that were written."""
  target = predictor.recipe.target
  where = "" if output == STREAM else f" to {os.fspath(output)}"
  said = [f"Wrote {len(found.added)} rows{where}; new columns: {', '.join(columns)}."]
  if found.losses:
    said.append(f"Sources: {found.losses}.")
  if found.exact_match is not None:
    said.append(
      f"Exact match with column '{target}': {found.exact_match:.4f} of {found.compared} "
      "rows."
    )
  if found.strange:
    first = ", ".join(repr(one[:40]) for one in dict.fromkeys(found.strange[:3]))
    said.append(
      f"{len(found.strange)} rows have another text in column '{target}' than a label "
      f"({first}) and were not compared."
    )
  return said


def answer_as_asked(asked: Asked, **options: Any) -> None:
  """Asks a person for each column of the template, and answers, until Ctrl-D.

  Args:
    asked: the prompt, and the run that says how it was trained.
    **options: of `predicting.load`.

  Raises:
    UserError: as `predicting.load`; or there are several processes.
  """
  if jax.process_count() > 1:
    raise UserError(
      "Texts from the terminal are answered by a single process. Give "
      f"{option('input', 'FILE')}, or start one process."
    )
  predictor = predicting.load(asked, **options | {"batch_size": 1})
  evaluator, recipe = predictor.evaluator, predictor.recipe
  print(f"Type {' and '.join(recipe.columns)}, each with Enter. Ctrl-D ends.")
  free = recipe.words is None
  writer = streaming.Writer(evaluator, predictor.prompt) if free else None
  chat = evaluator.vocabulary.chat
  left_out = "" if chat is None else chat.frames[1].before
  for number, row in enumerate(terminal.rows(recipe.columns)):
    tokenized = evaluator.tokenize(predictor.examples([row], ["what you typed"]))
    if tokenized.sources:
      print(f"Note: {tokenized.sources}.", file=sys.stderr)
    if writer is not None:
      tokens = writer.tokens(tokenized.inputs[0], number)
      decode = evaluator.vocabulary.decode
      terminal.show(streaming.growing_text(decode, tokens, left_out))
      continue
    (added,) = predictor.predict([row]).added
    chances = (f"{name} {added[name]:.3f}" for name in predictor.columns[2:])
    terminal.show([f"{added[predicting.ANSWER]}  ({', '.join(chances)})"])

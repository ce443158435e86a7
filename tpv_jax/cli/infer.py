"""Answers rows or lines with a prompt.

With --prompt or --vector, the columns of a table are answered as the prompt's run was
trained: with its template, labels, lengths and vocabulary, which RUN/manifest.json states.
The output has the columns and rows of the input and behind them 'answer', 'score' (its
log-probability) and, of a task with labels, 'p(LABEL)' for each: the probabilities of the
labels. Tables are CSV, TSV or JSON lines, by the ending of their names. Without an input it
asks for each column at the terminal, and Ctrl-D ends; or reads a table from a pipe.

With gin files, each line of a text file is answered as it is, without a template. Without
INPUT_FILE it asks for lines at the terminal, or reads them from a pipe, and prints each
answer as it is written.
"""

import argparse
from collections.abc import Mapping
from typing import Any

from tpv_jax.cli import arguments, gin_verb
from tpv_jax.cli.arguments import Parser
from tpv_jax.core import errors
from tpv_jax.core.errors import UserError
from tpv_jax.formats import sources

EXAMPLES = """\
  tpv infer --prompt runs/reviews --input new.csv --output predictions.csv
  tpv infer --prompt runs/reviews --input new.csv     to standard output
  tpv infer --vector both.safetensors --initial runs/reviews --coefficient 0.5 \\
      --input new.csv --output others.jsonl
  what you type is answered, drawn from the likely tokens:
    tpv infer --gin_file=gin_configs/runs/infer_embedded.gin \\
      --gin.PROMPT_PATH=runs/sentiment --gin.TEMPERATURE=0.7 --gin.TOP_P=0.9
"""
ON_CPU = False

_ASKED = ("prompt", "run", "which", "vector", "initial", "coefficient")
_TABLE = ("input", "output", "format", "prefix", "overwrite")
_LOAD = ("backbone", "vocabulary_file", "batch_size", "model_parallel")
_NOT_GINS = (*_ASKED, *_TABLE, *_LOAD)
"""The options without gin files: of `Asked`, `predict_file` and `load`."""


def add_arguments(parser: Parser) -> None:
  """Adds the flags of both forms."""
  gin_verb.add_arguments(parser)
  table = parser.add_argument_group("without gin files")
  table.add_argument(
    "--prompt", metavar="PROMPT", help="a run folder, or a prompt (see 'tpv show')"
  )
  table.add_argument(
    "--run", metavar="RUN", help="the run that says how, if it is not PROMPT's own"
  )
  table.add_argument(
    "--which",
    choices=sources.WHICH,
    help="which prompt of a run folder (default: best)",
  )
  table.add_argument(
    "--vector", metavar="V", nargs="+", help="instead of PROMPT: a vector, or a sum's"
  )
  table.add_argument(
    "--initial",
    metavar="I",
    help="what the vector is applied to; a run: its initial one",
  )
  table.add_argument(
    "--coefficient",
    metavar="C",
    type=arguments.number,
    help="of the vector (default: 1)",
  )
  table.add_argument("--input", metavar="FILE", help="a table; '-' is standard input")
  table.add_argument(
    "-o", "--output", metavar="FILE", help="a table; default: standard output"
  )
  table.add_argument(
    "--format",
    choices=("csv", "tsv", "jsonl"),
    help="of an input whose name tells none",
  )
  table.add_argument("--prefix", help="stands before the names of the new columns")
  table.add_argument("--overwrite", action="store_true", help="replace an output")
  table.add_argument(
    "--backbone", metavar="PATH", help="where the run's backbone is, if it has moved"
  )
  table.add_argument(
    "--vocabulary-file", metavar="PATH", help="where its vocabulary is, likewise"
  )
  table.add_argument("--batch-size", metavar="N", type=int, help="rows per call (64)")
  table.add_argument(
    "--model-parallel", metavar="N", type=int, help="devices to split parameters over"
  )


def run(options: argparse.Namespace) -> int | None:
  """Answers rows as a run says, or lines as gin says."""
  given = {
    name: value
    for name in _NOT_GINS
    if (value := getattr(options, name)) is not None and value is not False
  }
  if not given:
    from tpv_jax.evaluation import evaluation

    return gin_verb.run(evaluation.infer, options)
  with errors.options_spelled("--"):
    if options.prompt is None and options.vector is None:
      raise UserError(
        f"{errors.option(next(iter(given)))} was given without a prompt. Give --prompt "
        "RUN, or --vector V with --initial I; or set everything by gin files."
      )
    if options.gin_file or options.gin_bindings:
      raise UserError(
        "--prompt and --vector take everything else from the prompt's run, and gin "
        "settings were given, too. Leave these out, or give the prompt as "
        "--gin.PROMPT_PATH."
      )
    _predict(options, given)
  return None


def _predict(options: argparse.Namespace, given: Mapping[str, Any]) -> None:
  """Answers a table, or a person."""
  from tpv_jax.devices import processes
  from tpv_jax.evaluation import prediction_files, terminal
  from tpv_jax.evaluation.predicting import Asked

  processes.join(options)
  processes.use_devices()
  errors.raise_on_interrupt()
  asked = Asked(**{name: given[name] for name in _ASKED if name in given})
  load = {name: given[name] for name in _LOAD if name in given}
  for name in ("batch_size", "model_parallel"):
    if name in load:
      errors.at_least(f"--{name.replace('_', '-')}", load[name], 1)
  table = {name: given[name] for name in _TABLE if name in given}
  with processes.one_clear_line_if_memory_is_short(
    "Lower --batch-size, or split the backbone over devices: --model-parallel."
  ):
    if not table and terminal.is_typed():
      prediction_files.answer_as_asked(asked, **load)
    else:
      prediction_files.predict_file(asked, progress=True, **table, **load)

"""`tpv tasks new` and `tpv tasks check`: task files for a user's own data."""

import argparse
import dataclasses
import itertools
import shlex
import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING

from tpv_jax.cli import gin_verb
from tpv_jax.cli.arguments import Parser

if TYPE_CHECKING:
  from tpv_jax.data.surveys import Survey
  from tpv_jax.data.vocabularies import Vocabulary


def add_new(command: Parser) -> None:
  """Adds the arguments of `tpv tasks new`."""
  command.add_argument("file", metavar="FILE", help="a CSV, TSV or JSON-lines file")
  _add_backbone(command)
  command.add_argument(
    "-o",
    "--output",
    metavar="OUT",
    help="the task file (default: FILE's name with .toml)",
  )
  command.add_argument(
    "--text",
    metavar="COLUMN",
    nargs="+",
    default=[],
    help="the columns that the model reads (default: those that hold texts)",
  )
  command.add_argument(
    "--target", metavar="COLUMN", help="the column of the answer (default: a guess)"
  )
  command.add_argument(
    "--overwrite", action="store_true", help="replace an existing task file"
  )


def add_check(command: Parser) -> None:
  """Adds the arguments of `tpv tasks check`."""
  command.add_argument("file", metavar="FILE", help="a TOML file that describes a task")
  command.add_argument(
    "--data-dir",
    metavar="DIR",
    help="where relative paths of data begin (default: the folder of FILE)",
  )
  _add_backbone(command)


def _add_backbone(command: Parser) -> None:
  command.add_argument(
    "--backbone",
    metavar="B",
    help="a backbone by name or path, whose vocabulary counts and checks the tokens",
  )
  command.add_argument(
    "--vocabulary",
    metavar="V",
    help="its vocabulary, if it brings none: a tokenizer.json, a SentencePiece model",
  )


def new(options: argparse.Namespace) -> int:
  """Looks at a file of texts and answers, and writes a task file for it.

  It prints what it saw and what it guessed, and warns of what will make training hard. All
  of it can be changed in the file. The exit code is 2 if something must be.
  """
  from tpv_jax.core import files
  from tpv_jax.core.errors import EXIT_USER_ERROR, UserError
  from tpv_jax.data import proposals, surveys, task_files

  output = options.output or f"{files.to_path(options.file).stem}.toml"
  files.check_output(output, options.overwrite)
  if files.to_path(output).suffix.lower() != ".toml":
    raise UserError(f"A task file ends with .toml, and '{output}' does not.")
  vocabulary = _vocabulary(options)
  proposal = proposals.propose(
    options.file, output, vocabulary, options.text, options.target
  )
  made = task_files.described(proposal.settings, output)
  measured = None
  if vocabulary is not None:
    unreadable = surveys.Survey()
    examples = surveys.examples_of(made.task, made.splits, unreadable)
    every = [one for split in examples.values() for one in surveys.sampled(split)]
    if every:
      found = surveys.measure(every, vocabulary)
      whose = files.without_folders(options.backbone or options.vocabulary)
      measured = f"Tokens of {whose}: {found}"
      settings = {**proposal.settings, "lengths": found.proposed()}
      proposal = dataclasses.replace(proposal, settings=settings)
      made = task_files.described(settings, output)
  again = _check_again(options, output)
  files.write_text(
    output, proposals.toml_text(proposal, again, measured), options.overwrite
  )
  _say(proposals.lines(proposal))
  found_there = surveys.survey(made.task, made.splits, made.lengths, vocabulary)
  found_there.warnings[:0] = proposal.remarks
  _report(found_there)
  if found_there.problems:
    print(f"Wrote '{output}', which can't be trained on yet. After a change:")
    print(f"  {again}")
    return EXIT_USER_ERROR
  given = {
    "BACKBONE": options.backbone or "smollm2",
    "TASK_FILES": output,
    "RUN_DIR": f"runs/{made.task.name}",
  }
  print(f"Wrote '{output}'. Read it, then:")
  print(" ".join(["  tpv train", *itertools.starmap(gin_verb.flag, given.items())]))
  return 0


def _check_again(options: argparse.Namespace, output: str) -> str:
  """Returns the command that looks at the task again, under the same vocabulary."""
  words = ["tpv", "tasks", "check", output]
  for flag, value in (
    ("--backbone", options.backbone),
    ("--vocabulary", options.vocabulary),
  ):
    if value:
      words += [flag, value]
  return shlex.join(words)


def check(options: argparse.Namespace) -> int:
  """Looks at the data of a task file, and says what stands in the way of training.

  The exit code is 2 if it could not be trained on.
  """
  from tpv_jax.core.errors import EXIT_USER_ERROR
  from tpv_jax.data import surveys, task_files

  made = task_files.read(options.file, options.data_dir)
  found = surveys.survey(made.task, made.splits, made.lengths, _vocabulary(options))
  _say([f"task {made.task.name}, lengths {dict(made.lengths)}"])
  _report(found)
  return EXIT_USER_ERROR if found.problems else 0


def _vocabulary(options: argparse.Namespace) -> "Vocabulary | None":
  from tpv_jax.data import vocabularies

  if options.backbone is not None:
    return vocabularies.of_backbone(options.backbone, options.vocabulary)
  return None if options.vocabulary is None else vocabularies.load(options.vocabulary)


def _report(found: "Survey") -> None:
  """Prints a survey: what was found, then warnings, then problems."""
  _say(found.lines)
  _say([f"warning: {text}" for text in found.warnings])
  sys.stdout.flush()
  for text in found.problems:
    print(f"error: {text}", file=sys.stderr)
  if not found.problems:
    print("It can be trained on.")


def _say(lines: Sequence[str]) -> None:
  from tpv_jax.core.errors import printable

  for line in lines:
    print(printable(line))

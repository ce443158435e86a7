"""Writes a file of settings for a model and your tasks, which all commands then read.

The model and the tasks are checked first: whether the model's vocabulary can write the labels
and tell them apart. Settings that most users change are there as comments, with their
defaults; 'tpv train --gin_file=settings.gin --show-config' prints all.
"""

import argparse
import shlex
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

from tpv_jax.cli import gin_verb
from tpv_jax.cli.arguments import Parser
from tpv_jax.core import files
from tpv_jax.core.errors import UserError, printable

if TYPE_CHECKING:
  from tpv_jax.data.tasks import Task

EXAMPLES = """\
  tpv init --backbone smollm2 --tasks reviews.toml news.toml
  tpv init --backbone embedded -o settings.gin     the tasks that come with the package
"""
ON_CPU = True

OFFERED = (
  *("DTYPE", "CHAT", "PROMPT_LENGTH", "LENGTHS", "TRAIN_STEPS", "BATCH_SIZE"),
  *("LEARNING_RATE", "WARMUP_STEPS", "EVAL_PERIOD", "BEST_METRIC", "INITIAL_SEED"),
)
"""The settings of a training that the file offers to change."""


def add_arguments(parser: Parser) -> None:
  """Adds the model, the tasks and the output."""
  parser.add_argument(
    "--backbone",
    metavar="MODEL",
    required=True,
    help="'embedded', 'smollm2', a name or folder of Hugging Face, or another BACKBONE",
  )
  parser.add_argument(
    "--tasks",
    metavar="FILE",
    nargs="+",
    default=[],
    help="task files, such as 'tpv tasks new reviews.csv' writes",
  )
  parser.add_argument(
    "-o",
    "--output",
    metavar="OUT",
    default="settings.gin",
    help="default: settings.gin",
  )
  parser.add_argument(
    "--overwrite", action="store_true", help="replace an existing output"
  )


def run(options: argparse.Namespace) -> None:
  """Checks the model and the tasks, writes the file, and prints what is next."""
  from tpv_jax.data import task_files
  from tpv_jax.settings import run_files

  files.check_output(options.output, options.overwrite)
  kind = run_files.kind_of(options.backbone)
  if not options.tasks and kind != run_files.EMBEDDED:
    raise UserError(
      "--tasks must be given: task files of yours. 'tpv tasks new reviews.csv' writes one "
      "from a file of rows."
    )
  tasks = task_files.tasks(options.tasks) if options.tasks else ()
  _check(tasks, options)
  names = [task.name for task in tasks] or ["sentiment", "topic"]
  calls = list(_calls(str(options.output), names, bool(tasks)))
  text = "\n".join([*_header(options.backbone, names, calls), *_settings(options)])
  files.write_text(options.output, f"{text}\n", options.overwrite)
  print(f"Wrote {printable(str(options.output))}. Next:")
  print("\n".join(f"  {printable(call)}" for call in calls))


def _check(tasks: Sequence["Task"], options: argparse.Namespace) -> None:
  """Raises `UserError` for answers that the model could not write."""
  from tpv_jax.data import task_files, vocabularies
  from tpv_jax.data.labels import check_task

  if tasks:
    lengths = task_files.lengths(options.tasks)
    vocabulary = vocabularies.of_backbone(options.backbone)
    for task in tasks:
      check_task(task, vocabulary, lengths, ("train", "validation"))


def _header(backbone: str, names: Sequence[str], calls: Sequence[str]) -> Iterator[str]:
  yield f"# Prompts on {backbone} for {', '.join(names)}."
  yield "# Each command reads what concerns it. In the folder where 'tpv init' was called:"
  yield "#"
  yield from (f"#   {printable(call)}" for call in calls)
  yield "#"
  yield "# All settings, their meaning and default: tpv VERB --gin_file=... --show-config"
  yield ""


def _calls(path: str, names: Sequence[str], own: bool) -> Iterator[str]:
  """Yields the commands to begin with."""
  given, flag = shlex.quote(f"--gin_file={path}"), gin_verb.flag
  one, several = names[0], len(names) > 1
  chosen = f" {flag('TASK_NAME', one)}" if several or not own else ""
  yield f"tpv train {given}{chosen} {flag('RUN_DIR', f'runs/{one}')}"
  if several:
    only = "" if own else f" {flag('TASK_NAMES', names)}"
    yield f"tpv bank {given}{only} --gin.OUTPUT_DIR=runs"
  only = f" {flag('TASK_NAMES', [one])}" if several or not own else ""
  yield f"tpv eval {given}{only} {flag('PROMPT_PATH', f'runs/{one}')}"


def _settings(options: argparse.Namespace) -> Iterator[str]:
  """Yields the settings: the model, the tasks, and what may be changed as comments."""
  from tpv_jax.settings import gin_files, run_files, showing
  from tpv_jax.training import training

  bindings = [f"BACKBONE={options.backbone!r}"]
  if options.tasks:
    bindings.append(f"TASK_FILES={options.tasks!r}")
  yield from (binding.replace("=", " = ", 1) for binding in bindings)
  added = run_files.complete(training.train, [], bindings)
  settings = gin_files.parse(added, bindings)
  known = {one.name: one for one in showing.shown(training.train, settings)}
  yield ""
  for one in (known[name] for name in OFFERED if name in known):
    meaning = f"  # {one.meaning}" if one.meaning else ""
    yield f"# {one.name} = {one.value}{meaning}"

"""The console command `tpv`: all verbs behind one name.

Thin: each module adds its own. JAX and TensorFlow are imported by the commands that need
them, when they run.
"""

import argparse
import os
import sys
from collections.abc import Sequence

from tpv_jax.core.errors import (
  EXIT_USER_ERROR,
  end_at_once_on_interrupt,
  raise_on_interrupt,
  run_command,
)
from tpv_jax.core.version import VERSION

_EXAMPLES = """\
  tpv diff runs/sst2 -o sst2.safetensors           a vector from a run folder
  tpv sum sst2.safetensors rte.safetensors -o both.safetensors
  tpv apply both.safetensors runs/sst2 -o prompt.safetensors
  tpv cosine *.safetensors
  tpv inspect runs/ept_* -o pictures               what EPT's gates and fusion do
  tpv tasks prepare glue_sst2 --data-dir data      a paper's task, ready to train on
  tpv import peft_adapter -o sst2.safetensors      another tool's prompt
  tpv export runs/sst2 --to peft -o adapter        a prompt for another tool
  tpv convert flan-t5-base -o t5x/checkpoint_0     a backbone for another tool"""


def main(arguments: Sequence[str] | None = None) -> int:
  """Runs one command and returns its exit code: 0, 2 for bad input, 130 for Ctrl-C."""
  if arguments is None:
    end_at_once_on_interrupt()
    arguments = sys.argv[1:]
  # Orbax brings JAX, which would claim a GPU to read a few kilobytes.
  os.environ.setdefault("JAX_PLATFORMS", "cpu")
  try:
    parser = build_parser()
    if list(arguments).count("--") > 1:  # Of which argparse would make an empty list.
      parser.error("'--' is given twice; after the first one no word is an option")
    options = parser.parse_args(arguments)
  except SystemExit as stop:  # --help, --version, or a wrong call, which is printed.
    return stop.code if isinstance(stop.code, int) else EXIT_USER_ERROR

  def run() -> None:
    raise_on_interrupt()
    options.command(options)

  return run_command(run, options.debug)


def build_parser() -> argparse.ArgumentParser:
  """Returns the parser; `command` of what it returns is the function to call."""
  from tpv_jax.cli import formats, tasks, vectors
  from tpv_jax.cli.arguments import Parser

  parser = Parser(
    prog="tpv",
    description=f"Task prompt vectors.\n\n{vectors.SOURCES}",
    epilog=f"examples:\n{_EXAMPLES}\n\n'tpv COMMAND --help' tells more.",
    formatter_class=argparse.RawDescriptionHelpFormatter,
  )
  parser.add_argument("--version", action="version", version=f"tpv_jax {VERSION}")
  commands = parser.add_subparsers(
    title="commands", metavar="COMMAND", required=True, parser_class=Parser
  )
  vectors.add(commands)
  tasks.add(commands)
  formats.add(commands)
  return parser

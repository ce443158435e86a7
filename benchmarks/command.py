"""What the commands of this folder share: the results' file, and defaults by device."""

import argparse
import shlex
import sys
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from tpv_jax.core.errors import ArgumentParser, run_command


def parser(description: str, examples: str) -> ArgumentParser:
  """Returns a parser with the options of every command."""
  made = ArgumentParser(
    description=description,
    epilog=examples,
    formatter_class=argparse.RawDescriptionHelpFormatter,
  )
  made.add_argument("--output", help="a JSON file for the results")
  made.add_argument("--overwrite", action="store_true", help="replace it")
  made.add_argument("--debug", action="store_true", help="show traces of errors")
  return made


def run(
  made: ArgumentParser,
  script: str,
  measure: Callable[[argparse.Namespace, str], Any],
  argv: Sequence[str] | None,
) -> int:
  """Runs a measurement with the command line's options; returns the exit code.

  Args:
    made: see `parser`.
    script: its name in this folder.
    measure: takes the options and the command that is noted in the results.
    argv: by default the process's own arguments.
  """
  options = made.parse_args(argv)
  arguments = sys.argv[1:] if argv is None else argv
  command = shlex.join(["python", f"benchmarks/{script}", *arguments])
  return run_command(lambda: measure(options, command), debug=options.debug)


def fill(
  options: argparse.Namespace, defaults: Mapping[str, Mapping[str, Any]]
) -> None:
  """Sets options that are not given to the defaults of this machine's device."""
  import jax  # Here, as a command that starts other processes leaves them the device.

  for name, value in defaults.get(jax.default_backend(), defaults["other"]).items():
    if getattr(options, name) is None:
      setattr(options, name, value)

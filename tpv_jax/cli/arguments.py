"""What the commands of `tpv` share: how one is added, and how a number is read."""

import argparse
import inspect
import re
from collections.abc import Callable
from typing import Any

from tpv_jax.core.errors import ArgumentParser


class Parser(ArgumentParser):
  """Accepts '-1e-3' as a number."""

  def __init__(self, **options: Any):
    super().__init__(**options)
    self._negative_number_matcher = re.compile(
      r"^-(\d+\.?\d*|\.\d+)([eE][-+]?\d+)?$|^-(inf|infinity|nan)$", re.IGNORECASE
    )


def add_command(
  commands: Any,
  name: str,
  function: Callable[[argparse.Namespace], None],
  summary: str,
  examples: str,
  more: str = "",
) -> argparse.ArgumentParser:
  """Returns the parser of a new command, which has `--debug` and shows examples.

  Args:
    commands: what `add_subparsers` returned.
    name: of the command.
    function: what it calls; its docstring describes it.
    summary: one line about it, without a full stop.
    examples: indented lines.
    more: further text for the description.
  """
  command = commands.add_parser(
    name,
    help=summary,
    description="\n\n".join(filter(None, (inspect.getdoc(function), more))),
    epilog=f"examples:\n{examples}",
    formatter_class=argparse.RawDescriptionHelpFormatter,
  )
  command.set_defaults(command=function)
  command.add_argument(
    "--debug", action="store_true", help="show the trace of an error"
  )
  return command


def number(text: str) -> float:
  """Returns the number that an argument is, for argparse's `type`."""
  try:
    return float(text)
  except ValueError:
    raise argparse.ArgumentTypeError(f"'{text}' is not a number") from None

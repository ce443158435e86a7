"""The arguments that verbs share: parsers, numbers, paths of prompts, outputs."""

import argparse
import inspect
import re
from collections.abc import Callable, Sequence
from typing import Any

from tpv_jax.core import files
from tpv_jax.core.errors import ArgumentParser, UserError, printable

SOURCES = """\
A PATH is a run folder of 'tpv train' (its best prompt; see --which), an Orbax
checkpoint 'checkpoint_<step>' of 'tpv train' or of T5X, a .safetensors file that tpv
or a run wrote, or another tool's prompt (see 'tpv import --help'). Outputs are
.safetensors files with their provenance inside. All of them may be on gs://."""


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
  function: Callable[[argparse.Namespace], int | None],
  summary: str,
  examples: str,
  more: str | None = None,
) -> Parser:
  """Returns the parser of a verb's command, described by the docstring of its function.

  Args:
    commands: what `add_subparsers` returned.
    name: of the command.
    function: becomes `options.command`.
    summary: its line in the verb's help.
    examples: lines at the end of its help.
    more: what its help says after the docstring.
  """
  command: Parser = commands.add_parser(
    name,
    help=summary,
    description="\n\n".join(filter(None, (inspect.getdoc(function), more))),
    epilog=f"examples:\n{examples}",
    formatter_class=argparse.RawDescriptionHelpFormatter,
  )
  command.set_defaults(command=function)
  command.add_argument(  # The verb's own --debug must come before the command's name.
    "--debug",
    action="store_true",
    default=argparse.SUPPRESS,
    help="show the trace of an error",
  )
  return command


def number(text: str) -> float:
  """Returns an argument as a number, for argparse's `type`."""
  try:
    return float(text)
  except ValueError:
    raise argparse.ArgumentTypeError(f"'{text}' is not a number") from None


def explain_paths(parser: Parser) -> None:
  """Adds to the help what the path of a prompt or vector may be."""
  parser.description = f"{parser.description}\n\n{SOURCES}"


def add_output(parser: Parser, what: str = "a new .safetensors file") -> None:
  """Adds `--output` and `--overwrite`."""
  parser.add_argument("-o", "--output", metavar="OUT", required=True, help=what)
  parser.add_argument(
    "--overwrite", action="store_true", help="replace an existing output"
  )


def add_which(parser: Parser, choices: Sequence[str]) -> None:
  """Adds `--which`, for `sources.load`."""
  parser.add_argument(
    "--which",
    choices=choices,
    default="best",
    help="which prompt of a run folder (default: best)",
  )


def add_alpha(parser: Parser) -> None:
  """Adds `--alpha`, for `sources.with_alpha`."""
  parser.add_argument(
    "--alpha",
    metavar="A",
    type=number,
    help="the alpha of DePT or EPT parameters that do not state it (checkpoints outside "
    "a run; DePT's code: 8); it is recorded as your word",
  )


def add_backbone(parser: Parser, what: str) -> None:
  """Adds `--backbone`, for `naming.named`."""
  parser.add_argument(
    "--backbone",
    metavar="BACKBONE",
    help=f"{what}: a fingerprint (64 hex digits), a prompt or vector of that backbone, "
    "or the backbone itself",
  )


def add_weighted_vectors(parser: Parser) -> None:
  """Adds vectors with their weights, and what may be allowed of them, and the output."""
  explain_paths(parser)
  add_output(parser)
  parser.add_argument("vectors", metavar="V", nargs="+", help="a vector")
  parser.add_argument(
    "-w",
    "--weights",
    metavar="W",
    nargs="+",
    type=number,
    help="one coefficient for each vector, in their order (default: all 1)",
  )
  add_allow_mixed_origin(parser, "vectors of different or unknown initial prompts")
  add_allow_unknown_backbone(parser)


def add_picture(parser: Parser, what: str) -> None:
  """Adds `--png` and `--overwrite`."""
  parser.add_argument("--png", metavar="FILE", help=f"also draw {what}")
  parser.add_argument(
    "--overwrite", action="store_true", help="replace an existing picture"
  )


def refuse_picture(options: argparse.Namespace) -> None:
  """Raises `UserError` if the picture cannot be written, before anything is read."""
  if options.png is not None:
    if not options.png.lower().endswith(".png"):
      raise UserError(
        f"Cannot write '{printable(options.png)}': --png writes PNG, and its name must end "
        "with '.png'."
      )
    files.check_output(options.png, options.overwrite)


def say_left_out(left_out: Sequence[tuple[str, str]]) -> None:
  """Prints a line for each path that a search left out, with the reason."""
  for path, why in left_out:
    print(f"left out: {printable(path)}: {printable(why)}")


def add_allow_mixed_origin(parser: Parser, what: str) -> None:
  """Adds `--allow-mixed-origin`."""
  parser.add_argument(
    "--allow-mixed-origin", action="store_true", help=f"accept {what}; it is recorded"
  )


def add_allow_unknown_backbone(parser: Parser) -> None:
  """Adds `--allow-unknown-backbone`."""
  parser.add_argument(
    "--allow-unknown-backbone",
    action="store_true",
    help="accept parts that do not state their backbone; it is recorded",
  )

"""Prints the parameters of EPT prompts by part, and the rank that a budget allows."""

import argparse

from tpv_jax.cli.arguments import Parser
from tpv_jax.core.errors import at_least, renamed, to_json
from tpv_jax.prompts import budget

EXAMPLES = """\
  tpv budget                                       EPT for T5-base, three lengths
  tpv budget --width 1024 --short-length 40 --fusion-width 8
  tpv budget --short-length 40 --rank 45 --fusion-width 0 --spaces 0
                                                   DePT's own pair, checked
"""
ON_CPU = True

_OPTIONS = (
  ("--width", 768, "width of the backbone"),
  ("--source-length", 256, "longest source"),
  ("--tokens", 100, "tokens of the plain prompt whose parameters are the budget"),
  ("--fusion-width", 4, "width of the prompt fusion's attention, 0 for none"),
  ("--spaces", 4, "subspaces of the multi-space projection, 0 for none"),
  ("--bottleneck", 1, "width of a subspace's bottleneck"),
)


_CALLED = {
  "SHORT_LENGTH": "--short-length",
  "PROMPT_LENGTH": "--tokens",
  "RANK = @budget.rank()": "no --rank",
  "RANK": "--rank",
  "FUSION_WIDTH": "--fusion-width",
  "fusion_width": "--fusion-width",
}
"""Setting of a gin file -> the option that is it here."""

_MAY_BE_ZERO = ("--fusion-width", "--spaces")


def add_arguments(parser: Parser) -> None:
  """Adds the sizes of an EPT prompt."""
  for option, default, text in _OPTIONS:
    parser.add_argument(
      option,
      metavar="N",
      type=int,
      default=default,
      help=f"{text} (default: {default})",
    )
  parser.add_argument(
    "--short-length",
    metavar="S",
    nargs="+",
    type=int,
    default=[20, 40, 60],
    help="tokens of the short prompt, one row for each (default: 20 40 60)",
  )
  parser.add_argument(
    "--rank",
    metavar="R",
    type=int,
    help="check this rank (default: the largest that the budget allows)",
  )
  parser.add_argument("--json", action="store_true", help="print JSON")


def run(options: argparse.Namespace) -> None:
  """Prints the table, or JSON."""
  others = {
    "tokens": options.tokens,
    "features": options.width,
    "source_length": options.source_length,
    "fusion_width": options.fusion_width,
    "spaces": options.spaces,
    "bottleneck": options.bottleneck,
  }
  _check_sizes(options)
  counts = []
  with renamed(_CALLED):
    for length in options.short_length:
      rank = options.rank
      if rank is None:
        rank = budget.rank(length=length, **others)
      counts.append(budget.check(length=length, rank=rank, **others))
  if options.json:
    content = {**others, "prompts": [count.to_json() for count in counts]}
    print(to_json(content))
    return
  print(
    f"budget {options.tokens} x {options.width} = {counts[0].budget:,} parameters; "
    f"M = {options.source_length}, H = {options.fusion_width}, K = {options.spaces}, "
    f"Q = {options.bottleneck}"
  )
  print(budget.table(counts))


def _check_sizes(options: argparse.Namespace) -> None:
  """Raises `UserError` for a size that is too small, by the name of its option."""
  for option, _, _ in _OPTIONS:
    value = getattr(options, option[2:].replace("-", "_"))
    at_least(option, value, 0 if option in _MAY_BE_ZERO else 1)
  for length in options.short_length:
    at_least("--short-length", length, 1)
  if options.rank is not None:
    at_least("--rank", options.rank, 0)

"""Writes one vector merged from several by a rule.

There is one weight for each vector. 'tpv sum' is the rule task_arithmetic.
"""

import argparse
import inspect
from collections.abc import Sequence
from typing import Any

from tpv_jax.cli import arguments, outputs
from tpv_jax.cli.arguments import Parser
from tpv_jax.formats import sources
from tpv_jax.vectors.merging import registry
from tpv_jax.vectors.merging.merge import merge

EXAMPLES = """\
  tpv merge sst2.safetensors rte.safetensors --rule norm_balanced -o both.safetensors
  tpv merge sst2.safetensors rte.safetensors --rule slerp --t 0.3 -o near_sst2.safetensors
"""
ON_CPU = True


class _List(argparse.Action):
  """Prints the rules and exits, as --help does."""

  def __call__(
    self,
    parser: argparse.ArgumentParser,
    namespace: argparse.Namespace,
    values: str | Sequence[Any] | None,
    option_string: str | None = None,
  ) -> None:
    print(described())
    parser.exit()


def add_arguments(parser: Parser) -> None:
  """Adds vectors, the rule with its options, weights, lambda and the output."""
  arguments.add_weighted_vectors(parser)
  parser.add_argument(
    "--rule",
    default="task_arithmetic",
    help="how to merge them (default: task_arithmetic); see --list",
  )
  parser.add_argument(
    "--list", action=_List, nargs=0, help="print the rules with their options, and exit"
  )
  parser.add_argument(
    "--lambda",
    dest="coefficient",
    metavar="L",
    type=arguments.number,
    default=1.0,
    help="a factor of the result (default: 1)",
  )
  for option, rules in _rules_by_option().items():
    parser.add_argument(
      f"--{option.replace('_', '-')}",
      dest=f"option_{option}",
      metavar=option.upper(),
      type=arguments.number,
      help=f"an option of the rule {', '.join(rules)}",
    )


def run(options: argparse.Namespace) -> None:
  """Writes the merged vector."""
  outputs.refuse(options)
  given = {
    option: value
    for option in _rules_by_option()
    if (value := getattr(options, f"option_{option}")) is not None
  }
  registry.with_options(options.rule, given)  # Before anything is read.
  outputs.write(
    options,
    merge(
      [sources.load(path) for path in options.vectors],
      options.rule,
      options.weights,
      options.coefficient,
      given,
      options.allow_mixed_origin,
      options.allow_unknown_backbone,
    ),
  )


def described() -> str:
  """Returns the list of rules as text: summary, options and source of each."""
  lines = []
  for name in registry.RULES:
    rule = registry.rule(name)
    summary = inspect.cleandoc(rule.__doc__ or "").partition("\n")[0]
    lines.append(f"{name}\n  {summary}")
    takes = [] if rule.weighted else ["no weights"]
    if rule.number is not None:
      takes.insert(0, f"exactly {rule.number} vectors")
    takes += [
      f"--{one} (default {default:g})"
      for one, default in registry.options(name).items()
    ]
    if takes:
      lines.append(f"  takes {', '.join(takes)}")
    lines.append(f"  {rule.source}")
  return "\n".join(lines)


def _rules_by_option() -> dict[str, list[str]]:
  """Returns option -> the rules that have it."""
  found: dict[str, list[str]] = {}
  for name in registry.RULES:
    for option in registry.options(name):
      found.setdefault(option, []).append(name)
  return found

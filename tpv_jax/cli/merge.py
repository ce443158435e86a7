"""Writes one vector merged from several by a rule.

There is one weight for each vector. 'tpv sum' is the rule task_arithmetic. The rule concat
takes prompts and writes a prompt.
"""

import argparse
import inspect
from collections.abc import Sequence
from typing import Any

from tpv_jax.cli import arguments, outputs
from tpv_jax.cli.arguments import Parser
from tpv_jax.core.checks import annotations, misfit
from tpv_jax.formats import sources
from tpv_jax.vectors.merging import registry
from tpv_jax.vectors.merging.merge import merge

EXAMPLES = """\
  tpv merge sst2.safetensors rte.safetensors --rule ties --density 0.2 -o both.safetensors
  tpv merge sst2.safetensors rte.safetensors --rule norm_balanced -o both.safetensors
  tpv merge sst2.safetensors rte.safetensors --rule slerp --t 0.3 -o near_sst2.safetensors
  tpv merge --list
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
  for option, rules in registry.rules_by_option().items():
    parser.add_argument(
      f"--{option.replace('_', '-')}",
      dest=f"option_{option}",
      metavar=option.upper(),
      help=f"an option of the rule {', '.join(rules)}",
      **_kind(annotations(registry.rule(rules[0]))[option]),
    )


def run(options: argparse.Namespace) -> None:
  """Writes the merged vector."""
  outputs.refuse(options)
  given = {}
  for option in registry.rules_by_option():
    value = getattr(options, f"option_{option}")
    if isinstance(value, list) and len(value) == 1:
      (value,) = value
    if value is not None:
      given[option] = value
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
    takes = [] if rule.weighted else ["no weights"]
    if rule.number is not None:
      takes.insert(0, f"exactly {rule.number} vectors")
    takes += [
      f"--{one.replace('_', '-')} (default {_text(default)})"
      for one, default in registry.options(name).items()
    ]
    lines += _described(name, takes)
  lines.append("those that read data, for 'tpv merge-by-data'")
  for name in registry.BY_DATA:
    takes = ["WEIGHTS"] if registry.data_rule(name).weighted else []
    options = [f"{k} {_text(value)}" for k, value in registry.options(name).items()]
    takes.append(f"OPTIONS ({', '.join(options)})")
    lines += [f"  {line}" for line in _described(name, takes)]
  lines.append("not offered")
  lines += [f"  {name}: {why}" for name, why in registry.NOT_OFFERED.items()]
  return "\n".join(lines)


def _described(name: str, takes: Sequence[str]) -> list[str]:
  by_data = name in registry.BY_DATA
  rule = registry.data_rule(name) if by_data else registry.rule(name)
  summary = inspect.cleandoc(rule.__doc__ or "").partition("\n")[0]
  return [
    name,
    f"  {summary}",
    *([f"  takes {', '.join(takes)}"] if takes else []),
    f"  {rule.source}",
  ]


def _kind(annotation: Any) -> dict[str, Any]:
  """Returns how argparse reads an option with this annotation."""

  def accepts(value: Any) -> bool:
    return misfit(value, annotation, "") is None

  if accepts(True):
    return {"type": _truth}
  if not accepts(0.5) and accepts(1):
    return {"type": _whole}
  return {"type": arguments.number, **({"nargs": "+"} if accepts([0.5]) else {})}


def _whole(text: str) -> int:
  try:
    return int(text)
  except ValueError:
    raise argparse.ArgumentTypeError(f"'{text}' is not a whole number") from None


def _truth(text: str) -> bool:
  if text.lower() not in ("true", "false"):
    raise argparse.ArgumentTypeError(f"'{text}' is neither true nor false")
  return text.lower() == "true"


def _text(value: Any) -> str:
  if isinstance(value, bool) or value is None:
    return str(value).lower()
  return value if isinstance(value, str) else f"{value:g}"

"""Writes the vector -V, every term negated; applied, it forgets its tasks."""

import argparse

from tpv_jax.cli import arguments, outputs
from tpv_jax.cli.arguments import Parser
from tpv_jax.formats import sources
from tpv_jax.vectors import algebra

EXAMPLES = "  tpv negate sst2.safetensors -o forget_sst2.safetensors\n"
ON_CPU = True


def add_arguments(parser: Parser) -> None:
  """Adds a vector, and the output."""
  arguments.explain_paths(parser)
  arguments.add_output(parser)
  parser.add_argument("vector", metavar="V", help="a vector")


def run(options: argparse.Namespace) -> None:
  """Writes the vector."""
  outputs.refuse(options)
  outputs.write(options, algebra.negate(sources.load(options.vector)))

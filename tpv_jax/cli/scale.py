"""Writes the vector C * V, with the coefficient of every term multiplied by C."""

import argparse

from tpv_jax.cli import arguments, outputs
from tpv_jax.cli.arguments import Parser
from tpv_jax.formats import sources
from tpv_jax.vectors import algebra

EXAMPLES = "  tpv scale sst2.safetensors -0.5 -o weaker.safetensors\n"
ON_CPU = True


def add_arguments(parser: Parser) -> None:
  """Adds a vector, a number, and the output."""
  arguments.explain_paths(parser)
  arguments.add_output(parser)
  parser.add_argument("vector", metavar="V", help="a vector")
  parser.add_argument("factor", metavar="C", type=arguments.number, help="any number")


def run(options: argparse.Namespace) -> None:
  """Writes the vector."""
  outputs.refuse(options)
  outputs.write(options, algebra.scale(sources.load(options.vector), options.factor))

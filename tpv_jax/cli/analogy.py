"""Writes the vector C + (B - A): 'A is to B as C is to OUT'."""

import argparse

from tpv_jax.cli import arguments, outputs
from tpv_jax.cli.arguments import Parser
from tpv_jax.formats import sources
from tpv_jax.vectors import algebra

EXAMPLES = """\
  tpv analogy imdb.safetensors sst2.safetensors yelp.safetensors -o new.safetensors
      'imdb is to sst2 as yelp is to new': new = yelp + (sst2 - imdb)
"""
ON_CPU = True


def add_arguments(parser: Parser) -> None:
  """Adds three vectors, and the output."""
  arguments.explain_paths(parser)
  arguments.add_output(parser)
  for name in "abc":
    parser.add_argument(name, metavar=name.upper(), help="a vector")
  arguments.add_allow_mixed_origin(
    parser, "vectors of different or unknown initial prompts"
  )
  arguments.add_allow_unknown_backbone(parser)


def run(options: argparse.Namespace) -> None:
  """Writes the vector."""
  outputs.refuse(options)
  outputs.write(
    options,
    algebra.analogy(
      sources.load(options.a),
      sources.load(options.b),
      sources.load(options.c),
      options.allow_mixed_origin,
      options.allow_unknown_backbone,
    ),
  )

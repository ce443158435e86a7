"""Writes the weighted sum of vectors; equal tasks become one term."""

import argparse

from tpv_jax.cli import arguments, outputs
from tpv_jax.cli.arguments import Parser
from tpv_jax.formats import sources
from tpv_jax.vectors import algebra

EXAMPLES = """\
  tpv sum sst2.safetensors rte.safetensors -o both.safetensors
  tpv sum sst2.safetensors rte.safetensors -w 1 -0.5 -o difference.safetensors
"""
ON_CPU = True


def add_arguments(parser: Parser) -> None:
  """Adds vectors, their weights, and the output."""
  arguments.add_weighted_vectors(parser)


def run(options: argparse.Namespace) -> None:
  """Writes the sum."""
  outputs.refuse(options)
  vectors = [sources.load(path) for path in options.vectors]
  outputs.write(
    options,
    algebra.sum_vectors(
      vectors,
      options.weights,
      options.allow_mixed_origin,
      options.allow_unknown_backbone,
    ),
  )

"""Prints the cosine similarity of every pair of prompts or vectors.

DePT and EPT prompts are folded first, as different parameters can have the same effect.
"""

import argparse
from collections.abc import Sequence

import numpy as np
from jaxtyping import Float64

from tpv_jax.cli import arguments
from tpv_jax.cli.arguments import Parser
from tpv_jax.cli.names import short_names
from tpv_jax.core.errors import printable, to_json
from tpv_jax.core.tables import aligned
from tpv_jax.formats import sources
from tpv_jax.vectors import algebra

EXAMPLES = """\
  tpv cosine sst2.safetensors rte.safetensors trec.safetensors
  tpv cosine runs/sst2 runs/rte --which last --json
"""
ON_CPU = True


def add_arguments(parser: Parser) -> None:
  """Adds prompts or vectors."""
  arguments.explain_paths(parser)
  parser.add_argument("paths", metavar="PATH", nargs="+", help="a prompt or vector")
  arguments.add_which(parser, sources.WHICH)
  parser.add_argument("--json", action="store_true", help="print JSON")


def run(options: argparse.Namespace) -> None:
  """Prints the table, or JSON."""
  items = [sources.load_any(path, options.which) for path in options.paths]
  sources.refuse_unread(options.which, options.paths)
  matrix = algebra.cosine(items)
  names = [printable(name) for name in short_names([item.name for item in items])]
  if options.json:
    content = {
      "names": names,
      "paths": [str(path) for path in options.paths],
      "kinds": [item.provenance.kind for item in items],
      "cosine": [[float(value) for value in row] for row in matrix],
    }
    print(to_json(content))
    return
  print(cosine_table(names, matrix))


def cosine_table(names: Sequence[str], matrix: Float64[np.ndarray, "N N"]) -> str:
  """Returns a matrix of cosines as text, its columns aligned."""
  rows = [
    [name, *(f"{value:.4f}" for value in row)]
    for name, row in zip(names, matrix, strict=True)
  ]
  return aligned([["", *names], *rows])

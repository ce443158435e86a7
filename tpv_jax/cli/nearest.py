"""Ranks vectors by how near they are to V: sources to merge with it, or to start from.

Of a DIR every run and every .safetensors file below it is looked at; of a run the vector of
its prompt is taken. 'cosine' compares directions, 'dot' is the dot product of two tokens
averaged over the tokens, 'norm' the length of the vector that was found. Vectors of other
shapes or of another backbone are left out.
"""

import argparse

from tpv_jax.cli import arguments
from tpv_jax.cli.arguments import Parser
from tpv_jax.cli.names import short_names
from tpv_jax.core.errors import UserError, printable, to_json
from tpv_jax.core.tables import aligned
from tpv_jax.formats import collected
from tpv_jax.vectors.nearest import MEASURES, Neighbour, nearest
from tpv_jax.vectors.provenance import describe_terms

EXAMPLES = """\
  tpv nearest sst2.safetensors runs/rte trec.safetensors
  tpv nearest runs/sst2 runs/rte runs/topic --by dot --top 1 --json
"""
ON_CPU = True


def add_arguments(parser: Parser) -> None:
  """Adds the vector, where to look, and by what to rank."""
  arguments.explain_paths(parser)
  parser.add_argument("vector", metavar="V", help="a vector, or a run")
  parser.add_argument(
    "paths",
    metavar="DIR",
    nargs="+",
    help="a folder of runs or vectors, or one of them",
  )
  parser.add_argument(
    "--by", choices=MEASURES, default="cosine", help="by what to rank (default: cosine)"
  )
  parser.add_argument(
    "--top", metavar="N", type=int, help="show the first N only (default: all)"
  )
  arguments.add_which(parser, ("best", "last"))
  parser.add_argument("--json", action="store_true", help="print JSON")


def run(options: argparse.Namespace) -> None:
  """Prints the table, or JSON."""
  if options.top is not None and options.top < 1:
    raise UserError(f"--top is {options.top}; it must be at least 1.")
  vector = collected.vector(options.vector, options.which)
  others = collected.collect(options.paths, options.which)
  collected.refuse_unread(options.which, [options.vector, *options.paths])
  found, unfit = nearest(vector, others.vectors, options.by)
  left_out = [*others.left_out, *unfit]
  if not found:
    why = f": {left_out[0][0]}: {left_out[0][1]}" if left_out else ""
    raise UserError(f"No vector there can be compared with '{vector.name}'{why}.")
  shown = found[: options.top]
  if options.json:
    print(
      to_json(
        {
          "vector": vector.name,
          "by": options.by,
          "nearest": [one.to_json() for one in shown],
          "left_out": [{"path": path, "why": why} for path, why in left_out],
        }
      )
    )
    return
  print(_table(shown))
  arguments.say_left_out(left_out)


def _table(found: list[Neighbour]) -> str:
  origins = {True: "same", False: "other", None: "unknown"}
  names = short_names([one.vector.name for one in found])
  rows = [
    [
      printable(name),
      describe_terms(one.vector.provenance.terms),
      f"{one.cosine:.4f}",
      f"{one.dot:.4g}",
      f"{one.norm:.4g}",
      origins[one.same_origin],
    ]
    for name, one in zip(names, found, strict=True)
  ]
  return aligned([["", "terms", "cosine", "dot", "norm", "initial"], *rows], left=2)

"""Writes the prompt INITIAL + C * V, folded unless V is of the factor space.

INITIAL may be another initial prompt than V's own (the cross-origin test), which is
recorded; then the ratio norm(C * V) / norm(INITIAL) is printed, because a vector that is
small beside another start does not work on it. A vector of the factor space fits only its
own initial parameters.
"""

import argparse

from tpv_jax.cli import arguments, outputs
from tpv_jax.cli.arguments import Parser
from tpv_jax.formats import sources
from tpv_jax.vectors import algebra, moving

EXAMPLES = """\
  tpv apply both.safetensors runs/sst2 -o prompt.safetensors
  tpv apply both.safetensors other_init.safetensors -c 0.7 -o prompt.safetensors
"""
ON_CPU = True


def add_arguments(parser: Parser) -> None:
  """Adds a vector, an initial prompt, a coefficient, and the output."""
  arguments.explain_paths(parser)
  arguments.add_output(parser)
  parser.add_argument("vector", metavar="V", help="a vector")
  parser.add_argument(
    "initial",
    metavar="INITIAL",
    help="a prompt, V's own or another one; a run folder means its initial prompt",
  )
  parser.add_argument(
    "-c",
    "--coefficient",
    metavar="C",
    type=arguments.number,
    default=1.0,
    help="default: 1",
  )
  arguments.add_allow_unknown_backbone(parser)


def run(options: argparse.Namespace) -> None:
  """Writes the prompt."""
  outputs.refuse(options)
  vector = sources.load(options.vector)
  initial = sources.load_any(options.initial, "initial")
  applied = algebra.apply(
    vector, initial, options.coefficient, options.allow_unknown_backbone
  )
  outputs.write(options, applied)
  if applied.provenance.cross_origin:
    ratio = moving.ratio(vector, initial, options.coefficient)
    if ratio is not None:
      print(f"  {moving.told(ratio)}.")

"""Writes a DePT or EPT prompt in folded form: a prompt and a delta.

The prompt is put before the source, and the delta is added to the embeddings of the
source's tokens, by position. Evaluation and inference do the same with either form. A
folded prompt, as every plain prompt is, is written unchanged.
"""

import argparse

from tpv_jax.cli import arguments, outputs
from tpv_jax.cli.arguments import Parser
from tpv_jax.formats import sources
from tpv_jax.vectors import algebra

EXAMPLES = """\
  tpv fold runs/ept_sst2 -o folded.safetensors
  tpv fold t5x/ept/checkpoint_9000 --alpha 8 -o folded.safetensors
"""
ON_CPU = True


def add_arguments(parser: Parser) -> None:
  """Adds a prompt, and the output."""
  arguments.explain_paths(parser)
  arguments.add_output(parser)
  parser.add_argument("prompt", metavar="PROMPT", help="a prompt")
  arguments.add_which(parser, sources.WHICH)
  arguments.add_alpha(parser)


def run(options: argparse.Namespace) -> None:
  """Writes the folded prompt."""
  outputs.refuse(options)
  prompt = sources.load(options.prompt, options.which)
  if options.alpha is not None:
    prompt = sources.with_alpha(prompt, options.alpha)
  outputs.write(options, algebra.fold(prompt))

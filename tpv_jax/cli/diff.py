"""Writes the vector TUNED - INITIAL, with the task of TUNED as its term."""

import argparse
import shlex

from tpv_jax.backbones import naming
from tpv_jax.cli import arguments, outputs
from tpv_jax.cli.arguments import Parser
from tpv_jax.core.errors import UserError
from tpv_jax.formats import sources
from tpv_jax.vectors import algebra
from tpv_jax.vectors.loaded import Loaded
from tpv_jax.vectors.provenance import SPACES

EXAMPLES = """\
  tpv diff runs/sst2 -o sst2.safetensors
  tpv diff runs/sst2 --which last -o sst2.safetensors
  tpv diff runs/ept_sst2 --space factor -o factors.safetensors
  tpv diff t5x/checkpoint_9000 t5x/checkpoint_0 --task sst2 \\
      --backbone t5_base.safetensors -o sst2.safetensors
"""
ON_CPU = True


def add_arguments(parser: Parser) -> None:
  """Adds two prompts, options for what they do not state, and the output."""
  arguments.explain_paths(parser)
  arguments.add_output(parser)
  parser.add_argument("tuned", metavar="TUNED", help="a tuned prompt")
  parser.add_argument(
    "initial",
    metavar="INITIAL",
    nargs="?",
    help="the prompt it was tuned from; a run folder means its initial prompt "
    "(default: that of the run TUNED)",
  )
  arguments.add_which(parser, ("best", "last"))
  parser.add_argument(
    "--task", metavar="NAME", help="the task of a checkpoint that does not state it"
  )
  arguments.add_backbone(parser, "the backbone of checkpoints that do not state it")
  parser.add_argument(
    "--space",
    choices=SPACES,
    default="effective",
    help="for DePT and EPT prompts: 'effective' (default), the difference of the folded "
    "prompts; 'factor', the difference of their parameters, for use on the same initial "
    "parameters only. For plain prompts both are the same",
  )
  arguments.add_alpha(parser)
  arguments.add_allow_mixed_origin(parser, "another prompt than TUNED was tuned from")


def run(options: argparse.Namespace) -> None:
  """Writes the vector."""
  outputs.refuse(options)
  tuned = sources.load(options.tuned, options.which)
  initial = _initial_of(options)
  if options.backbone is not None:
    backbone = naming.named(options.backbone)
    tuned = sources.with_backbone(tuned, backbone)
    initial = sources.with_backbone(initial, backbone)
  if options.alpha is not None:
    parameters = {tuned.provenance.space, initial.provenance.space} != {"effective"}
    tuned, initial = (
      one
      if parameters and one.provenance.space == "effective"
      else sources.with_alpha(one, options.alpha)
      for one in (tuned, initial)
    )
  outputs.write(
    options,
    algebra.diff(
      tuned, initial, options.allow_mixed_origin, options.task, options.space
    ),
  )


def _initial_of(options: argparse.Namespace) -> Loaded:
  """Returns the initial prompt: the second path, or the run's own."""
  if options.initial is not None:
    return sources.load_any(options.initial, "initial")
  run = sources.run_of(options.tuned)
  if run is None:
    raise UserError(
      f"'{options.tuned}' is not a run folder, so give its initial prompt: tpv "
      f"diff {shlex.quote(options.tuned)} INITIAL -o {shlex.quote(options.output)}."
    )
  return sources.load(run, "initial")

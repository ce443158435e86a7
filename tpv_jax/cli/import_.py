"""Writes the prompt at PATH as a file of ours, and adds what you state about it.

What neither PATH nor you state stays unknown; 'tpv show' lists it.

A PATH is an adapter's folder (PEFT's or DePT's), a .npy file, a file of the folder
numpy_checkpoints, a prompt in a .npz or foreign .safetensors file (FILE:PROMPT where it
holds several), or anything else that the other verbs read; they also read all of these
directly. Pickles (.bin, .pt, .pkl) are never opened.
"""

import argparse

from tpv_jax.backbones import naming
from tpv_jax.cli import arguments, outputs
from tpv_jax.cli.arguments import Parser
from tpv_jax.formats import sources
from tpv_jax.vectors.loaded import Loaded

EXAMPLES = """\
  tpv import peft_adapter -o sst2.safetensors --task sst2 \\
      --backbone t5_base.safetensors --initial peft_initial
  tpv import sst2.npy -o sst2.safetensors --task sst2
  tpv import prompts.npz:SST2 -o sst2.safetensors
  tpv import dept.npz --alpha 8 -o dept.safetensors
"""
ON_CPU = True


def add_arguments(parser: Parser) -> None:
  """Adds a prompt, options for what it does not state, and the output."""
  parser.add_argument("path", metavar="PATH", help="a prompt")
  arguments.add_output(parser)
  parser.add_argument(
    "--task", metavar="NAME", help="the task that it was tuned on, if not stated"
  )
  arguments.add_backbone(parser, "the backbone of a prompt that does not state it")
  parser.add_argument(
    "--initial",
    metavar="INITIAL",
    help="the prompt that it was tuned from, if not stated; PATH itself for an initial "
    "prompt",
  )
  arguments.add_alpha(parser)


def run(options: argparse.Namespace) -> None:
  """Writes the file, and prints what stays unknown."""
  outputs.refuse(options)
  item = sources.load(options.path)
  if options.alpha is not None:
    item = sources.with_alpha(item, options.alpha)
  if options.backbone is not None:
    item = sources.with_backbone(item, naming.named(options.backbone))
  if options.initial is not None:
    item = sources.with_initial(item, sources.load_any(options.initial, "initial"))
  if options.task is not None:
    item = sources.with_task(item, options.task)
  outputs.write(options, item)
  if missing := _missing(item):
    print(f"  unknown: {', '.join(missing)}.")


def _missing(item: Loaded) -> list[str]:
  """Returns what the file does not state although an option could have."""
  known = item.provenance
  states = {
    "the backbone (--backbone)": known.backbone_fingerprint,
    "the initial prompt (--initial)": known.initial_digest or known.mixed_origins,
    "the task (--task)": all(term.task or term.merge for term in known.terms),
    "alpha (--alpha)": known.space == "effective" or known.alpha is not None,
  }
  return [what for what, stated in states.items() if not stated]

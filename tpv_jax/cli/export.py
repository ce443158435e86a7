"""Writes a prompt as another tool's file, and its provenance as JSON beside it.

DePT and EPT prompts are folded for 'peft', 'npy' and 'prompt-embeds', which hold only the
rows before a source. What such a prompt adds to the source's own embeddings, its delta, has
no place there: the prompt is refused, or written without it (--without-delta), which
changes its answers. 'npz' holds every leaf of PATH: a prompt's parameters, or a folded
prompt.

'backbone' is for a run that trained a whole backbone: its newest weights are written as
one .safetensors file of ours, rounded to bf16 and stored as fp32, so that the file holds
exactly the values that its fingerprint covers.
"""

import argparse

from tpv_jax.cli import arguments
from tpv_jax.cli.arguments import Parser
from tpv_jax.core.errors import UserError, printable
from tpv_jax.formats import arrays, peft, prompt_embeds, sources
from tpv_jax.vectors import algebra
from tpv_jax.vectors.loaded import Loaded
from tpv_jax.vectors.provenance import describe_terms

EXAMPLES = """\
  tpv export runs/sst2 --to peft -o adapter --base-model google/t5-v1_1-base
  tpv export sst2.safetensors --to npy -o sst2.npy
  tpv export runs/sst2 --to prompt-embeds -o sst2_embeds.safetensors
  tpv export runs/ept_sst2 --to npz -o ept_sst2.npz
  tpv export runs/pretraining --to backbone -o backbone.safetensors --name mine
"""
ON_CPU = True

TARGETS = ("peft", "npy", "prompt-embeds", "npz", "backbone")

_ROWS_ONLY = ("peft", "npy", "prompt-embeds")

_READERS = {
  "which": (*_ROWS_ONLY, "npz"),
  "alpha": (*_ROWS_ONLY, "npz"),
  "without_delta": _ROWS_ONLY,
  "base_model": ("peft",),
  "name": ("backbone",),
}
"""Option -> the targets that read it."""


def add_arguments(parser: Parser) -> None:
  """Adds a prompt or a run, a target, and the output."""
  arguments.explain_paths(parser)
  parser.add_argument(
    "path", metavar="PATH", help="a prompt; for 'backbone' the RUN_DIR of a run"
  )
  parser.add_argument(
    "--to",
    choices=TARGETS,
    required=True,
    help="'peft': an adapter's folder, which PeftModel.from_pretrained loads; 'npy': one "
    "array [P, D]; 'prompt-embeds': the same as safetensors, for servers and transformers; "
    "'npz': every leaf under our names, the one target for a delta; "
    "'backbone': the weights of a pre-training run",
  )
  arguments.add_output(
    parser, "a new folder (peft), or a file with the ending of its format"
  )
  arguments.add_which(parser, sources.WHICH)
  parser.set_defaults(which=None)
  arguments.add_alpha(parser)
  parser.add_argument(
    "--without-delta",
    action="store_true",
    default=None,
    help="leave out what a DePT or EPT prompt adds to the source's tokens",
  )
  parser.add_argument(
    "--base-model",
    metavar="NAME",
    help="the backbone's name for PEFT: its name on the hub, or a relative path",
  )
  parser.add_argument(
    "--name", help="a backbone's name, for people (default: tpv_jax embedded)"
  )


def run(options: argparse.Namespace) -> None:
  """Writes the file or folder."""
  for name, readers in _READERS.items():
    if getattr(options, name) is not None and options.to not in readers:
      raise UserError(
        f"--{name.replace('_', '-')} is read with --to {' or '.join(readers)} only, and "
        f"--to is {options.to}. Leave it out."
      )
  if options.to == "backbone":
    _export_backbone(options)
  else:
    _export_prompt(options)


def _export_backbone(options: argparse.Namespace) -> None:
  from tpv_jax.backbones import export

  name = options.name or "tpv_jax embedded"
  fingerprint = export.export(options.path, options.output, name, options.overwrite)
  print(
    f"Wrote the backbone '{printable(name)}' to '{printable(options.output)}'.\n"
    f"  fingerprint {fingerprint}."
  )


def _export_prompt(options: argparse.Namespace) -> None:
  room = {"peft": peft, "prompt-embeds": prompt_embeds}.get(options.to, arrays)
  if room is arrays:
    arrays.check_output(options.output, options.overwrite, f".{options.to}")
  else:
    room.check_output(options.output, options.overwrite)
  item = sources.load(options.path, options.which or "best")
  if options.alpha is not None:
    item = sources.with_alpha(item, options.alpha)
  before = item.provenance.notes
  if options.without_delta:
    item = peft.without_delta(item)
  if options.to == "peft":
    peft.write(options.output, item, options.base_model, options.overwrite)
    beside = f"{options.output}/{peft.PROVENANCE}"
  else:
    if options.to == "npy":
      item = _one_array(item)
    room.write(options.output, item, options.overwrite)
    beside = f"{options.output}.json"
  known = item.provenance
  output = printable(str(options.output))
  print(
    f"Wrote the {known.kind} '{output}': {describe_terms(known.terms)}.\n"
    f"  its provenance lies beside it, in '{printable(beside)}'."
  )
  for note in known.notes[len(before) :]:
    print(f"  note: {printable(note)}.")


def _one_array(item: Loaded) -> Loaded:
  """Returns the part of an item for a `.npy` file: a folded prompt without a delta."""
  if item.provenance.kind == "vector":
    return item  # `arrays.write` refuses one with other leaves.
  folded = algebra.fold(item)
  peft.refuse_delta(folded, "A .npy file")
  return Loaded({"prompt": folded.leaves["prompt"]}, folded.provenance, folded.name)

"""The commands of `tpv` on other tools' formats: prompts in and out.

Thin: it loads, calls `formats`, writes and says so.
"""

import argparse
from typing import Any

from tpv_jax.backbones import naming
from tpv_jax.cli import vectors
from tpv_jax.cli.arguments import add_command
from tpv_jax.core.errors import UserError, printable
from tpv_jax.formats import arrays, peft, sources
from tpv_jax.vectors import algebra, store
from tpv_jax.vectors.algebra import Loaded
from tpv_jax.vectors.provenance import describe_terms

_EXAMPLES = {
  "convert": """\
  tpv convert flan-t5-base -o t5x/checkpoint_0         Hugging Face to T5X
  tpv convert gs://t5-data/pretrained_models/t5x/t5_base/checkpoint_999900 \\
      -o t5_base --to hugging-face
  tpv convert mt5-small -o mt5.safetensors --dtype bfloat16
  tpv convert flan-t5-base -o t5x/checkpoint_0 --dry-run""",
  "import": """\
  tpv import peft_adapter -o sst2.safetensors --task sst2 \\
      --backbone t5_base.safetensors --initial peft_initial
  tpv import sst2.npy -o sst2.safetensors --task sst2
  tpv import prompts.npz:SST2 -o sst2.safetensors
  tpv import dept.npz --alpha 8 -o dept.safetensors""",
  "export": """\
  tpv export runs/sst2 --to peft -o adapter --base-model google/t5-v1_1-base
  tpv export sst2.safetensors --to npy -o sst2.npy
  tpv export runs/ept_sst2 --to npz -o ept_sst2.npz""",
}

_IMPORTED = """\
A PATH is an adapter's folder (PEFT's or DePT's), a .npy file or one of the folder
numpy_checkpoints, a prompt in a .npz or foreign .safetensors
file (FILE:PROMPT where it holds several), or anything that the other commands read, which
read all of these directly as well. Pickles (.bin, .pt, .pkl) are never opened."""

_CONVERTED = """\
SOURCE is a folder of Hugging Face (T5, T5 1.1, Flan-T5 or mT5 in safetensors), a T5X
checkpoint (Orbax, or the layout of 2022), a .safetensors file of ours, or 'embedded', here
or on gs://. An existing output is never replaced."""

TARGETS = ("peft", "npy", "npz")


def add(commands: Any) -> None:
  """Adds the commands of this room to `tpv`; `commands` is a subparsers action."""
  command = add_command(
    commands,
    "import",
    _import,
    "another tool's prompt, as a file of ours",
    _EXAMPLES["import"],
    _IMPORTED,
  )
  command.add_argument("path", metavar="PATH", help="a prompt")
  _add_output(command, "a new .safetensors file")
  command.add_argument(
    "--task", metavar="NAME", help="the task that it was tuned on, if it does not say"
  )
  vectors.add_backbone(command, "the backbone of a prompt that does not state it")
  command.add_argument(
    "--initial",
    metavar="INITIAL",
    help="the prompt that it was tuned from, if it does not say; PATH itself for an "
    "initial prompt",
  )
  vectors.add_alpha(command)

  command = add_command(
    commands,
    "export",
    _export,
    "a prompt as another tool's file",
    _EXAMPLES["export"],
    vectors.SOURCES,
  )
  command.add_argument("path", metavar="PROMPT", help="a prompt")
  command.add_argument(
    "--to",
    choices=TARGETS,
    required=True,
    help="'peft': an adapter's folder, which PeftModel.from_pretrained loads; 'npy': one "
    "array [P, D]; 'npz': every leaf under our names, the one target for a delta",
  )
  _add_output(command, "a new folder (peft) or file")
  vectors.add_which(command)
  vectors.add_alpha(command)
  command.add_argument(
    "--base-model",
    metavar="NAME",
    help="what PEFT shall call the backbone: its name on the hub, or a relative path",
  )

  command = add_command(
    commands,
    "convert",
    _convert,
    "a backbone in another tool's form",
    _EXAMPLES["convert"],
    _CONVERTED,
  )
  command.add_argument("source", metavar="SOURCE", help="a backbone")
  command.add_argument(
    "-o",
    "--output",
    metavar="OUT",
    required=True,
    help="a new folder, 'checkpoint_<step>' (T5X), or .safetensors file",
  )
  command.add_argument(
    "--to",
    choices=("hugging-face", "t5x", "safetensors"),
    help="what to write, where the name of OUT does not tell",
  )
  command.add_argument(
    "--dtype",
    choices=("float32", "bfloat16"),
    help="of what is written; as it is in SOURCE if not given (fp16 becomes fp32)",
  )
  command.add_argument(
    "--dry-run", action="store_true", help="list the mapping and write nothing"
  )


def _add_output(command: argparse.ArgumentParser, what: str) -> None:
  command.add_argument("-o", "--output", metavar="OUT", required=True, help=what)
  command.add_argument(
    "--overwrite", action="store_true", help="replace an existing output"
  )


def _import(options: argparse.Namespace) -> None:
  """Writes the prompt at PATH as a file of ours, and adds what you know of it.

  What neither PATH nor you state stays unknown; 'tpv show' lists it.
  """
  store.check_output(options.output, options.overwrite)
  item = sources.load(options.path)
  if options.alpha is not None:
    item = sources.with_alpha(item, options.alpha)
  if options.backbone is not None:
    item = sources.with_backbone(item, naming.named(options.backbone))
  if options.initial is not None:
    item = sources.with_initial(item, sources.load(options.initial, "initial"))
  if options.task is not None:
    item = sources.with_task(item, options.task)
  vectors.write(options, item)
  if missing := _missing(item):
    print(f"  unknown: {', '.join(missing)}.")


def _missing(item: Loaded) -> list[str]:
  """Returns what the file does not state and the user could have."""
  known = item.provenance
  states = {
    "the backbone (--backbone)": known.backbone_fingerprint,
    "the initial prompt (--initial)": known.initial_digest or known.mixed_origins,
    "the task (--task)": all(term.task for term in known.terms),
    "alpha (--alpha)": known.space == "effective" or known.alpha is not None,
  }
  return [what for what, stated in states.items() if not stated]


def _export(options: argparse.Namespace) -> None:
  """Writes a prompt as another tool's file, and its provenance as JSON beside it.

  DePT and EPT prompts are folded for 'peft' and 'npy', which hold rows that stand before
  a source and no delta: one that has a delta is refused there. 'npz' holds what the
  prompt is, its parameters or what 'tpv fold' makes of them.
  """
  if options.base_model is not None and options.to != "peft":
    raise UserError(f"--base-model is PEFT's, and --to is {options.to}. Leave it out.")
  checked = peft.check_output if options.to == "peft" else arrays.check_output
  checked(options.output, options.overwrite)
  item = sources.load(options.path, options.which)
  if options.alpha is not None:
    item = sources.with_alpha(item, options.alpha)
  if options.to == "peft":
    peft.write(options.output, item, options.base_model, options.overwrite)
    beside = f"{options.output}/{peft.PROVENANCE}"
  else:
    if options.to == "npy":
      item = _one_array(item)
    arrays.write(options.output, item, options.overwrite)
    beside = f"{options.output}.json"
  known = item.provenance
  output = printable(str(options.output))
  print(
    f"Wrote the {known.kind} '{output}': {describe_terms(known.terms)}.\n"
    f"  its provenance lies beside it, in '{printable(beside)}'."
  )


def _one_array(item: Loaded) -> Loaded:
  """Returns what a `.npy` file holds of an item: a folded prompt without a delta."""
  if item.provenance.kind == "vector":
    return item  # What has other leaves `arrays.write` refuses.
  folded = algebra.fold(item)
  peft.refuse_delta(folded, "A .npy file")
  return Loaded({"prompt": folded.leaves["prompt"]}, folded.provenance, folded.name)


def _convert(options: argparse.Namespace) -> None:
  """Writes a backbone in another form, leaf by leaf, and checks what it wrote.

  No value changes but by --dtype. The fingerprint, over the values rounded to bf16, is
  the same on both sides: vectors and prompts of the one belong to the other.
  """
  from tpv_jax.backbones import conversion
  from tpv_jax.core.screen import Bar

  to = conversion.target_of(options.output, options.to)
  conversion.check_output(options.output, to)
  with conversion.planned(options.source, to, options.dtype) as plan:
    if options.dry_run:
      print("\n".join(map(printable, conversion.describe(plan))))
      return
    with Bar(total=3 * plan.nbytes, unit="B", unit_scale=True) as bar:

      def report(doing: str, size: int) -> None:
        bar.set_description(doing, refresh=False)
        bar.update(size)

      fingerprint = conversion.convert(plan, options.source, options.output, report)
  name, output = printable(plan.source.name), printable(str(options.output))
  print(
    f"Wrote the backbone '{name}' to '{output}' ({to}): "
    f"{conversion.describe(plan)[-1]}.\n"
    f"  fingerprint {fingerprint}, the same when read back."
  )

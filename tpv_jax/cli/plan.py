"""Prints what each chip holds of a backbone on a mesh, and what a step or a study costs.

Shapes come from abstract evaluation, shardings from the rules of training; no weights are
read, nothing is allocated and no device is needed, so a pod can be planned on a laptop.

Of a study's gin files it counts the runs, steps, tokens and scored rows, from the settings
and the data, which must be there, and says how long that takes: on chips at an assumed part of
their peak, and as fast as a run that has finished (--like).
"""

import argparse
import dataclasses
import math
from collections.abc import Sequence
from typing import TYPE_CHECKING

from tpv_jax.cli import gin_verb
from tpv_jax.cli.arguments import Parser
from tpv_jax.core import screen
from tpv_jax.core.errors import UserError, at_least, renamed

if TYPE_CHECKING:
  from rich.table import Table

  from tpv_jax.training import estimate
  from tpv_jax.training.plans import Leaf, Planned

EXAMPLES = """\
  tpv plan t5_v1_1_xxl --mesh 4x8
  tpv plan t5_v1_1_base --mesh 8x1 --storage float32 --leaves
  tpv plan t5_v1_1_base --mesh 8x1 --bank 32
  tpv plan t5_v1_1_xl --mesh 4x8 --ept --leaves
  tpv plan llama_3_1_8b --chip h100 --quantize int8
  tpv plan smollm2_135m llama_3_1_8b --chip h100 v5e v5p
  a study, whose gin files are given as to its own command:
    tpv plan --gin_file=gin_configs/runs/demo.gin --gin.OUTPUT_DIR=demo_out
"""
ON_CPU = True

_SIZES = (
  *("prompt_length", "short_length", "source_length", "target_length"),
  *("rows", "bank"),
)

_OF_SIZES = ("mesh", "storage", "quantize", "ept", "leaves", *_SIZES)
"""The options of which a study's cost reads none: its gin files say all that."""


def add_arguments(parser: Parser) -> None:
  """Adds the backbone, the mesh, and what is trained on it."""
  parser.add_argument(
    "sizes",
    metavar="SIZE",
    nargs="*",
    help="a name such as t5_v1_1_xl; several: a table; none for a study",
  )
  parser.add_argument("--mesh", help="data x model chips (4x8, or the chip's machine)")
  parser.add_argument(
    "--chip",
    nargs="+",
    choices=("h100", "v5e", "v5p"),
    metavar="CHIP",
    help="h100 (one), v5e (v5e-8), v5p (v5p-8): whether a step fits, and what it costs; "
    "several: a table",
  )
  parser.add_argument(
    "--storage",
    choices=("bfloat16", "float32"),
    default="bfloat16",
    help="dtype of the frozen backbone on the chips (bfloat16)",
  )
  parser.add_argument(
    "--quantize", choices=("int8", "int4", "nf4"), help="its kernels in fewer bits"
  )
  parser.add_argument("--prompt-length", type=int, default=100, help="P (100)")
  parser.add_argument(
    "--ept",
    action="store_true",
    help="an EPT prompt with the budget of P plain tokens, as ept.gin makes it",
  )
  parser.add_argument("--short-length", type=int, default=40, help="S of EPT (40)")
  parser.add_argument(
    "--source-length", type=int, default=256, help="M of EPT, and T of a step (256)"
  )
  parser.add_argument("--target-length", type=int, default=16, help="L of a step (16)")
  parser.add_argument("--rows", type=int, default=16, help="examples of a step (16)")
  parser.add_argument("--bank", type=int, default=1, help="N, prompts at once (1)")
  parser.add_argument("--leaves", action="store_true", help="a line for each parameter")
  gin_verb.add_arguments(parser)
  parser.add_argument(
    "--like",
    metavar="RUN",
    help="a finished run on this backbone: its speed, for a study",
  )


def run(options: argparse.Namespace) -> None:
  """Prints the plan, a table of several, or the cost of a study."""
  if options.gin_file or options.gin_bindings:
    _plan_study(options)
    return
  if options.like or not options.sizes:
    raise UserError(
      "--like is for a study, which --gin_file names."
      if options.like
      else "Name a SIZE, such as smollm2_135m, or a study: --gin_file=FILE."
    )
  from tpv_jax.training.plans import Planned

  for name in _SIZES:
    at_least(f"--{name.replace('_', '-')}", getattr(options, name), 1)
  _refuse_unread(options)
  plans = [
    Planned(
      *(size, options.storage, options.quantize, options.prompt_length),
      *(options.ept, options.short_length, options.source_length),
    )
    for size in options.sizes
  ]
  with renamed({"SHORT_LENGTH": "--short-length", "PROMPT_LENGTH": "--prompt-length"}):
    _print(plans, options)


def _print(plans: Sequence["Planned"], options: argparse.Namespace) -> None:
  """Prints the plan of one size on one chip, or a table."""
  if len(plans) == 1 and len(options.chip or ()) < 2:
    _print_one(plans[0], options)
    return
  given = _given(options, ("mesh", "leaves", "quantize", "bank"))
  if given or not options.chip:
    raise UserError(
      f"{given[0]} is for one size on one chip; leave it out of a table."
      if given
      else "A table of several sizes needs --chip, such as --chip h100 v5e v5p."
    )
  _print_table(plans, options)


def _plan_study(options: argparse.Namespace) -> None:
  from tpv_jax.cli import study_cost

  if options.sizes:
    raise UserError(
      f"'{options.sizes[0]}' is a size, and a study's gin files name their backbone. Leave "
      "it out."
    )
  if given := _given(options, _OF_SIZES):
    raise UserError(
      f"{given[0]} is of a SIZE, and a study's gin files say what it trains, and how. Leave "
      "it out, or set it there: --gin.NAME=VALUE."
    )
  study_cost.run(options)


def _refuse_unread(options: argparse.Namespace) -> None:
  """Raises `UserError` for an option that says nothing without another one."""
  lacking = {} if options.ept else {"short_length": "--ept"}
  if not options.chip:
    lacking |= {"rows": "--chip", "target_length": "--chip"}
    lacking |= {} if options.ept else {"source_length": "--ept or --chip"}
  for name, needed in lacking.items():
    if given := _given(options, [name]):
      raise UserError(
        f"{given[0]} changes nothing without {needed}: give that as well, or leave it out."
      )


def _given(options: argparse.Namespace, names: Sequence[str]) -> list[str]:
  """Returns those of the options that do not have their defaults, as they are spelled."""
  defaults = Parser()
  add_arguments(defaults)
  return [
    f"--{name.replace('_', '-')}"
    for name in names
    if getattr(options, name) != defaults.get_default(name)
  ]


def _print_one(planned: "Planned", options: argparse.Namespace) -> None:
  """Prints what the chips hold and, of named chips, what a step costs."""
  from tpv_jax.banks import memory
  from tpv_jax.devices import partitioning
  from tpv_jax.training import estimate

  (chip,) = map(estimate.CHIPS.get, options.chip or (None,))
  mesh = options.mesh or ("4x8" if chip is None else "{}x{}".format(*chip.mesh))
  data, model = _mesh(mesh)
  leaves, kept_whole = planned.on(data, model)
  here = options.bank
  if options.bank % data == 0:
    here //= data
  elif options.bank > 1:
    kept_whole.append(
      partitioning.why_replicated("bank", options.bank, partitioning.DATA, data)
    )
  console = screen.console()
  if options.leaves:
    console.print(_table_of_leaves(leaves))
  console.print(
    f"{planned.size} on {data} x {model} chips (data x model), {planned.storage}"
    + (f", kernels {planned.quantize}" if planned.quantize else "")
  )
  console.print(_table_of_parts(leaves, options.bank, here))
  for line in kept_whole:
    console.print(line)
  if chip is None:
    console.print(
      "Activations come on top; they grow with the rows of a chip. A bank prints what its "
      "compiled steps need before it starts (tpv bank). With --chip: what a step costs."
    )
    return
  done = _work(planned, options)
  held = _held(leaves, here)
  step = estimate.step(done, chip, (data, model), options.rows, held)
  fits = {
    None: "does not fit: a single row keeps more than is left",
    1: "fits",
  }.get(step.parts, f"fits with MICROBATCHES = {step.parts}")
  console.print(
    f"A step of {options.rows} rows of {planned.source_length} + {options.target_length} "
    f"tokens: {done.flops / 1e12:,.1f} TFLOP. A chip keeps at most "
    f"{memory.text(step.kept)} for the backward pass, beside {memory.text(held)}, and has "
    f"{memory.text(chip.memory)}: {fits}."
  )
  console.print(
    f"About {step.seconds:.2g} s a step, at {estimate.UTILISATION:.0%} of "
    f"{chip.flops / 1e12:g} TFLOP/s a chip (assumed, not measured), or at "
    f"{chip.bandwidth / 1e12:g} TB/s to read the backbone twice; waiting for other chips "
    "comes on top."
  )


def _print_table(plans: Sequence["Planned"], options: argparse.Namespace) -> None:
  """Prints a row in Markdown for each size on each kind of chips."""
  from tpv_jax.training import estimate

  modes = {options.storage: None, "int8": "int8", "int4 or nf4": "int4"}
  names = [f"{name}: GiB a chip, fits" for name in modes]
  head = ["backbone", "chips", "TFLOP a step", "s a step", *names]
  print(f"| {' | '.join(head)} |\n|{' --- |' * len(head)}")
  for planned in plans:
    done = _work(planned, options)
    for name in options.chip:
      chip = estimate.CHIPS[name]
      cells, seconds = [], []
      for mode in modes.values():
        leaves, _ = dataclasses.replace(planned, quantize=mode).on(*chip.mesh)
        held = _held(leaves, 1)
        step = estimate.step(done, chip, chip.mesh, options.rows, held)
        fits = {None: "no", 1: "yes"}.get(step.parts, f"in {step.parts} parts")
        cells.append(f"{held / 2**30:.2f}, {fits}")
        seconds.append(step.seconds)
      print(
        f"| {planned.size} | {chip.machine} | {done.flops / 1e12:.1f} | "
        f"{seconds[0]:.2g} | {' | '.join(cells)} |"
      )


def _work(planned: "Planned", options: argparse.Namespace) -> "estimate.Work":
  from tpv_jax.training import estimate

  return estimate.work(
    dataclasses.replace(planned, quantize=None).model,
    planned.layers,
    *(options.rows, planned.source_length, options.target_length),
  )


def _held(leaves: Sequence["Leaf"], prompts: int) -> int:
  """Returns the bytes of a chip: the backbone, and prompts with gradient and moments."""
  return sum(
    4 * prompts * leaf.size if leaf.path.startswith("prompt/") else leaf.size
    for leaf in leaves
  )


def _mesh(text: str) -> tuple[int, int]:
  data, _, model = text.partition("x")
  if not (data.isdigit() and model.isdigit() and int(data) and int(model)):
    raise UserError(f"'{text}' is not a mesh: write DATAxMODEL, such as 4x8.")
  return int(data), int(model)


def _table_of_leaves(leaves: Sequence["Leaf"]) -> "Table":
  """Returns a row for each parameter: its shape, its axes and how they are split."""
  from rich.table import Column, Table

  table = Table(Column("parameter", no_wrap=True), "shape", "axes", "on a chip")
  for leaf in leaves:
    where = " ".join(
      f"{axis}/{by}" if by else axis
      for axis, by in zip(leaf.axes, leaf.cut, strict=True)
    )
    table.add_row(leaf.path, str(list(leaf.shape)), where, str(list(leaf.share)))
  return table


def _table_of_parts(leaves: Sequence["Leaf"], prompts: int, here: int) -> "Table":
  """Returns a row for the backbone and one for the prompts.

  A chip holds `here` of the prompts, each with its gradient and two moments in fp32.
  """
  from rich.table import Table

  from tpv_jax.banks import memory

  frozen = [leaf for leaf in leaves if not leaf.path.startswith("prompt/")]
  trained = [leaf for leaf in leaves if leaf.path.startswith("prompt/")]
  what = "prompt" if prompts == 1 else f"{prompts} prompts"
  table = Table("part", "parameters", "cut over chips", "bytes on a chip")
  for name, part, times, held in (
    ("frozen backbone", frozen, 1, 1),
    (f"{what}, gradient and AdamW's two moments", trained, prompts, here),
  ):
    whole = times * sum(math.prod(leaf.shape) for leaf in part)
    cut = times * sum(
      math.prod(leaf.shape) for leaf in part if held < times or any(leaf.cut)
    )
    table.add_row(
      name, f"{whole:,}", f"{100 * cut / whole:.1f} %", memory.text(_held(part, held))
    )
  return table

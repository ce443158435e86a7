"""Prints what each chip holds of a backbone on a mesh, without weights.

Shapes come from abstract evaluation, shardings from the rules of training; nothing is
allocated and no device is needed, so a pod can be planned on a laptop.
"""

import argparse
import dataclasses
import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, NamedTuple

from tpv_jax.cli.arguments import Parser
from tpv_jax.core import screen
from tpv_jax.core.errors import UserError, at_least, near_misses

if TYPE_CHECKING:
  from rich.table import Table

EXAMPLES = """\
  tpv plan t5_v1_1_xxl --mesh 4x8
  tpv plan t5_v1_1_base --mesh 8x1 --storage float32 --leaves
  tpv plan t5_v1_1_base --mesh 8x1 --bank 32
  tpv plan t5_v1_1_xl --mesh 4x8 --ept --leaves
"""
ON_CPU = True


@dataclasses.dataclass(frozen=True)
class Leaf:
  """One parameter on a mesh.

  Attributes:
    path: its T5X path.
    shape: of the whole parameter.
    axes: logical names of its axes.
    cut: the mesh axis that splits each axis, or None.
    share: the shape of the part that one chip holds.
  """

  path: str
  shape: tuple[int, ...]
  axes: tuple[str, ...]
  cut: tuple[str | None, ...]
  share: tuple[int, ...]


class Plan(NamedTuple):
  """The parameters on a mesh.

  Attributes:
    leaves: every parameter.
    kept_whole: a line for each axis that is not split because its size does not divide.
  """

  leaves: list[Leaf]
  kept_whole: list[str]


def make(
  size: str,
  data: int,
  model: int,
  prompt_length: int = 100,
  ept: bool = False,
  short_length: int = 40,
  source_length: int = 256,
) -> Plan:
  """Returns the parameters of a size in `registry.sizes` on a mesh of data x model chips.

  Args:
    size: of the backbone.
    data: chips along the axis that splits the rows.
    model: chips along the axis that splits a parameter.
    prompt_length: P.
    ept: an EPT prompt with the budget of a plain one of P tokens, as ept.gin makes it,
      instead of the plain one.
    short_length: S of the EPT prompt.
    source_length: M of the EPT prompt.

  Raises:
    UserError: no such size, or no such prompt.
  """
  from jax.sharding import AbstractMesh

  from tpv_jax.backbones import registry
  from tpv_jax.devices import partitioning
  from tpv_jax.model import SoftPromptModel
  from tpv_jax.prompts import budget, plain
  from tpv_jax.prompts.ept import EPT

  sizes = registry.sizes()
  if size not in sizes:
    raise UserError(
      f"There is no size '{size}'.{near_misses(size, sizes)} The sizes are "
      f"{', '.join(sizes)}."
    )
  family, numbers = sizes[size]
  features = numbers["emb_dim"]
  prompt: plain.Prompt | EPT = plain.Prompt(length=prompt_length, features=features)
  if ept:
    fusion_width, spaces, bottleneck = 4, 4, 1
    rank = budget.rank(
      *(prompt_length, short_length, features, source_length),
      *(fusion_width, spaces, bottleneck),
    )
    prompt = EPT(
      *(short_length, features, source_length, rank),
      *(fusion_width, spaces, bottleneck),
    )
  layout = partitioning.layout(
    SoftPromptModel(family.network(**numbers), prompt, None, None),
    AbstractMesh((data, model), (partitioning.DATA, partitioning.MODEL)),
  )
  return Plan(
    [
      Leaf(
        path=path,
        shape=leaf.shape,
        axes=layout.axes[path],
        cut=tuple(leaf.sharding.spec),
        share=leaf.sharding.shard_shape(leaf.shape),
      )
      for path, leaf in layout.parameters.items()
    ],
    layout.kept_whole,
  )


def add_arguments(parser: Parser) -> None:
  """Adds the backbone, the mesh, and what is trained on it."""
  parser.add_argument("size", metavar="SIZE", help="a name such as t5_v1_1_xl")
  parser.add_argument("--mesh", default="4x8", help="data x model chips (4x8)")
  parser.add_argument(
    "--storage",
    choices=("bfloat16", "float32"),
    default="bfloat16",
    help="dtype of the frozen backbone on the chips (bfloat16)",
  )
  parser.add_argument("--prompt-length", type=int, default=100, help="P (100)")
  parser.add_argument(
    "--ept",
    action="store_true",
    help="an EPT prompt with the budget of P plain tokens, as ept.gin makes it",
  )
  parser.add_argument("--short-length", type=int, default=40, help="S of EPT (40)")
  parser.add_argument("--source-length", type=int, default=256, help="M of EPT (256)")
  parser.add_argument("--bank", type=int, default=1, help="N, prompts at once (1)")
  parser.add_argument("--leaves", action="store_true", help="a line for each parameter")


def run(options: argparse.Namespace) -> None:
  """Prints the plan."""
  from tpv_jax.devices import partitioning

  data, _, model = options.mesh.partition("x")
  if not (data.isdigit() and model.isdigit() and int(data) and int(model)):
    raise UserError(f"'{options.mesh}' is not a mesh: write DATAxMODEL, such as 4x8.")
  at_least("--bank", options.bank, 1)
  leaves, kept_whole = make(
    *(options.size, int(data), int(model), options.prompt_length),
    *(options.ept, options.short_length, options.source_length),
  )
  here = options.bank
  if options.bank % int(data) == 0:
    here //= int(data)
  elif options.bank > 1:
    kept_whole.append(
      partitioning.why_replicated("bank", options.bank, partitioning.DATA, int(data))
    )
  width = {"bfloat16": 2, "float32": 4}[options.storage]
  console = screen.console()
  if options.leaves:
    console.print(_table_of_leaves(leaves))
  console.print(
    f"{options.size} on {data} x {model} chips (data x model), {options.storage}"
  )
  console.print(_table_of_parts(leaves, width, options.bank, here))
  for line in kept_whole:
    console.print(line)
  console.print(
    "Activations come on top; they grow with the rows of a chip. A bank prints what its "
    "compiled steps need before it starts (tpv bank)."
  )


def _table_of_leaves(leaves: Sequence[Leaf]) -> "Table":
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


def _table_of_parts(
  leaves: Sequence[Leaf], width: int, prompts: int, here: int
) -> "Table":
  """Returns a row for the backbone and one for the prompts.

  A value of the backbone has `width` bytes. A chip holds `here` of the prompts, each with
  its gradient and two moments in fp32.
  """
  from rich.table import Table

  from tpv_jax.banks import memory

  frozen = [leaf for leaf in leaves if not leaf.path.startswith("prompt/")]
  trained = [leaf for leaf in leaves if leaf.path.startswith("prompt/")]
  what = "prompt" if prompts == 1 else f"{prompts} prompts"
  table = Table("part", "parameters", "cut over chips", "bytes on a chip")
  for name, part, size, times, held in (
    ("frozen backbone", frozen, width, 1, 1),
    (f"{what}, gradient and AdamW's two moments", trained, 4 * 4, prompts, here),
  ):
    whole = times * sum(math.prod(leaf.shape) for leaf in part)
    cut = times * sum(
      math.prod(leaf.shape) for leaf in part if held < times or any(leaf.cut)
    )
    share = held * sum(math.prod(leaf.share) for leaf in part)
    table.add_row(
      name, f"{whole:,}", f"{100 * cut / whole:.1f} %", memory.text(share * size)
    )
  return table

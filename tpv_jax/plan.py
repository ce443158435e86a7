"""`python -m tpv_jax.plan`: what each chip holds of a backbone on a mesh, without weights.

Shapes come from abstract evaluation, shardings from `partitioning`'s rules; nothing is
allocated and no device is needed, so a pod can be planned on a laptop.
"""

import argparse
import dataclasses
import math
from collections.abc import Sequence

from tpv_jax import screen
from tpv_jax.errors import (
  ArgumentParser,
  UserError,
  at_least,
  near_misses,
  run_command,
  run_program,
)

EXAMPLES = """\
examples:
  python -m tpv_jax.plan t5_v1_1_xxl --mesh 4x8
  python -m tpv_jax.plan t5_v1_1_base --mesh 8x1 --storage float32 --leaves
  python -m tpv_jax.plan t5_v1_1_base --mesh 1x1 --bank 32
"""


@dataclasses.dataclass(frozen=True)
class Leaf:
  """One parameter on a mesh.

  Attributes:
    path: its T5X path.
    shape: of the whole parameter.
    axes: logical names of its axes.
    cut: the mesh axis along which each axis is cut, or None.
    share: shape of the part that one chip holds.
  """

  path: str
  shape: tuple[int, ...]
  axes: tuple[str, ...]
  cut: tuple[str | None, ...]
  share: tuple[int, ...]


def leaves(size: str, data: int, model: int, prompt_length: int = 100) -> list[Leaf]:
  """Returns every parameter of a size in `sizes.SIZES` on a mesh of data x model chips.

  Raises:
    UserError: no such size.
  """
  import jax
  from jax.sharding import AbstractMesh

  from tpv_jax import identity, partitioning
  from tpv_jax.backbone import network, sizes
  from tpv_jax.model import SoftPromptModel
  from tpv_jax.prompts import plain

  if size not in sizes.SIZES:
    raise UserError(
      f"There is no size '{size}'.{near_misses(size, sizes.SIZES)} The sizes are "
      f"{', '.join(sizes.SIZES)}."
    )
  numbers = sizes.SIZES[size]
  prompt = plain.Prompt(length=prompt_length, features=numbers["emb_dim"])
  soft_prompt = SoftPromptModel(network.Transformer(**numbers), prompt, None, None)
  shapes = jax.eval_shape(
    lambda: soft_prompt.get_initial_variables(jax.random.key(0), {})
  )
  mesh = AbstractMesh((data, model), (partitioning.DATA, partitioning.MODEL))
  shardings = identity.flatten(
    partitioning.param_shardings(shapes["params_axes"], mesh, shapes["params"])
  )
  axes = identity.flatten(shapes["params_axes"])
  return [
    Leaf(
      path=path,
      shape=leaf.shape,
      axes=tuple(axes[f"{path}_axes"].names),
      cut=tuple(shardings[path].spec),
      share=shardings[path].shard_shape(leaf.shape),
    )
    for path, leaf in identity.flatten(shapes["params"]).items()
  ]


def main(argv: Sequence[str] | None = None) -> int:
  """Prints the plan; returns the exit code."""
  parser = ArgumentParser(
    description="What each chip holds of a backbone on a mesh, without weights.",
    epilog=EXAMPLES,
    formatter_class=argparse.RawDescriptionHelpFormatter,
  )
  parser.add_argument("size", help="a name such as t5_v1_1_xl")
  parser.add_argument("--mesh", default="4x8", help="data x model chips (4x8)")
  parser.add_argument(
    "--storage",
    choices=("bfloat16", "float32"),
    default="bfloat16",
    help="dtype in which the frozen backbone lies on the chips (bfloat16)",
  )
  parser.add_argument("--prompt_length", type=int, default=100, help="P (100)")
  parser.add_argument("--bank", type=int, default=1, help="N, prompts at once (1)")
  parser.add_argument("--leaves", action="store_true", help="a line for each parameter")
  parser.add_argument("--debug", action="store_true", help="show traces of errors")
  flags = parser.parse_args(argv)

  return run_command(lambda: _print_plan(flags), debug=flags.debug)


def _print_plan(flags: argparse.Namespace) -> None:
  from rich.table import Column, Table

  from tpv_jax.runner import memory

  data, _, model = flags.mesh.partition("x")
  if not (data.isdigit() and model.isdigit() and int(data) and int(model)):
    raise UserError(f"'{flags.mesh}' is no mesh: write DATAxMODEL, such as 4x8.")
  found = leaves(flags.size, int(data), int(model), flags.prompt_length)
  width = {"bfloat16": 2, "float32": 4}[flags.storage]
  console = screen.console()
  if flags.leaves:
    table = Table(Column("parameter", no_wrap=True), "shape", "axes", "on a chip")
    for leaf in found:
      where = " ".join(
        f"{axis}/{by}" if by else axis
        for axis, by in zip(leaf.axes, leaf.cut, strict=True)
      )
      table.add_row(leaf.path, str(list(leaf.shape)), where, str(list(leaf.share)))
    console.print(table)
  table = Table("part", "parameters", "cut over chips", "bytes on a chip")
  frozen = [leaf for leaf in found if not leaf.path.startswith("prompt/")]
  trained = [leaf for leaf in found if leaf.path.startswith("prompt/")]
  at_least("--bank", flags.bank, 1)
  prompts = "prompt" if flags.bank == 1 else f"{flags.bank} prompts"
  for name, part, size, times in (
    ("frozen backbone", frozen, width, 1),
    (f"{prompts}, gradient and AdamW's two moments", trained, 4 * 4, flags.bank),
  ):
    whole = times * sum(math.prod(leaf.shape) for leaf in part)
    cut = times * sum(math.prod(leaf.shape) for leaf in part if any(leaf.cut))
    share = times * sum(math.prod(leaf.share) for leaf in part)
    table.add_row(
      name, f"{whole:,}", f"{100 * cut / whole:.1f} %", memory.text(share * size)
    )
  console.print(
    f"{flags.size} on {data} x {model} chips (data x model), {flags.storage}"
  )
  console.print(table)
  console.print(
    "Activations come on top; they grow with the rows a chip has. A bank says before it "
    "starts what its compiled steps need (train_bank)."
  )


if __name__ == "__main__":
  run_program(main)

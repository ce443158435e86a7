"""The memory that a bank's step needs on a device, and the memory that is free."""

import dataclasses
import functools
import math
import os
from collections.abc import Iterable, Sequence
from typing import Any

import jax
import numpy as np
from jax.sharding import NamedSharding, Sharding

from tpv_jax.banks.bank_steps import BankSteps
from tpv_jax.data import packing, row_fitting
from tpv_jax.devices import partitioning, processes
from tpv_jax.training.steps import Leaves

GIBIBYTE = 2**30


@dataclasses.dataclass(frozen=True)
class Need:
  """Bytes on one device while a bank trains.

  Attributes:
    backbone: the frozen leaves.
    prompts: the trained leaves of all prompts and their optimizer states.
    step: what the larger of the two calls needs beside these: folded prompts, their
      gradients, features, activations and XLA's workspace, by XLA's memory analysis.
  """

  backbone: int
  prompts: int
  step: int

  @property
  def total(self) -> int:
    """Returns the sum."""
    return self.backbone + self.prompts + self.step

  def __str__(self) -> str:
    return (
      f"{text(self.total)} (backbone {text(self.backbone)}, prompts and their optimizer "
      f"{text(self.prompts)}, a step {text(self.step)})"
    )


def text(count: float) -> str:
  """Returns a number of bytes as text, in a fitting unit."""
  for unit in ("B", "KiB", "MiB"):
    if count < 1024:
      return f"{count:.1f} {unit}"
    count /= 1024
  return f"{count:.2f} GiB"


def need(
  steps: BankSteps,
  trainable: Leaves,
  frozen: Leaves,
  prompts: int,
  shapes: row_fitting.Shapes,
) -> Need:
  """Returns what a bank needs, measured by compiling the calls that it will make.

  JAX keeps the compiled calls, so the bank's first step does not compile them again.
  Updates and validation need less, as they hold no activations for a gradient, and are
  not measured.

  Args:
    steps: the bank's compiled functions.
    trainable: the leaves of one prompt.
    frozen: the backbone's leaves, with the dtypes that they have on the devices, or their
      shapes.
    prompts: the number of prompts, N.
    shapes: of the calls.
  """
  stacked = {
    path: jax.ShapeDtypeStruct(
      (prompts, *leaf.shape), leaf.dtype, sharding=steps.stacked[path]
    )
    for path, leaf in trainable.items()
  }
  state = jax.tree.map(_placed, jax.eval_shape(steps.initialise, stacked), steps.state)
  folded = _placed(jax.eval_shape(steps.fold, stacked), steps.whole)
  sums = _placed(jax.eval_shape(steps.zeros, folded), steps.by_prompt)
  placed = {
    path: jax.tree.map(functools.partial(_part, sharding=steps.frozen[path]), leaf)
    for path, leaf in frozen.items()
  }
  backbone = _bytes(jax.tree.leaves(placed))
  largest = 0
  for shape in {shapes.wide, shapes.short}:
    features = _placed(packing.empty(shape), steps.rows)
    compiled = steps.accumulate.lower(sums, folded, placed, features).compile()
    found = compiled.memory_analysis()
    if found is not None:  # Some backends have no memory analysis.
      largest = max(
        largest,
        found.argument_size_in_bytes
        + found.output_size_in_bytes
        - found.alias_size_in_bytes
        + found.temp_size_in_bytes
        - backbone,
      )
  return Need(backbone, _bytes(jax.tree.leaves(state)), largest)


def available(devices: Sequence[Any], limit: float | None = None) -> int:
  """Returns the free bytes of the device with the fewest, over all processes.

  An accelerator reports its own; the devices of a CPU share the machine's free memory.

  Args:
    devices: JAX's devices of this process.
    limit: in GiB; returned, in bytes, instead of what is free.
  """
  if limit is not None:
    return int(limit * GIBIBYTE)
  stats = [device.memory_stats() or {} for device in devices]
  if all("bytes_limit" in one for one in stats):
    free = min(one["bytes_limit"] - one.get("bytes_in_use", 0) for one in stats)
  else:
    free = _free_memory() // len(stats)
  return processes.least(free // 2**20) * 2**20


def _free_memory() -> int:
  """Returns the bytes that this machine can allocate without swapping."""
  try:
    with open("/proc/meminfo") as file:
      lines = dict(line.split(":", 1) for line in file)
    return int(lines["MemAvailable"].split()[0]) * 1024
  except (OSError, KeyError):  # Not Linux: all memory there is.
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")


def _placed(tree: Any, sharding: Sharding) -> Any:
  """Returns the tree's shapes with the sharding."""
  return jax.tree.map(
    lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding), tree
  )


def _part(leaf: Any, sharding: NamedSharding) -> jax.ShapeDtypeStruct:
  """Returns the shape of a leaf, or of a part of one that is quantised."""
  fitting = partitioning.that_fits(sharding, leaf.shape)
  return jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=fitting)


def _bytes(leaves: Iterable[jax.ShapeDtypeStruct]) -> int:
  """Returns the bytes of the leaves' parts on one device."""
  return sum(
    math.prod(leaf.sharding.shard_shape(leaf.shape)) * np.dtype(leaf.dtype).itemsize
    for leaf in leaves
  )

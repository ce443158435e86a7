"""T5X's partitioner for a number of devices, checked before anything is compiled."""

import functools
import math
import types
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import flax
import jax
from absl import logging
from t5x import partitioning

from tpv_jax.core.checks import Size
from tpv_jax.core.errors import UserError
from tpv_jax.devices import meshes
from tpv_jax.devices.partitioning import Rules, axis_rules, merged, that_divide


class Partitioner(partitioning.PjitPartitioner):
  """T5X's partitioner with a rule for every axis, which splits every axis that divides.

  T5X silently replicates an axis with an unknown name, and fails on one whose size the
  devices do not divide. Here the former is refused; the latter is replicated, which is
  logged.
  """

  _logical_axis_rules: Rules
  units: Mapping[str, int] = types.MappingProxyType({})
  """See `partitioning.that_divide`; `restoring.Initializer` sets those of the network."""

  def get_mesh_axes(self, train_state: Any) -> Any:
    """Returns T5X's `PartitionSpec`s, and keeps only the rules that divide.

    Raises:
      UserError: an axis name without a rule.
    """
    names, shapes = (
      flax.traverse_util.flatten_dict(flax.core.unfreeze(tree), sep="/")
      for tree in (
        self.get_logical_axes(train_state).state_dict()["target"],
        train_state.state_dict()["target"],
      )
    )
    self._logical_axis_rules, kept_whole = that_divide(
      self._logical_axis_rules,
      {path: tuple(axes) for path, axes in names.items()},
      {path: leaf.shape for path, leaf in shapes.items()},
      self.mesh,
      self.units,
    )
    for line in kept_whole:
      logging.warning("%s", line)
    return super().get_mesh_axes(train_state)

  def partition(self, fn: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
    """Returns T5X's partitioned function, in which the model's axes follow the rules."""

    @functools.wraps(fn)
    def placed(*inputs: Any) -> Any:
      with axis_rules(self.mesh, self._logical_axis_rules):
        return fn(*inputs)

    return super().partition(placed, *args, **kwargs)


def partitioner(
  model_parallel: Size = 1,
  batch_size: Size | None = None,
  microbatches: Size | None = None,
  submesh: Sequence[Size] | None = None,
  axis_rules: Sequence[Sequence[str | None]] = (),
) -> Partitioner:
  """Returns T5X's partitioner: data parallel times model parallel.

  Args:
    model_parallel: devices over which each parameter is split.
    batch_size: of all devices together; it must divide over them.
    microbatches: parts of a batch, into which it must divide; None for one.
    submesh: the block of a TPU slice over which parameters are split; None chooses the
      best one.
    axis_rules: replace ours for the names that they mention.

  Raises:
    UserError: devices, batch or micro-batches that do not divide; invalid rules.
  """
  devices = jax.devices()
  block = meshes.block(devices, model_parallel, submesh)
  size = math.prod(block)
  rows = len(devices) // size * (microbatches or 1)
  if batch_size is not None and batch_size % rows:
    raise UserError(
      f"A batch of {batch_size} rows does not divide over {len(devices) // size} data-"
      f"parallel devices x {microbatches or 1} microbatches. Set BATCH_SIZE to a "
      f"multiple of {rows}."
    )
  # T5X reads `num_partitions` on GPUs, ignores it on CPUs, and knows no TPU after v4.
  spelt_out = devices[0].platform == "cpu" or meshes.have_coordinates(devices)
  return Partitioner(
    num_partitions=None if spelt_out else size,
    model_parallel_submesh=block if spelt_out else None,
    logical_axis_rules=merged(axis_rules),
  )

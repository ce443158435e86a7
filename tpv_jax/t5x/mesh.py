"""The partitioner of T5X for a number of devices, checked before anything is compiled."""

import jax
from t5x import partitioning

from tpv_jax import meshes
from tpv_jax.checks import Size
from tpv_jax.errors import UserError
from tpv_jax.partitioning import LOGICAL_AXIS_RULES


def partitioner(
  model_parallel: Size = 1,
  batch_size: Size | None = None,
  microbatches: Size | None = None,
) -> partitioning.PjitPartitioner:
  """Returns T5X's partitioner: data parallel times `model_parallel`.

  The rules are `tpv_jax.partitioning.LOGICAL_AXIS_RULES`, in which every axis is named;
  T5X would replicate an unknown one silently.

  Args:
    model_parallel: devices over which each parameter is cut.
    batch_size: of all devices together, checked to divide.
    microbatches: parts of a batch, checked to divide; None for one.

  Raises:
    UserError: devices, batch or micro-batches that do not divide.
  """
  count = jax.device_count()
  if model_parallel < 1 or count % model_parallel:
    fits = ", ".join(str(n) for n in range(1, count + 1) if count % n == 0)
    raise UserError(
      f"MODEL_PARALLEL={model_parallel} does not divide the {count} devices here. "
      f"Choose one of {fits}."
    )
  rows = count // model_parallel * (microbatches or 1)
  if batch_size is not None and batch_size % rows:
    raise UserError(
      f"A batch of {batch_size} rows does not divide over {count // model_parallel} data-"
      f"parallel devices x {microbatches or 1} microbatches. Set BATCH_SIZE to a "
      f"multiple of {rows}."
    )
  block = _block(model_parallel)
  return partitioning.PjitPartitioner(
    num_partitions=None if block else model_parallel,
    model_parallel_submesh=block,
    logical_axis_rules=LOGICAL_AXIS_RULES,
  )


def _block(model_parallel: int) -> meshes.Block | None:
  """Returns the submesh to be spelled out for T5X, None where it finds its own.

  T5X takes `num_partitions` on GPUs, ignores it on CPUs, and knows no TPU after v4.
  """
  devices = jax.devices()
  if devices[0].platform == "cpu":
    return 1, 1, 1, model_parallel
  if meshes.have_coordinates(devices):
    return meshes.best_block(devices, model_parallel)
  return None

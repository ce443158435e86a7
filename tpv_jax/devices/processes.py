"""One run in several processes (hosts): who writes, what all agree on, who is lost.

With one process everything here is the identity. Each process builds the same batches and
gives its devices their rows. Only process 0 writes files, except for Orbax's checkpoints,
which all of them write together.
"""

import argparse
import contextlib
import functools
import os
import re
import sys
from collections.abc import Iterator, Mapping
from typing import Any

import jax
import numpy as np
from jax.experimental import multihost_utils
from jax.sharding import NamedSharding, Sharding

from tpv_jax.core import files, screen
from tpv_jax.core.errors import UserError
from tpv_jax.devices import accelerators, partitioning


def join(flags: argparse.Namespace, preemption: bool = False) -> None:
  """Joins this process to the others of the run, before JAX looks for devices.

  Without an address JAX detects the cluster by itself (Cloud TPU, SLURM, Open MPI).

  Args:
    flags: those of `flags.add`; without --multiprocess_gpu this process is alone.
    preemption: whether JAX catches SIGTERM, so that all processes can ask about it.

  Raises:
    UserError: the others did not join, or flags are missing.
  """
  cluster = (flags.coordinator_address, flags.process_count, flags.process_index)
  if not flags.multiprocess_gpu:
    if any(flag is not None for flag in (*cluster, flags.initialization_timeout)):
      raise UserError(
        "--coordinator_address, --process_count, --process_index and "
        "--initialization_timeout are read with --multiprocess_gpu only. Add it, or leave "
        "them out for a single process."
      )
    return
  jax.config.update("jax_enable_preemption_service", preemption)
  try:
    seconds = flags.initialization_timeout or 300
    jax.distributed.initialize(*cluster, initialization_timeout=seconds)
  except (ValueError, RuntimeError) as error:
    raise UserError(
      f"This process could not join the others: {' '.join(str(error).split())[:200]}. "
      "Give --coordinator_address=HOST:PORT, --process_count and --process_index to each."
    ) from error


def use_devices() -> None:
  """Says if an accelerator stays idle, and caches what JAX compiles for one."""
  say_if_unused()
  keep_compiled_programs()


@functools.cache
def say_if_unused() -> None:
  """Prints, once in a process, how to install JAX for an accelerator that it cannot use."""
  line = accelerators.unused(jax.default_backend())
  if line:
    print(line, file=sys.stderr)


def keep_compiled_programs() -> None:
  """Makes JAX cache what it compiles for an accelerator in `~/.cache/tpv_jax/compiled`.

  The environment variable JAX_COMPILATION_CACHE_DIR names another folder; if it is empty,
  nothing is cached. Programs for a CPU are cached only if it is set: JAX may load them on
  another machine, whose processor lacks instructions that they use.
  """
  if "JAX_COMPILATION_CACHE_DIR" in os.environ or jax.default_backend() == "cpu":
    return
  jax.config.update("jax_compilation_cache_dir", str(files.cache_folder() / "compiled"))


def is_writer() -> bool:
  """Returns whether this process writes the run's files."""
  return jax.process_index() == 0


def say(line: str) -> None:
  """Prints a line once, whatever the number of processes."""
  if is_writer():
    screen.say(line)


def wait_for_all(where: str) -> None:
  """Returns when every process has reached `where`."""
  if jax.process_count() > 1:
    multihost_utils.sync_global_devices(where)


def check_shared(folder: files.PathLike, name: str) -> None:
  """Raises `UserError` on all processes if one of them does not see the folder's files.

  The folder is made if it does not exist. `name` says what it is in the message.
  """
  if jax.process_count() == 1:
    return
  drawn = np.random.default_rng().integers(1, 2**31)
  path = files.to_path(folder) / f".seen_by_all_{agreed(int(drawn))}"
  if is_writer():
    path.parent.mkdir(parents=True, exist_ok=True)
    path.touch()
  wait_for_all("touched")
  seen = least(int(path.exists()))
  if is_writer():
    path.unlink()
  wait_for_all("removed")  # Otherwise another process might find the folder not empty.
  if not seen:
    raise UserError(
      f"{name} '{folder}' is not one folder for all {jax.process_count()} processes: "
      "what process 0 writes there, another does not see. Choose one on gs:// or on a "
      "file system that all hosts share."
    )


def agreed(number: int | None) -> int | None:
  """Returns the largest number that any process gives, on all of them."""
  if jax.process_count() == 1:
    return number
  return int(multihost_utils.process_allgather(np.int32(number or 0)).max()) or None


def least(number: int) -> int:
  """Returns the smallest number that any process gives, on all of them."""
  if jax.process_count() == 1:
    return number
  return int(multihost_utils.process_allgather(np.int32(number)).min())


def put(value: np.ndarray | jax.Array, sharding: Sharding) -> jax.Array:
  """Returns the array, which every process holds whole, sharded over all devices."""
  if jax.process_count() == 1:
    return jax.device_put(value, sharding)
  value = np.asarray(value)
  return jax.make_array_from_callback(value.shape, sharding, lambda index: value[index])


def put_leaf(leaf: Any, sharding: NamedSharding) -> Any:
  """Returns a frozen leaf as `put` shards it; each part of one that is quantised."""
  if isinstance(leaf, np.ndarray | jax.Array):
    return put(leaf, sharding)
  return jax.tree.map(
    lambda part: put(part, partitioning.that_fits(sharding, part.shape)), leaf
  )


def put_all(
  values: Mapping[str, np.ndarray], sharding: Sharding
) -> dict[str, jax.Array]:
  """Returns each array of the mapping as `put` shards it."""
  return {name: put(value, sharding) for name, value in values.items()}


def on_host(tree: Any) -> Any:
  """Returns the tree's arrays as NumPy arrays, whole on every process.

  All of them call it together; an array that is sharded over their devices is gathered.
  """

  def whole(leaf: Any) -> Any:
    if not isinstance(leaf, jax.Array) or leaf.is_fully_addressable:
      return leaf
    if leaf.is_fully_replicated:
      return leaf.addressable_data(0)
    return multihost_utils.process_allgather(leaf, tiled=True)

  return jax.device_get(jax.tree.map(whole, tree))


@contextlib.contextmanager
def one_clear_line_if_one_is_lost() -> Iterator[None]:
  """Turns the error of a collective with a lost process into one clear line."""
  try:
    yield
  except jax.errors.JaxRuntimeError as error:
    if jax.process_count() == 1 or _is_out_of_memory(error):
      raise
    raise UserError(
      f"Process {jax.process_index()} of {jax.process_count()} cannot go on: another "
      f"process ended or cannot be reached ({' '.join(str(error).split())[:160]}). Start "
      "all of them again with the same command; the run continues from its newest "
      "checkpoint."
    ) from error


@contextlib.contextmanager
def one_clear_line_if_memory_is_short(advice: str) -> Iterator[None]:
  """Turns the error of a device or host without enough memory into one clear line.

  Args:
    advice: what to do: "Lower BATCH_SIZE."
  """
  try:
    yield
  except (jax.errors.JaxRuntimeError, MemoryError) as error:
    if not _is_out_of_memory(error):
      raise
    where = "This machine" if isinstance(error, MemoryError) else "The device"
    text = " ".join(str(error).split())
    text = re.sub("^(RESOURCE_EXHAUSTED|INTERNAL): ", "", text)[:160]
    raise UserError(
      f"{where} has too little memory ({text.rstrip('.')}). {advice}"
    ) from error


def _is_out_of_memory(error: BaseException) -> bool:
  # XLA's CPU client calls it INTERNAL where a call is dispatched, CUDA's driver
  # CUDA_ERROR_OUT_OF_MEMORY.
  told = re.search("RESOURCE_EXHAUSTED|out.of.memory", str(error), re.IGNORECASE)
  return isinstance(error, MemoryError) or told is not None

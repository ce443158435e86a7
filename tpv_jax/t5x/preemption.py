"""SIGTERM, by which a machine that is taken away says so: training saves and ends.

T5X saves what a trainer has when that raises `PreemptionError`, but nothing in T5X raises
it. `training.Trainer` does, after the step that `Notice` names.

Such a save lies between two evaluations, and T5X counts its evaluations and saves from the
step at which a run goes on. So `Initializer` tells T5X the step of the last of them
(`last_boundary`), and the trainer leaves out the steps that are done: a run that went on
evaluates and saves where an unbroken one does.
"""

import os
import signal
import threading
from typing import Any

import gin
import jax
import numpy as np
from jax.experimental import multihost_utils
from jax.sharding import Mesh

from tpv_jax.devices import partitioning, processes


class Notice:
  """Whether SIGTERM came; JAX passes it on from one process to all of them."""

  def __init__(self) -> None:
    """Has the first SIGTERM noted; a second one acts at once."""
    self._came = False
    self._asked = 0
    self._catches = (
      not jax.distributed.is_initialized()  # Otherwise JAX catches it.
      and threading.current_thread() is threading.main_thread()
      and signal.getsignal(signal.SIGTERM) is signal.SIG_DFL
    )
    if self._catches:
      signal.signal(signal.SIGTERM, self._note)

  def came(self) -> bool:
    """Returns whether to end now, the same on all processes; ask after each step."""
    self._asked += 1
    if jax.distributed.is_initialized():
      # Not by the step, or a run that goes on would miss what came before its first one:
      # JAX then waits for the number 1.
      self._came |= multihost_utils.reached_preemption_sync_point(self._asked)
    return self._came

  def close(self) -> None:
    """Has SIGTERM end the process again."""
    if self._catches:
      signal.signal(signal.SIGTERM, signal.SIG_DFL)

  def _note(self, number: int, frame: Any) -> None:
    self._came = True
    os.write(2, b"stopping after this step; once more to stop at once\n")
    self.close()


def at_step(state: Any, step: int, mesh: Mesh) -> Any:
  """Returns a state of T5X that says it is at `step`, and is the same otherwise."""
  told = np.asarray(step, state.step.dtype)
  return state.replace_step(processes.put(told, partitioning.replicated(mesh)))


def last_boundary(step: int) -> int:
  """Returns the last step, up to `step`, at which an unbroken run evaluates or saves.

  By the periods that gin binds for `t5x.train`; `step` itself where it is the last one.
  """
  total = _bound("__main__.train.total_steps")
  if total is None or step >= total or _bound("__main__.train.relative_steps"):
    return step
  names = (
    "__main__.train.eval_period",
    "__main__.train.gc_period",
    "t5x.utils.SaveCheckpointConfig.period",
  )
  periods = [period for period in map(_bound, names) if period]
  return step - step % min(periods, default=1)


def is_evaluated(step: int) -> bool:
  """Returns whether an unbroken run evaluates at `step`: by its period, and at its end."""
  period = _bound("__main__.train.eval_period")
  at_the_end = step == _bound("__main__.train.total_steps")
  return step > 0 and bool(period) and (at_the_end or step % period == 0)


def _bound(name: str) -> Any:
  """Returns what gin binds to a parameter, None without a binding."""
  try:
    value = gin.query_parameter(name)
  except ValueError:
    return None
  of_macro = isinstance(value, gin.config.ConfigurableReference)
  return value.scoped_configurable_fn() if of_macro else value

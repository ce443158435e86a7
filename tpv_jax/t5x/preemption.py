"""SIGTERM, which announces preemption: training saves its state and ends.

T5X saves a trainer's state when the trainer raises `PreemptionError`, but nothing in T5X
raises it. `training.Trainer` does, after the step at which `Notice.came` is true.

Such a save lies between two evaluations, and T5X counts the steps to evaluations and saves
from the step at which a run continues. So `Initializer` gives T5X the step of the last
evaluation or save (`last_boundary`), and the trainer skips the steps that are done: a
continued run evaluates and saves at the steps at which an unbroken one does.
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
    """Notes the first SIGTERM; a second one acts at once."""
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
    """Returns whether to end now, the same on all processes; call it after each step."""
    self._asked += 1
    if jax.distributed.is_initialized():
      # Counted from 1, not by the step: for a SIGTERM before a continued run's first step,
      # JAX waits for the number 1.
      self._came |= multihost_utils.reached_preemption_sync_point(self._asked)
    return self._came

  def close(self) -> None:
    """Restores SIGTERM's default action."""
    if self._catches:
      signal.signal(signal.SIGTERM, signal.SIG_DFL)

  def _note(self, number: int, frame: Any) -> None:
    self._came = True
    os.write(2, b"stopping after this step; once more to stop at once\n")
    self.close()


def at_step(state: Any, step: int, mesh: Mesh) -> Any:
  """Returns a T5X state with its step replaced by `step`."""
  told = np.asarray(step, state.step.dtype)
  return state.replace_step(processes.put(told, partitioning.replicated(mesh)))


def last_boundary(step: int) -> int:
  """Returns the last step, up to `step`, at which an unbroken run evaluates or saves.

  The periods are those that gin binds for `t5x.train`; the run's last step is returned as
  it is.
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
  """Returns whether an unbroken run evaluates at `step`, by its period or at its end."""
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

"""Traces of some training steps, for TensorBoard's profile page."""

from collections.abc import Iterator, Sequence
from typing import Any

import jax
from absl import logging

from tpv_jax.core import files
from tpv_jax.core.errors import UserError


class Profile:
  """Traces some steps of a run, from a first to a last one, on each of its hosts.

  JAX writes the trace to `folder`/plugins/profile, where TensorBoard finds it if its
  logdir is `folder`.
  """

  def __init__(self, steps: Sequence[int], folder: files.PathLike):
    """Takes the first and the last step, counted from 1.

    Raises:
      UserError: there are not two, or the last is before the first.
    """
    if len(steps) != 2 or steps[1] < steps[0]:
      raise UserError(
        f"PROFILE_STEPS is {list(steps)}; give the first and the last step to trace, such "
        "as [20, 25]."
      )
    self.first, self.last = steps
    self.folder = str(folder)
    self._begun = False

  def watch(self, batches: Iterator[Any], done: int) -> Iterator[Any]:
    """Yields the batches of the steps after `done`, and starts and stops the trace."""
    for step, batch in enumerate(batches, done + 1):
      if self._begun and step > self.last:
        self.stop()
      if not self._begun and self.first <= step <= self.last:
        _finish_what_was_begun()
        jax.profiler.start_trace(self.folder)
        self._begun = True
      yield batch

  def stop(self) -> None:
    """Writes the trace, if one was begun."""
    if self._begun:
      self._begun = False
      _finish_what_was_begun()
      jax.profiler.stop_trace()
      logging.info("The trace of PROFILE_STEPS is in %s/plugins/profile", self.folder)


def _finish_what_was_begun() -> None:
  """Waits for all devices, each of which executes its work in order."""
  jax.block_until_ready([jax.device_put(0, one) + 0 for one in jax.local_devices()])

"""Ctrl-C and SIGTERM, at which a run saves its state before it ends."""

import contextlib
import signal
import threading
from collections.abc import Callable, Iterator
from typing import Any

from tpv_jax.core import screen
from tpv_jax.core.errors import Interrupted
from tpv_jax.devices import processes


class Stopped(Interrupted):
  """A signal asked the run to stop; its state is saved."""


def told(number: int, when: str) -> str:
  """Returns what a run says that a signal stopped: `when` is 'after step 5'."""
  name = signal.Signals(number).name
  return f"stopped by {name} {when}; the same command continues"


_more_follows = False
"""Whether other work comes after the one that signals are noted in (`more_follows`)."""


@contextlib.contextmanager
def more_follows() -> Iterator[None]:
  """A context in which a signal also stops what comes after the run that it found ending."""
  global _more_follows
  before, _more_follows = _more_follows, True
  try:
    yield
  finally:
    _more_follows = before


class stop_signals:  # noqa: N801 (used as a function)
  """A context in which the first SIGINT or SIGTERM is noted and a second acts at once.

  Raises:
    Stopped: at its end, if a signal was noted, the work was done nevertheless, and more
      follows.
  """

  def __enter__(self) -> Callable[[], int | None]:
    received: list[int] = []
    self._received = received
    self._previous: dict[int, Any] = {}

    def note(number: int, frame: Any) -> None:
      received.append(number)
      screen.say("stopping after this call; once more to stop at once")
      signal.signal(number, self._previous[number])

    if threading.current_thread() is threading.main_thread():
      for number in (signal.SIGINT, signal.SIGTERM):
        self._previous[number] = signal.signal(number, note)
    return lambda: received[0] if received else None

  def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
    for number, handler in self._previous.items():
      signal.signal(number, handler)
    if kind is not None or not _more_follows:
      return
    if found := processes.agreed(self._received[0] if self._received else None):
      raise Stopped(found, told(found, "at the end of a run"))

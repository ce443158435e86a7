"""Ctrl-C and SIGTERM, at which a run saves its state before it ends."""

import signal
import threading
from collections.abc import Callable
from typing import Any

from tpv_jax.core import screen
from tpv_jax.core.errors import Interrupted


class Stopped(Interrupted):
  """A signal asked the run to stop; its state is saved."""


class stop_signals:  # noqa: N801 (used as a function)
  """A context in which the first SIGINT or SIGTERM is noted and a second acts at once."""

  def __enter__(self) -> Callable[[], int | None]:
    received: list[int] = []
    self._previous: dict[int, Any] = {}

    def note(number: int, frame: Any) -> None:
      received.append(number)
      screen.say("stopping after this call; once more to stop at once")
      signal.signal(number, self._previous[number])

    if threading.current_thread() is threading.main_thread():
      for number in (signal.SIGINT, signal.SIGTERM):
        self._previous[number] = signal.signal(number, note)
    return lambda: received[0] if received else None

  def __exit__(self, *_: object) -> None:
    for number, handler in self._previous.items():
      signal.signal(number, handler)

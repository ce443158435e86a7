"""Where a measurement waits until the processes beside it have started.

`accelerator.py` starts several commands of this folder side by side, and lets one after the
other pass; without it nothing waits. Imports the standard library.
"""

import os
import pathlib
import time

VARIABLE = "TPV_BENCHMARK_GATE"
"""The path of a gate: a process makes PATH.ready, and passes when PATH.open exists."""


def wait() -> None:
  """Returns when this process may begin to measure."""
  path = os.environ.get(VARIABLE)
  if not path:
    return
  pathlib.Path(f"{path}.ready").touch()
  while not os.path.exists(f"{path}.open"):
    time.sleep(0.02)

"""Which kernels of a computation take the device's time, by JAX's profiler."""

import collections
import pathlib
import tempfile
import time
from collections.abc import Callable
from typing import Any

import jax

SHOWN = 5


def of(run: Callable[[], Any]) -> dict[str, Any]:
  """Returns how busy the device is during a call, and its largest kernels.

  A kernel's time is summed over all of its runs; kernels that overlap count once in
  `busy_share`, the share of the call in which at least one of them ran.

  Args:
    run: returns when the device has finished; it has run before, so it compiles nothing.
  """
  with tempfile.TemporaryDirectory() as folder:
    with jax.profiler.trace(folder):
      began = time.perf_counter()
      run()
      seconds = time.perf_counter() - began
    (path,) = pathlib.Path(folder).rglob("*.xplane.pb")
    return summary(jax.profiler.ProfileData.from_file(str(path)), seconds)


def summary(data: Any, seconds: float) -> dict[str, Any]:
  """Returns what `of` returns, of a profile: of its events with an operation of XLA."""
  planes = list(data.planes)
  device = [plane for plane in planes if plane.name.startswith("/device:")]
  taken: collections.Counter[str] = collections.Counter()
  runs: collections.Counter[str] = collections.Counter()
  spans = []
  for plane in device or planes:
    for line in plane.lines:
      for event in line.events:
        stats = {name: value for name, value in event.stats if name == "hlo_op"}
        # A TPU names its operations by their line, and nests others in them.
        if stats or line.name == "XLA Ops":
          taken[event.name] += event.duration_ns
          runs[event.name] += 1
          spans.append((event.start_ns, event.start_ns + event.duration_ns))
  total = sum(taken.values())
  return {
    "seconds": round(seconds, 5),
    "busy_share": round(_union(spans) / 1e9 / seconds, 4),
    "kernels": len(spans),
    "largest": [
      {
        "name": name[:120],
        "share": round(spent / total, 4),
        "milliseconds": round(spent / 1e6, 3),
        "runs": runs[name],
      }
      for name, spent in taken.most_common(SHOWN)
    ],
  }


def _union(spans: list[tuple[float, float]]) -> float:
  """Returns the length of the union of intervals."""
  covered, end = 0.0, float("-inf")
  for start, stop in sorted(spans):
    covered += max(0.0, stop - max(start, end))
    end = max(end, stop)
  return covered

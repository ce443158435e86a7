"""What both sides of `against_peft.py` share: a job, a pipe to the parent, memory.

A side is a separate process for one job, so that its memory can be measured. It reads the
job from the file that its argument names, and then answers commands, one line of JSON
each, until it is told to stop. Imports the standard library and NumPy.
"""

import contextlib
import json
import os
import pathlib
import sys
import time
from collections.abc import Callable
from typing import Any, Protocol

import numpy as np

MEBIBYTE = 2**20


class Trainer(Protocol):
  """The object that a side builds from a job."""

  device: str
  versions: dict[str, str]
  notes: dict[str, Any]

  def turn(
    self, sources: np.ndarray, targets: np.ndarray
  ) -> tuple[list[float], list[tuple[int, int, int]]]:
    """Trains on groups [groups, B, T] and [groups, B, L], each one step of one prompt.

    Returns the loss of each group, and (rows, joined positions, targets) of each call. In a
    decoder-only model the joined positions are all, and the targets are the positions whose
    logits are computed.
    """

  def product(self, size: int, times: int) -> None:
    """Computes a matrix product [size, size] `times` times, and waits for it."""

  def device_peak(self) -> int | None:
    """Returns the peak of live bytes on the device; None on a CPU."""


def candidates(prompts: np.ndarray, coefficients: list[float]) -> np.ndarray:
  """Returns start + c (tuned - start), [tasks, coefficients, P, D], for both sides.

  Args:
    prompts: the start, then the tuned prompt of each task, [1 + tasks, P, D].
    coefficients: of each task's vector.
  """
  vectors = (prompts[1:] - prompts[0])[:, None]
  scaled = np.asarray(coefficients, np.float32)[:, None, None] * vectors
  return prompts[0] + scaled


def serve(build: Callable[[dict[str, Any]], Trainer]) -> None:
  """Runs the job that the command line names, one command after the other."""
  job = json.loads(pathlib.Path(sys.argv[1]).read_text())
  if job["threads"]:
    # Both sides get the same cores; neither library can take more.
    cores = sorted(os.sched_getaffinity(0))[: job["threads"]]
    os.sched_setaffinity(0, cores)
  # Libraries may print to the standard output, so it is not used as the pipe.
  pipe = os.fdopen(os.dup(1), "w", buffering=1)
  os.dup2(2, 1)

  def answer(**content: Any) -> None:
    pipe.write(json.dumps(content) + "\n")

  try:
    began = time.perf_counter()
    trainer = build(job)
    if job["examples"]:
      with np.load(job["examples"]) as file:
        sources, targets = file["sources"], file["targets"]
    answer(
      seconds=time.perf_counter() - began,
      device=trainer.device,
      versions=trainer.versions,
      notes=trainer.notes,
      loaded_mebibytes=status_mebibytes("VmRSS"),
    )
    for line in sys.stdin:
      command = json.loads(line)
      if command["do"] == "turn":
        number = command["round"]
        began, used = time.perf_counter(), time.process_time()
        losses, calls = trainer.turn(sources[number], targets[number])
        seconds, used = time.perf_counter() - began, time.process_time() - used
        answer(seconds=seconds, processor_seconds=used, losses=losses, calls=calls)
      elif command["do"] == "product":
        size, times = command["size"], command["times"]
        trainer.product(size, 1)
        began = time.perf_counter()
        trainer.product(size, times)
        answer(flops_per_s=2 * size**3 * times / (time.perf_counter() - began))
      elif command["do"] == "forget peak":
        forget_peak()
        answer(compile_peak_mebibytes=status_mebibytes("VmHWM"))
      else:
        peak = trainer.device_peak()
        answer(
          peak_mebibytes=status_mebibytes("VmHWM"),
          device_peak_mebibytes=None if peak is None else round(peak / MEBIBYTE),
        )
        return
  except Exception as error:  # The parent prints it; the log has the traceback.
    text = " ".join(str(error).split())[:400]
    answer(error=f"{type(error).__name__}: {text}")
    raise


def status_mebibytes(name: str) -> int | None:
  """Returns a value of Linux's /proc/self/status; None elsewhere."""
  try:
    lines = pathlib.Path("/proc/self/status").read_text().splitlines()
  except OSError:
    return None
  found = [line.split()[1] for line in lines if line.startswith(f"{name}:")]
  return int(found[0]) // 1024 if found else None


def forget_peak() -> None:
  """Resets the peak of resident memory, so that compiling does not count."""
  with contextlib.suppress(OSError):
    pathlib.Path("/proc/self/clear_refs").write_text("5")

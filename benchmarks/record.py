"""What every results file has: how it was made, and quartiles of the measurements.

Imports the standard library and NumPy.
"""

import datetime
import importlib.metadata
import os
import pathlib
import platform
import subprocess
from collections.abc import Iterable
from typing import Any

import numpy as np


def made(command: str) -> dict[str, Any]:
  """Returns what is needed to repeat a command, and how busy the machine is."""
  return {
    "command": command,
    "date": datetime.datetime.now(datetime.UTC).isoformat(timespec="minutes"),
    "commit": commit(),
    "machine": {
      "platform": platform.platform(),
      "cpus": os.cpu_count(),
      "load_average": os.getloadavg(),
    },
  }


def versions(packages: Iterable[str]) -> dict[str, str]:
  """Returns the versions of Python and of each package, or 'not installed'."""
  found = {"python": platform.python_version()}
  for name in packages:
    try:
      found[name] = importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
      found[name] = "not installed"
  return found


def quartiles(values: Any) -> dict[str, float]:
  """Returns median, quartiles, minimum and maximum (NumPy's linear interpolation)."""
  names = ("minimum", "lower_quartile", "median", "upper_quartile", "maximum")
  found = np.quantile(np.asarray(values, np.float64), (0, 0.25, 0.5, 0.75, 1))
  return {name: float(f"{value:.5g}") for name, value in zip(names, found, strict=True)}


def commit() -> str | None:
  """Returns the current commit, with '-dirty' if files differ; None without git."""
  folder = str(pathlib.Path(__file__).parent)
  command = ["git", "-C", folder, "describe", "--always", "--dirty"]
  try:
    done = subprocess.run(command, capture_output=True, text=True, check=True)
  except (OSError, subprocess.CalledProcessError):
    return None
  return done.stdout.strip()

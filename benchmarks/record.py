"""What every results file says of how it was made: command, commit, machine, versions.

Imports the standard library only.
"""

import datetime
import importlib.metadata
import os
import pathlib
import platform
import subprocess
from collections.abc import Iterable
from typing import Any


def made(command: str) -> dict[str, Any]:
  """Returns what is needed to run a command again, and how busy the machine is now."""
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
  """Returns the version of Python and of each package, as far as it is installed."""
  found = {"python": platform.python_version()}
  for name in packages:
    try:
      found[name] = importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
      found[name] = "not installed"
  return found


def commit() -> str | None:
  """Returns the commit that was measured, '-dirty' if files differ; None without git."""
  folder = str(pathlib.Path(__file__).parent)
  command = ["git", "-C", folder, "describe", "--always", "--dirty"]
  try:
    done = subprocess.run(command, capture_output=True, text=True, check=True)
  except (OSError, subprocess.CalledProcessError):
    return None
  return done.stdout.strip()

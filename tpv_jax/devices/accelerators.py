"""What a machine has beside its CPU, and whether the installed JAX can use it.

Looks at files of the system only, and does not import JAX.
"""

import importlib.metadata
import importlib.util
import os
import pathlib
import re
import sys
from collections.abc import Mapping

NVIDIA, TPU = "an NVIDIA GPU", "a TPU"

_NVIDIA_FILES = ("dev/nvidia0", "dev/nvidiactl", "usr/lib/wsl/lib/libcuda.so.1")
"""On a machine of its own, in a container, under Windows, where GPUs of all vendors share
one device, but only NVIDIA's driver brings this library."""

_GOOGLE = "0x1ae0"
"""The vendor of a TPU's PCI device, and of Google Cloud's network and disk devices."""

_DRIVER_OF_CUDA_13 = 580
"""The oldest NVIDIA driver that runs CUDA 13."""


def found(root: pathlib.Path = pathlib.Path("/")) -> str | None:
  """Returns what the machine has, `NVIDIA` or `TPU`; None if it has neither.

  Args:
    root: the folder that holds `dev`, `sys`, `proc` and `usr`.
  """
  if any((root / name).exists() for name in _NVIDIA_FILES):
    return NVIDIA
  chips = [*root.glob("dev/accel[0-9]*"), *root.glob("dev/vfio/[0-9]*")]
  vendors = {
    path.read_text().strip() for path in root.glob("sys/bus/pci/devices/*/vendor")
  }
  return TPU if chips and _GOOGLE in vendors else None


def unused(
  backend: str,
  root: pathlib.Path = pathlib.Path("/"),
  environment: Mapping[str, str] = os.environ,
) -> str | None:
  """Returns a line about an accelerator that JAX leaves idle; None if there is none.

  Who sets JAX_PLATFORMS has chosen, and who hides the GPUs (CUDA_VISIBLE_DEVICES), too.

  Args:
    backend: where JAX computes, `jax.default_backend()`.
    root: see `found`.
    environment: the process's.
  """
  hidden = environment.get("CUDA_VISIBLE_DEVICES") in ("", "-1")
  if backend != "cpu" or environment.get("JAX_PLATFORMS") or hidden:
    return None
  there = found(root)
  if there is None:
    return None
  if there == TPU:
    plugins, platform, extra = ["libtpu"], "tpu", "tpu"
  else:
    platform, extra = "cuda", _cuda(root)
    plugins = ["jax_cuda12_plugin", f"jax_{extra}_plugin"]  # New drivers run both.
  line = f"This machine has {there}, and the installed JAX computes on the CPU."
  if any(map(importlib.util.find_spec, plugins)):
    check = f"JAX_PLATFORMS={platform} {sys.executable} -c 'import jax; jax.devices()'"
    return f"{line} To see why it does not start: {check}"
  version = importlib.metadata.version("jax")
  return f"{line} Install: {sys.executable} -m pip install 'jax[{extra}]=={version}'"


def _cuda(root: pathlib.Path) -> str:
  """Returns the extra of JAX for the newest CUDA that the driver runs."""
  path = root / "proc/driver/nvidia/version"
  text = path.read_text() if path.exists() else ""
  driver = re.search(r"\s(\d+)\.\d+", text)
  old = driver is not None and int(driver[1]) < _DRIVER_OF_CUDA_13
  return "cuda12" if old else "cuda13"

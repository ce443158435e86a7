"""What a machine has beside its CPU, read from a folder in place of the system's root."""

import importlib.metadata
import sys
import types

import jax
import pytest

from tpv_jax import cli
from tpv_jax.devices import accelerators, processes
from tpv_jax.settings import calling

DRIVER = "NVRM version: NVIDIA UNIX Open Kernel Module for x86_64  {}  Release Build\n"
GPUS = ["dev__nvidia0", "dev__nvidiactl", "usr__lib__wsl__lib__libcuda.so.1"]


@pytest.fixture
def machine(tmp_path):
  """Returns a function that makes files of the system in a folder."""

  def make(**contents):
    for name, text in contents.items():
      path = tmp_path / name.replace("__", "/")
      path.parent.mkdir(parents=True, exist_ok=True)
      path.write_text(text)
    return tmp_path

  return make


def installed_by(extra):
  version = importlib.metadata.version("jax")
  return f"{sys.executable} -m pip install 'jax[{extra}]=={version}'"


def test_a_machine_without_an_accelerator_says_nothing(machine):
  root = machine(sys__bus__pci__devices__0__vendor="0x1ae0\n")  # Google's disks.
  assert accelerators.found(root) is None
  assert accelerators.unused("cpu", root, {}) is None


def test_a_gpu_of_another_vendor_under_windows_says_nothing(machine):
  assert accelerators.found(machine(dev__dxg="")) is None


@pytest.mark.parametrize("device", GPUS)
def test_a_gpu_that_jax_cannot_use_comes_with_the_command_that_installs_it(
  machine, device
):
  root = machine(**{device: ""})
  line = accelerators.unused("cpu", root, {})
  assert line == (
    "This machine has an NVIDIA GPU, and the installed JAX computes on the CPU. "
    f"Install: {installed_by('cuda13')}"
  )


@pytest.mark.parametrize(
  ("driver", "extra"),
  [("580.95.05", "cuda13"), ("575.57.08", "cuda12"), ("535.54.03", "cuda12")],
)
def test_the_driver_says_which_cuda(machine, driver, extra):
  root = machine(dev__nvidia0="", proc__driver__nvidia__version=DRIVER.format(driver))
  assert accelerators.unused("cpu", root, {}).endswith(installed_by(extra))


@pytest.mark.parametrize("device", ["dev__accel0", "dev__vfio__0"])
def test_a_tpu_is_a_device_of_google_with_chips(machine, device):
  root = machine(**{device: ""})
  assert accelerators.found(root) is None  # vfio passes other devices, too.
  root = machine(sys__bus__pci__devices__0__vendor="0x1ae0\n")
  assert accelerators.unused("cpu", root, {}).endswith(installed_by("tpu"))


def test_who_uses_it_or_chose_otherwise_is_told_nothing(machine):
  root = machine(dev__nvidia0="")
  assert accelerators.unused("gpu", root, {}) is None
  assert accelerators.unused("cpu", root, {"JAX_PLATFORMS": "cpu"}) is None
  assert accelerators.unused("cpu", root, {"CUDA_VISIBLE_DEVICES": ""}) is None
  assert accelerators.unused("cpu", root, {"CUDA_VISIBLE_DEVICES": "0"})


@pytest.mark.parametrize("plugin", ["jax_cuda12_plugin", "jax_cuda13_plugin"])
def test_where_jax_for_it_is_installed_the_line_says_how_to_see_what_is_wrong(
  machine, monkeypatch, plugin
):
  """JAX for an older CUDA than the driver's runs, too, and one beside it would disturb it."""
  monkeypatch.setattr(
    accelerators.importlib.util, "find_spec", lambda name: name == plugin or None
  )
  line = accelerators.unused("cpu", machine(dev__nvidia0=""), {})
  assert "pip" not in line
  assert line.endswith(
    f"JAX_PLATFORMS=cuda {sys.executable} -c 'import jax; jax.devices()'"
  )
  old = machine(proc__driver__nvidia__version=DRIVER.format("535.54.03"))
  line = accelerators.unused("cpu", old, {})
  assert line.endswith(installed_by("cuda12")) == (plugin == "jax_cuda13_plugin")


@pytest.mark.parametrize("verb", ["train", "bank", "eval", "study"])
def test_a_verb_says_it_once_on_the_standard_error(machine, monkeypatch, capsys, verb):
  root = machine(dev__nvidia0="")
  found = accelerators.unused
  monkeypatch.setattr(accelerators, "unused", lambda backend: found(backend, root, {}))
  monkeypatch.setattr(jax, "default_backend", lambda: "cpu")
  ready = types.SimpleNamespace(lines=(), run=lambda: None)
  monkeypatch.setattr(calling, "prepare", lambda *_, **__: ready)
  processes.say_if_unused.cache_clear()
  try:
    for _ in range(2):
      assert cli.main([verb]) == 0
  finally:
    processes.say_if_unused.cache_clear()
  written = capsys.readouterr()
  assert written.err.count("This machine has an NVIDIA GPU") == 1
  assert not written.out

"""An EPT prompt that real T5X cuts over devices: where it lies, what moves, its numbers."""

import os
import pathlib
import subprocess
import sys


def test_an_ept_prompt_and_a_bank_are_cut_over_eight_devices(t5x):
  flags = os.environ.get("XLA_FLAGS", "") + " --xla_force_host_platform_device_count=8"
  file = pathlib.Path(__file__).parent / "on_eight_devices.py"
  done = subprocess.run(
    [sys.executable, "-m", "pytest", "-q", file],
    env={**os.environ, "XLA_FLAGS": flags},
    capture_output=True,
    text=True,
    check=False,
  )
  assert done.returncode == 0, done.stdout[-3000:]
  assert "8 passed" in done.stdout

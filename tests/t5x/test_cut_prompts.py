"""An EPT prompt that real T5X cuts over devices: where it lies, what moves, its numbers."""

import pathlib

import device_programs


def test_an_ept_prompt_and_a_bank_are_cut_over_eight_devices(t5x):
  file = pathlib.Path(__file__).parent / "on_eight_devices.py"
  printed = device_programs.on_eight_devices("-m", "pytest", "-q", file)
  assert "11 passed" in printed

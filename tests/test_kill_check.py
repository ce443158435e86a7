"""A few kills of `make kill-check`, which kills every job that writes."""

import pathlib
import subprocess
import sys


def test_a_few_kills_of_a_job_leave_nothing_wrong_and_nothing_behind():
  script = pathlib.Path(__file__).with_name("kill_check.py")
  command = [sys.executable, str(script), "--kills", "6", "prepare"]
  done = subprocess.run(command, capture_output=True, text=True, check=False)
  assert done.returncode == 0, done.stdout + done.stderr
  assert "nothing wrong, nothing left behind" in done.stdout

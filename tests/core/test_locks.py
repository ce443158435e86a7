"""A lock has one holder, and is free when that one has ended, however it ended."""

import errno
import fcntl
import json
import os
import subprocess
import sys

import pytest

from tpv_jax.core import locks
from tpv_jax.core.errors import UserError


def test_who_comes_second_is_told_who_holds_the_lock_and_gets_it_afterwards(tmp_path):
  with locks.held(tmp_path / ".lock", "The run folder 'x'"):
    told = rf"The run folder 'x' is in use by process {os.getpid()} on \S+ since "
    with (
      pytest.raises(UserError, match=told),
      locks.held(tmp_path / ".lock", "The run folder 'x'"),
    ):
      pass
  with locks.held(tmp_path / ".lock", "The run folder 'x'"):
    pass
  assert os.listdir(tmp_path) == []


def test_a_killed_process_holds_no_lock(tmp_path):
  code = (
    "import os, signal; from tpv_jax.core import locks\n"
    "with locks.held('.lock', 'x'): os.kill(os.getpid(), signal.SIGKILL)"
  )
  killed = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, check=False)
  assert killed.returncode == -9
  assert os.listdir(tmp_path) == [".lock"]
  with locks.held(tmp_path / ".lock", "x"):
    assert json.loads((tmp_path / ".lock").read_text())["process"] == os.getpid()
  assert os.listdir(tmp_path) == []


def test_who_locked_a_file_that_its_holder_removed_locks_the_new_one(
  tmp_path, monkeypatch
):
  path, real, opened = tmp_path / ".lock", fcntl.flock, []

  def flock(handle, operation):
    real(handle, operation)
    if not opened:  # The holder ended between the opening and the locking.
      path.unlink()
    opened.append(handle)

  monkeypatch.setattr(fcntl, "flock", flock)
  with locks.held(path, "x"):
    assert len(opened) == 2
    assert path.exists()


@pytest.fixture
def no_locks(monkeypatch):
  """A file system that has none."""

  def refuse(*_):
    raise OSError(errno.ENOLCK, "No locks available")

  monkeypatch.setattr(fcntl, "flock", refuse)
  monkeypatch.setattr(locks, "RENEWED_S", 0.01)


def test_without_locks_a_lease_that_is_renewed_is_respected(tmp_path, no_locks, capsys):
  path = tmp_path / ".lock"
  with locks.held(path, "X"):
    told = f"X is in use by process {os.getpid()} on "
    with pytest.raises(UserError, match=told), locks.held(path, "X"):
      pass
    assert "waiting up to 60 s" in capsys.readouterr().err
  assert os.listdir(tmp_path) == []


def test_a_lease_that_nobody_renews_is_taken_over(tmp_path, no_locks, monkeypatch):
  monkeypatch.setattr(locks, "STALE_S", 0.1)
  path = tmp_path / ".lock"
  path.write_text('{"host": "gone", "process": 7, "since": "yesterday", "lease": "a"}')
  with locks.held(path, "X"):
    assert json.loads(path.read_text())["process"] == os.getpid()
  assert os.listdir(tmp_path) == []

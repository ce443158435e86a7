"""Lines that are typed or piped, and what a person or a pipe sees of the answers."""

import fcntl
import io
import os
import pty
import select
import signal
import subprocess
import sys
import termios

import pytest

from tpv_jax.core.errors import UserError
from tpv_jax.evaluation import terminal

ECHO = """
import sys
from tpv_jax.core import errors
from tpv_jax.evaluation import terminal

def main():
  for line in terminal.lines():
    terminal.show(iter(line.upper().replace("/", "\\n")))
  print("after", file=sys.stderr)

sys.exit(errors.run_command(main))
"""
"""Answers each line by its capitals, a letter at a time, '/' being a line end."""


def piped(monkeypatch, content):
  monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(content)))
  return list(terminal.lines())


@pytest.mark.parametrize(
  ("content", "lines"),
  [
    (b"a\nb\n", ["a", "b"]),
    (b"a\r\n\nb", ["a", "", "b"]),
    ("\ufeffna\u00efve\n".encode(), ["na\u00efve"]),
    ("a\u2028b\x85c\n".encode(), ["a\u2028b\x85c"]),
    (b"", []),
  ],
)
def test_each_line_of_a_pipe_is_one_as_in_a_file(monkeypatch, content, lines):
  assert piped(monkeypatch, content) == lines


@pytest.mark.parametrize("content", ["ok\ncaf\u00e9".encode("latin-1"), b"ok\na\0b\n"])
def test_a_line_that_is_no_text_is_refused_by_its_number(monkeypatch, content):
  with pytest.raises(UserError, match="Line 2 of standard input is not UTF-8"):
    piped(monkeypatch, content)


def test_in_a_pipe_an_answer_is_one_line_without_control_characters(capsys):
  terminal.show(["one\ntwo", " \x1b[31mred"])
  terminal.show([])
  assert capsys.readouterr().out == "one\\ntwo \\x1b[31mred\n\n"


def test_an_answer_that_is_interrupted_ends_its_line(capsys):
  def parts():
    yield "half"
    raise KeyboardInterrupt

  with pytest.raises(KeyboardInterrupt):
    terminal.show(parts())
  assert capsys.readouterr().out == "half\n"


def take_terminal():
  """Makes the pseudo terminal the process's own, which it can interrupt."""
  fcntl.ioctl(0, termios.TIOCSCTTY, 0)
  signal.signal(signal.SIGINT, signal.SIG_DFL)  # A job in the background ignores it.


class Person:
  """Types at a pseudo terminal on which a script runs, and reads what is shown."""

  def __init__(self, script):
    self.handle, other = pty.openpty()
    self.process = subprocess.Popen(
      [sys.executable, "-c", script],
      stdin=other,
      stdout=other,
      stderr=other,
      start_new_session=True,
      env={**os.environ, "TERM": "dumb", "PYTHONIOENCODING": "utf-8"},
      preexec_fn=take_terminal,
    )
    os.close(other)

  def read_until(self, text, seconds=60):
    """Returns what is shown up to a text."""
    shown = ""
    while text not in shown:
      ready, _, _ = select.select([self.handle], [], [], seconds)
      assert ready, f"waited in vain for {text!r} after {shown!r}"
      try:
        shown += os.read(self.handle, 1024).decode()
      except OSError:  # Everything is closed.
        break
    return shown

  def type(self, keys):
    os.write(self.handle, keys.encode())

  def end(self):
    """Returns what else is shown, and the exit code."""
    shown = self.read_until("never shown")
    return shown, self.process.wait(60)


@pytest.fixture
def person():
  one = Person(ECHO)
  yield one
  one.process.kill()
  os.close(one.handle)


def test_a_person_is_asked_and_answered_until_ctrl_d(person):
  person.read_until(terminal.ASK)
  person.type("hello/you\r")
  # Line ends are kept at a terminal, where the answer is read by a person.
  assert "HELLO\r\nYOU\r\n" in person.read_until(terminal.ASK)
  person.type("\r")  # An empty line is asked for again.
  assert "\n\n" not in person.read_until(terminal.ASK)
  person.type("\x04")
  shown, code = person.end()
  assert "after" in shown
  assert code == 0


def test_ctrl_c_ends_with_one_line(person):
  person.read_until(terminal.ASK)
  for _ in range(20):
    person.type("\x03")
    # Python may miss one that comes after the prompt and before it waits for keys.
    if select.select([person.handle], [], [], 2)[0]:
      break
  shown, code = person.end()
  assert shown.replace("^C", "").split() == ["interrupted"]
  assert code == 128 + signal.SIGINT


ROWS = """
from tpv_jax.evaluation import terminal
for row in terminal.rows(["first", "second"]):
  print(sorted(row.items()))
"""


def test_each_column_is_asked_for_until_ctrl_d():
  person = Person(ROWS)
  try:
    person.read_until(f"first{terminal.ASK}")
    for _ in range(2):
      person.type("\r")  # An empty line is asked for again.
      person.read_until(f"first{terminal.ASK}")
      person.type("one\r")
      person.read_until(f"second{terminal.ASK}")
      person.type("two words\r")
      shown = person.read_until(f"first{terminal.ASK}")
      assert "[('first', 'one'), ('second', 'two words')]" in shown
    person.type("left out\r")
    person.read_until(f"second{terminal.ASK}")
    person.type("\x04")
    shown, code = person.end()
    assert "left out" not in shown
    assert code == 0
  finally:
    person.process.kill()
    os.close(person.handle)


INFER = """
import sys
from tpv_jax import cli
sys.argv[1:] = ["infer", "--gin_file=gin_configs/runs/infer_embedded.gin"]
sys.exit(cli.main())
"""


@pytest.mark.slow
def test_the_command_answers_a_person_until_ctrl_d_or_ctrl_c():
  for keys, code, last in (("\x04", 0, ""), ("\x03", 130, "interrupted")):
    person = Person(INFER)
    try:
      assert "Ctrl-D ends" in person.read_until(terminal.ASK, seconds=280)
      person.type("some words here\r")
      shown = person.read_until(f"\n{terminal.ASK}", seconds=280)
      assert "some words here" in shown
      assert "kate spotted" in shown.splitlines()
      person.type(keys)
      shown, ended = person.end()
      assert ended == code
      assert shown.replace("^C", "").replace("^D", "").strip() == last
    finally:
      person.process.kill()
      os.close(person.handle)

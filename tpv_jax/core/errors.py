"""One way to tell a user what went wrong: what, why, what next.

Imports nothing but the standard library, so that every room can use it.
"""

import argparse
import contextlib
import difflib
import errno
import json
import os
import re
import shlex
import signal
import sys
import threading
import traceback
from collections.abc import Callable, Iterable, Iterator
from typing import Any, NoReturn

EXIT_USER_ERROR = 2
"""Exit code of every command after bad input."""

EXIT_INTERRUPTED = 130
"""Exit code after Ctrl-C, as shells use it: 128 and the signal's number, after SIGTERM 143."""

EXIT_BROKEN_PIPE = 141
"""Exit code if nothing reads the output any more (`| head`), as shells use it."""


MOST_TEXT = 1500
"""Characters of a `UserError`; what damaged files say of themselves can be any length."""


_spelling = ""
"""What stands before an option's name where the user gave it; see `option`."""


_UNPRINTABLE = re.compile(
  "[\x00-\x1f\x7f-\x9f\u200e\u200f\u2028-\u202e\u2066-\u2069\ud800-\udfff]"
)
"""Control characters, line ends, and marks that turn the direction of what follows."""


def printable(text: str) -> str:
  """Returns text as one line without anything that controls a terminal.

  What a file says of itself, as the name of a task, a leaf or a note, could otherwise move
  the cursor, forge a line of ours, or show another name than it has. Every place that
  prints such text asks this first; `UserError` does it by itself.
  """
  return _UNPRINTABLE.sub(lambda found: ascii(found[0])[1:-1], text)


def to_json(content: Any) -> str:
  """Returns indented JSON without anything that controls a terminal; see `printable`."""
  text = json.dumps(content, indent=2, ensure_ascii=False)
  return "\n".join(
    _UNPRINTABLE.sub(lambda found: f"\\u{ord(found[0]):04x}", line)
    for line in text.split("\n")  # Line ends in a string are escaped already.
  )


class UserError(Exception):
  """Bad input: its text says what is wrong, why, and what to do next, in one line.

  The middle of a text longer than `MOST_TEXT` is left out, and control characters are
  shown as escapes.
  """

  def __init__(self, text: str):
    text = printable(" ".join(line.strip() for line in text.splitlines()))
    if len(text) > MOST_TEXT:
      text = f"{text[: MOST_TEXT // 2]} […] {text[-MOST_TEXT // 4 :]}"
    super().__init__(text)


class Interrupted(KeyboardInterrupt):
  """A signal asked the process to end; the text after its number is printed at the end."""

  def __init__(self, number: int, *texts: str):
    super().__init__(*texts)
    self.number = number


def near_misses(name: str, known: Iterable[str], most: int = 3) -> str:
  """Returns ' Did you mean a, b?' for the known names closest to `name`, or ''."""
  close = difflib.get_close_matches(name, list(known), n=most, cutoff=0.5)
  return f" Did you mean {', '.join(repr(c) for c in close)}?" if close else ""


def python_command(code: str) -> str:
  """Returns the line for a shell that runs Python code, whatever quotes are in it."""
  return f"python -c {shlex.quote(code)}"


def some(names: Iterable[str], most: int = 4) -> str:
  """Returns the first names in one line, and whether there are more."""
  shown = list(names)
  return ", ".join(shown[:most]) + (", …" if len(shown) > most else "")


def at_least(name: str, value: Any, least: int) -> None:
  """Raises `UserError` unless `value` is a whole number of at least `least`."""
  if not isinstance(value, int) or isinstance(value, bool) or value < least:
    raise UserError(
      f"{name} is {value!r}; it must be a whole number of at least {least}."
    )


def option(name: str, value: Any = True, verb: str | None = None) -> str:
  """Returns how the caller sets an option, such as 'overwrite', for a message.

  `--overwrite` or `--which last` of tpv, `--gin.OVERWRITE=True` of its verbs with gin
  files, and otherwise, in Python, `overwrite=True`. What is no macro of gin files, the
  `verb` that has the option does for them.
  """
  of_tpv = f"--{name.replace('_', '-')}" + ("" if value is True else f" {value}")
  if _spelling == "--gin.":
    quoted = f"'\"{value}\"'" if isinstance(value, str) else value
    return f"{of_tpv} to 'tpv {verb}'" if verb else f"--gin.{name.upper()}={quoted}"
  return of_tpv if _spelling == "--" else f"{name}={value!r}"


class ArgumentParser(argparse.ArgumentParser):
  """argparse's parser, which reports a wrong call in one line and abbreviates nothing."""

  def __init__(self, **options: Any):
    super().__init__(allow_abbrev=False, **options)

  def error(self, message: str) -> Any:
    """Prints one line and exits with `EXIT_USER_ERROR`."""
    line = f"error: {printable(message)}. '{self.prog} --help' shows the usage.\n"
    self.exit(EXIT_USER_ERROR, line)


_ADVICE = {
  errno.ENOSPC: "Free some space or choose another folder",
  errno.EDQUOT: "Free some of your space there or choose another folder",
  errno.EIO: "The device failed: check it, or choose another folder",
  errno.EFBIG: "A file may be no larger there, or by 'ulimit -f': raise the limit or "
  "choose another folder",
  errno.EROFS: "Choose another folder",
  errno.EMFILE: "Let a process open more: ulimit -n 4096",
  errno.ENFILE: "Close other programs, or have the system allow more (fs.file-max)",
  errno.ENOMEM: "Close other programs, or use a machine with more memory",
}
"""What to do about an error of the operating system that the input did not cause."""

_CANNOT_OPEN = (errno.ENOENT, errno.EACCES, errno.EISDIR, errno.ENOTDIR)


def system_error(error: BaseException, path: str | None = None) -> OSError | None:
  """Returns the operating system's error behind what a library raised, None without.

  tensorstore states its number, and under "RESOURCE_EXHAUSTED" more than one of them;
  other libraries pass its text on.

  Args:
    error: what was raised; what caused it is looked through too.
    path: of what was written, if the error does not say.
  """
  seen: list[BaseException] = []
  waiting = [error]
  while waiting:
    one = waiting.pop(0)
    if one in seen:
      continue
    seen.append(one)
    waiting += [c for c in (one.__cause__, one.__context__) if c is not None]
    waiting += getattr(one, "exceptions", ())
    if isinstance(one, MemoryError):
      return OSError(errno.ENOMEM, os.strerror(errno.ENOMEM), path)
    if isinstance(one, OSError) and one.errno in _ADVICE:
      return OSError(one.errno, os.strerror(one.errno), one.filename or path)
    stated = re.search(r"os_error_code='(\d+)'", str(one))
    for number in _ADVICE:
      if (stated and int(stated[1]) == number) or os.strerror(number) in str(one):
        return OSError(number, os.strerror(number), path)
  return None


def end_at_once_on_interrupt() -> None:
  """Has Ctrl-C end the process at once, until `raise_on_interrupt`.

  While a program is imported nothing is written yet, and an import that is interrupted
  raises anything.
  """
  if signal.getsignal(signal.SIGINT) is signal.default_int_handler:
    signal.signal(signal.SIGINT, _end_at_once)


def _end_at_once(number: int, frame: Any) -> NoReturn:
  os.write(2, b"interrupted\n")
  os._exit(EXIT_INTERRUPTED)


def raise_on_interrupt() -> None:
  """Has Ctrl-C raise `KeyboardInterrupt` again after `end_at_once_on_interrupt`."""
  if signal.getsignal(signal.SIGINT) is _end_at_once:
    signal.signal(signal.SIGINT, signal.default_int_handler)


def run_command(
  main: Callable[[], int | None], debug: bool = False, spelling: str = "--"
) -> int:
  """Runs a command's body and returns its exit code.

  A `UserError` or an error of the operating system, such as a missing file or a full
  device, becomes one line on stderr and exit code 2; `debug` lets the trace through.
  Other exceptions are our own mistakes and keep their trace. Ctrl-C and SIGTERM give one
  line and 130 or 143, and what was begun is tidied up. `spelling` says how the command's
  options are given ('--' or '--gin.').
  """
  global _spelling
  before, _spelling = _spelling, spelling
  _open_standard_streams()
  try:
    with _terminated():
      code = main() or 0
      sys.stdout.flush()
      return code
  except BrokenPipeError:
    # What is left in the buffers goes nowhere, or Python would complain at its end.
    nowhere = os.open(os.devnull, os.O_WRONLY)
    for stream in (sys.stdout, sys.stderr):
      os.dup2(nowhere, stream.fileno())
    return EXIT_BROKEN_PIPE
  except KeyboardInterrupt as interrupt:
    print(": ".join(["interrupted", *map(str, interrupt.args)]), file=sys.stderr)
    return 128 + getattr(interrupt, "number", signal.SIGINT)
  except Exception as error:
    told = error if isinstance(error, UserError | OSError) else system_error(error)
    if told is None:
      raise
    if debug:
      traceback.print_exc()
    else:
      print(f"error: {_one_line(told)}", file=sys.stderr)
    return EXIT_USER_ERROR
  finally:
    _spelling = before


def _open_standard_streams() -> None:
  """Opens those that were closed (`>&-`), or a file would get their number and text."""
  while (handle := os.open(os.devnull, os.O_RDWR)) <= 2:
    pass
  os.close(handle)
  sys.stdout = sys.stdout or os.fdopen(1, "w", closefd=False)
  sys.stderr = sys.stderr or os.fdopen(2, "w", closefd=False)


@contextlib.contextmanager
def _terminated() -> Iterator[None]:
  """Has SIGTERM raise `Interrupted`, where it would end the process untidily."""

  def stop(number: int, frame: Any) -> NoReturn:
    raise Interrupted(number, "stopped by SIGTERM")

  ours = (
    threading.current_thread() is threading.main_thread()
    and signal.getsignal(signal.SIGTERM) is signal.SIG_DFL
  )
  if ours:
    signal.signal(signal.SIGTERM, stop)
  try:
    yield
  finally:
    if ours:
      signal.signal(signal.SIGTERM, signal.SIG_DFL)


def _one_line(error: UserError | OSError) -> str:
  if isinstance(error, OSError) and error.errno is not None:
    where = f" ({printable(str(error.filename))})" if error.filename else ""
    what = os.strerror(error.errno)
    if error.errno in _ADVICE:
      return (
        f"{what}{where}. Nothing half-written was kept. {_ADVICE[error.errno]}, then run "
        "the same command again."
      )
    if error.errno in _CANNOT_OPEN:
      return f"Cannot open{where or ' a file'}: {what}."
  return str(UserError(" ".join(str(error).split())))  # Of such a length.

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
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any, NoReturn

EXIT_USER_ERROR = 2
"""Exit code of every command after bad input."""

EXIT_INTERRUPTED = 130
"""Exit code after Ctrl-C: 128 plus the signal's number, as in shells (143 after SIGTERM)."""

EXIT_BROKEN_PIPE = 141
"""Exit code when nobody reads the output any more (`| head`), as in shells."""


MOST_TEXT = 1500
"""Most characters of a `UserError`; text quoted from a damaged file can have any length."""


_spelling = ""
"""The prefix with which the user wrote the options, '--' or '--gin.'; see `option`."""


_UNPRINTABLE = re.compile(
  "[\x00-\x1f\x7f-\x9f\u200e\u200f\u2028-\u202e\u2066-\u2069\ud800-\udfff]"
)
"""Control characters, line ends, and marks that change the direction of the text."""


def printable(text: str) -> str:
  """Returns text as one line without characters that control a terminal.

  Text from a file, such as the name of a task or a leaf or a note, could otherwise move
  the cursor, forge a line of ours, or display a different name. Everything that prints
  such text calls this first; `UserError` does so itself.
  """
  return _UNPRINTABLE.sub(lambda found: ascii(found[0])[1:-1], text)


def to_json(content: Any) -> str:
  """Returns indented JSON without characters that control a terminal; see `printable`."""
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
  """A signal asked the process to end; the texts after its number are printed at exit."""

  def __init__(self, number: int, *texts: str):
    super().__init__(*texts)
    self.number = number


def near_misses(name: str, known: Iterable[str], most: int = 3) -> str:
  """Returns ' Did you mean a, b?' for the known names closest to `name`, or ''."""
  close = difflib.get_close_matches(name, list(known), n=most, cutoff=0.5)
  return f" Did you mean {', '.join(repr(c) for c in close)}?" if close else ""


def python_command(code: str) -> str:
  """Returns the shell command that runs Python code, whatever quotes are in it."""
  return f"python -c {shlex.quote(code)}"


def some(names: Iterable[str], most: int = 4) -> str:
  """Returns the first names in one line, with an ellipsis if there are more."""
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

  `--overwrite` or `--which last` for tpv, `--gin.OVERWRITE=True` for its verbs that take
  gin files, and `overwrite=True` in Python. An option without a gin macro is named with
  the `verb` that has it.
  """
  of_tpv = f"--{name.replace('_', '-')}" + ("" if value is True else f" {value}")
  if _spelling == "--gin.":
    quoted = f"'\"{value}\"'" if isinstance(value, str) else value
    return f"{of_tpv} to 'tpv {verb}'" if verb else f"--gin.{name.upper()}={quoted}"
  return of_tpv if _spelling == "--" else f"{name}={value!r}"


@contextlib.contextmanager
def options_spelled(prefix: str) -> Iterator[None]:
  """Makes `option` spell options with this prefix within the block."""
  global _spelling
  before, _spelling = _spelling, prefix
  try:
    yield
  finally:
    _spelling = before


@contextlib.contextmanager
def renamed(names: Mapping[str, str]) -> Iterator[None]:
  """Makes a `UserError` of the block call settings by the caller's names for them.

  Args:
    names: what the block calls something -> what the caller does.
  """
  try:
    yield
  except UserError as error:
    called = sorted(map(re.escape, names), key=len, reverse=True)
    pattern = rf"(?<!\w)(?:{'|'.join(called)})(?!\w)"
    text = re.sub(pattern, lambda found: names[found[0]], str(error))
    raise UserError(text) from error.__cause__


class ArgumentParser(argparse.ArgumentParser):
  """argparse's parser, with one-line errors and without abbreviated options."""

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
  errno.EFBIG: "The file system or 'ulimit -f' allows no larger file: raise the limit or "
  "choose another folder",
  errno.EROFS: "Choose another folder",
  errno.EMFILE: "Allow a process more open files: ulimit -n 4096",
  errno.ENFILE: "Close other programs, or raise the system's limit (fs.file-max)",
  errno.ENOMEM: "Close other programs, or use a machine with more memory",
}
"""What to do about an error of the operating system that the input did not cause."""

_CANNOT_OPEN = (errno.ENOENT, errno.EACCES, errno.EISDIR, errno.ENOTDIR)


def system_error(error: BaseException, path: str | None = None) -> OSError | None:
  """Returns the operating system's error behind a library's exception, or None.

  tensorstore states the error's number, since its "RESOURCE_EXHAUSTED" stands for several;
  other libraries pass on its text.

  Args:
    error: the exception; its causes are searched, too.
    path: what was being written, if the error does not say.
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
  """Makes Ctrl-C end the process at once, until `raise_on_interrupt`.

  During imports nothing has been written yet, and an interrupted import can raise
  anything.
  """
  if signal.getsignal(signal.SIGINT) is signal.default_int_handler:
    signal.signal(signal.SIGINT, _end_at_once)


def _end_at_once(number: int, frame: Any) -> NoReturn:
  os.write(2, b"interrupted\n")
  os._exit(EXIT_INTERRUPTED)


def raise_on_interrupt() -> None:
  """Makes Ctrl-C raise `KeyboardInterrupt` again after `end_at_once_on_interrupt`."""
  if signal.getsignal(signal.SIGINT) is _end_at_once:
    signal.signal(signal.SIGINT, signal.default_int_handler)


def run_command(
  main: Callable[[], int | None], debug: bool = False, spelling: str = "--"
) -> int:
  """Runs a command's body and returns its exit code.

  A `UserError` or an error of the operating system, such as a missing file or a full
  device, becomes one line on stderr and exit code 2; with `debug`, its traceback. Other
  exceptions are our own mistakes and keep their traceback. Ctrl-C and SIGTERM give one
  line and 130 or 143, and unfinished work is cleaned up. `spelling` is the prefix of the
  command's options ('--' or '--gin.').
  """
  _open_standard_streams()
  try:
    with _terminated(), options_spelled(spelling):
      code = main() or 0
      sys.stdout.flush()
      return code
  except BrokenPipeError:
    # Discards what is left in the buffers, about which Python would complain at exit.
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


def _open_standard_streams() -> None:
  """Opens those that were closed (`>&-`), or a file would get their number and output."""
  while (handle := os.open(os.devnull, os.O_RDWR)) <= 2:
    pass
  os.close(handle)
  sys.stdout = sys.stdout or os.fdopen(1, "w", closefd=False)
  sys.stderr = sys.stderr or os.fdopen(2, "w", closefd=False)


@contextlib.contextmanager
def _terminated() -> Iterator[None]:
  """Makes SIGTERM raise `Interrupted` within the block, so that blocks are left in order."""

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
  return str(UserError(" ".join(str(error).split())))  # Limits the length.

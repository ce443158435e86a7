"""One way to tell a user what went wrong: what, why, what next.

Imports nothing but the standard library, so that every room can use it.
"""

import argparse
import difflib
import errno
import json
import os
import re
import shlex
import sys
import traceback
from collections.abc import Callable, Iterable
from typing import Any

EXIT_USER_ERROR = 2
"""Exit code of every command after bad input."""

EXIT_INTERRUPTED = 130
"""Exit code after Ctrl-C, as shells use it."""

EXIT_BROKEN_PIPE = 141
"""Exit code where nobody reads the output any more (`| head`), as shells use it."""


MOST_TEXT = 1500
"""Characters of a `UserError`; what damaged files say of themselves can be any length."""


_spelling = ""
"""What stands before an option's name where the user gave it; see `option`."""


_UNPRINTABLE = re.compile(
  "[\x00-\x1f\x7f-\x9f\u200e\u200f\u2028-\u202e\u2066-\u2069\ud800-\udfff]"
)
"""Control characters, line ends, and marks that turn the direction of what follows."""


def printable(text: str) -> str:
  """Returns text as one line that does nothing to a terminal but be read.

  What a file says of itself, as the name of a task, a leaf or a note, could otherwise move
  the cursor, forge a line of ours, or show another name than it has. Every place that
  prints such text asks this first; `UserError` does it by itself.
  """
  return _UNPRINTABLE.sub(lambda found: ascii(found[0])[1:-1], text)


def to_json(content: Any) -> str:
  """Returns indented JSON that does nothing to a terminal but be read; see `printable`."""
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


def option(name: str, macro: bool = True) -> str:
  """Returns how the caller switches an option on, such as 'overwrite', for a message.

  `--overwrite` of tpv, `--gin.OVERWRITE=True` of a command with gin files, and otherwise,
  in Python, `overwrite=True`. What is no `macro` of gin files, tpv does for them.
  """
  of_tpv = f"--{name.replace('_', '-')}"
  if _spelling == "--gin.":
    return f"--gin.{name.upper()}=True" if macro else f"{of_tpv} to tpv"
  return of_tpv if _spelling == "--" else f"{name}=True"


class ArgumentParser(argparse.ArgumentParser):
  """argparse's parser, which reports a wrong call in one line and abbreviates nothing."""

  def __init__(self, **options: Any):
    super().__init__(allow_abbrev=False, **options)

  def error(self, message: str) -> Any:
    """Prints one line and exits with `EXIT_USER_ERROR`."""
    line = f"error: {printable(message)}. '{self.prog} --help' shows the usage.\n"
    self.exit(EXIT_USER_ERROR, line)


def run_command(
  main: Callable[[], int | None], debug: bool = False, spelling: str = "--"
) -> int:
  """Runs a command's body and returns its exit code.

  A `UserError`, a missing file or a full device becomes one line on stderr and exit
  code 2; `debug` lets the trace through. Other exceptions are our own mistakes and keep
  their trace. `spelling` says how the command's options are given ('--' or '--gin.').
  """
  global _spelling
  before, _spelling = _spelling, spelling
  try:
    code = main() or 0
    sys.stdout.flush()
    return code
  except BrokenPipeError:
    # What is left in the buffer goes nowhere, or Python would complain at its end.
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    return EXIT_BROKEN_PIPE
  except (UserError, OSError) as error:
    if debug:
      traceback.print_exc()
    else:
      print(f"error: {_one_line(error)}", file=sys.stderr)
    return EXIT_USER_ERROR
  except KeyboardInterrupt as interrupt:
    print(": ".join(["interrupted", *map(str, interrupt.args)]), file=sys.stderr)
    return EXIT_INTERRUPTED
  finally:
    _spelling = before


def _one_line(error: UserError | OSError) -> str:
  if isinstance(error, OSError) and not isinstance(error, UserError):
    where = f" ({error.filename})" if error.filename else ""
    if error.errno == errno.ENOSPC:
      return (
        f"No space left on the device{where}. Nothing half-written was kept; free some "
        "space or choose another folder, then run the same command again."
      )
    if error.errno in (errno.ENOENT, errno.EACCES, errno.EISDIR, errno.ENOTDIR):
      return f"Cannot open{where or ' a file'}: {os.strerror(error.errno)}."
  return printable(" ".join(str(error).split()))

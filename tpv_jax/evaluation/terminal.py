"""Sources typed at the terminal or read from a pipe, and the answers to them."""

import importlib.util
import itertools
import sys
from collections.abc import Iterable, Iterator, Sequence

from tpv_jax.core.errors import UserError, printable

ASK = "> "
"""Stands before what is typed."""


def is_typed() -> bool:
  """Returns whether a person types the lines, rather than a file or a pipe."""
  return sys.stdin is not None and sys.stdin.isatty()


def lines() -> Iterator[str]:
  """Yields the lines that are typed, or those of standard input, without their ends.

  Ctrl-D ends what is typed, where an empty line is asked for again. Every line of a pipe
  is one, as in a file.

  Raises:
    UserError: a line is not UTF-8 or has a NUL byte.
  """
  if is_typed():
    yield from _typed(itertools.repeat(ASK))
  elif sys.stdin is not None:
    for number, line in enumerate(sys.stdin.buffer, 1):
      line = line.removesuffix(b"\n").removesuffix(b"\r")
      yield _text(line.removeprefix(b"\xef\xbb\xbf") if number == 1 else line, number)


def rows(columns: Sequence[str]) -> Iterator[dict[str, str]]:
  """Yields what is typed for each of the columns, until Ctrl-D.

  An empty line is asked for again.

  Raises:
    UserError: a line is not UTF-8 or has a NUL byte.
  """
  typed = _typed(f"{printable(column)}{ASK}" for column in itertools.cycle(columns))
  while True:
    row = dict(zip(columns, typed, strict=False))
    if len(row) < len(columns):
      return
    yield row


def show(parts: Iterable[str]) -> None:
  """Prints an answer as its parts come, and ends its line.

  Characters that control a terminal are shown as escapes, line ends in a pipe as well, so
  that there each answer is one line.
  """
  keep_lines = sys.stdout.isatty()
  try:
    for part in parts:
      pieces = part.split("\n") if keep_lines else [part]
      sys.stdout.write("\n".join(map(printable, pieces)))
      sys.stdout.flush()
  finally:
    sys.stdout.write("\n")
    sys.stdout.flush()


def _typed(asks: Iterator[str]) -> Iterator[str]:
  """Yields what is typed behind each of `asks`, asked for again while it is empty."""
  if sys.stdout.isatty() and importlib.util.find_spec("readline"):
    import readline  # noqa: F401 (with it `input` edits lines and remembers them)
  ask = next(asks)
  for number in itertools.count(1):
    try:
      line = input(ask)
    except EOFError:
      print()
      return
    except KeyboardInterrupt:
      print()
      raise
    except UnicodeDecodeError as error:
      raise _no_text(number, error.reason) from error
    if text := _text(line.encode(errors="surrogateescape"), number):
      yield text
      ask = next(asks)


def _text(line: bytes, number: int) -> str:
  if b"\0" in line:
    raise _no_text(number, "a NUL byte")
  try:
    return line.decode()
  except UnicodeDecodeError as error:
    raise _no_text(number, error.reason) from error


def _no_text(number: int, reason: str) -> UserError:
  return UserError(
    f"Line {number} of standard input is not UTF-8 ({reason}). Convert the text to UTF-8."
  )

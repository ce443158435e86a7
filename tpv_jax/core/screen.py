"""Output to the screen: bars redrawn in place on a terminal, a few whole lines in a log."""

import sys
from collections.abc import Iterable, Sequence
from typing import Any

try:
  from tqdm import tqdm
except ImportError:  # A machine with little more than JAX: no bar is drawn.
  tqdm = None

LOG_SECONDS = 60.0
"""Seconds between two lines in a log."""


def say(text: str) -> None:
  """Prints lines without breaking a bar that is being drawn."""
  if tqdm is None:
    print(text, flush=True)
  else:
    tqdm.write(text)


class _Unseen:
  """Stands in for tqdm where it is not installed: iterates and shows nothing."""

  def __init__(self, iterable: Any = (), *_: Any, **__: Any):
    self._iterable = iterable

  def __iter__(self) -> Any:
    return iter(self._iterable)

  def __enter__(self) -> "_Unseen":
    return self

  def __exit__(self, *_: Any) -> None:
    pass

  def update(self, count: float = 1) -> None:
    """Does nothing."""

  def close(self) -> None:
    """Does nothing."""

  def set_postfix(self, *_: Any, **__: Any) -> None:
    """Does nothing."""

  def set_description(self, *_: Any, **__: Any) -> None:
    """Does nothing."""


_Drawn: Any = _Unseen if tqdm is None else tqdm


class Bar(_Drawn):
  """tqdm's bar, which writes only a few whole lines to a file or pipe."""

  def __init__(self, *arguments: Any, **options: Any):
    """Takes what `tqdm` takes."""
    self._drawn = sys.stderr.isatty()
    if not self._drawn and tqdm is not None:
      options |= {
        "file": _Lines(sys.stderr),
        "mininterval": LOG_SECONDS,
        "maxinterval": LOG_SECONDS,
        "dynamic_ncols": False,
      }
    super().__init__(*arguments, **options)

  def set_postfix(self, *arguments: Any, refresh: bool = True, **values: Any) -> None:
    """Sets the text after the bar; see `tqdm.set_postfix`."""
    super().set_postfix(*arguments, refresh=refresh and self._drawn, **values)

  def set_description(self, desc: str | None = None, refresh: bool = True) -> None:
    """Sets the text before the bar; see `tqdm.set_description`."""
    super().set_description(desc, refresh and self._drawn)


class _Lines:
  """A stream that writes each state of a bar as a line."""

  def __init__(self, stream: Any):
    self._stream = stream

  def write(self, text: str) -> None:
    """Writes the text as a line, without the characters that clear the previous one."""
    if line := text.replace("\r", "").strip():
      self._stream.write(line + "\n")

  def flush(self) -> None:
    """Flushes the stream."""
    self._stream.flush()


def console() -> Any:
  """Returns rich's console; in a log it is wide enough to cut no name in a table."""
  from rich.console import Console

  found = Console()
  if not found.is_terminal:
    found.width = 10_000
  return found


def print_table(
  header: Sequence[str], rows: Iterable[Sequence[str]], title: str | None = None
) -> None:
  """Prints a table; a column too wide for the terminal is wrapped, not cut."""
  from rich.table import Column, Table
  from rich.text import Text

  table = Table(*(Column(Text(name), overflow="fold") for name in header), title=title)
  for row in rows:
    table.add_row(*map(Text, row))  # A task's name may contain rich's markup.
  console().print(table)

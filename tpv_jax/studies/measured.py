"""Measurements that are written as soon as they are made, so a killed study keeps them."""

import itertools
import json
import pathlib
from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeVar

from tpv_jax.core import files, identity
from tpv_jax.data.tasks import Task
from tpv_jax.devices import processes
from tpv_jax.runs.run_settings import changed
from tpv_jax.vectors.loaded import Loaded

T = TypeVar("T")

NAME = "measured.json"
"""The file, in the folder of a study."""


_SHOWN = 120
"""How many characters of a difference are printed: a value may be a list of digests."""


class Measured:
  """The measurements of a study, including those of earlier calls.

  A file of other measurements stays under another name, `measured-1.json`, since they may
  have taken hours.
  """

  def __init__(
    self,
    path: pathlib.Path,
    subject: Mapping[str, Any],
    defaults: Mapping[str, Any],
    overwrite: bool,
  ):
    """Reads what was measured before and can be gone on with.

    Args:
      path: the JSON file.
      subject: what all measurements depend on, as JSON.
      defaults: the values of entries that an older subject may lack.
      overwrite: replace what was measured before.
    """
    self._path = path
    self._found: dict[str, Any] = {"subject": json.loads(json.dumps(subject))}
    self._other: str | None = None  # Why the file that is there is of no use.
    if not overwrite and path.exists():
      before = _read(path)
      if before is None:
        self._other = "that file is damaged"
      else:
        self._other = changed(before["subject"], subject, defaults)
      if before is not None and self._other is None:
        self._found = before

  def get(self, name: str, measure: Callable[[], T]) -> T:
    """Returns the measurement of that name, made before or now."""
    if name not in self._found:
      self._found[name] = measure()
      if processes.is_writer():
        self._keep_other()
        files.write_json(self._path, self._found)
    found: T = self._found[name]
    return found

  def _keep_other(self) -> None:
    """Gives a file of other measurements another name."""
    if self._other is None:
      return
    names = (f"{self._path.stem}-{i}{self._path.suffix}" for i in itertools.count(1))
    kept = next(p for p in map(self._path.with_name, names) if not p.exists())
    self._path.rename(kept)
    processes.say(
      f"Measuring anew, not as in '{self._path}' ({self._other[:_SHOWN]}), which is now "
      f"'{kept.name}'."
    )
    self._other = None


def digests(prompts: Mapping[Any, Loaded]) -> dict[Any, str]:
  """Returns the digest of each prompt, for a subject."""
  return {name: identity.prompt_digest(one.leaves) for name, one in prompts.items()}


def describe(tasks: Sequence[Task], splits: Sequence[str]) -> dict[str, list[Any]]:
  """Returns what scores on the tasks' splits depend on, for a subject."""
  return {
    task.name: [
      task.labels,
      task.metric,
      task.more_metrics,
      *(task.split_digest(split) for split in splits),
    ]
    for task in tasks
  }


def _read(path: pathlib.Path) -> dict[str, Any] | None:
  """Returns what a file has measured; None if it is damaged."""
  try:
    content = files.parse_json(files.read_bytes(path))
  except ValueError:
    return None
  is_measured = isinstance(content, dict) and isinstance(content.get("subject"), dict)
  return content if is_measured else None

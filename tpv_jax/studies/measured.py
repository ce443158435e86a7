"""Measurements that are written as soon as they are made, so a killed study keeps them."""

import contextlib
import json
import pathlib
from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeVar

from tpv_jax.core import files, identity
from tpv_jax.data.tasks import Task
from tpv_jax.devices import processes
from tpv_jax.runs.run_settings import same
from tpv_jax.vectors.loaded import Loaded

T = TypeVar("T")

NAME = "measured.json"
"""The file, in the folder of a study."""


class Measured:
  """The measurements of a study, including those of earlier calls."""

  def __init__(
    self,
    path: pathlib.Path,
    subject: Mapping[str, Any],
    defaults: Mapping[str, Any],
    overwrite: bool,
  ):
    """Reads what was measured before, if it was on the same subject.

    Args:
      path: the JSON file.
      subject: what all measurements depend on, as JSON.
      defaults: the values of entries that an older subject may lack.
      overwrite: ignore what was measured before.
    """
    self._path = path
    self._found: dict[str, Any] = {"subject": json.loads(json.dumps(subject))}
    if not overwrite and path.exists():
      with contextlib.suppress(ValueError):  # A damaged file is measured again.
        before = files.parse_json(files.read_bytes(path))
        if _is_measured(before) and same(before["subject"], subject, defaults):
          self._found = before

  def get(self, name: str, measure: Callable[[], T]) -> T:
    """Returns the measurement of that name, made before or now."""
    if name not in self._found:
      self._found[name] = measure()
      if processes.is_writer():
        files.write_json(self._path, self._found)
    found: T = self._found[name]
    return found


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


def _is_measured(content: Any) -> bool:
  return isinstance(content, dict) and isinstance(content.get("subject"), dict)

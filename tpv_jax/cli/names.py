"""The names of prompts and vectors in tables and pictures."""

import pathlib
from collections.abc import Sequence


def short_names(names: Sequence[str]) -> list[str]:
  """Returns the last part of each path without '.safetensors', longer where needed.

  Parts are added from the right until all names differ; a path given twice is numbered.
  """
  parts = [
    pathlib.PurePath(name.removesuffix(".safetensors")).parts or (name,)
    for name in names
  ]
  lengths = [1] * len(parts)

  def shortened() -> list[str]:
    return [
      str(pathlib.PurePath(*part[-length:]))
      for part, length in zip(parts, lengths, strict=True)
    ]

  for _ in range(max(map(len, parts), default=0)):
    current = shortened()
    for index, name in enumerate(current):
      if current.count(name) > 1:
        lengths[index] = min(lengths[index] + 1, len(parts[index]))
  current = shortened()
  return [
    f"{name} ({current[: index + 1].count(name)})" if current.count(name) > 1 else name
    for index, name in enumerate(current)
  ]

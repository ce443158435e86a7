"""The provenance of values in a format that has no place for it, as JSON beside them.

    {"format": "tpv_jax provenance 1", "digest": ..., "provenance": {...}}

with `identity.prompt_digest` of the values that it belongs to, so that it is never taken
for that of others.
"""

import json
from collections.abc import Mapping
from typing import Any

import numpy as np

from tpv_jax import files, identity
from tpv_jax.errors import UserError
from tpv_jax.vectors.provenance import Provenance

FORMAT = "tpv_jax provenance 1"

MAX_BYTES = 1 << 20
"""Of any JSON file that is read here; provenance takes a few thousand."""


def encode(leaves: Mapping[str, np.ndarray], provenance: Provenance) -> bytes:
  """Returns the bytes of the file that belongs to these leaves."""
  content = {
    "format": FORMAT,
    "digest": identity.prompt_digest(leaves),
    "provenance": provenance.to_json(),
  }
  return to_json(content)


def read(
  path: files.Path, leaves: Mapping[str, np.ndarray], shown: str
) -> Provenance | None:
  """Returns the provenance of these leaves, None where there is no file at `path`.

  Raises:
    UserError: it is damaged, or belongs to other values than those of `shown`.
  """
  if not path.is_file():
    return None
  content = read_json(path)
  digest = identity.prompt_digest(leaves)
  try:
    if content["format"] != FORMAT:
      raise ValueError(f"its format is {content['format']!r}, not {FORMAT!r}")
    stated = str(content["digest"])
    provenance = Provenance.from_json(content["provenance"])
  except (KeyError, TypeError, ValueError) as error:
    raise UserError(
      f"'{path}' does not state the provenance of '{shown}': {error!r}. Remove it to "
      "read the values without."
    ) from error
  if stated != digest:
    raise UserError(
      f"'{path}' states the provenance of other values (digest {stated[:12]}…) than "
      f"'{shown}' holds ({digest[:12]}…). Remove it if the values were replaced on "
      "purpose; if an export with --overwrite was stopped, repeat it; otherwise take "
      "another copy of both."
    )
  return provenance


def to_json(content: Mapping[str, Any]) -> bytes:
  """Returns indented JSON with a final newline."""
  return (json.dumps(content, indent=2, ensure_ascii=False) + "\n").encode()


def read_json(path: files.Path) -> dict[str, Any]:
  """Returns the JSON object in a file.

  Raises:
    UserError: there is another thing in it, or more than `MAX_BYTES`.
  """
  if path.is_dir():
    raise UserError(f"'{path}' is a folder, not a JSON file. Take another copy.")
  with path.open("rb") as file:
    text = file.read(MAX_BYTES + 1)
  try:
    if len(text) > MAX_BYTES:
      raise ValueError(f"it has more than {MAX_BYTES} bytes")
    content = json.loads(text)
    json.dumps(content, ensure_ascii=False).encode()  # Half a character is not.
    if isinstance(content, dict):
      return content
    problem = f"it holds {str(content)[:40]!r}"
  except (ValueError, RecursionError) as error:
    problem = str(error)
  raise UserError(f"'{path}' is no JSON object: {problem}. Take another copy.")

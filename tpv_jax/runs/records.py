"""What a run wrote about itself, read without JAX: its manifest and its metrics."""

import contextlib
import math
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
from jaxtyping import Float

from tpv_jax.core import files
from tpv_jax.core.errors import UserError

FORMAT = "tpv_jax run 1"
"""The format that a run's manifest states."""

MANIFEST, METRICS = "manifest.json", "metrics.jsonl"

UNTUNED = "untuned"
"""A manifest's key for the validation metrics of the initial prompt."""

_SAMPLED = 4096
"""At most so many rows of an embedding table, evenly spaced, are measured."""


def manifest(run: files.PathLike) -> dict[str, Any] | None:
  """Returns the manifest in a folder; None if there is none, or it is not one of ours."""
  try:
    content = files.parse_json(files.read_bytes(files.to_path(run) / MANIFEST))
  except (ValueError, FileNotFoundError, NotADirectoryError):
    return None
  return content if _is_manifest(content) else None


def metrics(run: files.PathLike) -> list[dict[str, Any]]:
  """Returns the lines of metrics.jsonl; a line that a kill cut short is left out.

  Raises:
    UserError: a line is damaged.
  """
  found = []
  for number, line in enumerate(_parsed(run), start=1):
    if line is None:
      raise UserError(
        f"Line {number} of '{files.to_path(run) / METRICS}' is damaged. Restore the file "
        f"from a copy, or remove '{run}' to train the prompt again."
      )
    found.append(line)
  return found


def whole_metrics(run: files.PathLike, step: int) -> list[dict[str, Any]]:
  """Returns the lines up to `step` that are not damaged."""
  return [line for line in _parsed(run) if line is not None and line["step"] <= step]


@contextlib.contextmanager
def whole(run: files.PathLike) -> Iterator[None]:
  """Makes one line of what values of other kinds do to the block that reads a run.

  Raises:
    UserError: a value in the manifest or the metrics is not what a run writes.
  """
  try:
    yield
  except (TypeError, ValueError, AttributeError, LookupError, ArithmeticError) as error:
    raise UserError(
      f"'{files.to_path(run) / MANIFEST}' or '{METRICS}' beside it is damaged "
      f"({type(error).__name__}: {error!s:.200}). Take another copy of the run."
    ) from error


def sampled_steps(total: int) -> tuple[int, int, int, int]:
  """Returns the steps at which a manifest's settings state the learning rate."""
  return 0, 1, total // 2, total - 1


def finite(values: Mapping[str, float]) -> dict[str, float | None]:
  """Returns the values as JSON, in which NaN and infinity are null."""
  return {name: v if math.isfinite(v) else None for name, v in values.items()}


def majority(data: Mapping[str, Any]) -> dict[str, Any] | None:
  """Returns the most common validation target and its share, None if none is counted.

  Args:
    data: what a manifest states of the data.
  """
  counts = data.get("counts", {}).get("validation", {})
  for target, count in counts.get("most_common", {}).items():
    return {"label": target, "share": count / counts["examples"]}
  return None


def scale(table: Float[np.ndarray, "V D"], factor: float = 1.0) -> dict[str, float]:
  """Returns deviation and mean norm of embedded tokens, rounded to 6 digits.

  The deviation is that of all values, the norm that of a row. Of a large table some rows
  are measured.

  Args:
    table: the token embeddings.
    factor: between a row of the table and an embedded token.
  """
  rows = factor * np.asarray(table[:: -(-len(table) // _SAMPLED)], np.float64)
  norms = np.linalg.norm(rows, axis=1)
  return {"deviation": float(f"{rows.std():.6g}"), "norm": float(f"{norms.mean():.6g}")}


def _parsed(run: files.PathLike) -> Iterator[dict[str, Any] | None]:
  """Yields the content of each line but an incomplete last one; None if it is damaged."""
  path = files.to_path(run) / METRICS
  *lines, _ = files.read_bytes(path).split(b"\n") if path.exists() else [b""]
  return (_metrics_of(line) for line in lines if line.strip())


def _is_manifest(content: Any) -> bool:
  if not isinstance(content, dict) or content.get("format") != FORMAT:
    return False
  parts = [content.get(name, {}) for name in ("defaults", "versions", "bank")]
  return all(isinstance(part, dict) for part in (content.get("settings"), *parts))


def _metrics_of(line: bytes) -> dict[str, Any] | None:
  """Returns the content of a line of metrics.jsonl, or None if it is damaged."""
  try:
    content = files.parse_json(line)
    if isinstance(content["step"], int) and isinstance(content["kind"], str):
      return content
  except (ValueError, KeyError, TypeError, RecursionError):
    pass
  return None

"""Whether a vector is long enough to work on another start than its own.

docs/methods.md, (4.26): the ratio norm(vector) / norm(start).
"""

from tpv_jax.vectors import algebra, arithmetic
from tpv_jax.vectors.loaded import Loaded

MOVES_FROM = 2.5
"""Ratios below this get a hint: a threshold of ours.

On SmolLM2-135M (SST-2 and AG News, P = 20, 150 steps, two starts) vectors with ratios of
2.5 and more kept their task on another start, and those with 0.2 to 0.7 lost most of it;
between was not measured (docs/decoder_only.md, "The start").
"""


def own_ratio(item: Loaded) -> float | None:
  """Returns norm(vector) / norm(its own start); None if unknown.

  None also for a prompt, and for a vector of the factor space, which cannot be moved.
  """
  known = item.provenance
  if (known.kind, known.space) != ("vector", "effective") or not known.initial_norm:
    return None
  return arithmetic.norm(item.leaves) / known.initial_norm


def ratio(vector: Loaded, start: Loaded, coefficient: float = 1.0) -> float | None:
  """Returns norm(coefficient * vector) / norm(start), both in the effective space.

  None if one of them is not of that space, or the start is all zeros.
  """
  if vector.provenance.space != "effective":
    return None
  norm = arithmetic.norm(algebra.fold(start).leaves)
  return abs(coefficient) * arithmetic.norm(vector.leaves) / norm if norm else None


def told(low: float, high: float | None = None) -> str:
  """Returns the ratio of a moved vector, or the lowest and highest of several, and a hint."""
  shown = f"{low:.3g}" if high is None else f"{low:.3g} to {high:.3g}"
  more = hint(low)
  return f"norm(vector) / norm(start) is {shown}" + (f"; {more}" if more else "")


def hint(ratio: float) -> str | None:
  """Returns a line about a vector that may be too small to move; None if it is not."""
  if ratio >= MOVES_FROM:
    return None
  return (
    f"below {MOVES_FROM:g} (our threshold, from SmolLM2) it may not work on another start; "
    "a smaller start or more steps raise it (docs/decoder_only.md, The start)"
  )

"""How near other vectors are to one: retrieval of sources."""

import dataclasses
from collections.abc import Sequence
from typing import Any

from tpv_jax.core import identity
from tpv_jax.core.errors import UserError
from tpv_jax.vectors import arithmetic, compatibility
from tpv_jax.vectors.loaded import Loaded
from tpv_jax.vectors.provenance import describe_terms

MEASURES = ("cosine", "dot", "norm")
"""By what vectors are ranked, the largest first."""


@dataclasses.dataclass(frozen=True)
class Neighbour:
  """How near one vector is to another.

  Attributes:
    vector: the one that was found.
    cosine: docs/methods.md, (4.6).
    dot: the dot product of two tokens, averaged over the tokens, by which DTVG
      (arXiv 2503.18063) compares vectors. Rows of `delta` count as tokens (ours).
    norm: of the vector.
    same_origin: whether both were tuned from one initial prompt; None if that is unknown.
  """

  vector: Loaded
  cosine: float
  dot: float
  norm: float
  same_origin: bool | None

  def to_json(self) -> dict[str, Any]:
    """Returns the numbers as JSON."""
    return {
      "path": self.vector.name,
      "terms": describe_terms(self.vector.provenance.terms),
      "cosine": self.cosine,
      "dot": self.dot,
      "norm": self.norm,
      "same_origin": self.same_origin,
    }


def nearest(
  vector: Loaded, others: Sequence[Loaded], by: str = "cosine"
) -> tuple[list[Neighbour], list[tuple[str, str]]]:
  """Returns the others from the nearest on, and those left out, each with the reason.

  Left out are vectors of other shapes, other spaces or another backbone, those of zeros,
  and the vector itself. Where equally near, the order is that of `others`.

  Raises:
    UserError: the vector is all zeros, or `by` is not one of `MEASURES`.
  """
  if by not in MEASURES:
    raise UserError(f"There is no measure '{by}'. Choose one of {', '.join(MEASURES)}.")
  if arithmetic.is_zero(vector.leaves):
    raise UserError(f"'{vector.name}' is all zeros and has no direction.")
  own = identity.prompt_digest(vector.leaves)
  found, left_out = [], []
  for other in others:
    reason = compatibility.why_not_comparable(vector, other)
    if reason is None and identity.prompt_digest(other.leaves) == own:
      reason = f"it has the values of '{vector.name}'"
    if reason is None:
      found.append(_neighbour(vector, other))
    else:
      left_out.append((other.name, reason))
  return sorted(found, key=lambda one: -float(getattr(one, by))), left_out


def _neighbour(vector: Loaded, other: Loaded) -> Neighbour:
  cosine = arithmetic.cosine(vector.leaves, other.leaves)
  norm = arithmetic.norm(other.leaves)
  # A leaf without axes, such as gamma of the factor space, is one row.
  tokens = sum(leaf.shape[0] if leaf.ndim else 1 for leaf in vector.leaves.values())
  return Neighbour(
    other,
    cosine,
    cosine * arithmetic.norm(vector.leaves) * norm / tokens,
    norm,
    compatibility.same_origin(vector, other),
  )

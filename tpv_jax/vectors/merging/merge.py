"""Merging vectors by a rule of the registry."""

import dataclasses
from collections.abc import Mapping, Sequence

import numpy as np

from tpv_jax.core.errors import UserError
from tpv_jax.vectors import algebra, arithmetic
from tpv_jax.vectors.loaded import Loaded
from tpv_jax.vectors.merging import registry


def merge(
  vectors: Sequence[Loaded],
  rule: str = "task_arithmetic",
  weights: Sequence[float] | None = None,
  coefficient: float = 1.0,
  options: Mapping[str, float] | None = None,
  allow_mixed_origin: bool = False,
  allow_unknown_backbone: bool = False,
) -> Loaded:
  """Returns coefficient * sum_i c_i * vectors[i] with the c_i of a merge rule.

  docs/methods.md, (4.9). The c_i are computed in fp64 from the vectors' inner products over
  all values. A vector of zeros is left out, which is noted. Otherwise as `sum_vectors`.

  Args:
    vectors: at least one.
    rule: a name of `registry.RULES`.
    weights: one for each vector, for rules that take weights; None for 1.
    coefficient: multiplies the whole result.
    options: of the rule, by name; options left out have their defaults.
    allow_mixed_origin: see `sum_vectors`.
    allow_unknown_backbone: see `sum_vectors`.

  Raises:
    UserError: an unknown rule or option, a number of vectors or weights that the rule
      does not take, vectors that are all zero or opposite; and as `sum_vectors`.
  """
  merging = registry.with_options(rule, options or {})
  if weights is not None and not merging.weighted:
    raise UserError(f"The merge rule '{rule}' takes no weights. Leave them out.")
  if merging.number not in (None, len(vectors)):
    raise UserError(
      f"The merge rule '{rule}' takes exactly {merging.number} vectors, and there are "
      f"{len(vectors)}. Use another rule, or merge in steps."
    )
  given = np.ones(len(vectors)) if weights is None else np.asarray(weights, np.float64)
  # What can't be added can't be merged, and the reasons are those of the sum.
  algebra.sum_vectors(
    vectors, given.tolist(), allow_mixed_origin, allow_unknown_backbone
  )
  kept = [any(leaf.any() for leaf in one.leaves.values()) for one in vectors]
  if not any(kept):
    raise UserError("All vectors are zero, and there is nothing to merge.")
  if merging.number is not None and not all(kept):
    raise UserError(
      f"'{vectors[kept.index(False)].name}' is all zeros and has no direction, which the "
      f"merge rule '{rule}' needs of each vector."
    )
  gram = arithmetic.gram(
    [one.leaves for one, keep in zip(vectors, kept, strict=True) if keep]
  )
  coefficients = np.zeros(len(vectors))
  coefficients[kept] = merging.coefficients(gram, given[kept])
  merged = algebra.sum_vectors(
    vectors,
    (coefficient * coefficients).tolist(),
    allow_mixed_origin,
    allow_unknown_backbone,
  )
  left_out = [one.name for one, keep in zip(vectors, kept, strict=True) if not keep]
  notes = [f"'{name}' is all zeros and was left out" for name in left_out]
  if rule != "task_arithmetic":
    settings = [
      f"{name} {value:g}" for name, value in dataclasses.asdict(merging).items()
    ]
    notes.append("merged by " + ", ".join([rule, *settings]))
  provenance = dataclasses.replace(
    merged.provenance, notes=(*merged.provenance.notes, *notes)
  )
  return Loaded(merged.leaves, provenance, f"merge by {rule}")

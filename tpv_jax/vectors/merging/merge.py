"""Merging vectors, or prompts, by a rule of the registry."""

import dataclasses
import shlex
from collections.abc import Mapping, Sequence
from typing import Any, cast

import numpy as np
from jaxtyping import Float64

from tpv_jax.core import identity
from tpv_jax.core.errors import UserError
from tpv_jax.vectors import algebra, arithmetic, compatibility
from tpv_jax.vectors.loaded import Loaded
from tpv_jax.vectors.merging import registry
from tpv_jax.vectors.merging.protocol import (
  CoefficientRule,
  LeafRule,
  PromptRule,
  Rule,
)
from tpv_jax.vectors.provenance import (
  MERGED_BY,
  Merge,
  Part,
  Provenance,
  Term,
  scale_terms,
)

ALL_ZERO = "the merged vector is all zeros"
"""The note of a merge that left nothing."""


def merge(
  vectors: Sequence[Loaded],
  rule: str = "task_arithmetic",
  weights: Sequence[float] | None = None,
  coefficient: float = 1.0,
  options: Mapping[str, Any] | None = None,
  allow_mixed_origin: bool = False,
  allow_unknown_backbone: bool = False,
) -> Loaded:
  """Returns the vectors merged by a rule, times a coefficient.

  docs/methods.md, (4.9) to (4.25). Rules compute in fp64, and the result is rounded to fp32
  once. A vector of zeros is left out, which is noted. What may be combined is as in
  `sum_vectors`.

  Where a rule is linear in the vectors, the result's terms are theirs times its
  coefficients. Otherwise it has one term, the `Merge`, which states the rule, its settings
  and the digests of what was merged; such a vector can be applied, scaled and added, but
  it is not a sum of its tasks' vectors.

  Args:
    vectors: at least one; prompts for the rule concat, whose result is a prompt.
    rule: a name of `registry.RULES`.
    weights: one for each vector, for rules that take weights; None for 1.
    coefficient: multiplies the whole result.
    options: of the rule, by name; options left out have their defaults. An option that
      can differ between vectors, such as density, is a number or a list of them.
    allow_mixed_origin: see `sum_vectors`.
    allow_unknown_backbone: see `sum_vectors`.

  Raises:
    UserError: an unknown rule or option, a number of vectors or weights that the rule
      does not take, vectors that are all zero or opposite; a rule that is not linear in
      the factor space; and as `sum_vectors`.
  """
  merging = registry.with_options(rule, options or {})
  check_numbers(merging, rule, weights, len(vectors))
  if isinstance(merging, PromptRule):
    if allow_mixed_origin:
      raise UserError(
        f"The merge rule '{rule}' makes a prompt, whatever the initial prompts of its parts "
        "were. Leave out --allow-mixed-origin (allow_mixed_origin)."
      )
    return _joined(vectors, merging, rule, coefficient, allow_unknown_backbone)
  given = np.ones(len(vectors)) if weights is None else np.asarray(weights, np.float64)
  allowed = allow_mixed_origin, allow_unknown_backbone
  # What can't be added can't be merged, and the reasons are those of the sum.
  known = algebra.sum_provenance(vectors, given.tolist(), *allowed)
  compatibility.refuse_not_finite(coefficient)
  kept, notes = without_zeros(vectors, merging, rule)
  if merging.linear:
    gram = arithmetic.gram([vectors[index].leaves for index in kept])
    coefficients = np.zeros(len(vectors))
    coefficients[kept] = coefficient * cast(CoefficientRule, merging).coefficients(
      gram, given[kept]
    )
    known = algebra.sum_provenance(vectors, coefficients.tolist(), *allowed)
    leaves = arithmetic.linear([one.leaves for one in vectors], coefficients.tolist())
  else:
    if known.space == "factor":
      raise UserError(
        f"The merge rule '{rule}' is not linear, and a vector of parameters cannot be "
        "merged so: what an EPT or DePT prompt does is a product of its parameters. Merge "
        "vectors of the effective space (tpv diff without --space factor), or use a rule "
        "such as task_arithmetic."
      )
    values, made = _by_leaf(vectors, merging, rule, given, kept)
    with np.errstate(over="ignore"):
      leaves = arithmetic.finite(
        {name: (coefficient * leaf).astype(np.float32) for name, leaf in values.items()}
      )
    known = dataclasses.replace(known, terms=scale_terms([made], coefficient))
    notes += rank_notes(leaves, [vectors[index] for index in kept])
  if merging.linear and rule != "task_arithmetic":
    notes.append(note(rule, settings_of(merging)))
  if arithmetic.is_zero(leaves):
    notes.append(ALL_ZERO)
  return Loaded(
    leaves,
    dataclasses.replace(known, notes=(*known.notes, *notes)),
    f"merge by {rule}",
  )


def check_numbers(
  merging: Rule, rule: str, weights: Sequence[float] | None, number: int
) -> None:
  """Raises `UserError` for as many vectors, weights or options as the rule cannot take."""
  if weights is not None and not merging.weighted:
    raise UserError(f"The merge rule '{rule}' takes no weights. Leave them out.")
  if merging.number not in (None, number):
    raise UserError(
      f"The merge rule '{rule}' takes exactly {merging.number} vectors, and there are "
      f"{number}. Use another rule, or merge in steps."
    )
  for name, value in dataclasses.asdict(merging).items():
    if isinstance(value, list | tuple) and len(value) != number:
      raise UserError(
        f"{name} of {rule} has {len(value)} values, and there are {number} vectors. Give "
        "one for all, or one for each, in the same order."
      )


def without_zeros(
  vectors: Sequence[Loaded], merging: Rule, rule: str
) -> tuple[list[int], list[str]]:
  """Returns the indices of the vectors that are not all zeros; a note on each other one.

  Raises:
    UserError: all are zero, or the rule needs each.
  """
  kept = [
    index for index, one in enumerate(vectors) if not arithmetic.is_zero(one.leaves)
  ]
  if not kept:
    raise UserError("All vectors are zero, and there is nothing to merge.")
  if merging.number is not None and len(kept) < len(vectors):
    zero = next(index for index in range(len(vectors)) if index not in kept)
    raise UserError(
      f"'{vectors[zero].name}' is all zeros and has no direction, which the merge rule "
      f"'{rule}' needs of each vector."
    )
  return kept, [
    f"'{one.name}' is all zeros and was left out"
    for index, one in enumerate(vectors)
    if index not in kept
  ]


def _by_leaf(
  vectors: Sequence[Loaded],
  merging: Rule,
  rule: str,
  weights: Float64[np.ndarray, " N"],
  kept: Sequence[int],
) -> tuple[dict[str, np.ndarray], Term]:
  """Returns what a rule that is not linear makes of the kept vectors, in fp64; its term."""
  digests = {index: identity.prompt_digest(vectors[index].leaves) for index in kept}
  settings = settings_of(merging)

  def place(index: int) -> tuple[Any, ...]:
    own = [value[index] for value in settings.values() if isinstance(value, tuple)]
    return digests[index], weights[index], *own

  # So that the order of the vectors cannot change a bit.
  order = list(kept) if merging.ordered else sorted(kept, key=place)
  settings = {
    name: tuple(value[index] for index in order) if isinstance(value, tuple) else value
    for name, value in settings.items()
  }
  merging = dataclasses.replace(cast(Any, merging), **settings)
  leaves = {}
  for name in sorted(vectors[order[0]].leaves):
    leaves[name] = cast(LeafRule, merging).merged(
      [vectors[index].leaves[name] for index in order],
      weights[order],
      [f"{digests[index]} {name}" for index in order],
    )
  given = weights[order].tolist() if merging.weighted else ()
  return leaves, term(rule, settings, given, [vectors[index] for index in order])


def term(
  rule: str,
  settings: Mapping[str, Any],
  weights: Sequence[float],
  parts: Sequence[Loaded],
) -> Term:
  """Returns the term of what a rule made of vectors or prompts.

  Args:
    rule: its name.
    settings: its options, see `settings_of`, and what else it depends on.
    weights: one for each part; () for a rule that takes none.
    parts: in the order in which the rule saw them.
  """
  made = Merge(
    rule,
    tuple(sorted(settings.items())),
    tuple(weights),
    tuple(
      Part(identity.prompt_digest(one.leaves), one.provenance.terms) for one in parts
    ),
  )
  return Term(None, 1.0, made)


def note(rule: str, settings: Mapping[str, Any]) -> str:
  """Returns what the provenance of a linear merge says of its rule."""
  stated = [f"{name} {_text(value)}" for name, value in settings.items()]
  return f"{MERGED_BY} {', '.join([rule, *stated])}"


def rank_notes(leaves: Mapping[str, np.ndarray], parts: Sequence[Loaded]) -> list[str]:
  """Returns what is lost where a merged delta is cut to the rank that its parts have.

  A run that starts from the vector cuts its delta to the rank of the run, docs/methods.md,
  (3.14). Nothing is said of vectors without a delta, or if no part has a lower rank.
  """
  if "delta" not in leaves:
    return []

  def spectrum(leaf: np.ndarray) -> np.ndarray:
    values = np.linalg.svd(leaf.astype(np.float64), compute_uv=False)
    return values[values > arithmetic.negligible(values, leaf.shape)]

  values = spectrum(leaves["delta"])
  most = max(len(spectrum(one.leaves["delta"])) for one in parts)
  if len(values) <= most:
    return []
  lost = np.linalg.norm(values[most:]) / np.linalg.norm(values)
  return [
    f"its delta has rank {len(values)}, and its parts' at most {most}; cut to that rank, as "
    f"when an EPT or DePT run starts from it, it loses {lost:.2g} of its norm"
  ]


def settings_of(merging: Rule) -> dict[str, Any]:
  """Returns the options as JSON can have them, but lists as tuples."""
  return {
    name: tuple(map(_plain, value))
    if isinstance(value, list | tuple)
    else _plain(value)
    for name, value in dataclasses.asdict(merging).items()
  }


def _plain(value: Any) -> Any:
  return value.item() if isinstance(value, np.generic) else value


def _joined(
  prompts: Sequence[Loaded],
  merging: PromptRule,
  rule: str,
  coefficient: float,
  allow_unknown_backbone: bool,
) -> Loaded:
  """Returns the prompt that a rule makes of several."""
  if coefficient != 1:
    raise UserError(
      f"The merge rule '{rule}' makes a prompt, which has no coefficient. Leave it out."
    )
  if not prompts:
    raise UserError(f"The merge rule '{rule}' needs at least one prompt.")
  for one in prompts:
    compatibility.require(
      "prompt",
      one,
      f"Apply each vector first (tpv apply {shlex.quote(one.name)} INITIAL -o P).",
    )
  folded = [algebra.fold(one) for one in prompts]
  for one in folded:
    if set(one.leaves) != {"prompt"}:
      raise UserError(
        f"'{one.name}' also changes the source by position, and such prompts cannot stand "
        f"one after the other. '{rule}' takes plain prompts."
      )
  compatibility.refuse_other_method(folded)
  width = folded[0].leaves["prompt"].shape[1]
  for one in folded[1:]:
    if (other := one.leaves["prompt"].shape[1]) != width:
      raise UserError(
        f"Cannot join '{folded[0].name}' and '{one.name}': their widths are {width} and "
        f"{other}. Use prompts of one backbone."
      )
  values = merging.joined([one.leaves["prompt"] for one in folded])
  made = term(rule, settings_of(merging), (), folded)
  return Loaded(
    {"prompt": values},
    _joined_provenance(folded, made, allow_unknown_backbone),
    f"merge by {rule}",
  )


def _joined_provenance(
  prompts: Sequence[Loaded], term: Term, allow_unknown_backbone: bool
) -> Provenance:
  """Returns the provenance of a prompt made of several, which is no vector's result."""
  fingerprint, notes = compatibility.common_backbone(prompts, allow_unknown_backbone)
  quantize, more = compatibility.common_quantization(prompts)
  known = [one.provenance for one in prompts]
  chats = {one.chat_digest for one in known}
  return Provenance(
    kind="prompt",
    terms=(term,),
    backbone_name=next((one.backbone_name for one in known if one.backbone_name), None),
    backbone_fingerprint=fingerprint,
    architecture=next((one.architecture for one in known if one.architecture), None),
    method=known[0].method,
    chat_digest=chats.pop() if len(chats) == 1 else None,
    quantize=quantize,
    notes=(*notes, *more),
  )


def _text(value: Any) -> str:
  if isinstance(value, list | tuple):
    return " ".join(map(_text, value))
  return f"{value:g}" if isinstance(value, float) else str(value)

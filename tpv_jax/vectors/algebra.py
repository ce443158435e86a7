"""The operations on task prompt vectors: what may be combined, and what results.

Pure functions: values with their provenance in, values with their provenance out. The
numbers and their error bounds are in `arithmetic`. The definitions are those of the TPV
paper (arXiv 2408.01119; docs/methods.md, (4.1) to (4.6)), where P_i is an initial prompt,
P_t the prompt tuned from it on task t, and v_t = P_t - P_i its vector. The terms of a
prompt or vector are data, scaled and added like the values (4.8), so negating v_a + v_b
negates both.

What an EPT or DePT prompt does is not linear in its parameters: (a1 + a2)(b1 + b2) is not
a1 b1 + a2 b2. So a vector lives in one of two spaces, which are never mixed
(docs/methods.md, "Two spaces"). Vectors of the 'effective' space are differences of what
prompts do, their folded `prompt` and `delta`; parameters are folded first. Vectors of the
'factor' space are differences of the parameters, leaf by leaf. They are meaningful only on
the initial parameters that they were taken from, so no origin is mixed or crossed there. A
plain prompt is its own folded form.
"""

import dataclasses
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
from jaxtyping import Float64

from tpv_jax.core import identity
from tpv_jax.core.errors import UserError
from tpv_jax.prompts import registry
from tpv_jax.vectors import arithmetic, compatibility
from tpv_jax.vectors.loaded import Loaded
from tpv_jax.vectors.provenance import (
  MERGED_BY,
  SPACES,
  Provenance,
  Term,
  describe_terms,
  merge_terms,
  scale_terms,
  tasks_of,
)


def fold(prompt: Loaded) -> Loaded:
  """Returns a prompt in the effective space: its `prompt` [S, D] and `delta` [M, D].

  docs/methods.md, (3.12), computed in fp64 from a DePT or EPT prompt's parameters and
  rounded to fp32 once. A folded prompt, as every plain one is, is returned unchanged.

  Raises:
    UserError: a vector was given, or a prompt whose alpha is unknown.
  """
  compatibility.require(
    "prompt", prompt, "Apply it to an initial prompt and fold that (tpv apply)."
  )
  known = prompt.provenance
  if known.space == "effective":
    return prompt
  if known.alpha is None:
    raise UserError(
      f"'{prompt.name}' holds the parameters of a DePT or EPT prompt and does not state "
      "their alpha, so what they do is unknown. Give its run folder, or state it (--alpha "
      "of tpv fold and tpv diff)."
    )
  digest = known.initial_folded_digest
  provenance = dataclasses.replace(
    known,
    space="effective",
    alpha=None,
    initial_digest=digest,
    # A vector of parameters is applied to its own initial parameters only.
    applied_to_digest=None if known.applied_to_digest is None else digest,
    initial_folded_digest=None,
  )
  method = registry.of_leaves(prompt.leaves)
  assert method is not None  # The file would not have been read.
  folded = method.fold(prompt.leaves, known.alpha)
  return Loaded(folded.leaves(), provenance, prompt.name)


def named(tuned: Loaded, task: str | None) -> tuple[Term, ...]:
  """Returns the terms of a prompt, with its one unknown task given the name `task`.

  Raises:
    UserError: the prompt states its tasks itself, and they are not `task`.
  """
  terms = tuned.provenance.terms
  if task is None:
    return terms
  stated = [term.task for term in terms]
  if stated == [None] and terms[0].merge is None:
    return (Term(task, terms[0].coefficient),)
  if stated != [task]:
    raise UserError(
      f"'{tuned.name}' states its task terms itself ({describe_terms(terms)}), not "
      f"'{task}'. Leave out --task."
    )
  return terms


def diff(
  tuned: Loaded,
  initial: Loaded,
  allow_mixed_origin: bool = False,
  task: str | None = None,
  space: str = "effective",
) -> Loaded:
  """Returns the vector tuned - initial, (4.1), with the terms of `tuned`.

  Applied to `initial` again, it gives the values of `tuned` within
  U (|tuned| + |tuned - initial|) (1 + 2^-20) + 2^-149, U = 2^-24 (of folded values in
  the effective space).

  If `tuned` does not state its origin, `initial` is taken for it on the user's word, and
  that is noted. The vector states a backbone only if both prompts state the same one.

  Args:
    tuned: a prompt.
    initial: the prompt that it was tuned from.
    allow_mixed_origin: also accept an `initial` that `tuned` was not tuned from. The
      vector then contains the difference of the two initial prompts, and says so.
    task: the name of the one task, for a checkpoint that does not state it.
    space: 'effective' (both are folded first) or 'factor' (both must be parameters). For
      plain prompts the two are the same, and the vector's space is 'effective'.

  Raises:
    UserError: a vector was given; the backbones, methods or shapes differ; `tuned` was
      tuned from another prompt, or states another task than `task`. In the factor space
      also: a folded prompt was given, the alphas differ, or the origin would be mixed.
  """
  if space not in SPACES:
    raise UserError(f"There is no space '{space}'. Choose one of {', '.join(SPACES)}.")
  compatibility.require(
    "prompt", tuned, f"It is a difference already: use '{tuned.name}' as it is."
  )
  compatibility.require("prompt", initial, "Give the initial prompt of the run.")
  compatibility.refuse_other_method([tuned, initial])
  tuned, _ = _in_space(tuned, space)
  initial, start = _in_space(initial, space)
  compatibility.refuse_unequal([tuned, initial])
  compatibility.refuse_other_alpha([tuned, initial])
  fingerprint, notes = compatibility.common_backbone(
    [tuned, initial], allow_unknown=True
  )
  mode, mode_notes = compatibility.common_quantization([tuned, initial])
  notes += mode_notes
  mine, other = tuned.provenance, initial.provenance
  terms, mixed = named(tuned, task), mine.mixed_origins
  digest: str | None = start
  begin, folded_digest = initial, None
  if mine.space == "factor" and mine.alpha is not None:
    begin, folded_digest = _in_space(initial, "effective")
  norm = None if begin.provenance.space == "factor" else arithmetic.norm(begin.leaves)
  seed = mine.base_seed if mine.base_digest == start else None
  if seed is None and other.initial_digest == start:
    seed = other.initial_seed
  if mine.base_digest is None:
    notes += (
      f"that it was tuned from the initial prompt {start[:12]} is the user's word",
    )
  elif mine.base_digest != start:
    if mine.space == "factor" or not allow_mixed_origin:
      raise UserError(compatibility.other_initial(tuned, initial, start))
    terms = merge_terms([*terms, *scale_terms(other.terms, -1.0)])
    mixed, digest, seed = tuple(sorted({mine.base_digest, start})), None, None
    norm = None
    notes += ("it holds the difference of two initial prompts (--allow-mixed-origin)",)
  elif mine.applied_to_digest is not None:
    digest, seed = mine.initial_digest, mine.initial_seed
    norm = mine.initial_norm
  provenance = dataclasses.replace(
    mine,
    kind="vector",
    terms=terms,
    backbone_name=mine.backbone_name or other.backbone_name,
    backbone_fingerprint=fingerprint,
    architecture=mine.architecture or other.architecture,
    quantize=mode,
    initial_digest=digest,
    initial_seed=seed,
    initial_norm=norm,
    applied_to_digest=None,
    applied_to_seed=None,
    mixed_origins=mixed,
    initial_folded_digest=folded_digest,
    notes=_union(mine.notes, notes),
  )
  return Loaded(
    arithmetic.subtract(tuned.leaves, initial.leaves), provenance, f"diff {tuned.name}"
  )


def negate(vector: Loaded) -> Loaded:
  """Returns -vector, (4.2), with every term negated; exact, so twice changes no bit.

  Raises:
    UserError: a prompt was given.
  """
  return dataclasses.replace(scale(vector, -1.0), name=f"negate {vector.name}")


def scale(vector: Loaded, factor: float) -> Loaded:
  """Returns factor * vector, (4.2); error bound in `arithmetic.scale`. 0 drops the terms.

  Raises:
    UserError: a prompt was given, or the factor or a result is not finite.
  """
  compatibility.require_vector(vector)
  compatibility.refuse_not_finite(factor)
  return Loaded(
    arithmetic.scale(vector.leaves, factor),
    dataclasses.replace(
      vector.provenance, terms=scale_terms(vector.provenance.terms, factor)
    ),
    f"{factor:g} {vector.name}",
  )


def sum_vectors(
  vectors: Sequence[Loaded],
  weights: Sequence[float] | None = None,
  allow_mixed_origin: bool = False,
  allow_unknown_backbone: bool = False,
) -> Loaded:
  """Returns sum_k weights[k] * vectors[k], (4.3); error bound in `arithmetic.linear`.

  Terms of the same task are merged by adding their coefficients. The order of the vectors
  changes no bit of the values.

  Args:
    vectors: at least one.
    weights: one for each vector; all 1 (the paper's default) if None.
    allow_mixed_origin: also add vectors whose initial prompts differ or are unknown; the
      result says so.
    allow_unknown_backbone: also add vectors whose backbone is unknown; this is noted.

  Raises:
    UserError: a prompt was given; shapes, methods, spaces, backbones or initial prompts
      differ or cannot be shown to be the same; or the number of weights is not that of
      the vectors. In the factor space different initial prompts are always refused.
  """
  weights = [1.0] * len(vectors) if weights is None else list(weights)
  provenance = sum_provenance(
    vectors, weights, allow_mixed_origin, allow_unknown_backbone
  )
  values = arithmetic.linear([vector.leaves for vector in vectors], weights)
  return Loaded(values, provenance, "sum")


def sum_provenance(
  vectors: Sequence[Loaded],
  weights: Sequence[float],
  allow_mixed_origin: bool = False,
  allow_unknown_backbone: bool = False,
) -> Provenance:
  """Returns the provenance of `sum_vectors`, and raises as it does."""
  if not vectors:
    raise UserError("There is nothing to add. Give at least one vector.")
  if len(weights) != len(vectors):
    raise UserError(
      f"The number of weights ({len(weights)}) is not that of the vectors "
      f"({len(vectors)}). Give one weight for each vector, in the same order."
    )
  for vector, weight in zip(vectors, weights, strict=True):
    compatibility.require_vector(vector)
    compatibility.refuse_not_finite(weight)
  compatibility.refuse_other_method(vectors)
  compatibility.refuse_other_space(vectors)
  compatibility.refuse_unequal(vectors)
  fingerprint, backbone_notes = compatibility.common_backbone(
    vectors, allow_unknown_backbone
  )
  mode, mode_notes = compatibility.common_quantization(vectors)
  digest, mixed, origin_notes = compatibility.common_origin(vectors, allow_mixed_origin)
  known = [vector.provenance for vector in vectors]
  return Provenance(
    kind="vector",
    terms=merge_terms(
      term
      for one, weight in zip(known, weights, strict=True)
      for term in scale_terms(one.terms, weight)
    ),
    backbone_name=next((one.backbone_name for one in known if one.backbone_name), None),
    backbone_fingerprint=fingerprint,
    architecture=next((one.architecture for one in known if one.architecture), None),
    initial_digest=digest,
    initial_seed=_agreed([one.initial_seed for one in known]) if digest else None,
    initial_norm=next((n for one in known if (n := one.initial_norm)), None)
    if digest
    else None,
    mixed_origins=mixed,
    steps=_agreed([one.steps for one in known]),
    method=known[0].method,
    space=known[0].space,
    alpha=known[0].alpha,
    initial_folded_digest=_agreed([one.initial_folded_digest for one in known]),
    chat_digest=_agreed([one.chat_digest for one in known]),
    quantize=mode,
    versions=dict(
      sorted(set.intersection(*(set(one.versions.items()) for one in known)))
    ),
    notes=_union(*_notes_by_task(known), backbone_notes, mode_notes, origin_notes),
  )


def analogy(
  a: Loaded,
  b: Loaded,
  c: Loaded,
  allow_mixed_origin: bool = False,
  allow_unknown_backbone: bool = False,
) -> Loaded:
  """Returns c + (b - a), "a is to b as c is to the result": (4.4).

  Raises:
    UserError: as `sum_vectors`.
  """
  result = sum_vectors(
    [c, b, a], [1.0, 1.0, -1.0], allow_mixed_origin, allow_unknown_backbone
  )
  return dataclasses.replace(result, name="analogy")


def apply(
  vector: Loaded,
  initial: Loaded,
  coefficient: float = 1.0,
  allow_unknown_backbone: bool = False,
) -> Loaded:
  """Returns the prompt initial + coefficient * vector, (4.5).

  Its error bound is in `arithmetic.linear`. The prompt is in the vector's space: a vector
  of the effective space is added to what the initial prompt does, which gives a folded
  prompt; one of the factor space is added to its own initial parameters, which gives
  parameters.

  In the effective space an initial prompt other than the vector's own is always allowed
  (the cross-origin test) and recorded as `provenance.cross_origin`. The terms are relative
  to the prompt that the vector was applied to, which `applied_to_digest` names.

  Raises:
    UserError: `vector` is a prompt or `initial` a vector; shapes, methods or backbones
      differ, or the backbones cannot be shown to be the same; a value is not finite. In
      the factor space also: `initial` is folded, or is not the parameters that the vector
      was taken from.
  """
  compatibility.require_vector(vector)
  compatibility.require(
    "prompt",
    initial,
    "Give an initial prompt, or a run folder, whose initial prompt is taken.",
  )
  compatibility.refuse_not_finite(coefficient)
  compatibility.refuse_other_method([vector, initial])
  initial, start = _in_space(initial, vector.provenance.space)
  compatibility.refuse_unequal([vector, initial])
  compatibility.refuse_other_alpha([vector, initial])
  fingerprint, notes = compatibility.common_backbone(
    [vector, initial], allow_unknown_backbone
  )
  mode, mode_notes = compatibility.common_quantization([vector, initial])
  notes += mode_notes
  mine, other = vector.provenance, initial.provenance
  if mine.space == "factor" and mine.initial_digest != start:
    raise UserError(
      f"Cannot apply '{vector.name}' to '{initial.name}': a vector of the factor space "
      "can be applied only to the initial parameters that it was taken from (digest "
      f"{compatibility.origin(vector)}), and these are {start[:12]}…. Give those, or use "
      "a vector of the effective space, which can be applied to any initial prompt."
    )
  if other.terms:
    notes += (
      f"the prompt that it was applied to, {start[:12]}, has the terms: "
      f"{describe_terms(other.terms)}",
    )
  provenance = dataclasses.replace(
    mine,
    kind="prompt",
    terms=scale_terms(mine.terms, coefficient),
    backbone_name=mine.backbone_name or other.backbone_name,
    backbone_fingerprint=fingerprint,
    architecture=mine.architecture or other.architecture,
    quantize=mode,
    applied_to_digest=start,
    applied_to_seed=other.initial_seed if other.initial_digest == start else None,
    notes=_union(mine.notes, notes),
  )
  values = arithmetic.linear([initial.leaves, vector.leaves], [1.0, coefficient])
  return Loaded(values, provenance, f"{vector.name} on {initial.name}")


def cosine(items: Sequence[Loaded]) -> Float64[np.ndarray, "N N"]:
  """Returns the cosine of every pair, (4.6); error bound in `arithmetic.cosine`.

  The matrix is symmetric, with a diagonal of exactly 1. Vectors may be compared with
  prompts. Prompts are folded first, because different parameters can do the same; vectors
  of the factor space can be compared only with each other.

  Raises:
    UserError: shapes, spaces or known backbones differ, an item is all zeros, or the alpha
      of a DePT or EPT prompt is unknown.
  """
  if not items:
    raise UserError("There is nothing to compare. Give at least one prompt or vector.")
  items = [fold(item) if item.provenance.kind == "prompt" else item for item in items]
  compatibility.refuse_other_space(items)
  compatibility.refuse_unequal(items)
  for item in items:
    if arithmetic.is_zero(item.leaves):
      raise UserError(f"'{item.name}' is all zeros and has no direction. Leave it out.")
  compatibility.common_backbone(items, allow_unknown=True)
  matrix = np.eye(len(items))
  for row, first in enumerate(items):
    for column in range(row):
      value = arithmetic.cosine(first.leaves, items[column].leaves)
      matrix[row, column] = matrix[column, row] = value
  return matrix


def _in_space(prompt: Loaded, space: str) -> tuple[Loaded, str]:
  """Returns the prompt in this space, and its digest there.

  Initial parameters fold to a prompt whose digest their run stated, and that digest is
  returned: this machine may round a last bit differently.
  """
  known = prompt.provenance
  if space == known.space:
    return prompt, identity.prompt_digest(prompt.leaves)
  if space == "effective":
    folded = fold(prompt)
    stated = known.initial_folded_digest
    if stated and identity.prompt_digest(prompt.leaves) == known.initial_digest:
      return folded, stated
    return folded, identity.prompt_digest(folded.leaves)
  if known.method == "plain":
    return prompt, identity.prompt_digest(prompt.leaves)
  raise UserError(
    f"'{prompt.name}' is folded, but the factor space needs the parameters of a DePT or "
    "EPT prompt. Give its run folder or a checkpoint, or stay in the effective space (tpv "
    "diff without --space factor)."
  )


def _agreed(values: Sequence[Any]) -> Any:
  """Returns the common value, None if they differ."""
  return values[0] if len(set(values)) == 1 else None


def _notes_by_task(known: Sequence[Provenance]) -> list[list[str]]:
  """Returns the notes of each vector; one that not all have says of which vector it is."""
  shared = set.intersection(*(set(one.notes) for one in known))
  if len(known) > 1:  # How a vector was merged is never true of a sum.
    shared = {note for note in shared if not note.startswith(MERGED_BY)}

  def named(one: Provenance) -> Iterator[str]:
    terms, parts = one.terms, list[str]()
    if len(terms) == 1 and terms[0].task is not None:
      owner = terms[0].task
    else:
      owner = describe_terms(terms) if terms else "a vector of zeros"
      parts = [f"{task}: " for task in tasks_of(terms)]
    for note in one.notes:
      # What is said of a part of a sum says so already.
      plain = note in shared or note.startswith(tuple(parts))
      yield note if plain else f"{owner}: {note}"

  return [list(named(one)) for one in known]


def _union(*notes: Sequence[str]) -> tuple[str, ...]:
  return tuple(dict.fromkeys(note for some in notes for note in some))

"""Whether prompts and vectors may be combined: their kinds, spaces, origins, backbones.

Each function refuses in one line that names both, or returns what they have in common.
"""

import math
import shlex
from collections.abc import Sequence

from tpv_jax.core.errors import UserError, option
from tpv_jax.core.leaves import not_finite
from tpv_jax.vectors import arithmetic
from tpv_jax.vectors.loaded import Loaded
from tpv_jax.vectors.provenance import describe_precision, describe_terms


def require_vector(item: Loaded) -> None:
  """Raises `UserError` unless the item is a vector with finite values."""
  require(
    "vector",
    item,
    f"Make a vector of it: tpv diff {shlex.quote(item.name)} [INITIAL] -o V.safetensors.",
  )


def require(kind: str, item: Loaded, advice: str) -> None:
  """Raises `UserError` unless the item is of this kind and its values are finite."""
  if item.provenance.kind != kind:
    raise UserError(
      f"'{item.name}' is a {item.provenance.kind} (terms: "
      f"{describe_terms(item.provenance.terms)}), but a {kind} is needed here. {advice}"
    )
  for name, leaf in item.leaves.items():
    if wrong := not_finite(leaf):
      raise UserError(
        f"The leaf '{name}' of '{item.name}' holds {wrong}. Go back to a checkpoint from "
        "before training diverged."
      )


def refuse_unequal(items: Sequence[Loaded]) -> None:
  """Raises `UserError` unless all have the same leaves with the same shapes."""
  for item in items[1:]:
    arithmetic.refuse_unequal(
      items[0].leaves, item.leaves, f"'{items[0].name}'", f"'{item.name}'"
    )


def refuse_other_space(items: Sequence[Loaded]) -> None:
  """Raises `UserError` unless all are in one space and, if 'factor', of one origin."""
  first = items[0]
  for item in items[1:]:
    if item.provenance.space != first.provenance.space:
      raise UserError(
        f"Cannot combine '{first.name}' and '{item.name}': one is of the "
        f"{first.provenance.space} space, the other of the {item.provenance.space} space,"
        " and sums of factors are not sums of what they do. Make both in one space (tpv "
        "diff, with or without --space factor)."
      )
    factors = item.provenance.space == "factor"
    if factors and item.provenance.initial_digest != first.provenance.initial_digest:
      raise UserError(
        f"Cannot combine '{first.name}' and '{item.name}': they are differences from "
        f"different initial parameters (digest {origin(first)}, {origin(item)}), whose "
        "factors have nothing in common. Make both in the effective space (tpv diff "
        "without --space factor)."
      )
  refuse_other_alpha(items)


def refuse_other_alpha(items: Sequence[Loaded]) -> None:
  """Raises `UserError` unless the alphas of all are equal."""
  for item in items[1:]:
    alphas = [one.provenance.alpha for one in (items[0], item)]
    if alphas[0] != alphas[1]:
      stated = ", ".join("unknown" if one is None else f"{one:g}" for one in alphas)
      raise UserError(
        f"Cannot combine '{items[0].name}' and '{item.name}': their alphas differ "
        f"({stated}), so equal parameters mean different updates. "
        + (
          "State the unknown one: tpv diff --alpha."
          if None in alphas
          else "Stay in the effective space (tpv diff without --space factor)."
        )
      )


def refuse_not_finite(coefficient: float) -> None:
  """Raises `UserError` for a coefficient that is NaN or infinite."""
  if not math.isfinite(coefficient):
    raise UserError(
      f"The coefficient {coefficient} is not finite. Give an ordinary number."
    )


def refuse_other_method(items: Sequence[Loaded]) -> None:
  """Raises `UserError` unless all are of one prompt method."""
  for item in items[1:]:
    if item.provenance.method != items[0].provenance.method:
      raise UserError(
        f"Cannot combine '{items[0].name}' and '{item.name}': their methods differ "
        f"({items[0].provenance.method}, {item.provenance.method}). Use prompts of one "
        "method."
      )


def common_backbone(
  items: Sequence[Loaded], allow_unknown: bool
) -> tuple[str | None, tuple[str, ...]]:
  """Returns the common fingerprint (None if any is unknown), and notes about it."""
  known = [item for item in items if item.provenance.backbone_fingerprint]
  for item in known[1:]:
    first = known[0]
    if item.provenance.backbone_fingerprint != first.provenance.backbone_fingerprint:
      raise UserError(
        f"Cannot combine '{first.name}' and '{item.name}': they belong to different "
        f"backbones ({_backbone(first)}, {_backbone(item)}). A prompt means nothing to "
        "another backbone; use prompts of one."
      )
  unknown = [item for item in items if not item.provenance.backbone_fingerprint]
  if not unknown:
    return known[0].provenance.backbone_fingerprint, ()
  if not allow_unknown:
    verb = "apply" if items[-1].provenance.kind == "prompt" else "sum"
    raise UserError(
      f"'{unknown[0].name}' does not state its backbone, so it cannot be shown to fit "
      "the others. State it when the vector is made (tpv diff --backbone), or "
      f"{_pass('unknown_backbone', verb)}."
    )
  return None, ("that all parts belong to one backbone is the user's word",)


def common_quantization(
  items: Sequence[Loaded],
) -> tuple[str | None, tuple[str, ...]]:
  """Returns how the backbone was quantised for all items, and a note if that differs.

  It is one backbone all the same; prompts without terms were not trained and do not count.
  """
  modes = [item.provenance.quantize for item in items if item.provenance.terms]
  if len(set(modes)) < 2:
    return modes[0] if modes else None, ()
  names = " and ".join(sorted({describe_precision(mode) for mode in modes}))
  return None, (f"its parts were trained on the backbone {names}",)


def common_origin(
  vectors: Sequence[Loaded], allow_mixed: bool
) -> tuple[str | None, tuple[str, ...], tuple[str, ...]]:
  """Returns the common initial digest or None, the mixed ones, and notes about them."""
  digests = {vector.provenance.initial_digest for vector in vectors}
  mixed = {digest for one in vectors for digest in one.provenance.mixed_origins}
  if len(digests) == 1 and not mixed and None not in digests:
    return digests.pop(), (), ()
  if len(vectors) == 1:
    return None, tuple(sorted(mixed)), ()
  if not allow_mixed:
    raise UserError(_origins_differ(vectors))
  mixed |= {digest for digest in digests if digest}
  notes = []
  if len(mixed) > 1:
    notes.append(
      "vectors of different initial prompts were added (--allow-mixed-origin)"
    )
  if any(_origin_unknown(vector) for vector in vectors):
    notes.append("not every added vector states its origin (--allow-mixed-origin)")
  return None, tuple(sorted(mixed)), tuple(notes)


def why_not_comparable(first: Loaded, other: Loaded) -> str | None:
  """Returns why a search that compares `first` with others leaves `other` out, or None."""
  mine, its = first.provenance, other.provenance
  fingerprints = {mine.backbone_fingerprint, its.backbone_fingerprint} - {None}
  shapes = [
    {name: list(leaf.shape) for name, leaf in one.leaves.items()}
    for one in (first, other)
  ]
  reason = None
  if len(fingerprints) > 1:
    reason = f"it belongs to another backbone ({_backbone(other)})"
  elif its.space != mine.space:
    reason = f"it is of the {its.space} space"
  elif its.space == "factor" and its.initial_digest != mine.initial_digest:
    reason = "it is of the factor space and of other initial parameters"
  elif shapes[0] != shapes[1]:
    held = ", ".join(f"{name} {shape}" for name, shape in sorted(shapes[1].items()))
    reason = f"it has other shapes ({held})"
  elif arithmetic.is_zero(other.leaves):
    reason = "it is all zeros and has no direction"
  return reason


def same_origin(first: Loaded, other: Loaded) -> bool | None:
  """Returns whether both were tuned from one initial prompt, None if that is unknown."""
  if _origin_unknown(first) or _origin_unknown(other):
    return None
  digests = [one.provenance.initial_digest for one in (first, other)]
  return None not in digests and digests[0] == digests[1]


def other_initial(tuned: Loaded, initial: Loaded, start: str) -> str:
  """Returns why `initial`, with the digest `start`, is not what `tuned` started from."""
  problem = (
    f"Cannot subtract '{initial.name}' ({start[:12]}…) from '{tuned.name}', which was "
    f"tuned from the initial prompt {str(tuned.provenance.base_digest)[:12]}…."
  )
  if tuned.provenance.space == "factor":
    return (
      f"{problem} In the factor space only the difference from its own can be taken: give "
      "the prompt that it was tuned from, or leave out --space factor."
    )
  return (
    f"{problem} Give the prompt that it was tuned from, or "
    f"{_pass('mixed_origin', 'diff')}. (To subtract one task from another, use 'tpv sum "
    "V1 V2 -w 1 -1'.)"
  )


def _origins_differ(vectors: Sequence[Loaded]) -> str:
  first = vectors[0]
  for other in vectors[1:]:
    pair = f"Cannot add '{first.name}' and '{other.name}'"
    one, two = first.provenance, other.provenance
    if _origin_unknown(first) or _origin_unknown(other):
      unknown = first if _origin_unknown(first) else other
      return (
        f"{pair}: '{unknown.name}' does not state its initial prompt, so the two "
        "cannot be shown to start from one. To add them nevertheless, "
        f"{_pass('mixed_origin')}."
      )
    if one.initial_digest != two.initial_digest:
      return (
        f"{pair}: they start from different initial prompts (digest {origin(first)}, "
        f"{origin(other)}). Train both from one initial prompt, or "
        f"{_pass('mixed_origin')}."
      )
  return (
    f"Cannot add '{first.name}' to others: it mixes several initial prompts "
    f"({origin(first)}). To add it nevertheless, {_pass('mixed_origin')}."
  )


def _pass(what: str, verb: str = "sum") -> str:
  return f"pass {option(f'allow_{what}', verb=verb)}"


def _origin_unknown(item: Loaded) -> bool:
  return item.provenance.initial_digest is None and not item.provenance.mixed_origins


def origin(item: Loaded) -> str:
  """Returns the digest of the initial prompt, or of several, shortened for messages."""
  if item.provenance.initial_digest:
    return f"{item.provenance.initial_digest[:12]}…"
  return "mixed " + "+".join(f"{one[:12]}…" for one in item.provenance.mixed_origins)


def _backbone(item: Loaded) -> str:
  known = item.provenance
  return f"{known.backbone_name or 'no name'} {str(known.backbone_fingerprint)[:12]}…"

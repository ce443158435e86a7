"""What a prompt or vector states of itself, in rows for people."""

from typing import Any

from tpv_jax.core import identity
from tpv_jax.core.errors import printable
from tpv_jax.vectors import arithmetic, moving
from tpv_jax.vectors.loaded import Loaded
from tpv_jax.vectors.provenance import Merge, describe_terms


def rows(item: Loaded) -> list[tuple[str, Any]]:
  """Returns labels and values: what it is made of and where it comes from."""
  known = item.provenance
  return [
    ("path", item.name),
    ("kind", known.kind),
    ("terms", describe_terms(known.terms)),
    *(row for term in known.terms if term.merge for row in _merge_rows(term.merge)),
    *(("leaf", f"{name} {shape}, fp32") for name, shape in shapes(item).items()),
    ("norm", f"{arithmetic.norm(item.leaves):.6g}"),
    *_ratio_rows(item),
    ("digest", identity.prompt_digest(item.leaves)),
    ("backbone", known.backbone_name),
    ("  fingerprint", known.backbone_fingerprint),
    *((("  network", known.architecture),) if known.architecture else ()),
    *_origin_rows(item),
    ("steps", known.steps),
    ("method", known.method),
    ("space", f"{known.space} ({_what(item)})"),
    *((("  alpha", known.alpha),) if known.space == "factor" else ()),
    *((("  quantised", known.quantize),) if known.quantize else ()),
    *((("chat template", known.chat_digest),) if known.chat_digest else ()),
    ("versions", ", ".join(f"{k} {v}" for k, v in known.versions.items()) or None),
    *(("note", note) for note in known.notes),
  ]


def shapes(item: Loaded) -> dict[str, list[int]]:
  """Returns the shape of each leaf."""
  return {name: list(leaf.shape) for name, leaf in item.leaves.items()}


def line(item: Loaded) -> str:
  """Returns one line: the kind, the terms, the shapes, the norm and the backbone."""
  known = item.provenance
  what = describe_terms(known.terms) if known.terms or known.steps != 0 else "initial"
  held = ", ".join(f"{name} {shape}" for name, shape in shapes(item).items())
  norm = f"norm {arithmetic.norm(item.leaves):.4g}"
  if (ratio := moving.own_ratio(item)) is not None:
    norm += f", {ratio:.2g} of its start's"
  of = f", of {known.backbone_name}" if known.backbone_name else ""
  return f"<{known.kind} {what}: {held}, {norm}{of}>"


def written(item: Loaded, output: str) -> list[str]:
  """Returns lines about what was written to a file."""
  known = item.provenance
  if known.space == "factor":
    values = sum(leaf.size for leaf in item.leaves.values())
    held = f"factor space, {values} values in {len(item.leaves)} leaves"
  else:
    held = ", ".join(f"{name} {shape}" for name, shape in sorted(shapes(item).items()))
  norm = f"norm {arithmetic.norm(item.leaves):.4g}"
  return [
    f"Wrote the {known.kind} '{printable(output)}': {describe_terms(known.terms)}.",
    f"  {held}, {norm}, {_origin_text(item)}.",
    *(f"  note: {printable(note)}." for note in known.notes),
  ]


def _origin_text(item: Loaded) -> str:
  known = item.provenance
  if known.mixed_origins:
    origin = f"{len(known.mixed_origins)} initial prompts"
  else:
    origin = _named_digest("initial prompt", known.initial_digest, known.initial_seed)
  if known.applied_to_digest is not None:
    applied = _named_digest("", known.applied_to_digest, known.applied_to_seed)
    if known.cross_origin is False:
      return f"applied to its own {origin}"
    return f"cross-origin: from {origin}, applied to {applied.strip()}"
  return f"from {origin}"


def _named_digest(what: str, digest: str | None, seed: int | None) -> str:
  if digest is None:
    return f"an unknown {what}"
  return f"{what} {digest[:12]}" + ("" if seed is None else f" (seed {seed})")


def _ratio_rows(item: Loaded) -> list[tuple[str, Any]]:
  """Returns the ratio of a vector's norm to its start's if that is known, with a hint."""
  ratio = moving.own_ratio(item)
  if ratio is None:
    return []
  told = f"{ratio:.3g} of the norm of its start, {item.provenance.initial_norm:.6g}"
  hint = moving.hint(ratio)
  return [("  ratio", told), *((("  hint", hint),) if hint else ())]


def _what(item: Loaded) -> str:
  """Returns what the leaves of a prompt or vector mean."""
  factor = item.provenance.space == "factor"
  if item.provenance.kind == "vector":
    if factor:
      return "a difference of parameters, for use on the same initial ones only"
    return "the difference of what two prompts do"
  if factor:
    return "parameters; 'tpv fold' gives what they do"
  added = ", and what is added to it by position" if "delta" in item.leaves else ""
  return f"what stands before a source{added}"


def _merge_rows(merge: Merge) -> list[tuple[str, Any]]:
  settings = ", ".join(f"{name} {value}" for name, value in merge.settings)
  weights = merge.weights or (None,) * len(merge.parts)
  return [
    ("merged by", f"{merge.rule}{': ' if settings else ''}{settings}"),
    *(
      (
        "  part",
        f"{describe_terms(part.terms)}, digest {part.digest[:12]}"
        + ("" if weight is None else f", weight {weight:g}"),
      )
      for part, weight in zip(merge.parts, weights, strict=True)
    ),
  ]


def _origin_rows(item: Loaded) -> list[tuple[str, Any]]:
  known = item.provenance
  found: list[tuple[str, Any]]
  if known.mixed_origins:
    found = [("mixed origin", digest) for digest in known.mixed_origins]
  else:
    found = [("initial", known.initial_digest), ("  seed", known.initial_seed)]
    if known.space == "factor":
      found.append(("  folded", known.initial_folded_digest))
  if known.applied_to_digest is not None:
    word = {True: "yes", False: "no", None: None}[known.cross_origin]
    found += [
      ("applied to", known.applied_to_digest),
      ("  seed", known.applied_to_seed),
      ("cross-origin", word),
    ]
  return found

"""The output of verbs: a prompt or vector in a file, and lines about it."""

import argparse

from tpv_jax.core.errors import printable
from tpv_jax.vectors import arithmetic, store
from tpv_jax.vectors.loaded import Loaded
from tpv_jax.vectors.provenance import describe_terms


def refuse(options: argparse.Namespace) -> None:
  """Raises `UserError` if the output cannot be written, before anything is read."""
  store.check_output(options.output, options.overwrite)


def write(options: argparse.Namespace, item: Loaded) -> None:
  """Writes a prompt or vector to the verb's output, and prints what it is."""
  store.write(options.output, item.leaves, item.provenance, options.overwrite)
  known = item.provenance
  if known.space == "factor":
    values = sum(leaf.size for leaf in item.leaves.values())
    held = f"factor space, {values} values in {len(item.leaves)} leaves"
  else:
    held = ", ".join(
      f"{name} {list(x.shape)}" for name, x in sorted(item.leaves.items())
    )
  output = printable(str(options.output))
  print(f"Wrote the {known.kind} '{output}': {describe_terms(known.terms)}.")
  print(f"  {held}, norm {arithmetic.norm(item.leaves):.4g}, {_origin_text(item)}.")
  for note in known.notes:
    print(f"  note: {printable(note)}.")


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

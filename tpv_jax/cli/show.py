"""Prints the provenance of a prompt or vector, its leaves and its digest.

Of a backbone it prints the numbers of its network: of a folder of Hugging Face, a GGUF file,
a .safetensors file of ours or a name such as 'smollm2'.
"""

import argparse
from collections.abc import Sequence
from typing import Any

from tpv_jax.cli import arguments
from tpv_jax.cli.arguments import Parser
from tpv_jax.core import identity
from tpv_jax.core.errors import UserError, near_misses, printable, to_json
from tpv_jax.formats import sources
from tpv_jax.vectors import arithmetic
from tpv_jax.vectors.loaded import Loaded
from tpv_jax.vectors.provenance import describe_terms

EXAMPLES = """\
  tpv show both.safetensors
  tpv show runs/sst2 --json
  tpv show model.gguf
  tpv show smollm2                 a model that 'tpv fetch' fetched
"""
ON_CPU = True


def add_arguments(parser: Parser) -> None:
  """Adds a prompt or vector."""
  arguments.explain_paths(parser)
  parser.add_argument("path", metavar="PATH", help="a prompt, vector or backbone")
  arguments.add_which(parser, sources.WHICH)
  parser.add_argument("--json", action="store_true", help="print JSON")


def run(options: argparse.Namespace) -> None:
  """Prints the table, or JSON."""
  try:
    item = sources.load(options.path, options.which)
  except UserError as error:
    # They import JAX, which a prompt does not need.
    from tpv_jax.backbones import description, loading

    if not description.is_backbone(options.path):
      close = near_misses(str(options.path), loading.NAMES)
      raise UserError(f"{error}{close}") from None
    content = description.describe(options.path)
    if options.json:
      print(to_json(content))
    else:
      _print(description.rows(content))
    return
  known = item.provenance
  digest = identity.prompt_digest(item.leaves)
  shapes = {name: list(leaf.shape) for name, leaf in item.leaves.items()}
  norm = arithmetic.norm(item.leaves)
  if options.json:
    content = {
      "path": str(options.path),
      **known.to_json(),
      "cross_origin": known.cross_origin,
      "leaves": shapes,
      "digest": digest,
      "norm": norm,
    }
    print(to_json(content))
    return
  rows = [
    ("path", item.name),
    ("kind", known.kind),
    ("terms", describe_terms(known.terms)),
    *(("leaf", f"{name} {shape}, fp32") for name, shape in shapes.items()),
    ("norm", f"{norm:.6g}"),
    ("digest", digest),
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
  _print(rows)


def _print(rows: Sequence[tuple[str, Any]]) -> None:
  for label, value in rows:
    shown = "unknown" if value is None else printable(str(value))
    print(f"{label:<14}{shown}")


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


def _origin_rows(item: Loaded) -> list[tuple[str, Any]]:
  known = item.provenance
  rows: list[tuple[str, Any]]
  if known.mixed_origins:
    rows = [("mixed origin", digest) for digest in known.mixed_origins]
  else:
    rows = [("initial", known.initial_digest), ("  seed", known.initial_seed)]
    if known.space == "factor":
      rows.append(("  folded", known.initial_folded_digest))
  if known.applied_to_digest is not None:
    word = {True: "yes", False: "no", None: None}[known.cross_origin]
    rows += [
      ("applied to", known.applied_to_digest),
      ("  seed", known.applied_to_seed),
      ("cross-origin", word),
    ]
  return rows

"""The commands of `tpv` on prompts and vectors: make, add, apply, compare and show them.

Thin: it loads, calls `algebra`, writes and says so. JAX and TensorFlow are never
imported, except by Orbax when a checkpoint of it is read.
"""

import argparse
import pathlib
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from jaxtyping import Float64

from tpv_jax.backbones import naming
from tpv_jax.cli.arguments import add_command, number
from tpv_jax.core import identity
from tpv_jax.core.errors import UserError, printable, to_json
from tpv_jax.formats import sources
from tpv_jax.prompts import budget
from tpv_jax.vectors import algebra, arithmetic, inspection, store
from tpv_jax.vectors.algebra import Loaded
from tpv_jax.vectors.provenance import SPACES, describe_terms

SOURCES = """\
A PATH is a run folder of tpv_jax.train (its best prompt; see --which), an Orbax
checkpoint 'checkpoint_<step>' of tpv_jax.train or of T5X, a .safetensors file that tpv
or a run wrote, or another tool's prompt (see 'tpv import --help'). Outputs are
.safetensors files with their provenance inside. All of them may be on gs://."""

_EXAMPLES = {
  "diff": """\
  tpv diff runs/sst2 -o sst2.safetensors
  tpv diff runs/sst2 --which last -o sst2.safetensors
  tpv diff runs/ept_sst2 --space factor -o factors.safetensors
  tpv diff t5x/checkpoint_9000 t5x/checkpoint_0 --task sst2 \\
      --backbone t5_base.safetensors -o sst2.safetensors""",
  "sum": """\
  tpv sum sst2.safetensors rte.safetensors -o both.safetensors
  tpv sum sst2.safetensors rte.safetensors -w 1 -0.5 -o difference.safetensors""",
  "negate": "  tpv negate sst2.safetensors -o forget_sst2.safetensors",
  "scale": "  tpv scale sst2.safetensors -0.5 -o weaker.safetensors",
  "analogy": """\
  tpv analogy imdb.safetensors sst2.safetensors yelp.safetensors -o new.safetensors
      'imdb is to sst2 as yelp is to new': new = yelp + (sst2 - imdb)""",
  "apply": """\
  tpv apply both.safetensors runs/sst2 -o prompt.safetensors
  tpv apply both.safetensors other_init.safetensors -c 0.7 -o prompt.safetensors""",
  "cosine": """\
  tpv cosine sst2.safetensors rte.safetensors trec.safetensors
  tpv cosine runs/sst2 runs/rte --which last --json""",
  "fold": """\
  tpv fold runs/ept_sst2 -o folded.safetensors
  tpv fold t5x/ept/checkpoint_9000 --alpha 8 -o folded.safetensors""",
  "inspect": """\
  tpv inspect runs/ept_sst2 -o pictures
  tpv inspect runs/ept_sst2 runs/ept_rte --which last -o pictures --overwrite""",
  "budget": """\
  tpv budget                                       EPT for T5-base, three lengths
  tpv budget --width 1024 --short-length 40 --fusion-width 8
  tpv budget --short-length 40 --rank 45 --fusion-width 0 --spaces 0
                                                   DePT's own pair, checked""",
  "show": """\
  tpv show both.safetensors
  tpv show runs/sst2 --json""",
}


def add(commands: Any) -> None:
  """Adds the commands of this room to `tpv`; `commands` is a subparsers action."""
  command = _add(commands, "diff", _diff, "the vector TUNED - INITIAL", writes=True)
  command.add_argument("tuned", metavar="TUNED", help="a tuned prompt")
  command.add_argument(
    "initial",
    metavar="INITIAL",
    nargs="?",
    help="the prompt it was tuned from; a run folder means its initial prompt "
    "(default: that of the run TUNED)",
  )
  add_which(command, ("best", "last"))
  command.add_argument(
    "--task", metavar="NAME", help="the task of a checkpoint that does not state it"
  )
  add_backbone(command, "the backbone of checkpoints that do not state it")
  command.add_argument(
    "--space",
    choices=SPACES,
    default="effective",
    help="of DePT and EPT prompts: 'effective' (default), the difference of what the "
    "two do, as folded; 'factor', the difference of their parameters, for use on the "
    "same initial parameters only. For plain prompts both are one",
  )
  add_alpha(command)
  _add_mixed(command, "another prompt than TUNED was tuned from")

  command = _add(commands, "sum", _sum, "the sum of vectors", writes=True)
  command.add_argument("vectors", metavar="V", nargs="+", help="a vector")
  command.add_argument(
    "-w",
    "--weights",
    metavar="W",
    nargs="+",
    type=number,
    help="one coefficient for each vector, in their order (default: all 1)",
  )
  _add_mixed(command, "vectors of different or unknown initial prompts")
  _add_unknown_backbone(command)

  command = _add(commands, "negate", _negate, "the vector -V, to forget", writes=True)
  command.add_argument("vector", metavar="V", help="a vector")

  command = _add(commands, "scale", _scale, "the vector C * V", writes=True)
  command.add_argument("vector", metavar="V", help="a vector")
  command.add_argument("factor", metavar="C", type=number, help="any number")

  command = _add(commands, "analogy", _analogy, "the vector C + (B - A)", writes=True)
  for name in "abc":
    command.add_argument(name, metavar=name.upper(), help="a vector")
  _add_mixed(command, "vectors of different or unknown initial prompts")
  _add_unknown_backbone(command)

  command = _add(commands, "apply", _apply, "the prompt INITIAL + C * V", writes=True)
  command.add_argument("vector", metavar="V", help="a vector")
  command.add_argument(
    "initial",
    metavar="INITIAL",
    help="a prompt, not only V's own; a run folder means its initial prompt",
  )
  command.add_argument(
    "-c", "--coefficient", metavar="C", type=number, default=1.0, help="default: 1"
  )
  _add_unknown_backbone(command)

  command = _add(commands, "fold", _fold, "what a DePT or EPT prompt does", writes=True)
  command.add_argument("prompt", metavar="PROMPT", help="a prompt")
  add_which(command)
  add_alpha(command)

  command = _add(commands, "cosine", _cosine, "the cosine of every pair")
  command.add_argument("paths", metavar="PATH", nargs="+", help="a prompt or vector")
  add_which(command)
  command.add_argument("--json", action="store_true", help="print JSON")

  command = _add(commands, "inspect", _inspect, "heat maps of EPT's gates and fusion")
  command.add_argument("paths", metavar="PROMPT", nargs="+", help="an EPT prompt")
  command.add_argument(
    "-o", "--output", metavar="FOLDER", required=True, help="where the files go"
  )
  command.add_argument(
    "--overwrite", action="store_true", help="replace what 'tpv inspect' wrote there"
  )
  add_which(command, ("best", "last"))

  command = _add(commands, "show", _show, "what a prompt or vector is")
  command.add_argument("path", metavar="PATH", help="a prompt or vector")
  add_which(command)
  command.add_argument("--json", action="store_true", help="print JSON")

  command = _add(
    commands, "budget", _budget, "EPT's parameters and rank for a budget", paths=False
  )
  for option, default, text in _BUDGET_OPTIONS:
    command.add_argument(
      option,
      metavar="N",
      type=int,
      default=default,
      help=f"{text} (default: {default})",
    )
  command.add_argument(
    "--short-length",
    metavar="S",
    nargs="+",
    type=int,
    default=[20, 40, 60],
    help="tokens of the short prompt, one row for each (default: 20 40 60)",
  )
  command.add_argument(
    "--rank",
    metavar="R",
    type=int,
    help="check this rank (default: the largest that the budget leaves)",
  )
  command.add_argument("--json", action="store_true", help="print JSON")


_BUDGET_OPTIONS = (
  ("--width", 768, "width of the backbone"),
  ("--source-length", 256, "longest source"),
  ("--tokens", 100, "tokens of the plain prompt whose parameters are the budget"),
  ("--fusion-width", 4, "width of the prompt fusion's attention, 0 for none"),
  ("--spaces", 4, "subspaces of the multi-space projection, 0 for none"),
  ("--bottleneck", 1, "width of a subspace's bottleneck"),
)


def _add(
  commands: Any,
  name: str,
  function: Callable[[argparse.Namespace], None],
  summary: str,
  writes: bool = False,
  paths: bool = True,
) -> argparse.ArgumentParser:
  command = add_command(
    commands, name, function, summary, _EXAMPLES[name], SOURCES if paths else ""
  )
  if writes:
    command.add_argument(
      "-o", "--output", metavar="OUT", required=True, help="a new .safetensors file"
    )
    command.add_argument(
      "--overwrite", action="store_true", help="replace an existing output"
    )
  return command


def add_backbone(command: argparse.ArgumentParser, what: str) -> None:
  """Adds `--backbone`, for `naming.named`."""
  command.add_argument(
    "--backbone",
    metavar="BACKBONE",
    help=f"{what}: a fingerprint (64 hex digits), a prompt or vector of that backbone, "
    "or the backbone itself",
  )


def add_which(
  command: argparse.ArgumentParser, choices: Sequence[str] = sources.WHICH
) -> None:
  """Adds `--which`, for `sources.load`."""
  command.add_argument(
    "--which",
    choices=choices,
    default="best",
    help="which prompt of a run folder (default: best)",
  )


def add_alpha(command: argparse.ArgumentParser) -> None:
  """Adds `--alpha`, for `sources.with_alpha`."""
  command.add_argument(
    "--alpha",
    metavar="A",
    type=number,
    help="the alpha of DePT or EPT parameters that do not state it (checkpoints outside "
    "a run; DePT's code: 8); it is recorded as your word",
  )


def _add_mixed(command: argparse.ArgumentParser, what: str) -> None:
  command.add_argument(
    "--allow-mixed-origin", action="store_true", help=f"accept {what}; it is recorded"
  )


def _add_unknown_backbone(command: argparse.ArgumentParser) -> None:
  command.add_argument(
    "--allow-unknown-backbone",
    action="store_true",
    help="accept parts that do not state their backbone; it is recorded",
  )


def _diff(options: argparse.Namespace) -> None:
  """Writes the vector TUNED - INITIAL, with the task of TUNED as its term."""
  _refuse_output(options)
  tuned = sources.load(options.tuned, options.which)
  initial = _initial_of(options)
  if options.backbone is not None:
    backbone = naming.named(options.backbone)
    tuned = sources.with_backbone(tuned, backbone)
    initial = sources.with_backbone(initial, backbone)
  if options.alpha is not None:
    tuned = sources.with_alpha(tuned, options.alpha)
    initial = sources.with_alpha(initial, options.alpha)
  write(
    options,
    algebra.diff(
      tuned, initial, options.allow_mixed_origin, options.task, options.space
    ),
  )


def _sum(options: argparse.Namespace) -> None:
  """Writes the sum of vectors, each times its weight; equal tasks become one term."""
  _refuse_output(options)
  vectors = [sources.load(path) for path in options.vectors]
  write(
    options,
    algebra.sum_vectors(
      vectors,
      options.weights,
      options.allow_mixed_origin,
      options.allow_unknown_backbone,
    ),
  )


def _negate(options: argparse.Namespace) -> None:
  """Writes the vector -V, every term negated; applied, it forgets its tasks."""
  _refuse_output(options)
  write(options, algebra.negate(sources.load(options.vector)))


def _scale(options: argparse.Namespace) -> None:
  """Writes the vector C * V, every coefficient times C."""
  _refuse_output(options)
  write(options, algebra.scale(sources.load(options.vector), options.factor))


def _analogy(options: argparse.Namespace) -> None:
  """Writes the vector C + (B - A): 'A is to B as C is to OUT'."""
  _refuse_output(options)
  write(
    options,
    algebra.analogy(
      sources.load(options.a),
      sources.load(options.b),
      sources.load(options.c),
      options.allow_mixed_origin,
      options.allow_unknown_backbone,
    ),
  )


def _apply(options: argparse.Namespace) -> None:
  """Writes the prompt INITIAL + C * V, folded unless V is of the factor space.

  Another initial prompt than V's own is allowed (the cross-origin test) and recorded, but
  for a vector of the factor space, which only its own initial parameters fit.
  """
  _refuse_output(options)
  write(
    options,
    algebra.apply(
      sources.load(options.vector),
      sources.load(options.initial, "initial"),
      options.coefficient,
      options.allow_unknown_backbone,
    ),
  )


def _fold(options: argparse.Namespace) -> None:
  """Writes all that a DePT or EPT prompt does to an encoder: a prompt and a delta.

  The prompt stands before the source, and the delta is added to the embeddings of its
  tokens, by position. Evaluation and inference do the same whichever of the two forms
  they are given. A folded prompt, as every plain one is, is written as it is.
  """
  _refuse_output(options)
  prompt = sources.load(options.prompt, options.which)
  if options.alpha is not None:
    prompt = sources.with_alpha(prompt, options.alpha)
  write(options, algebra.fold(prompt))


def _cosine(options: argparse.Namespace) -> None:
  """Prints the cosine similarity of every pair of prompts or vectors.

  DePT and EPT prompts are folded first: many parameters may do the same thing.
  """
  items = [sources.load(path, options.which) for path in options.paths]
  matrix = algebra.cosine(items)
  names = [printable(name) for name in short_names([item.name for item in items])]
  if options.json:
    content = {
      "names": names,
      "paths": [str(path) for path in options.paths],
      "kinds": [item.provenance.kind for item in items],
      "cosine": [[float(value) for value in row] for row in matrix],
    }
    print(to_json(content))
    return
  print(cosine_table(names, matrix))


def cosine_table(names: Sequence[str], matrix: Float64[np.ndarray, "N N"]) -> str:
  """Returns a matrix of cosines as text, its columns aligned."""
  cells = [["", *names]]
  cells += [
    [name, *(f"{value:.4f}" for value in row)]
    for name, row in zip(names, matrix, strict=True)
  ]
  widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
  lines = []
  for first, *others in cells:
    aligned = [
      f"{cell:>{width}}" for cell, width in zip(others, widths[1:], strict=True)
    ]
    lines.append("  ".join([f"{first:<{widths[0]}}", *aligned]).rstrip())
  return "\n".join(lines)


def _inspect(options: argparse.Namespace) -> None:
  """Writes heat maps of an EPT prompt's gate and fusion, at the start and trained.

  FOLDER gets gate.png (the weight of each subspace, for each prompt token), fusion.png
  (the attention of each prompt token to the rows of delta) and inspection.json with their
  numbers. The prompts of several runs stand side by side. Prints a summary.
  """
  inspection.check_outputs(options.output, options.overwrite)
  prompts = []
  for path in options.paths:
    run = sources.run_of(path)
    prompts.append(
      (
        sources.load(path, options.which),
        None if run is None else sources.load(run, "initial"),
      )
    )
  names = short_names([printable(trained.name) for trained, _ in prompts])
  looks = inspection.look_at_all(prompts, names)
  inspection.write(options.output, looks, options.overwrite)
  print(inspection.table(looks))


def _show(options: argparse.Namespace) -> None:
  """Prints the provenance of a prompt or vector, its leaves and its digest."""
  item = sources.load(options.path, options.which)
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
    *_origin_rows(item),
    ("steps", known.steps),
    ("method", known.method),
    ("space", f"{known.space} ({_what(item)})"),
    *((("  alpha", known.alpha),) if known.space == "factor" else ()),
    ("versions", ", ".join(f"{k} {v}" for k, v in known.versions.items()) or None),
    *(("note", note) for note in known.notes),
  ]
  for label, value in rows:
    shown = "unknown" if value is None else printable(str(value))
    print(f"{label:<14}{shown}")


def _what(item: Loaded) -> str:
  """Returns what the leaves of a prompt or vector are."""
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


def _budget(options: argparse.Namespace) -> None:
  """Prints the parameters of EPT prompts by part, and the rank that a budget leaves."""
  others = {
    "tokens": options.tokens,
    "features": options.width,
    "source_length": options.source_length,
    "fusion_width": options.fusion_width,
    "spaces": options.spaces,
    "bottleneck": options.bottleneck,
  }
  counts = []
  for length in options.short_length:
    rank = options.rank
    if rank is None:
      rank = budget.rank(length=length, **others)
    counts.append(budget.check(length=length, rank=rank, **others))
  if options.json:
    content = {**others, "prompts": [count.to_json() for count in counts]}
    print(to_json(content))
    return
  print(
    f"budget {options.tokens} x {options.width} = {counts[0].budget:,} parameters; "
    f"M = {options.source_length}, H = {options.fusion_width}, K = {options.spaces}, "
    f"Q = {options.bottleneck}"
  )
  print(budget.table(counts))


def short_names(names: Sequence[str]) -> list[str]:
  """Returns the last part of each path without '.safetensors', longer where needed.

  Parts are added from the right until all names differ; a path given twice is numbered.
  """
  parts = [
    pathlib.PurePath(name.removesuffix(".safetensors")).parts or (name,)
    for name in names
  ]
  lengths = [1] * len(parts)

  def shortened() -> list[str]:
    return [
      str(pathlib.PurePath(*part[-length:]))
      for part, length in zip(parts, lengths, strict=True)
    ]

  for _ in range(max(map(len, parts), default=0)):
    current = shortened()
    for index, name in enumerate(current):
      if current.count(name) > 1:
        lengths[index] = min(lengths[index] + 1, len(parts[index]))
  current = shortened()
  return [
    f"{name} ({current[: index + 1].count(name)})" if current.count(name) > 1 else name
    for index, name in enumerate(current)
  ]


def _initial_of(options: argparse.Namespace) -> Loaded:
  """Returns the initial prompt of `tpv diff`: the second path, or the run's own."""
  if options.initial is not None:
    return sources.load(options.initial, "initial")
  run = sources.run_of(options.tuned)
  if run is None:
    raise UserError(
      f"'{options.tuned}' is no run folder, so its initial prompt must be given: tpv "
      f"diff {options.tuned} INITIAL -o {options.output}."
    )
  return sources.load(run, "initial")


def _refuse_output(options: argparse.Namespace) -> None:
  """Refuses an output that cannot be written before anything is read."""
  store.check_output(options.output, options.overwrite)


def write(options: argparse.Namespace, item: Loaded) -> None:
  """Writes what a command made to its output and prints what it is."""
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

"""Prints the provenance of a prompt or vector, its leaves and its digest.

Of a run folder it prints first what the run has reached, its state and its settings.
Of a backbone it prints the numbers of its network: of a folder of Hugging Face, a GGUF file,
a .safetensors file of ours or a name such as 'smollm2'.
"""

import argparse
from collections.abc import Mapping, Sequence
from typing import Any

from tpv_jax.cli import arguments
from tpv_jax.cli.arguments import Parser
from tpv_jax.core import files, identity
from tpv_jax.core.errors import UserError, near_misses, printable, to_json
from tpv_jax.formats import hub, sources
from tpv_jax.runs import records, summary
from tpv_jax.vectors import arithmetic, description, moving
from tpv_jax.vectors.loaded import Loaded

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
  folder = files.to_path(options.path)
  manifest = records.manifest(folder)
  if manifest is not None:
    _show_run(folder, manifest, options)
    return
  try:
    item = sources.load(options.path, options.which)
  except UserError as error:
    _show_backbone(options, error)
    return
  if options.json:
    print(to_json({"path": str(options.path), **_content(item)}))
  else:
    _print(description.rows(item))


def _show_run(
  folder: files.Path, manifest: Mapping[str, Any], options: argparse.Namespace
) -> None:
  """Prints what a run has reached, its state and settings, and its prompt if it has one."""
  lines = records.metrics(folder)
  with records.whole(folder):
    reached = summary.to_json(folder, manifest, lines)
    rows = _lines(summary.rows(folder, manifest))
    told = [*rows, *summary.reached(manifest, lines)]
  content: dict[str, Any] = {}
  try:
    item = sources.load(folder, options.which)
  except UserError as error:
    if (folder / f"{options.which}_prompt.safetensors").exists():
      raise
    if manifest["settings"].get("prompt"):  # Otherwise it trains a backbone.
      told += ["", printable(str(error))]
  else:
    content = _content(item)
    told += ["", f"its {options.which} prompt", *_lines(description.rows(item))]
  if options.json:
    print(to_json({"path": str(options.path), **content, "run": reached}))
  else:
    print("\n".join(told))


def _show_backbone(options: argparse.Namespace, error: UserError) -> None:
  """Prints what a backbone is; raises the error about what is none either."""
  # They import JAX, which a prompt does not need.
  from tpv_jax.backbones import description as backbones
  from tpv_jax.backbones import loading

  if not backbones.is_backbone(options.path):
    path = str(options.path)
    close = near_misses(path, loading.NAMES)
    if hub.named(path) is not None:  # 'runs/typo' is none where there are runs.
      close += hub.advice(path)
    raise UserError(f"{error}{close}") from None
  sources.refuse_unread(options.which, [options.path])
  content = backbones.describe(options.path)
  if options.json:
    print(to_json(content))
  else:
    _print(backbones.rows(content))


def _content(item: Loaded) -> dict[str, Any]:
  """Returns a prompt or vector as JSON."""
  ratio = moving.own_ratio(item)
  return {
    **item.provenance.to_json(),
    "cross_origin": item.provenance.cross_origin,
    "leaves": description.shapes(item),
    "digest": identity.prompt_digest(item.leaves),
    "norm": arithmetic.norm(item.leaves),
    **({} if ratio is None else {"ratio": ratio}),
  }


def _print(rows: Sequence[tuple[str, Any]]) -> None:
  print("\n".join(_lines(rows)))


def _lines(rows: Sequence[tuple[str, Any]]) -> list[str]:
  shown = ((label, "unknown" if x is None else printable(str(x))) for label, x in rows)
  return [f"{label:<14}{value}" for label, value in shown]

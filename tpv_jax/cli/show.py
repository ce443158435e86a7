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
from tpv_jax.vectors import arithmetic, description
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
  reached = None
  if manifest is not None:
    lines = records.metrics(folder)
    with records.whole(folder):
      reached = summary.to_json(folder, manifest, lines)
      of_run = _of_run(folder, manifest, lines)
    if not options.json:
      print(of_run)
  try:
    item = sources.load(options.path, options.which)
  except UserError as error:
    if manifest is None:
      _show_backbone(options, error)
    elif (folder / f"{options.which}_prompt.safetensors").exists():
      raise
    elif options.json:
      print(to_json({"path": str(options.path), "run": reached}))
    elif manifest["settings"].get("prompt"):  # Otherwise it trains a backbone.
      print(f"\n{printable(str(error))}")
    return
  if options.json:
    own = {} if reached is None else {"run": reached}
    print(to_json({**_content(options.path, item), **own}))
    return
  if reached is not None:
    print(f"\nits {options.which} prompt")
  _print(description.rows(item))


def _content(path: str, item: Loaded) -> dict[str, Any]:
  """Returns what is shown of a prompt or vector, for JSON."""
  return {
    "path": str(path),
    **item.provenance.to_json(),
    "cross_origin": item.provenance.cross_origin,
    "leaves": description.shapes(item),
    "digest": identity.prompt_digest(item.leaves),
    "norm": arithmetic.norm(item.leaves),
  }


def _show_backbone(options: argparse.Namespace, error: UserError) -> None:
  """Prints the numbers of a backbone; raises why the path is no prompt if it is none."""
  # They import JAX, which a prompt does not need.
  from tpv_jax.backbones import description as backbones
  from tpv_jax.backbones import loading

  if not backbones.is_backbone(options.path):
    path = str(options.path)
    close = near_misses(path, loading.NAMES)
    if hub.named(path) is not None:  # 'runs/typo' is none where there are runs.
      close += hub.advice(path)
    raise UserError(f"{error}{close}") from None
  content = backbones.describe(options.path)
  if options.json:
    print(to_json(content))
  else:
    _print(backbones.rows(content))


def _of_run(
  folder: files.Path, manifest: Mapping[str, Any], lines: summary.Lines
) -> str:
  """Returns what a run has reached, its state and its settings, as lines."""
  rows = summary.rows(folder, manifest)
  return "\n".join([*_lines(rows), *summary.reached(manifest, lines)])


def _print(rows: Sequence[tuple[str, Any]]) -> None:
  print("\n".join(_lines(rows)))


def _lines(rows: Sequence[tuple[str, Any]]) -> list[str]:
  shown = ((label, "unknown" if x is None else printable(str(x))) for label, x in rows)
  return [f"{label:<14}{value}" for label, value in shown]

"""Says why a prompt does not learn: what is wrong with a run, the evidence, what to change.

It looks at what the run has written: its settings, its losses and scores, and its prompt
beside the backbone's embeddings. A table shows the tokens that are nearest to each row of
the prompt; the backbone's table of tokens is read for it, and nothing else of it.
"""

import argparse
import dataclasses

from tpv_jax.cli.arguments import Parser
from tpv_jax.core import files
from tpv_jax.core.errors import UserError, printable, to_json
from tpv_jax.core.tables import aligned
from tpv_jax.runs import records, summary
from tpv_jax.runs.diagnosis import evidence, registry

EXAMPLES = """\
  tpv diagnose runs/reviews
  tpv diagnose runs/reviews --json
  tpv diagnose runs/reviews --backbone embedded     if its manifest does not find it
"""
ON_CPU = True


def add_arguments(parser: Parser) -> None:
  """Adds a run, and its backbone."""
  parser.add_argument("run", metavar="RUN", help="the folder of a run")
  parser.add_argument(
    "--backbone",
    metavar="BACKBONE",
    help="the backbone of the run, if its manifest does not name it, or it has moved",
  )
  parser.add_argument(
    "--vocabulary-file",
    metavar="FILE",
    help="its vocabulary, if the backbone does not bring it",
  )
  parser.add_argument("--json", action="store_true", help="print JSON")


def run(options: argparse.Namespace) -> None:
  """Prints the findings and the nearest tokens, or JSON."""
  folder = files.to_path(options.run)
  with records.whole(folder):
    print(_diagnosed(folder, options))


def _diagnosed(folder: files.Path, options: argparse.Namespace) -> str:
  """Returns what is printed."""
  seen = evidence.read(folder)
  rows, why = [], None
  if seen.tuned is not None and seen.initial is not None:
    # It imports JAX, which the checks do not need.
    from tpv_jax.runs import tokens

    try:
      known = tokens.of_run(folder, options.backbone, options.vocabulary_file)
      rows = tokens.nearest(known, seen.tuned, seen.initial)
      if seen.embeddings is None:
        seen = dataclasses.replace(seen, embeddings=known.scale())
    except (UserError, OSError) as error:
      if options.backbone is not None:
        raise
      why = str(error)
  found = registry.findings(seen)
  if options.json:
    return to_json(
      {
        "run": str(options.run),
        "status": seen.manifest.get("status"),
        "findings": [dataclasses.asdict(finding) for finding in found],
        "checks": list(registry.CHECKS),
        "rows": [dataclasses.asdict(row) for row in rows],
      }
    )
  lines = [
    f"'{folder}': {summary.state(folder, seen.manifest)}",
    *summary.reached(seen.manifest, seen.lines),
  ]
  lines += registry.lines(found)
  if rows:
    lines.append(
      "\nnorm and way from the initial prompt in norms of an embedded token:"
    )
    lines.append(aligned(tokens.table_of(rows), left=4))
  elif why is not None:
    lines += ["", printable(f"No table of the nearest tokens: {why}")]
  return "\n".join(lines)

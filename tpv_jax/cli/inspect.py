"""Writes heat maps of an EPT prompt's gate and fusion, before and after training.

Writes gate.png (the weight of each subspace, for each prompt token), fusion.png (the
attention of each prompt token to the rows of delta) and inspection.json with their
numbers to FOLDER, the prompts of several runs side by side. Prints a summary.
"""

import argparse

from tpv_jax.cli import arguments
from tpv_jax.cli.arguments import Parser
from tpv_jax.cli.names import short_names
from tpv_jax.core.errors import printable
from tpv_jax.formats import sources
from tpv_jax.vectors import inspection

EXAMPLES = """\
  tpv inspect runs/ept_sst2 -o pictures
  tpv inspect runs/ept_sst2 runs/ept_rte --which last -o pictures --overwrite
"""
ON_CPU = True


def add_arguments(parser: Parser) -> None:
  """Adds EPT prompts, and the output."""
  arguments.explain_paths(parser)
  parser.add_argument("paths", metavar="PROMPT", nargs="+", help="an EPT prompt")
  parser.add_argument(
    "-o", "--output", metavar="FOLDER", required=True, help="where to write the files"
  )
  parser.add_argument(
    "--overwrite", action="store_true", help="replace what 'tpv inspect' wrote there"
  )
  arguments.add_which(parser, ("best", "last"))


def run(options: argparse.Namespace) -> None:
  """Writes the pictures."""
  inspection.check_outputs(options.output, options.overwrite)
  prompts = []
  for path in options.paths:
    run = sources.run_of(path)
    prompts.append(
      (
        sources.load_any(path, options.which),
        None if run is None else sources.load(run, "initial"),
      )
    )
  sources.refuse_unread(options.which, options.paths)
  names = short_names([printable(trained.name) for trained, _ in prompts])
  looks = inspection.look_at_all(prompts, names)
  inspection.write(options.output, looks, options.overwrite)
  print(inspection.table(looks))

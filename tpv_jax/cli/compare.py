"""Compares finished studies of the same tasks, row by row.

A STUDY is the OUTPUT_DIR of 'tpv study'. Shown are the scores in percent, mean ± deviation
over initial prompts, and the differences from the first study in points, with the 95 %
interval of a paired bootstrap over test rows and initial prompts: one that does not hold 0
is more than chance. Tasks and initial prompts that not all studies have are left out.
"""

import argparse

from tpv_jax.cli import arguments
from tpv_jax.cli.arguments import Parser
from tpv_jax.cli.names import short_names
from tpv_jax.core import files
from tpv_jax.core.errors import printable, to_json
from tpv_jax.core.tables import aligned

EXAMPLES = """\
  tpv compare plain ept
  tpv compare plain ept dept --png methods.png --json
"""
ON_CPU = True


def add_arguments(parser: Parser) -> None:
  """Adds the studies and the picture."""
  parser.add_argument(
    "studies",
    metavar="STUDY",
    nargs="+",
    help="the folder of a study; the first is the one that the others are compared with",
  )
  arguments.add_picture(parser, "the scores of single prompts")
  parser.add_argument("--json", action="store_true", help="print JSON")


def run(options: argparse.Namespace) -> None:
  """Prints the tables, or JSON, and draws the picture."""
  from tpv_jax.studies import paired
  from tpv_jax.studies.report.tables import METRICS

  arguments.refuse_picture(options)
  names = [printable(name) for name in short_names(options.studies)]
  results = paired.compare(options.studies, names)
  if options.png is not None:
    files.write_bytes(options.png, paired.draw(results).png(), options.overwrite)
  if options.json:
    print(to_json(results))
    return
  print("\n".join(paired.heading(results)))
  for metric, title in METRICS.items():
    header, rows = paired.table(results, metric)
    print(f"\n{title}, %\n{aligned([header, *rows], left=2)}")

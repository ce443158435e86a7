"""Shows what stands in the way of merging vectors, for every pair of them.

'same sign' is the share of elements with equal signs, about 0.5 by chance. 'ratio' is that
of the norms: where it is large, a plain sum is mostly the longer vector. 'tokens' are the
cosines of each token with its counterpart, 'angles' the principal angles between the spaces
that the rows span, in degrees, 'overlap' their mean squared cosine. JSON and the picture
have all tokens and angles.
"""

import argparse

from tpv_jax.cli import arguments
from tpv_jax.cli.arguments import Parser
from tpv_jax.cli.names import short_names
from tpv_jax.core import files
from tpv_jax.core.errors import printable, to_json
from tpv_jax.core.tables import aligned
from tpv_jax.formats import collected
from tpv_jax.vectors import conflicts

EXAMPLES = """\
  tpv conflicts sst2.safetensors rte.safetensors
  tpv conflicts runs/sst2 runs/rte runs/topic --png conflicts.png --json
"""
ON_CPU = True


def add_arguments(parser: Parser) -> None:
  """Adds vectors and the picture."""
  arguments.explain_paths(parser)
  parser.add_argument("vectors", metavar="V", nargs="+", help="a vector, or a run")
  arguments.add_which(parser, ("best", "last"))
  arguments.add_picture(parser, "the tokens and angles")
  parser.add_argument("--json", action="store_true", help="print JSON")


def run(options: argparse.Namespace) -> None:
  """Prints the table, or JSON, and draws the picture."""
  arguments.refuse_picture(options)
  vectors = [collected.vector(path, options.which) for path in options.vectors]
  collected.refuse_unread(options.which, options.vectors)
  names = [printable(name) for name in short_names([one.name for one in vectors])]
  pairs = conflicts.conflicts(vectors, names)
  if options.png is not None:
    files.write_bytes(options.png, conflicts.draw(pairs), options.overwrite)
  if options.json:
    paths = [one.name for one in vectors]
    print(to_json({"paths": paths, "pairs": [pair.to_json() for pair in pairs]}))
  else:
    print(aligned(conflicts.rows(pairs)))

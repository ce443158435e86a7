"""Groups vectors by agglomerative clustering of their cosine distances.

Of a DIR every run and every .safetensors file below it is looked at; of a run the vector of
its prompt is taken. Vectors of different initial prompts are far apart even if their tasks
are related: to group tasks, give the vectors of one initial prompt.
"""

import argparse

from tpv_jax.cli import arguments
from tpv_jax.cli.arguments import Parser
from tpv_jax.cli.names import short_names
from tpv_jax.core import files
from tpv_jax.core.errors import UserError, printable, to_json
from tpv_jax.core.tables import aligned
from tpv_jax.formats import collected
from tpv_jax.vectors import compatibility, grouping

EXAMPLES = """\
  tpv group runs/sst2 runs/rte runs/topic -k 2
  tpv group sst2.safetensors rte.safetensors trec.safetensors -k 2 --png tree.png
"""
ON_CPU = True


def add_arguments(parser: Parser) -> None:
  """Adds where to look, the number of groups and the picture."""
  arguments.explain_paths(parser)
  parser.add_argument(
    "paths",
    metavar="DIR",
    nargs="+",
    help="a folder of runs or vectors, or one of them",
  )
  parser.add_argument(
    "-k", metavar="K", type=int, required=True, help="the number of groups"
  )
  arguments.add_which(parser, ("best", "last"))
  arguments.add_picture(parser, "the dendrogram")
  parser.add_argument("--json", action="store_true", help="print JSON")


def run(options: argparse.Namespace) -> None:
  """Prints the groups, or JSON, and draws the picture."""
  arguments.refuse_picture(options)
  found = collected.collect(options.paths, options.which)
  collected.refuse_unread(options.which, options.paths)
  vectors, left_out = [], list(found.left_out)
  for one in found.vectors:
    reason = compatibility.why_not_comparable(found.vectors[0], one)
    if reason is None:
      vectors.append(one)
    else:
      left_out.append((one.name, f"{reason}; compared with '{found.vectors[0].name}'"))
  if len(vectors) < 2 and left_out:
    name, why = map(printable, left_out[0])
    raise UserError(
      f"Groups are of several vectors, and only {len(vectors)} of those given can be "
      f"compared; left out: {name}: {why}. Give at least two of one kind."
    )
  names = [printable(name) for name in short_names([one.name for one in vectors])]
  groups = grouping.group(vectors, names, options.k)
  if options.png is not None:
    files.write_bytes(options.png, grouping.draw(groups), options.overwrite)
  if options.json:
    outside = [{"path": path, "why": why} for path, why in left_out]
    print(to_json({**groups.to_json(), "left_out": outside}))
    return
  print(_table(groups))
  arguments.say_left_out(left_out)


def _table(groups: grouping.Groups) -> str:
  rows = [["group", "vectors", "mean cosine"]]
  for number in range(1, max(groups.groups) + 1):
    within = groups.within(number)
    names = ", ".join(groups.names[place] for place in groups.members(number))
    rows.append([str(number), names, "-" if within is None else f"{within:.4f}"])
  return aligned(rows, left=2)

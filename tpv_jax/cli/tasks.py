"""Describes tasks of your own, and lists, shows, prepares and exports those of the papers."""

import argparse
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from tpv_jax.cli import arguments, own_tasks
from tpv_jax.cli.arguments import Parser
from tpv_jax.core.tables import aligned

if TYPE_CHECKING:
  from tpv_jax.data.papers.definition import Definition

_EXAMPLES = {
  "new": """\
  tpv tasks new reviews.csv --backbone smollm2 -o reviews.toml
  tpv tasks new reviews.csv --text text --target stars""",
  "check": "  tpv tasks check reviews.toml --backbone smollm2",
  "list": "  tpv tasks list\n  tpv tasks list --paper EPT",
  "show": "  tpv tasks show glue_sst2\n  tpv tasks show glue_sst2 --gin > my_task.gin",
  "prepare": """\
  tpv tasks prepare glue_sst2 glue_rte --data-dir data
  tpv tasks prepare dbpedia --data-dir data --from downloads/dbpedia_14
  tpv tasks prepare glue_mnli --data-dir gs_copy --no-export   for T5X alone""",
  "export": """\
  tpv tasks export glue_sst2 --data-dir data
  tpv tasks export glue_sst2 --data-dir data --seed 1 --overwrite""",
}

_MORE = {
  "new": """\
Validation and the test come from files beside FILE if its name has 'train' in it, as in
train.csv, dev.csv and test.csv; otherwise from its rows.
Without --backbone no tokens are counted, and the template suits every model.""",
  "prepare": """\
TFDS downloads its own data sets (extra 'data'), 'datasets' those of the Hugging Face hub
(extra 'hf'). A call that was stopped continues where it was.
FOLDER is a local copy: SPLIT.jsonl for each split that is needed, with the columns of the
source; or parquet files, or what 'save_to_disk' wrote.""",
  "export": """\
The rows must be prepared first. The exported lines are read without TensorFlow, by
gin_configs/tasks/NAME.gin with DATA_DIR.
The splits of one seed are disjoint: with another seed, --overwrite removes all three, and
--split names those to write again.""",
}

EXAMPLES = "".join(f"{text.splitlines()[0]}\n" for text in _EXAMPLES.values())
ON_CPU = True


def add_arguments(parser: Parser) -> None:
  """Adds a parser for each of new, check, list, show, prepare and export."""
  tasks = parser.add_subparsers(
    title="commands", metavar="COMMAND", required=True, parser_class=Parser
  )

  own_tasks.add_new(_add(tasks, "new", own_tasks.new, "describe a file of your own"))
  own_tasks.add_check(
    _add(tasks, "check", own_tasks.check, "look for what stands in a task's way")
  )

  command = _add(tasks, "list", _list, "list all tasks of the papers")
  command.add_argument(
    "--paper",
    choices=("TPV", "EPT"),
    help="only those of one paper: task vectors, or EPT",
  )
  command.add_argument(
    "--markdown", action="store_true", help="print the tables of docs/tasks.md"
  )

  command = _add(tasks, "show", _show, "describe a task, with an example")
  command.add_argument("name", metavar="NAME", help="a task")
  command.add_argument(
    "--gin", action="store_true", help="print gin_configs/tasks/NAME.gin"
  )

  command = _add(tasks, "prepare", _prepare, "download a task's data, and export it")
  _add_names(command)
  command.add_argument(
    "--from", metavar="FOLDER", dest="folder", help="use a local copy, for one task"
  )
  command.add_argument(
    "--no-export", action="store_true", help="do not write JSON lines as well"
  )

  command = _add(tasks, "export", _export, "write a task's examples as JSON lines")
  _add_names(command)
  command.add_argument(
    "--split",
    nargs="+",
    metavar="SPLIT",
    default=["train", "validation", "test"],
    help="train, validation, test (default: all three)",
  )
  command.add_argument(
    "--seed", type=int, metavar="N", default=0, help="of the splits (default: 0)"
  )
  command.add_argument(
    "--overwrite", action="store_true", help="write existing splits again"
  )


def _add(
  tasks: Any,
  name: str,
  function: Callable[[argparse.Namespace], int | None],
  summary: str,
) -> Parser:
  return arguments.add_command(
    tasks, name, function, summary, _EXAMPLES[name], _MORE.get(name)
  )


def _add_names(command: Parser) -> None:
  command.add_argument("names", metavar="NAME", nargs="+", help="a task")
  command.add_argument(
    "--data-dir",
    metavar="DIR",
    help="where data sets are kept (default: $TFDS_DATA_DIR, or ~/tensorflow_datasets)",
  )


def run(options: argparse.Namespace) -> int | None:
  """Runs the command and returns its exit code, None for 0."""
  code: int | None = options.command(options)
  return code


def _list(options: argparse.Namespace) -> None:
  """Prints every task: name, papers, source, labels, metrics."""
  from tpv_jax.data.registry import DEFINITIONS

  chosen = [
    which
    for which in DEFINITIONS.values()
    if options.paper is None or options.paper in which.papers
  ]
  if options.markdown:
    print(tables(chosen))
    return
  rows = [
    (
      which.name,
      " ".join(which.papers),
      which.source,
      f"{len(which.words)} labels" if which.words else "free",
      ", ".join(which.metrics),
    )
    for which in chosen
  ]
  print(aligned(rows, left=len(rows[0])))


def _show(options: argparse.Namespace) -> None:
  """Prints a task's fields, template, labels, splits and metrics, and an example."""
  from tpv_jax.data import registry, sources
  from tpv_jax.data.papers import definition

  which = registry.definition(options.name)
  if options.gin:
    print(gin_text(which), end="")
    return
  row = sources.named(definition.example_rows(which)[0], which.classes)
  example = which.example(row, "the example", "test")
  assert example is not None
  lines = {
    "task": f"{which.name} - {which.title}",
    "papers": ", ".join(which.papers),
    "source": which.source,
    "licence": which.licence,
    "fields": ", ".join(which.columns),
    "template": _in_one_line(which.template),
    "labels": _labels(which),
    "metrics": ", ".join(which.metrics),
    "splits": f"{which.split_rule} (seed {definition.SEED})",
    "rows": f"{which.sizes[0]:,} train, {which.sizes[1]:,} {which.held_out}",
    "lengths": _lengths(which),
    "steps": f"{which.steps:,} ({which.epochs} epochs at batches of 32)",
    "input": example.inputs,
    "target": example.targets,
  }
  for name, text in lines.items():
    print(f"{name:9} {text}")


def _prepare(options: argparse.Namespace) -> None:
  """Downloads the data of tasks and writes their examples as JSON lines."""
  from tpv_jax.core.errors import UserError
  from tpv_jax.data import exported, registry, sources

  chosen = [registry.definition(name) for name in options.names]
  if options.folder is not None and len(chosen) > 1:
    raise UserError(
      f"--from names one folder, and there are {len(chosen)} tasks. Prepare them one by "
      "one."
    )
  for which in chosen:
    sources.prepare(which, options.data_dir, options.folder)
    if not options.no_export:
      exported.export(which, options.data_dir)


def _export(options: argparse.Namespace) -> None:
  """Writes the examples of tasks as JSON lines, in the papers' splits."""
  from tpv_jax.data import exported, registry

  for which in [registry.definition(name) for name in options.names]:
    exported.export(
      which, options.data_dir, options.split, options.seed, options.overwrite
    )


def tables(chosen: list["Definition"]) -> str:
  """Returns the tables of docs/tasks.md: the papers' style, T5's, and instructions."""
  lines = [
    "| task | source | template | labels | splits | metrics | papers | licence |",
    "|---|---|---|---|---|---|---|---|",
  ]
  t5 = ["| task | template | labels | metrics |", "|---|---|---|---|"]
  instructions = ["| task | words | instruction | labels |", "|---|---|---|---|"]
  for which in chosen:
    template, labels = f"`{_in_one_line(which.template)}`", _labels(which)
    metrics = ", ".join(which.metrics)
    if which.name == which.data:
      cells = (which.source, template, labels, which.split_rule, metrics)
      rest = (" ".join(which.papers), which.licence)
      lines.append(_cells(f"**{which.name}** {which.title}", *cells, *rest))
    elif which.instruction is not None:
      words = (which.instruction, template, labels)
      instructions.append(_cells(f"**{which.name}**", *words))
    else:
      t5.append(_cells(f"**{which.name}**", template, labels, metrics))
  return "\n".join([*lines, "", *t5, "", *instructions])


def gin_text(which: "Definition") -> str:
  """Returns the gin file of a task."""
  return f"""\
# {which.title}.
# Written by 'tpv tasks show {which.name} --gin' from tpv_jax/data/papers.
#
#   tpv tasks prepare {which.name} --data-dir data
#
# Provides: TASK, TASKS, TASK_NAME, LENGTHS, PAPER_STEPS, DATA_DIR
# Often set: DATA_DIR, that of 'prepare'; None: $TFDS_DATA_DIR, or ~/tensorflow_datasets
# Template: {_in_one_line(which.template)}{_words(which)}
# Labels: {_labels(which)}
# Metrics: {", ".join(which.metrics)}
# Splits: {which.split_rule}
# Sources: {_lengths(which)}
from __gin__ import dynamic_registration

from tpv_jax.data import exported

TASK_NAME = '{which.name}'
DATA_DIR = None
LENGTHS = {which.lengths}
PAPER_STEPS = {which.steps}  # {which.epochs} epochs at batches of 32

TASK = @exported.task()
TASKS = [%TASK]
exported.task:
  name = %TASK_NAME
  data_dir = %DATA_DIR
"""


def _cells(*texts: str) -> str:
  return "| " + " | ".join(text.replace("|", "\\|") for text in texts) + " |"


def _in_one_line(template: str) -> str:
  return template.replace("\n", "\\n").rstrip()


def _words(which: "Definition") -> str:
  """Returns whose words an instruction has, for the line of its template."""
  if which.instruction is None:
    return ""
  whose = "ours" if which.instruction == "ours" else "the paper's code's"
  return f"\n# Words of the instruction: {whose}"


def _labels(which: "Definition") -> str:
  if which.words is not None:
    return ", ".join(which.words)
  if which.rounded_to is not None:
    return f"numbers, to the nearest {which.rounded_to}"
  return "free"


def _lengths(which: "Definition") -> str:
  from tpv_jax.data.papers.measured import MEASURED

  limit = f"{which.lengths['inputs']} tokens"
  if which.name not in MEASURED:
    return f"{limit}; not measured" + (
      ", the papers' limit" if which.most_tokens == 256 else ""
    )
  texts, median, most, nearly_all, longest = MEASURED[which.name]
  return (
    f"{limit}; measured on {texts:,}: median {median}, 95 % {most}, 99 % {nearly_all}, "
    f"longest {longest}"
  )

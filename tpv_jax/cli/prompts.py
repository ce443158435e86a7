"""Tuned prompts in one file, a bundle: lists them, takes them out, checks their scores.

The bundle that comes with the package has prompts for SmolLM2-135M-Instruct ('tpv fetch
smollm2'), of the study in docs/results.md; --file names another one.
"""

import argparse
import json
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

from tpv_jax.cli import arguments
from tpv_jax.cli.arguments import Parser
from tpv_jax.core import files, tables
from tpv_jax.core.errors import UserError, at_least, printable
from tpv_jax.formats import bundles

if TYPE_CHECKING:
  from tpv_jax.formats.bundles import Bundled

_EXAMPLES = {
  "list": "  tpv prompts list\n  tpv prompts list sst2 --json",
  "unpack": """\
  tpv prompts unpack sst2-0 -o ready        ready/runs/sst2-0, ready/vectors/sst2-0.safetensors
  tpv prompts unpack -o small               all of them, as a study has them""",
  "check": "  tpv prompts check --data-dir nlu\n  tpv prompts check sst2 --data-dir nlu",
  "pack": """\
  tpv prompts pack study -o prompts.safetensors --task-files reviews.toml news.toml
  tpv prompts pack runs/bank -o prompts.safetensors""",
}
EXAMPLES = "".join(f"{text.splitlines()[0]}\n" for text in _EXAMPLES.values())
ON_CPU = False

TASK_FILES = "studies/tasks"
"""Where the task files of the package's prompts are, in gin_configs."""


def add_arguments(parser: Parser) -> None:
  """Adds a parser for each of list, unpack, check and pack."""
  commands = parser.add_subparsers(
    title="commands", metavar="COMMAND", required=True, parser_class=Parser
  )
  command = _add(commands, "list", _list, "list prompts, with scores and licences")
  _add_prompts(command)
  command.add_argument("--json", action="store_true", help="print JSON")

  command = _add(commands, "unpack", _unpack, "take runs and vectors out of a bundle")
  _add_prompts(command)
  command.add_argument(
    "-o", "--output", metavar="DIR", required=True, help="a folder, new or not"
  )

  command = _add(commands, "check", _check, "measure the scores again")
  _add_prompts(command)
  _add_task_files(command, "default: of the package's tasks of real English")
  command.add_argument(
    "--data-dir", metavar="DIR", help="where relative paths of the task files begin"
  )
  command.add_argument(
    "--backbone", metavar="PATH", help="where the backbone is, if it has moved"
  )
  command.add_argument(
    "--most-changed",
    metavar="N",
    type=int,
    default=MOST_CHANGED,
    help="rows of 100 that may be answered otherwise, as another processor rounds "
    f"otherwise ({MOST_CHANGED})",
  )

  command = _add(commands, "pack", _pack, "write a study's runs as a bundle")
  command.add_argument(
    "study", metavar="STUDY", help="the folder of a study, or of a bank's runs"
  )
  command.add_argument(
    "-o", "--output", metavar="FILE", required=True, help="a new .safetensors file"
  )
  _add_task_files(command, "they state the licences of the data")
  command.add_argument(
    "--overwrite", action="store_true", help="replace an existing output"
  )


MOST_CHANGED = 10
"""Of 100 rows. In bf16 up to 8 changed on one machine, where other prompts shared the calls."""


def _add(
  commands: Any,
  name: str,
  function: Callable[[argparse.Namespace], int | None],
  summary: str,
) -> Parser:
  return arguments.add_command(commands, name, function, summary, _EXAMPLES[name])


def _add_prompts(command: Parser) -> None:
  command.add_argument(
    "names", metavar="NAME", nargs="*", help="prompts or tasks (default: all)"
  )
  command.add_argument(
    "--file", metavar="FILE", help="a bundle (default: that of the package)"
  )


def _add_task_files(command: Parser, what: str) -> None:
  command.add_argument(
    "--task-files",
    metavar="TOML",
    nargs="+",
    default=[],
    help=f"the tasks' files ({what})",
  )


def run(options: argparse.Namespace) -> int | None:
  """Runs the command and returns its exit code, None for 0."""
  code: int | None = options.command(options)
  return code


def _asked(options: argparse.Namespace) -> dict[str, "Bundled"]:
  path = bundles.RELEASED if options.file is None else options.file
  return bundles.chosen(bundles.read(path), options.names, path)


def _list(options: argparse.Namespace) -> None:
  """Prints each prompt: task, seed, steps, scores, digest, licence of the data.

  Exact match and accuracy among the labels, in percent, are of the first rows of the test
  split, as many as 'rows' says; '-' where they were not measured.
  """
  runs = {name: one.to_json() for name, one in _asked(options).items()}
  if options.json:
    print(json.dumps(runs, indent=2))
    return
  head = ("seed", "steps", "exact match", "labels", "rows", "digest")
  rows: list[tuple[str, ...]] = [("prompt", "task", "licence of the data", *head)]
  for name, one in runs.items():
    numbers = [*_percent(one["scores"]), str(one["test_examples"] or "-")]
    whose = (name, one["task"], one["licence"] or "unknown")
    tuned = (str(one["seed"]), str(one["steps"]))
    rows.append((*whose, *tuned, *numbers, one["digest"][:12]))
  print(tables.aligned(rows, left=3))
  for name, fingerprint in sorted(
    {(str(one["backbone"]), one["fingerprint"]) for one in runs.values()}
  ):
    print(printable(f"for the backbone '{name}', fingerprint {fingerprint[:12]}"))


def _percent(scores: Any) -> list[str]:
  if scores is None:
    return ["-", "-"]
  return [f"{100 * score:.1f}" for score in scores.values()]


def _unpack(options: argparse.Namespace) -> None:
  """Writes run folders and vectors: DIR/runs/NAME and DIR/vectors/NAME.safetensors.

  A run folder has its best, last and initial prompt and all that 'tpv infer --prompt',
  'tpv eval' and a study that goes on with it need. What is there already with the same
  values stays as it is.
  """
  runs = _asked(options)
  new = bundles.unpack(runs, options.output)
  there = len(runs) - len(new)
  print(
    f"Wrote {len(new)} runs and their vectors to '{printable(options.output)}'"
    + (f"; {there} were there already." if there else ".")
  )


def _check(options: argparse.Namespace) -> int:
  """Measures the prompts on the test rows of their tasks, and compares row by row.

  It needs the data and the backbone, which do not come with the package. The exit code is 1
  if more rows are answered otherwise than --most-changed allows.
  """
  from tpv_jax.data import task_files
  from tpv_jax.studies import releasing

  at_least("--most-changed", options.most_changed, 0)
  runs = _asked(options)
  folder = options.data_dir
  absent = folder is not None and not files.to_path(folder).is_dir()
  if absent or (folder is None and not options.task_files):
    names = ", ".join(dict.fromkeys(run.task for run in runs.values()))
    why = f"there is no folder '{folder}'" if absent else "no folder was given"
    raise UserError(
      f"To measure the scores again, the data of {names} are needed, which do not come "
      f"with the package, and {why}. Give it with --data-dir; what is in it: "
      "gin_configs/studies/nlu.gin."
    )
  paths: Sequence[files.PathLike] = options.task_files or [
    path
    for run in runs.values()
    if (path := files.gin_configs() / TASK_FILES / f"{run.task}.toml").exists()
  ]
  described = {
    one.task.name: one
    for one in (
      task_files.read(path, options.data_dir) for path in dict.fromkeys(paths)
    )
  }
  found = releasing.check(runs, described, options.backbone, progress=True)
  return _report(found, options.most_changed)


def _report(found: Sequence[Any], most: int) -> int:
  """Prints what was measured beside what is stated; returns the exit code."""
  head = ("prompt", "rows", "exact match", "now", "labels", "now", "rows changed")
  rows: list[tuple[str, ...]] = [head]
  wrong, other = [], []
  for one in found:
    before = one.run.measured
    stated = _percent(before and before.scores)
    now = _percent(one.now.scores)
    changed = one.changed
    if before is not None and changed is None:
      other.append(one.run.name)
    elif changed is not None and 100 * changed > most * one.now.examples:
      wrong.append(one.run.name)
    pairs = [text for both in zip(stated, now, strict=True) for text in both]
    shown = "-" if changed is None else str(changed)
    rows.append((one.run.name, str(one.now.examples), *pairs, shown))
  print(tables.aligned(rows))
  if other:
    print(
      f"Other test rows than those that were measured: {', '.join(other)}. Their scores "
      "are not compared."
    )
  if wrong:
    print(f"More than {most} of 100 rows are answered otherwise: {', '.join(wrong)}.")
  return 1 if wrong or other else 0


def _pack(options: argparse.Namespace) -> None:
  """Writes the runs of a study as one bundle, with the scores that it has measured.

  Of each run it takes the prompts, the manifest and the metrics. Scores are those of each
  prompt on its own task, row by row, from the study's measured.json.
  """
  from tpv_jax.data import task_files
  from tpv_jax.studies import releasing
  from tpv_jax.vectors import store

  store.check_output(options.output, options.overwrite)
  described = [task_files.read(path) for path in options.task_files]
  licences = {one.task.name: one.licence for one in described}
  runs = releasing.of_study(options.study, licences)
  size = bundles.write(options.output, runs, options.overwrite)
  unmeasured = [run.name for run in runs if run.measured is None]
  print(
    f"Wrote {len(runs)} runs to '{printable(options.output)}', {size / 1e6:.2f} MB."
  )
  if unmeasured:
    print(f"without scores, since none were measured: {', '.join(unmeasured)}")

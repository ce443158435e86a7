"""What verbs with gin files share: their flags, spelled as T5X spells them, and their run.

The flags are `--gin_file=FILE` (repeatable), `--gin.NAME=VALUE`, `--gin_search_paths=A,B`,
and those of several processes.
"""

import argparse
import shlex
import sys
from collections.abc import Callable, Sequence
from typing import Any

from tpv_jax.cli.arguments import Parser
from tpv_jax.core.errors import UserError, raise_on_interrupt
from tpv_jax.devices import flags

_FLAGS = """\
flags, spelled as T5X spells them:
  --gin_file=FILE         a gin file, from this folder or from the installed package
                          (gin_configs/... and tpv_jax/gin_configs/... both work);
                          repeat it to add files, later ones win
                          and your settings win over the package's. If no file says
                          what to run, BACKBONE chooses the run file, and TASK_FILES are
                          your own tasks
  --gin.NAME=VALUE        one binding after the files: --gin.RUN_DIR=runs/sst2
  --gin_search_paths=A,B  more folders in which to look for gin files
"""


def add_arguments(parser: Parser) -> None:
  """Adds the flags of a verb with gin files, for `run`."""
  parser.epilog = f"{_FLAGS}\n{parser.epilog}"
  parser.add_argument(
    "--gin_file", action="append", default=[], help="a gin file (repeatable)"
  )
  parser.add_argument("--gin_bindings", action="append", default=[], help="NAME=VALUE")
  parser.add_argument(
    "--gin_search_paths", default="", help="folders, separated by commas"
  )
  parser.add_argument(
    "--show-config",
    action="store_true",
    help="print every setting with its meaning, default and origin, and run nothing",
  )
  flags.add(parser)


def rewrite(arguments: Sequence[str]) -> list[str]:
  """Turns `--gin.NAME=VALUE` into `--gin_bindings=NAME=VALUE`, as T5X does."""
  return [
    "--gin_bindings=" + argument.removeprefix("--gin.")
    if argument.startswith("--gin.")
    else argument
    for argument in arguments
  ]


def flag(name: str, value: str | Sequence[str]) -> str:
  """Returns `--gin.NAME=VALUE` as a shell takes it, with quotes only where they are needed."""
  from tpv_jax.settings import gin_files

  text = value if isinstance(value, str) else f"[{', '.join(value)}]"
  if gin_files.bound([], [f"{name}={text}"]).get(name) != value:
    text = repr(value)
  return shlex.quote(f"--gin.{name}={text}")


def search_paths(options: argparse.Namespace) -> list[str]:
  """Returns the folders of `--gin_search_paths`."""
  return [path for path in options.gin_search_paths.split(",") if path]


def run(
  function: Callable[..., Any], options: argparse.Namespace, **arguments: Any
) -> int | None:
  """Calls the gin-configured `function` and returns its exit code, if it returns one.

  `arguments` are passed to `function` in addition to what gin binds.
  """

  from tpv_jax.core import files
  from tpv_jax.devices import processes
  from tpv_jax.settings import calling

  processes.join(options)
  folders = search_paths(options)
  for path in folders:
    if not files.to_path(path).is_dir():
      raise UserError(f"There is no folder '{path}', named by --gin_search_paths.")
  for name in options.gin_file:
    if name.removeprefix("tpv_jax/").startswith("gin_configs/t5x/"):
      raise UserError(
        f"{name} is for real T5X (python -m t5x.train, eval, infer; docs/t5x.md). This "
        "command takes a file of gin_configs/runs."
      )
  ready = calling.prepare(
    function,
    options.gin_file,
    options.gin_bindings,
    folders,
    arguments,
    unquoted=True,
    show=print if options.show_config else None,
  )
  for line in ready.lines:
    if not options.process_index:
      print(line, file=sys.stderr)
  if options.show_config:
    return None
  processes.use_devices()
  raise_on_interrupt()
  result = ready.run()
  return result if isinstance(result, int) else None

"""Command lines of the runner: gin files and bindings, flags spelled as T5X spells them.

`--gin_file=FILE` (repeatable), `--gin.NAME=VALUE`, `--gin_search_paths=A,B`; beside
them `--debug`, which shows a trace where otherwise one line tells what is wrong.
"""

import argparse
import os
import sys
import traceback
from collections.abc import Callable, Sequence
from typing import Any

import gin

from tpv_jax.core import files
from tpv_jax.core.errors import (
  ArgumentParser,
  UserError,
  raise_on_interrupt,
  run_command,
)
from tpv_jax.devices import processes
from tpv_jax.settings import gin_files, refusals

_FLAGS = """\
flags, spelled as T5X spells them:
  --gin_file=FILE         a gin file, from this folder or from the installed package
                          (gin_configs/... and tpv_jax/gin_configs/... both work);
                          repeat it to add files, later ones win
  --gin.NAME=VALUE        one binding after the files; strings need quotes of their own:
                          --gin.RUN_DIR='"runs/sst2"'
  --gin_search_paths=A,B  more folders in which gin files are looked for
"""


def main(
  function: Callable[..., Any],
  description: str,
  examples: str,
  argv: Sequence[str],
  **arguments: Any,
) -> int:
  """Parses `argv`, calls the gin-configured `function`, and returns the exit code.

  `arguments` are passed to `function` beside what gin binds.
  """
  parser = ArgumentParser(
    description=description,
    epilog=f"{_FLAGS}\nexamples:\n{examples}",
    formatter_class=argparse.RawDescriptionHelpFormatter,
  )
  parser.add_argument(
    "--gin_file", action="append", default=[], help="a gin file (repeatable)"
  )
  parser.add_argument("--gin_bindings", action="append", default=[], help="NAME=VALUE")
  parser.add_argument("--gin_search_paths", default="", help="folders, by commas")
  processes.add_flags(parser)
  parser.add_argument("--debug", action="store_true", help="show traces of errors")
  flags = parser.parse_args(_rewrite_gin_flags(argv))

  def body() -> int | None:
    if not flags.gin_file:
      raise UserError(
        "No gin file was given, so there is nothing to run. Pass --gin_file=FILE; "
        "--help shows examples."
      )
    processes.join(flags)
    search_paths = [path for path in flags.gin_search_paths.split(",") if path]
    for path in search_paths:
      if not files.to_path(path).is_dir():
        raise UserError(f"There is no folder '{path}', named by --gin_search_paths.")
    for name in flags.gin_file:
      if name.removeprefix("tpv_jax/").startswith("gin_configs/t5x/"):
        raise UserError(
          f"{name} is for real T5X (python -m t5x.train, eval, infer; docs/t5x.md). This "
          "command takes a file of gin_configs/runs."
        )
    given = gin_files.parse(flags.gin_file, flags.gin_bindings, search_paths)
    for line in refusals.check(function, given, arguments):
      if not flags.process_index:
        print(line, file=sys.stderr)
    processes.keep_compiled_programs()
    raise_on_interrupt()
    try:
      result = gin.get_configurable(function)(**arguments)
    except (UserError, OSError) as error:
      raise _without_gin(error) from None
    except RecursionError as error:
      if not _is_gins(error):
        raise
      raise UserError(
        "A setting calls what is configured by that setting, as in training.train.seed = "
        "@training.train(). Give it another value."
      ) from None
    return result if isinstance(result, int) else None

  code = run_command(body, flags.debug, spelling="--gin.")
  if code and flags.multiprocess_gpu:
    # Leave at once: JAX's own way out waits for the processes that are lost.
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)
  return code


def _is_gins(error: RecursionError) -> bool:
  """Returns whether gin was calling itself when the calls became too many."""
  frames = traceback.extract_tb(error.__traceback__)
  called = [frame for frame in frames if frame.name == "gin_wrapper"]
  return len(called) > 20


def _without_gin(error: Exception) -> BaseException:
  """Returns the error that gin wrapped to say which configurable was called."""
  inner: BaseException = error
  while inner.__context__ is not None and str(inner).startswith(str(inner.__context__)):
    inner = inner.__context__
  return inner


def _rewrite_gin_flags(argv: Sequence[str]) -> list[str]:
  """Turns `--gin.NAME=VALUE` into `--gin_bindings=NAME=VALUE`, as T5X does."""
  return [
    "--gin_bindings=" + argument.removeprefix("--gin.")
    if argument.startswith("--gin.")
    else argument
    for argument in argv
  ]

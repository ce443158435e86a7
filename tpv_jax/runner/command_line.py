"""Command lines of the runner: gin files and bindings, flags spelled as T5X spells them.

`--gin_file=FILE` (repeatable), `--gin.NAME=VALUE`, `--gin_search_paths=A,B`; beside
them `--debug`, which shows a trace where otherwise one line tells what is wrong.
"""

import argparse
import importlib
import importlib.util  # gin forgets to import it before its first use.
import inspect
import os
import pathlib
import re
import sys
from collections.abc import Callable, Sequence
from typing import Any

import gin

from tpv_jax.errors import ArgumentParser, UserError, near_misses, run_command
from tpv_jax.runner import processes

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
  parser.add_argument(
    "--multiprocess_gpu",
    action="store_true",
    help="one of several processes (GPU, CPU or TPU hosts); T5X's name for it",
  )
  parser.add_argument("--coordinator_address", help="HOST:PORT of process 0")
  parser.add_argument("--process_count", type=int, help="how many processes")
  parser.add_argument("--process_index", type=int, help="which one this is, from 0")
  parser.add_argument("--debug", action="store_true", help="show traces of errors")
  flags = parser.parse_args(_rewrite_gin_flags(argv))

  def body() -> int | None:
    if not flags.gin_file:
      raise UserError(
        "No gin file was given, so there is nothing to run. Pass --gin_file=FILE; "
        "--help shows examples."
      )
    if flags.multiprocess_gpu:
      processes.initialise(
        flags.coordinator_address, flags.process_count, flags.process_index
      )
    search_paths = [path for path in flags.gin_search_paths.split(",") if path]
    parse_gin(flags.gin_file, flags.gin_bindings, search_paths)
    processes.keep_compiled_programs()
    try:
      result = gin.get_configurable(function)(**arguments)
    except (UserError, OSError) as error:
      raise _without_gin(error) from None
    return result if isinstance(result, int) else None

  code = run_command(body, debug=flags.debug)
  if code and flags.multiprocess_gpu:
    # Leave at once: JAX's own way out waits for the processes that are lost.
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)
  return code


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


def parse_gin(
  files: Sequence[str], bindings: Sequence[str] = (), search_paths: Sequence[str] = ()
) -> None:
  """Fills gin's configuration from files and bindings, checked before anything runs.

  Beyond gin's own checks, a macro that no file defines is refused (gin would ignore the
  misspelt name), and so is one still at %gin.REQUIRED (gin would hand on a bare object).

  Raises:
    UserError: a missing file, a syntax error, an unknown name (with near misses), or a
      required macro without a value.
  """
  gin.clear_config()
  for path in search_paths:
    gin.add_config_file_search_path(path)
  try:
    gin.parse_config_files_and_bindings(
      [_find(name, search_paths) for name in files], [], finalize_config=False
    )
  except (ValueError, SyntaxError, OSError, ImportError, AttributeError) as error:
    raise UserError(_explain(error)) from error
  macros = _macros()
  for binding in bindings:
    _bind(binding, macros)
  required = [name for name, value in _macros().items() if value == "%gin.REQUIRED"]
  if required:
    raise UserError(
      f"{', '.join(required)} must be given: pass "
      + " ".join(f"--gin.{name}=..." for name in required)
      + ". The header of the gin file says what each one is."
    )


def _find(name: str, search_paths: Sequence[str]) -> str:
  """Returns a path for `name`: as given, in a search path, or in the installed package."""
  if any((pathlib.Path(folder) / name).is_file() for folder in (".", *search_paths)):
    return name
  package = pathlib.Path(
    str(importlib.import_module("tpv_jax.gin_configs").__path__[0])
  )
  relative = name.removeprefix("tpv_jax/").removeprefix("gin_configs/")
  if (package / relative).is_file():
    return str(package / relative)
  known = [
    "gin_configs/" + str(path.relative_to(package)) for path in package.rglob("*.gin")
  ]
  raise UserError(
    f"There is no gin file '{name}' here or in the installed package."
    f"{near_misses(name, known) or ' Shipped run files: ' + _run_files(known)}"
  )


def _run_files(known: Sequence[str]) -> str:
  return ", ".join(sorted(name for name in known if "/runs/" in name)) + "."


def _macros() -> dict[str, str]:
  """Returns the macros that the configuration defines, with their values as text."""
  return dict(re.findall(r"^([A-Za-z_]\w*) = (.*)$", gin.config_str(), re.MULTILINE))


def _bind(binding: str, macros: dict[str, str]) -> None:
  name, equals, value = binding.partition("=")
  name, value = name.strip(), value.strip()
  if not equals or not name or not value:
    raise UserError(f"'--gin.{binding}' is no binding: write --gin.NAME=VALUE.")
  if re.fullmatch(r"[A-Za-z_]\w*", name) and name not in macros:
    raise UserError(
      f"No gin file that was given defines {name}, so --gin.{name} would change "
      f"nothing.{near_misses(name, macros) or ' Known: ' + ', '.join(macros) + '.'}"
    )
  try:
    gin.parse_config(f"{name} = {value}")
  except SyntaxError as error:
    hint = "" if value[0] in "\"'[({@%" else f" A string needs quotes: '\"{value}\"'."
    raise UserError(f"Cannot read the value of --gin.{name}={value}.{hint}") from error
  except (ValueError, ImportError, AttributeError) as error:
    raise UserError(_explain(error)) from error


def _explain(error: Exception) -> str:
  """Returns gin's message in one line, with near misses for an unknown name."""
  text = " ".join(str(error).split())
  parameter = re.search(
    r"Configurable '([\w.]+)' doesn't have a parameter named '(\w+)'", text
  )
  if parameter:
    function, name = parameter.groups()
    return text + near_misses(name, _parameters(function))
  selector = re.search(r"No configurable matching '([\w./]+)'", text)
  if selector:
    name = selector.group(1)
    module = sys.modules.get(_modules().get(name.split(".")[0], ""))
    known = (
      [f"{name.split('.')[0]}.{public}" for public in dir(module)] if module else []
    )
    return text + (near_misses(name, known) or near_misses(name, _modules()))
  return text


def _modules() -> dict[str, str]:
  """Returns the modules imported by the gin files: short name -> full name."""
  found = re.findall(r"^from ([\w.]+) import (\w+)$", gin.config_str(), re.MULTILINE)
  return {name: f"{package}.{name}" for package, name in found}


def _parameters(selector: str) -> list[str]:
  """Returns the parameter names of a configurable; none if it cannot be inspected."""
  try:
    return list(inspect.signature(gin.get_configurable(selector)).parameters)
  except (ValueError, TypeError):
    return []

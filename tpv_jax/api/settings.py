"""A command's function, called from Python with the settings of its gin files.

A setting is a macro of the gin files in lower case: `learning_rate=0.1` is LEARNING_RATE.
"""

import functools
import math
import os
import re
import types
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import numpy as np

from tpv_jax.core import screen
from tpv_jax.core.errors import UserError
from tpv_jax.core.files import PathLike
from tpv_jax.devices import processes
from tpv_jax.settings import calling, gin_files
from tpv_jax.settings.gin_files import MACRO, Settings

ARGUMENTS = {
  **dict.fromkeys(
    ("backbone", "dtype", "quantize", "chat", "vocabulary", "vocabulary_file"),
    "belongs to the backbone: tpv.load_backbone(NAME, dtype=..., quantize=..., chat=..., "
    "vocabulary_file=...)",
  ),
  **dict.fromkeys(
    ("task", "tasks", "task_name", "task_names", "task_files", "data_dir"),
    "says what the task is: give tasks, which tpv.task(...) makes",
  ),
  **dict.fromkeys(("run_dir", "output_dir"), "is the folder, the third argument"),
  "prompt_path": "says what is evaluated: give prompts",
}
"""Settings that an argument stands for -> what to do instead."""


def call(
  function: Callable[..., Any],
  settings: Mapping[str, Any],
  own: Mapping[str, Any],
  arguments: Mapping[str, Any],
  gin_file: PathLike | Sequence[PathLike] = (),
  defaults: Mapping[str, Any] = types.MappingProxyType({}),
) -> tuple[Any, Settings]:
  """Returns what a gin-configured function returns, and the settings in force.

  gin's configuration is left as it was.

  Args:
    function: what a command runs.
    settings: the user's, by name in lower case.
    own: what the call's arguments stand for, by macro; a file of the user's may not set it.
    arguments: passed to the function in addition to what gin binds.
    gin_file: one or several files of the user's.
    defaults: by macro, for what neither `settings` nor a file of the user's sets.

  Raises:
    UserError: a setting is not known, not read or wrong; what the function raises.
  """
  given = [gin_file] if isinstance(gin_file, str | os.PathLike) else gin_file
  files = [os.fspath(path) for path in given]
  in_files = gin_files.bound_by_user(files)
  _refuse_own(in_files, own)
  unset = {name: value for name, value in defaults.items() if name not in in_files}
  bindings, objects = [], {}
  for name, value in {**unset, **_macros(settings), **own}.items():
    text = _literal(value)
    if text is None:
      objects[name] = value
    else:
      bindings.append(f"{name}={text}")
  with calling.kept():
    try:
      ready = calling.prepare(
        function, files, bindings, arguments=arguments, objects=objects
      )
      for line in ready.lines if files else ():
        screen.say(line)
      processes.say_if_unused()
      return ready.run(), ready.settings
    except UserError as error:
      raise UserError(spelled(str(error))) from None


def as_list(value: Any) -> Any:
  """Returns several values as a list; a text and what is no list are left to gin's checks."""
  several = isinstance(value, Iterable) and not isinstance(value, str | Mapping)
  return list(value) if several else value


def value_of(settings: Settings, macro: str) -> Any:
  """Returns the value that a macro has."""
  value = settings[macro, *MACRO].value
  return value.value if isinstance(value, gin_files.Given) else value


def shipped(file: str, macro: str) -> Any:
  """Returns the value of a macro in a gin file of this package."""
  with calling.kept():
    return value_of(gin_files.parse([f"gin_configs/{file}.gin"]), macro)


def _macros(settings: Mapping[str, Any]) -> dict[str, Any]:
  for name in settings:
    if name in ARGUMENTS:
      raise UserError(f"The setting '{name}' {ARGUMENTS[name]}.")
    if name != name.lower():
      raise UserError(f"Settings are in lower case: '{name.lower()}', not '{name}'.")
  return {name.upper(): value for name, value in settings.items()}


def _refuse_own(
  in_files: Mapping[str, tuple[Any, str]], own: Mapping[str, Any]
) -> None:
  """Raises `UserError` if a file of the user's sets what an argument of the call says."""
  for name, (value, place) in in_files.items():
    if name.lower() not in ARGUMENTS and name not in own:
      continue
    if isinstance(value, str) and own.get(name) == value:
      continue
    what = ARGUMENTS.get(name.lower(), "is an argument of the call")
    raise UserError(
      f"{place} sets {name.lower()}, which {what}. Leave it out of the file."
    )


def _literal(value: Any) -> str | None:
  """Returns a value in gin's language, or None if it has to be passed as it is.

  A string that begins with '@' or '%' is a reference: '@initial.uniform'.
  """
  value = _plain(value)
  if isinstance(value, str) and re.match(r"[@%][\w.]", value):
    return value
  return repr(value) if _is_literal(value) else None


def _plain(value: Any) -> Any:
  """Returns a value with paths as strings and NumPy's numbers as Python's."""
  if isinstance(value, os.PathLike):
    return os.fspath(value)
  if isinstance(value, np.generic):
    return value.item()
  if type(value) is dict:
    return {_plain(key): _plain(item) for key, item in value.items()}
  if type(value) in (list, tuple):
    return type(value)(map(_plain, value))
  return value


def _is_literal(value: Any) -> bool:
  if type(value) is dict:
    return all(map(_is_literal, (*value, *value.values())))
  if type(value) in (list, tuple):
    return all(map(_is_literal, value))
  if type(value) is float:
    return math.isfinite(value)
  return type(value) in (str, int, bool, type(None))


@functools.cache
def _known() -> re.Pattern[str]:
  """Returns a pattern of the macros of this package's gin files."""
  texts = "\n".join(gin_files.shipped().values())
  names = sorted(set(re.findall(r"(?m)^([A-Z][A-Z0-9_]+) = ", texts)), key=len)
  return re.compile(rf"(?<![\w/'.-])({'|'.join(names[::-1])})(?![\w/.-]\w)\b")


def spelled(text: str) -> str:
  """Returns a message about settings with their names as Python has them."""
  text = re.sub(r"--gin\.([A-Z]\w*)='\"(.*?)\"'", r"--gin.\1='\2'", text)
  text = re.sub(r"--gin\.(?=[A-Z])", "", text)
  text = text.replace(" (--gin)", "").replace("this command", "this call")
  # What is not known was written in lower case as well.
  text = re.sub(
    r"\b([A-Z][A-Z0-9_]+)(?= is read by nothing)", lambda found: found[1].lower(), text
  )
  text = re.sub(
    r"(?<=Did you mean )('[A-Z][A-Z0-9_]+'(?:, )?)+",
    lambda found: found[0].lower(),
    text,
  )
  return _known().sub(lambda found: found[1].lower(), text)

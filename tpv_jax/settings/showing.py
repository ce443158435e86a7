"""All settings of a command, with their meaning, default and origin, for --show-config."""

import functools
import inspect
import pathlib
import re
from collections.abc import Callable, Iterator, Sequence
from typing import Any

from tpv_jax.settings import gin_files, refusals
from tpv_jax.settings.gin_files import MACRO, Setting, Settings
from tpv_jax.settings.refusals import Call

_OURS = "tpv_jax."

_HIDDEN = ("config", "progress", "name", "parent")
"""Parameters that the command itself sets, and Flax's own of modules."""


def lines(entry: Callable[..., Any], settings: Settings) -> Iterator[str]:
  """Yields the settings that a command reads: its macros, then parameters with a name.

  Each is written as a gin file would have it, then where it comes from, its default if that
  is another, and its meaning: the comment beside it in the gin file, or what the function
  that reads it says of its argument.

  Args:
    entry: the function that the command runs.
    settings: what `gin_files.parse` returned.

  Raises:
    UserError: no file configures `entry`.
  """
  calls = refusals.calls_from(entry, settings)
  meanings = _meanings(calls)
  read = {key for call in calls for key, _ in call.bound.values()}
  for key, setting in settings.items():
    if key[1:] == MACRO and key in read and not _is_internal(setting):
      yield from _shown(setting, meanings.get(setting.name, ""))
  for call in sorted(calls, key=lambda call: call.name):
    if call.selector != MACRO[0] and call.function.__module__.startswith(_OURS):
      yield from _parameters(call, settings)


def _is_internal(setting: Setting) -> bool:
  """Returns whether a setting only names a part of the configuration: MODEL, TASK."""
  return setting.shipped and repr(setting.value).startswith("@")


def _shown(setting: Setting, meaning: str) -> Iterator[str]:
  value = repr(setting.value)
  if value == "%gin.REQUIRED":
    value = "(must be given)"
  place = setting.place
  default = setting.default and repr(setting.default.value)
  if setting.default is not None and default not in (value, "%gin.REQUIRED"):
    place += f"; default {default}, {setting.default.place}"
  yield f"{setting.name} = {value}  # {place}"
  for one in (setting, setting.default):
    if one is not None and (comment := _comment(one)):
      meaning = comment
      break
  if meaning:
    yield f"    {meaning}"


def _parameters(call: Call, settings: Settings) -> Iterator[str]:
  """Yields parameters that no macro sets: bound by the user, or at their default."""
  said = arguments_of(call.function)
  for name, parameter in inspect.signature(call.function).parameters.items():
    if name in call.bound:
      setting = settings[call.bound[name][0]]
      if not setting.shipped:
        yield from _shown(setting, said.get(name, ""))
    elif call.by_gin and _has_a_default(parameter):
      yield f"{call.name}.{name} = {parameter.default!r}  # default"
      if name in said:
        yield f"    {said[name]}"


def _has_a_default(parameter: inspect.Parameter) -> bool:
  """Returns whether a parameter has a default that a user may change."""
  if parameter.name in _HIDDEN or parameter.default is parameter.empty:
    return False
  return not callable(parameter.default)


def _meanings(calls: Sequence[Call]) -> dict[str, str]:
  """Returns macro -> what a function that reads it says of its argument."""
  found: dict[str, str] = {}
  for call in calls:
    if call.selector == MACRO[0]:
      continue
    said = arguments_of(call.function)
    for parameter, (_, value) in call.bound.items():
      if repr(value).startswith("%") and parameter in said:
        found.setdefault(repr(value)[1:], said[parameter])
  return found


def arguments_of(function: Callable[..., Any]) -> dict[str, str]:
  """Returns argument -> its description in the docstring, in one line."""
  text = inspect.getdoc(function) or ""
  if inspect.isclass(function):
    text += "\n\n" + (inspect.getdoc(function.__init__) or "")
  found: dict[str, str] = {}
  for section in re.findall(r"(?ms)^(?:Args|Attributes):\n(.*?)(?=^\S|\Z)", text):
    for name, said in re.findall(r"(?ms)^  (\w+): (.*?)(?=^  \S|\Z)", section):
      found.setdefault(name, " ".join(said.split()))
  return found


def _comment(setting: Setting) -> str:
  """Returns the comment behind a setting in its file."""
  if setting.file is None:
    return ""
  for line in _lines(setting.file)[setting.line - 1 : setting.line]:
    if found := re.search(r"[^'\"]*?  ?# *(.*)$", line):
      return found[1].strip()
  return ""


@functools.cache
def _lines(file: str) -> Sequence[str]:
  try:
    path = gin_files.find(file)
    return pathlib.Path(path).read_text(encoding="utf-8-sig").splitlines()
  except (OSError, ValueError):
    return ()

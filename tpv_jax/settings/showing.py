"""All settings of a command, with their meaning, default and origin, for --show-config."""

import dataclasses
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


@dataclasses.dataclass(frozen=True)
class Shown:
  """A setting as it is shown.

  Attributes:
    name: 'TRAIN_STEPS', or 'training.train.log_period'.
    value: as a gin file would have it; None if it must be given and was not.
    origin: the place that sets it, and its default if that is another; or 'default'.
    meaning: the comment beside it in the gin file, or what the function that reads it says
      of its argument; may be empty.
  """

  name: str
  value: str | None
  origin: str
  meaning: str

  def __str__(self) -> str:
    value = "(must be given)" if self.value is None else self.value
    meaning = f"\n    {self.meaning}" if self.meaning else ""
    return f"{self.name} = {value}  # {self.origin}{meaning}"


def shown(entry: Callable[..., Any], settings: Settings) -> Iterator[Shown]:
  """Yields the settings that a command reads: its macros, then other parameters.

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
      yield _shown(setting, meanings.get(setting.name, ""))
  for call in sorted(calls, key=lambda call: call.name):
    if call.selector != MACRO[0] and call.function.__module__.startswith(_OURS):
      yield from _parameters(call, settings)


def _is_internal(setting: Setting) -> bool:
  """Returns whether a setting only names a part of the configuration: MODEL, TASK."""
  return setting.shipped and repr(setting.value).startswith("@")


def _shown(setting: Setting, meaning: str) -> Shown:
  required = "%gin.REQUIRED"
  value, origin = repr(setting.value), setting.place
  default = setting.default
  if default is not None and repr(default.value) not in (value, required):
    origin += f"; default {default.value!r}, {default.place}"
  given = [_comment(one) for one in (setting, default) if one is not None]
  meaning = next(filter(None, [*given, meaning, _elsewhere(setting.name)]), "")
  return Shown(setting.name, None if value == required else value, origin, meaning)


def _parameters(call: Call, settings: Settings) -> Iterator[Shown]:
  """Yields parameters that no macro sets: bound by the user, or at their default."""
  said = arguments_of(call.function)
  for name, parameter in inspect.signature(call.function).parameters.items():
    if name in call.bound:
      setting = settings[call.bound[name][0]]
      if not setting.shipped:
        yield _shown(setting, said.get(name, ""))
    elif call.by_gin and _has_a_default(parameter):
      whole = f"{call.name}.{name}"
      yield Shown(whole, repr(parameter.default), "default", said.get(name, ""))


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


def _elsewhere(name: str) -> str:
  """Returns the comment behind a macro in another file of this package."""
  for text in gin_files.shipped().values():
    if found := re.search(rf"(?m)^{re.escape(name)} = [^#\n]*  # *(.*)$", text):
      return found[1].strip()
  return ""


@functools.cache
def _lines(file: str) -> Sequence[str]:
  try:
    path = gin_files.find(file)
    return pathlib.Path(path).read_text(encoding="utf-8-sig").splitlines()
  except (OSError, ValueError):
    return ()

"""Refusal of settings that nothing would read, before anything runs.

From the configurable that a command runs, bindings, @references and %macros are followed
as gin will follow them. A setting of the user's that is not reached would be lost
silently, so it is refused by its name. Settings that are missing are reported as well.
"""

import dataclasses
import graphlib
import inspect
import re
import sys
import types
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any

from gin import config

from tpv_jax.core import checks
from tpv_jax.core.errors import UserError, near_misses
from tpv_jax.settings import gin_files
from tpv_jax.settings.gin_files import MACRO, Key, Setting, Settings

SUBJECTS = {
  *("TASK", "TASKS", "TASK_FILES", "TASK_NAME", "TASK_NAMES", "TASK_MODULES"),
  "TUNING_TASKS",
  *("SOURCES", "TARGETS", "SEQIO_TASK", "MIXTURE_OR_TASK_NAME", "ENTRIES", "MEMBERS"),
  *("DATA", "DATA_DIR", "PATHS", "TEMPLATE", "TARGET", "SPLITS", "METRIC", "LENGTHS"),
  *("SHOTS", "INPUT_FILE", "LABELS"),
  *("PROMPT", "PROMPT_PATH", "INITIAL_PROMPT", "VECTOR", "INITIAL"),
  *("RUN_DIR", "OUTPUT", "OUTPUT_DIR", "MODEL_DIR", "PREDICTIONS", "TABLE"),
}
"""Macros, and parameters in lower case, that name what a command works on and writes.

A file that several commands share may set other things that one of them does not read,
such as TRAIN_STEPS. These must always be read: they are what the user asked for.
"""

_SUBJECT_ROOMS = ("tpv_jax.data.", "tpv_jax.prompts.", "tpv_jax.embedded.")
"""Modules whose parameters are of the same kind: all of them describe data or prompts."""


@dataclasses.dataclass(frozen=True)
class Call:
  """A configurable as gin will call it.

  Attributes:
    selector: the complete selector.
    scope: gin's scopes, outermost first.
    by_gin: whether gin calls it; otherwise our code does, with further arguments.
    bound: parameter -> the key of its binding, and the value.
  """

  selector: str
  scope: tuple[str, ...]
  by_gin: bool
  bound: Mapping[str, tuple[Key, Any]]

  @property
  def function(self) -> Callable[..., Any]:
    """The function or class itself."""
    return config._REGISTRY[self.selector].wrapped

  @property
  def name(self) -> str:
    """The name that a user writes: 'training.train'."""
    return ".".join(self.selector.split(".")[-2:])

  @property
  def shown(self) -> str:
    """How a gin file refers to it: '%MODEL', '@model.SoftPromptModel()'."""
    is_macro = self.selector == MACRO[0]
    return f"%{'/'.join(self.scope)}" if is_macro else f"@{self.name}()"


def check(
  entry: Callable[..., Any],
  settings: Settings,
  arguments: Iterable[str] = (),
  others: Mapping[str, Mapping[str, Any]] = types.MappingProxyType({}),
  instead: Mapping[str, str] = types.MappingProxyType({}),
) -> list[str]:
  """Returns lines about settings that this command ignores; refuses all wrong ones.

  Args:
    entry: the function that the command runs.
    settings: what `gin_files.parse` returned.
    arguments: the names that the command itself passes to `entry`.
    others: annotations for parameters of functions outside this package, by selector.
    instead: name -> a sentence of advice, for names that have a meaning elsewhere.

  Raises:
    UserError: no file configures `entry`; a required value is missing; no file sets a
      macro; nothing reads a setting of the user's; or a value does not fit the annotation
      of its parameter.
  """
  calls = calls_from(entry, settings)
  _check_complete(calls, settings, frozenset(arguments))
  lines = _check_read(calls, settings, instead)
  _check_given(calls, settings)
  _check_values(calls, settings, others)
  return lines


def forget_unread(entry: Callable[..., Any], settings: Settings) -> None:
  """Removes from gin's configuration what nothing reads when `entry` runs.

  So a configuration that is written to a file passes `check` when it is given again.
  """
  for scope, selector, parameter in settings.keys() - _read(
    calls_from(entry, settings)
  ):
    bound = config._CONFIG[scope, selector]
    del bound[parameter]
    if not bound:
      del config._CONFIG[scope, selector]


def _read(calls: Iterable[Call]) -> set[Key]:
  return {key for call in calls for key, _ in call.bound.values()}


def calls_from(entry: Callable[..., Any], settings: Settings) -> list[Call]:
  """Returns `entry`, first, and all the calls that gin or our code makes from it."""
  configurable = config._inverse_lookup(entry)
  name = f"{entry.__module__.rpartition('.')[2]}.{entry.__name__}"
  if configurable is None or not any(
    key[1] == configurable.selector for key in settings
  ):
    raise UserError(
      f"No gin file that was given says what to run: none configures {name}. Add a run "
      f"file, --gin_file=...: {', '.join(_run_files(name))}."
    )
  found: dict[tuple[str, tuple[str, ...], bool], Call] = {}
  needs: dict[Any, list[Any]] = {}
  left = [(configurable.selector, (), True), *_called_by_name(settings)]
  while left:
    one = left.pop()
    if one in found:
      continue
    selector, scope, _ = one
    found[one] = Call(*one, _bound(selector, scope))
    for _, value in found[one].bound.values():
      for reference in references(value):
        where = tuple(reference.scopes) or scope
        target = reference.configurable.selector
        left.append((target, where, reference.evaluate))
        if reference.evaluate:
          needs.setdefault(one, []).append(left[-1])
        else:  # Whatever receives the function will call it.
          left.append((target, tuple(reference.scopes), False))
  try:
    graphlib.TopologicalSorter(needs).prepare()
  except graphlib.CycleError as error:
    circle = " needs ".join(found[one].shown for one in reversed(error.args[1]))
    raise UserError(f"The settings need each other in a circle: {circle}.") from None
  return list(found.values())


def _called_by_name(settings: Settings) -> Iterator[tuple[str, tuple[str, ...], bool]]:
  """Yields functions that are decorated for gin: these read settings at any call."""
  for scope, selector, _ in settings:
    one = config._REGISTRY[selector]
    module = sys.modules.get(one.wrapped.__module__)
    found = getattr(module, one.wrapped.__qualname__, None)
    if one.wrapper is found and not selector.startswith("gin."):
      yield selector, tuple(filter(None, scope.split("/"))), False


def _run_files(name: str) -> list[str]:
  """Returns the run files of this package that configure a function, or include one."""
  texts = {
    file: text
    for file, text in gin_files.shipped().items()
    if re.search("/(runs|t5x)/", file)
  }
  # Gin files import T5X's commands, each a __main__, as NAME_script.
  name = name.replace("__main__", r"\w+_script")
  found = {file for file, text in texts.items() if re.search(rf"(?m)^{name}:", text)}
  while including := {
    file
    for file, text in texts.items()
    if file not in found and any(f"include 'tpv_jax/{one}'" in text for one in found)
  }:
    found |= including
  return sorted(found)


def _bound(selector: str, scope: Sequence[str]) -> dict[str, tuple[Key, Any]]:
  """Returns the bindings of a call's parameters; the innermost scope wins."""
  return {
    parameter: ((partial, selector, parameter), value)
    for partial in ("/".join(scope[:depth]) for depth in range(len(scope) + 1))
    for parameter, value in config._CONFIG.get((partial, selector), {}).items()
  }


def references(value: Any) -> Iterator[config.ConfigurableReference]:
  """Yields gin's references in a value and in its containers."""
  if isinstance(value, config.ConfigurableReference):
    yield value
  elif isinstance(value, dict):
    for item in (*value, *value.values()):
      yield from references(item)
  elif isinstance(value, list | tuple):
    for item in value:
      yield from references(item)


def _check_given(calls: Sequence[Call], settings: Settings) -> None:
  """Raises `UserError` for settings that are still `%gin.REQUIRED`."""
  required = {
    settings[key].name
    for call in calls
    for key, value in call.bound.values()
    if repr(value) == "%gin.REQUIRED"
  }
  if required:
    raise UserError(
      f"{', '.join(sorted(required))} must be given: pass "
      + " ".join(f"--gin.{name}=..." for name in sorted(required))
      + ". The header of the gin file describes each."
    )


def _check_complete(
  calls: Sequence[Call], settings: Settings, arguments: frozenset[str]
) -> None:
  """Raises `UserError` for macros and parameters that no file sets."""
  unset, missing = [], []
  for call in calls:
    if call.selector == MACRO[0] and not call.bound:
      unset.append(call.scope)
    elif call.by_gin and not call.selector.startswith("gin."):
      given = {*call.bound, *(arguments if call is calls[0] else ())}
      lacking = [name for name in _needed(call.function) if name not in given]
      missing += [f"{call.name} needs {', '.join(lacking)}"] if lacking else []
  if unset:
    raise UserError(_explain_unset(["/".join(scope) for scope in unset], settings))
  if missing:
    raise UserError(
      f"{'; '.join(missing)}, which no gin file sets. A function that is passed on "
      "instead of called is written without (): @initial.uniform."
    )


def _needed(function: Callable[..., Any]) -> list[str]:
  """Returns the parameters without a default."""
  return [
    name
    for name, parameter in inspect.signature(function).parameters.items()
    if parameter.default is parameter.empty
    and parameter.kind not in (parameter.VAR_POSITIONAL, parameter.VAR_KEYWORD)
  ]


def _explain_unset(names: list[str], settings: Settings) -> str:
  """Returns where macros that no file sets are used, and which files would set them."""
  known = [setting.name for setting in settings.values() if setting.key[1:] == MACRO]
  folders: dict[str, list[str]] = {}
  lines = []
  for name in sorted(set(names)):
    setting = next(
      setting
      for setting in settings.values()
      if name in ("/".join(item.scopes) for item in references(setting.value))
    )
    folder = _provider(name)
    if folder is None or not setting.shipped:
      near = near_misses(name, known)
      lines.append(f"{setting.place} uses %{name}, which no file sets.{near}")
    else:
      folders.setdefault(folder, []).append(name)
  if folders:
    parts = [f"{', '.join(names)}: {folder}" for folder, names in folders.items()]
    lines.append(
      "No gin file that was given sets some macros. Add a file from these folders, or set "
      f"them in one of yours: {'; '.join(parts)}."
    )
  return " ".join(lines)


def _provider(name: str) -> str | None:
  """Returns the folder of this package's gin files in which a macro gets a value."""
  value = re.compile(rf"^{re.escape(name)} = (?!%gin\.REQUIRED)", re.MULTILINE)
  for folder in ("backbones", "prompts", "tasks", "runs"):
    for file, text in gin_files.shipped().items():
      if file.startswith(f"gin_configs/{folder}/") and value.search(text):
        return f"gin_configs/{folder}"
  return None


def _check_values(
  calls: Sequence[Call], settings: Settings, others: Mapping[str, Mapping[str, Any]]
) -> None:
  """Raises `UserError` for a value that the annotation of its parameter refuses."""
  for call in calls:
    if call.function.__module__.startswith("tpv_jax."):
      known: Mapping[str, Any] = checks.annotations(call.function)
    else:
      known = others.get(call.selector, {})
    for parameter, (bound, value) in call.bound.items():
      key, value = _behind_macros(bound, value)
      setting = settings[key]
      name = setting.name + (f" ({setting.place})" if setting.file else "")
      wrong = checks.misfit(_known(value), known.get(parameter, Any), name)
      if wrong is None:
        continue
      if callable(wrong.value):
        raise UserError(
          f"{wrong.name} is the function {wrong.value.__name__} itself; it must be "
          f"{wrong.wanted}. Write () at its end to call it and use its result."
        )
      raise UserError(str(wrong))


def _behind_macros(key: Key, value: Any) -> tuple[Key, Any]:
  """Returns the key and the value of a binding, with macros followed."""
  while isinstance(value, config.ConfigurableReference) and _is_macro(value):
    key, value = _bound(value.configurable.selector, value.scopes)["value"]
  return key, value


def _known(value: Any) -> Any:
  """Returns a value with macros followed, and `checks.Unknown` for calls."""
  if isinstance(value, config.ConfigurableReference):
    if _is_macro(value):
      return _known(_bound(value.configurable.selector, value.scopes)["value"][1])
    return checks.Unknown() if value.evaluate else value.configurable.wrapped
  if isinstance(value, dict):
    return {_known(key): _known(item) for key, item in value.items()}
  if isinstance(value, list | tuple):
    return type(value)(map(_known, value))
  return value


def _is_macro(reference: config.ConfigurableReference) -> bool:
  return reference.configurable.selector == MACRO[0]


def _check_read(
  calls: Sequence[Call], settings: Settings, instead: Mapping[str, str]
) -> list[str]:
  """Returns a line about settings of other commands; refuses all others left unread."""
  reached = _read(calls)
  unread = [
    setting
    for key, setting in settings.items()
    if key not in reached and not setting.shipped
  ]
  if not unread:
    return []
  aside = [setting for setting in unread if _is_of_another_command(setting)]
  used = _used_by(aside, settings)
  refused = [
    setting for setting in unread if setting not in aside and setting.key not in used
  ]
  if refused:
    raise UserError(_explain_unread(refused, calls, settings, instead))
  places = sorted({str(setting.file) for setting in unread})
  names = ", ".join(setting.name for setting in unread)
  return [f"Not read by this command: {names} ({', '.join(places)})."]


def _is_of_another_command(setting: Setting) -> bool:
  """Returns whether a file may set it for other commands than this one."""
  if setting.file is None:
    return False
  texts = gin_files.shipped().values()
  if setting.key[1:] == MACRO:
    known = any(re.search(rf"^{setting.name} = ", text, re.MULTILINE) for text in texts)
    return known and setting.name not in SUBJECTS
  selector, parameter = setting.key[1:]
  module = config._REGISTRY[selector].wrapped.__module__
  name = ".".join(selector.split(".")[-2:])
  known = any(
    re.search(rf"^{re.escape(name)}[.:]", text, re.MULTILINE) for text in texts
  )
  return (
    known
    and not f"{module}.".startswith(_SUBJECT_ROOMS)
    and parameter.upper() not in SUBJECTS
  )


def _used_by(some_settings: Sequence[Setting], settings: Settings) -> set[Key]:
  """Returns the keys that some settings refer to, directly or not."""
  found: set[Key] = set()
  left = [reference for one in some_settings for reference in references(one.value)]
  while left:
    reference = left.pop()
    for key, value in _bound(
      reference.configurable.selector, reference.scopes
    ).values():
      if key not in found:
        found.add(key)
        left += references(value)
  return found


def _explain_unread(
  refused: Sequence[Setting],
  calls: Sequence[Call],
  settings: Settings,
  instead: Mapping[str, str],
) -> str:
  """Returns the names and places of unread settings, and what was perhaps meant."""
  called = {call.selector: call for call in calls}
  read = {settings[key].name for call in calls for key, _ in call.bound.values()}
  read |= {f"{call.name}.{name}" for call in calls for name in _parameters(call)}
  lines = []
  for setting in refused:
    line = f"{setting.name} ({setting.place}) is read by nothing that this command runs"
    selector, parameter = setting.key[1:]
    if selector != MACRO[0] and selector not in called:
      line += f", as it does not call {setting.name.rpartition('.')[0]}"
    elif selector in called and selector != MACRO[0]:
      line += f", as a narrower scope sets {parameter}"
    words = [f" {x}" for name, x in instead.items() if _ends(setting.name, name)]
    lines.append(f"{line}.{''.join(words[:1]) or near_misses(setting.name, read)}")
  return " ".join([*lines[:4], *(["…"] if len(lines) > 4 else [])])


def _ends(name: str, end: str) -> bool:
  return re.search(rf"(?<!\w){re.escape(end)}$", name) is not None


def _parameters(call: Call) -> list[str]:
  return list(inspect.signature(call.function).parameters)

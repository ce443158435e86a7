"""Parsing of gin files and bindings, which records who set what, and where.

gin keeps the last value of each name and forgets the rest. Here each statement is bound
separately, so that it is known which settings are the user's own (a binding of the
command line, or a file that is not this package's) and on which line they are. Any error
in a file is one `UserError` that names the file and line.
"""

import ast
import contextlib
import dataclasses
import functools
import importlib.util
import inspect
import json
import os
import pathlib
import pkgutil
import re
import shlex
import sys
import tokenize
import types
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import gin
from gin import config, config_parser

from tpv_jax.core.checks import Unknown
from tpv_jax.core.errors import UserError, near_misses
from tpv_jax.core.files import gin_configs

Key = tuple[str, str, str]
"""What is bound: (scope, complete selector, parameter), or (name, *`MACRO`) of a macro."""

MACRO = ("gin.macro", "value")

MOST_BYTES = 10 << 20
"""The most bytes of a gin file; ours have at most 6 kB."""


@dataclasses.dataclass(frozen=True)
class Setting:
  """One binding of a file or of the command line.

  Attributes:
    key: what is bound.
    name: as it was written: 'TRAIN_STEPS', 'one/suite.task.name'.
    value: as gin parses it, with references as objects.
    file: as it was given or included; None for the command line.
    line: in the file.
    given: the file on the command line that is or includes `file`.
    shipped: whether the file belongs to this package or to a library.
    default: the shipped setting that this one of the user's replaces.
  """

  key: Key
  name: str
  value: Any
  file: str | None
  line: int
  given: str | None
  shipped: bool
  default: "Setting | None" = None

  @property
  def place(self) -> str:
    """Where the setting is: '--gin' or 'FILE:LINE'."""
    return "--gin" if self.file is None else f"{self.file}:{self.line}"


Settings = dict[Key, Setting]


GIVEN = "<given in Python>"
"""How a value of Python is shown, which gin's language cannot write."""


class Given(Unknown):
  """A value of Python that stands in gin's configuration and is used as it is.

  gin copies what it binds; of this the copy is the value itself.
  """

  def __init__(self, value: Any):
    self.value = value

  def __deepcopy__(self, memo: Any) -> Any:
    """Returns the value."""
    return self.value

  def __repr__(self) -> str:
    """Returns what stands for the value in a record of the configuration."""
    return GIVEN


def parse(
  files: Sequence[str],
  bindings: Sequence[str] = (),
  search_paths: Sequence[str] = (),
  libraries: Sequence[str] = (),
  unquoted: bool = False,
  objects: Mapping[str, Any] = types.MappingProxyType({}),
) -> Settings:
  """Clears and fills gin's configuration, and returns the settings in force.

  A later setting replaces an earlier one, but a file of this package never replaces a
  value of the user's: in which order the two are given does not matter.

  Args:
    files: gin files in order.
    bindings: 'NAME=VALUE', applied after the files.
    search_paths: more folders in which to look for files.
    libraries: packages whose gin files count as shipped, as ours do.
    unquoted: whether a binding may leave out the quotes of a string, or of the strings of a
      list: `RUN_DIR=runs/x`, `TASK_NAMES=[sentiment, topic]`.
    objects: macro -> a value of Python, bound after the bindings.

  Raises:
    UserError: a file that is missing, is not text or includes itself; a syntax error, an
      unknown name (with near misses); two files that each name a task.
  """
  gin.clear_config()
  reader = _Reader(search_paths, libraries, unquoted)
  for name in files:
    reader.given = name
    reader.read_file(name)
  reader.given = None
  for binding in bindings:
    reader.bind(binding)
  for macro, value in objects.items():
    reader.bind_object(macro, Given(value))
  return reader.settings


def bound(
  files: Sequence[str], bindings: Sequence[str] = (), search_paths: Sequence[str] = ()
) -> dict[str, Any]:
  """Returns what files and bindings bind, without applying it: name -> the last value.

  Names are written as in the files ('RUN_DIR', 'training.train.model'); what they include
  is read, too. References are text ('%MODEL'). What cannot be read is left out: `parse`
  says why.

  Raises:
    UserError: there is no such file.
  """
  found = {name: value for name, value, _ in _bound(files, search_paths)}
  for binding in bindings:
    name, _, value = (part.strip() for part in binding.partition("="))
    with contextlib.suppress(SyntaxError, UserError):
      statement = _binding(name, value, unquoted=True)
      found[_parameter(statement)] = statement.value
  return found


def bound_by_user(files: Sequence[str]) -> dict[str, tuple[Any, str]]:
  """Returns what the user's own files bind: name -> the last value, and 'FILE:LINE'.

  What files of this package bind is left out; see `bound` for names, values and errors.
  """
  return {
    name: (value, place) for name, value, place in _bound(files) if place is not None
  }


def _bound(
  files: Sequence[str], search_paths: Sequence[str] = ()
) -> Iterator[tuple[str, Any, str | None]]:
  """Yields the bindings of files and of what they include: name, value, 'FILE:LINE'.

  The place is None in a file of this package.
  """
  read: set[str] = set()

  def visit(name: str) -> Iterator[tuple[str, Any, str | None]]:
    with contextlib.suppress(UserError, OSError, SyntaxError):
      path = find(name, search_paths)
      if str(path) in read:
        return
      read.add(str(path))
      text = _text(path, name)
      ours = _is_shipped(os.path.realpath(path), text)
      for line, statement in _statements(text, _Unresolved()):
        if isinstance(statement, config_parser.IncludeStatement):
          yield from visit(statement.filename)
        elif isinstance(statement, config_parser.BindingStatement):
          place = None if ours else f"{name}:{line}"
          yield _parameter(statement), statement.value, place

  for name in files:
    find(name, search_paths)
    yield from visit(name)


def _parameter(statement: config_parser.BindingStatement) -> str:
  """Returns what a statement binds, without its scope: 'RUN_DIR', 'training.train.model'."""
  return ".".join(filter(None, (statement.selector, statement.arg_name)))


@functools.cache
def shipped() -> dict[str, str]:
  """Returns the text of each gin file of this package: 'gin_configs/runs/train.gin'."""
  folder = gin_configs()
  return {
    f"gin_configs/{path.relative_to(folder)}": path.read_text()
    for path in sorted(folder.rglob("*.gin"))
  }


def find(name: str, search_paths: Sequence[str] = ()) -> pathlib.Path:
  """Returns the path of a gin file: as given, in a search path, or in this package.

  Raises:
    UserError: there is no such file; the message has near misses.
  """
  for folder in (".", *search_paths):
    path = pathlib.Path(folder).expanduser() / pathlib.Path(name).expanduser()
    if path.is_file():
      return path
    if path.is_dir():
      raise UserError(f"'{name}' is a folder. Give a gin file that lies in it.")
  relative = name.removeprefix("tpv_jax/").removeprefix("gin_configs/")
  if (gin_configs() / relative).is_file():
    return gin_configs() / relative
  if found := _in_python_path(name):
    return found
  known = list(shipped())
  runs = ", ".join(file for file in known if "/runs/" in file)
  raise UserError(
    f"There is no gin file '{name}' here or in the installed package."
    f"{near_misses(name, known) or f' Shipped run files: {runs}.'}"
  )


def _in_python_path(name: str) -> pathlib.Path | None:
  """Returns the path of 'module/folder/file.gin' in an installed package, if it is one."""
  folder, file = os.path.split(name)
  try:
    spec = importlib.util.find_spec(folder.strip("/").replace("/", "."))
  except (ImportError, ValueError):
    return None
  for place in (spec.submodule_search_locations or ()) if spec else ():
    if (path := pathlib.Path(place, file)).is_file():
      return path
  return None


class _Reader:
  """Binds statement by statement; `settings` holds the settings in force so far."""

  def __init__(
    self, search_paths: Sequence[str], libraries: Sequence[str], unquoted: bool
  ):
    self.settings: Settings = {}
    self.given: str | None = None
    self._unquoted = unquoted
    self._search_paths = search_paths
    self._libraries = [folder for name in libraries for folder in _folders(name)]
    self._open: list[tuple[str, str]] = []
    """Names and real paths of the files being read, each included by the one before."""

  def read_file(self, name: str) -> None:
    """Binds the statements of a file and of the files that it includes."""
    try:
      path = find(name, self._search_paths)
    except UserError as error:
      raise UserError(
        f"{self._open[-1][0]} includes it: {error}" if self._open else str(error)
      ) from None
    real = os.path.realpath(path)
    if real in [opened for _, opened in self._open]:
      loop = " includes ".join([*(opened for opened, _ in self._open), name])
      raise UserError(f"The gin files include each other in a circle: {loop}.")
    text = _text(path, name)
    self._open.append((name, real))
    ours = _is_shipped(real, text)
    if ours:
      name = name.removeprefix("tpv_jax/")
    ours = ours or real.startswith(tuple(self._libraries))
    line = 1
    with config._parse_scope() as context:
      try:
        for line, statement in _statements(text):
          self._apply(statement, name, line, ours, context)
      except UserError:
        raise
      except (Exception, SystemExit) as error:
        line = getattr(error, "lineno", None) or line
        raise UserError(f"{name}:{line}: {explain(error)}") from error
    self._open.pop()

  def bind(self, binding: str) -> None:
    """Binds one 'NAME=VALUE' of the command line."""
    name, equals, value = (part.strip() for part in binding.partition("="))
    if not equals or not name or not value:
      raise UserError(f"'--gin.{binding}' is not a binding: write --gin.NAME=VALUE.")
    with config._parse_scope() as context:
      try:
        statement = _binding(name, value, self._unquoted)
        self._apply(statement, None, 0, False, context)
      except UserError:
        raise
      except Exception as error:
        raise UserError(f"--gin.{name}: {explain(error)}") from error

  def bind_object(self, macro: str, value: Given) -> None:
    """Binds a macro to a value of Python."""
    key = (macro, *MACRO)
    self.settings[key] = Setting(key, macro, value, None, 0, None, False)
    gin.bind_parameter(key, value)

  def _apply(
    self, statement: Any, file: str | None, line: int, ours: bool, context: Any
  ) -> None:
    match statement:
      case config_parser.ImportStatement():
        try:
          context.process_import(statement)
        except ModuleNotFoundError as error:
          if statement.module.startswith(f"{error.name}."):
            error.name = statement.module  # Not the package that it would be in.
          raise
        config._IMPORTS.update(context.imports)
      case config_parser.IncludeStatement():
        self.read_file(statement.filename)
      case config_parser.BlockDeclaration():
        if not context.get_configurable(statement.selector):
          config._raise_unknown_configurable_error(statement.selector)
      case config_parser.BindingStatement(scope, selector, argument, value, _):
        if argument:
          name = f"{selector}.{argument}"
          written = (scope, selector, argument)
          complete = config.ParsedBindingKey.parse(written).complete_selector
          key: Key = (scope, complete, argument)
        else:
          name = selector
          key = written = ("/".join(filter(None, (scope, selector))), *MACRO)
        name = "/".join(filter(None, (scope, name)))
        setting = Setting(key, name, value, file, line, self.given, ours)
        if self._counts(setting):
          gin.bind_parameter(written, value)

  def _counts(self, setting: Setting) -> bool:
    """Adds a setting, and returns whether it replaces what was set before.

    A shipped one does not replace the user's.
    """
    before = self.settings.get(setting.key)
    _check_one_task(before, setting)
    if before is not None and setting.shipped and not before.shipped:
      self.settings[setting.key] = dataclasses.replace(before, default=setting)
      return False
    if before is not None and not setting.shipped:
      default = before if before.shipped else before.default
      setting = dataclasses.replace(setting, default=default)
    self.settings[setting.key] = setting
    return True


def _check_one_task(before: Setting | None, setting: Setting) -> None:
  """Raises `UserError` if a second file names a task, which would replace the first."""
  if (
    before is not None
    and setting.key == ("TASK_NAME", *MACRO)
    and setting.given not in (None, before.given)
    and isinstance(before.value, str)
    and isinstance(setting.value, str)
    and before.value != setting.value
  ):
    raise UserError(
      f"{before.place} names the task '{before.value}' and {setting.place} the task "
      f"'{setting.value}': the second would replace the first. Give one of them. Several "
      "tasks at once: TASKS = [...], as gin_configs/runs/bank.gin shows, or "
      "gin_configs/tasks/registry.gin with TASK_NAMES."
    )


def _text(path: pathlib.Path, name: str) -> str:
  if path.stat().st_size > MOST_BYTES:
    raise UserError(
      f"'{name}' is not a gin file: it has more than {MOST_BYTES:,} bytes."
    )
  try:
    return path.read_text(encoding="utf-8-sig")
  except UnicodeDecodeError as error:
    raise UserError(
      f"'{name}' is not UTF-8 text (byte {error.start}). Save the gin file as UTF-8."
    ) from error


def _folders(package: str) -> list[str]:
  """Returns the real paths of a package's folders, each ending with a separator."""
  spec = importlib.util.find_spec(package)
  places = (spec.submodule_search_locations or ()) if spec else ()
  return [os.path.join(os.path.realpath(place), "") for place in places]


def _is_shipped(real: str, text: str) -> bool:
  """Returns whether a file is one of this package's, or an exact copy of one.

  So it does not matter whether commands run in a clone or with an installed package.
  """
  folder = os.path.realpath(gin_configs())
  if real.startswith(folder + os.sep):
    return True
  _, marked, relative = real.rpartition(f"{os.sep}gin_configs{os.sep}")
  twin = pathlib.Path(folder, relative)
  return bool(marked) and twin.is_file() and twin.read_text("utf-8") == text


class _Unresolved(config_parser.ParserDelegate):
  """Leaves references as text, so that nothing needs to be imported."""

  def configurable_reference(self, scoped_name: str, evaluate: bool) -> str:
    return f"@{scoped_name}{'()' * evaluate}"

  def macro(self, scoped_name: str) -> str:
    return f"%{scoped_name}"


def _statements(
  text: str, delegate: config_parser.ParserDelegate | None = None
) -> Iterator[tuple[int, Any]]:
  """Yields gin's statements with their lines.

  Args:
    text: of a gin file.
    delegate: makes the references; by default gin's own, which resolves them.

  Raises:
    SyntaxError: gin's parser failed; the error has the line.
  """
  lines = iter(text.splitlines(keepends=True))
  parser = None
  try:
    parser = config_parser.ConfigParser(
      _Source(lambda: next(lines, "")), delegate or config.ParserDelegate()
    )
    while (statement := parser.parse_statement()) is not None:
      yield statement.location.line_num, statement
  except Exception as error:
    line = getattr(error, "lineno", None)
    line = line or (parser.current_token.start[0] if parser else 1)
    raise SyntaxError(explain(error), ("", line, None, "")) from error


_BARE = re.compile(r"[\w./~:@+-]+(?: +[\w./~:@+-]+)*")
"""Words of a string that may go without quotes: names, paths, 'hf:google/flan-t5-small'."""


def _quoted(value: str) -> str | None:
  """Returns a string, or a list of strings, with the quotes that it lacks, or None."""
  if not value.startswith(("@", "%")) and _BARE.fullmatch(value):
    return repr(value)
  inside = value[1:-1].split(",") if value[:1] + value[-1:] in ("[]", "()") else []
  words = [word.strip() for word in inside]
  if words and all(_BARE.fullmatch(word) and word[0] not in "@%" for word in words):
    return repr(words)
  return _quoted_inside(value)


def _quoted_inside(value: str) -> str | None:
  """Returns a list of lists of strings, such as `VECTOR` takes, with quotes, or None."""
  parts = re.split(r"([\[\],])", value)
  words = [part.strip() for part in parts[::2]]
  if not value.startswith("[") or not all(
    not word or (_BARE.fullmatch(word) and word[0] not in "@%") for word in words
  ):
    return None
  parts[::2] = [repr(word) if word else "" for word in words]
  with contextlib.suppress(SyntaxError):
    return repr(ast.literal_eval("".join(parts)))
  return None


def _binding(name: str, value: str, unquoted: bool) -> config_parser.BindingStatement:
  """Returns the statement 'NAME = VALUE' of the command line.

  Raises:
    UserError: the value cannot be read.
  """
  try:
    return _one_binding(name, value)
  except SyntaxError as error:
    if isinstance(error.__cause__, ValueError | AttributeError):
      raise UserError(f"--gin.{name}: {error.msg}") from error
    quoted = _quoted(value) if unquoted else None
    if quoted is not None:
      return _one_binding(name, quoted)
    hint = _hint(name, value) or f"({explain(error)})"
    raise UserError(f"Cannot read the value of --gin.{name}={value}. {hint}") from error


def _hint(name: str, value: str) -> str | None:
  """Returns what makes a value of the command line one that can be read, None if unknown."""
  if not value or (_quoted(value) is None and value[0] in "[({'\"@%"):
    return None
  text = json.dumps(value, ensure_ascii=False)
  for what, meant in (
    ("list needs brackets", f"[{value}]"),
    ("string needs quotes", text),
  ):
    with contextlib.suppress(SyntaxError):
      _one_binding(name, meant)
      return f"A {what}: {shlex.quote(meant)}."
  return None


def _one_binding(name: str, value: str) -> config_parser.BindingStatement:
  """Returns the statement 'NAME = VALUE'.

  Raises:
    SyntaxError: it is no single binding.
  """
  found = [statement for _, statement in _statements(f"{name} = {value}")]
  if len(found) != 1 or not isinstance(found[0], config_parser.BindingStatement):
    raise SyntaxError("one binding is expected")
  return found[0]


@dataclasses.dataclass
class _Source:
  """The source of lines for gin's parser."""

  readline: Callable[[], str]


def explain(error: BaseException) -> str:
  """Returns an error of gin or of an import as one line, with near misses."""
  said = error.msg if isinstance(error, SyntaxError) else str(error)
  text = " ".join(said.split("\n  In ")[0].split()).rstrip(".")
  text = "".join(filter(str.isprintable, text))
  if isinstance(error, tokenize.TokenError):
    return "a bracket, quotation mark or block is not closed."
  if isinstance(error, StopIteration):
    return "the text ends within a statement."
  if isinstance(error, RecursionError):
    return "brackets are nested too deeply."
  if malformed := re.match(
    "malformed node or string.*Failed to parse token '(.*)'", text
  ):
    return f"'{malformed[1]}' is no value: a string needs quotes."
  if isinstance(error, SyntaxError):
    return f"{text}."
  if isinstance(error, ImportError):
    return _explain_import(error, text)
  if missing := re.match(r"'(\w+)' was not provided by an import", text):
    places = " or ".join(_places(missing[1])) or f"from ... import {missing[1]}"
    return (
      f"'{missing[1]}' is not imported: a gin file that begins with 'from __gin__ import "
      f"dynamic_registration' needs the line {places}."
    )
  if parameter := re.search(
    r"Configurable '([\w.]+)' doesn't have a parameter named '(\w+)'", text
  ):
    function, name = parameter.groups()
    return f"{text}.{near_misses(name, _parameters(function))}"
  if attribute := re.search(
    r"resolve selector ([\w.]+);.* has no attribute (\w+)", text
  ):
    selector, name = attribute.groups()
    short = selector.rsplit(f".{name}", 1)[0]
    known = [f"{short}.{public}" for public in _public(short)]
    return f"there is no '{selector}'.{near_misses(selector, known)}"
  if unknown := re.search(
    r"No configurable matching (?:reference )?'@?([\w./]+)", text
  ):
    return _explain_unknown(unknown[1].rpartition("/")[2], text)
  if isinstance(error, ValueError | RuntimeError | AttributeError):
    return f"{text}."
  return f"{type(error).__name__}: {text}."


def _explain_unknown(name: str, text: str) -> str:
  short = name.split(".")[0]
  known = [f"{short}.{public}" for public in _public(short)]
  if name not in known:
    return f"{text}.{near_misses(name, known) or near_misses(name, _modules())}"
  if selector := _registered_as(short, name):
    return f"on the command line it is called {selector}."
  return (
    f"no gin file that was given mentions {name}, so it has to be set in a file with "
    f"'from {_modules()[short].rpartition('.')[0]} import {short}' at its top."
  )


def _explain_import(error: ImportError, text: str) -> str:
  """Returns why a module cannot be imported, and what to do."""
  name = error.name or ""
  if name == "t5x" or name.startswith(("t5x.", "seqio", "tpv_jax.t5x.")):
    return (
      f"'{name}' cannot be imported: files of gin_configs/t5x are for python -m t5x.train, "
      "eval and infer (docs/t5x.md). The commands of tpv_jax take those of gin_configs/runs."
    )
  if name.startswith("tpv_jax"):
    parent, _, last = name.rpartition(".")
    if places := _places(last):
      return f"there is no module '{name}'. Did you mean {' or '.join(places)}?"
    return f"there is no module '{name}'.{near_misses(last, _public(parent))}"
  if name and isinstance(error, ModuleNotFoundError):
    return (
      f"there is no module '{name}'. Install it, or, if it is a file {name}.py of yours, "
      "run the command in its folder or name that in PYTHONPATH."
    )
  return f"{text}."


def _places(module: str) -> list[str]:
  """Returns the lines that import the modules of this package with such a short name."""
  folder = pathlib.Path(__file__).parents[1]
  found = sorted(folder.rglob(f"{module}.py"))
  rooms = [".".join(path.relative_to(folder.parent).parent.parts) for path in found]
  return [f"'from {room} import {module}'" for room in rooms]


def _public(module: str) -> list[str]:
  """Returns the public names of a module, and the modules in its folder."""
  found = sys.modules.get(_modules().get(module, module))
  inside = pkgutil.iter_modules(getattr(found, "__path__", ()))
  names = [*dir(found), *(info.name for info in inside)] if found else []
  return [name for name in names if not name.startswith("_")]


def _registered_as(module: str, name: str) -> str | None:
  """Returns gin's name of 'module.function', if a gin file has mentioned it."""
  place = sys.modules.get(_modules().get(module, module))
  found = config._inverse_lookup(getattr(place, name.rpartition(".")[2], None))
  return config._REGISTRY.minimal_selector(found.selector) if found else None


def _modules() -> dict[str, str]:
  """Returns the modules imported by the gin files: short name -> full name."""
  return {item.bound_name(): item.module for item in config._IMPORTS}


def _parameters(selector: str) -> list[str]:
  """Returns the parameter names of a configurable; none if it cannot be inspected."""
  try:
    return list(inspect.signature(gin.get_configurable(selector)).parameters)
  except (ValueError, TypeError):
    return []

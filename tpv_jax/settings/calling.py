"""A call that gin configures: its settings are completed, parsed and checked first."""

import contextlib
import dataclasses
import re
import threading
import traceback
import types
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import gin
from gin import config

from tpv_jax.core.errors import UserError
from tpv_jax.settings import gin_files, refusals, run_files, showing
from tpv_jax.settings.gin_files import Settings


@dataclasses.dataclass(frozen=True)
class Prepared:
  """A function whose settings are in gin's configuration and were checked.

  Attributes:
    function: what is called.
    arguments: what is passed to it in addition to what gin binds.
    settings: those in force.
    lines: what to say of them: files that were added, and settings that are not read.
  """

  function: Callable[..., Any]
  arguments: Mapping[str, Any]
  settings: Settings
  lines: Sequence[str]

  def run(self) -> Any:
    """Returns what the function returns; its errors are without gin's additions."""
    try:
      return gin.get_configurable(self.function)(**self.arguments)
    except (UserError, OSError) as error:
      raise without_gin(error) from None
    except RecursionError as error:
      if not _is_gins(error):
        raise
      raise UserError(
        "A setting calls the function that it configures, as in training.train.seed = "
        "@training.train(). Give it another value."
      ) from None


def prepare(
  function: Callable[..., Any],
  files: Sequence[str],
  bindings: Sequence[str] = (),
  search_paths: Sequence[str] = (),
  arguments: Mapping[str, Any] | None = None,
  unquoted: bool = False,
  show: Callable[[str], None] | None = None,
  objects: Mapping[str, Any] = types.MappingProxyType({}),
) -> Prepared:
  """Replaces gin's configuration by that of a call, checks it, and returns the call.

  Args:
    function: what is called.
    files: gin files in order; see `run_files.complete` for those that are added.
    bindings: 'NAME=VALUE', applied after the files.
    search_paths: more folders in which to look for files.
    arguments: what is passed to the function in addition to what gin binds.
    unquoted: as for `gin_files.parse`.
    show: called with each setting (see `showing`), as text, before they are checked.
    objects: macro -> a value of Python, bound after the bindings.

  Raises:
    UserError: see `run_files.complete`, `gin_files.parse` and `refusals.check`.
  """
  arguments = arguments or {}
  added = run_files.complete(function, files, bindings, search_paths)
  tasks = [file for file in added if file == run_files.TASK_FILES]
  runs = [file for file in added if file not in tasks]
  settings = gin_files.parse(  # The user's tasks replace those of a run file.
    [*runs, *files, *tasks],
    bindings,
    search_paths,
    unquoted=unquoted,
    objects=objects,
  )
  lines = [f"Settings are those of {' and '.join(added)}, and yours."] if added else []
  if show is not None:
    for setting in showing.shown(function, settings):
      show(str(setting))
  lines += refusals.check(function, settings, arguments)
  return Prepared(function, arguments, settings, lines)


def record() -> str:
  """Returns the settings that were used, as a gin file; values of Python are to be given."""
  text = gin.operative_config_str()
  given = rf"= (?:\\\n\s*)?{re.escape(gin_files.GIVEN)}"
  return str(re.sub(given, "= %gin.REQUIRED  # it was a value of Python", text))


_ALONE = threading.RLock()
"""Held while gin's configuration, of which a process has one, is that of a call."""


@contextlib.contextmanager
def kept() -> Iterator[None]:
  """Leaves gin's configuration as it was before the block; other threads wait."""
  with _ALONE:
    locked = gin.config_is_locked()
    before = [
      ({key: dict(value) for key, value in one.items()}, one)
      for one in (config._CONFIG, config._OPERATIVE_CONFIG)
    ]
    singletons, imports = dict(config._SINGLETONS), set(config._IMPORTS)
    try:
      yield
    finally:
      gin.clear_config()
      for values, one in before:
        one.update(values)
      config._SINGLETONS.update(singletons)
      config._IMPORTS.update(imports)
      config._set_config_is_locked(locked)


def _is_gins(error: RecursionError) -> bool:
  """Returns whether the recursion was gin calling itself."""
  frames = traceback.extract_tb(error.__traceback__)
  called = [frame for frame in frames if frame.name == "gin_wrapper"]
  return len(called) > 20


def without_gin(error: Exception) -> BaseException:
  """Returns the error without the text that gin adds about the configurable."""
  inner: BaseException = error
  while inner.__context__ is not None and str(inner).startswith(str(inner.__context__)):
    inner = inner.__context__
  return inner

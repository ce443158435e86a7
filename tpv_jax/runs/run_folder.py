"""The folder of a run: its files, written so that a kill damages nothing.

RUN/config.gin                    the operative gin configuration
RUN/manifest.json                 settings (`run_settings`), versions, seeds, digests,
                                  status
RUN/metrics.jsonl                 a line for each log or validation; no wall-clock times,
                                  so that a resumed run writes the same bytes
RUN/initial_prompt.safetensors    written before the first step
RUN/best_prompt.safetensors       by the chosen validation metric
RUN/last_prompt.safetensors       of the newest checkpoint
RUN/checkpoints/checkpoint_N/     Orbax; only what is trained
RUN/events.out.tfevents.*         TensorBoard
RUN/curves.png                    loss and exact match over the steps, when it has ended
RUN/.lock                         the process that writes the run now; see `locks`
RUN/.replaced/                    the run that OVERWRITE=True replaces, until the new one
                                  has done its first steps

RUN may be on gs://, where nothing can be appended: metrics and events are small, and each
line writes the whole file again.
"""

import contextlib
import functools
import importlib.metadata
import inspect
import itertools
import json
import os
import pathlib
import platform
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any, ParamSpec, TypeVar

import numpy as np
from etils import epath

from tpv_jax.core import files, locks, screen
from tpv_jax.core.errors import UserError
from tpv_jax.core.version import VERSION
from tpv_jax.devices import processes
from tpv_jax.formats import sources
from tpv_jax.runs import records, run_settings, summary
from tpv_jax.runs.run_settings import Settings
from tpv_jax.vectors import store
from tpv_jax.vectors.provenance import Provenance

if TYPE_CHECKING:
  from tpv_jax.runs.events import Events

P = ParamSpec("P")
T = TypeVar("T")

MOST_BYTES = 1 << 28
"""The largest results that are read: a study of ten tasks and five starts has a few MB."""

LOCK = ".lock"
"""The lock file of a folder; see `locks`."""

REPLACED = ".replaced"
"""The subfolder that holds the run that is being replaced."""

PACKAGES = ("jax", "jaxlib", "flax", "optax", "orbax-checkpoint", "numpy")


def versions() -> dict[str, str]:
  """Returns the versions that a run's numbers depend on."""
  found = {name: importlib.metadata.version(name) for name in PACKAGES}
  return {"tpv_jax": VERSION, "python": platform.python_version(), **found}


class RunFolder:
  """The files of one run; only process 0 writes them, each atomically."""

  def __init__(self, path: files.PathLike):
    if not isinstance(path, str | os.PathLike):
      raise UserError(f"RUN_DIR is {path!r}; it must be the path of a folder.")
    self.path = files.to_path(path)
    self._begun = False  # Started by this object and not yet kept by `stands`.
    if files.is_remote(path):
      _refuse_without_google_cloud_storage(self.path)

  def events(self, first_step: int) -> "list[Events]":
    """Returns TensorBoard's event file; without tensorboardX prints a line, returns none.

    Its events from `first_step` on replace those of earlier files.
    """
    try:
      from tpv_jax.runs.events import Events
    except ImportError:
      screen.say(
        "tensorboardX is not installed: no events for TensorBoard are written."
      )
      return []
    return [Events(self.path, first_step)]

  def prompt(self, which: str) -> files.Path:
    """Returns the path of the 'initial', 'best' or 'last' prompt."""
    return self.path / f"{which}_prompt.safetensors"

  def open(self, settings: Settings, overwrite: bool) -> dict[str, Any]:
    """Makes the folder, or finds a run in it, and returns its manifest.

    The manifest is written first and deleted last, so that a run killed at any moment is
    recognised. With `overwrite`, a run that finished or failed or has other settings
    starts again; the old run's own files are put aside until `stands`. A run that was
    stopped with these settings continues, so that one command does both.

    Raises:
      UserError: the folder holds a run with other settings, or something else.
    """
    manifest, other = self.check(settings, overwrite)
    processes.wait_for_all("the run folder is checked")
    if processes.is_writer():
      if overwrite and (other or manifest.get("status") in ("finished", "failed")):
        self._put_aside()
        manifest = {}
      self.path.mkdir(parents=True, exist_ok=True)
      if not manifest:
        self._begun = True
        self.write_manifest(
          {
            "format": records.FORMAT,
            "status": "running",
            "run": settings.digest(),
            **settings.saved(),
            "versions": versions(),
          }
        )
    processes.wait_for_all("the run folder is there")
    manifest = self.manifest()
    if manifest["status"] == "finished":
      self._check_prompts(manifest)
    return manifest

  def _check_prompts(self, manifest: Mapping[str, Any]) -> None:
    """Raises `UserError` unless the prompts that a finished run states are there."""
    for which in sources.WHICH:
      if manifest.get(f"{which}_digest") is None:
        continue
      try:
        sources.load(self.path, which)
      except UserError as error:
        raise UserError(
          f"The run in '{self.path}' is finished, but its {which} prompt is missing or "
          f"changed: {error} To train it again: --gin.OVERWRITE=True."
        ) from error

  def check(
    self, settings: Settings, overwrite: bool
  ) -> tuple[dict[str, Any], str | None]:
    """Returns the manifest, and the first setting that differs; writes nothing.

    Raises:
      UserError: the folder holds a run with other settings, or something else.
    """
    manifest = self.manifest()
    finished = manifest.get("status") == "finished"
    other = (
      run_settings.difference(manifest, settings, as_finished=finished)
      if manifest
      else None
    )
    if other and not overwrite:
      raise UserError(
        f"'{self.path}' holds a run with another {other}. Continue it with its original "
        "settings, choose another folder, or start again with --gin.OVERWRITE=True."
      )
    return manifest, other

  def manifest(self) -> dict[str, Any]:
    """Returns the manifest; {} if the folder does not exist or is empty.

    Raises:
      UserError: the folder holds something that is not a run of ours.
    """
    manifest = records.manifest(self.path)
    if manifest is not None:
      return manifest
    # A first write that was killed leaves its temporary file.
    inside = list(self.path.iterdir()) if self.path.is_dir() else []
    first = (LOCK, ".manifest.json.")
    if all(file.name.startswith(first) for file in inside):
      return {}
    raise UserError(
      f"'{self.path}' is not empty and holds no run of tpv_jax, so nothing was written "
      "there. Choose another folder."
    )

  def _own(self) -> list[files.Path]:
    """Returns the files of the run in the folder, its manifest last."""
    names = (
      "checkpoints",
      "config.gin",
      "metrics.jsonl",
      summary.CURVES,
      "*_prompt.safetensors",
      "events.out.tfevents.*",
      "manifest.json",
    )
    return list(itertools.chain(*(self.path.glob(name) for name in names)))

  def _put_aside(self) -> None:
    """Moves the run into `REPLACED`, its manifest first.

    In an object store, which cannot rename, it is deleted, its manifest last.
    """
    if files.is_remote(self.path):
      self._delete()
      return
    aside = self.path / REPLACED
    aside.mkdir(exist_ok=True)
    for path in reversed(self._own()):
      path.rename(aside / path.name)

  def _delete(self) -> None:
    """Deletes the run's own files, its manifest last."""
    for path in self._own():
      epath.Path(path).rmtree() if path.is_dir() else path.unlink()

  def stands(self) -> None:
    """Deletes the run that this one replaces, now that this one's first steps are done."""
    if self._begun and (self.path / REPLACED).is_dir():
      (self.path / REPLACED / "manifest.json").unlink(missing_ok=True)
      shutil.rmtree(self.path / REPLACED)
    self._begun = False

  def withdraw(self) -> None:
    """Deletes the run if its first steps are not done."""
    if self._begun:
      self._delete()

  def tidy(self) -> None:
    """Restores a run whose replacement never did its first steps.

    This works after an interruption at any point: the replaced run's manifest is the first
    file to be put aside or deleted, and the last to come back. Temporary files that killed
    processes left are removed.
    """
    files.remove_leftovers(self.path)
    aside = self.path / REPLACED
    if files.is_remote(self.path) or not aside.is_dir():
      return
    if (aside / "manifest.json").exists():
      if (self.path / "manifest.json").exists():
        self._delete()  # The files of the new run.
      for path in RunFolder(aside)._own():
        path.rename(self.path / path.name)
      screen.say(f"{self.path}: restored the run that was to be replaced.")
    shutil.rmtree(aside)

  def write_manifest(self, manifest: dict[str, Any]) -> None:
    """Writes the manifest."""
    if processes.is_writer():
      files.write_json(self.path / "manifest.json", manifest)

  def write_text(self, name: str, text: str) -> None:
    """Writes a text file of the run."""
    if processes.is_writer():
      files.write_text(self.path / name, text)

  def write_prompt(
    self, which: str, leaves: Mapping[str, np.ndarray], provenance: Provenance
  ) -> None:
    """Writes the 'initial', 'best' or 'last' prompt."""
    if processes.is_writer():
      store.write(self.prompt(which), leaves, provenance, overwrite=True)

  def metrics(self) -> list[dict[str, Any]]:
    """Returns the lines of metrics.jsonl; see `records.metrics`."""
    return records.metrics(self.path)

  def lost_metrics(self, expected: Sequence[tuple[int, str]]) -> str | None:
    """Returns what is wrong with the lines up to a step, or None.

    Damaged lines do not matter if all expected ones are there.

    Args:
      expected: the (step, kind) of all lines up to that step, in order.
    """
    last = expected[-1][0] if expected else 0
    found = [
      (line["step"], line["kind"]) for line in records.whole_metrics(self.path, last)
    ]
    for there, wanted in itertools.zip_longest(found, expected):
      if there != wanted:
        step, kind = wanted or there
        what = "lacks a line" if there is None or wanted is not None else "repeats one"
        return f"'metrics.jsonl' {what} ({kind}, step {step})"
    return None

  def keep_metrics_until(self, step: int) -> None:
    """Drops damaged lines, and those after `step`, which a resumed run writes again."""
    kept = records.whole_metrics(self.path, step)
    self.write_text("metrics.jsonl", "".join(json.dumps(line) + "\n" for line in kept))

  def append_metrics(self, step: int, kind: str, values: dict[str, float]) -> None:
    """Appends a line `{"step", "kind": 'train' | 'validation', ...values}`; NaN is null."""
    if not processes.is_writer():
      return
    line = json.dumps({"step": step, "kind": kind, **records.finite(values)}) + "\n"
    if files.is_remote(self.path):
      path = self.path / "metrics.jsonl"
      before = path.read_text() if path.exists() else ""
      self.write_text("metrics.jsonl", before + line)
    else:
      with open(self.path / "metrics.jsonl", "a") as file:
        file.write(line)


def _refuse_without_google_cloud_storage(path: files.Path) -> None:
  """Raises `UserError` early if Orbax would not be able to delete old checkpoints."""
  try:
    from google.cloud import storage  # noqa: F401
  except ImportError as error:
    raise UserError(
      f"The run folder is '{path}', where Orbax deletes old checkpoints with "
      f"google-cloud-storage, which is not installed ({error}): pip install gcsfs, which "
      "brings it. Or give a folder of this machine or of a file system that all hosts share."
    ) from None


@contextlib.contextmanager
def alone(*folders: RunFolder) -> Iterator[None]:
  """Makes and tidies run folders, and holds their locks within the block.

  The processes of one run share one lock. A run whose first steps fail, for example for
  lack of memory, leaves nothing behind, so that other settings can be tried there.

  Raises:
    UserError: another run uses one of them, or not all processes see them.
  """
  with contextlib.ExitStack() as stack:

    def enter() -> None:
      for folder in folders:
        stack.enter_context(_locked(folder.path, f"The run folder '{folder.path}'"))
        folder.tidy()
        stack.callback(folder.tidy)

    _on_writer(enter)
    processes.check_shared(folders[0].path, "The run folder")
    try:
      yield
    except Exception:
      for folder in folders:
        folder.withdraw()
      raise


@contextlib.contextmanager
def held(path: files.PathLike) -> Iterator[None]:
  """Makes a run's folder and holds its lock within the block, without tidying it.

  Raises:
    UserError: another run uses it, or not all processes see it.
  """
  with contextlib.ExitStack() as stack:
    folder = files.to_path(path)
    locked = _locked(folder, f"The run folder '{path}'")
    _on_writer(lambda: stack.enter_context(locked))
    processes.check_shared(folder, "The run folder")
    yield


@contextlib.contextmanager
def open_output(path: files.PathLike, work: str, part: str) -> Iterator[pathlib.Path]:
  """Makes, or finds, the folder of work on many runs, and locks it within the block.

  Args:
    path: of the folder.
    work: the name of the work: 'study', 'ablation'.
    part: a subfolder by which the folder is recognised.

  Raises:
    UserError: the folder holds something else, or results of other work, or lies in an
      object store, or another process uses it.
  """
  if files.is_remote(path):
    raise UserError(
      f"OUTPUT_DIR is '{path}'; the {work}, which draws plots too, needs a folder of this "
      "machine or of a file system that all hosts share."
    )
  folder = pathlib.Path(files.to_path(path))
  with contextlib.ExitStack() as stack:

    def enter() -> None:
      stack.enter_context(_locked(folder, f"The folder '{folder}' of the {work}"))
      others = [entry for entry in folder.iterdir() if entry.name != LOCK]
      if others and not (folder / part).is_dir():
        raise UserError(
          f"'{folder}' is not empty and holds no {work} of tpv_jax, so nothing was "
          "written there. Choose another OUTPUT_DIR."
        )
      if (other := _work_of(folder)) not in (None, work):
        raise UserError(
          f"'{folder}' holds the results of another work, '{other}', which the {work} would "
          "replace. Choose another OUTPUT_DIR; its runs serve there if they are copied, "
          f"with '{part}'."
        )
      (folder / part).mkdir(exist_ok=True)
      for place in (folder, folder / part):
        files.remove_leftovers(place)

    _on_writer(enter)
    yield folder


def _work_of(folder: pathlib.Path) -> str | None:
  """Returns which work the results in a folder are of; None if there are none that say so."""
  path = folder / "results.json"
  try:
    results = files.read_json(path, MOST_BYTES) if path.exists() else {}
  except UserError:  # It is damaged.
    return None
  return results.get("work")


def write_results(
  folder: pathlib.Path,
  results: dict[str, Any],
  write_report: Callable[[pathlib.Path, Any], None],
  config: Callable[[], str] | None,
) -> None:
  """Writes results.json, config.gin and the report of work on many runs."""
  if processes.is_writer():
    files.write_json(folder / "results.json", results)
    if config is not None:
      files.write_text(folder / "config.gin", config())
    write_report(folder, results)


def alone_at_output(function: Callable[P, T]) -> Callable[P, T]:
  """Returns the function with a lock on the file `output` while it runs.

  In an object store no lock is needed: its objects are replaced whole.
  """

  @functools.wraps(function)
  def locked(*args: P.args, **options: P.kwargs) -> T:
    given = inspect.signature(function).bind_partial(*args, **options).arguments
    output = given.get("output")
    with contextlib.ExitStack() as stack:

      def enter() -> None:
        path = files.to_path(str(output))
        if path.parent.is_dir():  # If it is not, the function reports it.
          lock = path.with_name(f".{path.name}{LOCK}")
          stack.enter_context(locks.held(lock, f"The output '{output}'"))

      if isinstance(output, str | os.PathLike) and not files.is_remote(output):
        _on_writer(enter)
      return function(*args, **options)

  return locked


@contextlib.contextmanager
def _locked(folder: files.Path, what: str) -> Iterator[None]:
  """Makes a folder and holds its lock; folders it made are removed if they stay empty."""
  made = [path for path in (folder, *folder.parents) if not path.exists()]
  folder.mkdir(parents=True, exist_ok=True)
  try:
    with locks.held(folder / LOCK, what):
      yield
  finally:
    with contextlib.suppress(OSError):  # They are not empty.
      for path in [] if files.is_remote(folder) else made:
        path.rmdir()


def _on_writer(act: Callable[[], None]) -> None:
  """Makes process 0 call `act`; if that fails, no process continues."""
  problem: UserError | OSError | None = None
  try:
    if processes.is_writer():
      act()
  except (UserError, OSError) as error:
    problem = error
  if processes.agreed(int(problem is not None)):
    raise problem or UserError("Process 0 cannot go on; it says why.")

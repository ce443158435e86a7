"""The folder of a run: its files, written so that a kill at any moment does no harm.

RUN/config.gin                    the operative gin configuration
RUN/manifest.json                 settings (`run_settings`), versions, seeds, digests,
                                  status
RUN/metrics.jsonl                 one line a log or validation; no wall-clock times,
                                  so that a resumed run writes the same bytes
RUN/initial_prompt.safetensors    written before the first step
RUN/best_prompt.safetensors       by the chosen validation metric
RUN/last_prompt.safetensors       of the newest checkpoint
RUN/checkpoints/checkpoint_N/     Orbax, what is trained only
RUN/events.out.tfevents.*         TensorBoard
RUN/.lock                         who works on the run now; see `locks`
RUN/.replaced/                    the run that OVERWRITE=True replaces, until the new one
                                  has done its first steps

RUN may be on gs://, where nothing can be appended to: metrics and events are small and
written anew with each line.
"""

import contextlib
import functools
import importlib.metadata
import inspect
import itertools
import json
import math
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
from tpv_jax.runs import run_settings
from tpv_jax.runs.run_settings import Settings
from tpv_jax.vectors import store
from tpv_jax.vectors.provenance import Provenance

if TYPE_CHECKING:
  from tpv_jax.runs.events import Events

P = ParamSpec("P")
T = TypeVar("T")

FORMAT = "tpv_jax run 1"
"""What the manifest of a run says it is."""

LOCK = ".lock"
"""The file in a folder that says who works in it; see `locks`."""

REPLACED = ".replaced"
"""The folder in a run's that holds the run which is being replaced."""

PACKAGES = ("jax", "jaxlib", "flax", "optax", "orbax-checkpoint", "numpy")


def versions() -> dict[str, str]:
  """Returns the versions that a run's numbers depend on."""
  found = {name: importlib.metadata.version(name) for name in PACKAGES}
  return {"tpv_jax": VERSION, "python": platform.python_version(), **found}


class RunFolder:
  """The files of one run, each written atomically, by process 0 alone."""

  def __init__(self, path: files.PathLike):
    if not isinstance(path, str | os.PathLike):
      raise UserError(f"RUN_DIR is {path!r}; it must be the path of a folder.")
    self.path = files.to_path(path)
    self._begun = False  # By this object, without a step done yet.
    if files.is_remote(path):
      _refuse_without_google_cloud_storage(self.path)

  def events(self, first_step: int) -> "Events | None":
    """Returns TensorBoard's event file; None, and says so, without tensorboardX.

    Its events from `first_step` on replace those of earlier files.
    """
    try:
      from tpv_jax.runs.events import Events
    except ImportError:
      screen.say(
        "tensorboardX is not installed: no events for TensorBoard are written."
      )
      return None
    return Events(self.path, first_step)

  def prompt(self, which: str) -> files.Path:
    """Returns the path of the 'initial', 'best' or 'last' prompt."""
    return self.path / f"{which}_prompt.safetensors"

  def open(self, settings: Settings, overwrite: bool) -> dict[str, Any]:
    """Makes the folder, or finds a run in it; returns its manifest.

    The manifest is the first file that is written and the last one that is deleted, so
    a run killed at any moment is known again. `overwrite` starts a run that finished or
    failed, or one with other settings, again, and puts aside its own files only, until
    `stands`; a run that was stopped with these settings continues, so that one command
    serves for both.

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
            "format": FORMAT,
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
          f"The run in '{self.path}' is finished, and its {which} prompt is not there as "
          f"it was: {error} To train it again: --gin.OVERWRITE=True."
        ) from error

  def check(
    self, settings: Settings, overwrite: bool
  ) -> tuple[dict[str, Any], str | None]:
    """Returns the manifest, and the first setting that differs; writes nothing.

    Raises:
      UserError: the folder holds a run with other settings, or something else.
    """
    manifest = self.manifest()
    other = run_settings.difference(manifest, settings) if manifest else None
    if other and not overwrite:
      raise UserError(
        f"'{self.path}' holds a run with another {other}. Continue it with the settings "
        "it was started with, choose another RUN_DIR, or start again with "
        "--gin.OVERWRITE=True."
      )
    return manifest, other

  def manifest(self) -> dict[str, Any]:
    """Returns the manifest, {} if there is no folder yet or an empty one.

    Raises:
      UserError: something else than a run of ours is there.
    """
    path = self.path / "manifest.json"
    try:
      manifest = json.loads(files.read_bytes(path))
      if _is_manifest(manifest):
        return manifest
    except (ValueError, FileNotFoundError, NotADirectoryError):
      # A first write that was killed leaves its temporary file.
      inside = list(self.path.iterdir()) if self.path.is_dir() else []
      first = (LOCK, ".manifest.json.")
      if all(file.name.startswith(first) for file in inside):
        return {}
    raise UserError(
      f"'{self.path}' is not empty and holds no run of tpv_jax, so nothing was written "
      "there. Choose another RUN_DIR."
    )

  def _own(self) -> list[files.Path]:
    """Returns the files of the run in the folder, its manifest last."""
    names = (
      "checkpoints",
      "config.gin",
      "metrics.jsonl",
      "*_prompt.safetensors",
      "events.out.tfevents.*",
      "manifest.json",
    )
    return list(itertools.chain(*(self.path.glob(name) for name in names)))

  def _put_aside(self) -> None:
    """Moves the run into REPLACED, its manifest first; a store's, which has no names
    that could be changed, is deleted, its manifest last.
    """
    if files.is_remote(self.path):
      self._delete()
      return
    aside = self.path / REPLACED
    aside.mkdir(exist_ok=True)
    for path in reversed(self._own()):
      path.rename(aside / path.name)

  def _delete(self) -> None:
    """Deletes the files of a run, its manifest last, and nothing that lies beside them."""
    for path in self._own():
      epath.Path(path).rmtree() if path.is_dir() else path.unlink()

  def stands(self) -> None:
    """Deletes the run that this one replaces, now that its own first steps are done."""
    if self._begun and (self.path / REPLACED).is_dir():
      (self.path / REPLACED / "manifest.json").unlink(missing_ok=True)
      shutil.rmtree(self.path / REPLACED)
    self._begun = False

  def withdraw(self) -> None:
    """Deletes the run if its first steps, with which it counts as begun, are not done."""
    if self._begun:
      self._delete()

  def tidy(self) -> None:
    """Brings back a run whose replacement did not get through its first steps.

    Whatever was interrupted: the replaced run's manifest is the first file that is put
    aside or deleted, and the last one that comes back. Removes temporary files that
    kills left.
    """
    files.remove_leftovers(self.path)
    aside = self.path / REPLACED
    if files.is_remote(self.path) or not aside.is_dir():
      return
    if (aside / "manifest.json").exists():
      if (self.path / "manifest.json").exists():
        self._delete()  # What the new run had written.
      for path in RunFolder(aside)._own():
        path.rename(self.path / path.name)
      screen.say(f"{self.path}: the run that was to be replaced is back.")
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
    """Returns the lines of metrics.jsonl; a line that a kill cut short is left out.

    Raises:
      UserError: a line is damaged.
    """
    found = []
    for number, line in enumerate(self._metrics_lines(), start=1):
      metrics = _metrics_of(line)
      if metrics is None:
        raise UserError(
          f"Line {number} of '{self.path / 'metrics.jsonl'}' is damaged. Bring the file "
          f"back from a copy, or remove '{self.path}' to train the prompt again."
        )
      found.append(metrics)
    return found

  def lost_metrics(self, expected: Sequence[tuple[int, str]]) -> str | None:
    """Returns what is wrong with the lines up to a step, None if it is nothing.

    Damaged lines are no harm where those that should be there are.

    Args:
      expected: the (step, kind) of all lines up to that step, in order.
    """
    last = expected[-1][0] if expected else 0
    found = [(line["step"], line["kind"]) for line in self._whole_metrics(last)]
    for there, wanted in itertools.zip_longest(found, expected):
      if there != wanted:
        step, kind = wanted or there
        what = "lacks a line" if there is None or wanted is not None else "repeats one"
        return f"'metrics.jsonl' {what} ({kind}, step {step})"
    return None

  def _metrics_lines(self) -> list[bytes]:
    """Returns the lines, without empty ones and one that was cut short."""
    path = self.path / "metrics.jsonl"
    *lines, _ = files.read_bytes(path).split(b"\n") if path.exists() else [b""]
    return [line for line in lines if line.strip()]

  def _whole_metrics(self, step: int) -> list[dict[str, Any]]:
    """Returns the lines up to `step` that are not damaged."""
    found = filter(None, map(_metrics_of, self._metrics_lines()))
    return [line for line in found if line["step"] <= step]

  def keep_metrics_until(self, step: int) -> None:
    """Drops damaged lines, and those after `step`, which a resumed run writes again."""
    kept = self._whole_metrics(step)
    self.write_text("metrics.jsonl", "".join(json.dumps(line) + "\n" for line in kept))

  def append_metrics(self, step: int, kind: str, values: dict[str, float]) -> None:
    """Appends a line `{"step", "kind": 'train' | 'validation', ...values}`; NaN is null."""
    if not processes.is_writer():
      return
    finite = {name: v if math.isfinite(v) else None for name, v in values.items()}
    line = json.dumps({"step": step, "kind": kind, **finite}) + "\n"
    if files.is_remote(self.path):
      path = self.path / "metrics.jsonl"
      before = path.read_text() if path.exists() else ""
      self.write_text("metrics.jsonl", before + line)
    else:
      with open(self.path / "metrics.jsonl", "a") as file:
        file.write(line)


def _is_manifest(content: Any) -> bool:
  if not isinstance(content, dict) or content.get("format") != FORMAT:
    return False
  parts = [content.get(name, {}) for name in ("defaults", "versions", "bank")]
  return all(isinstance(part, dict) for part in (content.get("settings"), *parts))


def _metrics_of(line: bytes) -> dict[str, Any] | None:
  """Returns the content of a line of metrics.jsonl, None of a damaged one."""
  try:
    content = json.loads(line)
    if isinstance(content["step"], int) and isinstance(content["kind"], str):
      return content
  except (ValueError, KeyError, TypeError, RecursionError):
    pass
  return None


def _refuse_without_google_cloud_storage(path: files.Path) -> None:
  """Raises `UserError` if Orbax could not delete old checkpoints, before any is there."""
  try:
    from google.cloud import storage  # noqa: F401
  except ImportError as error:
    raise UserError(
      f"RUN_DIR is '{path}', where Orbax deletes old checkpoints by google-cloud-storage"
      f", which is not installed ({error}): pip install gcsfs, which brings it. Or give "
      "a folder of this machine or of a file system that all hosts share."
    ) from None


@contextlib.contextmanager
def alone(*folders: RunFolder) -> Iterator[None]:
  """Holds the locks of run folders, which are made, within the block; tidies them.

  Several processes of one run have one lock. A run whose first steps fail, for want of
  memory for instance, leaves nothing behind, and other settings can be tried there.

  Raises:
    UserError: another run works in one of them, or not all processes see them.
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
  """Holds the lock of a run's folder, which is made, and leaves the rest to others.

  Raises:
    UserError: another run works in it, or not all processes see it.
  """
  with contextlib.ExitStack() as stack:
    folder = files.to_path(path)
    locked = _locked(folder, f"The run folder '{path}'")
    _on_writer(lambda: stack.enter_context(locked))
    processes.check_shared(folder, "The run folder")
    yield


@contextlib.contextmanager
def open_output(path: files.PathLike, work: str, part: str) -> Iterator[pathlib.Path]:
  """Makes the folder of a piece of work on many runs, or finds one, and locks it.

  Args:
    path: of the folder.
    work: what it is called: 'study', 'ablation'.
    part: a folder in it by which it is known again.

  Raises:
    UserError: the folder holds something else, or lies in an object store; another
      process works in it.
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
      (folder / part).mkdir(exist_ok=True)
      for place in (folder, folder / part):
        files.remove_leftovers(place)

    _on_writer(enter)
    yield folder


def write_results(
  folder: pathlib.Path,
  results: dict[str, Any],
  write_report: Callable[[pathlib.Path, Any], None],
  config: Callable[[], str] | None,
) -> None:
  """Writes results.json, config.gin and the report of a piece of work on many runs."""
  if processes.is_writer():
    files.write_json(folder / "results.json", results)
    if config is not None:
      files.write_text(folder / "config.gin", config())
    write_report(folder, results)


def alone_at_output(function: Callable[P, T]) -> Callable[P, T]:
  """Returns the function, which holds the lock of the file `output` while it runs.

  An object store needs none: its objects are replaced whole.
  """

  @functools.wraps(function)
  def locked(*args: P.args, **options: P.kwargs) -> T:
    given = inspect.signature(function).bind_partial(*args, **options).arguments
    output = given.get("output")
    with contextlib.ExitStack() as stack:

      def enter() -> None:
        path = files.to_path(str(output))
        if path.parent.is_dir():  # Otherwise the function says so.
          lock = path.with_name(f".{path.name}{LOCK}")
          stack.enter_context(locks.held(lock, f"The output '{output}'"))

      if isinstance(output, str | os.PathLike) and not files.is_remote(output):
        _on_writer(enter)
      return function(*args, **options)

  return locked


@contextlib.contextmanager
def _locked(folder: files.Path, what: str) -> Iterator[None]:
  """Holds the lock of a folder; what was made for it is gone afterwards if it is empty."""
  made = [path for path in (folder, *folder.parents) if not path.exists()]
  folder.mkdir(parents=True, exist_ok=True)
  try:
    with locks.held(folder / LOCK, what):
      yield
  finally:
    with contextlib.suppress(OSError):  # Something was written.
      for path in [] if files.is_remote(folder) else made:
        path.rmdir()


def _on_writer(act: Callable[[], None]) -> None:
  """Has process 0 do something; where it cannot, none goes on."""
  problem: UserError | OSError | None = None
  try:
    if processes.is_writer():
      act()
  except (UserError, OSError) as error:
    problem = error
  if processes.agreed(int(problem is not None)):
    raise problem or UserError("Process 0 cannot go on; it says why.")

"""The folder of a run: what is in it, and how it is written so that a kill harms nothing.

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

RUN may be on gs://, where nothing can be appended to: metrics and events are small and
written anew with each line.
"""

import importlib.metadata
import itertools
import json
import math
import os
import pathlib
import platform
import time
import types
from collections.abc import Mapping
from typing import Any

import numpy as np
from etils import epath
from tensorboardX.event_file_writer import EventsWriter
from tensorboardX.proto.event_pb2 import Event, SessionLog
from tensorboardX.record_writer import register_writer_factory
from tensorboardX.summary import scalar

from tpv_jax import __version__, files
from tpv_jax.errors import UserError
from tpv_jax.runner import processes, run_settings
from tpv_jax.runner.run_settings import Settings
from tpv_jax.vectors import sources, store
from tpv_jax.vectors.provenance import Provenance

FORMAT = "tpv_jax run 1"
"""What the manifest of a run says it is."""

PACKAGES = ("jax", "jaxlib", "flax", "optax", "orbax-checkpoint", "numpy")


def versions() -> dict[str, str]:
  """Returns the versions that a run's numbers depend on."""
  found = {name: importlib.metadata.version(name) for name in PACKAGES}
  return {"tpv_jax": __version__, "python": platform.python_version(), **found}


class RunFolder:
  """The files of one run, each written atomically, by process 0 alone."""

  def __init__(self, path: files.PathLike):
    if not isinstance(path, str | os.PathLike):
      raise UserError(f"RUN_DIR is {path!r}; it must be the path of a folder.")
    self.path = files.to_path(path)
    if files.is_remote(path):
      _refuse_without_google_cloud_storage(self.path)

  def prompt(self, which: str) -> files.Path:
    """Returns the path of the 'initial', 'best' or 'last' prompt."""
    return self.path / f"{which}_prompt.safetensors"

  def open(self, settings: Settings, overwrite: bool) -> dict[str, Any]:
    """Makes the folder, or finds a run in it; returns its manifest.

    The manifest is the first file that is written and the last one that is deleted, so
    a run killed at any moment is known again. `overwrite` starts a run that finished or
    failed, or one with other settings, again, deleting its own files only; a run that
    was stopped with these settings continues, so that one command serves for both.

    Raises:
      UserError: the folder holds a run with other settings, or something else.
    """
    manifest, other = self.check(settings, overwrite)
    processes.wait_for_all("the run folder is checked")
    if processes.is_writer():
      if overwrite and (other or manifest.get("status") in ("finished", "failed")):
        self._delete()
        manifest = {}
      self.path.mkdir(parents=True, exist_ok=True)
      if not manifest:
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
      if all(file.name.startswith(".manifest.json.") for file in inside):
        return {}
    raise UserError(
      f"'{self.path}' is not empty and holds no run of tpv_jax, so nothing was written "
      "there. Choose another RUN_DIR."
    )

  def _delete(self) -> None:
    """Deletes the files of a run, its manifest last, and nothing that lies beside them."""
    epath.Path(self.path / "checkpoints").rmtree(missing_ok=True)
    names = (
      "config.gin",
      "metrics.jsonl",
      "*_prompt.safetensors",
      "events.out.tfevents.*",
    )
    for file in itertools.chain(*(self.path.glob(name) for name in names)):
      file.unlink()
    (self.path / "manifest.json").unlink()

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
    """Returns the lines of metrics.jsonl; a line that a kill cut short is left out."""
    lines = self._metrics_text().splitlines(keepends=True)
    return [json.loads(line) for line in lines if line.endswith("\n")]

  def _metrics_text(self) -> str:
    path = self.path / "metrics.jsonl"
    return files.read_bytes(path).decode() if path.exists() else ""

  def keep_metrics_until(self, step: int) -> None:
    """Drops the lines of steps after `step`, which a resumed run writes again."""
    kept = [line for line in self.metrics() if line["step"] <= step]
    self.write_text("metrics.jsonl", "".join(json.dumps(line) + "\n" for line in kept))

  def append_metrics(self, step: int, kind: str, values: dict[str, float]) -> None:
    """Appends a line `{"step", "kind": 'train' | 'validation', ...values}`; NaN is null."""
    if not processes.is_writer():
      return
    finite = {name: v if math.isfinite(v) else None for name, v in values.items()}
    line = json.dumps({"step": step, "kind": kind, **finite}) + "\n"
    if files.is_remote(self.path):
      self.write_text("metrics.jsonl", self._metrics_text() + line)
    else:
      with open(self.path / "metrics.jsonl", "a") as file:
        file.write(line)


def _is_manifest(content: Any) -> bool:
  if not isinstance(content, dict) or content.get("format") != FORMAT:
    return False
  parts = [content.get(name, {}) for name in ("defaults", "versions", "bank")]
  return all(isinstance(part, dict) for part in (content.get("settings"), *parts))


class Events:
  """TensorBoard's event file of a run, written at once.

  Not tensorboardX's `SummaryWriter`: its thread writes behind our back, so a full device
  would end in a trace beside the one clear line.
  """

  def __init__(self, folder: files.Path, first_step: int):
    """Opens a file whose events from `first_step` on replace those of earlier files."""
    self._writer = None
    if processes.is_writer():
      prefix, suffix = str(folder / "events"), f".from-{first_step}"
      self._writer = EventsWriter(prefix, filename_suffix=suffix)
      start = SessionLog(status=SessionLog.START)
      self._writer.write_event(Event(step=first_step, session_log=start))

  def write(self, step: int, kind: str, values: dict[str, float]) -> None:
    """Writes scalars under `kind/name`."""
    if self._writer is None:
      return
    now = time.time()
    for name, value in values.items():
      summary = scalar(f"{kind}/{name}", value)
      self._writer.write_event(Event(wall_time=now, step=step, summary=summary))
    self._writer.flush()

  def close(self) -> None:
    """Closes the file; what is written is on disk already."""
    if self._writer is not None:
      self._writer.close()


class _EventObject:
  """The file under tensorboardX's event writer where nothing can be appended to.

  Its own one for gs:// would need credentials of another kind than etils.
  """

  def __init__(self, path: str):
    self._path = path
    self._content = b""

  def write(self, content: bytes) -> None:
    """Adds what the next flush writes."""
    self._content += content

  def flush(self) -> None:
    """Writes all events so far."""
    files.write_bytes(self._path, self._content)

  def close(self) -> None:
    """Does nothing: the writer flushes before it closes."""


register_writer_factory("gs", types.SimpleNamespace(open=_EventObject))


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


def open_output(path: files.PathLike, work: str, part: str) -> pathlib.Path:
  """Makes the folder of a piece of work on many runs, or finds one that it made.

  Args:
    path: of the folder.
    work: what it is called: 'study', 'ablation'.
    part: a folder in it by which it is known again.

  Raises:
    UserError: the folder holds something else, or lies in an object store.
  """
  if files.is_remote(path):
    raise UserError(
      f"OUTPUT_DIR is '{path}'; the {work}, which draws plots too, needs a folder of this "
      "machine or of a file system that all hosts share."
    )
  folder = pathlib.Path(path)
  if folder.exists() and not (folder / part).is_dir() and any(folder.iterdir()):
    raise UserError(
      f"'{folder}' is not empty and holds no {work} of tpv_jax, so nothing was written "
      "there. Choose another OUTPUT_DIR."
    )
  processes.wait_for_all(f"the folder of the {work} is checked")
  (folder / part).mkdir(parents=True, exist_ok=True)
  return folder

"""TensorBoard's event file of a run, where tensorboardX is installed."""

import threading
import time
import types

from tensorboardX.event_file_writer import EventsWriter
from tensorboardX.proto.event_pb2 import Event, SessionLog
from tensorboardX.record_writer import RecordWriter, register_writer_factory
from tensorboardX.summary import scalar

from tpv_jax.core import files
from tpv_jax.devices import processes


class Events:
  """TensorBoard's event file of a run, written synchronously.

  tensorboardX's `SummaryWriter` writes in a thread, where a full device would cause a
  traceback beside the one clear line.
  """

  def __init__(self, folder: files.Path, first_step: int):
    """Opens a file whose events from `first_step` on replace those of earlier files."""
    self._writer = None
    if processes.is_writer():
      self._writer = _EventsWriter(folder, first_step)
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
    """Closes the file; everything written is on the disk already."""
    if self._writer is not None:
      self._writer.close()


class _EventsWriter(EventsWriter):
  """tensorboardX's writer of events, without the host's name in the name of the file."""

  def __init__(self, folder: files.Path, first_step: int):
    now = time.time()
    name = f"events.out.tfevents.{now:.0f}.from-{first_step}"
    self._num_outstanding_events = 0
    self._py_recordio_writer = RecordWriter(str(folder / name))
    self._lock = threading.Lock()
    self.write_event(Event(wall_time=now, file_version="brain.Event:2"))


class _EventObject:
  """The file under tensorboardX's event writer in a store where nothing can be appended.

  tensorboardX's own for gs:// needs other credentials than etils.
  """

  def __init__(self, path: str):
    self._path = path
    self._content = b""

  def write(self, content: bytes) -> None:
    """Adds content for the next flush."""
    self._content += content

  def flush(self) -> None:
    """Writes all events so far."""
    files.write_bytes(self._path, self._content)

  def close(self) -> None:
    """Does nothing: the writer flushes before it closes."""


register_writer_factory("gs", types.SimpleNamespace(open=_EventObject))

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
  """TensorBoard's event file of a run, written at once.

  Not tensorboardX's `SummaryWriter`: it writes in a thread of its own, so a full device
  would end in a trace beside the one clear line.
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
    """Closes the file; what is written is on disk already."""
    if self._writer is not None:
      self._writer.close()


class _EventsWriter(EventsWriter):
  """tensorboardX's writer of events, which would put the host's name into the file's."""

  def __init__(self, folder: files.Path, first_step: int):
    now = time.time()
    name = f"events.out.tfevents.{now:.0f}.from-{first_step}"
    self._num_outstanding_events = 0
    self._py_recordio_writer = RecordWriter(str(folder / name))
    self._lock = threading.Lock()
    self.write_event(Event(wall_time=now, file_version="brain.Event:2"))


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

"""One writer at a time: a lock that is released when its process ends, however it ends.

A lock is a file that names its holder. On a local file system the holder locks it with
`flock`, which the kernel releases when the process is gone. Object stores and some network
file systems have no locks. There the file is a lease: its holder renews it every
`RENEWED_S`, and a lease that was not renewed for `STALE_S` is taken over. The clocks of
different machines are never compared.
"""

import contextlib
import errno
import fcntl
import json
import os
import pathlib
import socket
import sys
import threading
import time
import uuid
from collections.abc import Iterator
from typing import Any

from tpv_jax.core import files
from tpv_jax.core.errors import EXIT_USER_ERROR, UserError

RENEWED_S = 15.0
"""Seconds between two renewals of a lease."""

STALE_S = 60.0
"""Seconds without a renewal after which a lease may be taken over."""

_NO_LOCKS = (errno.ENOLCK, errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOSYS, errno.EINVAL)


@contextlib.contextmanager
def held(path: files.PathLike, what: str) -> Iterator[None]:
  """Holds the lock file `path`, whose folder exists, within the block.

  Args:
    path: of the file, which exists only while the lock is held, or after a kill.
    what: what is locked, for messages: "The run folder 'runs/sst2'".

  Raises:
    UserError: another process holds the lock, or this one already does.
  """
  path = files.to_path(path)
  handle = None if files.is_remote(path) else _lock(pathlib.Path(path), what)
  if handle is None:
    with _lease(path, what):
      yield
    return
  try:
    os.ftruncate(handle, 0)
    os.pwrite(handle, json.dumps(_me()).encode(), 0)
    yield
  finally:
    # Removed while it is held: a process that opened it meanwhile sees that it is gone.
    with contextlib.suppress(OSError):
      path.unlink()
    os.close(handle)


def _lock(path: pathlib.Path, what: str) -> int | None:
  """Returns the handle of the locked file, or None if the file system has no locks."""
  while True:
    handle = os.open(path, os.O_RDWR | os.O_CREAT, 0o666)
    try:
      fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
      with contextlib.suppress(FileNotFoundError):
        if os.path.samestat(os.fstat(handle), os.stat(path)):
          return handle
    except BlockingIOError:
      os.close(handle)
      raise _in_use(path, what) from None
    except OSError as error:
      os.close(handle)
      if error.errno in _NO_LOCKS:
        return None
      raise
    os.close(handle)  # Its holder removed it before we locked it.


@contextlib.contextmanager
def _lease(path: files.Path, what: str) -> Iterator[None]:
  """Holds `path` as a lease, which a thread renews."""
  found = _read(path)
  if found:
    print(
      f"{what} is or was in use by {_who(found)}; waiting up to {STALE_S:.0f} s to see "
      "whether it still is.",
      file=sys.stderr,
    )
  end = time.monotonic() + STALE_S
  while found and time.monotonic() < end:
    time.sleep(min(RENEWED_S / 4, STALE_S / 10))
    now = _read(path)
    if now and now != found:
      raise _in_use(path, what)
    found = now
  mine = _me() | {"lease": uuid.uuid4().hex}
  _write(path, mine)
  time.sleep(min(1.0, RENEWED_S / 4))  # Of two that began at once the later one has it.
  if _read(path).get("lease") != mine["lease"]:
    raise _in_use(path, what)
  ended = threading.Event()

  def renew() -> None:
    number = 0
    while not ended.wait(RENEWED_S):
      number += 1
      with contextlib.suppress(Exception):  # The next renewal may succeed.
        found = _read(path)
        if found.get("lease", mine["lease"]) != mine["lease"]:
          # This process was suspended too long. Two writers would damage the files.
          print(f"error: {what} was taken over by {_who(found)}.", file=sys.stderr)
          os._exit(EXIT_USER_ERROR)
        _write(path, mine | {"renewed": number})

  thread = threading.Thread(target=renew, daemon=True)
  thread.start()
  try:
    yield
  finally:
    ended.set()
    thread.join()
    if _read(path).get("lease") == mine["lease"]:
      path.unlink(missing_ok=True)


def _me() -> dict[str, Any]:
  return {
    "host": socket.gethostname(),
    "process": os.getpid(),
    "since": time.strftime("%Y-%m-%d %H:%M:%S"),
  }


def _write(path: files.Path, content: dict[str, Any]) -> None:
  files.write_text(path, json.dumps(content))


def _read(path: files.Path) -> dict[str, Any]:
  """Returns the content of a lock file; {} if it is gone or still empty."""
  try:
    content = files.parse_json(path.read_text())
  except (OSError, ValueError):
    return {}
  return content if isinstance(content, dict) else {}


def _who(content: dict[str, Any]) -> str:
  if not content:
    return "another process"
  host, process, since = (
    str(content.get(k))[:60] for k in ("host", "process", "since")
  )
  return f"process {process} on {host} since {since}"


def _in_use(path: files.Path, what: str) -> UserError:
  return UserError(
    f"{what} is in use by {_who(_read(path))}. Wait until that ends, or stop it, and run "
    "the same command again; or choose another folder."
  )

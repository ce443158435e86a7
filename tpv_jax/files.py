"""Atomic writes: a file is either the old one, the new one, or not there.

Imports nothing but the standard library and `tpv_jax.errors`.
"""

import json
import os
import pathlib
import tempfile
from typing import Any

from tpv_jax.errors import UserError

PathLike = str | os.PathLike[str]


def refuse_existing(path: PathLike, overwrite: bool = False) -> None:
  """Raises `UserError` if `path` exists and the user did not ask to replace it."""
  if not overwrite and os.path.lexists(path):
    raise UserError(
      f"'{path}' exists and was left as it is. Choose another path, or say that it may "
      "be replaced (tpv: --overwrite; gin: --gin.OVERWRITE=True)."
    )


def check_output(path: PathLike, overwrite: bool = False) -> None:
  """Raises `UserError` if nothing could be written to `path`, before any work is done."""
  path = pathlib.Path(path)
  if path.is_dir():
    raise UserError(f"Cannot write '{path}': it is a folder. Name a file in it.")
  if not path.parent.is_dir():
    raise UserError(
      f"Cannot write '{path}': the folder '{path.parent}' does not exist. Make it "
      "first."
    )
  refuse_existing(path, overwrite)


def write_bytes(path: PathLike, content: bytes, overwrite: bool = True) -> None:
  """Writes `content` to `path` in one step: temporary file beside it, fsync, rename.

  Raises:
    UserError: `path` exists and `overwrite` is False.
    OSError: nothing was written (no space, no permission); no temporary file is left.
  """
  refuse_existing(path, overwrite)
  path = pathlib.Path(path)
  handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
  try:
    with os.fdopen(handle, "wb") as file:
      file.write(content)
      file.flush()
      os.fsync(file.fileno())
    os.chmod(temporary, 0o666 & ~_umask())
    os.replace(temporary, path)
  except BaseException:
    pathlib.Path(temporary).unlink(missing_ok=True)
    raise


def write_text(path: PathLike, content: str, overwrite: bool = True) -> None:
  """Writes UTF-8 text atomically; see `write_bytes`."""
  write_bytes(path, content.encode(), overwrite)


def write_json(path: PathLike, content: Any, overwrite: bool = True) -> None:
  """Writes indented JSON with a final newline atomically; see `write_bytes`."""
  text = json.dumps(content, indent=2, ensure_ascii=False, allow_nan=False)
  write_text(path, text + "\n", overwrite)


def _umask() -> int:
  current = os.umask(0)
  os.umask(current)
  return current

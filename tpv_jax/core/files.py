"""Local and object-store paths, and atomic writes: a file is the old one or the new one.

Imports the standard library and `tpv_jax.core.errors`; etils, which costs 70 ms, only for a
path like 'gs://bucket/file'.
"""

import contextlib
import errno
import fcntl
import importlib.util
import json
import os
import pathlib
import re
import shutil
import stat
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Annotated, Any, TypeAlias

from tpv_jax.core import errors
from tpv_jax.core.checks import NotEmpty
from tpv_jax.core.errors import UserError

PathLike = Annotated[str, NotEmpty()] | os.PathLike[str]

if TYPE_CHECKING:
  from etils import epath

  Path: TypeAlias = pathlib.Path | epath.Path
else:
  Path = pathlib.PurePath  # The base class of both.

_SCHEME = re.compile(r"(\w+)://")

TEMPORARY = ".tpv_tmp"
"""Ending of the names of temporary files and folders: `.NAME.<8 characters>.tpv_tmp`."""


def to_path(path: PathLike) -> Path:
  """Returns `epath.Path` for a path into an object store, otherwise `pathlib.Path`.

  A leading `~` is the home folder, because no shell expands it in `--flag=~/x` or in the
  strings of gin. (A folder of that name is './~'.) `..` is resolved as the system would
  resolve it, because Orbax and object stores take it for a name.

  An object store has no folders: a folder exists while an object lies "in" it. etils
  reaches gs:// through TensorFlow where that is installed, otherwise through gcsfs.

  Raises:
    UserError: the home folder is unknown; the store is not gs://, or the package that
      reaches it is not installed; or no file can have that name.
  """
  text = os.fspath(path)
  if "\0" in text:
    raise UserError(
      f"'{text}' has a NUL character, which no path can have. Correct it."
    )
  scheme = _SCHEME.match(text)
  if scheme is None:
    home = os.path.expanduser(text)
    if text.startswith("~") and home == text:
      raise UserError(
        f"'{text}' begins with a home folder that is not known. Give the whole path, or "
        f"'./{text}' for a folder of that name."
      )
    found = pathlib.Path(home)
    # Not `normpath`: 'link/..' is where the link leads to.
    return pathlib.Path(os.path.realpath(found)) if ".." in found.parts else found
  if scheme[1] != "gs":
    raise UserError(
      f"'{text}' begins with '{scheme[0]}', which is not known. Give a local path or "
      "one that begins with 'gs://'."
    )
  import fsspec
  from etils import epath

  # gcsfs would cache listings, and miss what another host writes meanwhile.
  fsspec.config.conf.setdefault("gs", {}).setdefault("use_listings_cache", False)
  if ".." in text.split("/"):
    text = f"{scheme[0]}{os.path.normpath('/' + text[scheme.end() :])[1:]}"
  found = epath.Path(text)
  if importlib.util.find_spec("tensorflow") is None:
    try:
      fsspec.get_filesystem_class(scheme[1])
    except ImportError as error:
      raise UserError(
        f"Cannot reach '{text}': {error} (pip install gcsfs, or tpv_jax with its "
        "extra 'gcs'). TensorFlow would do as well."
      ) from None
  return found


def is_remote(path: PathLike) -> bool:
  """Returns whether a path lies in an object store, as 'gs://bucket/file' does."""
  return _SCHEME.match(os.fspath(path)) is not None


def absolute(path: PathLike) -> Path:
  """Returns the path from the root; a path into an object store is absolute already."""
  found = to_path(path)
  return found if is_remote(found) else found.absolute()


def without_folders(name: str) -> str:
  """Returns a model's name without private folders: the last part of an absolute path.

  A path from the home folder counts as absolute. A name on the hub, such as
  'google/t5-v1_1-base', and a relative path are returned unchanged.
  """
  if re.match(r"[/\\~]|[A-Za-z]:[/\\]|file:", name):
    return re.split(r"[/\\]", name.rstrip("/\\"))[-1]
  return name


def cache_folder() -> pathlib.Path:
  """Returns the folder whose files may be deleted at any time: `~/.cache/tpv_jax`."""
  root = os.environ.get("XDG_CACHE_HOME") or pathlib.Path.home() / ".cache"
  return pathlib.Path(root) / "tpv_jax"


def gin_configs() -> pathlib.Path:
  """Returns the folder of this package's gin files and what belongs to them."""
  spec = importlib.util.find_spec("tpv_jax.gin_configs")
  assert spec is not None
  assert spec.submodule_search_locations
  return pathlib.Path(next(iter(spec.submodule_search_locations)))


def refuse_irregular(path: PathLike) -> None:
  """Raises `UserError` if `path` exists and is a folder, pipe, socket or device.

  Reading one of those would fail, block or never end. So everything that reads a user's
  file opens it with `reading`, `read_bytes` or `read_json`, which call this first. A link
  is followed.
  """
  if is_remote(path):
    return
  try:
    mode = os.stat(path).st_mode
  except (OSError, ValueError):
    return  # Opening it says what is wrong.
  if stat.S_ISREG(mode):
    return
  what = {
    stat.S_IFDIR: "a folder",
    stat.S_IFIFO: "a pipe",
    stat.S_IFSOCK: "a socket",
    stat.S_IFCHR: "a device",
    stat.S_IFBLK: "a device",
  }.get(stat.S_IFMT(mode), "something else")
  raise UserError(
    f"'{os.fspath(path)}' is {what}, and only regular files are read. Give the path of a "
    "file."
  )


def read_bytes(path: PathLike) -> bytes:
  """Returns the content of a file.

  Raises:
    UserError: it is not a regular file.
    OSError: it cannot be read; for a missing file with equal fields, local or remote.
  """
  path = to_path(path)
  refuse_irregular(path)
  try:
    return path.read_bytes()
  except FileNotFoundError:
    text = os.strerror(errno.ENOENT)
    raise FileNotFoundError(errno.ENOENT, text, str(path)) from None


@contextlib.contextmanager
def reading(path: PathLike) -> Iterator[Any]:
  """Yields a file that is open for reading bytes.

  Raises:
    UserError: it does not exist, may not be read, or is not a regular file.
  """
  path = to_path(path)
  refuse_irregular(path)
  try:
    file = path.open("rb")
  except (FileNotFoundError, NotADirectoryError):
    raise UserError(missing(path)) from None
  except OSError as error:
    if error.errno == errno.EACCES:
      raise UserError(f"'{path}' cannot be opened: permission denied.") from None
    raise
  with file:
    yield file


def parse_json(text: str | bytes) -> Any:
  """Returns what JSON says that need not be trusted.

  Raises:
    ValueError: it is no JSON, is nested too deeply, or holds a lone surrogate, which could
      be neither printed nor written to a file again.
  """
  try:
    content = json.loads(text)
    json.dumps(content, ensure_ascii=False).encode()
  except RecursionError as error:
    raise ValueError("it is nested too deeply") from error
  return content


def read_json(path: PathLike, most_bytes: int = 1 << 20) -> dict[str, Any]:
  """Returns the JSON object in a file, which need not be trusted.

  Raises:
    UserError: the file holds something else, more than `most_bytes`, or a lone surrogate,
      which could not be written to a file again.
  """
  with reading(path) as file:
    text = file.read(most_bytes + 1)
  try:
    if len(text) > most_bytes:
      raise ValueError(f"it has more than {most_bytes} bytes")
    content = parse_json(text)
    if isinstance(content, dict):
      return content
    problem = f"it holds {str(content)[:40]!r}"
  except ValueError as error:
    problem = str(error)
  raise UserError(
    f"'{os.fspath(path)}' is no JSON object: {problem}. Take another copy."
  )


def inside(folder: PathLike, name: str) -> Path:
  """Returns the path of a file in a folder, unless a symbolic link leads out of it.

  `huggingface_hub` downloads to `<model>/snapshots/<revision>/`, whose files are links to
  `<model>/blobs/`; such a link may lead anywhere in the model's folder.

  Raises:
    UserError: the file lies elsewhere.
  """
  path = to_path(f"{os.fspath(folder)}/{name}")
  if is_remote(path):
    return path
  root = pathlib.Path(os.path.realpath(folder))
  for above in (root, *root.parents):
    model = above.parent.parent
    if above.parent.name == "snapshots" and (model / "blobs").is_dir():
      root = model
      break
  target = pathlib.Path(os.path.realpath(path))
  if not target.is_relative_to(root):
    raise UserError(
      f"'{path}' is a symbolic link out of its folder, to '{target}', and is not "
      "followed. Put the file itself there."
    )
  return path


def missing(path: PathLike) -> str:
  """Returns the message about a path that does not exist, with near misses."""
  lost = to_path(path)
  while not (_is_top(lost) or lost.parent.is_dir()):
    lost = lost.parent
  try:
    beside = () if _is_top(lost) else lost.parent.iterdir()
    hidden = lost.name.startswith(".")
    known = [entry.name for entry in beside if entry.name.startswith(".") == hidden]
  except OSError:
    known = []
  reason = "" if lost == to_path(path) else f", because there is no '{lost}'"
  misses = errors.near_misses(lost.name, known)
  return f"'{os.fspath(path)}' does not exist{reason}.{misses} Check the path."


def _is_top(path: Path) -> bool:
  """Returns whether `path` is the root or a bucket, with nothing to list above it."""
  return len(path.parts) <= 3 if is_remote(path) else path == path.parent


def refuse_existing(path: PathLike, overwrite: bool = False) -> None:
  """Raises `UserError` if `path` exists and the user did not ask to replace it."""
  if not overwrite and _exists(path):
    remove_leftovers(to_path(path).parent, to_path(path).name)
    raise UserError(
      f"'{path}' exists and was left as it is. Choose another path, or say that it may "
      f"be replaced: {errors.option('overwrite')}."
    )


def check_output(path: PathLike, overwrite: bool = False) -> None:
  """Raises `UserError` if nothing could be written to `path`, before any work is done.

  In an object store, which needs no folders, only existing files are noticed beforehand.
  """
  path = to_path(path)
  if path.is_dir():
    raise UserError(f"Cannot write '{path}': it is a folder. Name a file in it.")
  if not is_remote(path) and not path.parent.is_dir():
    raise UserError(
      f"Cannot write '{path}': the folder '{path.parent}' does not exist. Make it "
      "first."
    )
  refuse_existing(path, overwrite)


def refuse_same(outputs: Mapping[str, PathLike | None]) -> None:
  """Raises `UserError` if two of the outputs, each with its setting's name, are one file."""
  named: dict[str, str] = {}
  for setting, path in outputs.items():
    if path is None:
      continue
    whole = str(to_path(path)) if is_remote(path) else os.path.realpath(to_path(path))
    if (other := named.setdefault(whole, setting)) != setting:
      raise UserError(
        f"{other} and {setting} are one file, '{os.fspath(path)}', and one would replace "
        "the other. Give two."
      )


def write_bytes(path: PathLike, content: bytes, overwrite: bool = True) -> None:
  """Writes `content` to `path` in one step; see `writing`."""
  with writing(path, overwrite) as file:
    file.write(content)


def check_together(paths: Sequence[PathLike], overwrite: bool = False) -> None:
  """Raises `UserError` if `write_together` could not write to these paths."""
  first, *others = paths
  check_output(first, overwrite)
  overwrite = overwrite or _was_cut_short(to_path(first))
  for path in others:
    check_output(path, overwrite)


def write_together(contents: Mapping[Path, bytes], overwrite: bool = False) -> None:
  """Writes files that belong together; the first of them appears last.

  Locally, none appears before all are on the disk. After an error no new file is left; of
  old files, which `overwrite` allows, some may be replaced if a rename failed. If a kill
  left the others without the first one, they are replaced without `overwrite`, too.

  Raises:
    UserError: one exists and `overwrite` is False.
    OSError: as `writing`.
  """
  first = next(iter(contents))
  overwrite = overwrite or _was_cut_short(first)
  new = [path for path in contents if not _exists(path)]
  try:
    with contextlib.ExitStack() as stack:
      for path, content in contents.items():
        file = stack.enter_context(writing(path, overwrite))
        file.write(content)
        if not is_remote(path):
          _finish(file)
  except BaseException:
    for path in new:
      path.unlink(missing_ok=True)
    raise


def _was_cut_short(first: Path) -> bool:
  """Returns whether a kill interrupted a `write_together`."""
  return not (is_remote(first) or _exists(first)) and bool(
    _temporaries(first.parent, first.name)
  )


@contextlib.contextmanager
def scratch_folder(path: Path) -> Iterator[pathlib.Path]:
  """Yields a new folder beside `path`, which is deleted when the block ends.

  Folders that killed processes left for the same `path` are deleted, too.
  """
  remove_leftovers(path.parent, path.name)
  with contextlib.ExitStack() as stack:
    prefix = _prefix(path.name)
    made = pathlib.Path(tempfile.mkdtemp(TEMPORARY, prefix, path.parent))
    stack.callback(shutil.rmtree, made, ignore_errors=True)
    handle = os.open(made, os.O_RDONLY)
    stack.callback(os.close, handle)
    _hold(handle)
    yield made


@contextlib.contextmanager
def new_folder(path: Path) -> Iterator[Path]:
  """Yields a folder that appears at `path`, complete, when the block ends.

  It is a temporary folder that is renamed; after an error nothing is left. An object store
  has no folders: there it is `path` itself.
  """
  if is_remote(path):
    yield path
    return
  with scratch_folder(path) as scratch:
    made = scratch / path.name
    made.mkdir()
    yield made
    os.rename(made, path)


def remove_leftovers(folder: Path, name: str | None = None) -> None:
  """Removes the temporary files that killed writers of `name`, or of any name, left.

  A running writer holds a lock on its own. Where the file system has no locks, nothing is
  removed.
  """
  for path in _temporaries(folder, name):
    with contextlib.suppress(OSError):  # Gone meanwhile, held, another user's, ...
      handle = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK)
      try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        shutil.rmtree(path) if path.is_dir() else path.unlink()
      finally:
        os.close(handle)


def _temporaries(folder: Path, name: str | None) -> list[pathlib.Path]:
  if is_remote(folder):
    return []
  start = r"\..*\." if name is None else re.escape(_prefix(name))
  ours = re.compile(rf"{start}[a-z0-9_]{{8}}{re.escape(TEMPORARY)}", re.DOTALL)
  try:
    return [
      pathlib.Path(entry.path)
      for entry in os.scandir(folder)
      if ours.fullmatch(entry.name)
    ]
  except OSError:
    return []


def _prefix(name: str) -> str:
  return f".{name[:48]}."  # A name may be nearly as long as the file system allows.


def _hold(handle: int) -> None:
  """Locks a temporary file, which says that its writer is running."""
  with contextlib.suppress(OSError):  # The file system has no locks.
    fcntl.flock(handle, fcntl.LOCK_EX)


@contextlib.contextmanager
def writing(path: PathLike, overwrite: bool = True) -> Iterator[Any]:
  """Yields a file that appears at `path`, whole, when the block ends without an error.

  Locally this is a temporary file, fsync and rename, and the files that killed writers of
  `path` left are removed. In an object store, an object appears when it is whole anyway;
  after an error it is removed again.

  Raises:
    UserError: `path` exists and `overwrite` is False.
    OSError: nothing was written (no space, no permission); no temporary file is left.
  """
  refuse_existing(path, overwrite)
  writing_where = _writing_there if is_remote(path) else _writing_here
  with writing_where(to_path(path)) as file:
    yield file


@contextlib.contextmanager
def _writing_there(path: Path) -> Iterator[Any]:
  try:
    with path.open("wb") as file:
      yield file
  except BaseException:
    path.unlink(missing_ok=True)
    raise


@contextlib.contextmanager
def _writing_here(path: Path) -> Iterator[Any]:
  remove_leftovers(path.parent, path.name)
  handle, temporary = tempfile.mkstemp(TEMPORARY, _prefix(path.name), path.parent)
  with contextlib.ExitStack() as stack:
    _hold(handle)
    stack.callback(os.close, os.dup(handle))  # Held until it is renamed.
    try:
      with os.fdopen(handle, "wb") as file:
        yield file
        if not file.closed:
          _finish(file)
      os.chmod(temporary, 0o666 & ~_umask())
      os.replace(temporary, path)
    except BaseException:
      pathlib.Path(temporary).unlink(missing_ok=True)
      raise


def _finish(file: Any) -> None:
  file.flush()
  os.fsync(file.fileno())
  file.close()


def write_text(path: PathLike, content: str, overwrite: bool = True) -> None:
  """Writes UTF-8 text atomically; see `write_bytes`."""
  write_bytes(path, content.encode(), overwrite)


def write_json(path: PathLike, content: Any, overwrite: bool = True) -> None:
  """Writes indented JSON with a final newline atomically; see `write_bytes`."""
  write_bytes(path, json_bytes(content), overwrite)


def json_bytes(content: Any) -> bytes:
  """Returns indented JSON with a final newline, as UTF-8."""
  text = json.dumps(content, indent=2, ensure_ascii=False, allow_nan=False)
  return f"{text}\n".encode()


def _exists(path: PathLike) -> bool:
  found = to_path(path)
  return found.exists() if is_remote(path) else os.path.lexists(found)


def _umask() -> int:
  current = os.umask(0)
  os.umask(current)
  return current

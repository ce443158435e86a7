"""The raw rows of the registry's data sets: prepared once, then read in a fixed order.

A data directory holds the files of TFDS and, in tpv_jax/raw/NAME/, our JSON lines: one file
for each of the source's splits that the task needs, for data sets of the Hugging Face hub
and for the user's own files. If both are there, ours are read. TFDS and Hugging Face's
`datasets` are imported when they are needed.
"""

import contextlib
import dataclasses
import functools
import hashlib
import json
import logging
import os
import pathlib
import re
import shlex
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any

import numpy as np

from tpv_jax.core import files
from tpv_jax.core.errors import UserError, near_misses
from tpv_jax.core.files import Path, PathLike
from tpv_jax.core.screen import Bar
from tpv_jax.data.batches import order
from tpv_jax.data.lines import json_row
from tpv_jax.data.papers.definition import Definition, Row, check_classes

ABOUT = "about.json"
"""The file that is written last and describes the files beside it."""

_AGAIN = "Remove that folder and prepare the task again."

Say = Callable[[str], None]


def data_directory(path: PathLike | None = None) -> Path:
  """Returns the data directory: the given one, $TFDS_DATA_DIR, or TFDS's own default."""
  chosen = path or os.environ.get("TFDS_DATA_DIR") or "~/tensorflow_datasets"
  return files.to_path(chosen)


@dataclasses.dataclass(frozen=True)
class Lines:
  """Raw rows that `prepare` wrote as JSON lines."""

  which: Definition
  folder: Path

  @functools.cached_property
  def about(self) -> dict[str, Any]:
    """The content of about.json, or {} if `prepare` has not written it."""
    return read_about(
      self.folder,
      {"origin": str, "rows": {str: int}, "digests": {str: str}},
      _AGAIN,
    )

  @property
  def origin(self) -> str:
    """The source of the rows, with a digest if they are the user's own files."""
    digests = [self.about.get("digests", {}).get(split) for split in self.counts]
    if not any(digests):
      return self.about["origin"]
    digest = hashlib.sha256(" ".join(map(str, digests)).encode()).hexdigest()
    return f"{self.about['origin']}, SHA-256 {digest[:16]}"

  @functools.cached_property
  def counts(self) -> Mapping[str, int]:
    """How many rows each split has, for the splits whose file exists."""
    rows = self.about.get("rows", {})
    return {split: rows[split] for split in sorted(rows) if self.path(split).exists()}

  def path(self, split: str) -> Path:
    """Returns the file of a split."""
    return self.folder / f"{split}.jsonl"

  def rows(self, split: str) -> Iterator[tuple[str, Row]]:
    """Yields the rows in the order of the file, each with its file and line.

    Raises:
      UserError: at the end, if their number is not the one that `prepare` wrote.
    """
    number = 0
    for where, row in read_lines(self.path(split)):
      number += 1
      yield where, self.row(row)
    if number != self.counts[split]:
      raise UserError(
        f"'{self.path(split)}' has {number} rows, but {self.counts[split]} were written. "
        f"{_AGAIN}"
      )

  def row(self, row: Row) -> Row:
    """Returns a line's object as a raw row."""
    return named(flat(row), self.which.classes)

  def read(self, split: str, number: int, values: Row) -> tuple[str, Row]:
    """Returns the row in the JSON text `values['line']`, after its file and line."""
    where = f"{self.path(split)}:{number + 1}"
    return where, self.row(json_row(_plain(values["line"]), where))


@dataclasses.dataclass(frozen=True)
class Tfds:
  """Raw rows in TFDS's files, or rows that `tfds.testing.mock_data` invents."""

  builder: Any

  @property
  def origin(self) -> str:
    """The source of the rows, with its version."""
    return f"TFDS {self.builder.info.full_name}"

  @functools.cached_property
  def counts(self) -> Mapping[str, int]:
    """How many rows each split has."""
    return {
      split: info.num_examples for split, info in self.builder.info.splits.items()
    }

  @functools.cached_property
  def classes(self) -> Mapping[str, list[str]]:
    """The class names of the columns that hold classes by number."""
    return {
      name: feature.names
      for name, feature in flat(self.builder.info.features).items()
      if hasattr(feature, "names")
    }

  def rows(self, split: str) -> Iterator[tuple[str, Row]]:
    """Yields the rows in TFDS's order, each with its number."""
    import tensorflow_datasets as tfds

    dataset = tfds.as_numpy(self.builder.as_dataset(split=split, shuffle_files=False))
    for number, row in enumerate(dataset):
      yield self.read(split, number, flat(row))

  def read(self, split: str, number: int, values: Row) -> tuple[str, Row]:
    """Returns the row of TFDS's flat values, after its number."""
    row = {name: _plain(value) for name, value in values.items()}
    return f"{self.origin}, split '{split}', row {number}", named(row, self.classes)


Raw = Lines | Tfds


def raw(which: Definition, data_dir: PathLike | None = None) -> Raw:
  """Returns a task's raw rows.

  Raises:
    UserError: they are not prepared, or the source's labels are not those of `which`.
  """
  folder = data_directory(data_dir)
  lines = _lines(which, folder)
  if not _missing(which, lines):
    return lines
  if which.tfds is not None:
    found = Tfds(_builder(which, folder))
    if not _missing(which, found):
      check_classes(which, found.classes)
      return found
  raise UserError(
    f"The data of task '{which.name}' is not prepared in '{folder}'. Run: tpv tasks "
    f"prepare {which.name} --data-dir {shlex.quote(str(folder))}"
  )


def prepare(
  which: Definition,
  data_dir: PathLike | None = None,
  folder: PathLike | None = None,
  say: Say = print,
) -> None:
  """Puts a task's raw rows into the data directory; those already there are kept.

  Rows of `folder` and of the hub are written in random order, which is always the same.

  The next call continues one that was stopped: TFDS and the hub's client keep what they
  have downloaded, and each of our splits appears when it is whole.

  Args:
    which: the task.
    data_dir: see `data_directory`.
    folder: a local copy of the data set instead of a download: either SPLIT.jsonl for
      each split that is needed, with the columns of the source and classes by name or
      number; or a folder of Hugging Face's `datasets` (parquet files with the split in
      their names, or the files of `save_to_disk`). Nothing outside it is read, whatever
      its files or links name.
    say: called with a line about each step.

  Raises:
    UserError: there is no connection, a package is not installed, rows do not fit the
      task's definition, a split has no rows, or rows of another source are there.
  """
  folder = None if folder is None else files.to_path(folder)
  target = data_directory(data_dir)
  lines = _lines(which, target)
  if folder is None and not _missing(which, lines):
    say(f"{which.data}: ready in {lines.folder}")
  elif folder is None and which.tfds is not None:
    builder = _builder(which, target)
    with _download_errors(which):
      builder.download_and_prepare()
    found = Tfds(builder)
    check_classes(which, found.classes)
    say(f"{which.data}: ready, {found.origin} in {builder.data_dir}")
  else:
    _write_raw(which, lines, folder, say)


def read_about(folder: Path, form: Mapping[str, Any], fix: str) -> dict[str, Any]:
  """Returns the content of a folder's about.json, or {} if there is none.

  Args:
    folder: of `prepare` or `exported.export`.
    form: by field its type, or a form for a nested object; {str: form} for fields of any
      name.
    fix: what to do if it is damaged, for the message.

  Raises:
    UserError: it is not a JSON object, or a field is missing or of another type.
  """
  path = folder / ABOUT
  if not path.exists():
    return {}
  try:
    about = files.read_json(path)
  except UserError as error:
    raise UserError(str(error).replace("Take another copy.", fix)) from None
  if problem := _misfit(about, form):
    raise UserError(f"'{path}' is damaged: {problem}. {fix}")
  return {
    name: _portable(value) if isinstance(value, str) else value
    for name, value in about.items()
  }


def _misfit(value: Any, form: Any, name: str = "") -> str | None:
  """Returns what is wrong with a value, or None if it has the form."""
  if not isinstance(form, Mapping):
    right = isinstance(value, form) and not isinstance(value, bool)
    return None if right else f"'{name}' is {value!r:.60}, which is no {form.__name__}"
  if not isinstance(value, dict):
    return f"'{name}' is {value!r:.60}, which is no object"
  fields = form if str not in form else dict.fromkeys(value, form[str])
  for key, inner in fields.items():
    if key not in value:
      return f"'{key}' is missing"
    if problem := _misfit(value[key], inner, key):
      return problem
  return None


def _portable(origin: str) -> str:
  """Returns text from an about.json, reducing a quoted path at its start to its name."""
  return re.sub(r"^'[^']*[/\\]([^'/\\]+)'", r"'\1'", origin)


def read_lines(path: PathLike) -> Iterator[tuple[str, dict[str, Any]]]:
  """Yields the objects of a JSON-lines file, each with its file and line.

  Raises:
    UserError: it does not exist or is not a regular file, or a line is not a JSON object
      in UTF-8.
  """
  with files.reading(path) as file:
    for number, line in enumerate(file, start=1):
      where = f"{path}:{number}"
      try:
        text = line.decode("utf-8-sig" if number == 1 else "utf-8")
      except UnicodeDecodeError as error:
        raise UserError(
          f"{where}: not UTF-8 ({error.reason}). Convert the file to UTF-8."
        ) from error
      if text.strip():
        yield where, json_row(text, where)


def write_lines(path: Path, rows: Iterable[Mapping[str, Any]]) -> int:
  """Writes a JSON-lines file in one step, row by row; returns how many rows it has."""
  path.parent.mkdir(parents=True, exist_ok=True)
  count = 0
  with files.writing(path) as file:
    for row in rows:
      file.write((json.dumps(row, ensure_ascii=False) + "\n").encode())
      count += 1
  return count


def flat(row: Any, prefix: str = "") -> dict[str, Any]:
  """Returns nested columns (mappings) by flat name, such as 'idx/question'."""
  found: dict[str, Any] = {}
  for name, value in row.items():
    if hasattr(value, "items"):
      found |= flat(value, f"{prefix}{name}/")
    else:
      found[prefix + name] = value
  return found


def named(row: Row, classes: Mapping[str, list[str]]) -> Row:
  """Returns the row with class numbers replaced by class names, and -1 by None."""
  changed = {
    column: None if row[column] < 0 else names[row[column]]
    for column, names in classes.items()
    if isinstance(row.get(column), int) and row[column] < len(names)
  }
  return {**row, **changed}


def needed_splits(which: Definition) -> tuple[str, ...]:
  """Returns the source's splits from which a task is made."""
  return ("train", which.held_out)


def _lines(which: Definition, data_dir: Path) -> Lines:
  return Lines(which, data_dir / "tpv_jax" / "raw" / which.data)


def _missing(which: Definition, found: Raw) -> list[str]:
  return [split for split in needed_splits(which) if not found.counts.get(split)]


def _builder(which: Definition, data_dir: Path) -> Any:
  try:
    import tensorflow_datasets as tfds
  except ImportError as error:
    raise UserError(
      f"Task '{which.name}' comes from TFDS, which is not installed ({error}). Install "
      "tpv_jax with its extra 'data', or bring your own files: tpv tasks prepare "
      f"{which.name} --from FOLDER"
    ) from None
  return tfds.builder(which.tfds, data_dir=str(data_dir))


@contextlib.contextmanager
def _download_errors(which: Definition) -> Iterator[None]:
  """Turns any error of a download into a `UserError`."""
  try:
    yield
  except UserError:
    raise
  except Exception as error:
    # TFDS and the hub's client raise dozens of classes, many of them not public.
    text = " ".join(str(error).split())[:200]
    raise UserError(
      f"Cannot prepare '{which.data}' from {which.source}: {type(error).__name__}: "
      f"{text}. Run the same command again to go on where it stopped; without internet, "
      "give a local copy by --from FOLDER."
    ) from error


def _write_raw(
  which: Definition, lines: Lines, folder: PathLike | None, say: Say
) -> None:
  """Writes the splits that are not there yet as JSON lines, and about.json after each."""
  origin = which.source
  if folder is not None:
    # Only its name: the folders above it are private, and this file may be shared.
    origin = f"'{pathlib.Path(folder).resolve().name}'"
  rows = {split: count for split, count in lines.counts.items() if count}
  digests = {k: v for k, v in lines.about.get("digests", {}).items() if k in rows}
  other = "Remove that folder, or choose another --data-dir."
  if rows and lines.about["origin"] != origin:
    raise UserError(
      f"'{lines.folder}' already holds the rows of {lines.about['origin']}, so those of "
      f"{origin} were not written. {other}"
    )
  for split in needed_splits(which):
    digest = None if folder is None else _digest(folder, split)
    if split in rows:
      if digest is not None and digests.get(split, digest) != digest:
        raise UserError(
          f"'{lines.folder}' holds rows of '{split}' from {origin}, which has changed "
          f"since. {other}"
        )
      say(f"{which.data}, {split}: {rows[split]} rows are there already")
      continue
    total, found = _opened(which, split, folder)
    bar = Bar(found, f"{which.data}, {split}", total=total, unit=" rows")
    path = lines.path(split)
    rows[split] = write_lines(path, iter(bar))
    if not rows[split]:
      path.unlink()
      raise UserError(
        f"Split '{split}' of {origin} has no rows, and task '{which.name}' needs some. "
        "Give a folder with the whole data set with --from."
      )
    if digest is not None:
      digests[split] = digest
    about = {"origin": origin, "rows": rows, "digests": digests}
    files.write_json(lines.folder / ABOUT, about)
    say(f"{which.data}, {split}: {rows[split]} rows in {path}")


def _digest(folder: PathLike, split: str) -> str:
  """Returns the SHA-256, as 64 hex digits, of the local files of a split."""
  content = hashlib.sha256()
  for path in _local_files(folder, split):
    with files.reading(path) as file:
      content.update(hashlib.file_digest(file, "sha256").digest())
  return content.hexdigest()


def _local_files(folder: PathLike, split: str) -> list[pathlib.Path]:
  """Returns the files of a folder that hold a split, in a fixed order.

  They are SPLIT.jsonl, or the Arrow files that `save_to_disk` wrote and listed, or the
  parquet files with the split in their names, as Hugging Face names them.

  Raises:
    UserError: one of them lies outside the folder, or a list of them is damaged.
  """
  root = pathlib.Path(folder)
  if (own := root / f"{split}.jsonl").exists():
    names = [own.name]
  elif (state := root / split / "state.json").exists():
    listed = files.read_json(files.inside(root, f"{split}/state.json"))
    try:
      names = [f"{split}/{one['filename']}" for one in listed["_data_files"]]
      if listed.get("_indices_data_files"):
        raise ValueError("rows that were chosen by an index")
    except (KeyError, TypeError, ValueError) as error:
      raise UserError(
        f"'{state}' names no data files that can be read ({error!r:.80}). Write the data "
        "set again with 'save_to_disk', or as parquet."
      ) from None
  else:
    word = re.compile(rf"(?:^|[^a-z]){split}(?:[^a-z]|$)")
    found = sorted(root.rglob("*.parquet")) if root.is_dir() else []
    relative = [path.relative_to(root).as_posix() for path in found]
    names = [name for name in relative if word.search(name)]
  return [pathlib.Path(str(files.inside(root, name))) for name in names]


def _opened(
  which: Definition, split: str, folder: PathLike | None
) -> tuple[int, Iterator[Row]]:
  """Returns how many rows a split has, and the rows in random order.

  Some of the hub's data sets are sorted by class, and the user's files may be, too; those
  of TFDS never are.
  """
  if folder is not None:
    own = pathlib.Path(folder) / f"{split}.jsonl"
    if own.exists():
      return _checked(which, split, own)
    if not pathlib.Path(folder).is_dir() or list(pathlib.Path(folder).glob("*.jsonl")):
      present = [path.name for path in pathlib.Path(folder).glob("*")]
      raise UserError(
        f"'{own}' does not exist.{near_misses(own.name, present)} Task '{which.name}' "
        f"needs {' and '.join(f'{s}.jsonl' for s in needed_splits(which))}, or a folder "
        "of Hugging Face's 'datasets'."
      )
  table = _hugging_face(which, split, folder)
  classes = {
    name: feature.names
    for name, feature in table.features.items()
    if hasattr(feature, "names")
  }
  check_classes(which, classes)
  places = order(len(table), 0)
  return len(table), (named(flat(table[int(place)]), classes) for place in places)


def _checked(
  which: Definition, split: str, path: pathlib.Path
) -> tuple[int, Iterator[Row]]:
  """Returns the rows of the user's file after checking all of them."""
  found = Lines(which, path.parent)
  for where, row in read_lines(path):
    which.example(found.row(row), where, split)
  with path.open("rb") as file:  # Lines need less memory than parsed rows.
    texts = [line for line in file if line.decode("utf-8-sig").strip()]
  places = order(len(texts), 0)
  return len(texts), (
    found.row(json_row(texts[int(place)].decode("utf-8-sig"), str(path)))
    for place in places
  )


def _hugging_face(which: Definition, split: str, folder: PathLike | None) -> Any:
  """Returns a split of a data set, from the hub or a folder, as a `datasets.Dataset`."""
  try:
    import datasets
  except ImportError as error:
    raise UserError(
      f"The data of '{which.name}' needs Hugging Face's 'datasets', which is not "
      f"installed ({error}): pip install datasets, or tpv_jax with its extra 'hf'. Or "
      "give JSON lines by --from FOLDER."
    ) from None
  if folder is None:
    with _download_errors(which):
      found = datasets.load_dataset(which.hugging_face)
    if split in found:
      return found[split]
    raise UserError(f"{which.source} has no split '{split}', only {', '.join(found)}.")
  # Not `load_dataset(folder)`, which reads any files that the folder's README names.
  paths = [os.fspath(path) for path in _local_files(folder, split)]
  if not paths:
    raise UserError(
      f"'{folder}' has no split '{split}': no {split}.jsonl, no folder '{split}' of "
      f"'save_to_disk', and no parquet file with '{split}' in its name. Task "
      f"'{which.name}' needs {' and '.join(needed_splits(which))}."
    )
  logging.getLogger("datasets").setLevel(logging.CRITICAL)  # Our message is enough.
  try:
    if paths[0].endswith(".parquet"):
      found = datasets.Dataset.from_parquet(paths)
    else:
      found = datasets.concatenate_datasets([*map(datasets.Dataset.from_file, paths)])
    # Reading a damaged row could end the process.
    found.data.table.validate(full=True)
    return found
  except Exception as error:
    # `datasets` and pyarrow raise dozens of classes, many of them not public.
    text = " ".join(str(error).split())[:200]
    raise UserError(
      f"Cannot read split '{split}' of '{folder}': {type(error).__name__}: {text}. Take "
      "another copy, or give JSON lines."
    ) from error


def _plain(value: Any) -> Any:
  """Returns TFDS's value as a Python string, number, or list of these."""
  if isinstance(value, bytes):
    return value.decode()
  if isinstance(value, np.ndarray):
    return [_plain(one) for one in value.tolist()] if value.ndim else _plain(value[()])
  if isinstance(value, np.integer | np.bool_):
    return value.item()
  # Not `item()`, which would turn the float32 3.8 into 3.799999952316284.
  return float(str(value)) if isinstance(value, np.floating) else value

"""The vectors of runs, files and folders of them."""

import dataclasses
import itertools
import os
from collections.abc import Iterator, Sequence

from tpv_jax.core import files, identity
from tpv_jax.core.errors import UserError
from tpv_jax.formats import sources
from tpv_jax.vectors import algebra, compatibility
from tpv_jax.vectors.loaded import Loaded


@dataclasses.dataclass(frozen=True)
class Collected:
  """What was found.

  Attributes:
    vectors: in the order of their paths, each set of values once.
    left_out: the path of everything else that was looked at, and why it is left out.
  """

  vectors: tuple[Loaded, ...]
  left_out: tuple[tuple[str, str], ...]


def vector(path: files.PathLike, which: str = "best") -> Loaded:
  """Returns the vector at a path: a vector's file, or a run, whose prompt is taken.

  Args:
    path: see `sources.load`.
    which: the 'best' or 'last' prompt of a run folder; not read of a vector's file.

  Raises:
    UserError: as `sources.load`; or a prompt lies there without the initial prompt of its
      run beside it.
  """
  item = sources.load_any(path, which)
  run = sources.run_of(path)
  if item.provenance.kind == "prompt" and run is not None:
    start = sources.load(run, "initial")
    item = dataclasses.replace(algebra.diff(item, start), name=item.name)
  compatibility.require_vector(item)
  return item


def collect(paths: Sequence[files.PathLike], which: str = "best") -> Collected:
  """Returns the vectors at the paths, and those in them where a path is a folder.

  Of a folder, every run and every `.safetensors` file below it is looked at. What is no
  vector there is left out; a path that is given itself must be one.

  Args:
    paths: vectors, runs, or folders such as that of a bank or a study.
    which: the 'best' or 'last' prompt of each run folder.

  Raises:
    UserError: a path holds no vector; or as `vector` of a path that is no folder of others.
  """
  found: dict[str, Loaded] = {}
  left_out: list[tuple[str, str]] = []
  for path in paths:
    inside = _inside(path)
    before = len(found) + len(left_out)
    for one in [path] if inside is None else inside:
      try:
        item = vector(one, which)
      except UserError as error:
        if inside is None:
          raise
        left_out.append((str(one), str(error)))
        continue
      digest = identity.prompt_digest(item.leaves)
      if digest in found:
        left_out.append((item.name, f"it has the values of '{found[digest].name}'"))
      else:
        found[digest] = item
    if len(found) + len(left_out) == before:
      raise UserError(
        f"'{path}' holds no run and no .safetensors file. Name a vector, a run, or a folder "
        "of them."
      )
  return Collected(tuple(found.values()), tuple(left_out))


def refuse_unread(which: str, paths: Sequence[files.PathLike]) -> None:
  """Raises `UserError` if `which` is not the default and there is no run at the paths.

  Args:
    which: the 'best' or 'last' prompt of each run folder.
    paths: what `vector` and `collect` were given.
  """
  if which != "best":
    inside = [[path] if (found := _inside(path)) is None else found for path in paths]
    sources.refuse_unread(which, [*itertools.chain(*inside)])


def _inside(path: files.PathLike) -> Iterator[files.Path] | None:
  """Returns the runs and files below a folder of them; None if `path` is not such a one."""
  folder = files.to_path(path)
  if not folder.is_dir() or sources.is_run_folder(folder) or sources.run_of(folder):
    return None
  return _below(folder)


def _below(folder: files.Path) -> Iterator[files.Path]:
  for path in sorted(folder.iterdir()):
    if path.name.startswith("."):
      continue
    if not path.is_dir():
      if path.suffix == ".safetensors":
        yield path
    elif sources.is_run_folder(path):
      yield path
    elif not os.path.islink(path):  # A link could lead back to where it lies.
      yield from _below(path)

"""The absolute path of a T5X job's folder, with `~` and `..` resolved.

T5X passes MODEL_DIR and OUTPUT_DIR to Orbax, which accepts no relative path, and would
make a folder named `~`. So the gin files pass them through here, and all code sees one
spelling of the folder.
"""

from tpv_jax.core import files


def make_absolute(path: files.PathLike) -> str:
  """Returns the absolute path; a path in an object store is returned unchanged."""
  return str(files.absolute(path))

"""The folder of a T5X job as T5X needs it: from the root, `~` and `..` followed.

T5X hands MODEL_DIR and OUTPUT_DIR to Orbax, which takes no relative path, and makes a
folder named `~`. So the gin files pass them through here, and nothing below sees another
spelling of the same folder.
"""

from tpv_jax.core import files


def make_absolute(path: files.PathLike) -> str:
  """Returns the path from the root, of a path into an object store the same one."""
  return str(files.absolute(path))

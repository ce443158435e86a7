"""The families of backbones: each is a folder of this room and one line here."""

import functools
from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any

from tpv_jax.core import files
from tpv_jax.core.errors import UserError
from tpv_jax.core.leaves import Leaf
from tpv_jax.core.registry import entry
from tpv_jax.formats import gguf, hugging_face

if TYPE_CHECKING:
  from tpv_jax.backbones.protocol import Config, Family

FAMILIES = {
  "t5": "tpv_jax.backbones.t5.family:FAMILY",
  "llama": "tpv_jax.backbones.llama.family:FAMILY",
  "gemma3": "tpv_jax.backbones.gemma3.family:FAMILY",
}
"""Name -> module:attribute of a `protocol.Family`, which is imported on first use."""


@functools.cache
def family(name: str) -> "Family":
  """Returns the family of that name."""
  found: Family = entry(FAMILIES[name])
  return found


def families() -> Iterable["Family"]:
  """Yields all families."""
  return map(family, FAMILIES)


def key_of(one: "Family") -> str:
  """Returns the name that `FAMILIES` gives a family, which files state."""
  return next(name for name in FAMILIES if family(name) is one)


def of_leaves(
  leaves: Mapping[str, Any], source: str, stated: object = None
) -> "Family":
  """Returns the family that `source` states, or whose token embeddings it has.

  Args:
    leaves: by T5X path.
    source: where they come from, for messages.
    stated: the family's name in `FAMILIES` as a file states it, or None.

  Raises:
    UserError: there is no such family, or no family has the leaves.
  """
  if stated is not None and stated not in list(FAMILIES):
    raise UserError(
      f"The backbone '{source}' states the family {hugging_face.short(stated)}; only "
      f"{', '.join(FAMILIES)} are known. Take another copy, or a newer version of tpv_jax."
    )
  known = families() if stated is None else [family(str(stated))]
  for one in known:
    if one.table in leaves:
      return one
  tables = " or ".join(f"'{one.table}' ({one.name})" for one in families())
  raise UserError(
    f"The backbone '{source}' has no {tables}, so it belongs to no known family. Give "
    "another one."
  )


def of_folder(folder: files.Path) -> "Family":
  """Returns the family of a folder of Hugging Face, by the model_type in its config.

  Raises:
    UserError: no family reads this model_type.
  """
  kind = hugging_face.read_json(folder, hugging_face.CONFIG).get("model_type")
  read: dict[str, str] = {}
  for one in families():
    if isinstance(kind, str) and kind in one.model_types:
      return one
    read |= one.model_types
  known = " and ".join(f"'{name}' ({what})" for name, what in read.items())
  raise UserError(
    f"'{folder / hugging_face.CONFIG}' has the model_type {hugging_face.short(kind)}"
    f"{_why_not(kind)}; only {known} can be read. Choose one of these."
  )


def of_gguf(file: gguf.File) -> tuple["Family", "Config", dict[str, Leaf]]:
  """Returns the family of a GGUF file, its config, and its leaves by T5X path.

  Raises:
    UserError: no family reads this architecture, or the file does not fit it.
  """
  architecture = file.text("general.architecture")
  for one in families():
    if architecture in one.gguf:
      return one, *one.gguf[architecture](file)
  known = ", ".join(name for one in families() for name in one.gguf)
  raise UserError(
    f"'{file.shown}' states general.architecture {hugging_face.short(architecture)}"
    f"{_why_not(architecture)}; only {known} can be read. Choose one of these."
  )


def _why_not(kind: object) -> str:
  """Returns the reason why models of a kind are not read, if a family states one."""
  reasons = (one.not_read.get(kind) for one in families() if isinstance(kind, str))
  reason = next(filter(None, reasons), None)
  return "" if reason is None else f" ({reason})"


def sizes() -> dict[str, tuple["Family", Mapping[str, Any]]]:
  """Returns the public sizes of all families: name -> (family, numbers)."""
  return {name: (one, one.sizes[name]) for one in families() for name in one.sizes}

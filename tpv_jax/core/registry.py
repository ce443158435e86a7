"""Entries of registries: they are named by place, so that listing them imports nothing."""

import importlib
from collections.abc import Mapping
from typing import Any


def entry(place: str) -> Any:
  """Returns what 'module:attribute' names, after importing the module."""
  module, attribute = place.split(":")
  return getattr(importlib.import_module(module), attribute)


def find(
  entries: Mapping[str, str], name: str, kind: str, plural: str, hint: str = ""
) -> Any:
  """Returns the entry of that name.

  Args:
    entries: name -> place.
    name: what the user asks for.
    kind: what an entry is.
    plural: what several are.
    hint: follows the list of names in the refusal.

  Raises:
    UserError: there is none; near misses are named.
  """
  if name not in entries:
    # The facade imports this module, and nothing else before it is used.
    from tpv_jax.core.errors import UserError, near_misses

    raise UserError(
      f"There is no {kind} '{name}'.{near_misses(name, entries)} The {plural} are "
      f"{', '.join(entries)}{hint}."
    )
  return entry(entries[name])

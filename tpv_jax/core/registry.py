"""How a registry's entries are named, so that listing them imports nothing."""

import importlib
from typing import Any


def entry(place: str) -> Any:
  """Returns what 'module:attribute' names, its module imported now."""
  module, attribute = place.split(":")
  return getattr(importlib.import_module(module), attribute)

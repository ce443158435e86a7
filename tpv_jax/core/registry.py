"""Entries of registries: they are named by place, so that listing them imports nothing."""

import importlib
from typing import Any


def entry(place: str) -> Any:
  """Returns what 'module:attribute' names, after importing the module."""
  module, attribute = place.split(":")
  return getattr(importlib.import_module(module), attribute)

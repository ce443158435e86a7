"""The prompt methods: one line for each, with the file of its NumPy half."""

import functools
from collections.abc import Collection
from typing import TYPE_CHECKING

from tpv_jax.core.registry import entry

if TYPE_CHECKING:
  from tpv_jax.prompts.protocol import Method

METHODS = {
  "plain": "tpv_jax.prompts.methods:PLAIN",
  "ept": "tpv_jax.prompts.methods:EPT_AND_DEPT",
}
"""Name -> module:attribute of a `protocol.Method`, imported when it is asked for."""


@functools.cache
def method(name: str) -> "Method":
  """Returns the method of that name."""
  found: Method = entry(METHODS[name])
  return found


def methods() -> list["Method"]:
  """Returns all of them."""
  return [method(name) for name in METHODS]


def of_leaves(leaves: Collection[str]) -> "Method | None":
  """Returns the method whose prompts have leaves of these names, None if none has."""
  return next((one for one in methods() if one.rows in leaves), None)


def groups() -> dict[str, str]:
  """Returns the group of learning rates of each leaf of every method."""
  return {leaf: group for one in methods() for leaf, group in one.groups.items()}

"""The prompt methods: one line for each, naming its NumPy half."""

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
"""Name -> module:attribute of a `protocol.Method`, imported on first use."""


@functools.cache
def method(name: str) -> "Method":
  """Returns the method of that name."""
  found: Method = entry(METHODS[name])
  return found


def methods() -> list["Method"]:
  """Returns all methods."""
  return [method(name) for name in METHODS]


def of_leaves(leaves: Collection[str]) -> "Method | None":
  """Returns the method that leaves of these names belong to, None if there is none."""
  return next((one for one in methods() if one.rows in leaves), None)


def groups() -> dict[str, str]:
  """Returns leaf -> group of learning rates, for the leaves of all methods."""
  return {leaf: group for one in methods() for leaf, group in one.groups.items()}

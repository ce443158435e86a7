"""What a merge rule is."""

from collections.abc import Sequence
from typing import Any, ClassVar, Protocol, runtime_checkable

import numpy as np
from jaxtyping import Float, Float64

from tpv_jax.core.checks import Share

Shares = Share | Sequence[Share]
"""An option that is one share for all vectors, or one for each in their order."""


@runtime_checkable
class Rule(Protocol):
  """What all rules have; a rule extends one of the three kinds below.

  A rule is a frozen dataclass. Its fields are its options with their defaults, and the
  fields' annotations are checked where the options are given (`registry.with_options`);
  its `__post_init__` raises `UserError` for options that contradict each other. The first
  line of its docstring is what `tpv merge --list` says of it.

  Attributes:
    source: the paper, and what it is called there; or 'ours'.
    number: how many vectors it takes, None for one or more.
    weighted: whether it takes a weight for each vector.
    ordered: whether another order of the vectors, with their weights, gives another
      result.
    linear: whether, with these options, the result is sum_i c_i v_i: then its terms are
      those of the vectors times the coefficients.
  """

  __dataclass_fields__: ClassVar[dict[str, Any]]
  source: ClassVar[str]
  number: ClassVar[int | None] = None
  weighted: ClassVar[bool] = False
  ordered: ClassVar[bool] = False

  @property
  def linear(self) -> bool:
    """See the class."""
    return False


@runtime_checkable
class CoefficientRule(Rule, Protocol):
  """A rule whose result is sum_i c_i v_i, with coefficients from lengths and angles."""

  @property
  def linear(self) -> bool:
    """See `Rule`."""
    return True

  def coefficients(
    self, gram: Float64[np.ndarray, "N N"], weights: Float64[np.ndarray, " N"]
  ) -> Float64[np.ndarray, " N"]:
    """Returns the coefficient of each vector.

    Args:
      gram: the inner products of the vectors over all their values; none of them is 0.
      weights: all 1 where the user gives none.

    Raises:
      UserError: these vectors or weights cannot be merged so.
    """
    ...


@runtime_checkable
class LeafRule(Rule, Protocol):
  """A rule that merges each leaf of the vectors by itself, by elements or as matrices.

  Unless it is `ordered`, it is given the vectors in the order of their digests, so that
  their order cannot change a bit.
  """

  def merged(
    self,
    leaves: Sequence[Float[np.ndarray, "P D"]],
    weights: Float64[np.ndarray, " N"],
    keys: Sequence[str],
  ) -> Float64[np.ndarray, "P D"]:
    """Returns the merged leaf, computed in fp64.

    Args:
      leaves: one leaf of each vector, in fp32; no vector is 0, but this leaf may be.
      weights: all 1 where the user gives none.
      keys: the digest of each vector and the name of the leaf, from which a rule that
        draws random numbers makes its seeds.

    Raises:
      UserError: these vectors or weights cannot be merged so.
    """
    ...


@runtime_checkable
class PromptRule(Rule, Protocol):
  """A rule that makes one prompt of several prompts, and no vector."""

  def joined(
    self, prompts: Sequence[Float[np.ndarray, "_ D"]]
  ) -> Float[np.ndarray, "Q D"]:
    """Returns the values of the prompt.

    Raises:
      UserError: these prompts cannot be joined.
    """
    ...


def each(option: float | Sequence[float], number: int) -> tuple[float, ...]:
  """Returns the value of an option for each vector."""
  return (option,) * number if isinstance(option, int | float) else tuple(option)


def total(leaves: Sequence[Float[np.ndarray, "P D"]]) -> Float64[np.ndarray, "P D"]:
  """Returns the sum of the leaves in fp64, one leaf at a time."""
  found = np.zeros(leaves[0].shape)
  for leaf in leaves:
    found += leaf
  return found

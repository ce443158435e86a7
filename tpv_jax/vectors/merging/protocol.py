"""What a merge rule is."""

from typing import Any, ClassVar, Protocol, runtime_checkable

import numpy as np
from jaxtyping import Float64


@runtime_checkable
class Rule(Protocol):
  """A rule whose result is sum_i c_i v_i, with coefficients from lengths and angles.

  A rule is a frozen dataclass that extends this class. Its fields are its options with
  their defaults, and its `__post_init__` raises `UserError` for an option that cannot be.
  The first line of its docstring is what `tpv merge --list` says of it. Since the result
  is linear, its terms are those of the vectors times the coefficients.

  Attributes:
    source: the paper, and what it is called there; or 'ours'.
    number: how many vectors it takes, None for one or more.
    weighted: whether it takes a weight for each vector.
    ordered: whether another order of the vectors gives another result.
  """

  __dataclass_fields__: ClassVar[dict[str, Any]]
  source: ClassVar[str]
  number: ClassVar[int | None] = None
  weighted: ClassVar[bool] = False
  ordered: ClassVar[bool] = False

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

"""A prompt or vector in memory, with the operators of the algebra."""

import dataclasses
import math
import numbers
from typing import Any

from tpv_jax.core.errors import UserError
from tpv_jax.vectors.arithmetic import Leaves
from tpv_jax.vectors.provenance import Provenance


@dataclasses.dataclass(frozen=True, repr=False)
class Loaded:
  """A prompt or vector in memory: fp32 leaves, their provenance, a name for messages.

  The operators call `algebra`, whose refusals hold: `v + w` and `v - w` add vectors
  (`sum_vectors`), `-v`, `2 * v` and `v / 2` scale one, `prompt - initial` is the vector
  between two prompts (`diff`), and `initial + v` is the same as `v.on(initial)` (`apply`).
  A sum of more than two is rounded once by `sum_vectors`, after each `+` here.
  """

  leaves: Leaves
  provenance: Provenance
  name: str = "a value in memory"

  __array_ufunc__ = None  # So NumPy's numbers leave `np.float32(2) * v` to this class.

  def on(self, initial: "Loaded", coefficient: float = 1.0) -> "Loaded":
    """Returns the prompt initial + coefficient * self.

    Raises:
      UserError: this is a prompt, or `initial` a vector, or they do not belong together;
        see `algebra.apply`.
    """
    from tpv_jax.vectors import algebra

    if not isinstance(initial, Loaded):
      raise UserError(
        f"A vector is put on a prompt in memory, not on {initial!r:.80}. Load it first: "
        "tpv.load(RUN, which='initial')."
      )
    return algebra.apply(self, initial, coefficient)

  def __add__(self, other: Any) -> "Loaded":
    """Returns the sum of two vectors, or a vector applied to a prompt."""
    return self._plus(other, 1.0)

  def __radd__(self, other: Any) -> "Loaded":
    """Returns 0 + self, which is how Python's `sum` begins."""
    return self if isinstance(other, int) and other == 0 else NotImplemented

  def __sub__(self, other: Any) -> "Loaded":
    """Returns the difference of two vectors or of two prompts."""
    from tpv_jax.vectors import algebra

    if isinstance(other, Loaded) and self._is_prompt and other._is_prompt:
      return algebra.diff(self, other)
    return self._plus(other, -1.0)

  def __neg__(self) -> "Loaded":
    """Returns the negated vector."""
    from tpv_jax.vectors import algebra

    return algebra.negate(self)

  def __mul__(self, factor: Any) -> "Loaded":
    """Returns the vector times a number."""
    from tpv_jax.vectors import algebra

    if not isinstance(factor, numbers.Real) or isinstance(factor, bool):
      return NotImplemented
    return algebra.scale(self, float(factor))

  __rmul__ = __mul__

  def __truediv__(self, divisor: Any) -> "Loaded":
    """Returns the vector divided by a number."""
    if not isinstance(divisor, numbers.Real) or isinstance(divisor, bool):
      return NotImplemented
    return self * (1 / float(divisor) if divisor else math.inf)

  @property
  def _is_prompt(self) -> bool:
    return self.provenance.kind == "prompt"

  def _plus(self, other: Any, sign: float) -> "Loaded":
    from tpv_jax.vectors import algebra

    if not isinstance(other, Loaded):
      return NotImplemented
    if self._is_prompt and not other._is_prompt:
      return algebra.apply(other, self, sign)
    return algebra.sum_vectors([self, other], [1.0, sign])

  def __repr__(self) -> str:
    """Returns one line: what it is, its shapes, its norm and its backbone."""
    from tpv_jax.vectors import description

    return description.line(self)

  def _repr_html_(self) -> str:
    """Returns the table that a notebook shows."""
    from tpv_jax.core import tables
    from tpv_jax.vectors import description

    return tables.html(description.rows(self))

"""What a prompt method is to the model, the runners and the vectors."""

from collections.abc import Mapping
from typing import Any, Protocol, runtime_checkable

import numpy as np

from tpv_jax.prompts.equations import Folded


@runtime_checkable
class Stated(Protocol):
  """What a saved prompt says of itself; `vectors.provenance.Provenance` says it."""

  @property
  def alpha(self) -> float | None:
    """Numerator of the low-rank update's scale, None if there is none or it is unknown."""


@runtime_checkable
class Saved(Protocol):
  """A prompt from a file; `vectors.algebra.Loaded` is one."""

  @property
  def leaves(self) -> Mapping[str, np.ndarray]:
    """Its parameters, or what they fold to."""

  @property
  def provenance(self) -> Stated:
    """What it states of itself."""

  @property
  def name(self) -> str:
    """For messages."""


Start = np.ndarray | Saved
"""What a run begins with: a prompt [P, D] in fp32, or one from a file."""


@runtime_checkable
class SoftPrompt(Protocol):
  """A prompt method: a Flax module whose parameters are all that is trained.

  Called, it returns what its parameters do to an encoder.
  """

  def __call__(self) -> Folded:
    """Returns the folded prompt."""

  def initial_leaves(self, start: Start, seed: int) -> dict[str, np.ndarray]:
    """Returns the parameters (fp32) that training starts from.

    Raises:
      UserError: `start` does not fit.
    """

  def provenance(self, initial: Mapping[str, np.ndarray]) -> dict[str, Any]:
    """Returns what `Provenance` says of a prompt that starts from these parameters."""

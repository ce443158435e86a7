"""What a prompt method is to the model, the runners and the vectors."""

import inspect
from collections.abc import Collection, Mapping
from typing import Any, Protocol, runtime_checkable

import numpy as np

from tpv_jax.core.errors import UserError
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
class Method(Protocol):
  """The NumPy half of a prompt method, which the vectors' room knows it by.

  What a method's prompts do must not depend on the source: they are folded once a step in
  training, once a prompt in evaluation and banks, and vectors are differences of what
  they fold to. One that reads the source (ATTEMPT's attention over prompts) is refused
  by `refuse_source_reading`.

  Attributes:
    names: what the provenance of its prompts may state as `method`.
    module: 'module:attribute' of its Flax module, a `SoftPrompt`.
    space: 'effective' if its parameters are what it does, otherwise 'factor'.
    rows: the leaf [S, D] that stands before a source; by it its files are told.
    groups: each leaf -> the group of learning rates that it belongs to.
  """

  names: tuple[str, ...]
  module: str
  space: str
  rows: str
  groups: Mapping[str, str]

  def name_of(self, leaves: Collection[str]) -> str | None:
    """Returns which of `names` leaves with these names are, None if they can't tell."""

  def shapes(self, found: Mapping[str, tuple[int, ...]]) -> dict[str, tuple[int, ...]]:
    """Returns the shapes that all leaves of one prompt must have, told by those found."""

  def fold(self, leaves: Mapping[str, np.ndarray], alpha: float | None) -> Folded:
    """Returns what the parameters do, computed in fp64 and rounded to fp32 once."""


@runtime_checkable
class SoftPrompt(Protocol):
  """The Flax half of a prompt method: a module whose parameters are what is trained.

  Called, it returns what its parameters do to a source. Their logical axes are named with
  `param_with_axes`; 'prompt_embed' is the one that is cut along the mesh's `model`.

  Attributes:
    length: rows that stand before a source.
    features: D, width of the backbone's tokens.
  """

  length: int
  features: int

  def init(self, rngs: Any) -> Any:
    """Returns fresh `params` and their logical axes, `params_axes` (Flax)."""

  def apply(self, variables: Any) -> Any:
    """Returns the folded prompt of these parameters (Flax)."""

  def __call__(self) -> Folded:
    """Returns the folded prompt."""

  def initial_leaves(self, start: Start, seed: int) -> dict[str, np.ndarray]:
    """Returns the parameters (fp32) that training starts from.

    Raises:
      UserError: `start` does not fit.
    """

  def provenance(self, initial: Mapping[str, np.ndarray]) -> dict[str, Any]:
    """Returns what `Provenance` says of a prompt that starts from these parameters."""


def refuse_source_reading(prompt: SoftPrompt) -> None:
  """Raises `UserError` for a prompt module that is called with anything, as a source."""
  asked = [
    name
    for name, one in inspect.signature(prompt.__call__).parameters.items()
    if one.default is one.empty
    and one.kind not in (one.VAR_POSITIONAL, one.VAR_KEYWORD)
  ]
  if asked:
    raise UserError(
      f"The prompt method {type(prompt).__name__} reads '{asked[0]}' when it is called, so "
      "what it does depends on the source and can't be folded: training, banks, "
      "evaluation and vectors have no road for it. Take only methods whose __call__ reads "
      "nothing but their parameters."
    )

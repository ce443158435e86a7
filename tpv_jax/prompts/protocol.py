"""The protocols of a prompt method, as the model, the runners and the vectors use it."""

import inspect
from collections.abc import Collection, Mapping
from typing import Any, Protocol, runtime_checkable

import numpy as np

from tpv_jax.core.errors import UserError
from tpv_jax.prompts.equations import Folded


@runtime_checkable
class Stated(Protocol):
  """What a saved prompt states of itself, such as `vectors.provenance.Provenance`."""

  @property
  def alpha(self) -> float | None:
    """The numerator of the low-rank update's scale; None if there is none or unknown."""


@runtime_checkable
class Saved(Protocol):
  """A prompt from a file, such as `vectors.loaded.Loaded`."""

  @property
  def leaves(self) -> Mapping[str, np.ndarray]:
    """Its parameters, or the folded prompt."""

  @property
  def provenance(self) -> Stated:
    """What the file states of the prompt."""

  @property
  def name(self) -> str:
    """Its name in messages."""


Start = np.ndarray | Saved
"""What a run starts from: a prompt [P, D] in fp32, or a prompt from a file."""


@runtime_checkable
class Method(Protocol):
  """The NumPy half of a prompt method, which vectors and file formats use.

  What a prompt does must not depend on the source, because prompts are folded: once a step
  in training, once a prompt in evaluation; and vectors are differences of folded prompts
  (docs/methods.md, "Folding"). A method that reads the source, such as ATTEMPT's attention
  over prompts, is refused by `refuse_source_reading`.

  Attributes:
    names: the values of `method` in the provenance of its prompts.
    module: 'module:attribute' of its Flax module, a `SoftPrompt`.
    space: 'effective' if its parameters are the folded prompt, otherwise 'factor'.
    rows: the leaf [S, D] that is prepended to a source; it identifies the method's files.
    groups: leaf -> the group of learning rates that it belongs to.
  """

  names: tuple[str, ...]
  module: str
  space: str
  rows: str
  groups: Mapping[str, str]

  def name_of(self, leaves: Collection[str]) -> str | None:
    """Returns which of `names` has leaves of these names, None if several have."""

  def shapes(self, found: Mapping[str, tuple[int, ...]]) -> dict[str, tuple[int, ...]]:
    """Returns the shapes that all leaves of a prompt must have, given those found."""

  def fold(self, leaves: Mapping[str, np.ndarray], alpha: float | None) -> Folded:
    """Returns the folded prompt, computed in fp64 and rounded to fp32 once."""


@runtime_checkable
class SoftPrompt(Protocol):
  """The Flax half of a prompt method: a module whose parameters are trained.

  A call returns the folded prompt. The parameters' logical axes are named with
  `param_with_axes`; 'prompt_embed' is the one that is sharded over the mesh's `model` axis.

  Attributes:
    length: rows that are prepended to a source.
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
    """Returns the fields of `Provenance` for a prompt that starts from these parameters."""


def refuse_source_reading(prompt: SoftPrompt) -> None:
  """Raises `UserError` if a call of the prompt module needs an argument, as a source."""
  asked = [
    name
    for name, one in inspect.signature(prompt.__call__).parameters.items()
    if one.default is one.empty
    and one.kind not in (one.VAR_POSITIONAL, one.VAR_KEYWORD)
  ]
  if asked:
    raise UserError(
      f"The prompt method {type(prompt).__name__} reads '{asked[0]}' when it is called, so "
      "what it does depends on the source and can't be folded, as training, banks, "
      "evaluation and vectors need it. Use a method whose __call__ reads only its "
      "parameters."
    )

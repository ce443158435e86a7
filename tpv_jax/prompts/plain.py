"""The plain soft prompt of prompt tuning (Lester et al. 2021), and any folded prompt.

docs/methods.md, "Prompt tuning".
"""

from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn
from flax.linen.partitioning import param_with_axes
from jaxtyping import Array, Float

from tpv_jax.core.checks import Size, SizeOrNone, check_fields
from tpv_jax.core.errors import UserError
from tpv_jax.prompts.equations import Folded
from tpv_jax.prompts.protocol import Start


class Prompt(nn.Module):
  """One trainable matrix `prompt` [P, D] in fp32, and optionally a `delta` [M, D].

  By default the prompt starts uniform in [-0.5, 0.5), (1.3). `tpv_jax.training.initial` has
  the starts that need the embedding table.

  Attributes:
    length: P, the number of rows.
    features: D, the width of the backbone.
    source_length: M, the length of the longest source, for a prompt that also updates the
      source's embeddings, the form that DePT and EPT prompts fold to; 0 for one that does
      not.
  """

  length: Size
  features: Size
  source_length: SizeOrNone = 0

  def __post_init__(self) -> None:
    super().__post_init__()
    check_fields(self)

  @nn.compact
  def __call__(self) -> Folded:
    """Returns the folded prompt, which for this method is the parameters themselves."""
    shape = (self.length, self.features)
    prompt = param_with_axes("prompt", uniform, shape, axes=("prompt", "embed"))
    if not self.source_length:
      return Folded(jnp.asarray(prompt))
    delta = param_with_axes(
      "delta",
      nn.initializers.zeros,
      (self.source_length, self.features),
      axes=("source_position", "embed"),
    )
    return Folded(jnp.asarray(prompt), jnp.asarray(delta))

  def initial_leaves(self, start: Start, seed: int) -> dict[str, np.ndarray]:
    """Returns the parameters (fp32) that training starts from; `seed` is not used.

    Raises:
      UserError: the leaves or shapes of `start` are not those of this prompt.
    """
    del seed
    given = {"prompt": start} if isinstance(start, np.ndarray) else start.leaves
    leaves = Folded.of(given).leaves()
    shapes = {"prompt": (self.length, self.features)}
    if self.source_length:
      shapes["delta"] = (self.source_length, self.features)
      leaves.setdefault("delta", np.zeros(shapes["delta"]))
    elif "delta" in leaves:
      raise UserError(
        "The initial prompt also updates the source's embeddings (its delta), which a plain "
        f"prompt does not do. Set plain.Prompt.source_length to "
        f"{len(leaves['delta'])} to train both, or train an EPT prompt (ept.gin)."
      )
    found = {name: leaf.shape for name, leaf in leaves.items()}
    if found != shapes:
      raise UserError(
        f"The initial prompt has {found}; this run needs {shapes} (tokens, width). Set "
        "PROMPT_LENGTH to the prompt's length, or take a prompt made on this backbone."
      )
    return {name: np.asarray(leaf, np.float32) for name, leaf in leaves.items()}

  def provenance(self, initial: Mapping[str, np.ndarray]) -> dict[str, Any]:
    """Returns no fields of `Provenance`: its defaults describe a plain prompt."""
    del initial
    return {}


def uniform(rng: Array, shape: tuple[int, int], *_: Any) -> Float[Array, "P D"]:
  """Returns a matrix uniform in [-0.5, 0.5)."""
  return jax.random.uniform(rng, shape, jnp.float32, minval=-0.5, maxval=0.5)

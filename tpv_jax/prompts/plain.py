"""The plain soft prompt of prompt tuning (Lester et al. 2021)."""

import jax
import jax.numpy as jnp
from flax import linen as nn
from flax.linen.partitioning import param_with_axes
from jaxtyping import Array, Float


class Prompt(nn.Module):
  """One trainable matrix `prompt` [P, D] in fp32, and nothing else.

  Untold otherwise it starts uniform in [-0.5, 0.5); `tpv_jax.prompts.initial` has the
  other starts, which need the embedding table.

  Attributes:
    length: P, the number of rows.
    features: D, the width of the backbone.
  """

  length: int
  features: int

  @nn.compact
  def __call__(self) -> Float[Array, "P D"]:
    """Returns the folded prompt, which for this kind is the matrix itself."""
    shape = (self.length, self.features)
    return jnp.asarray(
      param_with_axes("prompt", _uniform, shape, axes=("prompt", "embed"))
    )


def _uniform(rng: Array, shape: tuple[int, int]) -> Float[Array, "P D"]:
  return jax.random.uniform(rng, shape, jnp.float32, minval=-0.5, maxval=0.5)

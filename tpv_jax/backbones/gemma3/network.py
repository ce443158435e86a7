"""The network of Gemma 3, text only.

It differs from LLaMA in its norms, of which the leaf is what they add to 1, and which stand
before and behind both blocks, and on queries and keys; in GeGLU (tanh) and in the factor of
queries. Embedded tokens are rows of the table times sqrt(D), so prompts live in that space.
Most layers see a window only; each `full_period`-th sees everything, with other rotary
frequencies.
"""

import jax.numpy as jnp
from flax import linen as nn
from flax.linen.partitioning import param_with_axes
from jaxtyping import Array, Float

from tpv_jax.backbones.decoder_stack import CausalNetwork, Config, Reach
from tpv_jax.backbones.layers import normal
from tpv_jax.core.checks import Positive, Size


class Norm(nn.Module):
  """Division by the root mean square, and a factor of 1 + `scale`, both in fp32."""

  dtype: str
  epsilon: float = 1e-6
  axis: str = "embed"

  @nn.compact
  def __call__(self, x: Float[Array, "... D"]) -> Float[Array, "... D"]:
    scale = param_with_axes(
      "scale", nn.initializers.zeros, (x.shape[-1],), jnp.float32, axes=(self.axis,)
    )
    # What is stored is rounded, and not the sum, which would lose small numbers.
    factor = 1.0 + scale.astype(self.dtype).astype(jnp.float32)
    return (normal(x, self.epsilon) * factor).astype(self.dtype)


class Gemma3(CausalNetwork):
  """A decoder of the Gemma 3 family; see `CausalNetwork`.

  Attributes:
    rope_theta: base of the rotary frequencies of layers that see everything.
    rope_divisors: head_dim / 2 numbers by which those frequencies are divided, or none.
    local_rope_theta: base of the frequencies of the other layers.
    window: how many positions those see, their own included.
    full_period: each layer of such a number, counted from 1, sees everything.
    query_scalar: queries are divided by its square root.
    norm_epsilon: added to mean squares.
  """

  logits_via_embedding: bool = True
  rope_theta: Positive = 1_000_000.0
  rope_divisors: tuple[float, ...] = ()
  local_rope_theta: Positive = 10_000.0
  window: Size = 512
  full_period: Size = 6
  query_scalar: Positive = 256.0
  norm_epsilon: Positive = 1e-6

  @property
  def embedding_scale(self) -> float:
    """The factor between a row of the table and an embedded token: sqrt(D)."""
    return float(self.emb_dim**0.5)

  @nn.nowrap
  def layer_config(self) -> Config:
    """Returns what the layers share: Gemma's norms and GeGLU."""
    return Config.of(
      self,
      norm=Norm,
      norm_epsilon=self.norm_epsilon,
      activation="gelu",
      query_scale=self.query_scalar**-0.5,
      qk_norm=True,
      post_norms=True,
    )

  @nn.nowrap
  def reaches(self) -> tuple[Reach, ...]:
    """Returns the reach of each layer."""
    near = Reach(self.local_rope_theta, window=self.window)
    far = Reach(self.rope_theta, self.rope_divisors)
    return tuple(
      near if number % self.full_period else far
      for number in range(1, self.num_layers + 1)
    )

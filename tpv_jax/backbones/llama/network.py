"""The network of LLaMA and its relatives.

LLaMA 2, 3 and 3.1, SmolLM2 and DeepSeek-LLM are one network with different numbers. Qwen 2.5
adds biases to queries, keys and values, Qwen 3 norms of queries and keys; Mistral is the
same within its window. Queries are divided by sqrt(head_dim); T5X's network of the same
parameter tree does not divide them, and has no rotary positions.
"""

from flax import linen as nn

from tpv_jax.backbones.decoder_stack import CausalNetwork, Config, Reach
from tpv_jax.backbones.layers import LayerNorm
from tpv_jax.core.checks import Positive


class Llama(CausalNetwork):
  """A decoder of the LLaMA family; see `CausalNetwork`.

  Attributes:
    rope_theta: base of the rotary frequencies.
    rope_divisors: head_dim / 2 numbers by which the frequencies are divided (scaling of
      LLaMA 3.1 and others), or none.
    norm_epsilon: added to mean squares.
    attention_bias: whether queries, keys and values have biases (Qwen 2.5).
    qk_norm: whether queries and keys have norms (Qwen 3).
  """

  rope_theta: Positive = 10_000.0
  rope_divisors: tuple[float, ...] = ()
  norm_epsilon: Positive = 1e-5
  attention_bias: bool = False
  qk_norm: bool = False

  @nn.nowrap
  def layer_config(self) -> Config:
    """Returns what the layers share: LLaMA's norms and SwiGLU."""
    return Config.of(
      self,
      norm=LayerNorm,
      norm_epsilon=self.norm_epsilon,
      activation="silu",
      query_scale=self.head_dim**-0.5,
      attention_bias=self.attention_bias,
      qk_norm=self.qk_norm,
    )

  @nn.nowrap
  def reaches(self) -> tuple[Reach, ...]:
    """Returns the reach of each layer: all before it, turned alike."""
    return (Reach(self.rope_theta, self.rope_divisors),) * self.num_layers

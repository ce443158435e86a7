"""The layers that all families share, with T5X's parameter names and axes."""

import functools
import operator
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn
from flax.linen.partitioning import param_with_axes
from jaxtyping import Array, Float, Int

from tpv_jax.backbones import quantization
from tpv_jax.backbones.protocol import AnyArray
from tpv_jax.backbones.quantization import Quantized

_fan_in_truncated = nn.initializers.variance_scaling(1.0, "fan_in", "truncated_normal")


ACTIVATIONS: dict[str, Callable[[Array], Array]] = {
  "relu": jax.nn.relu,
  "gelu": functools.partial(jax.nn.gelu, approximate=True),
  "silu": jax.nn.silu,
  "linear": lambda x: x,
}


class Dense(nn.Module):
  """A linear map over the last axis, with its kernel stored as a matrix.

  Factors are in `dtype`; so is the result, unless `to_fp32` asks for fp32. A kernel that is
  frozen may be quantised.
  """

  features: int
  axes: tuple[str, str]
  dtype: str
  kernel_init: Any = _fan_in_truncated
  to_fp32: bool = False
  use_bias: bool = False

  @nn.compact
  def __call__(self, x: Float[Array, "... inputs"]) -> Float[Array, "... outputs"]:
    kernel = param_with_axes(
      "kernel",
      self.kernel_init,
      (x.shape[-1], self.features),
      jnp.float32,
      axes=self.axes,
    )
    x = x.astype(self.dtype)
    if isinstance(kernel, Quantized):
      y = quantization.multiply(x, kernel)
    elif self.to_fp32:
      y = project_to_fp32(x, kernel.astype(self.dtype))
    else:
      y = jnp.dot(x, kernel.astype(self.dtype))
    if self.use_bias:
      bias = param_with_axes(
        "bias", nn.initializers.zeros, (self.features,), jnp.float32, axes=self.axes[1:]
      )
      y = y + bias.astype(y.dtype)
    return y


class LayerNorm(nn.Module):
  """The norm of T5 and LLaMA: division by the root mean square (in fp32) and a scale."""

  dtype: str
  epsilon: float = 1e-6
  axis: str = "embed"

  @nn.compact
  def __call__(self, x: Float[Array, "... D"]) -> Float[Array, "... D"]:
    scale = param_with_axes(
      "scale", nn.initializers.ones, (x.shape[-1],), jnp.float32, axes=(self.axis,)
    )
    return normal(x, self.epsilon).astype(self.dtype) * scale.astype(self.dtype)


def normal(x: Float[Array, "... D"], epsilon: float) -> Float[Array, "... D"]:
  """Returns `x` over its root mean square, in fp32."""
  x = x.astype(jnp.float32)
  mean_square = jnp.mean(jnp.square(x), axis=-1, keepdims=True)
  return x * jax.lax.rsqrt(mean_square + epsilon)


class Embed(nn.Module):
  """The token table [V, D], used for input and, where logits are tied to it, for output.

  Attributes:
    vocab_size: V.
    features: D.
    dtype: of the computation.
    first_id: the id of the first row.
    logits_scale: a factor of tied logits.
    stddev: of fresh parameters.
  """

  vocab_size: int
  features: int
  dtype: str
  first_id: int = 0
  logits_scale: float = 1.0
  stddev: float = 1.0

  def setup(self) -> None:
    self.embedding = param_with_axes(
      "embedding",
      nn.initializers.normal(stddev=self.stddev),
      (self.vocab_size, self.features),
      jnp.float32,
      axes=("vocab", "embed"),
    )

  def __call__(self, tokens: Int[Array, "B T"]) -> Float[Array, "B T D"]:
    """Returns the rows of the tokens.

    An id below `first_id` (padding) gives the first row, one above the table NaN.
    """
    rows = jnp.maximum(tokens - self.first_id, 0)
    return jnp.take(self.embedding, rows, axis=0).astype(self.dtype)

  def attend(self, x: Float[Array, "... D"]) -> Float[Array, "... V"]:
    """Returns the tied logits `x @ embedding.T * logits_scale` in fp32.

    Both factors are in `dtype`, the sums are fp32.
    """
    table = self.embedding.astype(self.dtype)
    logits = project_to_fp32(x.astype(self.dtype), table.T)
    return logits if self.logits_scale == 1.0 else logits * self.logits_scale


@jax.custom_vjp
def project_to_fp32(
  x: Float[AnyArray, "... inputs"], kernel: Float[AnyArray, "inputs outputs"]
) -> Float[Array, "... outputs"]:
  """Returns `x @ kernel` in fp32, for two factors of one dtype.

  The backward pass multiplies in that dtype as well: JAX's own would convert the kernel to
  fp32 for it (benchmarks/NOTES.md).
  """
  return jnp.dot(x, kernel, preferred_element_type=jnp.float32)


def _project_forward(x: Any, kernel: Any) -> tuple[Array, tuple[Any, Any]]:
  return project_to_fp32(x, kernel), (x, kernel)


def _project_backward(kept: tuple[Any, Any], gradient: Array) -> tuple[Array, Array]:
  x, kernel = kept
  # d(x W) = g W^T for x and x^T g for W, both products in the factors' dtype.
  gradient = gradient.astype(x.dtype)
  return jnp.dot(gradient, kernel.T), jnp.einsum("...i,...o->io", x, gradient)


project_to_fp32.defvjp(_project_forward, _project_backward)


class Mlp(nn.Module):
  """The feed-forward block: the product of its activated branches, mapped back to D."""

  mlp_dim: int
  activations: Sequence[str]
  dropout_rate: float
  dtype: str

  @nn.compact
  def __call__(
    self, x: Float[Array, "B joined D"], deterministic: bool
  ) -> Float[Array, "B joined D"]:
    features = x.shape[-1]
    branches = []
    for number, activation in enumerate(self.activations):
      name = "wi" if len(self.activations) == 1 else f"wi_{number}"
      branch = Dense(self.mlp_dim, ("embed", "mlp"), self.dtype, name=name)(x)
      branches.append(ACTIVATIONS[activation](branch))
    x = functools.reduce(operator.mul, branches)
    x = nn.Dropout(self.dropout_rate, broadcast_dims=(-2,))(
      x, deterministic=deterministic
    )
    return Dense(features, ("mlp", "embed"), self.dtype, name="wo")(x)

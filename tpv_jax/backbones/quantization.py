"""Frozen weights in 8 or 4 bits, unpacked where they are multiplied.

Quantised are the kernels of linear maps, in which nearly all parameters are; embeddings,
the output layer, norms and biases stay as they are (as in QLoRA, Dettmers et al. 2023):

    int8  a scale for each output: 8 bits a weight
    int4  a scale for each `GROUP` inputs of an output: 4.5 bits with bf16 scales
    nf4   the same, with 16 levels that suit normal weights (QLoRA, appendix E)

Scales are chosen by the largest magnitude and kept in the dtype of the computation. `qwix`
(extra 'quantize') makes the numbers and unpacks them.
"""

import dataclasses
import functools
import importlib
import math
from collections.abc import Iterable, Mapping
from typing import Annotated, Any

import jax
import jax.numpy as jnp
from flax import struct
from jaxtyping import Array, Float

from tpv_jax.backbones.protocol import Network
from tpv_jax.core.checks import OneOf
from tpv_jax.core.errors import UserError

BITS: Mapping[str, int] = {"int8": 8, "int4": 4, "nf4": 4}
"""Mode -> bits of a weight, without its scale."""

Mode = Annotated[str, OneOf(tuple(BITS))]

GROUP = 32
"""The inputs of an output that share a scale in 4 bits; fewer where 32 divides no axis."""


@struct.dataclass
class Quantized:
  """A quantised kernel; among parameters it is one leaf, in the place of the kernel.

  Attributes:
    values: [inputs, outputs], int8 or int4; uint4 numbers of levels for nf4.
    scales: [groups, outputs], in the dtype of the computation; one group for int8.
    mode: a key of `BITS`.
  """

  values: Any
  scales: Any
  mode: str = struct.field(pytree_node=False)

  @property
  def shape(self) -> tuple[int, ...]:
    """Returns the kernel's."""
    return tuple(self.values.shape)

  @property
  def ndim(self) -> int:
    """Returns the kernel's number of axes."""
    return len(self.values.shape)

  @property
  def dtype(self) -> Any:
    """Returns the dtype in which it is unpacked."""
    return self.scales.dtype


def bits(dtype: Any) -> int:
  """Returns the bits of a value on an accelerator; a CPU keeps at least eight."""
  return (
    4 if jnp.dtype(dtype) in (jnp.int4, jnp.uint4) else 8 * jnp.dtype(dtype).itemsize
  )


def mode_of(network: Any) -> str | None:
  """Returns how a network's frozen kernels are stored; None if they are not quantised."""
  mode: str | None = getattr(network, "quantize", None)
  return mode


def check(network: Any) -> None:
  """Raises `UserError` if a network is to be quantised and qwix is missing."""
  if mode_of(network) is not None:
    _qwix()


def is_quantized(path: str) -> bool:
  """Returns whether a mode applies to the leaf at a path: a kernel, but no output layer.

  An output layer is named as in T5X.
  """
  *_, module, leaf = ("", *path.split("/"))
  return leaf == "kernel" and module != "logits_dense"


def refuse_training(network: Any, paths: Iterable[str]) -> None:
  """Raises `UserError` if one of the leaves that are trained is to be quantised."""
  mode = mode_of(network)
  found = [path for path in paths if mode is not None and is_quantized(path)]
  if found:
    raise UserError(
      f"TRAINABLE trains '{found[0]}', which QUANTIZE = '{mode}' quantises; such a leaf "
      "stays as it is. Set QUANTIZE = None, or TRAINABLE = 'prompt/.*'."
    )


def stored(network: Network, path: str, leaf: Any) -> Any:
  """Returns a frozen leaf as the network keeps it on the devices.

  Args:
    network: chooses the dtype and the mode.
    path: of the leaf.
    leaf: an array in any floating dtype, or one that is quantised already.

  Raises:
    UserError: it is quantised in another mode than the network's, or qwix is missing.
  """
  mode = mode_of(network) if is_quantized(path) else None
  if isinstance(leaf, Quantized):
    if leaf.mode != mode:
      raise UserError(
        f"The backbone's leaf '{path}' is {leaf.mode} and the network has QUANTIZE = "
        f"{mode!r}. Load the backbone for this network."
      )
    return leaf
  leaf = leaf.astype(network.stored(path, leaf.dtype))
  return leaf if mode is None else quantize(leaf, mode, network.dtype)


def quantized_on_host(network: Network, path: str, leaf: Any) -> Any:
  """Returns a leaf quantised, with NumPy arrays, if the network says so."""
  if mode_of(network) is None or not is_quantized(path):
    return leaf
  return jax.device_get(stored(network, path, leaf))


def quantize(kernel: Any, mode: str, dtype: Any) -> Quantized:
  """Returns the kernel [inputs, outputs] in a mode, with scales in `dtype`.

  Rounding is done in fp32.

  Raises:
    UserError: qwix is missing.
  """
  _qwix()
  return _quantized(kernel, mode, jnp.dtype(dtype))


@functools.partial(jax.jit, static_argnums=(1, 2))
def _quantized(kernel: Any, mode: str, dtype: Any) -> Quantized:
  groups = {} if mode == "int8" else {0: math.gcd(GROUP, kernel.shape[0])}
  made = _qwix().quantize(
    kernel.astype(jnp.float32),
    mode,
    channelwise_axes=(1,),
    tiled_axes=groups,
    scale_dtype=dtype,
  )
  return Quantized(made.qvalue, made.scale, mode)


def unpacked(kernel: Quantized) -> Any:
  """Returns the kernel [inputs, outputs] in the dtype of its scales."""
  qwix = _qwix()
  made = qwix.QArray(kernel.values, kernel.scales, qtype=kernel.mode)
  if kernel.mode != "nf4":
    return qwix.dequantize(made)
  # qwix flattens an array to look up levels, which would gather one that is cut over
  # devices; a column alone is flat already.
  return jax.vmap(qwix.dequantize, in_axes=1, out_axes=1)(made)


@jax.custom_vjp
def multiply(
  x: Float[Array, "... inputs"], kernel: Quantized
) -> Float[Array, "... outputs"]:
  """Returns `x @ kernel` in the dtype of `x`; gradients flow to `x` only.

  The kernel is unpacked for each product and again in the backward pass: only its few bits
  are kept in between.
  """
  return _product(x, kernel, 0)


def _product(x: Any, kernel: Quantized, axis: int) -> Any:
  """Returns the product of the last axis of `x` with an axis of the kernel."""
  # Without the barrier XLA may unpack a kernel once for the whole step, and keep it.
  x, kernel = jax.lax.optimization_barrier((x, kernel))
  kernel = dataclasses.replace(kernel, scales=kernel.scales.astype(x.dtype))
  dimensions = (((x.ndim - 1,), (axis,)), ((), ()))
  return jax.lax.dot_general(x, unpacked(kernel), dimensions)


def _forward(x: Any, kernel: Quantized) -> tuple[Any, Quantized]:
  return multiply(x, kernel), kernel


def _backward(kernel: Quantized, gradient: Any) -> tuple[Any, None]:
  return _product(gradient, kernel, 1), None


multiply.defvjp(_forward, _backward)


def _qwix() -> Any:
  """Returns the library.

  Raises:
    UserError: it is not installed.
  """
  try:
    return importlib.import_module("qwix")
  except ImportError as error:
    raise UserError(
      f"QUANTIZE needs the library qwix, which is not installed ({error}): pip install "
      "qwix, or tpv_jax with its extra 'quantize'. Or set QUANTIZE = None."
    ) from error

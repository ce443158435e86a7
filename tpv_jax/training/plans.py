"""What each chip would hold of a backbone of a public size; nothing is computed or placed."""

import dataclasses
import functools
import math
from typing import Any, NamedTuple

import jax
import numpy as np
from jax.sharding import AbstractMesh

from tpv_jax.backbones import quantization, registry
from tpv_jax.core.errors import UserError, near_misses
from tpv_jax.devices import partitioning
from tpv_jax.model import PROMPT, SoftPromptModel
from tpv_jax.prompts import budget, plain
from tpv_jax.prompts.ept import EPT


@dataclasses.dataclass(frozen=True)
class Leaf:
  """One parameter on a mesh.

  Attributes:
    path: its T5X path.
    shape: of the whole parameter.
    axes: logical names of its axes.
    cut: the mesh axis that splits each axis, or None.
    share: the shape of the part that one chip holds.
    size: bytes of that part as it is stored, 4 bits packed.
  """

  path: str
  shape: tuple[int, ...]
  axes: tuple[str, ...]
  cut: tuple[str | None, ...]
  share: tuple[int, ...]
  size: int


class Plan(NamedTuple):
  """The parameters on a mesh.

  Attributes:
    leaves: every parameter.
    kept_whole: a line for each axis that is not split because its size does not divide.
  """

  leaves: list[Leaf]
  kept_whole: list[str]


@dataclasses.dataclass(frozen=True)
class Planned:
  """A backbone of a public size with a prompt.

  Attributes:
    size: the backbone's, in `registry.sizes`.
    storage: dtype of computation and frozen backbone.
    quantize: how its kernels are stored; None in `storage`.
    prompt_length: P.
    ept: an EPT prompt with the budget of a plain one of P tokens, as ept.gin makes it,
      instead of the plain one.
    short_length: S of the EPT prompt.
    source_length: M of the EPT prompt, and T.

  Raises:
    UserError: no such size.
  """

  size: str
  storage: str = "bfloat16"
  quantize: str | None = None
  prompt_length: int = 100
  ept: bool = False
  short_length: int = 40
  source_length: int = 256

  def __post_init__(self) -> None:
    sizes = registry.sizes()
    if self.size not in sizes:
      raise UserError(
        f"There is no size '{self.size}'.{near_misses(self.size, sizes)} The sizes are "
        f"{', '.join(sizes)}."
      )

  @property
  def layers(self) -> dict[str, int]:
    """How many layers each stack has, by the names of the network's arguments."""
    return {
      name: number
      for name, number in registry.sizes()[self.size][1].items()
      if name.startswith("num_") and name.endswith("layers")
    }

  def model(self, **layers: int) -> SoftPromptModel:
    """Returns the model, with other numbers of layers if they are given.

    Raises:
      UserError: there is no such prompt.
    """
    family, numbers = registry.sizes()[self.size]
    chosen = {**numbers, **layers, "dtype": self.storage}
    if self.quantize is not None:
      chosen["quantize"] = self.quantize
    features = numbers["emb_dim"]
    prompt: plain.Prompt | EPT = plain.Prompt(self.prompt_length, features)
    if self.ept:
      fusion_width, spaces, bottleneck = 4, 4, 1
      rank = budget.rank(
        *(self.prompt_length, self.short_length, features, self.source_length),
        *(fusion_width, spaces, bottleneck),
      )
      prompt = EPT(
        *(self.short_length, features, self.source_length, rank),
        *(fusion_width, spaces, bottleneck),
      )
    return SoftPromptModel(family.network(**chosen), prompt, None, None)

  def on(self, data: int, model: int) -> Plan:
    """Returns the parameters on a mesh of data x model chips."""
    layout = _layout(dataclasses.replace(self, quantize=None), data, model)
    network = self.model().network
    return Plan(
      [
        Leaf(
          path=path,
          shape=leaf.shape,
          axes=layout.axes[path],
          cut=tuple(leaf.sharding.spec),
          share=leaf.sharding.shard_shape(leaf.shape),
          size=_size(network, path, leaf),
        )
        for path, leaf in layout.parameters.items()
      ],
      layout.kept_whole,
    )


@functools.cache
def _layout(planned: Planned, data: int, model: int) -> partitioning.Layout:
  mesh = AbstractMesh((data, model), (partitioning.DATA, partitioning.MODEL))
  return partitioning.layout(planned.model(), mesh)


def _size(network: Any, path: str, leaf: jax.ShapeDtypeStruct) -> int:
  """Returns the bytes of a chip's share of a leaf; a trained one is fp32."""
  mode = quantization.mode_of(network)
  parts: list[Any] = [leaf]
  if mode is not None and quantization.is_quantized(path):
    parts = jax.tree.leaves(_quantized(leaf.shape, mode, network.dtype))
  elif not path.startswith(f"{PROMPT}/"):
    parts = [jax.ShapeDtypeStruct(leaf.shape, network.stored(path, leaf.dtype))]
  shares = [
    partitioning.that_fits(leaf.sharding, part.shape).shard_shape(part.shape)
    for part in parts
  ]
  return sum(
    math.prod(share) * quantization.bits(part.dtype) // 8
    for part, share in zip(parts, shares, strict=True)
  )


@functools.cache
def _quantized(shape: tuple[int, ...], mode: str, dtype: str) -> quantization.Quantized:
  """Returns the shapes of a quantised kernel."""
  kernel = jax.ShapeDtypeStruct(shape, np.float32)
  return jax.eval_shape(lambda one: quantization.quantize(one, mode, dtype), kernel)

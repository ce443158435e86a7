"""What a training step costs on chips that are not here: flops, memory and seconds.

A step is traced with shapes alone. `cost` measures one where it runs.
"""

import dataclasses
import math
from collections.abc import Callable, Mapping
from typing import Any

import jax
import numpy as np
from jax.extend import core

from tpv_jax.core import identity
from tpv_jax.data import batches
from tpv_jax.model import PROMPT, SoftPromptModel

UTILISATION = 0.4
"""The part of a chip's peak flops that a step is taken to reach (ours; large T5 and LLaMA
training runs report 0.35 to 0.55)."""


@dataclasses.dataclass(frozen=True)
class Chip:
  """A kind of chip, and the machine of them that plans are made for.

  Attributes:
    machine: its name.
    mesh: data x model chips of that machine.
    memory: bytes of each chip.
    flops: bf16 operations a second at its peak, dense.
    bandwidth: bytes a second between the chip and its memory.
  """

  machine: str
  mesh: tuple[int, int]
  memory: int
  flops: float
  bandwidth: float


CHIPS: Mapping[str, Chip] = {
  "h100": Chip("one H100 SXM", (1, 1), 80 * 10**9, 989e12, 3.35e12),
  "v5e": Chip("v5e-8", (2, 4), 16 * 10**9, 197e12, 819e9),
  "v5p": Chip("v5p-8", (4, 1), 95 * 10**9, 459e12, 2_765e9),
}
"""Published numbers: NVIDIA's data sheet of the H100 (SXM5, without sparsity), and Google
Cloud's pages "TPU v5e" and "TPU v5p". v5e-8 is eight chips; v5p-8 is four, as that name
counts their two cores."""


@dataclasses.dataclass(frozen=True)
class Work:
  """What a training step does on all its rows, over all chips.

  Attributes:
    flops: of matrix products, forward and backward.
    kept: bytes that the forward pass keeps for the backward pass, without parameters. XLA
      may compute some of them again instead, so that this is the most.
  """

  flops: int
  kept: int


@dataclasses.dataclass(frozen=True)
class Step:
  """A training step on chips.

  Attributes:
    parts: how often the rows of a chip are split so that they fit (MICROBATCHES); None if
      not even one row fits.
    kept: bytes of a chip that one part keeps, at most: as if arrays were cut over 'data'
      only.
    seconds: at `UTILISATION` of the peak, or as long as the memory takes to give the
      backbone to the forward and the backward pass, if that is longer. Without the time
      that chips wait for each other.
  """

  parts: int | None
  kept: float
  seconds: float


def step(work: Work, chip: Chip, mesh: tuple[int, int], rows: int, held: int) -> Step:
  """Returns the step on a mesh of chips, data x model.

  Args:
    work: of all rows.
    chip: one of the mesh.
    mesh: data x model.
    rows: in a batch.
    held: bytes of backbone and prompts on a chip.
  """
  data, model = mesh
  kept = work.kept / data
  own = max(1, rows // data)
  fitting = [
    parts
    for parts in range(1, own + 1)
    if own % parts == 0 and held + kept / parts <= chip.memory
  ]
  parts = fitting[0] if fitting else None
  return Step(
    parts,
    kept / (parts or own),
    max(
      work.flops / (data * model * chip.flops * UTILISATION),
      2 * (parts or own) * held / chip.bandwidth,
    ),
  )


def work(
  build: Callable[..., SoftPromptModel],
  layers: Mapping[str, int],
  rows: int,
  source: int,
  target: int,
  backward: bool = True,
) -> Work:
  """Returns the work of a step on `rows` examples of these lengths in tokens.

  The gradient with respect to the prompt is traced with shapes; nothing is computed.
  Networks of one and of two layers are traced, because all layers of a stack do the same.

  Args:
    build: takes the number of layers of each stack and returns a model.
    layers: how many there are, by the names of `build`.
    rows: examples.
    source: T.
    target: L.
    backward: False counts the forward pass alone, as of an evaluation.
  """

  def traced(**more: int) -> np.ndarray:
    model = build(**{name: more.get(name, 1) for name in layers})
    return np.array(_traced(model, rows, source, target, backward))

  once = traced()
  total = once + sum(
    ((number - 1) * (traced(**{name: 2}) - once) for name, number in layers.items()),
    start=np.zeros_like(once),
  )
  return Work(*map(int, total))


def _traced(
  model: SoftPromptModel, rows: int, source: int, target: int, backward: bool = True
) -> tuple[int, int]:
  """Returns flops and kept bytes of a step, or of its forward pass."""
  batch = batches.features(
    np.ones((rows, source), np.int32), np.ones((rows, target), np.int32)
  )
  variables = jax.eval_shape(lambda: model.get_initial_variables(jax.random.key(0), {}))
  params = identity.flatten(variables["params"])
  trained = {
    path: leaf for path, leaf in params.items() if path.startswith(f"{PROMPT}/")
  }
  frozen = {
    path: jax.ShapeDtypeStruct(leaf.shape, model.network.stored(path, leaf.dtype))
    for path, leaf in params.items()
    if path not in trained
  }

  def loss(trained: Any, frozen: Any) -> Any:
    return model.loss_sums(model.merge(trained, frozen), batch)[0]

  if not backward:
    return _flops(jax.make_jaxpr(loss)(trained, frozen).jaxpr), 0

  def pulled_back(trained: Any, frozen: Any) -> Any:
    return jax.vjp(lambda trained: loss(trained, frozen), trained)[1]

  step = jax.make_jaxpr(lambda t, f: pulled_back(t, f)(np.float32(1)))(trained, frozen)
  shapes = {leaf.shape for leaf in params.values()}
  kept = sum(
    math.prod(leaf.shape) * leaf.dtype.itemsize
    for leaf in jax.tree.leaves(jax.eval_shape(pulled_back, trained, frozen))
    if leaf.shape not in shapes
  )
  return _flops(step.jaxpr), kept


def _flops(jaxpr: core.Jaxpr) -> int:
  """Returns the operations of all matrix products whose results are used."""
  total, used = 0, {id(one) for one in jaxpr.outvars}
  for equation in reversed(jaxpr.eqns):
    if not used & {id(one) for one in equation.outvars}:
      continue
    used |= {id(one) for one in equation.invars}
    if equation.primitive.name == "dot_general":
      (contracted, _), _ = equation.params["dimension_numbers"]
      left: Any = equation.invars[0].aval
      made: Any = equation.outvars[0].aval
      summed = math.prod(left.shape[axis] for axis in contracted)
      total += 2 * summed * math.prod(made.shape)
    inner = [_flops(one) for one in _inner(equation.params)]
    if inner:
      total += equation.params.get("length", 1) * (
        max(inner) if equation.primitive.name == "cond" else sum(inner)
      )
  return total


def _inner(parameters: Mapping[str, Any]) -> list[core.Jaxpr]:
  """Returns the programs inside an equation's parameters."""
  values = [
    one
    for value in parameters.values()
    for one in (value if isinstance(value, tuple | list) else (value,))
  ]
  return [
    one.jaxpr if isinstance(one, core.ClosedJaxpr) else one
    for one in values
    if isinstance(one, core.ClosedJaxpr | core.Jaxpr)
  ]

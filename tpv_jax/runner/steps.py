"""The compiled parts of a run: several training steps in one call, and validation sums.

Both call the model's own members; nothing about the loss is said here.
"""

import functools
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import struct
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from jaxtyping import Array, Float

from tpv_jax import identity, partitioning
from tpv_jax.errors import UserError
from tpv_jax.model import SoftPromptModel
from tpv_jax.optimizers import LearningRate
from tpv_jax.runner import processes

INPUT_SHAPES = {
  "encoder_input_tokens": (1, 1),
  "decoder_input_tokens": (1, 1),
  "decoder_target_tokens": (1, 1),
}
"""Enough for `get_initial_variables`: no parameter depends on the shapes of a batch."""

Leaves = dict[str, Any]
"""Parameters, their shapes or their shardings by path, as in 'prompt/prompt'."""


@struct.dataclass
class TrainState:
  """What a step changes: nothing here belongs to the frozen backbone.

  Also a tree of their shapes or shardings, so the fields are not annotated as arrays.

  Attributes:
    step: int32 scalar, steps done.
    trainable: `Leaves`, fp32.
    optimizer: the optimizer's state over `trainable`.
  """

  step: Any
  trainable: Any
  optimizer: Any


class Steps(NamedTuple):
  """The compiled functions of a run and the shardings of what they take."""

  initialise: Callable[[Leaves], TrainState]
  train: Callable[..., tuple[TrainState, dict[str, Array]]]
  validate: Callable[[Leaves, Leaves, dict[str, Any]], dict[str, Any]]
  param_shardings: Mapping[str, NamedSharding]
  batch_sharding: NamedSharding


@functools.lru_cache(maxsize=32)
def build(
  model: SoftPromptModel, learning_rate: LearningRate, microbatches: int, mesh: Mesh
) -> Steps:
  """Returns the compiled steps; the same arguments give the same compiled functions."""
  shapes = jax.eval_shape(
    lambda: model.get_initial_variables(jax.random.key(0), INPUT_SHAPES)
  )
  param_shardings = identity.flatten(
    partitioning.param_shardings(shapes["params_axes"], mesh, shapes["params"])
  )
  trainable_shapes, _ = model.split(shapes["params"])
  trainable_shardings = {path: param_shardings[path] for path in trainable_shapes}
  replicated = partitioning.replicated(mesh)

  def initialise(trainable: Leaves) -> TrainState:
    return TrainState(
      step=jnp.zeros((), jnp.int32),
      trainable=trainable,
      optimizer=model.optimizer_def.init(trainable),
    )

  state_shapes = jax.eval_shape(initialise, trainable_shapes)
  # Moments lie as their parameters do; factored or scalar ones are replicated.
  optimizer_shardings = optax.tree.map_params(
    model.optimizer_def,
    lambda moment, parameter, sharding: (
      sharding if moment.shape == parameter.shape else replicated
    ),
    state_shapes.optimizer,
    trainable_shapes,
    trainable_shardings,
    transform_non_params=lambda _: replicated,
  )
  state_shardings = state_shapes.replace(
    step=replicated, trainable=trainable_shardings, optimizer=optimizer_shardings
  )

  def loss(
    trainable: Leaves, frozen: Leaves, batch: dict[str, Array], rng: Array
  ) -> tuple[Float[Array, ""], tuple[Float[Array, ""], Any]]:
    params = model.merge(trainable, frozen)
    loss_sum, weight_sum, metrics = model.loss_sums(params, batch, rng)
    return loss_sum, (weight_sum, metrics)

  def one_step(
    state: TrainState, batch: dict[str, Array], frozen: Leaves, rng: Array
  ) -> tuple[TrainState, dict[str, Array]]:
    gradient = jax.grad(loss, has_aux=True)

    def accumulate(sums: Any, part: tuple[Array, dict[str, Array]]) -> tuple[Any, None]:
      index, microbatch = part
      new = gradient(
        state.trainable, frozen, microbatch, jax.random.fold_in(rng, index)
      )
      return jax.tree.map(jnp.add, sums, new), None

    rng = jax.random.fold_in(rng, state.step)
    parts = jax.tree.map(
      lambda x: x.reshape(
        x.shape[0] // microbatches, microbatches, *x.shape[1:]
      ).swapaxes(0, 1),
      batch,
    )  # Rows are dealt out in turn, so that each device keeps its own.
    one = jax.tree.map(lambda x: x[0], parts)
    zeros = jax.tree.map(
      lambda x: jnp.zeros(x.shape, x.dtype),
      jax.eval_shape(gradient, state.trainable, frozen, one, rng),
    )
    (gradients, (weight, metrics)), _ = jax.lax.scan(
      accumulate, zeros, (jnp.arange(microbatches), parts)
    )
    gradients = jax.tree.map(lambda g: g / jnp.maximum(weight, 1.0), gradients)
    direction, optimizer = model.optimizer_def.update(
      gradients, state.optimizer, state.trainable
    )
    rate = jnp.asarray(learning_rate(state.step), jnp.float32)
    trainable = jax.tree.map(lambda p, d: p + rate * d, state.trainable, direction)
    report = {name: metric.compute() for name, metric in metrics.items()}
    report |= {"gradient_norm": optax.tree.norm(gradients), "learning_rate": rate}
    report["finite_parameters"] = jnp.all(
      jnp.stack([jnp.all(jnp.isfinite(leaf)) for leaf in trainable.values()])
    )
    return TrainState(state.step + 1, trainable, optimizer), report

  def train(
    state: TrainState, frozen: Leaves, batches: dict[str, Array], rng: Array
  ) -> tuple[TrainState, dict[str, Array]]:
    return jax.lax.scan(
      lambda state, batch: one_step(state, batch, frozen, rng), state, batches
    )

  def validate(trainable: Leaves, frozen: Leaves, batch: dict[str, Array]) -> Any:
    return model.eval_fn(model.merge(trainable, frozen), batch)[1]

  return Steps(
    initialise=jax.jit(initialise, out_shardings=state_shardings),
    train=jax.jit(train, donate_argnums=0, out_shardings=(state_shardings, replicated)),
    validate=jax.jit(validate, out_shardings=replicated),
    param_shardings=param_shardings,
    batch_sharding=partitioning.batch_sharding(mesh),
  )


def put_batches(steps: Steps, batches: list[dict[str, np.ndarray]]) -> dict[str, Array]:
  """Returns the batches of one call on the devices, stacked to [steps, B, ...]."""
  sharding = NamedSharding(
    steps.batch_sharding.mesh, PartitionSpec(None, partitioning.DATA)
  )
  stacked = {name: np.stack([batch[name] for batch in batches]) for name in batches[0]}
  return processes.put_all(stacked, sharding)


def check_batch_size(batch_size: int, microbatches: int, mesh: Mesh) -> None:
  """Raises `UserError` where a batch divides neither over microbatches nor devices."""
  rows = mesh.shape["data"] * microbatches
  if batch_size % rows:
    raise UserError(
      f"A batch of {batch_size} rows does not divide over {mesh.shape['data']} data-"
      f"parallel devices x {microbatches} microbatches. Choose a multiple of {rows}."
    )

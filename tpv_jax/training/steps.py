"""The compiled parts of a run: several training steps in one call, and validation sums.

Both call the model's own methods; nothing about the loss is defined here.
"""

import contextlib
import functools
from collections.abc import Callable, Iterator, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import struct
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from jax.stages import Wrapped
from jaxtyping import Array, Float

from tpv_jax.core import identity
from tpv_jax.core.errors import UserError
from tpv_jax.devices import partitioning, processes
from tpv_jax.model import Metrics, SoftPromptModel, divisor
from tpv_jax.training.optimizers import LearningRate

Leaves = dict[str, Any]
"""Parameters, their shapes or their shardings by path, as in 'prompt/prompt'."""


@struct.dataclass
class TrainState:
  """What a step changes; nothing here belongs to the frozen backbone.

  Such trees also hold shapes or shardings, so the fields are not annotated as arrays.

  Attributes:
    step: int32 scalar, the number of steps done.
    trainable: `Leaves`, fp32.
    optimizer: the optimizer's state over `trainable`.
  """

  step: Any
  trainable: Any
  optimizer: Any


class Steps(NamedTuple):
  """The compiled functions of a run and the shardings of what they take."""

  initialise: Wrapped  # (trainable) -> state
  train: Wrapped  # (state, frozen, batches, rng) -> (state, metrics by step)
  validate: Wrapped  # (trainable, frozen, batch) -> metrics
  param_shardings: Mapping[str, NamedSharding]
  batch_sharding: NamedSharding
  kept_whole: list[str]  # see `partitioning.Layout`


@functools.lru_cache(maxsize=32)
def build(
  model: SoftPromptModel, learning_rate: LearningRate, microbatches: int, mesh: Mesh
) -> Steps:
  """Returns the compiled steps; the same arguments give the same compiled functions."""
  layout = partitioning.layout(model, mesh)
  trainable, _ = model.split(identity.unflatten(layout.parameters))
  replicated = partitioning.replicated(mesh)

  initialise = functools.partial(fresh_state, model.optimizer_def)

  def train(
    state: TrainState, frozen: Leaves, batches: dict[str, Array], rng: Array
  ) -> tuple[TrainState, dict[str, Array]]:
    def one_step(
      state: TrainState, batch: dict[str, Array]
    ) -> tuple[TrainState, dict[str, Array]]:
      step_rng = jax.random.fold_in(rng, state.step)
      gradients, metrics = _gradients(
        model, state.trainable, frozen, batch, microbatches, step_rng
      )
      rate = jnp.asarray(learning_rate(state.step), jnp.float32)
      state = descend(model.optimizer_def, state, gradients, rate)
      report = {name: metric.compute() for name, metric in metrics.items()}
      report |= {"gradient_norm": optax.tree.norm(gradients), "learning_rate": rate}
      report["finite_parameters"] = jnp.all(
        jnp.stack([jnp.all(jnp.isfinite(leaf)) for leaf in state.trainable.values()])
      )
      return state, report

    with partitioning.axis_rules(mesh, layout.rules):
      return jax.lax.scan(one_step, state, batches)

  def validate(trainable: Leaves, frozen: Leaves, batch: dict[str, Array]) -> Any:
    with partitioning.axis_rules(mesh, layout.rules):
      return model.eval_fn(model.merge(trainable, frozen), batch)[1]

  shardings = state_shardings(
    model.optimizer_def, jax.eval_shape(initialise, trainable), trainable, replicated
  )
  return Steps(
    initialise=jax.jit(initialise, out_shardings=shardings),
    train=jax.jit(train, donate_argnums=0, out_shardings=(shardings, replicated)),
    validate=jax.jit(validate, out_shardings=replicated),
    param_shardings={p: leaf.sharding for p, leaf in layout.parameters.items()},
    batch_sharding=partitioning.batch_sharding(mesh),
    kept_whole=layout.kept_whole,
  )


def fresh_state(
  transformation: optax.GradientTransformation, trainable: Leaves
) -> TrainState:
  """Returns the state before the first step."""
  return TrainState(
    step=jnp.zeros((), jnp.int32),
    trainable=trainable,
    optimizer=transformation.init(trainable),
  )


def state_shardings(
  transformation: optax.GradientTransformation,
  state: TrainState,
  trainable: Leaves,
  replicated: NamedSharding,
) -> TrainState:
  """Returns the state's shardings: moments like their parameters, all else replicated.

  A factored moment is cut along those axes of its parameter that it still has.
  """

  def as_parameter(moment: Any, parameter: Any) -> NamedSharding:
    axes = partitioning.axes_of_moment(
      moment.shape, parameter.shape, tuple(parameter.sharding.spec)
    )
    return NamedSharding(replicated.mesh, PartitionSpec(*(axes or ())))

  optimizer = optax.tree.map_params(
    transformation,
    as_parameter,
    state.optimizer,
    trainable,
    transform_non_params=lambda _: replicated,
  )
  own = {path: parameter.sharding for path, parameter in trainable.items()}
  return TrainState(step=replicated, trainable=own, optimizer=optimizer)


def _gradients(
  model: SoftPromptModel,
  trainable: Leaves,
  frozen: Leaves,
  batch: dict[str, Array],
  microbatches: int,
  rng: Array,
) -> tuple[Leaves, Metrics]:
  """Returns the gradients of the mean loss, docs/methods.md, (6.4), and the metrics.

  Microbatches run one after the other; sums are accumulated, not means.
  """
  # 1. Fold the prompt once, (3.12); the loss is differentiated by what it folds to.
  folded, back = model.fold_once(trainable, frozen)

  def loss(
    folded: Any, microbatch: dict[str, Array], rng: Array
  ) -> tuple[Float[Array, ""], tuple[Float[Array, ""], Metrics]]:
    prompt, others = folded
    params = model.merge(others, frozen)
    loss_sum, weight_sum, metrics = model.loss_sums(params, microbatch, rng, prompt)
    return loss_sum, (weight_sum, metrics)

  gradient = jax.grad(loss, has_aux=True)

  def accumulate(sums: Any, part: tuple[Array, dict[str, Array]]) -> tuple[Any, None]:
    index, microbatch = part
    new = gradient(folded, microbatch, jax.random.fold_in(rng, index))
    return jax.tree.map(jnp.add, sums, new), None

  # 2. Add up losses, weights and gradients over the microbatches.
  parts = jax.tree.map(
    lambda x: x.reshape(
      x.shape[0] // microbatches, microbatches, *x.shape[1:]
    ).swapaxes(0, 1),
    batch,
  )  # Microbatches take rows in turn, so that each device keeps its own.
  one = jax.tree.map(lambda x: x[0], parts)
  zeros = jax.tree.map(
    lambda x: jnp.zeros(x.shape, x.dtype), jax.eval_shape(gradient, folded, one, rng)
  )
  (gradients, (weight, metrics)), _ = jax.lax.scan(
    accumulate, zeros, (jnp.arange(microbatches), parts)
  )
  # 3. Divide by the weights of the whole batch, and go back to the parameters once.
  mean = jax.tree.map(lambda g: g / divisor(weight), gradients)
  return back(mean), metrics


def descend(
  transformation: optax.GradientTransformation,
  state: TrainState,
  gradients: Leaves,
  rate: Float[Array, ""],
) -> TrainState:
  """Returns the state after one step of length `rate` in the optimizer's direction."""
  direction, optimizer = transformation.update(
    gradients, state.optimizer, state.trainable
  )
  trainable = jax.tree.map(lambda p, d: p + rate * d, state.trainable, direction)
  return TrainState(state.step + 1, trainable, optimizer)


def put_batches(steps: Steps, batches: list[dict[str, np.ndarray]]) -> dict[str, Array]:
  """Returns the batches of one call on the devices, stacked to [steps, B, ...]."""
  sharding = NamedSharding(
    steps.batch_sharding.mesh, PartitionSpec(None, partitioning.DATA)
  )
  stacked = {name: np.stack([batch[name] for batch in batches]) for name in batches[0]}
  return processes.put_all(stacked, sharding)


@contextlib.contextmanager
def compilations() -> Iterator[Callable[[], int]]:
  """Yields a function that returns how many programs JAX has compiled since entry."""
  count = 0

  def hear(event: str, duration_secs: float, **_: Any) -> None:
    nonlocal count
    count += event == "/jax/core/compile/backend_compile_duration"

  jax.monitoring.register_event_duration_secs_listener(hear)
  try:
    yield lambda: count
  finally:
    jax.monitoring.unregister_event_duration_listener(hear)


def check_batch_size(batch_size: int, microbatches: int, mesh: Mesh) -> None:
  """Raises `UserError` unless a batch divides over the microbatches and devices."""
  rows = mesh.shape["data"] * microbatches
  if batch_size % rows:
    raise UserError(
      f"A batch of {batch_size} rows does not divide over {mesh.shape['data']} data-"
      f"parallel devices x {microbatches} microbatches. Choose a multiple of {rows}."
    )

"""The compiled parts of training a bank: many prompts at once on one frozen backbone.

Each prompt's loss is the mean over its own target tokens. The sum of all losses is
differentiated: since no prompt's loss depends on another's parameters, each prompt gets
the gradient that it would get alone (docs/methods.md, (7.1)). The optimizer is `vmap`ped
over the bank, so that clipping by a global norm, Adafactor's factored moments, schedules
and weight decay act on each prompt alone. A prompt without examples in a step keeps its
parameters and its state.
"""

import contextlib
import dataclasses
import functools
from collections.abc import Callable, Iterable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import struct
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from jax.stages import Wrapped
from jaxtyping import Array, Bool, Float

from tpv_jax.backbones.protocol import AnyArray
from tpv_jax.core import identity
from tpv_jax.core.errors import UserError
from tpv_jax.data import row_shapes
from tpv_jax.data.batches import Features
from tpv_jax.devices import partitioning, processes
from tpv_jax.model import PROMPT, Batch, SoftPromptModel, divisor
from tpv_jax.prompts.equations import Folded
from tpv_jax.training.optimizers import LearningRate
from tpv_jax.training.steps import (
  Leaves,
  TrainState,
  descend,
  fresh_state,
  state_shardings,
)


@struct.dataclass
class Sums:
  """The sums over the calls of one step, by prompt.

  Attributes:
    gradient: of the summed losses, with respect to the folded prompts.
    loss: [N] summed over target tokens, in nats.
    counts: [N] by name, see `SoftPromptModel.bank_loss_sums`.
  """

  gradient: Folded
  loss: Any
  counts: Any


class BankSteps(NamedTuple):
  """The compiled functions of a bank, and the shardings of their arguments.

  All leaves of the state, its steps included, have the bank as their leading axis.
  """

  initialise: Wrapped  # (stacked trainable leaves) -> state
  fold: Wrapped  # (stacked trainable leaves) -> Folded, [N, S, D] and [N, M, D]
  zeros: Wrapped  # (folded) -> sums
  accumulate: Wrapped  # (sums, folded, frozen, call) -> sums
  update: Wrapped  # (state, sums, rates) -> (state, report by prompt)
  measure: Wrapped  # (folded, frozen, call) -> sums by name and prompt
  stacked: Mapping[str, NamedSharding]  # of the bank's leaves
  state: TrainState  # of shardings
  whole: NamedSharding  # of the folded prompts
  by_prompt: NamedSharding  # of arrays [N, ...] with one entry per prompt
  frozen: Mapping[str, NamedSharding]
  rows: NamedSharding  # of a call's features


@functools.lru_cache(maxsize=32)
def build(
  model: SoftPromptModel,
  learning_rate: LearningRate,
  mesh: Mesh,
  shard_bank: bool = False,
) -> BankSteps:
  """Returns the compiled steps; the same arguments give the same compiled functions.

  Args:
    model: has a trainable prompt, whose form all prompts of the bank have.
    learning_rate: a schedule: step of a prompt, counted from 0, to learning rate.
    mesh: the devices.
    shard_bank: also split the bank over the data axis, whose size must divide the bank's.

  Raises:
    UserError: the model has no prompt, trains something else, or has dropout.
  """
  layout = partitioning.layout(model, mesh)
  trainable, frozen = model.split(identity.unflatten(layout.parameters))
  if model.prompt is None or any(
    not path.startswith(f"{PROMPT}/") for path in trainable
  ):
    raise UserError(
      "A bank trains prompts on one frozen backbone. Give the model a prompt, and a "
      f"'trainable' pattern that matches the prompt alone (now '{model.trainable}')."
    )
  if model.network.dropout_rate:
    raise UserError(
      "A bank trains without dropout: the prompts of a row would share its mask. Set "
      "Transformer.dropout_rate to 0."
    )
  replicated = partitioning.replicated(mesh)
  bank_axis = partitioning.DATA if shard_bank else None

  def stack(sharding: NamedSharding) -> NamedSharding:
    return NamedSharding(mesh, PartitionSpec(bank_axis, *sharding.spec))

  one = functools.partial(fresh_state, model.optimizer_def)
  shardings = jax.tree.map(
    stack,
    state_shardings(
      model.optimizer_def, jax.eval_shape(one, trainable), trainable, replicated
    ),
  )
  by_prompt = stack(replicated)
  bodies = _Bodies(
    model, learning_rate, functools.partial(partitioning.axis_rules, mesh, layout.rules)
  )
  return BankSteps(
    initialise=jax.jit(jax.vmap(one), out_shardings=shardings),
    # Replicated, as every call reads every prompt.
    fold=jax.jit(bodies.fold, out_shardings=replicated),
    zeros=jax.jit(bodies.zeros, out_shardings=by_prompt),
    accumulate=jax.jit(bodies.accumulate, donate_argnums=0, out_shardings=by_prompt),
    update=jax.jit(
      bodies.update, donate_argnums=0, out_shardings=(shardings, replicated)
    ),
    measure=jax.jit(bodies.measure, out_shardings=replicated),
    stacked=shardings.trainable,
    state=shardings,
    whole=replicated,
    by_prompt=by_prompt,
    frozen={path: leaf.sharding for path, leaf in frozen.items()},
    rows=partitioning.batch_sharding(mesh),
  )


@dataclasses.dataclass(frozen=True)
class _Bodies:
  """The functions that `build` compiles.

  Attributes:
    model: gives the form of the prompts.
    learning_rate: a schedule: step of a prompt, counted from 0, to learning rate.
    placed: the context in which logical axes are mapped to those of the mesh.
  """

  model: SoftPromptModel
  learning_rate: LearningRate
  placed: Callable[[], contextlib.AbstractContextManager[None]]

  def fold(self, trainable: Leaves) -> Folded:
    with self.placed():
      return self.model.fold_bank(identity.unflatten(trainable)[PROMPT])

  def zeros(self, folded: Folded) -> Sums:
    none = jnp.zeros(len(folded.prompt), jnp.float32)
    counts = ("target_tokens", "accuracy", "examples", "exact_match")
    return Sums(jax.tree.map(jnp.zeros_like, folded), none, dict.fromkeys(counts, none))

  def accumulate(self, sums: Sums, folded: Folded, frozen: Leaves, call: Batch) -> Sums:
    def loss(folded: Folded) -> tuple[Float[Array, ""], tuple[Any, Any]]:
      losses, counts = self._loss_sums(folded, frozen, call)
      return losses.sum(), (losses, counts)

    with self.placed():
      gradient, measured = jax.grad(loss, has_aux=True)(folded)
    return jax.tree.map(jnp.add, sums, Sums(gradient, *measured))

  def update(
    self, state: TrainState, sums: Sums, rates: Float[Array, " N"]
  ) -> tuple[TrainState, dict[str, Array]]:
    # 1. Each prompt's mean gradient, (7.1), taken back from what it folds to, (3.12).
    counted = divisor(sums.counts["target_tokens"])
    _, pull_back = jax.vjp(self.fold, state.trainable)
    (gradients,) = pull_back(
      jax.tree.map(lambda g: g / counted[:, None, None], sums.gradient)
    )
    # 2. One step of each prompt by itself, with its own step count and rate, (6.5).
    rate = rates * jax.vmap(self.learning_rate)(state.step)
    descended = jax.vmap(functools.partial(descend, self.model.optimizer_def))
    moved = descended(state, gradients, rate)
    # 3. Find prompts that are no longer finite, also folded: the product of finite
    #    factors may be infinite. They would spoil the others in their rows (0 * NaN is
    #    NaN).
    finite = _all_finite((moved.trainable, self.fold(moved.trainable)))
    # 4. These, and prompts without examples, keep their parameters and their state.
    active = (sums.counts["target_tokens"] > 0) & finite
    state = jax.tree.map(
      lambda new, old: jnp.where(active.reshape(-1, *(1,) * (new.ndim - 1)), new, old),
      moved,
      state,
    )
    return state, {
      "loss": sums.loss / counted,
      "accuracy": sums.counts["accuracy"] / counted,
      "exact_match": sums.counts["exact_match"]
      / jnp.maximum(sums.counts["examples"], 1.0),
      "gradient_norm": jax.vmap(optax.tree.norm)(gradients),
      "learning_rate": rate,
      "finite_parameters": finite,
    }

  def measure(self, folded: Folded, frozen: Leaves, call: Batch) -> dict[str, Array]:
    losses, counts = self._loss_sums(folded, frozen, call)
    return {"loss": losses, **counts}

  def _loss_sums(
    self, folded: Folded, frozen: Leaves, call: Batch
  ) -> tuple[Float[Array, " N"], dict[str, Array]]:
    return self.model.bank_loss_sums(folded, identity.unflatten(frozen), call)


def _all_finite(tree: Any) -> Bool[Array, " N"]:
  """Returns for each prompt whether all of its values in these leaves are finite."""
  return jnp.all(
    jnp.stack(
      [
        jnp.isfinite(leaf).reshape(len(leaf), -1).all(axis=1)
        for leaf in jax.tree.leaves(tree)
      ]
    ),
    axis=0,
  )


def packed_for() -> row_shapes.Device:
  """Returns what shapes of packed rows suit this machine."""
  if jax.default_backend() == "cpu":
    return row_shapes.ON_CPU
  return row_shapes.ON_ACCELERATOR


def train_step(
  steps: BankSteps,
  state: TrainState,
  frozen: Leaves,
  calls: Iterable[Features],
  rates: Float[AnyArray, " N"],
) -> tuple[TrainState, dict[str, Array]]:
  """Returns the state after one step of every prompt that has examples in `calls`.

  Args:
    steps: the compiled parts.
    state: donated, so it cannot be used again.
    frozen: the backbone's leaves on the devices.
    calls: packed features, see `data.packing.pack`.
    rates: a factor for each prompt's learning rate.

  Raises:
    UserError: an example is for a prompt that the bank does not have.
  """
  folded = steps.fold(state.trainable)
  sums = steps.zeros(folded)
  for call in calls:
    _refuse_unknown_prompts(call, len(rates))
    placed = processes.put_all(call, steps.rows)
    sums = steps.accumulate(sums, folded, frozen, placed)
  return steps.update(state, sums, rates)


def validate(
  steps: BankSteps, state: TrainState, frozen: Leaves, calls: Iterable[Features]
) -> dict[str, Float[np.ndarray, " N"]]:
  """Returns the metrics of each prompt on its examples in `calls`, as a single run would.

  `loss` and `accuracy` are means over target tokens, `exact_match` over examples; all are
  NaN for a prompt without examples.

  Args:
    steps: the compiled parts.
    state: of the bank.
    frozen: the backbone's leaves on the devices.
    calls: packed features, see `data.packing.pack`.
  """
  folded = steps.fold(state.trainable)
  found = jax.device_get(
    [
      steps.measure(folded, frozen, processes.put_all(call, steps.rows))
      for call in calls
    ]
  )
  sums: dict[str, Any] = {
    name: np.sum([one[name] for one in found], axis=0, dtype=np.float64)
    for name in found[0]
  }
  with np.errstate(invalid="ignore"):
    return {
      "loss": sums["loss"] / sums["target_tokens"],
      "accuracy": sums["accuracy"] / sums["target_tokens"],
      "exact_match": sums["exact_match"] / sums["examples"],
    }


def _refuse_unknown_prompts(call: Features, prompts: int) -> None:
  for part in ("encoder", "decoder"):
    ids = call[f"{part}_prompt_ids"]
    if ids.min() < 0 or ids.max() >= prompts:
      row = int(np.argmax(((ids < 0) | (ids >= prompts)).any(axis=1)))
      found = int(ids.min() if ids.min() < 0 else ids.max())
      raise UserError(
        f"Row {row} of a packed call has an example for prompt {found}, and the bank has "
        f"the prompts 0 to {prompts - 1}. Give `packing.items` each prompt's index in "
        "the bank."
      )

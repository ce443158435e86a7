"""An optax transformation as T5X's optimizer: state for what is trained, nothing else.

T5X asks an optimizer definition for `create` and `derive_logical_axes` and what it
creates for `state`, `target`, `apply_gradient`, `state_dict`, `restore_state` and
`replace`. Nothing of T5X is imported.
"""

import re
from collections.abc import Mapping, Sequence
from typing import Any

import flax
import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import struct
from jax.sharding import PartitionSpec
from jaxtyping import Array

from tpv_jax.core import identity
from tpv_jax.devices import partitioning

Leaves = dict[str, Any]
"""Parameters, gradients or axis names by path, as in 'prompt/prompt'."""


@struct.dataclass
class OptimizerState:
  """What a step changes beside the parameters.

  Attributes:
    step: int32 scalar, steps done.
    param_states: the transformation's state, its leaves by a name without '/'.
  """

  step: Any
  param_states: Any


@struct.dataclass
class Optimizer:
  """A definition with its state and all parameters, frozen ones included.

  Attributes:
    optimizer_def: what made it.
    state: `OptimizerState`.
    target: the nested parameters, or their shapes or axes.
  """

  optimizer_def: "TransformationOptimizer" = struct.field(pytree_node=False)
  state: OptimizerState
  target: Any

  def apply_gradient(
    self, grads: Mapping[str, Any], learning_rate: Array
  ) -> "Optimizer":
    """Returns the optimizer after one step along the transformation's direction.

    Frozen leaves are handed on as they are. Each leaf keeps the dtype it came with,
    which after T5X restored it may be float32 for a counter.
    """
    definition = self.optimizer_def
    parameters = definition.trainable_leaves(self.target)
    gradients = definition.trainable_leaves(grads)
    known = jax.eval_shape(definition.init, parameters)
    before = self.state.param_states
    state = jax.tree.unflatten(
      jax.tree.structure(known),
      [before[name].astype(leaf.dtype) for name, leaf in _named(known).items()],
    )
    direction, state = definition.update(gradients, state, parameters)
    rate = jnp.asarray(learning_rate, jnp.float32)
    moved = {
      path: (leaf + rate * direction[path]).astype(leaf.dtype)
      for path, leaf in parameters.items()
    }
    after = {
      name: leaf.astype(before[name].dtype) for name, leaf in _named(state).items()
    }
    return Optimizer(
      self.optimizer_def,
      OptimizerState((self.state.step + 1).astype(self.state.step.dtype), after),
      replace_leaves(self.target, moved),
    )

  def state_dict(self) -> dict[str, Any]:
    """Returns `{'target', 'state': {'step', 'param_states'}}`, nested and mutable."""
    return {
      "target": flax.core.unfreeze(self.target),
      "state": {
        "step": self.state.step,
        "param_states": dict(self.state.param_states),
      },
    }

  def restore_state(self, state_dict: Mapping[str, Any]) -> "Optimizer":
    """Returns the optimizer with what `state_dict` gave."""
    state = state_dict["state"]
    return Optimizer(
      self.optimizer_def,
      OptimizerState(state["step"], dict(state["param_states"])),
      flax.core.freeze(state_dict["target"]),
    )


class TransformationOptimizer:
  """Makes T5X's optimizers from an optax transformation without a learning rate."""

  def __init__(
    self,
    transformation: optax.GradientTransformation,
    trainable: str = r"prompt/.*",
    rates: Sequence[float] | None = None,
  ):
    """Keeps a transformation that gives the direction of descent (see `optimizers`).

    Args:
      transformation: for the trainable leaves by path.
      trainable: pattern that the whole path of a leaf must match, as the model's.
      rates: of a bank: by which the learning rate of each prompt is multiplied. The
        trainable leaves then have a leading axis, along which the transformation acts on
        each prompt alone.
    """
    self.transformation = transformation
    self.trainable = trainable
    self.rates = None if rates is None else np.asarray(rates, np.float32)

  def init(self, leaves: Leaves) -> Any:
    """Returns the transformation's state at step 0, of a bank one for each prompt."""
    init = self.transformation.init
    return init(leaves) if self.rates is None else jax.vmap(init)(leaves)

  def update(self, gradients: Leaves, state: Any, leaves: Leaves) -> tuple[Leaves, Any]:
    """Returns the direction of descent, times the rates of a bank, and the next state."""
    if self.rates is None:
      direction, state = self.transformation.update(gradients, state, leaves)
      return dict(direction), state
    direction, state = jax.vmap(self.transformation.update)(gradients, state, leaves)
    scaled = {
      path: leaf * self.rates.reshape(-1, *(1,) * (leaf.ndim - 1))
      for path, leaf in direction.items()
    }
    return scaled, state

  def trainable_leaves(self, params: Mapping[str, Any]) -> Leaves:
    """Returns the leaves that are trained, by path."""
    return {
      path: leaf
      for path, leaf in identity.flatten(params).items()
      if re.fullmatch(self.trainable, path)
    }

  def create(self, params: Mapping[str, Any]) -> Optimizer:
    """Returns the optimizer at step 0."""
    state = self.init(self.trainable_leaves(params))
    return Optimizer(
      self,
      OptimizerState(jnp.zeros((), jnp.int32), _named(state)),
      flax.core.freeze(params),
    )

  def derive_logical_axes(
    self, optimizer: Optimizer, param_logical_axes: Mapping[str, Any]
  ) -> Optimizer:
    """Returns the optimizer with names of axes for leaves, None where replicated.

    Moments lie as their parameters do; a factored one along the axes that are left.
    """
    shapes = self.trainable_leaves(optimizer.target)
    axes = self.trainable_leaves(param_logical_axes)
    state = jax.eval_shape(self.init, shapes)
    names = optax.tree.map_params(
      self.transformation,
      lambda moment, parameter, names: _Axes(
        partitioning.axes_of_moment(moment.shape, parameter.shape, tuple(names))
      ),
      state,
      shapes,
      axes,
      transform_non_params=lambda _: _Axes(None),
      is_leaf=lambda leaf: isinstance(leaf, PartitionSpec),
    )
    param_states = {
      name: None if leaf.names is None else PartitionSpec(*leaf.names)
      for name, leaf in _named(names).items()
    }
    return Optimizer(
      self, OptimizerState(None, param_states), flax.core.freeze(param_logical_axes)
    )


class _Axes:
  """A box around the names of axes, so that None is a leaf of a tree."""

  def __init__(self, names: Any):
    self.names = names


def replace_leaves(tree: Mapping[str, Any], leaves: Leaves) -> Any:
  """Returns the frozen nested tree with some of its leaves, by path, replaced."""
  return flax.core.freeze(identity.unflatten({**identity.flatten(tree), **leaves}))


def _named(tree: Any) -> Leaves:
  """Returns the leaves by a name without '/', which T5X refuses in keys."""
  leaves, _ = jax.tree_util.tree_flatten_with_path(tree)
  return {
    jax.tree_util.keystr(path, simple=True, separator=".").replace("/", "."): leaf
    for path, leaf in leaves
  }

"""An optax transformation as T5X's optimizer, with state for the trained leaves only.

T5X uses `create` and `derive_logical_axes` of an optimizer definition, and `state`,
`target`, `apply_gradient`, `state_dict`, `restore_state` and `replace` of the optimizer
that it creates. Nothing of T5X is imported.
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
"""Parameters, gradients or axis names by path, such as 'prompt/prompt'."""


@struct.dataclass
class OptimizerState:
  """What a step changes beside the parameters.

  Attributes:
    step: int32 scalar, the number of steps done.
    param_states: the leaves of the transformation's state, by names without '/'.
  """

  step: Any
  param_states: Any


@struct.dataclass
class Optimizer:
  """A definition with its state and all parameters, frozen ones included.

  Attributes:
    optimizer_def: the definition that made it.
    state: `OptimizerState`.
    target: the nested parameters, or their shapes or axes.
  """

  optimizer_def: "TransformationOptimizer" = struct.field(pytree_node=False)
  state: OptimizerState
  target: Any

  def apply_gradient(
    self, grads: Mapping[str, Any], learning_rate: Array
  ) -> "Optimizer":
    """Returns the optimizer after one step in the transformation's direction.

    Frozen leaves are passed through. Each leaf keeps its dtype, which may be float32 for
    a counter that T5X has restored.
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
    """Returns the optimizer with the content of a `state_dict`."""
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
      transformation: acts on the trainable leaves by path.
      trainable: a pattern that the whole path of a leaf must match, as the model's.
      rates: of a bank: a factor for each prompt's learning rate. The trainable leaves
        then have a leading axis, along which the transformation acts on each prompt
        alone.
    """
    self.transformation = transformation
    self.trainable = trainable
    self.rates = None if rates is None else np.asarray(rates, np.float32)

  def init(self, leaves: Leaves) -> Any:
    """Returns the transformation's state at step 0, in a bank one for each prompt."""
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
    """Returns the optimizer with the names of axes as leaves, None where replicated.

    Moments are partitioned like their parameters; a factored one along its remaining
    axes.
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
  """Returns name -> leaf, the names without '/', which T5X refuses in keys."""
  leaves, _ = jax.tree_util.tree_flatten_with_path(tree)
  return {
    jax.tree_util.keystr(path, simple=True, separator=".").replace("/", "."): leaf
    for path, leaf in leaves
  }

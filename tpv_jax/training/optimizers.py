"""Optimizers without a learning rate, and the schedules that give one.

T5X passes the learning rate to the optimizer at every step; in optax it is a part of the
optimizer. Here a transformation gives the direction of descent (already negated), and the
runner multiplies it by `learning_rate(step)`: docs/methods.md, (6.5). So both runners use
the same optimizers. These see trainable leaves only: the frozen backbone has no state.
"""

from collections.abc import Callable, Mapping
from typing import Any

import jax
import optax

from tpv_jax.core.checks import (
  BelowOne,
  NotNegative,
  Positive,
  Steps,
  StepsOrNone,
  checked,
)
from tpv_jax.core.errors import UserError, near_misses
from tpv_jax.prompts import registry

LearningRate = Callable[[jax.Array | int], jax.Array]
"""A schedule: step, counted from 0 -> learning rate."""

_GROUP_OF = registry.groups()

GROUPS = (*dict.fromkeys(_GROUP_OF.values()), "backbone")
"""The groups of parameters: those of the prompt methods, and the backbone."""


@checked
def by_group(
  transformation: optax.GradientTransformation,
  rates: Mapping[str, NotNegative | LearningRate],
) -> optax.GradientTransformation:
  """Returns the transformation with a separate rate for each group of parameters.

  (6.9): the learning rate of a group is the run's, multiplied by the group's, which is a
  number or a schedule. If the run's rate is 1, the groups' rates are the learning rates.
  The transformation itself, such as clipping by a global norm, acts over all groups.

  Args:
    transformation: gives the direction for leaves by path, as in 'prompt/low_rank_a'.
    rates: group -> rate; {} leaves the transformation unchanged. Otherwise every group
      that is trained must be named, so that none gets a rate meant for another.

  Raises:
    UserError: an unknown group or an invalid rate; at `init`, a leaf whose group has no
      rate.
  """
  for group in rates:
    if group not in GROUPS:
      raise UserError(
        f"There is no group of parameters '{group}' to have a learning rate."
        f"{near_misses(group, GROUPS)} The groups are {', '.join(GROUPS)}."
      )
  if not rates:
    return transformation

  def groups(leaves: Any) -> dict[str, str]:
    # optax.tree.map_params passes a placeholder, which has no leaves.
    paths = leaves if isinstance(leaves, Mapping) else ()
    found = {path: _group(path) for path in paths}
    for path, group in found.items():
      if group not in rates:
        raise UserError(
          f"'{path}' is trained and its group '{group}' has no learning rate; there are "
          f"rates for {', '.join(rates)}. Add '{group}' to GROUP_RATES."
        )
    return found

  scales = {
    group: optax.scale_by_schedule(rate) if callable(rate) else optax.scale(rate)
    for group, rate in rates.items()
  }
  return optax.chain(transformation, optax.partition(scales, groups))


def _group(path: str) -> str:
  if not path.startswith("prompt/"):
    return "backbone"
  return _GROUP_OF[path.removeprefix("prompt/")]


@checked
def adamw(
  b1: BelowOne = 0.9,
  b2: BelowOne = 0.999,
  eps: Positive = 1e-8,
  weight_decay: NotNegative = 0.0,
  clip_norm: Positive | None = None,
) -> optax.GradientTransformation:
  """Returns AdamW's direction (Loshchilov & Hutter 2019), with decoupled weight decay.

  (6.6): with a learning rate `lr`, the step is `-lr * (adam(g) + weight_decay * p)`, as in
  torch's AdamW. `clip_norm` bounds the global norm of the trainable leaves' gradients.
  """
  return optax.chain(
    _clip(clip_norm),
    optax.scale_by_adam(b1=b1, b2=b2, eps=eps),
    optax.add_decayed_weights(weight_decay),
    optax.scale(-1.0),
  )


@checked
def adafactor(
  decay_rate: BelowOne = 0.8,
  weight_decay: NotNegative = 0.0,
  clip_norm: Positive | None = None,
  multiply_by_parameter_scale: bool = False,
) -> optax.GradientTransformation:
  """Returns Adafactor's direction (Shazeer & Stern 2018).

  Second moments are factored for matrices of at least 128 rows and columns, which is
  optax's limit; those of shorter prompts, such as 100 tokens, are not.
  Steps are not scaled by the parameter's own size unless asked for (ours): leaves that
  start at zero would hardly move (docs/methods.md, "Starts and first gradients").
  """
  return optax.chain(
    _clip(clip_norm),
    optax.adafactor(
      learning_rate=None,
      decay_rate=decay_rate,
      multiply_by_parameter_scale=multiply_by_parameter_scale,
      weight_decay_rate=weight_decay or None,
    ),
  )


@checked
def constant(learning_rate: NotNegative, warmup_steps: StepsOrNone = 0) -> LearningRate:
  """Returns a constant schedule after a linear warm-up from 0: (6.7)."""
  return _warm_up(optax.schedules.constant_schedule(learning_rate), warmup_steps)


@checked
def linear(
  learning_rate: NotNegative, total_steps: Steps, warmup_steps: StepsOrNone = 0
) -> LearningRate:
  """Returns a linear decay to 0 at `total_steps`, after a linear warm-up from 0: (6.8).

  Raises:
    UserError: the warm-up leaves no step in which the rate could decay.
  """
  if warmup_steps >= total_steps:
    raise UserError(
      f"optimizers.linear decays after the warm-up, and WARMUP_STEPS is {warmup_steps} of "
      f"{total_steps} TRAIN_STEPS, so the rate would never decay. Give fewer WARMUP_STEPS "
      "or more TRAIN_STEPS."
    )
  decay = optax.schedules.linear_schedule(
    learning_rate, 0.0, total_steps - warmup_steps
  )
  return _warm_up(decay, warmup_steps)


def _warm_up(schedule: LearningRate, steps: int) -> LearningRate:
  rise = optax.schedules.linear_schedule(0.0, float(schedule(0)), steps)
  return optax.schedules.join_schedules([rise, schedule], [steps])


def _clip(norm: float | None) -> optax.GradientTransformation:
  return optax.identity() if norm is None else optax.clip_by_global_norm(norm)

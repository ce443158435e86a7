"""Optimizers without a learning rate, and the schedules that give one.

T5X hands the learning rate to the optimizer at every step; optax bakes it in. Here a
transformation gives the *direction* of descent (already negated) and the runner
multiplies it by `learning_rate(step)`, so that both runners use the same optimizers.
Only trainable leaves are ever shown to them: the frozen backbone has no slot.
"""

from collections.abc import Callable

import jax
import optax

LearningRate = Callable[[jax.Array | int], jax.Array]
"""A schedule: step, counted from 0, to learning rate."""


def adamw(
  b1: float = 0.9,
  b2: float = 0.999,
  eps: float = 1e-8,
  weight_decay: float = 0.0,
  clip_norm: float | None = None,
) -> optax.GradientTransformation:
  """Returns AdamW's direction (Loshchilov & Hutter 2019), decoupled weight decay included.

  With a learning rate `lr`, the step is `-lr * (adam(g) + weight_decay * p)`, which is
  torch's AdamW. `clip_norm` bounds the global norm of the trainable leaves' gradients.
  """
  return optax.chain(
    _clip(clip_norm),
    optax.scale_by_adam(b1=b1, b2=b2, eps=eps),
    optax.add_decayed_weights(weight_decay),
    optax.scale(-1.0),
  )


def adafactor(
  decay_rate: float = 0.8,
  weight_decay: float = 0.0,
  clip_norm: float | None = None,
  multiply_by_parameter_scale: bool = False,
) -> optax.GradientTransformation:
  """Returns Adafactor's direction (Shazeer & Stern 2018), second moments factored.

  Steps are not scaled by the parameter's own size unless asked for (ours: leaves that
  start at zero would hardly move; methods.md, section 3, point 9).
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


def constant(learning_rate: float, warmup_steps: int = 0) -> LearningRate:
  """Returns a constant schedule after a linear warm-up from 0 over `warmup_steps`."""
  return _warm_up(optax.schedules.constant_schedule(learning_rate), warmup_steps)


def linear(
  learning_rate: float, total_steps: int, warmup_steps: int = 0
) -> LearningRate:
  """Returns a linear decay to 0 at `total_steps`, after a linear warm-up from 0."""
  decay = optax.schedules.linear_schedule(
    learning_rate, 0.0, total_steps - warmup_steps
  )
  return _warm_up(decay, warmup_steps)


def _warm_up(schedule: LearningRate, steps: int) -> LearningRate:
  rise = optax.schedules.linear_schedule(0.0, float(schedule(0)), steps)
  return optax.schedules.join_schedules([rise, schedule], [steps])


def _clip(norm: float | None) -> optax.GradientTransformation:
  return optax.identity() if norm is None else optax.clip_by_global_norm(norm)

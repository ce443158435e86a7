"""Optimizers and schedules against optax's own, which bake the learning rate in."""

import jax.numpy as jnp
import numpy as np
import optax
import pytest

from tpv_jax import optimizers


def follow(transform, learning_rate, gradients, start):
  state, here, path = transform.init(start), start, []
  for step, gradient in enumerate(gradients):
    direction, state = transform.update(gradient, state, here)
    here = optax.apply_updates(here, optax.tree.scale(learning_rate(step), direction))
    path.append(here["p"])
  return np.stack(path)


def follow_optax(optimizer, gradients, start):
  state, here, path = optimizer.init(start), start, []
  for gradient in gradients:
    update, state = optimizer.update(gradient, state, here)
    here = optax.apply_updates(here, update)
    path.append(here["p"])
  return np.stack(path)


@pytest.fixture(scope="module")
def problem():
  rng = np.random.default_rng(0)
  start = {"p": jnp.asarray(rng.normal(size=(4, 6)), jnp.float32)}
  gradients = [
    {"p": jnp.asarray(rng.normal(size=(4, 6)), jnp.float32)} for _ in range(8)
  ]
  return gradients, start


def test_adamw_takes_the_steps_of_optax_with_decay_clipping_and_warm_up(problem):
  schedule = optimizers.constant(0.3, warmup_steps=3)
  ours = follow(optimizers.adamw(weight_decay=0.1, clip_norm=1.0), schedule, *problem)
  theirs = optax.chain(
    optax.clip_by_global_norm(1.0), optax.adamw(schedule, weight_decay=0.1)
  )
  # The same fp32 operations, the rate multiplied in at another place.
  np.testing.assert_allclose(ours, follow_optax(theirs, *problem), rtol=1e-5, atol=1e-6)
  assert np.array_equal(ours[0], problem[1]["p"])  # The warm-up starts at 0.


def test_adafactor_takes_the_steps_of_optax_and_ignores_the_parameter_scale(problem):
  theirs = optax.adafactor(0.05, multiply_by_parameter_scale=False)
  ours = follow(optimizers.adafactor(), optimizers.constant(0.05), *problem)
  np.testing.assert_allclose(ours, follow_optax(theirs, *problem), rtol=1e-5, atol=1e-6)
  gradients, start = problem
  tiny = {"p": start["p"] * 0}
  moved = follow(optimizers.adafactor(), optimizers.constant(0.05), gradients, tiny)
  assert np.abs(moved[-1]).mean() > 0.05  # Leaves that start at zero move, too.


@pytest.mark.parametrize(
  ("schedule", "expected"),
  [
    (optimizers.constant(0.3), {0: 0.3, 9: 0.3}),
    (optimizers.constant(0.3, 10), {0: 0.0, 5: 0.15, 10: 0.3, 99: 0.3}),
    (optimizers.linear(0.3, 100), {0: 0.3, 50: 0.15, 100: 0.0, 200: 0.0}),
    (optimizers.linear(0.3, 110, 10), {0: 0.0, 5: 0.15, 10: 0.3, 60: 0.15, 110: 0.0}),
  ],
)
def test_schedules_pass_through_these_points(schedule, expected):
  for step, rate in expected.items():
    np.testing.assert_allclose(schedule(step), rate, atol=1e-7)

"""Optimizers and schedules against optax's own, which bake the learning rate in."""

import pathlib

import gin
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from tpv_jax.core.errors import UserError
from tpv_jax.prompts import equations
from tpv_jax.settings import gin_files
from tpv_jax.training import optimizers


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


@pytest.mark.parametrize(
  "setting",
  [{}, {"b1": 0.5}, {"b2": 0.9}, {"eps": 0.1}, {"weight_decay": 0.1}],
  ids=str,
)
def test_adamw_takes_the_steps_of_optax_with_clipping_and_warm_up(problem, setting):
  schedule = optimizers.constant(0.3, warmup_steps=3)
  ours = follow(optimizers.adamw(**setting, clip_norm=1.0), schedule, *problem)
  theirs = optax.chain(
    optax.clip_by_global_norm(1.0),
    optax.adamw(schedule, **{"weight_decay": 0.0, **setting}),
  )
  # The same fp32 operations, the rate multiplied in at another place.
  np.testing.assert_allclose(ours, follow_optax(theirs, *problem), rtol=1e-5, atol=1e-6)
  assert np.array_equal(ours[0], problem[1]["p"])  # The warm-up starts at 0.


@pytest.mark.parametrize(
  ("setting", "of_optax"),
  [
    ({}, {}),
    ({"decay_rate": 0.5}, {"decay_rate": 0.5}),
    # optax does not multiply the decay by the learning rate.
    ({"weight_decay": 0.1}, {"weight_decay_rate": 0.005}),
    ({"multiply_by_parameter_scale": True}, {"multiply_by_parameter_scale": True}),
    ({"clip_norm": 1.0}, {}),
  ],
  ids=str,
)
def test_adafactor_takes_the_steps_of_optax(problem, setting, of_optax):
  ours = follow(optimizers.adafactor(**setting), optimizers.constant(0.05), *problem)
  theirs = optax.chain(
    optax.clip_by_global_norm(setting.get("clip_norm", np.inf)),
    optax.adafactor(0.05, **{"multiply_by_parameter_scale": False, **of_optax}),
  )
  np.testing.assert_allclose(ours, follow_optax(theirs, *problem), rtol=1e-5, atol=1e-6)


def test_adafactor_moves_leaves_that_start_at_zero(problem):
  gradients, start = problem
  tiny = {"p": start["p"] * 0}
  moved = follow(optimizers.adafactor(), optimizers.constant(0.05), gradients, tiny)
  assert np.abs(moved[-1]).mean() > 0.05


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


@pytest.mark.parametrize("warmup", [400, 500])
def test_a_linear_decay_needs_steps_after_the_warm_up(warmup):
  with pytest.raises(UserError, match=rf"WARMUP_STEPS is {warmup} of 400 TRAIN_STEPS"):
    optimizers.linear(0.3, 400, warmup)
  optimizers.linear(0.3, 400, 399)


def ept_leaves(seed):
  rng = np.random.default_rng(seed)
  forms = equations.parameters(3, 6, 5, rank=2, fusion_width=2, spaces=2)
  return {
    f"prompt/{name}": jnp.asarray(rng.normal(size=form.shape), jnp.float32)
    for name, form in forms.items()
  }


GROUP_OF = {
  "short_prompt": "prompt",
  "low_rank_a": "low_rank",
  "low_rank_b": "low_rank",
  "fusion_query": "fusion",
  "fusion_key": "fusion",
  "fusion_gamma": "fusion",
  "space_down": "spaces",
  "space_up": "spaces",
  "gate_kernel": "spaces",
  "gate_bias": "spaces",
}
"""Written out here once more, against the table in `equations`."""

RATES = {"prompt": 1.0, "low_rank": 0.1, "fusion": 0.25, "spaces": 0.5}


@pytest.mark.parametrize(
  "transformation",
  [
    optimizers.adamw(weight_decay=0.1, clip_norm=1.0),
    optimizers.adafactor(weight_decay=0.1),
  ],
  ids=["adamw", "adafactor"],
)
def test_each_group_takes_the_steps_of_all_at_its_own_rate(transformation):
  start, grouped = ept_leaves(0), optimizers.by_group(transformation, RATES)
  one, ours = transformation.init(start), grouped.init(start)
  for step in range(3):
    # The same point for both, so that moments and the clipped global norm are equal.
    direction, one = transformation.update(ept_leaves(step + 1), one, start)
    scaled, ours = grouped.update(ept_leaves(step + 1), ours, start)
    assert {path.removeprefix("prompt/") for path in scaled} == set(GROUP_OF)
    for path, leaf in direction.items():
      rate = np.float32(RATES[GROUP_OF[path.removeprefix("prompt/")]])
      np.testing.assert_array_equal(scaled[path], rate * leaf, err_msg=path)


def test_a_group_follows_its_own_schedule_by_the_step():
  rise = optimizers.constant(0.5, warmup_steps=2)
  fall = optimizers.linear(0.2, total_steps=4)
  grouped = optimizers.by_group(
    optax.scale(-1.0), {"prompt": rise, "low_rank": fall, "fusion": 1, "spaces": 1}
  )
  leaves = {path: jnp.ones_like(leaf) for path, leaf in ept_leaves(0).items()}
  state = grouped.init(leaves)
  for expected in ((0.0, 0.2), (0.25, 0.15), (0.5, 0.1), (0.5, 0.05), (0.5, 0.0)):
    step, state = grouped.update(leaves, state, leaves)
    found = [-step[f"prompt/{name}"].mean() for name in ("short_prompt", "low_rank_b")]
    np.testing.assert_allclose(found, expected, atol=1e-7)


def test_a_plain_prompt_is_in_the_group_prompt_and_a_backbone_in_its_own():
  leaves = {
    path: jnp.ones((2, 2)) for path in ("prompt/prompt", "prompt/delta", "encoder/w")
  }
  rates = {"prompt": 2, "low_rank": 3, "backbone": 5}
  grouped = optimizers.by_group(optax.scale(-1.0), rates)
  step, _ = grouped.update(leaves, grouped.init(leaves), leaves)
  assert {path: float(-leaf.mean()) for path, leaf in step.items()} == {
    "prompt/prompt": 2.0,
    "prompt/delta": 3.0,
    "encoder/w": 5.0,
  }


def test_no_rates_leave_the_optimizer_as_it_is():
  transformation = optimizers.adamw()
  assert optimizers.by_group(transformation, {}) is transformation


@pytest.mark.parametrize(
  ("rates", "text"),
  [
    ({"low-rank": 1.0}, "no group of parameters 'low-rank'.*mean 'low_rank'"),
    ({"prompt": -1.0}, r"rates\['prompt'\] is -1.0; it must be a number of at least 0"),
    ({"prompt": 1.0}, "'prompt/low_rank_a' is trained and its group 'low_rank' has no"),
  ],
)
def test_rates_that_name_no_group_or_leave_one_out_are_refused(rates, text):
  with pytest.raises(UserError, match=text):
    optimizers.by_group(optimizers.adamw(), rates).init(ept_leaves(0))


def direction_and_rates(tmp_path, *bindings, text=""):
  """Returns the optimizer that gin makes for EPT, and the run's rate at steps 0 and 50."""
  file = tmp_path / "mine.gin"
  file.write_text(f"from __gin__ import dynamic_registration\n{text}")
  files = ("runs/embedded.gin", "prompts/ept.gin")
  gin_files.parse(
    [*(f"gin_configs/{name}" for name in files), str(file)],
    ["TASK_NAME='topic'", "RUN_DIR='run'", "TRAIN_STEPS=100", *bindings],
    [],
  )
  optimizer, schedule = (
    gin.query_parameter(f"{name}/macro.value").scoped_configurable_fn()
    for name in ("OPTIMIZER", "LEARNING_RATE_FN")
  )
  gin.clear_config()
  return optimizer, [float(schedule(step)) for step in (0, 50)]


def scales_at(optimizer, step):
  """Returns by group the factor on a gradient, where the optimizer takes it as it is."""
  leaves = {path: jnp.ones_like(leaf) for path, leaf in ept_leaves(0).items()}
  state = optimizer.init(leaves)
  for _ in range(step + 1):
    taken, state = optimizer.update(leaves, state, leaves)
  return {
    GROUP_OF[path.removeprefix("prompt/")]: round(-float(leaf.mean()), 5)
    for path, leaf in taken.items()
  }


def test_gin_takes_another_transformation_and_schedule(tmp_path):
  optimizer, rates = direction_and_rates(
    tmp_path,
    "TRANSFORMATION=@optimizers.adafactor()",
    "WEIGHT_DECAY=0.0",
    "LEARNING_RATE_FN=@optimizers.linear()",
    "GROUP_RATES={'prompt': 1.0, 'low_rank': 0.5, 'fusion': 0.2, 'spaces': 0.1}",
  )
  np.testing.assert_allclose(rates, (0.3, 0.15), rtol=1e-6)
  # The first step of Adafactor on a gradient of ones is one of ones.
  expected = {"prompt": 1.0, "low_rank": 0.5, "fusion": 0.2, "spaces": 0.1}
  assert scales_at(optimizer, 0) == expected


def test_gin_takes_a_schedule_for_each_group_as_tuning_gin_says(tmp_path):
  comments = pathlib.Path("gin_configs/runs/tuning.gin").read_text().splitlines()
  lines = [line.removeprefix("#   ") for line in comments if line.startswith("#   ")]
  first = lines.index("LEARNING_RATE_FN = @run/optimizers.constant()")
  text = "\n".join(
    ["from tpv_jax.training import optimizers", *lines[first : first + 9]]
  )
  assert text.endswith("low_rank/optimizers.linear.learning_rate = 5e-3")
  text = text.replace("linear()}", "linear(), 'fusion': 0.2, 'spaces': 0.1}")
  optimizer, rates = direction_and_rates(
    tmp_path, "WEIGHT_DECAY=0.0", "WARMUP_STEPS=2", text=text
  )
  assert rates == [1.0, 1.0]
  for step, prompt, low_rank in ((0, 0.0, 0.0), (1, 0.15, 2.5e-3), (2, 0.3, 5e-3)):
    found = scales_at(optimizer, step)
    expected = {"prompt": prompt, "low_rank": low_rank, "fusion": 0.2, "spaces": 0.1}
    # AdamW's direction is that of the gradient's sign.
    assert found == pytest.approx(expected, abs=1e-5)


@pytest.mark.parametrize(("tokens", "factored"), [(100, False), (128, True)])
def test_adafactor_factors_the_moments_of_matrices_from_128_rows_on(tokens, factored):
  prompt = {"prompt": jnp.zeros((tokens, 768))}
  shapes = [leaf.shape for leaf in jax.tree.leaves(optimizers.adafactor().init(prompt))]
  assert ((tokens, 768) in shapes) is not factored
  assert "at least 128 rows and columns" in optimizers.adafactor.__doc__

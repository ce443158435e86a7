"""T5X's optimizer around our transformations, by its duck types alone."""

import flax
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from tpv_jax.core import identity
from tpv_jax.prompts import equations
from tpv_jax.t5x import optimizer
from tpv_jax.training import optimizers

RATE = 0.3


def parameters():
  rng = np.random.default_rng(0)
  return {
    "prompt": {"prompt": jnp.asarray(rng.normal(size=(4, 6)), jnp.float32)},
    "encoder": {"kernel": jnp.asarray(rng.normal(size=(6, 8)), jnp.float32)},
  }


def gradients(step):
  rng = np.random.default_rng(step + 1)
  return jax.tree.map(
    lambda leaf: jnp.asarray(rng.normal(size=leaf.shape), jnp.float32), parameters()
  )


def steps_of(state, count, first=0):
  for step in range(first, first + count):
    state = state.apply_gradient(gradients(step), learning_rate=jnp.float32(RATE))
  return state


@pytest.mark.parametrize(
  "transformation",
  [
    optimizers.adamw(weight_decay=0.1),
    optimizers.adafactor(),
    optimizers.adamw(clip_norm=1.0),
  ],
  ids=["adamw", "adafactor", "clipped"],
)
def test_steps_are_those_of_the_transformation_on_the_prompt_alone(transformation):
  made = optimizer.TransformationOptimizer(transformation).create(parameters())
  prompt = {"prompt/prompt": parameters()["prompt"]["prompt"]}
  state = transformation.init(prompt)
  for step in range(5):
    gradient = {"prompt/prompt": gradients(step)["prompt"]["prompt"]}
    direction, state = transformation.update(gradient, state, prompt)
    prompt = jax.tree.map(lambda p, d: p + RATE * d, prompt, direction)
  after = steps_of(made, 5)
  np.testing.assert_array_equal(
    after.target["prompt"]["prompt"], prompt["prompt/prompt"]
  )
  assert int(after.state.step) == 5


@pytest.mark.parametrize(
  "transformation",
  [
    optimizers.adamw(weight_decay=0.1, clip_norm=1.0),
    optimizers.adafactor(),
  ],
  ids=["adamw", "adafactor"],
)
def test_each_prompt_of_a_bank_moves_as_alone_at_its_own_rate(transformation):
  """Clipping acts, on gradients whose sizes differ between the prompts, for each alone."""
  rates = [1.0, 0.5, 2.0]
  rng = np.random.default_rng(1)
  start = rng.normal(size=(3, 4, 6)).astype(np.float32)
  sizes = np.array([0.1, 1.0, 10.0], np.float32)[:, None, None]
  steps = [sizes * rng.normal(size=start.shape).astype(np.float32) for _ in range(5)]

  def after(definition, start, steps, rate=1.0):
    made = definition.create({"prompt": {"prompt": jnp.asarray(start)}})
    for gradient in steps:
      made = made.apply_gradient(
        {"prompt": {"prompt": jnp.asarray(gradient)}}, jnp.float32(rate * RATE)
      )
    return np.asarray(made.target["prompt"]["prompt"])

  together = after(
    optimizer.TransformationOptimizer(transformation, rates=rates), start, steps
  )
  for i, rate in enumerate(rates):
    definition = optimizer.TransformationOptimizer(transformation)
    alone = after(definition, start[i], [step[i] for step in steps], rate)
    # The rate is multiplied in another order.
    np.testing.assert_allclose(together[i], alone, rtol=1e-5, atol=1e-6)


def test_moments_of_a_bank_take_the_axes_of_their_parameters():
  definition = optimizer.TransformationOptimizer(optimizers.adamw(), rates=[1.0, 2.0])
  params = {"prompt": {"prompt": jnp.zeros((2, 4, 6))}}
  axes = {"prompt": {"prompt": jax.sharding.PartitionSpec("bank", "prompt", "embed")}}
  made = definition.create(params)
  logical = definition.derive_logical_axes(made, axes).state.param_states
  assert logical.keys() == made.state.param_states.keys()
  for name, leaf in made.state.param_states.items():
    expected = axes["prompt"]["prompt"] if leaf.ndim == 3 else None
    assert logical[name] == expected
    assert len(leaf) == 2


def test_adamw_equals_optax_adamw_with_its_learning_rate():
  made = optimizer.TransformationOptimizer(optimizers.adamw(weight_decay=0.1))
  reference = optax.adamw(RATE, weight_decay=0.1)
  prompt = parameters()["prompt"]
  state = reference.init(prompt)
  for step in range(5):
    updates, state = reference.update(gradients(step)["prompt"], state, prompt)
    prompt = optax.apply_updates(prompt, updates)
  after = steps_of(made.create(parameters()), 5).target["prompt"]["prompt"]
  np.testing.assert_allclose(
    after, prompt["prompt"], rtol=1e-6
  )  # another order of sums


def test_frozen_leaves_stay_bit_identical_and_have_no_state():
  made = optimizer.TransformationOptimizer(optimizers.adamw()).create(parameters())
  after = steps_of(made, 3)
  assert np.asarray(after.target["encoder"]["kernel"]).tobytes() == (
    np.asarray(parameters()["encoder"]["kernel"]).tobytes()
  )
  assert not np.array_equal(
    after.target["prompt"]["prompt"], parameters()["prompt"]["prompt"]
  )
  shapes = {np.shape(leaf) for leaf in after.state.param_states.values()}
  assert shapes == {(), (4, 6)}


def test_state_is_a_flat_dict_without_none_and_without_slashes():
  made = optimizer.TransformationOptimizer(optimizers.adafactor()).create(parameters())
  states = made.state_dict()["state"]["param_states"]
  assert states
  assert all(leaf is not None for leaf in states.values())
  assert not [name for name in states if "/" in name]


def test_a_restored_state_with_float_counters_goes_on_with_the_same_bits():
  """T5X restores integers as float32, and its compiled step wants dtypes to stay."""
  made = optimizer.TransformationOptimizer(optimizers.adamw()).create(parameters())
  unbroken = steps_of(made, 6)
  saved = steps_of(made, 3).state_dict()
  saved["state"] = jax.tree.map(lambda leaf: leaf.astype(jnp.float32), saved["state"])
  restored = made.restore_state(saved)
  resumed = steps_of(restored, 3, first=3)
  assert jax.tree.map(lambda leaf: leaf.dtype, resumed.state_dict()) == jax.tree.map(
    lambda leaf: leaf.dtype, restored.state_dict()
  )
  np.testing.assert_array_equal(
    resumed.target["prompt"]["prompt"], unbroken.target["prompt"]["prompt"]
  )
  assert float(resumed.state.step) == 6.0


def test_moments_take_the_axes_of_their_parameters_and_counters_none():
  definition = optimizer.TransformationOptimizer(optimizers.adamw())
  made = jax.eval_shape(definition.create, parameters())
  axes = {
    "prompt": {"prompt": jax.sharding.PartitionSpec("prompt", "embed")},
    "encoder": {"kernel": jax.sharding.PartitionSpec("embed", "mlp")},
  }
  logical = definition.derive_logical_axes(made, axes)
  by_name = logical.state.param_states
  moments = [name for name in by_name if name.endswith("prompt.prompt")]
  assert len(moments) == 2
  for name, names in by_name.items():
    expected = axes["prompt"]["prompt"] if name in moments else None
    assert names == expected
  assert logical.state.step is None
  assert identity.flatten(logical.target) == identity.flatten(axes)


@pytest.mark.parametrize("name", ["adamw", "adafactor"])
def test_groups_with_rates_keep_the_axes_of_ept_and_multiply_the_one_rate(name):
  forms = equations.parameters(3, 6, 5, rank=2, fusion_width=2, spaces=2)
  rng = np.random.default_rng(0)
  params, gradient = (
    {
      "prompt": {
        name: jnp.asarray(rng.normal(size=form.shape), jnp.float32)
        for name, form in forms.items()
      }
    }
    for _ in range(2)
  )
  rates = {"prompt": 1.0, "low_rank": 0.1, "fusion": 0.25, "spaces": lambda step: 0.5}
  transformation = getattr(optimizers, name)()
  one, grouped = (
    optimizer.TransformationOptimizer(made)
    for made in (transformation, optimizers.by_group(transformation, rates))
  )
  spec = jax.sharding.PartitionSpec
  axes = {"prompt": {name: spec(*form.axes) for name, form in forms.items()}}
  logical = grouped.derive_logical_axes(jax.eval_shape(grouped.create, params), axes)
  state = grouped.create(params)
  assert logical.state.param_states.keys() == state.state.param_states.keys()
  if name == "adamw":
    for leaf in forms:
      moments = [n for n in logical.state.param_states if n.endswith(f"prompt.{leaf}")]
      assert len(moments) == 2
      for moment in moments:
        assert logical.state.param_states[moment] == axes["prompt"][leaf]
  steps = {}
  for key, definition in (("one", one), ("grouped", grouped)):
    after = definition.create(params).apply_gradient(
      gradient, learning_rate=jnp.float32(RATE)
    )
    steps[key] = jax.tree.map(
      np.subtract, flax.core.unfreeze(after.target)["prompt"], params["prompt"]
    )
  for leaf, form in forms.items():
    rate = 0.5 if form.part == "spaces" else rates[form.part]
    # Both differences carry the rounding of parameters near 1.
    np.testing.assert_allclose(
      steps["grouped"][leaf], rate * steps["one"][leaf], atol=1e-6, err_msg=leaf
    )


def test_the_target_stays_frozen_as_t5x_hands_it_over():
  made = optimizer.TransformationOptimizer(optimizers.adamw()).create(
    flax.core.freeze(parameters())
  )
  after = steps_of(made, 1)
  assert jax.tree.structure(after) == jax.tree.structure(made)

"""A bank trains each prompt as a run of its own would."""

import dataclasses
import functools
import json
import sys

import device_programs
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tpv_jax.backbones.t5 import network
from tpv_jax.banks import bank_steps
from tpv_jax.core.errors import UserError
from tpv_jax.data import batches, packing, row_fitting
from tpv_jax.devices import partitioning, processes
from tpv_jax.model import SoftPromptModel
from tpv_jax.prompts import ept, plain
from tpv_jax.training import optimizers
from tpv_jax.training import steps as solo_steps

pytestmark = pytest.mark.usefixtures("compiles_faster")

PROMPTS, ROWS, STEPS, WIDTH = 8, 4, 6, 16
LENGTHS = {"inputs": 12, "targets": 4}
FACTORS = np.asarray([1.0, 0.5, 2.0, 1.0, 0.1, 2.0, 3.0, 1.0], np.float32)
RATE = optimizers.constant(0.1, warmup_steps=2)

PLAIN = plain.Prompt(4, WIDTH)
EPT = ept.EPT(
  4, WIDTH, source_length=12, rank=3, fusion_width=2, spaces=2, bottleneck=1
)
ADAMW = functools.partial(optimizers.adamw, weight_decay=1e-2, clip_norm=0.05)
ADAFACTOR = functools.partial(optimizers.adafactor, clip_norm=0.05)


def made_model(prompt, optimizer, **settings):
  return SoftPromptModel(
    network.Transformer(
      vocab_size=64,
      emb_dim=WIDTH,
      num_heads=2,
      head_dim=8,
      num_encoder_layers=1,
      num_decoder_layers=1,
      mlp_dim=32,
      **settings,
    ),
    prompt,
    None,
    None,
    optimizer_def=optimizer,
  )


def idle(number, step):
  """Two prompts have no examples in some steps."""
  return (number == 2 and step % 2 == 1) or (number == 5 and step < 3)


@functools.cache
def batch(number, step):
  rng = np.random.default_rng([number, step])
  arrays = []
  for longest in LENGTHS.values():
    array = np.zeros((ROWS, longest), np.int32)
    for row in array:
      length = rng.integers(1, longest + 1)
      row[:length] = rng.integers(2, 60, length)
    arrays.append(array)
  return batches.features(*arrays)


def starts(model):
  """The backbone's leaves and each prompt's, as NumPy arrays by path."""
  params = model.get_initial_variables(jax.random.key(0), {})["params"]
  _, frozen = model.split(params)
  prompts = []
  for number in range(PROMPTS):
    rng = np.random.default_rng(number)
    leaves = model.prompt.initial_leaves(
      rng.standard_normal((4, WIDTH)).astype(np.float32), number
    )
    prompts.append({f"prompt/{name}": leaf for name, leaf in leaves.items()})
  return {path: np.asarray(leaf) for path, leaf in frozen.items()}, prompts


def alone(steps, model, number):
  """The trajectory of a prompt's leaves, and of its losses, in a run of its own."""
  frozen, prompts = starts(model)
  frozen = {p: processes.put(x, steps.param_shardings[p]) for p, x in frozen.items()}
  state = steps.initialise(prompts[number])
  losses = []
  for step in range(STEPS):
    if idle(number, step):
      losses.append(0.0)
      continue
    placed = solo_steps.put_batches(steps, [batch(number, step)])
    state, report = steps.train(state, frozen, placed, jax.random.key(0))
    losses.append(float(report["loss"][0]))
  return state, losses


def together(model, mesh, shard_bank=False):
  """The bank's state after all steps, and every prompt's losses."""
  steps = bank_steps.build(model, RATE, mesh, shard_bank)
  frozen, prompts = starts(model)
  frozen = {
    path: processes.put(leaf, steps.frozen[path]) for path, leaf in frozen.items()
  }
  state = steps.initialise(
    {
      path: processes.put(np.stack([one[path] for one in prompts]), steps.stacked[path])
      for path in prompts[0]
    }
  )
  shapes = row_fitting.Shapes(
    row_fitting.Shape(8, 40, 16), row_fitting.Shape(mesh.shape["data"], 16, 8), 4
  )
  losses = []
  for step in range(STEPS):
    items = [
      item
      for number in range(PROMPTS)
      if not idle(number, step)
      for item in packing.items(batch(number, step), number)
    ]
    calls = [features for _, features in packing.pack(items, shapes)]
    state, report = bank_steps.train_step(
      steps, state, frozen, calls, jnp.asarray(FACTORS)
    )
    losses.append(np.asarray(report["loss"]))
  return state, np.transpose(losses)


# One step in fp32 differs by summation order only (1e-6); Adam divides small gradients
# by their own size, so that a few steps make up to 1e-4 of the size of a step of it.
CLOSE = {"rtol": 1e-3, "atol": 2e-4}


@pytest.mark.parametrize("optimizer", [ADAMW, ADAFACTOR], ids=["adamw", "adafactor"])
@pytest.mark.parametrize("prompt", [PLAIN, EPT], ids=["plain", "ept"])
def test_each_prompt_of_a_bank_takes_the_path_that_it_takes_alone(prompt, optimizer):
  model, mesh = made_model(prompt, optimizer()), partitioning.make_mesh()
  state, losses = together(model, mesh)
  of_rate = functools.cache(
    lambda factor: solo_steps.build(model, lambda step: factor * RATE(step), 1, mesh)
  )
  for number in (2, 5, 6):
    steps = of_rate(float(FACTORS[number]))
    expected, expected_losses = alone(steps, model, number)
    np.testing.assert_allclose(losses[number], expected_losses, rtol=1e-4)
    assert int(state.step[number]) == int(expected.step)
    for path, leaf in expected.trainable.items():
      np.testing.assert_allclose(
        state.trainable[path][number], leaf, **CLOSE, err_msg=f"{number} {path}"
      )
    mine = jax.tree.map(lambda leaf: leaf[number], state.optimizer)  # noqa: B023
    for one, other in zip(
      jax.tree.leaves(mine), jax.tree.leaves(expected.optimizer), strict=True
    ):
      np.testing.assert_allclose(one, other, rtol=2e-3, atol=1e-4)


def test_the_scale_of_the_loss_weights_changes_no_step_of_a_bank():
  # Of any one prompt they add up to less than 1 where they are 0.01.
  model, mesh = made_model(PLAIN, ADAMW()), partitioning.make_mesh()
  steps = bank_steps.build(model, RATE, mesh)
  frozen, prompts = starts(model)
  frozen = {
    path: processes.put(leaf, steps.frozen[path]) for path, leaf in frozen.items()
  }
  shapes = row_fitting.Shapes(
    row_fitting.Shape(8, 40, 16), row_fitting.Shape(1, 16, 8), 4
  )
  reports = []
  for weight in (1.0, 0.01):
    stacked = np.stack([one["prompt/prompt"] for one in prompts])
    state = steps.initialise(
      {"prompt/prompt": processes.put(stacked, steps.stacked["prompt/prompt"])}
    )
    items = [
      dataclasses.replace(item, weights=np.full(len(item.target), np.float32(weight)))
      for number in range(PROMPTS)
      for item in packing.items(batch(number, 0), number)
    ]
    calls = [features for _, features in packing.pack(items, shapes)]
    _, report = bank_steps.train_step(steps, state, frozen, calls, jnp.asarray(FACTORS))
    reports.append(report)
  for name in ("loss", "accuracy", "gradient_norm"):
    np.testing.assert_allclose(*(report[name] for report in reports), rtol=1e-5)


def test_a_prompt_without_examples_keeps_its_parameters_and_its_state():
  model, mesh = made_model(PLAIN, ADAMW()), partitioning.make_mesh()
  steps = bank_steps.build(model, RATE, mesh)
  frozen, prompts = starts(model)
  state = steps.initialise(
    {"prompt/prompt": np.stack([p["prompt/prompt"] for p in prompts])}
  )
  shapes = row_fitting.Shapes(
    row_fitting.Shape(8, 40, 16), row_fitting.Shape(1, 16, 8), 4
  )
  everything = [i for n in range(PROMPTS) for i in packing.items(batch(n, 0), n)]
  calls = [features for _, features in packing.pack(everything, shapes)]
  for _ in range(3):
    state, _ = bank_steps.train_step(steps, state, frozen, calls, jnp.asarray(FACTORS))
  before = jax.device_get(state)
  only = [item for item in everything if item.prompt_id == 3]
  calls = [features for _, features in packing.pack(only, shapes)]
  state, report = bank_steps.train_step(
    steps, state, frozen, calls, jnp.asarray(FACTORS)
  )
  for old, new in zip(jax.tree.leaves(before), jax.tree.leaves(state), strict=True):
    others = np.arange(PROMPTS) != 3
    np.testing.assert_array_equal(old[others], np.asarray(new)[others])
  assert (
    np.abs(
      before.trainable["prompt/prompt"][3] - state.trainable["prompt/prompt"][3]
    ).max()
    > 0.01
  )
  assert np.flatnonzero(report["loss"]).tolist() == [3]


def test_a_prompt_whose_finite_factors_have_an_infinite_product_leaves_the_others():
  model, mesh = made_model(EPT, ADAMW()), partitioning.make_mesh()
  steps = bank_steps.build(model, RATE, mesh)
  shapes = row_fitting.Shapes(
    row_fitting.Shape(8, 40, 16), row_fitting.Shape(1, 16, 8), 4
  )
  others = np.arange(PROMPTS) != 3

  def trained(factor):
    frozen, prompts = starts(model)
    state = steps.initialise(
      {path: np.stack([one[path] for one in prompts]) for path in prompts[0]}
    )
    for step in range(3):
      items = [i for n in range(PROMPTS) for i in packing.items(batch(n, step), n)]
      calls = [features for _, features in packing.pack(items, shapes)]
      rates = jnp.where(others, 1.0, factor)
      state, report = bank_steps.train_step(steps, state, frozen, calls, rates)
    return state, report["finite_parameters"]

  (good, _), (bad, finite) = trained(1.0), trained(1e25)
  np.testing.assert_array_equal(finite, others)
  for one, other in zip(jax.tree.leaves(good), jax.tree.leaves(bad), strict=True):
    np.testing.assert_array_equal(np.asarray(one)[others], np.asarray(other)[others])


def test_validation_in_shared_rows_gives_each_prompt_the_means_of_its_own():
  model, mesh = made_model(EPT, ADAMW()), partitioning.make_mesh()
  steps = bank_steps.build(model, RATE, mesh)
  solo = solo_steps.build(model, RATE, 1, mesh)
  frozen, prompts = starts(model)
  state = steps.initialise(
    {path: np.stack([one[path] for one in prompts]) for path in prompts[0]}
  )
  # Prompt n has n batches, and one with every target of one token. One of them is right,
  # if the token that the first of these prompts makes of the source ends a text.
  rows = [[batch(number, step) for step in range(number)] for number in range(PROMPTS)]
  every = np.pad(np.arange(1, 64, dtype=np.int32)[:, None], ((0, 0), (0, 3)))
  sources = np.repeat(batch(0, 0)["encoder_input_tokens"][:1], len(every), axis=0)
  written = model.predict_batch(
    model.merge(prompts[1], frozen), batches.features(sources[:1], every[:1])
  )
  model._end_ids = (int(written[0, 0]),)
  for own in rows[1:]:
    own.append(batches.features(sources, every))
  items = [i for n in range(PROMPTS) for one in rows[n] for i in packing.items(one, n)]
  shape = row_fitting.Shape(8, 40, 16)
  calls = packing.pack(items, row_fitting.Shapes(shape, shape, 4))
  found = bank_steps.validate(steps, state, frozen, [one for _, one in calls])
  assert len(calls) < sum(map(len, rows))
  assert steps.measure._cache_size() == 1
  assert all(np.isnan(values[0]) for values in found.values())
  assert found["exact_match"][1:].max() > 0
  for number in range(1, PROMPTS):
    sums = [solo.validate(prompts[number], frozen, one) for one in rows[number]]
    for name, values in found.items():
      merged = functools.reduce(lambda a, b: a.merge(b), [one[name] for one in sums])
      # fp32 sums in another order: 1e-6 of each summand.
      assert values[number] == pytest.approx(float(merged.compute()), rel=1e-5)


def test_a_bank_compiles_two_shapes_of_calls_for_any_number_of_examples():
  model, mesh = made_model(PLAIN, ADAMW()), partitioning.make_mesh()
  steps = bank_steps.build(model, optimizers.constant(0.01), mesh)
  frozen, prompts = starts(model)
  state = steps.initialise(
    {"prompt/prompt": np.stack([p["prompt/prompt"] for p in prompts])}
  )
  shapes = row_fitting.Shapes(
    row_fitting.Shape(8, 40, 16), row_fitting.Shape(1, 16, 8), 4
  )
  for count in (1, 3, 8):
    items = [i for n in range(count) for i in packing.items(batch(n, count), n)]
    calls = [features for _, features in packing.pack(items, shapes)]
    state, _ = bank_steps.train_step(steps, state, frozen, calls, jnp.asarray(FACTORS))
  assert steps.accumulate._cache_size() <= 2
  assert steps.update._cache_size() == steps.fold._cache_size() == 1


@pytest.mark.parametrize("wrong", [PROMPTS, -1])
def test_an_example_of_a_prompt_that_the_bank_has_not_is_refused(wrong):
  model, mesh = made_model(PLAIN, ADAMW()), partitioning.make_mesh()
  steps = bank_steps.build(model, RATE, mesh)
  frozen, prompts = starts(model)
  state = steps.initialise(
    {"prompt/prompt": np.stack([p["prompt/prompt"] for p in prompts])}
  )
  shapes = row_fitting.Shapes(
    row_fitting.Shape(2, 40, 16), row_fitting.Shape(1, 16, 8), 4
  )
  items = packing.items(batch(0, 0), wrong)
  calls = [features for _, features in packing.pack(items, shapes)]
  with pytest.raises(
    UserError, match=f"Row 0 .* for prompt {wrong}, and the bank has the prompts 0 to 7"
  ):
    bank_steps.train_step(steps, state, frozen, calls, FACTORS)


@pytest.mark.parametrize(
  ("settings", "trainable", "message"),
  [
    ({"dropout_rate": 0.1}, "prompt/.*", "trains without dropout"),
    ({}, ".*", "trains prompts on one frozen backbone"),
  ],
)
def test_what_is_no_bank_of_prompts_is_refused(settings, trainable, message):
  model = made_model(PLAIN, ADAMW(), **settings)
  model.trainable = trainable
  with pytest.raises(UserError, match=message):
    bank_steps.build(model, RATE, partitioning.make_mesh())


def main(model_parallel, shard_bank):
  """Prints the bank's leaves after all steps, on the devices there are, as JSON."""
  mesh = partitioning.make_mesh(model_parallel)
  state, losses = together(made_model(EPT, ADAMW()), mesh, shard_bank)
  if shard_bank:
    leaf = state.trainable["prompt/short_prompt"]
    shape = leaf.sharding.shard_shape(leaf.shape)
    assert shape[0] == PROMPTS * model_parallel // jax.device_count()
  leaves = jax.device_get(state.trainable)
  found = {path: leaf.tolist() for path, leaf in leaves.items()}
  print(json.dumps({"losses": losses.tolist(), **found}))


@pytest.fixture(scope="module")
def on_one():
  return together(made_model(EPT, ADAMW()), partitioning.make_mesh())


@pytest.mark.parametrize(
  ("model_parallel", "cut"),
  [
    (2, True),
    pytest.param(2, False, marks=pytest.mark.slow),
    pytest.param(1, False, marks=pytest.mark.slow),
    pytest.param(1, True, marks=pytest.mark.slow),
  ],
)
def test_eight_devices_train_a_bank_as_one_does_whether_it_is_cut_or_not(
  on_one, model_parallel, cut
):
  state, losses = on_one
  printed = device_programs.on_eight_devices(__file__, model_parallel, int(cut))
  found = json.loads(printed.splitlines()[-1])
  np.testing.assert_allclose(found.pop("losses"), losses, rtol=1e-4)
  for path, leaf in found.items():
    np.testing.assert_allclose(leaf, state.trainable[path], **CLOSE, err_msg=path)


if __name__ == "__main__":
  main(int(sys.argv[1]), bool(int(sys.argv[2])))

"""The parts of a training step that its results do not show."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AbstractMesh, NamedSharding, PartitionSpec

from tpv_jax.core import identity
from tpv_jax.devices import partitioning
from tpv_jax.model import SoftPromptModel
from tpv_jax.training import optimizers, steps

STILL = optimizers.constant(0.0)


@pytest.mark.parametrize("name", ["adamw", "adafactor"])
def test_moments_lie_as_their_parameters_and_all_else_is_replicated(name):
  rates = dict.fromkeys(optimizers.GROUPS, 1.0)
  transformation = optimizers.by_group(getattr(optimizers, name)(), rates)
  mesh = AbstractMesh((4, 2), (partitioning.DATA, partitioning.MODEL))

  def leaf(shape, *cuts):
    sharding = NamedSharding(mesh, PartitionSpec(*cuts))
    return jax.ShapeDtypeStruct(shape, "float32", sharding=sharding)

  trainable = {
    "prompt/short_prompt": leaf((128, 256), None, "model"),  # Adafactor factors it,
    "prompt/low_rank_b": leaf((3, 256), None, "model"),  # not this one.
    "prompt/fusion_gamma": leaf(()),
    "encoder/kernel": leaf((256, 128), "model", None),
  }
  state = steps.TrainState(
    step=jax.ShapeDtypeStruct((), "int32"),
    trainable=trainable,
    optimizer=jax.eval_shape(transformation.init, trainable),
  )
  whole = NamedSharding(mesh, PartitionSpec())
  found = steps.state_shardings(transformation, state, trainable, whole)
  assert found.trainable == {path: leaf.sharding for path, leaf in trainable.items()}
  cut = 0
  for moment, sharding in zip(
    jax.tree.leaves(state.optimizer), jax.tree.leaves(found.optimizer), strict=True
  ):
    share = sharding.shard_shape(moment.shape)
    assert list(share) == [128 if size == 256 else size for size in moment.shape]
    cut += share != moment.shape
  # Two moments of three leaves; or a factor of two leaves and the moment of one.
  assert cut == {"adamw": 6, "adafactor": 3}[name]


@pytest.mark.parametrize("length", [1, 3])
def test_a_call_writes_the_state_where_the_old_one_was(tiny, length):
  mesh = partitioning.make_mesh()
  built = steps.build(tiny.plain_model, tiny.schedule, 1, mesh)
  parameters = partitioning.layout(tiny.plain_model, mesh).parameters
  trainable, frozen = tiny.plain_model.split(identity.unflatten(parameters))
  state = jax.eval_shape(built.initialise, trainable)
  batches = steps.put_batches(built, [tiny.data().batch_at(0)] * length)
  step = built.train.lower(state, frozen, batches, jax.random.key(0)).compile()
  size = sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(state))
  assert step.memory_analysis().alias_size_in_bytes == size


def test_each_step_and_each_microbatch_drops_out_by_itself(tiny):
  model = SoftPromptModel(
    tiny.network.clone(dropout_rate=0.5),
    tiny.plain_model.prompt,
    tiny.vocabulary,
    tiny.vocabulary,
    optimizers.adamw(),
  )
  prompt = np.random.default_rng(0).normal(size=(4, 16)).astype(np.float32)
  trainable, frozen = model.split(
    {**tiny.backbone.params, "prompt": {"prompt": prompt}}
  )

  def losses(batches, parts):
    built = steps.build(model, STILL, parts, partitioning.make_mesh())
    state = built.initialise(jax.tree.map(jnp.asarray, trainable))
    placed = steps.put_batches(built, batches)
    return built.train(state, frozen, placed, jax.random.key(0))[1]["loss"]

  batch = tiny.data().batch_at(0)
  one, next_one = losses([batch, batch], 1)
  assert abs(one - next_one) > 1e-3
  # Microbatches take rows in turn, so both are the batch above.
  twice = {name: np.repeat(value, 2, axis=0) for name, value in batch.items()}
  (both,) = losses([twice], 2)
  assert abs(both - one) > 1e-3


def test_compilations_are_counted_while_one_listens():
  one, other = jax.jit(lambda x: x * 3 + 1), jax.jit(lambda x: x * 5 - 1)
  with steps.compilations() as count:
    assert count() == 0
    one(jnp.zeros(7)).block_until_ready()
    first = count()
    assert first >= 1
    one(jnp.ones(7)).block_until_ready()
    assert count() == first
  other(jnp.zeros(7))
  assert count() == first

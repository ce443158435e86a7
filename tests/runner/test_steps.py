"""The parts of a training step that its results do not show."""

import jax
import pytest
from jax.sharding import AbstractMesh, PartitionSpec

from tpv_jax import identity, optimizers, partitioning
from tpv_jax.runner import steps


@pytest.mark.parametrize("name", ["adamw", "adafactor"])
def test_moments_lie_as_their_parameters_and_all_else_is_replicated(tiny, name):
  model = tiny.model("ept", trainable=".*")
  rates = dict.fromkeys(optimizers.GROUPS, 1.0)
  transformation = optimizers.by_group(getattr(optimizers, name)(), rates)
  mesh = AbstractMesh((4, 2), (partitioning.DATA, partitioning.MODEL))
  parameters = partitioning.abstract_parameters(model, mesh)
  trainable, _ = model.split(identity.unflatten(parameters))
  state = steps.TrainState(
    step=jax.ShapeDtypeStruct((), "int32"),
    trainable=trainable,
    optimizer=jax.eval_shape(transformation.init, trainable),
  )
  whole = jax.sharding.NamedSharding(mesh, PartitionSpec())
  found = steps._state_shardings(transformation, state, trainable, whole)
  assert found.trainable == {path: leaf.sharding for path, leaf in trainable.items()}
  seen = set()
  for (path, leaf), sharding in zip(
    jax.tree_util.tree_leaves_with_path(state.optimizer),
    jax.tree.leaves(found.optimizer),
    strict=True,
  ):
    parameter = trainable.get(getattr(path[-1], "key", None))
    same = parameter is not None and leaf.shape == parameter.shape
    assert sharding == (parameter.sharding if same else whole), path
    seen.add(sharding.spec)
  assert PartitionSpec(None, "model") in seen and PartitionSpec() in seen

"""Shardings, and equal numbers on one device and on eight."""

import json
import os
import pathlib
import subprocess
import sys
import types

import jax
import numpy as np
import pytest
from jax.sharding import PartitionSpec

from tpv_jax import identity, partitioning
from tpv_jax.errors import UserError

T5X = json.loads(
  (pathlib.Path(__file__).parent / "references" / "t5x_tree.json").read_text()
)

TOLERANCE = 1e-5
"""Of the largest value: sums over devices run in another order, in fp32."""


def axes_of(leaves):
  return identity.unflatten(
    {
      f"{path}_axes": types.SimpleNamespace(names=tuple(leaf["axes"]))
      for path, leaf in leaves.items()
    }
  )


@pytest.mark.parametrize("version", T5X)
def test_every_axis_of_t5x_has_a_rule(version):
  mesh = partitioning.make_mesh()
  leaves = T5X[version]["leaves"]
  shardings = identity.flatten(partitioning.param_shardings(axes_of(leaves), mesh))
  assert shardings.keys() == leaves.keys()
  specs = {path: sharding.spec for path, sharding in shardings.items()}
  assert specs["token_embedder/embedding"] == PartitionSpec("model", None)
  assert specs["encoder/layers_0/attention/query/kernel"] == PartitionSpec(
    None, "model"
  )
  assert specs["encoder/layers_0/attention/out/kernel"] == PartitionSpec("model", None)
  assert specs["encoder/layers_0/mlp/wo/kernel"] == PartitionSpec("model", None)
  assert specs["encoder/relpos_bias/rel_embedding"] == PartitionSpec("model", None)
  assert specs["encoder/encoder_norm/scale"] == PartitionSpec(None)


def test_the_prompt_is_replicated():
  axes = {"prompt": {"prompt_axes": types.SimpleNamespace(names=("prompt", "embed"))}}
  shardings = partitioning.param_shardings(axes, partitioning.make_mesh())
  assert shardings["prompt"]["prompt"].spec == PartitionSpec(None, None)


def test_an_axis_without_a_rule_is_refused():
  axes = {"prompt": {"prompt_axes": types.SimpleNamespace(names=("promt", "embed"))}}
  with pytest.raises(UserError) as caught:
    partitioning.param_shardings(axes, partitioning.make_mesh())
  text = str(caught.value)
  assert "'prompt/prompt' has an axis 'promt'" in text and "mean 'prompt'" in text


def test_rules_name_each_axis_once():
  names = [name for name, _ in partitioning.LOGICAL_AXIS_RULES]
  assert len(names) == len(set(names))


def test_a_mesh_that_the_devices_do_not_fill_is_refused():
  count = jax.device_count()
  with pytest.raises(UserError, match=f"does not divide the {count} devices"):
    partitioning.make_mesh(model_parallel=count + 1)
  with pytest.raises(UserError, match="model_parallel=0"):
    partitioning.make_mesh(model_parallel=0)


EIGHT_DEVICES = """
import json
import jax
import numpy as np
from tpv_jax import identity, partitioning
from tpv_jax.backbone.network import Transformer
from tpv_jax.model import SoftPromptModel
from tpv_jax.prompts.plain import Prompt

model = SoftPromptModel(
  Transformer(
    vocab_size=35, emb_dim=16, num_heads=2, head_dim=4, num_encoder_layers=1,
    num_decoder_layers=1, mlp_dim=24,
  ),
  Prompt(4, 16), None, None,
)
variables = jax.jit(lambda: model.get_initial_variables(jax.random.key(0), {}))()
params = jax.device_get(variables["params"])
rng = np.random.default_rng(0)
targets = rng.integers(1, 35, (8, 3))
batch = {
  "encoder_input_tokens": rng.integers(1, 35, (8, 6)) * (rng.random((8, 6)) < 0.8),
  "decoder_input_tokens": np.pad(targets, ((0, 0), (1, 0)))[:, :-1],
  "decoder_target_tokens": targets,
  "decoder_loss_weights": (rng.random((8, 3)) < 0.7).astype(np.float32),
}

def step(trainable, frozen, batch):
  def loss(trainable):
    return model.loss_fn(model.merge(trainable, frozen), batch, None)[0]
  value, gradient = jax.value_and_grad(loss)(trainable)
  tokens, aux = model.predict_batch_with_aux(model.merge(trainable, frozen), batch)
  return value, gradient["prompt/prompt"], tokens, aux["scores"]

results = {"devices": jax.device_count()}
def run(name, mesh):
  trainable, frozen = model.split(params)
  if mesh is None:
    placed = batch
  else:
    shardings = identity.flatten(
      partitioning.param_shardings(variables["params_axes"], mesh, params)
    )
    put = lambda leaves: {p: jax.device_put(x, shardings[p]) for p, x in leaves.items()}
    trainable, frozen = put(trainable), put(frozen)
    placed = jax.device_put(batch, partitioning.batch_sharding(mesh))
    kernel = frozen["encoder/layers_0/mlp/wi_0/kernel"]
    results[name + " shard"] = list(kernel.addressable_shards[0].data.shape)
    table = frozen["token_embedder/embedding"]
    results[name + " table"] = list(table.addressable_shards[0].data.shape)
    rows = placed["encoder_input_tokens"].addressable_shards[0].data.shape
    results[name + " rows"] = list(rows)
  values = jax.jit(step)(trainable, frozen, placed)
  results[name] = [np.asarray(value).tolist() for value in values]

run("1", None)
run("8x1", partitioning.make_mesh())
run("4x2", partitioning.make_mesh(model_parallel=2))
print(json.dumps(results))
"""


def test_one_device_and_eight_give_equal_loss_gradients_and_tokens():
  flags = os.environ.get("XLA_FLAGS", "") + " --xla_force_host_platform_device_count=8"
  environment = {**os.environ, "XLA_FLAGS": flags, "JAX_PLATFORMS": "cpu"}
  done = subprocess.run(
    [sys.executable, "-c", EIGHT_DEVICES],
    capture_output=True,
    text=True,
    env=environment,
  )
  assert done.returncode == 0, done.stderr
  results = json.loads(done.stdout)
  assert results["devices"] == 8
  assert results["8x1 shard"] == [16, 24] and results["8x1 rows"] == [1, 6]
  assert results["4x2 shard"] == [16, 12] and results["4x2 rows"] == [2, 6]
  # 35 words do not divide by 2, so the table is replicated.
  assert results["8x1 table"] == results["4x2 table"] == [35, 16]
  for mesh in ("8x1", "4x2"):
    loss, gradient, tokens, scores = (np.array(value) for value in results[mesh])
    one = [np.array(value) for value in results["1"]]
    assert abs(loss - one[0]) < TOLERANCE * abs(one[0])
    assert np.abs(one[1]).max() > 1e-3
    assert np.abs(gradient - one[1]).max() < TOLERANCE * np.abs(one[1]).max()
    assert np.array_equal(tokens, one[2])
    assert np.abs(scores - one[3]).max() < TOLERANCE * np.abs(one[3]).max()

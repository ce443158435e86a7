"""Shardings, and equal numbers on one device and on eight."""

import dataclasses
import json
import pathlib
import types

import device_programs
import jax
import numpy as np
import pytest
from jax.sharding import AbstractMesh, PartitionSpec

from tpv_jax.backbones.t5.network import Transformer
from tpv_jax.core import identity
from tpv_jax.core.errors import UserError
from tpv_jax.devices import partitioning
from tpv_jax.model import SoftPromptModel
from tpv_jax.prompts import ept, equations

T5X = json.loads(
  (pathlib.Path(__file__).parents[1] / "references" / "t5x_tree.json").read_text()
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


def forms_of_ept(features):
  return equations.parameters(40, features, 256, rank=29, fusion_width=4, spaces=4)


def test_the_width_of_every_leaf_of_an_ept_prompt_is_cut_where_the_backbones_is_not():
  forms = forms_of_ept(768)
  leaves = {f"prompt/{name}": {"axes": form.axes} for name, form in forms.items()}
  mesh = AbstractMesh((4, 2), (partitioning.DATA, partitioning.MODEL))
  shardings = identity.flatten(partitioning.param_shardings(axes_of(leaves), mesh))
  assert shardings.keys() == leaves.keys()
  assert len(leaves) == 10
  for name, form in forms.items():
    cuts = ["model" if size == 768 else None for size in form.shape]
    assert shardings[f"prompt/{name}"].spec == PartitionSpec(*cuts), name
  assert dict(partitioning.LOGICAL_AXIS_RULES)["embed"] is None


def test_an_axis_that_the_devices_do_not_divide_is_replicated_and_a_line_says_so():
  forms = forms_of_ept(770)
  names = {name: ("bank", *form.axes) for name, form in forms.items()}
  shapes = {name: (8, *form.shape) for name, form in forms.items()}
  mesh = AbstractMesh((3, 4), (partitioning.DATA, partitioning.MODEL))
  rules, lines = partitioning.that_divide(
    partitioning.LOGICAL_AXIS_RULES, names, shapes, mesh
  )
  assert {"bank", "prompt_embed"} == {
    name for name, _ in set(partitioning.LOGICAL_AXIS_RULES) - set(rules)
  }
  assert lines == [
    "'bank' of size 8 is replicated: the 3 devices along 'data' do not divide it.",
    "'prompt_embed' of size 770 is replicated: the 4 devices along 'model' do not divide "
    "it.",
  ]


@pytest.mark.parametrize(
  ("moment", "axes"),
  [
    ((5, 8, 6), ("a", "b", "c")),
    ((5, 8), ("a", "b")),
    ((5, 6), ("a", "c")),
    ((8,), ("b",)),
    ((), ()),
    ((7,), None),  # Something else.
  ],
)
def test_a_factored_moment_has_the_axes_that_are_left(moment, axes):
  assert partitioning.axes_of_moment(moment, (5, 8, 6), ("a", "b", "c")) == axes


def test_a_factored_moment_of_a_square_is_replicated_where_its_axes_differ():
  assert partitioning.axes_of_moment((8,), (8, 8), ("a", "b")) is None
  assert partitioning.axes_of_moment((8,), (8, 8), (None, None)) == (None,)


def test_a_users_rules_take_the_place_of_ours_for_their_names():
  merged = partitioning.merged([("embed", "data"), ["mlp", None]])
  assert merged[:2] == (("embed", "data"), ("mlp", None))
  ours = [rule for rule in partitioning.LOGICAL_AXIS_RULES if rule[0] != "embed"]
  assert merged[2:] == tuple(rule for rule in ours if rule[0] != "mlp")
  assert partitioning.merged(()) == partitioning.LOGICAL_AXIS_RULES


@pytest.mark.parametrize(
  ("rules", "message"),
  [
    ({"embed": "data"}, "is no list of pairs"),
    (["embed"], "'embed', which is no pair: write"),
    ([("embd", "data")], "for 'embd', and no parameter .* mean 'embed'"),
    (
      [("embed", "modle")],
      "shards 'embed' along 'modle'; the mesh has the axes 'data'",
    ),
    ([("batch", None)], "rows of a batch are always sharded along 'data'"),
  ],
)
def test_rules_that_mean_nothing_are_refused(rules, message):
  with pytest.raises(UserError, match=message):
    partitioning.merged(rules)


WITH_AXES = [
  name for name, form in equations.parameters(1, 1, 1, 1, 1, 1).items() if form.axes
]


@pytest.mark.parametrize("name", WITH_AXES)
def test_a_misspelt_axis_of_an_ept_parameter_raises(name, monkeypatch):
  """It would be replicated silently otherwise."""
  forms = equations.parameters(3, 16, 7, rank=2, fusion_width=2, spaces=2)
  axes = tuple(f"{axis}s" for axis in forms[name].axes)
  forms[name] = dataclasses.replace(forms[name], axes=axes)
  monkeypatch.setattr(ept.EPT, "parameters", lambda self: forms)
  prompt = ept.EPT(3, 16, source_length=7, rank=2, fusion_width=2, spaces=2)
  network = Transformer(
    vocab_size=35,
    emb_dim=16,
    num_heads=2,
    head_dim=4,
    num_encoder_layers=1,
    num_decoder_layers=1,
    mlp_dim=24,
  )
  model = SoftPromptModel(network, prompt, None, None)
  with pytest.raises(UserError, match=f"'prompt/{name}' has an axis '{axes[0]}' for"):
    partitioning.layout(model, partitioning.make_mesh())


def test_an_axis_without_a_rule_is_refused():
  axes = {"prompt": {"prompt_axes": types.SimpleNamespace(names=("promt", "embed"))}}
  with pytest.raises(UserError) as caught:
    partitioning.param_shardings(axes, partitioning.make_mesh())
  text = str(caught.value)
  assert "'prompt/prompt' has an axis 'promt'" in text
  assert "mean 'prompt'" in text


def test_rules_name_each_axis_once():
  names = [name for name, _ in partitioning.LOGICAL_AXIS_RULES]
  assert len(names) == len(set(names))


def test_a_mesh_that_the_devices_do_not_fill_is_refused():
  count = jax.device_count()
  with pytest.raises(UserError, match=f"does not divide the {count} devices"):
    partitioning.make_mesh(model_parallel=count + 1)
  with pytest.raises(UserError, match="MODEL_PARALLEL=0"):
    partitioning.make_mesh(model_parallel=0)


EIGHT_DEVICES = """
import json
import sys
import jax
import numpy as np
from tpv_jax.core import identity
from tpv_jax.devices import partitioning
from tpv_jax.backbones.t5.network import Transformer
from tpv_jax.model import SoftPromptModel
from tpv_jax.prompts.ept import EPT
from tpv_jax.prompts.plain import Prompt

prompts = {
  "plain": Prompt(4, 16),
  "ept": EPT(3, 16, source_length=7, rank=2, fusion_width=2, spaces=2),
}
model = SoftPromptModel(
  Transformer(
    vocab_size=35, emb_dim=16, num_heads=2, head_dim=4, num_encoder_layers=1,
    num_decoder_layers=1, mlp_dim=24,
  ),
  prompts[sys.argv[1]], None, None,
)
variables = jax.jit(lambda: model.get_initial_variables(jax.random.key(0), {}))()
params = jax.device_get(variables["params"])
rng = np.random.default_rng(0)
params["prompt"] = {  # No part is switched off by a zero.
  name: rng.normal(size=leaf.shape).astype(np.float32)
  for name, leaf in params["prompt"].items()
}
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
  gradient = {path.removeprefix("prompt/"): leaf for path, leaf in gradient.items()}
  return {"loss": value, "tokens": tokens, "scores": aux["scores"]}, gradient

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
  results[name] = jax.tree.map(lambda value: np.asarray(value).tolist(), values)

run("1", None)
run("8x1", partitioning.make_mesh())
run("4x2", partitioning.make_mesh(model_parallel=2))
run("2x4", partitioning.make_mesh(model_parallel=4))
print(json.dumps(results))
"""


@pytest.mark.parametrize("prompt", ["plain", "ept"])
def test_one_device_and_eight_give_equal_loss_gradients_and_tokens(prompt):
  results = json.loads(device_programs.on_eight_devices("-c", EIGHT_DEVICES, prompt))
  assert results["devices"] == 8
  assert results["8x1 shard"] == [16, 24]
  assert results["8x1 rows"] == [1, 6]
  assert results["4x2 shard"] == [16, 12]
  assert results["4x2 rows"] == [2, 6]
  assert results["2x4 shard"] == [16, 6]
  assert results["2x4 rows"] == [4, 6]
  # 35 words divide neither by 2 nor by 4, so the table is replicated.
  for mesh in ("8x1", "4x2", "2x4"):
    assert results[mesh + " table"] == [35, 16]
  one, one_gradient = results["1"]
  assert len(one_gradient) == {"plain": 1, "ept": 10}[prompt]
  for mesh in ("8x1", "4x2", "2x4"):
    outputs, gradient = results[mesh]
    assert outputs["tokens"] == one["tokens"]
    for name, value in {**outputs, **gradient}.items():
      expected = np.array({**one, **one_gradient}[name])
      assert np.abs(expected).max() > 1e-4, name
      distance = np.abs(np.array(value) - expected).max()
      assert distance < TOLERANCE * np.abs(expected).max(), (mesh, name)

"""Quantised backbones: what is stored, how far it is from the weights, and every runner."""

import functools
import os
import pathlib
import subprocess
import sys
import tracemalloc

import conftest
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tpv_jax.backbones import loading, quantization, registry
from tpv_jax.core import identity
from tpv_jax.core.errors import UserError
from tpv_jax.evaluation import candidates
from tpv_jax.evaluation.evaluator import Evaluator
from tpv_jax.formats import sources
from tpv_jax.prompts.equations import Folded
from tpv_jax.runs.run_folder import RunFolder
from tpv_jax.vectors import algebra, store

pytest.importorskip("qwix", reason="qwix is not installed")
pytestmark = pytest.mark.usefixtures("compiles_faster")
TESTS = pathlib.Path(__file__).parents[1]
MODES = tuple(quantization.BITS)
KINDS = {"t5": conftest.Tiny, "llama": conftest.TinyDecoder}
DISTANCE = {"int8": 0.02, "int4": 0.3, "nf4": 0.3}
"""The most of a logit's deviation that quantising may change, on random weights."""


def kernel(inputs=64, outputs=48, seed=0):
  return np.random.default_rng(seed).standard_normal((inputs, outputs), np.float32)


@functools.cache
def exact(kind):
  return KINDS[kind]()


@functools.cache
def quantised(kind, mode, dtype="float32"):
  """The same backbone in a network that quantises it."""

  class Quantised(KINDS[kind]):
    def make_network(self):
      return super().make_network().clone(quantize=mode, dtype=dtype)

  return Quantised()


@pytest.mark.parametrize("mode", ["int8", "int4"])
def test_a_weight_is_off_by_at_most_half_a_step_of_its_scale(mode):
  values = kernel()
  made = quantization.quantize(values, mode, "float32")
  groups = values.reshape(1 if mode == "int8" else 2, -1, 48)
  # The largest magnitude stands half a step above the last whole number.
  step = np.abs(groups).max(axis=1) / {"int8": 127.5, "int4": 7.5}[mode]
  np.testing.assert_allclose(made.scales, step, rtol=1e-6)
  assert made.values.dtype == {"int8": jnp.int8, "int4": jnp.int4}[mode]
  off = np.abs(np.asarray(quantization.unpacked(made)) - values).reshape(groups.shape)
  assert (off <= step[:, None] * 0.50001).all()


def test_an_nf4_weight_is_the_nearest_of_sixteen_levels():
  values = kernel()
  made = quantization.quantize(values, "nf4", "float32")
  largest = np.abs(values.reshape(2, 32, 48)).max(axis=1)
  np.testing.assert_array_equal(made.scales, largest)
  # QLoRA, appendix E, rounded.
  levels = np.array(
    [
      *(-1.0, -0.6962, -0.5251, -0.3949, -0.2844, -0.1848, -0.0911, 0.0),
      *(0.0796, 0.1609, 0.2461, 0.3379, 0.4407, 0.5626, 0.723, 1.0),
    ]
  )
  groups = values.reshape(2, 32, 48) / largest[:, None]
  nearest = levels[np.abs(groups[..., None] - levels).argmin(axis=-1)]
  found = np.asarray(quantization.unpacked(made)).reshape(2, 32, 48) / largest[:, None]
  wrong = np.abs(found - nearest) > 1e-4
  assert (
    wrong.mean() < 1e-3
  )  # Between two levels the rounded ones may choose otherwise.


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_a_product_and_its_gradient_are_those_of_the_unpacked_kernel(mode, dtype):
  made = quantization.quantize(kernel(), mode, dtype)
  plain = np.asarray(quantization.unpacked(made), np.float32)
  x, cotangent = (
    jnp.asarray(kernel(5, width, seed=width), dtype) for width in made.shape
  )
  product, back = jax.vjp(lambda x: quantization.multiply(x, made), x)
  for found, exact_one in (
    (product, np.asarray(x, np.float32) @ plain),
    (back(cotangent)[0], np.asarray(cotangent, np.float32) @ plain.T),
  ):
    assert found.dtype == jnp.dtype(dtype)
    tolerance = 1e-5 if dtype == "float32" else 2**-8  # Of the result's rounding.
    np.testing.assert_allclose(
      np.asarray(found, np.float32), exact_one, rtol=tolerance, atol=30 * tolerance
    )


def test_an_axis_that_no_group_divides_has_smaller_groups():
  assert quantization.quantize(kernel(36), "int4", "float32").scales.shape == (9, 48)


@pytest.mark.parametrize("mode", MODES)
def test_zeros_stay_zeros(mode):
  made = quantization.quantize(np.zeros((64, 4), np.float32), mode, "float32")
  assert not np.any(quantization.unpacked(made))


def test_layers_are_quantised_and_embeddings_norms_biases_and_logits_are_not():
  yes = (
    "decoder/layers_0/self_attention/query/kernel",
    "encoder/layers_1/mlp/wi_0/kernel",
  )
  no = (
    *("decoder/logits_dense/kernel", "token_embedder/embedding"),
    *("decoder/layers_0/self_attention/query/bias", "encoder/encoder_norm/scale"),
    *("encoder/relpos_bias/rel_embedding", "prompt/prompt"),
  )
  assert list(map(quantization.is_quantized, yes + no)) == [True] * 2 + [False] * 6


def file_of(folder, kind):
  """Writes the tiny backbone and returns its path."""
  tiny, path = exact(kind), pathlib.Path(folder) / "tiny.safetensors"
  stated = None
  if kind == "llama":
    named = registry.family("llama").tiny["llama_tiny"]
    numbers = {name: getattr(tiny.network, name) for name in named}
    stated = {"family": "llama", **numbers}
  loading.save_backbone(
    path, identity.flatten(tiny.backbone.params), "tiny", network=stated
  )
  return path


@pytest.mark.parametrize(("kind", "mode"), [("t5", "int8"), ("llama", "int4")])
def test_a_backbone_is_quantised_as_it_is_read(kind, mode, tmp_path):
  path, whole = file_of(tmp_path, kind), exact(kind).backbone
  flat, network = identity.flatten(whole.params), quantised(kind, mode).network
  found = loading.load_backbone(path, network)
  assert found.fingerprint == whole.fingerprint
  assert found.stated(network) == whole.stated(exact(kind).network) | {"quantize": mode}
  count = 0
  for name, leaf in identity.flatten(found.params).items():
    if not quantization.is_quantized(name):
      assert np.array_equal(leaf, flat[name]), name
      continue
    count += 1
    assert leaf.mode == mode
    assert leaf.shape == flat[name].shape
    assert isinstance(leaf.values, np.ndarray)
  assert count > 10
  assert "quantize" not in found.stated(exact(kind).network)


def test_reading_holds_little_more_than_the_quantised_leaves(tmp_path):
  """Of 16 layers in fp32, which would be four times as large, one leaf at a time."""
  network = exact("llama").network.clone(
    emb_dim=128, num_layers=16, mlp_dim=512, quantize="int8", logits_via_embedding=True
  )
  shapes = jax.eval_shape(network.init, jax.random.key(0), *network.init_inputs())
  flat = {
    path: np.ones(leaf.shape, np.float32)
    for path, leaf in identity.flatten(shapes["params"]).items()
  }
  named = registry.family("llama").tiny["llama_tiny"]
  numbers = {name: getattr(network, name) for name in named}
  path = tmp_path / "larger.safetensors"
  loading.save_backbone(path, flat, "larger", network={"family": "llama", **numbers})
  loading.load_backbone(path, network)  # Compiles.
  whole, largest = (of(x.nbytes for x in flat.values()) for of in (sum, max))
  del flat
  tracemalloc.start()
  loaded = loading.load_backbone(path, network)
  peak = tracemalloc.get_traced_memory()[1]
  tracemalloc.stop()
  kept = sum(leaf.nbytes for leaf in jax.tree.leaves(loaded.params))
  assert kept < 0.3 * whole
  assert peak < kept + 3 * largest + (1 << 20)


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("kind", KINDS)
def test_logits_are_near_those_of_the_weights(kind, mode):
  tiny, other = exact(kind), quantised(kind, mode)
  batch = tiny.data().batch_at(0)
  params = {
    path: quantization.stored(other.network, path, leaf)
    for path, leaf in identity.flatten(tiny.backbone.params).items()
  }
  prompt = Folded(np.ones((4, 16), np.float32), None)
  found, wanted = (
    np.asarray(one.plain_model.target_logits(prompt, tree, batch))
    for one, tree in ((other, identity.unflatten(params)), (tiny, tiny.backbone.params))
  )
  seen = np.isfinite(wanted)
  distance = np.sqrt(np.mean((found[seen] - wanted[seen]) ** 2)) / np.std(wanted[seen])
  print(f"{kind}, {mode}: {distance:.4f} of the logits' deviation")
  assert 0 < distance < DISTANCE[mode]


@functools.cache
def run_of(folder, kind, mode, prompt=None):
  """Trains 20 steps and returns the run's folder."""
  tiny = exact(kind) if mode is None else quantised(kind, mode)
  run = pathlib.Path(folder) / f"{kind}-{mode}-{prompt}"
  tiny.train(run, prompt)
  return run


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
  return tmp_path_factory.mktemp("runs")


def losses(run):
  return [x["loss"] for x in RunFolder(run).metrics() if x["kind"] == "train"]


def leaves(run, which="last"):
  return sources.load(run, which).leaves


@pytest.mark.parametrize(
  ("kind", "mode"), [("t5", "int8"), ("llama", "int8"), ("llama", "nf4")]
)
def test_tuning_stays_near_that_on_the_weights(runs, kind, mode):
  run, other = run_of(runs, kind, mode), run_of(runs, kind, None)
  found, wanted = losses(run), losses(other)
  print(f"{kind}, {mode}: losses {found}, with the weights {wanted}")
  assert found[-1] < 0.9 * found[0]
  assert abs(found[-1] - wanted[-1]) < (0.1 if mode == "int8" else 0.5) * wanted[0]
  vectors = [leaves(x)["prompt"] - leaves(x, "initial")["prompt"] for x in (run, other)]
  # Both start from the same prompt: the embeddings are not quantised.
  assert np.array_equal(*(leaves(x, "initial")["prompt"] for x in (run, other)))
  cosine = np.vdot(*vectors) / np.prod([np.linalg.norm(v) for v in vectors])
  print(f"cosine of the vectors {cosine:.3f}")
  assert cosine > (0.9 if mode == "int8" else 0.5)


def test_the_mode_stands_beside_the_fingerprint(runs):
  run = run_of(runs, "llama", "int8")
  manifest = RunFolder(run).manifest()
  fingerprint = exact("llama").backbone.fingerprint
  assert manifest["backbone"] == {
    **{"name": "tiny", "fingerprint": fingerprint},
    "quantize": "int8",
  }
  for which in ("initial", "last"):
    known = store.read(RunFolder(run).prompt(which))[1]
    assert (known.backbone_fingerprint, known.quantize) == (fingerprint, "int8")


def vector(run):
  return algebra.diff(sources.load(run, "last"), sources.load(run, "initial"))


def test_vectors_of_two_precisions_are_added_and_that_is_said(runs):
  one, other = (vector(run_of(runs, "llama", mode)) for mode in ("int8", None))
  assert one.provenance.quantize == "int8"
  assert algebra.sum_vectors([one, one]).provenance.quantize == "int8"
  both = algebra.sum_vectors([one, other]).provenance
  assert both.quantize is None
  assert any("as it is and quantised as int8" in note for note in both.notes)
  start = sources.load(run_of(runs, "llama", None), "initial")
  applied = algebra.apply(one, start).provenance  # An untuned prompt has no precision.
  assert applied.quantize == "int8"
  assert not applied.notes


def test_a_run_is_not_continued_in_another_mode(runs):
  run = run_of(runs, "llama", "int8")
  with pytest.raises(UserError, match="network/quantize: int8 there, None now"):
    exact("llama").train(run)


def test_a_run_that_is_stopped_ends_with_the_same_bits(runs, tmp_path, monkeypatch):
  tiny, whole = quantised("llama", "nf4"), run_of(runs, "llama", "nf4")
  tiny.train_killed(tmp_path / "run", monkeypatch)
  for name in ("metrics.jsonl", "last_prompt.safetensors"):
    assert (tmp_path / "run" / name).read_bytes() == (whole / name).read_bytes()


def test_ept_prompts_are_trained(runs):
  run = run_of(runs, "t5", "int8", "ept")
  before, after = (leaves(run, which) for which in ("initial", "last"))
  for name, leaf in after.items():
    assert not np.array_equal(leaf, before[name]), name


def test_a_bank_trains_the_prompts_of_runs_alone(runs, tmp_path):
  tiny, alone = quantised("llama", "int8"), run_of(runs, "llama", "int8")
  tiny.train_bank(tmp_path, prompts=2)
  start, solo = (leaves(alone, which)["prompt"] for which in ("initial", "last"))
  found = leaves(tmp_path / "0")["prompt"]
  # fp32 sums in another order, 20 steps of AdamW at 0.3.
  assert np.linalg.norm(found - solo) < 2e-2 * np.linalg.norm(solo - start)


def test_scores_and_decoded_text_are_those_of_the_unpacked_weights(runs):
  tiny, other = quantised("llama", "nf4"), exact("llama")
  flat = identity.flatten(tiny.backbone.params)
  stored = {p: quantization.stored(tiny.network, p, leaf) for p, leaf in flat.items()}
  plain = {
    path: quantization.unpacked(leaf) if quantization.is_quantized(path) else leaf
    for path, leaf in stored.items()
  }
  prompt = {"prompt": leaves(run_of(runs, "llama", "nf4"))["prompt"]}
  results = [
    Evaluator(
      one.plain_model, identity.unflatten(tree), one.vocabulary, one.lengths, 8
    ).evaluate(prompt, tiny.task, "test")
    for one, tree in ((tiny, stored), (other, plain))
  ]
  assert results[0] == results[1]


def test_another_precision_is_said_when_a_prompt_is_tried(runs, capsys):
  known = sources.load(run_of(runs, "llama", "int8"), "last").provenance
  candidates.say_other_quantization([known], quantised("llama", "int8").network)
  assert not capsys.readouterr().out
  candidates.say_other_quantization([known, None], exact("llama").network)
  shown = "".join(capsys.readouterr())
  assert "trained on the backbone quantised as int8 and is tried" in shown


def test_what_is_quantised_is_not_trained():
  model = quantised("llama", "int8").model(trainable=".*")
  params = {**exact("llama").backbone.params, "prompt": {"prompt": np.ones((4, 16))}}
  with pytest.raises(
    UserError, match=r"TRAINABLE trains 'decoder/.*kernel', which QUANT"
  ):
    model.split(params)


def test_a_backbone_in_another_mode_is_refused():
  path = "decoder/layers_0/mlp/wo/kernel"
  leaf = quantization.quantize(kernel(), "int4", "float32")
  with pytest.raises(UserError, match=f"'{path}' is int4 .* QUANTIZE = 'int8'"):
    quantization.stored(quantised("llama", "int8").network, path, leaf)
  with pytest.raises(UserError, match="QUANTIZE = None"):
    quantization.stored(exact("llama").network, path, leaf)


def test_an_unknown_mode_is_refused_by_name():
  with pytest.raises(
    UserError, match=r"quantize is 'int3'; it must be .*'int8' or 'int4'"
  ):
    exact("llama").network.clone(quantize="int3")


def test_without_qwix_there_is_one_clear_line(tmp_path, monkeypatch):
  path = file_of(tmp_path, "llama")
  monkeypatch.setitem(sys.modules, "qwix", None)
  with pytest.raises(
    UserError, match="pip install qwix, or tpv_jax with its extra 'quanti"
  ):
    loading.load_backbone(path, quantised("llama", "int8").network)


def test_the_backward_pass_keeps_no_unpacked_kernel():
  tiny, base = quantised("llama", "int8"), exact("llama")
  flat = identity.flatten(base.backbone.params)
  stored = {p: quantization.stored(tiny.network, p, leaf) for p, leaf in flat.items()}
  kernels = {leaf.shape for p, leaf in flat.items() if quantization.is_quantized(p)}
  kernels -= {(32, 16), (16, 32)}  # The token table has these, and is not quantised.
  batch = tiny.data().batch_at(0)

  def kept(model, frozen):
    def loss(prompt):
      return model.loss_sums({**frozen, "prompt": {"prompt": prompt}}, batch)[0]

    back = jax.eval_shape(lambda p: jax.vjp(loss, p)[1], np.ones((4, 16), np.float32))
    return [x.dtype for x in jax.tree.leaves(back) if x.shape in kernels]

  assert np.float32 in kept(base.plain_model, base.backbone.params)
  assert set(kept(tiny.plain_model, identity.unflatten(stored))) <= {np.dtype(np.int8)}


SHARDED = """
import sys
sys.path.insert(0, {tests!r})
import conftest
from tpv_jax.backbones import quantization
from tpv_jax.core import identity
from tpv_jax.devices import partitioning, processes

class Quantised(conftest.TinyDecoder):
  mlp_dim = 32
  def make_network(self):
    return super().make_network().clone(quantize="nf4", mlp_dim=self.mlp_dim)

class Wider(Quantised):
  mlp_dim = 64  # Two groups of inputs, one for each device.

Quantised().train({folder!r} + "/run", model_parallel=2)
tiny = Wider()
parameters = partitioning.layout(tiny.plain_model, partitioning.make_mesh(2)).parameters
for path, leaf in identity.flatten(tiny.backbone.params).items():
  if "layers_0/mlp" in path and path.endswith("kernel"):
    made = quantization.stored(tiny.network, path, leaf)
    put = processes.put_leaf(made, parameters[path].sharding)
    for part in (put.values, put.scales):
      print(part.size // part.addressable_shards[0].data.size)
"""


def test_eight_devices_give_the_numbers_of_one_and_hold_a_part_each(runs, tmp_path):
  script = SHARDED.format(tests=str(TESTS), folder=str(tmp_path))
  done = subprocess.run(
    [sys.executable, "-c", script],
    env={**os.environ, "XLA_FLAGS": "--xla_force_host_platform_device_count=8"},
    capture_output=True,
    text=True,
  )
  assert done.returncode == 0, done.stderr
  # Values and scales of three kernels, cut along their inputs or outputs.
  assert done.stdout.split("\n") == [*["2"] * 6, ""]
  one, eight = run_of(runs, "llama", "nf4"), tmp_path / "run"
  start, alone = (leaves(one, which)["prompt"] for which in ("initial", "last"))
  other = leaves(eight)["prompt"]
  assert np.linalg.norm(other - alone) < 3e-2 * np.linalg.norm(alone - start)

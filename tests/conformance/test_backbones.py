"""Every registered family keeps its protocol; one is tested by being registered."""

import pathlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tpv_jax.backbones import loading, protocol, quantization, registry
from tpv_jax.core import identity
from tpv_jax.data import batches, packing, row_fitting
from tpv_jax.data.vocabularies import WordVocabulary
from tpv_jax.devices import partitioning
from tpv_jax.formats import hugging_face
from tpv_jax.model import ARCHITECTURES, SoftPromptModel
from tpv_jax.prompts import plain
from tpv_jax.training import optimizers

FORMS = [
  (name, form) for name in registry.FAMILIES for form in registry.family(name).tiny
]
"""Of every family, each form that it has."""

pytestmark = [
  pytest.mark.parametrize(("name", "form"), FORMS),
  pytest.mark.usefixtures("compiles_faster"),
]

LENGTH, WIDTH, TARGETS = 3, 6, 4
WORDS = WordVocabulary([f"w{number}" for number in range(20)])


def network_of(name, form, **numbers):
  family = registry.family(name)
  return family.network(**{**family.tiny[form], **numbers})


def built(name, form):
  """A network of the family, its parameters and a prompt."""
  network = network_of(name, form)
  variables = jax.jit(network.init)(jax.random.key(0), *network.init_inputs())
  rng = np.random.default_rng(0)
  prompt = rng.standard_normal((LENGTH, network.emb_dim)).astype(np.float32)
  return network, variables["params"], prompt


def rows(seed=0):
  """Three sources and targets of different lengths, padded."""
  rng = np.random.default_rng(seed)
  inputs = np.zeros((3, WIDTH), np.int32)
  targets = np.zeros((3, TARGETS), np.int32)
  for row, (source, target) in enumerate(((WIDTH, 2), (3, TARGETS), (1, 1))):
    inputs[row, :source] = rng.integers(3, 20, source)
    targets[row, :target] = [*rng.integers(3, 20, target - 1), WORDS.eos_id]
  return inputs, targets


def model_of(network):
  prompt = plain.Prompt(LENGTH, network.emb_dim)
  return SoftPromptModel(network, prompt, WORDS, WORDS, optimizers.adamw())


def test_family_and_network_keep_their_protocols(name, form):
  family = registry.family(name)
  assert isinstance(family, protocol.Family)
  network = network_of(name, form)
  assert isinstance(network, protocol.Network)
  assert network.ARCHITECTURE in ARCHITECTURES
  assert family.table == network.TABLE
  if network.ARCHITECTURE == "encoder_decoder":
    assert isinstance(network, protocol.EncoderDecoderNetwork)
  else:
    assert isinstance(network, protocol.DecoderOnlyNetwork)
    assert network.FIRST_ID == 1
  assert isinstance(model_of(network).architecture, protocol.Architecture)


def test_ids_without_a_row_have_no_probability(name, form):
  network, params, _ = built(name, form)
  states = jnp.ones((1, 2, network.emb_dim))
  logits = network.apply({"params": params}, states, method=network.logits)
  first = network.FIRST_ID
  assert logits.shape == (1, 2, first + network.vocab_size)
  assert logits.dtype == np.float32
  assert np.isneginf(logits[..., :first]).all()
  assert np.isfinite(logits[..., first:]).all()


def test_embedded_tokens_are_rows_of_the_table_times_the_scale(name, form):
  network, params, _ = built(name, form)
  assert network.embedding_scale > 0
  if network.ARCHITECTURE == "encoder_decoder":
    return
  table = identity.flatten(params)[network.TABLE]
  tokens = jnp.arange(network.FIRST_ID, network.FIRST_ID + len(table))[None]
  found = network.apply({"params": params}, tokens, method=network.embed)
  np.testing.assert_allclose(found[0], table * network.embedding_scale, rtol=1e-6)


def test_every_parameter_has_axes_that_the_rules_know(name, form):
  network = network_of(name, form)
  variables = jax.eval_shape(network.init, jax.random.key(0), *network.init_inputs())
  axes = identity.flatten(variables["params_axes"])
  known = {axis for axis, _ in partitioning.LOGICAL_AXIS_RULES}
  for path, leaf in identity.flatten(variables["params"]).items():
    names = axes[f"{path}_axes"].names
    assert len(names) == leaf.ndim, path
    assert set(names) <= known, path
  table = identity.flatten(variables["params"])[network.TABLE]
  assert table.shape == (network.vocab_size, network.emb_dim)


@pytest.mark.parametrize("which", [0, -1])
def test_public_sizes_are_networks(name, form, which):
  family = registry.family(name)
  size = list(family.sizes)[which]
  network = family.network(**family.sizes[size])
  variables = jax.eval_shape(network.init, jax.random.key(0), *network.init_inputs())
  assert network.TABLE in identity.flatten(variables["params"])


def test_padding_is_never_seen(name, form):
  network, params, prompt = built(name, form)
  model = model_of(network)
  inputs, targets = rows()
  short = batches.features(inputs, targets)
  wide = batches.features(np.pad(inputs, ((0, 0), (0, 3))), targets)
  both = {**params, "prompt": {"prompt": prompt}}
  one, other = (model.loss_sums(both, batch)[0] for batch in (short, wide))
  np.testing.assert_allclose(one, other, rtol=1e-5)


def test_packed_rows_equal_rows_of_one_example(name, form):
  network, params, prompt = built(name, form)
  model = model_of(network)
  inputs, targets = rows()
  batch = batches.features(inputs, targets)
  alone, _, _ = model.loss_sums({**params, "prompt": {"prompt": prompt}}, batch)
  shape = row_fitting.Shape(rows=2, width=2 * (LENGTH + WIDTH), targets=2 * TARGETS)
  shapes = row_fitting.Shapes(shape, shape, prompt_length=LENGTH)
  folded = model.fold_bank({"prompt": jnp.asarray(prompt)[None]})
  packed = 0.0
  for _, call in packing.pack(packing.items(batch, 0), shapes):
    packed += float(model.bank_loss_sums(folded, params, call)[0][0])
  np.testing.assert_allclose(packed, float(alone), rtol=1e-5)


def test_decoding_writes_the_arg_max_after_what_it_has_written(name, form):
  network, params, prompt = built(name, form)
  model = model_of(network)
  both = {**params, "prompt": {"prompt": prompt}}
  inputs, targets = rows()
  batch = batches.features(inputs, targets)
  written, scores = model.predict_batch_with_aux(both, batch)
  assert written.shape == targets.shape
  again = batches.features(inputs, np.asarray(written))
  logits = model.target_logits(model.fold(both), params, again)
  best = np.asarray(jnp.argmax(logits, axis=-1))
  used = np.asarray(~batches.is_padding(written))
  np.testing.assert_array_equal(best[used], np.asarray(written)[used])
  log_probability = jnp.max(jax.nn.log_softmax(logits), axis=-1)
  expected = np.where(used, log_probability, 0).sum(axis=-1)
  np.testing.assert_allclose(scores["scores"], expected, rtol=1e-4, atol=1e-5)


def test_bf16_storage_changes_no_number_of_a_bf16_network(name, form):
  network = network_of(name, form, dtype="bfloat16")
  params = jax.jit(network.init)(jax.random.key(0), *network.init_inputs())["params"]
  stored = identity.unflatten(
    {
      path: leaf.astype(network.stored(path, leaf.dtype))
      for path, leaf in identity.flatten(params).items()
    }
  )
  inputs, targets = rows()
  batch = batches.features(inputs, targets)
  model = SoftPromptModel(network, None, WORDS, WORDS)
  one, other = (model.loss_sums(tree, batch)[0] for tree in (params, stored))
  assert float(one) == float(other)


def test_every_kernel_may_be_quantised(name, form):
  pytest.importorskip("qwix", reason="qwix is not installed")
  if not hasattr(network_of(name, form), "quantize"):
    return  # QUANTIZE is refused for it.
  network = network_of(name, form, quantize="int4")
  variables = jax.eval_shape(network.init, jax.random.key(0), *network.init_inputs())
  flat = identity.flatten(variables["params"])
  stored = {
    path: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype) for path, leaf in flat.items()
  }
  for path in filter(quantization.is_quantized, flat):
    inputs, outputs = flat[path].shape
    stored[path] = quantization.Quantized(
      jax.ShapeDtypeStruct((inputs, outputs), jnp.int4),
      jax.ShapeDtypeStruct((1, outputs), jnp.float32),
      "int4",
    )
  assert stored != flat
  model = SoftPromptModel(network, None, WORDS, WORDS)
  batch = batches.features(*rows())
  tree = identity.unflatten(stored)
  loss = jax.eval_shape(lambda tree: model.loss_sums(tree, batch)[0], tree)
  assert loss.shape == ()


def test_hugging_faces_folder_goes_out_and_in_bit_by_bit(name, form, tmp_path):
  family = registry.family(name)
  network, params, _ = built(name, form)
  flat = {path: np.asarray(leaf) for path, leaf in identity.flatten(params).items()}
  numbers = family.tiny[form]
  config = family.config_of(flat, "made here", numbers=numbers)
  assert family.network(**config.numbers) == network
  folder = pathlib.Path(tmp_path)
  hugging_face.save(folder, config.to_json("float32"), family.places(config), flat)
  assert registry.of_folder(folder) is family
  again = loading.load_backbone(folder, network)
  for path, leaf in identity.flatten(again.params).items():
    assert leaf.tobytes() == flat[path].tobytes(), path
  assert again.fingerprint == identity.backbone_fingerprint(flat)
  assert again.table.tobytes() == flat[family.table].tobytes()

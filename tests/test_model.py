"""The model: what T5X calls, what is trained, loss, prediction and scoring."""

import inspect
import math
import subprocess
import sys

import flax
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from clu import metrics as clu_metrics
from flax.linen import partitioning as flax_partitioning

from tpv_jax import model
from tpv_jax.backbones.t5 import network
from tpv_jax.core import identity
from tpv_jax.core.errors import UserError
from tpv_jax.devices import partitioning
from tpv_jax.prompts import ept, equations, plain
from tpv_jax.training import optimizers, steps

ROUNDING = 1e-5
"""fp32 against NumPy in fp64, sums of a few terms near 3."""

SOURCE = np.array([[5, 9, 4, 1, 0, 0], [7, 1, 0, 0, 0, 0], [8, 3, 6, 11, 2, 1]])
TARGETS = np.array([[4, 6, 1, 0], [9, 1, 0, 0], [3, 7, 12, 1]])
BATCH = {
  "encoder_input_tokens": SOURCE,
  "decoder_input_tokens": np.pad(TARGETS, ((0, 0), (1, 0)))[:, :-1],
  "decoder_target_tokens": TARGETS,
  "decoder_loss_weights": (TARGETS > 0).astype(np.float32),
}
LENGTH = 5


class WithEos:
  """All that the model reads of a vocabulary."""

  def __init__(self, eos_id):
    self.eos_id = eos_id


def build(prompt=True, eos_id=1, **settings):
  """Returns a model with a plain prompt, another module or none."""
  net = network.Transformer(
    vocab_size=16,
    emb_dim=12,
    num_heads=2,
    head_dim=5,
    num_encoder_layers=1,
    num_decoder_layers=1,
    mlp_dim=20,
  )
  vocabulary = WithEos(eos_id)
  soft = plain.Prompt(LENGTH, 12) if prompt is True else prompt or None
  return model.SoftPromptModel(
    net, soft, vocabulary, vocabulary, "optimizer", **settings
  )


@pytest.fixture(scope="module")
def params():
  """Returns weights drawn by NumPy, which compiles nothing."""
  shapes = jax.eval_shape(
    lambda: build().get_initial_variables(jax.random.key(0), {})["params"]
  )
  rng = np.random.default_rng(1)

  def draw(leaf):
    return rng.normal(len(leaf.shape) == 1, 0.5, leaf.shape).astype(np.float32)

  return jax.tree.map(draw, shapes)


def network_log_probabilities(params, batch=BATCH):
  """Returns fp64 log-probabilities [B, L, V] from the network itself, by NumPy."""
  net = build().network
  logits = jax.jit(net.apply)(
    {"params": {name: tree for name, tree in params.items() if name != "prompt"}},
    batch["encoder_input_tokens"],
    batch["decoder_input_tokens"],
    batch["decoder_target_tokens"],
    prompt=params["prompt"]["prompt"],
  )
  logits = np.asarray(logits, np.float64)
  return logits - np.log(np.exp(logits).sum(axis=-1, keepdims=True)), logits


def score(ours, params, batch=BATCH):
  return np.asarray(jax.jit(ours.score_batch)(params, batch))


def of_targets(log_probabilities, targets=TARGETS):
  return np.take_along_axis(log_probabilities, targets[..., None], axis=-1)[..., 0]


# What T5X calls: name, parameters that it passes by position or by name.
CONTRACT = {
  "get_initial_variables": ["rng", "input_shapes", "input_types"],
  "loss_fn": ["params", "batch", "dropout_rng"],
  "eval_fn": ["params", "batch"],
  "predict_batch": ["params", "batch", "rng"],
  "predict_batch_with_aux": ["params", "batch", "rng"],
  "score_batch": ["params", "batch", "return_intermediates"],
}


@pytest.mark.parametrize("name", CONTRACT)
def test_t5x_may_call_a_member_by_position_and_by_name(name):
  method = getattr(build(), name)
  assert inspect.ismethod(method)
  assert isinstance(method.__self__, model.SoftPromptModel)
  parameters = inspect.signature(method).parameters
  assert list(parameters) == CONTRACT[name]
  for parameter in parameters.values():
    assert parameter.kind is parameter.POSITIONAL_OR_KEYWORD
  optional = {"input_types": None, "rng": None, "return_intermediates": False}
  for argument, parameter in parameters.items():
    if argument in optional and (name, argument) != ("get_initial_variables", "rng"):
      assert parameter.default is optional[argument]
    else:
      assert parameter.default is parameter.empty
  assert "flax_mutables" not in parameters


def test_t5x_finds_the_attributes_it_reads():
  ours = build()
  assert ours.optimizer_def == "optimizer"
  assert ours.input_vocabulary.eos_id == ours.output_vocabulary.eos_id == 1
  assert isinstance(inspect.getattr_static(ours, "FEATURE_CONVERTER_CLS"), property)


def test_the_feature_converter_is_that_of_seqio():
  seqio = pytest.importorskip("seqio", reason="needs the extra 'data'")
  assert build().FEATURE_CONVERTER_CLS is seqio.EncDecFeatureConverter
  assert build().FEATURE_CONVERTER_CLS(pack=False).pack is False


def test_importing_the_model_loads_neither_seqio_nor_tensorflow_nor_t5x():
  code = (
    "import sys; from tpv_jax import model; from tpv_jax.devices import partitioning; "
    "from tpv_jax.backbones import loading; from tpv_jax.backbones.t5 import sizes; "
    "from tpv_jax.training import initial; "
    "print(sorted({'seqio', 'tensorflow', 't5x', 'torch'} & set(sys.modules)))"
  )
  done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
  assert done.stdout.strip() == "[]", done.stderr


def test_a_model_is_hashed_by_identity():
  assert build() != build()
  assert len({build(), build()}) == 2


def test_initial_variables_hold_exactly_p_rows_and_all_axes():
  ours = build()
  shapes = {name: value.shape for name, value in BATCH.items()}
  variables = jax.eval_shape(
    lambda: ours.get_initial_variables(rng=jax.random.key(0), input_shapes=shapes)
  )
  assert set(variables) == {"params", "params_axes"}
  flat = identity.flatten(variables["params"])
  axes = identity.flatten(variables["params_axes"])
  assert flat["prompt/prompt"].shape == (LENGTH, 12)
  assert axes["prompt/prompt_axes"] == flax_partitioning.AxisMetadata(
    ("prompt", "embed")
  )
  assert {f"{path}_axes" for path in flat} == set(axes)
  assert [path for path in flat if path.startswith("prompt/")] == ["prompt/prompt"]
  for path, leaf in flat.items():
    assert len(axes[f"{path}_axes"].names) == len(leaf.shape), path


def test_the_initial_prompt_depends_on_the_seed_only():
  def prompt(ours, seed):
    @jax.jit
    def initialise(rng):
      return ours.get_initial_variables(rng, {})["params"]["prompt"]["prompt"]

    return np.asarray(initialise(jax.random.key(seed)))

  ours, other = build(), build()
  other.network = other.network.copy(emb_dim=8, num_heads=3, logits_via_embedding=True)
  other.prompt = plain.Prompt(LENGTH, 12)
  assert np.array_equal(prompt(ours, 0), prompt(other, 0))
  assert not np.array_equal(prompt(ours, 0), prompt(ours, 1))


def test_the_loss_is_the_mean_over_target_tokens(params):
  loss, metrics = jax.jit(build().loss_fn)(params, BATCH, None)
  log_probabilities, _ = network_log_probabilities(params)
  real = TARGETS > 0
  expected = -of_targets(log_probabilities)[real].mean()
  assert float(loss) == pytest.approx(expected, rel=ROUNDING)
  assert float(metrics["loss"].compute()) == pytest.approx(expected, rel=ROUNDING)
  hits = (log_probabilities.argmax(axis=-1) == TARGETS)[real].mean()
  assert float(metrics["accuracy"].compute()) == pytest.approx(hits)
  assert all(isinstance(metric, clu_metrics.Average) for metric in metrics.values())


def test_metrics_merge_to_those_of_the_whole_batch(params):
  evaluate = jax.jit(build().eval_fn)
  _, whole = evaluate(params, BATCH)
  _, first = evaluate(params, {name: value[:1] for name, value in BATCH.items()})
  _, rest = evaluate(params, {name: value[1:] for name, value in BATCH.items()})
  assert set(whole) >= {"loss", "accuracy", "exact_match"}
  for name, metric in whole.items():
    merged = first[name].merge(rest[name]).compute()
    assert float(merged) == pytest.approx(float(metric.compute()), rel=ROUNDING), name


def test_exact_match_counts_the_rows_that_greedy_decoding_gets_right(params):
  ours = build()
  written = np.asarray(jax.jit(ours.predict_batch)(params, BATCH))
  targets = np.array([written[0], np.roll(written[1], 1) + 1, written[2]])
  assert (written > 1).all()  # No padding, so that every position is a target.
  batch = {
    **BATCH,
    "decoder_target_tokens": targets,
    "decoder_input_tokens": np.pad(targets, ((0, 0), (1, 0)))[:, :-1],
    "decoder_loss_weights": np.ones(targets.shape, np.float32),
  }

  def exact_match():
    _, metrics = ours.eval_fn(params, batch)
    return float(metrics["exact_match"].compute())

  assert exact_match() == 0  # None of the targets ends.
  for row in (0, 2):
    end_id = int(written[row, -1])
    ours._end_ids = (end_id,)
    ends = (written[[0, 2]] == end_id).any(axis=1)
    assert exact_match() == pytest.approx(ends.sum() / 3)
    ours._unk_id = int(written[row, 0])
    known = (written[[0, 2]] != ours._unk_id).all(axis=1)
    assert exact_match() == pytest.approx((ends & known).sum() / 3)
    ours._unk_id = None


def test_a_batch_of_padding_only_has_loss_zero(params):
  empty = {name: value * 0 for name, value in BATCH.items()}
  loss, _ = jax.jit(build().loss_fn)(params, empty, None)
  assert float(loss) == 0.0


def test_label_smoothing_is_cross_entropy_with_a_soft_target_less_its_entropy():
  rng = np.random.default_rng(0)
  logits = rng.standard_normal((2, 3, 7))
  targets = rng.integers(0, 7, (2, 3))
  log_probabilities = logits - np.log(np.exp(logits).sum(-1, keepdims=True))
  soft = np.full((2, 3, 7), 0.1 / 6)
  np.put_along_axis(soft, targets[..., None], 0.9, axis=-1)
  expected = (soft * (np.log(soft) - log_probabilities)).sum(-1)
  found = model.token_losses(jnp.asarray(logits), jnp.asarray(targets), 0.1)
  np.testing.assert_allclose(found, expected, rtol=ROUNDING)


def test_z_loss_adds_the_squared_log_of_the_normaliser():
  logits = np.random.default_rng(0).standard_normal((2, 3, 7)).astype(np.float32)
  targets = np.array([[0, 1, 2], [3, 4, 6]])
  plain_losses = model.token_losses(jnp.asarray(logits), jnp.asarray(targets))
  found = model.token_losses(jnp.asarray(logits), jnp.asarray(targets), z_loss=0.3)
  expected = 0.3 * np.log(np.exp(logits).sum(-1)) ** 2
  np.testing.assert_allclose(found - plain_losses, expected, rtol=1e-4)


@pytest.mark.parametrize("at_once", [1, 3 * 16, 2 * 3 * 16, 10**6])
def test_losses_made_in_parts_and_their_gradient_are_plain_cross_entropy(
  params, monkeypatch, at_once
):
  monkeypatch.setattr(model, "LOGITS_AT_ONCE", at_once)
  ours = build()
  rng = np.random.default_rng(2)
  states = rng.standard_normal((3, 5, 12), np.float32)
  targets, weights = rng.integers(0, 16, (3, 5)), rng.uniform(size=(3, 5))

  def total(states):
    losses, hits = ours._losses(params, states, jnp.asarray(targets), z_loss=0.3)
    return jnp.sum(losses * weights), (losses, hits)

  compiled = jax.jit(jax.value_and_grad(total, has_aux=True)).lower(states).compile()
  (_, (losses, hits)), gradient = compiled(states)
  kernel = np.asarray(params["decoder"]["logits_dense"]["kernel"], np.float64)
  logits = states @ kernel
  log_z = np.log(np.exp(logits).sum(axis=-1))
  expected = log_z - of_targets(logits, targets) + 0.3 * log_z**2
  np.testing.assert_allclose(losses, expected, rtol=ROUNDING)
  assert np.array_equal(hits, logits.argmax(axis=-1) == targets)
  slope = np.exp(logits - log_z[..., None]) * (1 + 0.6 * log_z)[..., None]
  slope[np.arange(3)[:, None], np.arange(5), targets] -= 1
  expected = (weights[..., None] * slope) @ kernel.T
  np.testing.assert_allclose(gradient, expected, rtol=1e-4, atol=ROUNDING)
  # All logits are one array in the program exactly where they are made at once.
  assert ("f32[3,5,16]" in compiled.as_text()) == (at_once >= 3 * 5 * 16)


def gradients(ours, params):
  gradient = jax.jit(jax.grad(lambda p: ours.loss_fn(p, BATCH, None)[0]))
  return identity.flatten(gradient(params))


def test_gradients_reach_the_prompt_only_and_every_row_of_it(params):
  found = gradients(build(), params)
  prompt = np.asarray(found.pop("prompt/prompt"))
  assert prompt.shape == (LENGTH, 12)
  assert (np.abs(prompt).max(axis=1) > 1e-5).all()
  assert len(found) > 10
  for path, gradient in found.items():
    assert not np.any(gradient), path


def test_the_gradient_for_the_prompt_is_the_slope_of_the_loss(params):
  ours = build()
  loss = jax.jit(lambda p: ours.loss_fn(p, BATCH, None)[0])
  direction = np.random.default_rng(5).standard_normal((LENGTH, 12)).astype(np.float32)

  def at(step):
    moved = params["prompt"]["prompt"] + np.float32(step) * direction
    return float(loss({**params, "prompt": {"prompt": moved}}))

  slope = (at(3e-4) - at(-3e-4)) / 6e-4
  expected = float((gradients(ours, params)["prompt/prompt"] * direction).sum())
  # Central differences: an error of the order of the step squared, and of rounding.
  assert slope == pytest.approx(expected, rel=1e-2, abs=1e-4)


def test_every_leaf_is_trained_if_the_pattern_says_so(params):
  backbone = {name: tree for name, tree in params.items() if name != "prompt"}
  for path, gradient in gradients(
    build(prompt=False, trainable=".*"), backbone
  ).items():
    assert np.any(gradient), path


def test_a_frozen_backbone_costs_no_gradient(params):
  def flops(ours):
    step = jax.jit(jax.grad(lambda p: ours.loss_fn(p, BATCH, None)[0]))
    return step.lower(params).compile().cost_analysis()["flops"]

  # Forward 1, backward to the inputs 1, backward to the weights 1.
  assert flops(build()) < 0.8 * flops(build(trainable=".*"))


def test_split_and_merge_are_inverse(params):
  ours = build(trainable=r"prompt/.*|encoder/.*/scale")
  trainable, frozen = ours.split(params)
  assert set(trainable) == {
    "prompt/prompt",
    "encoder/encoder_norm/scale",
    "encoder/layers_0/pre_attention_layer_norm/scale",
    "encoder/layers_0/pre_mlp_layer_norm/scale",
  }
  merged = identity.flatten(ours.merge(trainable, frozen))
  expected = identity.flatten(params)
  assert merged.keys() == expected.keys()
  assert all(merged[path] is expected[path] for path in expected)


def test_the_pattern_must_match_the_whole_path(params):
  trainable, _ = build(trainable=".*prompt").split(params)
  assert set(trainable) == {"prompt/prompt"}
  with pytest.raises(UserError, match=r"'prompt' matches none of the \d+ parameters"):
    build(trainable="prompt").split(params)


def test_a_prompt_of_another_width_is_refused():
  with pytest.raises(UserError, match=r"16 features.*tokens 12.*features to 12"):
    model.SoftPromptModel(build().network, plain.Prompt(4, 16), None, None)


def test_a_prompt_that_reads_the_source_is_refused_by_what_it_reads():
  class Attempt(plain.Prompt):
    def __call__(self, source):
      return equations.Folded(source, None)

  with pytest.raises(UserError, match=r"Attempt reads 'source'.*can't be folded"):
    build(Attempt(LENGTH, 12))


def test_scores_are_sums_of_log_probabilities(params):
  scores, kept = jax.jit(build().score_batch, static_argnums=2)(params, BATCH, True)
  log_probabilities, _ = network_log_probabilities(params)
  expected = of_targets(log_probabilities) * (TARGETS > 0)
  np.testing.assert_allclose(scores, expected.sum(axis=-1), rtol=ROUNDING)
  [token_scores] = kept["decoder"]["token_scores"]
  np.testing.assert_allclose(token_scores, expected, rtol=1e-4, atol=1e-5)
  assert np.array_equal(kept["decoder"]["target_tokens"][0], TARGETS)
  assert np.array_equal(kept["decoder"]["loss_weights"][0], TARGETS > 0)
  # Another program: jax 0.12 sums in another order.
  np.testing.assert_allclose(scores, score(build(), params), rtol=ROUNDING)


def test_scores_ignore_label_smoothing_and_z_loss(params):
  smooth = build(label_smoothing=0.3, z_loss=0.5)
  assert np.array_equal(score(smooth, params), score(build(), params))


def test_predictions_end_with_the_vocabularys_end_token(params):
  free = np.asarray(jax.jit(build(eos_id=99).predict_batch)(params, BATCH))
  end = int(free[0, 1])
  ours = build(eos_id=end)
  tokens, aux = jax.jit(ours.predict_batch_with_aux)(params, BATCH, jax.random.key(0))
  first = free[0].tolist().index(end)
  assert tokens[0].tolist() == free[0, : first + 1].tolist() + [0] * (3 - first)
  assert set(aux) == {"scores"}
  assert aux["scores"].shape == (3,)
  assert np.array_equal(tokens, jax.jit(ours.predict_batch)(params, BATCH))


def test_the_score_of_a_prediction_is_that_of_scoring_it(params):
  ours = build(eos_id=99)
  tokens, aux = jax.jit(ours.predict_batch_with_aux)(params, BATCH)
  batch = {
    **BATCH,
    "decoder_target_tokens": tokens,
    "decoder_input_tokens": np.pad(tokens, ((0, 0), (1, 0)))[:, :-1],
    "decoder_loss_weights": np.ones(tokens.shape, np.float32),
  }
  assert (np.asarray(tokens) > 0).all()
  np.testing.assert_allclose(aux["scores"], score(ours, params, batch), rtol=ROUNDING)


@pytest.mark.parametrize("kind", ["plain", "ept"])
def test_the_score_of_a_beam_is_that_of_scoring_it_over_its_length(params, kind):
  prompt = True if kind == "plain" else ept.EPT(3, 12, 6, 2, fusion_width=2, spaces=2)
  one = build(prompt, 10)
  four = build(prompt, 10, num_beams=4, length_penalty=3.0)
  if kind == "ept":
    fresh = one.get_initial_variables(jax.random.key(1), {})["params"]["prompt"]
    params = {**params, "prompt": jax.tree.map(lambda x: x + 0.1, fresh)}
  tokens, aux = jax.jit(four.predict_batch_with_aux)(params, BATCH)
  tokens = np.asarray(tokens)
  lengths = (tokens > 0).sum(axis=1)
  batch = {
    **BATCH,
    "decoder_target_tokens": tokens,
    "decoder_input_tokens": np.pad(tokens, ((0, 0), (1, 0)))[:, :-1],
    "decoder_loss_weights": (tokens > 0).astype(np.float32),
  }
  expected = score(one, params, batch) / lengths**3.0
  np.testing.assert_allclose(aux["scores"], expected, rtol=ROUNDING)
  greedy, _ = jax.jit(one.predict_batch_with_aux)(params, BATCH)
  assert not np.array_equal(greedy, tokens)


def test_rows_of_different_prompts_have_the_beams_of_each_alone(params):
  ours = build(prompt=None, eos_id=10, num_beams=3, length_penalty=3.0)
  backbone = {name: tree for name, tree in params.items() if name != "prompt"}
  first = params["prompt"]["prompt"]
  bank = equations.Folded(np.stack([first, -4 * first]))
  rows = {"encoder_input_tokens": SOURCE[[0, 2, 0]], "prompt_ids": np.array([0, 1, 1])}
  found = jax.jit(ours.predict_rows, static_argnums=3)(bank, backbone, rows, 4)
  predict = jax.jit(ours.predict_batch)
  alone = [predict({**backbone, "prompt": {"prompt": p}}, BATCH) for p in bank.prompt]
  assert np.array_equal(found, [alone[0][0], alone[1][2], alone[1][0]])
  assert not np.array_equal(alone[0], alone[1])


def test_fewer_beams_than_one_are_refused():
  with pytest.raises(UserError, match=r"num_beams is 0; it must be a whole number"):
    build(num_beams=0)


def test_without_a_prompt_it_is_the_backbone_alone(params):
  backbone = {name: tree for name, tree in params.items() if name != "prompt"}
  alone = build(prompt=False, trainable=".*")
  logits = jax.jit(alone.network.apply)(
    {"params": backbone},
    *(
      BATCH[f"{n}_tokens"] for n in ("encoder_input", "decoder_input", "decoder_target")
    ),
  )
  found = score(alone, backbone)
  log_probabilities = np.asarray(jax.nn.log_softmax(logits))
  expected = (of_targets(log_probabilities) * (TARGETS > 0)).sum(axis=-1)
  np.testing.assert_allclose(found, expected, rtol=ROUNDING)
  assert np.abs(found - score(build(), params)).max() > 1e-2


def test_frozen_dicts_and_float_tokens_serve_as_well(params):
  # T5X freezes parameters; its eval gives no input types, so tokens arrive as floats.
  frozen = flax.core.freeze(params)
  floats = {name: value.astype(np.float32) for name, value in BATCH.items()}
  ours = build()
  assert np.array_equal(score(ours, frozen, floats), score(ours, params))
  predict = jax.jit(ours.predict_batch)
  assert np.array_equal(predict(frozen, floats), predict(params, BATCH))
  assert jnp.issubdtype(predict(frozen, floats).dtype, jnp.integer)
  gradient = jax.eval_shape(
    jax.grad(lambda p: ours.loss_fn(p, floats, None)[0]), frozen
  )
  assert isinstance(gradient, flax.core.FrozenDict)


def test_dropout_follows_the_rng_of_the_loss(params):
  ours = build()
  ours.network = ours.network.copy(dropout_rate=0.5)
  loss = jax.jit(lambda rng: ours.loss_fn(params, BATCH, rng)[0])
  one, same, other = (loss(jax.random.key(n)) for n in (0, 0, 1))
  assert one == same
  assert one != other
  dry = jax.jit(build().loss_fn)(params, BATCH, None)[0]
  assert float(jax.jit(ours.eval_fn)(params, BATCH)[0]) == pytest.approx(
    float(dry), rel=ROUNDING
  )


EPT = ept.EPT(
  length=LENGTH, features=12, source_length=7, rank=2, fusion_width=3, spaces=2
)


def with_ept(params):
  """Returns the backbone with EPT's parameters drawn as if they had been trained."""
  rng = np.random.default_rng(2)
  leaves = {
    name: rng.normal(size=form.shape).astype(np.float32)
    for name, form in EPT.parameters().items()
  }
  return {**params, "prompt": leaves}


def test_a_folded_ept_prompt_gives_the_logits_and_decodes_of_its_module(params):
  module, trained = build(EPT, eos_id=99), with_ept(params)
  folded = equations.fold_exactly(trained["prompt"], EPT.alpha).leaves()
  assert set(folded) == {"prompt", "delta"}  # No parameter of the module is left.
  alone, effective = build(prompt=False, eos_id=99), {**params, "prompt": folded}
  for name in ("score_batch", "loss_fn"):
    arguments = (None,) if name == "loss_fn" else ()
    ours, theirs = (
      jax.jit(getattr(form, name))(given, BATCH, *arguments)
      for form, given in ((module, trained), (alone, effective))
    )
    # fp32 against fp64 rounded once, through a network of two layers.
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4), ours, theirs)
  tokens, aux = jax.jit(module.predict_batch_with_aux)(trained, BATCH)
  folded_tokens, folded_aux = jax.jit(alone.predict_batch_with_aux)(effective, BATCH)
  assert np.array_equal(tokens, folded_tokens)
  np.testing.assert_allclose(aux["scores"], folded_aux["scores"], rtol=1e-4)
  # What the update does is seen: without it other scores come.
  without = {**params, "prompt": {"prompt": folded["prompt"]}}
  assert np.abs(score(alone, without) - score(alone, effective)).max() > 1e-2


def test_the_training_step_of_ept_can_be_lowered_for_a_tpu(params):
  rates = {"prompt": 1.0, "low_rank": 0.1, "fusion": 0.1, "spaces": 0.1}
  ours = build(EPT)
  ours.optimizer_def = optimizers.by_group(optimizers.adamw(), rates)
  built = steps.build(ours, optimizers.constant(0.3, 5), 1, partitioning.make_mesh())
  trainable, frozen = ours.split(with_ept(params))
  state = jax.eval_shape(built.initialise, trainable)
  batches = {name: value[None] for name, value in BATCH.items()}
  traced = built.train.trace(state, frozen, batches, jax.random.key(0))
  assert "stablehlo" in traced.lower(lowering_platforms=("tpu",)).as_text()


@pytest.mark.parametrize("prompt", [True, EPT], ids=("plain", "ept"))
@pytest.mark.parametrize("name", ["loss", "predict_batch"])
def test_what_is_compiled_can_be_lowered_for_a_tpu(params, name, prompt):
  ours = build(prompt)
  params = params if prompt is True else with_ept(params)
  functions = {
    "loss": jax.grad(lambda p: ours.loss_fn(p, BATCH, None)[0]),
    "predict_batch": lambda p: ours.predict_batch(p, BATCH),
  }
  lowered = jax.jit(functions[name]).trace(params).lower(lowering_platforms=("tpu",))
  assert "stablehlo" in lowered.as_text()


def test_entropy_of_smoothing_is_what_t5x_subtracts():
  # A prediction equal to the soft target has no loss.
  kept, other = 0.9, 0.1 / 6
  logits = np.full((1, 1, 7), math.log(other))
  logits[0, 0, 2] = math.log(kept)
  losses = model.token_losses(jnp.asarray(logits), jnp.array([[2]]), 0.1)
  assert float(losses[0, 0]) == pytest.approx(0.0, abs=1e-6)

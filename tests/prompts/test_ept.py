"""The module: what a step of DePT and EPT does, through the model on a small network."""

import dataclasses
import functools
import types

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tpv_jax import model
from tpv_jax.backbones import placing
from tpv_jax.backbones.t5 import network
from tpv_jax.core import identity
from tpv_jax.core.errors import UserError
from tpv_jax.prompts import ept, equations, plain
from tpv_jax.training import initial, optimizers
from tpv_jax.vectors.loaded import Loaded
from tpv_jax.vectors.provenance import Provenance

ROUNDING = 1e-5
"""fp32 sums in another order, of the largest value."""

D, M, S, P = 12, 7, 3, 6
TABLE = np.random.default_rng(9).normal(size=(16, D)).astype(np.float32)
SOURCE = np.array([[5, 9, 4, 1, 0, 0], [7, 1, 0, 0, 0, 0], [8, 3, 6, 11, 2, 1]])
TARGETS = np.array([[4, 6, 1, 0], [9, 1, 0, 0], [3, 7, 12, 1]])
LONG = initial.uniform(TABLE, 4, length=P)


def batch_of(source=SOURCE, targets=TARGETS):
  return {
    "encoder_input_tokens": source,
    "decoder_input_tokens": np.pad(targets, ((0, 0), (1, 0)))[:, :-1],
    "decoder_target_tokens": targets,
    "decoder_loss_weights": (targets > 0).astype(np.float32),
  }


BATCH = batch_of()
EPT = ept.EPT(S, D, M, rank=4, fusion_width=2, spaces=3, bottleneck=2)
DEPT = ept.EPT(S, D, M, rank=4, decomposition="dept")
PARTS = {
  "ept": EPT,
  "without_fusion": ept.EPT(S, D, M, rank=4, spaces=3, bottleneck=2),
  "without_spaces": ept.EPT(S, D, M, rank=4, fusion_width=2),
  "dept": DEPT,
}


def with_prompt(prompt, dtype="float32"):
  net = network.Transformer(
    vocab_size=16,
    emb_dim=D,
    num_heads=2,
    head_dim=5,
    num_encoder_layers=1,
    num_decoder_layers=1,
    mlp_dim=20,
    dtype=dtype,
  )
  vocabulary = types.SimpleNamespace(eos_id=1)
  return model.SoftPromptModel(net, prompt, vocabulary, vocabulary)


@pytest.fixture(scope="module")
def backbone():
  shapes = jax.eval_shape(
    lambda: with_prompt(None).get_initial_variables(jax.random.key(0), {})["params"]
  )
  rng = np.random.default_rng(1)

  def draw(leaf):
    return rng.normal(len(leaf.shape) == 1, 0.5, leaf.shape).astype(np.float32)

  return jax.tree.map(draw, shapes)


def logits(prompt, leaves, backbone, batch=BATCH):
  params = {**backbone, "prompt": leaves}
  ours = with_prompt(prompt)

  def compute(params):
    states = ours._states(params, batch, None)
    return ours._apply(params, states, method=ours.network.logits)

  return np.asarray(jax.jit(compute)(params))


def value_and_gradient(prompt, leaves, backbone, batch=BATCH):
  ours = with_prompt(prompt)

  def loss(leaves):
    return ours.loss_fn({**backbone, "prompt": leaves}, batch, None)[0]

  return jax.jit(jax.value_and_grad(loss))(leaves)


def trained(prompt, leaves, backbone, transformation, rate, steps):
  """Returns the leaves after this many steps, and those before each."""
  ours = with_prompt(prompt)
  flat = {f"prompt/{name}": jnp.asarray(leaf) for name, leaf in leaves.items()}
  state = transformation.init(flat)

  @jax.jit
  def step(flat, state):
    def loss(flat):
      params = {**backbone, **identity.unflatten(flat)}
      return ours.loss_fn(params, BATCH, None)[0]

    direction, state = transformation.update(jax.grad(loss)(flat), state, flat)
    return {name: flat[name] + rate * direction[name] for name in flat}, state

  for _ in range(steps):
    flat, state = step(flat, state)
  return {name.removeprefix("prompt/"): np.asarray(flat[name]) for name in flat}


@functools.cache
def encoder():
  net = with_prompt(None).network
  return jax.jit(
    lambda params, tokens, delta: net.apply(
      {"params": params}, tokens, prompt=LONG[:S], delta=delta, method=net.encode
    )
  )


def encoded(params, tokens, delta):
  return np.asarray(encoder()(params, tokens, delta))


def near(found, expected, tolerance=ROUNDING):
  expected = np.asarray(expected)
  scale = max(float(np.abs(expected).max()), 1e-3)
  np.testing.assert_allclose(found, expected, rtol=0, atol=tolerance * scale)


def scrambled(prompt, seed=2):
  rng = np.random.default_rng(seed)
  return {
    name: np.asarray(0.5 * rng.normal(size=form.shape), np.float32)
    for name, form in prompt.parameters().items()
  }


@pytest.mark.parametrize("name", PARTS)
def test_step_0_is_plain_tuning_with_the_short_prompt(name, backbone):
  leaves = PARTS[name].initial_leaves(LONG, seed=0)
  assert set(leaves) == set(PARTS[name].parameters())
  short = plain.Prompt(S, D).initial_leaves(LONG[:S], seed=0)
  np.testing.assert_array_equal(
    logits(PARTS[name], leaves, backbone), logits(plain.Prompt(S, D), short, backbone)
  )


def test_a_fresh_module_starts_as_plain_tuning_too():
  variables = jax.jit(EPT.init)(jax.random.key(0))
  folded = jax.jit(EPT.apply)({"params": variables["params"]})
  assert np.array_equal(folded.prompt, variables["params"]["short_prompt"])
  assert not folded.delta.any()
  short = np.asarray(variables["params"]["short_prompt"])
  assert -0.5 <= short.min() < -0.3
  assert 0.3 < short.max() < 0.5


def test_dept_is_ept_with_both_parts_off(backbone):
  # docs/methods.md, (2.1) and (2.2), written out: e_j + delta_j.
  leaves = scrambled(DEPT)
  delta = 8 / np.sqrt(4) * leaves["low_rank_a"] @ leaves["low_rank_b"]
  folded = {"prompt": leaves["short_prompt"], "delta": delta}
  near(logits(DEPT, leaves, backbone), logits(None, folded, backbone))
  # And EPT whose two parts add nothing.
  more = scrambled(EPT) | leaves
  more["fusion_gamma"] = np.zeros((), np.float32)
  more["space_up"] = np.zeros_like(more["space_up"])
  near(logits(EPT, more, backbone), logits(DEPT, leaves, backbone))
  loss, gradient = value_and_gradient(DEPT, leaves, backbone)
  other, others = value_and_gradient(EPT, more, backbone)
  near(other, loss)
  for name in leaves:
    near(others[name], gradient[name], 1e-4)


@pytest.mark.parametrize("transformation", [optimizers.adamw(), optimizers.adafactor()])
def test_plain_tuning_is_dept_with_rank_0(transformation, backbone):
  without = dataclasses.replace(DEPT, rank=0)
  leaves = without.initial_leaves(LONG, seed=0)
  assert set(leaves) == {"short_prompt"}
  short = {"prompt": leaves["short_prompt"]}
  loss, gradient = value_and_gradient(without, leaves, backbone)
  other, others = value_and_gradient(plain.Prompt(S, D), short, backbone)
  near(loss, other)
  near(gradient["short_prompt"], others["prompt"])
  run = functools.partial(
    trained, backbone=backbone, transformation=transformation, rate=0.3, steps=5
  )
  after = run(plain.Prompt(S, D), short)["prompt"]
  assert np.abs(after - short["prompt"]).max() > 0.1
  near(run(without, leaves)["short_prompt"], after, 1e-4)


STILL_AT_STEP_0 = {
  "svd": {"low_rank_b", "space_down", "gate_kernel", "gate_bias"}
  | {"fusion_query", "fusion_key", "fusion_gamma"},
  "dept": {"low_rank_a", "space_down", "gate_kernel", "gate_bias"}
  | {"fusion_query", "fusion_key", "fusion_gamma"},
}
"""Of these the gradient is 0 at step 0 (docs/methods.md, "Starts and first gradients")."""


@pytest.mark.parametrize("decomposition", STILL_AT_STEP_0)
def test_at_step_0_the_gradient_reaches_what_methods_md_says(decomposition, backbone):
  module = dataclasses.replace(EPT, decomposition=decomposition)
  _, gradient = value_and_gradient(module, module.initial_leaves(LONG, 0), backbone)
  still = {name for name, leaf in gradient.items() if not np.asarray(leaf).any()}
  assert still == STILL_AT_STEP_0[decomposition]


@pytest.mark.parametrize("decomposition", equations.DECOMPOSITIONS)
@pytest.mark.parametrize("name", ["adamw", "adafactor"])
def test_every_parameter_has_moved_after_ten_steps(name, decomposition, backbone):
  module = dataclasses.replace(EPT, decomposition=decomposition)
  start = module.initial_leaves(LONG, seed=0)
  transformation = getattr(optimizers, name)()
  after = trained(module, start, backbone, transformation, rate=0.03, steps=10)
  for leaf in start:
    moved = np.abs(after[leaf] - start[leaf])
    # An ordinary optimizer moves by its rate a step; ten steps at 0.03 make at most 0.3.
    assert moved.max() > 0.01, (leaf, moved.max())
    # Every row and column of it, not one corner: a third of the values at least.
    assert (moved > 1e-4).mean() > 0.3, leaf


def test_padding_is_not_updated(backbone):
  # At the embedding: the encoder's input is what the prompt and the delta made of it.
  delta = np.random.default_rng(3).normal(size=(M, D)).astype(np.float32)
  added = placing._update(jnp.asarray(delta), jnp.asarray(SOURCE))
  for row, tokens in enumerate(SOURCE):
    for position, token in enumerate(tokens):
      expected = delta[position] if token else np.zeros(D)
      np.testing.assert_array_equal(added[row, position], expected)
  # Also through the network: only the batch's last row has more than four tokens.
  other = delta.copy()
  other[4:] += 100
  before, after = (encoded(backbone, SOURCE, change) for change in (delta, other))
  np.testing.assert_array_equal(before[:2], after[:2])
  assert np.abs(before[2] - after[2]).max() > 1e-3


def test_a_delta_counts_by_the_position_in_the_source(backbone):
  # A token 14 is made what token 5 is after its update; the prompt before the source
  # does not shift the positions.
  update = np.random.default_rng(3).normal(size=D).astype(np.float32)
  table = np.array(backbone["token_embedder"]["embedding"])
  table[14] = table[5] + update
  changed = {**backbone, "token_embedder": {"embedding": table}}
  delta = np.zeros((M, D), np.float32)
  delta[2] = update
  updated = encoded(changed, np.array([[5, 9, 5, 5, 1, 0]]), delta)
  stands = encoded(changed, np.array([[5, 9, 14, 5, 1, 0]]), 0 * delta)
  without = encoded(changed, np.array([[5, 9, 5, 5, 1, 0]]), 0 * delta)
  near(updated, stands)
  assert np.abs(updated - without).max() > 0.1


def test_only_positions_that_hold_a_token_are_learned(backbone):
  # Without fusion, whose attention sees every row of delta.
  module = PARTS["without_fusion"]
  _, gradient = value_and_gradient(module, module.initial_leaves(LONG, 0), backbone)
  rows = np.abs(gradient["low_rank_a"]).max(axis=1)
  assert rows[:6].min() > 0
  assert rows[6] == 0  # The batch is 6 wide, M is 7.


def flops(prompt, leaves, backbone, rows):
  """Returns the flops of a training step, as the compiler counts them."""
  batch = batch_of(np.tile(SOURCE[2:], (rows, 1)), np.tile(TARGETS[2:], (rows, 1)))
  ours = with_prompt(prompt)

  def loss(leaves, batch):
    return ours.loss_fn({**backbone, "prompt": leaves}, batch, None)[0]

  compiled = jax.jit(jax.value_and_grad(loss)).lower(leaves, batch).compile()
  return compiled.cost_analysis()["flops"]


def test_the_flops_beyond_plain_tuning_grow_with_the_batch_by_the_addition_only(
  backbone,
):
  wide = dataclasses.replace(EPT, rank=7, fusion_width=12, spaces=8, bottleneck=4)
  leaves = wide.initial_leaves(initial.uniform(TABLE, 4, length=8), seed=0)
  short = {"prompt": leaves["short_prompt"]}
  few, many = 4, 32
  growth = {}
  for name, prompt, start in (
    ("ept", wide, leaves),
    ("plain", plain.Prompt(S, D), short),
    ("added", plain.Prompt(S, D, M), short | {"delta": np.zeros((M, D), np.float32)}),
  ):
    counts = [flops(prompt, start, backbone, rows) for rows in (few, many)]
    growth[name] = (counts[1] - counts[0]) / (many - few)
  # A row costs what it costs with a delta that is itself the parameter: the module's own
  # products, 2*R*D*M = 1176 flops for delta alone, are there once.
  assert growth["ept"] - growth["added"] <= 20, growth
  # And that is the addition: for each of T*D values the mask, the sum, and the way back
  # through the first norm, which plain tuning needs for its S tokens only.
  assert 0 < growth["ept"] - growth["plain"] <= 20 * SOURCE.shape[1] * D, growth


def test_a_source_longer_than_the_longest_is_refused(backbone):
  source = np.ones((2, M + 1), int)
  with pytest.raises(UserError, match=r"up to 8 tokens.*first 7.*SOURCE_LENGTH"):
    logits(EPT, scrambled(EPT), backbone, batch_of(source, TARGETS[:2]))
  logits(EPT, scrambled(EPT), backbone, batch_of(source[:, :M], TARGETS[:2]))


def test_the_module_stays_in_fp32_under_a_bf16_backbone(backbone):
  folded = jax.jit(EPT.apply)({"params": scrambled(EPT)})
  assert folded.prompt.dtype == folded.delta.dtype == jnp.float32
  exact, coarse = (
    jax.jit(with_prompt(EPT, dtype).loss_fn, static_argnums=2)(
      {**backbone, "prompt": scrambled(EPT)}, BATCH, None
    )[0]
    for dtype in ("float32", "bfloat16")
  )
  assert coarse != exact
  assert coarse == pytest.approx(float(exact), rel=0.05)


def loaded(leaves, alpha=None, space="effective"):
  provenance = Provenance(
    kind="prompt", method="ept" if alpha else "plain", space=space, alpha=alpha
  )
  return Loaded(leaves, provenance, "saved")


def test_a_plain_prompt_from_a_file_is_decomposed():
  one = EPT.initial_leaves(loaded({"prompt": LONG}), seed=0)
  other = EPT.initial_leaves(LONG, seed=0)
  assert all(np.array_equal(one[name], other[name]) for name in other)


def test_the_parameters_of_an_ept_prompt_are_taken_as_they_are():
  leaves = scrambled(EPT)
  taken = EPT.initial_leaves(loaded(leaves, alpha=8.0, space="factor"), seed=0)
  assert set(taken) == set(leaves)
  assert all(np.array_equal(taken[name], leaves[name]) for name in leaves)


@pytest.mark.parametrize("rank", [4, 7])
def test_a_folded_prompt_is_refactored_with_its_prompt_exactly(rank, backbone):
  module = dataclasses.replace(EPT, rank=rank)
  rng = np.random.default_rng(8)
  folded = {
    "prompt": LONG[:S],
    "delta": rng.normal(size=(M, D)).astype(np.float32),
  }
  leaves = module.initial_leaves(loaded(folded), seed=0)
  again = equations.fold_exactly(leaves, module.alpha)
  assert np.array_equal(again.prompt, folded["prompt"])
  assert leaves["fusion_gamma"] == 0
  assert not leaves["space_up"].any()
  sigma = np.linalg.svd(folded["delta"].astype(np.float64), compute_uv=False)
  tail = np.linalg.norm(sigma[rank:]) / np.linalg.norm(sigma)
  error = equations.relative_error(again.delta, folded["delta"])
  assert error == pytest.approx(tail, abs=1e-6)
  if rank == M:  # Nothing is cut: the logits are those of the folded prompt.
    near(logits(module, leaves, backbone), logits(None, folded, backbone), 1e-4)


def test_what_was_refactored_can_be_trained_on(backbone):
  folded = {"prompt": LONG[:S], "delta": np.zeros((M, D), np.float32)}
  start = EPT.initial_leaves(loaded(folded), seed=0)
  after = trained(EPT, start, backbone, optimizers.adamw(), rate=0.03, steps=10)
  assert all(np.abs(after[name] - start[name]).max() > 0.01 for name in start)


@pytest.mark.parametrize(
  ("module", "start", "text"),
  [
    (EPT, LONG[:, :5], r"5 features, the backbone's tokens 12"),
    (EPT, LONG[:2], r"short prompt of 3 tokens.*long prompt of 2"),
    (EPT, LONG[:3], r"Rank 4 .*\(3, 12\)"),
    (
      EPT,
      loaded({"prompt": LONG[:S], "delta": np.zeros((5, D), np.float32)}),
      r"'saved'.*\(5, 12\).*\(7, 12\).*SOURCE_LENGTH",
    ),
    (
      dataclasses.replace(DEPT, rank=0),
      loaded({"prompt": LONG[:S], "delta": np.zeros((M, D), np.float32)}),
      r"'saved' updates the source's embeddings.*rank 0.*Give a rank",
    ),
    (
      EPT,
      loaded(scrambled(DEPT), alpha=8.0, space="factor"),
      r"another form: fusion_gamma is None there, \(\) in this run.*tpv fold",
    ),
    (
      EPT,
      loaded(scrambled(EPT), alpha=2.0, space="factor"),
      r"alpha 2.0, this run has 8.0.*EPT\.alpha",
    ),
    (EPT, loaded({"soft": LONG}), r"'prompt' and perhaps 'delta', not soft"),
  ],
)
def test_a_start_that_does_not_fit_is_refused(module, start, text):
  with pytest.raises(UserError, match=text):
    module.initial_leaves(start, seed=0)


@pytest.mark.parametrize(
  ("change", "text"),
  [
    ({"rank": 8}, "7 source positions x 12 features.*at most 7"),
    ({"rank": 0}, "fusion attends to the low-rank update"),
    ({"alpha": 0.0}, "alpha is 0.0.*above 0"),
    ({"decomposition": "svdd"}, "no decomposition 'svdd'.*Did you mean 'svd'"),
  ],
)
def test_a_module_that_cannot_be_is_refused(change, text):
  with pytest.raises(UserError, match=text):
    dataclasses.replace(EPT, **change)


def test_equal_seeds_give_equal_bits_and_others_do_not():
  one, same, other = (EPT.initial_leaves(LONG, seed) for seed in (0, 0, 1))
  assert all(np.array_equal(one[name], same[name]) for name in one)
  drawn = {"fusion_query", "fusion_key", "space_down", "gate_kernel"}
  assert {name for name in one if not np.array_equal(one[name], other[name])} == drawn
  assert all(leaf.dtype == np.float32 for leaf in one.values())


def test_the_drawn_parameters_have_the_spread_of_methods_md():
  module = ept.EPT(2, 400, 10, rank=2, fusion_width=30, spaces=20, bottleneck=2)
  rng = np.random.default_rng(0)
  leaves = module.initial_leaves(rng.normal(size=(4, 400)).astype(np.float32), seed=0)
  for name, std in {
    "fusion_query": 1 / 20,
    "fusion_key": 1 / 20,
    "space_down": 1 / 20,
    "gate_kernel": 0.02,
  }.items():
    # 8000 draws or more: their standard deviation is within 4 * 1/sqrt(16000) = 3 %.
    assert leaves[name].std() == pytest.approx(std, rel=0.032), name
    assert abs(leaves[name].mean()) < std / 20
  assert leaves["fusion_gamma"] == 1
  assert not leaves["space_up"].any()
  assert not leaves["gate_bias"].any()


def test_the_provenance_says_what_the_parameters_are():
  leaves = scrambled(EPT)
  said = EPT.provenance(leaves)
  folded = equations.fold_exactly(leaves, 8.0)
  assert said == {
    "method": "ept",
    "space": "factor",
    "alpha": 8.0,
    "initial_folded_digest": identity.prompt_digest(
      {"prompt": folded.prompt, "delta": folded.delta}
    ),
  }
  assert DEPT.provenance(scrambled(DEPT))["method"] == "dept"

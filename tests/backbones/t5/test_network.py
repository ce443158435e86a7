"""The network on its own: tree, masks, prompt, packing, precision."""

import functools
import json
import math
import pathlib
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tpv_jax.backbones import attention as shared_attention
from tpv_jax.backbones import layers
from tpv_jax.backbones.t5 import attention, network
from tpv_jax.core import identity
from tpv_jax.core.errors import UserError

T5X = json.loads(
  (pathlib.Path(__file__).parents[2] / "references" / "t5x_tree.json").read_text()
)
VERSIONS = ("v1_0", "v1_1")

ROUNDING = 2e-6
"""Equal sums in another order, in fp32; logits here are about 1."""

SOURCE = np.array([[5, 9, 4, 1, 0, 0], [7, 1, 0, 0, 0, 0], [8, 3, 6, 11, 2, 1]])
TARGETS = np.array([[4, 6, 1, 0], [9, 1, 0, 0], [3, 7, 12, 1]])
INPUTS = np.pad(TARGETS, ((0, 0), (1, 0)))[:, :-1]
REAL = TARGETS > 0


def build(version, **changes):
  """Returns T5X's configuration, with one layer each, which compiles fast."""
  shallow = {"num_encoder_layers": 1, "num_decoder_layers": 1}
  return network.Transformer(**{**T5X[version]["config"], **shallow, **changes})


def random_params(net, seed=0):
  """Returns weights drawn by NumPy, which compiles nothing."""
  token = jax.ShapeDtypeStruct((1, 1), np.int32)
  shapes = jax.eval_shape(net.init, jax.random.key(0), token, token, token)["params"]
  rng = np.random.default_rng(seed)

  def draw(leaf):
    spread = 1.0 if leaf.shape[0] == net.vocab_size else leaf.shape[0] ** -0.5
    return rng.normal(len(leaf.shape) == 1, spread, leaf.shape).astype(np.float32)

  return jax.tree.map(draw, shapes)


@pytest.fixture(scope="module")
def model():
  """A network, its parameters, and its jitted call.

  What the versions differ in, test_parity.py compares, with padding and prompts too.
  """
  net = build("v1_1")
  params = random_params(net)
  return net, params, jax.jit(lambda *a, **k: net.apply({"params": params}, *a, **k))


def prompt_of(length, rows=()):
  rng = np.random.default_rng(3)
  return rng.standard_normal((*rows, length, 16)).astype(np.float32)


@pytest.mark.parametrize("version", VERSIONS)
def test_the_tree_is_that_of_t5x(version):
  variables = jax.eval_shape(
    lambda: network.Transformer(**T5X[version]["config"]).init(
      jax.random.key(0), SOURCE, INPUTS, TARGETS
    )
  )
  axes = identity.flatten(variables["params_axes"])
  ours = {
    path: {"shape": list(leaf.shape), "axes": list(axes.pop(f"{path}_axes").names)}
    for path, leaf in identity.flatten(variables["params"]).items()
  }
  assert ours == T5X[version]["leaves"]
  assert axes == {}


def test_initial_weights_have_the_spread_of_t5x():
  # fan-in variance; queries narrower by sqrt(head_dim); embeddings of std 1.
  net = build("v1_1", emb_dim=64, num_heads=4, head_dim=25, mlp_dim=50, vocab_size=500)
  token = np.ones((1, 1), int)
  flat = identity.flatten(
    jax.jit(net.init)(jax.random.key(0), token, token, token)["params"]
  )
  expected = {
    "token_embedder/embedding": 1.0,
    "encoder/layers_0/attention/query/kernel": 1 / 8 / 5,
    "encoder/layers_0/attention/key/kernel": 1 / 8,
    "encoder/layers_0/attention/value/kernel": 1 / 8,
    "encoder/layers_0/attention/out/kernel": 1 / 10,
    "encoder/layers_0/mlp/wi_0/kernel": 1 / 8,
    "encoder/layers_0/mlp/wo/kernel": 1 / math.sqrt(50),
    "decoder/logits_dense/kernel": 1 / 8,
    "encoder/relpos_bias/rel_embedding": math.sqrt(2 / (4 + 32)),
  }
  for path, std in expected.items():
    # 128 draws or more: the estimate is within 4 / sqrt(2 * 128) of the truth.
    assert np.std(flat[path]) == pytest.approx(std, rel=0.25), path


def bucket_of(distance, bidirectional):
  """The bucket by the words of the paper (Raffel et al. 2020, 2.1), one distance."""
  buckets, offset = 32, 0
  if bidirectional:
    buckets, offset = 16, 16 if distance > 0 else 0
    distance = -abs(distance)
  past = max(-distance, 0)
  exact = buckets // 2
  if past < exact:
    return offset + past
  share = math.log(past / exact) / math.log(128 / exact)
  return offset + min(exact + int(share * (buckets - exact) + 1e-9), buckets - 1)


@pytest.mark.parametrize("bidirectional", [True, False])
def test_buckets_are_those_of_the_paper(bidirectional):
  buckets = attention.relative_buckets(3, 300, bidirectional)
  backwards = attention.relative_buckets(300, 3, bidirectional)
  for query in range(3):
    for key in range(300):
      assert buckets[query, key] == bucket_of(key - query, bidirectional)
      assert backwards[key, query] == bucket_of(query - key, bidirectional)


def test_more_padding_changes_nothing(model):
  _, _, call = model

  def wide(x):
    return np.pad(x, ((0, 0), (0, 3)))

  short = call(SOURCE, INPUTS, TARGETS)
  long = call(wide(SOURCE), wide(INPUTS), wide(TARGETS))[:, : TARGETS.shape[1]]
  assert np.abs((short - long) * REAL[..., None]).max() < ROUNDING


def test_a_row_of_padding_gives_no_nan(model):
  _, _, call = model
  empty = np.zeros_like(SOURCE)
  assert np.isfinite(call(empty, INPUTS * 0, TARGETS * 0)).all()


def test_later_targets_do_not_change_earlier_logits(model):
  _, _, call = model
  other = np.where(np.arange(4) == 3, 13, INPUTS)
  before, after = call(SOURCE, INPUTS, TARGETS), call(SOURCE, other, TARGETS)
  assert np.array_equal(before[:, :3], after[:, :3])
  assert np.abs(before[2, 3] - after[2, 3]).max() > 1e-3


def test_a_prompt_of_real_tokens_is_the_plain_model_on_those_tokens(model):
  _, params, call = model
  prefix = np.array([14, 5, 2])
  table = params["token_embedder"]["embedding"]
  joined = np.concatenate([np.tile(prefix, (3, 1)), SOURCE], axis=1)
  prompted = call(SOURCE, INPUTS, TARGETS, prompt=table[prefix])
  assert np.array_equal(prompted, call(joined, INPUTS, TARGETS))


def test_the_encoder_gives_the_prompts_positions_first_and_exactly(model):
  net, params, _ = model
  encoded = net.apply(
    {"params": params}, SOURCE, prompt=prompt_of(5), method=net.encode
  )
  assert encoded.shape == (3, 5 + 6, 16)


def test_the_prompt_is_never_masked(model):
  # Each of its rows matters to every example, also to one of padding only.
  _, _, call = model
  source = np.concatenate([SOURCE, np.zeros((1, 6), int)])
  inputs, targets = (
    np.concatenate([INPUTS, INPUTS[:1]]),
    np.concatenate([TARGETS] * 2)[:4],
  )
  prompt = prompt_of(4)
  before = call(source, inputs, targets, prompt=prompt)
  for row in range(4):
    moved = prompt + (np.arange(4) == row)[:, None].astype(np.float32)
    after = call(source, inputs, targets, prompt=moved)
    assert (np.abs(before - after)[:, 0].max(axis=-1) > 1e-4).all()


def test_each_row_may_have_its_own_prompt(model):
  _, _, call = model
  prompts = prompt_of(4, rows=(3,))
  together = call(SOURCE, INPUTS, TARGETS, prompt=prompts)
  for row in range(3):
    alone = call(SOURCE, INPUTS, TARGETS, prompt=prompts[row])
    assert np.abs(together[row] - alone[row]).max() < ROUNDING


def packed():
  """Rows 0 and 1 of the batch in one row, with a gap of padding at the end."""

  def parts(x, n0, n1, total):
    row = np.concatenate([x[0, :n0], x[1, :n1]])
    return np.pad(row, (0, total - n0 - n1))[None]

  def segments(n0, n1, total):
    return np.array([[1] * n0 + [2] * n1 + [0] * (total - n0 - n1)])

  return {
    "encoder_input_tokens": parts(SOURCE, 4, 2, 8),
    "decoder_input_tokens": parts(INPUTS, 3, 2, 7),
    "decoder_target_tokens": parts(TARGETS, 3, 2, 7),
    "encoder_segment_ids": segments(4, 2, 8),
    "decoder_segment_ids": segments(3, 2, 7),
    "encoder_positions": np.array([[0, 1, 2, 3, 0, 1, 0, 0]]),
    "decoder_positions": np.array([[0, 1, 2, 0, 1, 0, 0]]),
  }


def test_packed_rows_equal_unpacked_rows(model):
  _, _, call = model
  together = call(**packed())
  alone = call(SOURCE, INPUTS, TARGETS)
  assert np.abs(together[0, :3] - alone[0, :3]).max() < ROUNDING
  assert np.abs(together[0, 3:5] - alone[1, :2]).max() < ROUNDING
  unsegmented = {k: v for k, v in packed().items() if not k.endswith("segment_ids")}
  assert np.abs(call(**unsegmented)[0, 3:5] - alone[1, :2]).max() > 1e-2


def test_a_prompt_before_packed_rows_is_refused(model):
  _, _, call = model
  with pytest.raises(UserError, match=r"packed rows.*pack=False"):
    call(**packed(), prompt=prompt_of(4))


def test_half_a_packed_batch_is_refused(model):
  _, _, call = model
  batch = packed()
  del batch["decoder_segment_ids"]
  with pytest.raises(UserError, match="both are needed"):
    call(**batch)


def test_tokens_may_arrive_as_floats(model):
  _, _, call = model
  floats = [x.astype(np.float32) for x in (SOURCE, INPUTS, TARGETS)]
  assert np.array_equal(call(*floats), call(SOURCE, INPUTS, TARGETS))


def test_a_token_outside_the_table_gives_nan(model):
  _, _, call = model
  outside = np.where(SOURCE == 9, 48, SOURCE)
  logits = call(outside, INPUTS, TARGETS)
  assert np.isnan(logits[0]).all()
  assert np.isfinite(logits[1:]).all()


def test_bf16_computes_near_fp32_and_gives_fp32_logits(model):
  net, params, call = model
  half = net.copy(dtype="bfloat16")
  half = jax.jit(half.apply)({"params": params}, SOURCE, INPUTS, TARGETS)
  full = call(SOURCE, INPUTS, TARGETS)
  assert half.dtype == full.dtype == jnp.float32
  # 8 bits of mantissa: 0.4 % a rounding, over some thirty operations in sequence.
  distance = np.abs(half - full).max() / np.abs(full).max()
  assert 1e-4 < distance < 0.05


def test_dropout_needs_its_rng_and_is_off_by_default(model):
  net, params, call = model
  wet = net.copy(dropout_rate=0.5)

  @functools.partial(jax.jit, static_argnames="enable_dropout")
  def apply(**options):
    return wet.apply({"params": params}, SOURCE, INPUTS, TARGETS, **options)

  dry = call(SOURCE, INPUTS, TARGETS)
  assert np.abs(apply() - dry).max() < ROUNDING
  one = apply(enable_dropout=True, rngs={"dropout": jax.random.key(1)})
  same = apply(enable_dropout=True, rngs={"dropout": jax.random.key(1)})
  other = apply(enable_dropout=True, rngs={"dropout": jax.random.key(2)})
  assert np.array_equal(one, same)
  assert np.abs(one - dry).max() > 0.1
  assert np.abs(one - other).max() > 0.1


def factors(jaxpr):
  """Yields the dtypes of the factors of each matrix product, those within calls too."""
  for equation in jaxpr.eqns:
    if equation.primitive.name == "dot_general":
      yield {str(variable.aval.dtype) for variable in equation.invars}
    for value in equation.params.values():
      for inner in value if isinstance(value, tuple | list) else [value]:
        if hasattr(inner, "jaxpr"):
          inner = inner.jaxpr
        if hasattr(inner, "eqns"):
          yield from factors(inner)


@pytest.fixture
def factors_of_attention():
  """Queries, keys, values, a slope for the result, a mask and a bias."""
  rng = np.random.default_rng(0)
  made = rng.standard_normal((4, 3, 5, 2, 4))
  queries, keys, values, slope = jnp.asarray(made, jnp.float32)
  mask = jnp.asarray(rng.uniform(size=(3, 1, 5, 5)) > 0.4)
  mask = mask.at[0, 0, 0].set(False)  # A query that sees nothing.
  bias = jnp.asarray(rng.standard_normal((1, 2, 5, 5)), jnp.float32)
  return queries, keys, values, slope, mask, bias


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("biased", [True, False])
def test_attention_has_the_values_and_gradients_of_the_formula(
  factors_of_attention, dtype, biased
):
  *inputs, slope, mask, bias = factors_of_attention
  # What both sides are given is what bf16 can say.
  inputs = [leaf.astype(dtype).astype(jnp.float32) for leaf in inputs]
  slope = slope.astype(dtype).astype(jnp.float32)

  def formula(queries, keys, values, bias):
    logits = jnp.einsum("bqhk,bshk->bhqs", queries, keys)
    logits = logits + bias if biased else logits
    exponentials = jnp.exp(
      jnp.where(mask, logits, shared_attention.MASKED) - logits.max()
    )
    nothing = ~mask.any(axis=-1, keepdims=True)
    total = exponentials.sum(axis=-1, keepdims=True)
    weights = jnp.where(nothing, 1 / 5, exponentials / jnp.where(nothing, 1.0, total))
    return jnp.einsum("bhqs,bshk->bqhk", weights, values)

  def ours(queries, keys, values, bias):
    factors = (leaf.astype(dtype) for leaf in (queries, keys, values))
    return shared_attention.attention(*factors, mask, bias if biased else None)

  expected, pull_formula_back = jax.vjp(formula, *inputs, bias)
  found, pull_back = jax.vjp(ours, *inputs, bias)
  assert found.dtype == dtype
  # In bf16 every factor of a product has 8 bits.
  error = 2e-6 if dtype == "float32" else 2**-6
  np.testing.assert_allclose(found, expected, rtol=0, atol=error)
  for one, other in zip(
    pull_back(slope.astype(dtype)), pull_formula_back(slope), strict=True
  ):
    np.testing.assert_allclose(one, other, rtol=0, atol=3 * error)
    assert biased or one.shape == bias.shape or np.abs(one).max() > 0.5


@pytest.mark.parametrize("tied", [True, False])
def test_a_bf16_step_multiplies_in_bf16_only(model, tied):
  """Products of fp32 take twice the time or more on what has bf16 units."""
  net, _, _ = model
  net = net.copy(dtype="bfloat16", logits_via_embedding=tied)
  params = net.init(jax.random.key(0), SOURCE, INPUTS, TARGETS)["params"]

  def loss(params):
    return net.apply({"params": params}, SOURCE, INPUTS, TARGETS).var()

  found = list(factors(jax.make_jaxpr(jax.grad(loss))(params).jaxpr))
  assert len(found) > 60
  assert all(dtypes == {"bfloat16"} for dtypes in found), found


def test_dropout_drops_a_heads_values_of_a_key_for_all_queries(monkeypatch):
  """That is T5X's dropout of weights, which has one mask for all queries."""
  seen = []

  def record(queries, keys, values, mask, bias):
    seen.append(np.asarray(values))
    return queries

  layer = attention.Attention(2, 4, 8, dropout_rate=0.5, dtype="float32")
  x, heads = jnp.ones((3, 20, 8)), jnp.ones((3, 20, 2, 4))
  inputs = (x, (heads, heads), jnp.ones((3, 1, 1, 20), bool), None)
  params = layer.init(jax.random.key(0), *inputs, True)
  monkeypatch.setattr(attention, "attention", record)
  layer.apply(params, *inputs, False, rngs={"dropout": jax.random.key(1)})
  (values,) = seen
  assert set(np.unique(values)) == {0.0, 2.0}
  assert (values == values[..., :1]).all()
  for axis in range(3):  # Rows, keys and heads have masks of their own.
    assert (values != np.roll(values, 1, axis)).any()


def test_logits_have_the_gradient_of_the_plain_product(factors_of_attention):
  queries, keys, *_ = factors_of_attention
  x, kernel = queries.reshape(-1, 8), keys.reshape(8, -1)
  slope = x @ kernel
  found = jax.vjp(layers.project_to_fp32, x, kernel)[1](slope)
  expected = jax.vjp(jnp.dot, x, kernel)[1](slope)
  for one, other in zip(found, expected, strict=True):
    np.testing.assert_allclose(one, other, rtol=1e-6, atol=1e-5)  # Values to 40.


def test_rematerialisation_recomputes_each_layer_and_changes_no_gradient(model):
  net, params, _ = model

  def gradient(net, remats):
    def loss(p):
      return net.apply({"params": p}, SOURCE, INPUTS, TARGETS).var()

    traced = jax.jit(jax.grad(loss)).trace(params)
    assert len(re.findall(r"\bremat\d*\[", str(traced.jaxpr))) == remats
    return identity.flatten(traced.lower().compile()(params))

  plain, again = gradient(net, 0), gradient(net.copy(remat=True), 2)
  assert plain.keys() == again.keys()
  for path, leaf in plain.items():
    assert np.abs(leaf).max() > 0, path
    np.testing.assert_allclose(leaf, again[path], rtol=1e-4, atol=1e-7, err_msg=path)


@pytest.mark.parametrize(
  ("changes", "text"),
  [
    ({"mlp_activations": ("gelo",)}, "no activation 'gelo'.*Did you mean 'gelu'"),
    ({"dtype": "float16"}, "dtype is 'float16'.*'float32' or 'bfloat16'"),
  ],
)
def test_a_wrong_setting_is_refused(changes, text):
  with pytest.raises(UserError, match=text):
    build("v1_1", **changes).init(jax.random.key(0), SOURCE, INPUTS, TARGETS)

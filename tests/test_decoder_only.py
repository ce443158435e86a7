"""Decoder-only models: rows of any layout get the numbers of `[prompt][source][target]`."""

import functools
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tpv_jax import decoder_only
from tpv_jax.backbones.gemma3.network import Gemma3
from tpv_jax.backbones.llama.network import Llama
from tpv_jax.backbones.t5 import network as t5
from tpv_jax.backbones.t5 import sizes as t5_sizes
from tpv_jax.core.errors import UserError
from tpv_jax.data import batches, packing, row_fitting
from tpv_jax.model import SoftPromptModel
from tpv_jax.prompts import plain
from tpv_jax.prompts.equations import Folded

pytestmark = pytest.mark.usefixtures("compiles_faster")

P, D, V = 3, 16, 20
LENGTHS = ((5, 2), (3, 4), (1, 1), (4, 3))
"""Tokens of each source and target."""


class Ids:
  """A vocabulary of which only the ids matter: those of the tokenizer plus one."""

  eos_id = 2
  end_ids = (2, 5)
  unk_id = -1


SIZES = {
  "vocab_size": V,
  "emb_dim": D,
  "num_heads": 4,
  "num_kv_heads": 2,
  "head_dim": 6,
  "num_layers": 2,
  "mlp_dim": 24,
  "logits_via_embedding": True,
  "max_positions": 64,
}
NETWORKS = {
  "llama": Llama(**SIZES),
  # A layer that sees 4 positions, fewer than any row has, and one that sees all.
  "gemma3": Gemma3(**SIZES, window=4, full_period=2, local_rope_theta=50.0),
}

both_networks = pytest.mark.parametrize(
  "network", NETWORKS, indirect=True, scope="module"
)
"""For a test of layouts: windows count positions of the example, wherever they stand."""


@pytest.fixture(scope="module")
def network(request):
  return NETWORKS[getattr(request, "param", "llama")]


@pytest.fixture(scope="module")
def params(network):
  variables = jax.jit(network.init)(jax.random.key(0), *network.init_inputs())
  # Large enough that every position matters.
  return jax.tree.map(lambda leaf: leaf * 1.5, variables["params"])


@pytest.fixture(scope="module")
def folded():
  rng = np.random.default_rng(1)
  return Folded(
    jnp.asarray(rng.standard_normal((P, D)), jnp.float32),
    jnp.asarray(rng.standard_normal((8, D)), jnp.float32),
  )


def examples(seed=0):
  rng = np.random.default_rng(seed)
  return [
    (rng.integers(1, V + 1, source), np.append(rng.integers(6, V + 1, target - 1), 2))
    for source, target in LENGTHS
  ]


def batch_of(pairs, width=6, targets=5):
  rows = [np.zeros((len(pairs), one), np.int32) for one in (width, targets)]
  for number, pair in enumerate(pairs):
    for row, tokens in zip(rows, pair, strict=True):
      row[number, : len(tokens)] = tokens
  return batches.features(*rows)


def alone(network, params, folded, source, target):
  """Returns the logits of each target token from one row without padding, step by step.

  They come from the plain network on `[prompt][source][target]`; the prompt and the delta
  are put into a table that has a row for each position.
  """
  table = params["decoder"]["token_embedder"]["embedding"] * network.embedding_scale
  rows = [table[int(token) - 1] for token in source]
  if folded.delta is not None:
    rows = [row + folded.delta[i] for i, row in enumerate(rows)]
  rows = [*folded.prompt, *rows, *(table[int(token) - 1] for token in target[:-1])]
  x = jnp.stack(rows)[None]
  width = x.shape[1]
  mask = jnp.tril(jnp.ones((1, 1, width, width), bool))
  logits = whole_row(network)(params, x, jnp.arange(width)[None], mask)
  return logits[0, len(folded.prompt) + len(source) - 1 :]


@functools.cache
def whole_row(network):
  def logits(params, *inputs):
    states = network.apply({"params": params}, *inputs, method=network.states)
    return network.apply({"params": params}, states, method=network.logits)

  return jax.jit(logits)


@both_networks
def test_padded_rows_equal_rows_without_padding(network, params, folded):
  model = SoftPromptModel(network, None, Ids(), Ids())
  pairs = examples()
  found = jax.jit(model.target_logits)(folded, params, batch_of(pairs))
  for row, (source, target) in enumerate(pairs):
    expected = alone(network, params, folded, source, target)
    np.testing.assert_allclose(
      found[row, : len(target)], expected, rtol=1e-4, atol=1e-5
    )


def test_the_tokenizers_id_0_is_a_token_and_padding_is_never_written(
  network, params, folded
):
  tokens = jnp.array([[1, 1, 4]])
  logits = jax.jit(network.apply)({"params": params}, tokens)
  assert logits.shape == (1, 3, V + 1)
  assert np.isneginf(logits[..., 0]).all()
  assert np.isfinite(logits[..., 1:]).all()
  first = network.apply({"params": params}, tokens, method=network.embed)[0, 0]
  table = params["decoder"]["token_embedder"]["embedding"]
  np.testing.assert_array_equal(first, table[0])


@both_networks
def test_packed_rows_equal_rows_of_one_example(network, params, folded):
  model = SoftPromptModel(network, None, Ids(), Ids())
  bank = Folded(
    jnp.stack([folded.prompt, 2 * folded.prompt]),
    jnp.stack([folded.delta, -folded.delta]),
  )
  pairs = examples()
  shape = row_fitting.Shape(rows=2, width=16, targets=8)
  items = [packing.Item(number % 2, *pair) for number, pair in enumerate(pairs)]
  expected = np.zeros(2)
  for item in items:
    own = Folded(*(leaf[item.prompt_id] for leaf in bank))
    logits = alone(network, params, own, item.source, item.target)
    log = jax.nn.log_softmax(logits)
    expected[item.prompt_id] -= log[np.arange(len(item.target)), item.target].sum()
  found = np.zeros(2)
  calls = packing.pack(items, row_fitting.Shapes(shape, shape, P))
  assert max(packing.example_count(call) for _, call in calls) > 2, "nothing is packed"
  for _, call in calls:
    found += np.asarray(jax.jit(model.bank_loss_sums)(bank, params, call)[0])
  np.testing.assert_allclose(found, expected, rtol=1e-5)


@both_networks
def test_rows_behind_prompts_of_their_own_score_as_alone(network, params, folded):
  model = SoftPromptModel(network, None, Ids(), Ids())
  pairs = examples()
  # A row without a target, as of a label that a task lacks, and its gradient are 0.
  batch = batch_of([*pairs, (pairs[0][0], [])])
  scales = jnp.asarray([1.0, -1.0, 0.5, 2.0, 1.0])[:, None, None]
  own = jax.tree.map(lambda leaf: scales * leaf, folded)

  def score(own):
    return model.score_rows(own, params, batch)

  found, pull_back = jax.vjp(jax.jit(score), own)
  expected = []
  for number, (source, target) in enumerate(pairs):
    one = jax.tree.map(lambda leaf, i=number: leaf[i], own)
    log = jax.nn.log_softmax(alone(network, params, one, source, target))
    expected.append(log[np.arange(len(target)), target].sum())
  np.testing.assert_allclose(found, [*expected, 0], rtol=1e-4, atol=1e-6)
  (gradient,) = pull_back(jnp.ones(5))
  assert (np.abs(gradient.prompt).max(axis=(1, 2)) > 0).tolist() == [True] * 4 + [False]


@both_networks
def test_choices_share_their_source_and_do_not_see_each_other(network, params, folded):
  model = SoftPromptModel(network, None, Ids(), Ids())
  bank = jax.tree.map(lambda leaf: leaf[None], folded)
  sources = [source for source, _ in examples()]
  choices = [np.array([7, 2]), np.array([7, 8, 2]), np.array([9, 2])]
  features, first = packing.pack_choices(
    sources, [choices] * 4, [0] * 4, row_fitting.Shape(1, 24, 16), P
  )
  scores, _ = jax.jit(model.score_choices)(bank, params, features)
  for source, (row, column) in zip(sources, first, strict=True):
    for number, choice in enumerate(choices):
      log = jax.nn.log_softmax(alone(network, params, folded, source, choice))
      expected = log[np.arange(len(choice)), choice].sum()
      np.testing.assert_allclose(scores[row, column + number], expected, rtol=1e-4)


def continued(network, params, folded, source, length):
  """Returns greedy decoding without a cache: the whole row again for each token."""
  written = []
  for _ in range(length):
    logits = alone(network, params, folded, source, np.array([*written, 0]))[-1]
    written.append(int(np.argmax(logits)))
    if written[-1] in Ids.end_ids:
      break
  return written


@both_networks
@pytest.mark.parametrize("beams", [1, 3])
def test_decoding_with_a_cache_equals_whole_rows(network, params, folded, beams):
  model = SoftPromptModel(network, None, Ids(), Ids(), num_beams=beams)
  pairs = examples(3)
  batch = batch_of(pairs)
  decode = jax.jit(functools.partial(model._decode, target_length=6))
  found, scores = map(np.asarray, decode(params, folded, batch)[:2])
  for row, its_score, (source, _) in zip(found, scores, pairs, strict=True):
    written = row[row > 0]
    if beams == 1:
      assert written.tolist() == continued(network, params, folded, source, 6)
    else:  # Of the kept beam, which need not be better than the greedy answer.
      expected = log_probability(network, params, folded, source, written)
      np.testing.assert_allclose(its_score, expected, rtol=1e-4)


def log_probability(network, params, folded, source, tokens):
  """Returns the mean log-probability of an answer, by which beams are compared."""
  tokens = np.asarray(tokens)
  log = jax.nn.log_softmax(alone(network, params, folded, source, tokens))
  return float(log[np.arange(len(tokens)), tokens].mean())


def of_sources(network, params, folded, source):
  """Returns the log-probability of each source token in a row without padding."""
  # As a target behind an empty source, which does not get the delta: add it to the table.
  table = params["decoder"]["token_embedder"]["embedding"]
  rows = [table[int(token) - 1] + folded.delta[i] for i, token in enumerate(source)]
  x = jnp.concatenate([folded.prompt, jnp.stack(rows)])[None]
  width = x.shape[1]
  mask = jnp.tril(jnp.ones((1, 1, width, width), bool))
  logits = whole_row(network)(params, x, jnp.arange(width)[None], mask)[0]
  log = jax.nn.log_softmax(logits)[len(folded.prompt) - 1 : -1]
  return log[np.arange(len(source)), source]


def test_the_loss_on_sources_is_on_every_source_token_too(network, params, folded):
  model = SoftPromptModel(network, None, Ids(), Ids(), loss_on_sources=True)
  pairs = examples()
  both = {**params, "prompt": folded.leaves()}
  loss, weights, metrics = jax.jit(model.loss_sums)(both, batch_of(pairs))
  plain_model = SoftPromptModel(network, None, Ids(), Ids())
  of_targets, _, plain_metrics = jax.jit(plain_model.loss_sums)(both, batch_of(pairs))
  expected = -sum(of_sources(network, params, folded, one).sum() for one, _ in pairs)
  np.testing.assert_allclose(loss - of_targets, expected, rtol=1e-5)
  assert weights == sum(map(sum, LENGTHS))
  assert metrics["exact_match"].compute() == plain_metrics["exact_match"].compute()
  # Packed rows count the same tokens.
  bank = jax.tree.map(lambda leaf: leaf[None], folded)
  shape = row_fitting.Shape(rows=2, width=16, targets=8)
  packed = tokens = 0.0
  for _, call in packing.pack(
    [packing.Item(0, *pair) for pair in pairs], row_fitting.Shapes(shape, shape, P)
  ):
    losses, counts = jax.jit(model.bank_loss_sums)(bank, params, call)
    packed, tokens = packed + losses[0], tokens + counts["target_tokens"][0]
  np.testing.assert_allclose(packed, loss, rtol=1e-5)
  assert tokens == weights
  assert model.weight_sums(batch_of(pairs)) == weights


def test_an_encoder_decoder_has_no_loss_on_sources():
  with pytest.raises(UserError, match="LOSS_ON_SOURCES"):
    SoftPromptModel(
      t5.Transformer(**t5_sizes.TINY["t5_v1_0_tiny"]),
      None,
      Ids(),
      Ids(),
      loss_on_sources=True,
    )


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_the_loss_is_that_of_the_rows_alone(network, params, folded, smoothing):
  model = SoftPromptModel(
    network, None, Ids(), Ids(), label_smoothing=smoothing, z_loss=0.01
  )
  pairs = examples()
  both = {**params, "prompt": folded.leaves()}
  found = jax.jit(model.loss_fn)(both, batch_of(pairs), None)[0]
  total = 0.0
  for source, target in pairs:
    logits = alone(network, params, folded, source, target)[:, 1:]
    log = jax.nn.log_softmax(logits)
    wanted = np.full(log.shape, smoothing / (V - 1))
    wanted[np.arange(len(target)), target - 1] = 1 - smoothing
    entropy = -(wanted[0] * np.log(np.maximum(wanted[0], 1e-30))).sum()
    z = jax.nn.logsumexp(logits, axis=-1)
    total += float((-(wanted * log).sum(-1) - entropy + 0.01 * z**2).sum())
  np.testing.assert_allclose(
    found, total / sum(target for _, target in LENGTHS), rtol=1e-5
  )


def test_every_end_token_ends_an_answer_and_counts_as_right(network, params, folded):
  model = SoftPromptModel(network, None, Ids(), Ids())
  bank = jax.tree.map(lambda leaf: leaf[None], folded)
  # A table in which the other end token is more probable than the target's own.
  source = np.array([3, 4])
  answers = []
  for order in ((2, 5), (5, 2)):
    changed = jax.tree.map(lambda leaf: leaf, params)
    logits = alone(network, params, folded, source, np.array([2]))[0]
    table = np.array(changed["decoder"]["token_embedder"]["embedding"])
    best = int(np.argmax(logits)) - 1
    # Tied rows: the most probable token's row becomes that of an end token's output.
    for rank, token in enumerate(order):
      table[token - 1] = table[best] * (3 - rank)
    changed["decoder"]["token_embedder"]["embedding"] = jnp.asarray(table)
    features, first = packing.pack_choices(
      [source], [[np.array([2])]], [0], row_fitting.Shape(1, 8, 4), P
    )
    _, writes = jax.jit(model.score_choices)(bank, changed, features)
    decode = jax.jit(functools.partial(model._decode, target_length=3))
    decoded = decode(changed, folded, batch_of([(source, [2])]))[0]
    answers.append((bool(writes[first[0][0], first[0][1]]), int(decoded[0, 0])))
  assert [writes for writes, _ in answers] == [
    written in Ids.end_ids for _, written in answers
  ]
  assert {written for _, written in answers} <= {2, 5}


def test_a_row_longer_than_the_network_is_refused(network):
  architecture = decoder_only.DecoderOnly(network)
  architecture.check_lengths(3, 50, 11)
  with pytest.raises(UserError, match=r"at most 50"):
    architecture.check_lengths(3, 51, 11)


def test_packed_rows_without_places_are_refused(network, params, folded):
  model = SoftPromptModel(network, None, Ids(), Ids())
  batch = {**batch_of(examples()), "encoder_segment_ids": np.ones((4, 6), np.int32)}
  with pytest.raises(UserError, match="pack=False"):
    model.target_logits(folded, params, batch)


def test_remat_recomputes_each_layer_and_changes_no_gradient(network, params):
  prompt = plain.Prompt(P, D)
  start = {"prompt": {"prompt": jnp.ones((P, D))}}
  gradients = []
  for remat in (False, True):
    model = SoftPromptModel(network.clone(remat=remat), prompt, Ids(), Ids())
    gradient = jax.jit(
      jax.grad(
        lambda own, m=model: m.loss_fn({**params, **own}, batch_of(examples()), None)[0]
      )
    )
    traced = gradient.trace(start)
    remats = re.findall(r"\bremat\d*\[", str(traced.jaxpr))
    assert len(remats) == (network.num_layers if remat else 0)
    gradients.append(traced.lower().compile()(start)["prompt"]["prompt"])
    assert np.isfinite(gradients[-1]).all()
  np.testing.assert_allclose(gradients[0], gradients[1], rtol=1e-4, atol=1e-7)
  assert np.abs(gradients[0]).min() > 0


def joined(pairs, width=6, targets=5):
  """Rows of source and target, as `seqio.DecoderFeatureConverter` makes them."""
  rows = np.zeros((len(pairs), width + targets), np.int32)
  mask, weights = np.zeros_like(rows), np.zeros_like(rows)
  for number, (source, target) in enumerate(pairs):
    both = [*source, *target]
    rows[number, : len(both)] = both
    mask[number, : len(source) + 1] = 1
    weights[number, len(source) : len(both)] = 1
  shifted = np.pad(rows, ((0, 0), (1, 0)))[:, :-1]
  return {
    "decoder_target_tokens": rows,
    "decoder_input_tokens": shifted,
    "decoder_causal_attention": mask,
    "decoder_loss_weights": weights,
  }


ODD = [
  (np.array([], int), np.array([7, 2])),
  (np.array([4, 5, 6, 7, 8, 9]), np.array([])),
]
"""An example without a source, and one without a target."""

JOINED = {"inputs": 6, "targets": 5}


def test_rows_of_source_and_target_are_taken_apart():
  pairs = [*examples(), *ODD]
  batch = joined([*pairs, ([], [])])
  batch["decoder_causal_attention"][-1] = 0  # A row that fills up a batch.
  batch["decoder_loss_weights"][0] = 3  # The sources' are not read.
  ours = batch_of([*pairs, ([], [])])
  ours["decoder_loss_weights"][0, : LENGTHS[0][1]] = 3
  batch["prompt_ids"] = np.arange(len(pairs) + 1)
  found = jax.jit(lambda one: decoder_only.apart(one, JOINED))(
    # T5X traces evaluation with fp32.
    {name: values.astype(np.float32) for name, values in batch.items()}
  )
  found["decoder_loss_weights"] *= found["decoder_target_tokens"] > 0
  assert found.keys() - {"prompt_ids"} == ours.keys()
  for name, values in ours.items():
    np.testing.assert_array_equal(found[name], values, err_msg=name)
  assert found["prompt_ids"].tolist() == batch["prompt_ids"].tolist()
  assert decoder_only.apart(ours, None) is ours


def test_a_model_computes_the_same_from_rows_of_source_and_target(
  network, params, folded
):
  model = SoftPromptModel(
    network, None, Ids(), Ids(), loss_on_sources=True, lengths=JOINED
  )
  both = {**params, "prompt": folded.leaves()}

  @jax.jit
  def results(batch):
    decoded = model.predict_batch_with_aux(both, batch)
    return model.loss_sums(both, batch), model.weight_sums(batch), decoded

  theirs, own = results(joined(examples())), results(batch_of(examples()))
  jax.tree.map(np.testing.assert_array_equal, theirs, own)


def test_rows_of_source_and_target_that_cannot_be_taken_apart_are_refused(network):
  batch = joined(examples())
  for lengths in (None, {"inputs": 6, "targets": 4}):
    with pytest.raises(UserError, match=r"row of 11 ids.*lengths = %LENGTHS"):
      decoder_only.DecoderOnly(network, lengths).targets(batch)
  packed = {**batch, "decoder_segment_ids": batch["decoder_causal_attention"]}
  with pytest.raises(UserError, match="pack=False"):
    decoder_only.apart(packed, JOINED)

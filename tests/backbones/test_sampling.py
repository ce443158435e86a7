"""Drawn tokens against exact probabilities, and settings that do not go together."""

import collections
import dataclasses
import functools
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import stats

from tpv_jax.backbones import decoding
from tpv_jax.backbones.llama.network import Llama
from tpv_jax.core.errors import UserError
from tpv_jax.model import SoftPromptModel

pytestmark = pytest.mark.usefixtures("compiles_faster")

V, LENGTH, END = 6, 2, 3
SOURCES = np.array([[2, 5, 1, 0], [4, 3, 6, 2]])
DRAWS = 6_000
WARM = {"temperature": 1.3, "sampling_seed": 7}
SETTINGS = (WARM, {**WARM, "top_p": 0.8})


class Ids:
  """A vocabulary of which only the end token matters."""

  eos_id, end_ids, unk_id = END, (END,), -1


@pytest.fixture(scope="module")
def network():
  return Llama(
    vocab_size=V,
    emb_dim=8,
    num_heads=2,
    num_kv_heads=1,
    head_dim=4,
    num_layers=1,
    mlp_dim=12,
    max_positions=16,
  )


@pytest.fixture(scope="module")
def params(network):
  """Returns weights drawn by NumPy, which compiles nothing, for logits of middling size."""
  inputs = network.init_inputs()
  shapes = jax.eval_shape(network.init, jax.random.key(0), *inputs)["params"]
  rng = np.random.default_rng(3)

  def draw(leaf):
    spread = 0.5 if leaf.ndim == 1 else 0.4
    return rng.normal(leaf.ndim == 1, spread, leaf.shape).astype(np.float32)

  return jax.tree.map(draw, shapes)


@pytest.fixture(scope="module")
def draw(network, params):
  """Returns the function (sources, numbers, settings) -> tokens and scores."""

  @functools.cache
  def predict(**settings):
    model = SoftPromptModel(network, None, Ids(), Ids(), **settings)
    return jax.jit(model.predict_batch_with_aux)

  def drawn(sources, numbers, **settings):
    batch = {
      "encoder_input_tokens": np.asarray(sources, np.int32),
      "decoder_input_tokens": np.zeros((len(sources), LENGTH), np.int32),
      "example_ids": np.asarray(numbers, np.int32),
    }
    tokens, aux = predict(**settings)(params, batch)
    return np.asarray(tokens), np.asarray(aux["scores"])

  return drawn


def softmax(logits):
  shifted = np.exp(logits - logits.max())
  return shifted / shifted.sum()


def nucleus(probabilities, top_p):
  """Returns the probabilities within the nucleus, taking tokens until they suffice."""
  kept, total = np.zeros_like(probabilities), 0.0
  for token in np.argsort(-probabilities):
    if total >= top_p:
      break
    kept[token] = probabilities[token]
    total += probabilities[token]
  return kept / kept.sum()


@pytest.fixture(scope="module")
def next_logits(network, params):
  """Returns the function (source, tokens) -> fp64 logits of what follows, no cache."""

  @jax.jit
  def of_rows(rows):
    return network.apply({"params": params}, rows)

  @functools.cache
  def found(source, written):
    row = [token for token in source if token] + list(written)
    padded = np.zeros((1, SOURCES.shape[1] + LENGTH), np.int32)
    padded[0, : len(row)] = row
    return np.asarray(of_rows(padded)[0, len(row) - 1], np.float64)

  return found


def exact(next_logits, source, temperature, top_p=1.0, **_):
  """Returns the probability of every answer, and its log-probability to the model."""
  found = {}
  for text in itertools.product(range(1, V + 1), repeat=LENGTH):
    answer = text[: text.index(END) + 1] if END in text else text
    probability, own = 1.0, 0.0
    for place, token in enumerate(answer):
      logits = next_logits(tuple(source.tolist()), answer[:place])
      probability *= nucleus(softmax(logits / temperature), top_p)[token]
      own += np.log(softmax(logits)[token])
    found[tuple(answer) + (0,) * (LENGTH - len(answer))] = probability, own
  assert sum(p for p, _ in found.values()) == pytest.approx(1)
  return found


@pytest.mark.parametrize("settings", SETTINGS, ids=["all", "nucleus"])
def test_answers_are_drawn_with_their_exact_probabilities(draw, next_logits, settings):
  for source in SOURCES:
    expected = exact(next_logits, source, **settings)
    tokens, scores = draw([source] * DRAWS, range(DRAWS), **settings)
    written = [*map(tuple, tokens.tolist())]
    counts = collections.Counter(written)
    assert all(expected[answer][0] > 0 for answer in counts)
    own = [expected[answer][1] for answer in written]
    np.testing.assert_allclose(scores, own, rtol=1e-4)
    likely = {one: p for one, (p, _) in expected.items() if p * DRAWS >= 5}
    rest = 1 - sum(likely.values())
    seen = [counts[one] for one in likely]
    due = [p * DRAWS for p in likely.values()]
    if rest * DRAWS >= 5:
      seen, due = [*seen, DRAWS - sum(seen)], [*due, rest * DRAWS]
    due = np.array(due) * sum(seen) / sum(due)
    assert len(seen) >= 8  # Enough answers to tell a wrong distribution.
    assert stats.chisquare(seen, due).pvalue > 1e-3
    # What another temperature would give is told apart.
    other = exact(next_logits, source, **{**settings, "temperature": 1.0})
    wrong = np.array([other[one][0] * DRAWS for one in likely]) + 1e-9
    wrong *= sum(seen[: len(likely)]) / wrong.sum()
    assert stats.chisquare(seen[: len(likely)], wrong).pvalue < 1e-6


@pytest.mark.parametrize("top_p", [0.05, 0.3, 0.61, 0.9, 0.999])
def test_the_nucleus_is_the_smallest_set_that_suffices(top_p):
  logits = np.random.default_rng(0).normal(size=(40, 30)).astype(np.float32) * 3
  logits[:, 0] = -np.inf
  found = np.asarray(jax.nn.softmax(decoding.nucleus(jnp.asarray(logits), top_p)))
  for row, own in zip(logits, found, strict=True):
    expected = nucleus(softmax(row.astype(np.float64)), top_p)
    assert np.array_equal(own > 0, expected > 0)
    np.testing.assert_allclose(own, expected, atol=1e-6)


def test_a_draw_hangs_on_seed_and_number_not_on_the_batch(draw):
  sources, numbers = np.repeat(SOURCES, 10, axis=0), np.arange(20)
  whole, scores = draw(sources, numbers, **WARM)
  order = np.random.default_rng(1).permutation(20)
  other, others = draw(sources[order], numbers[order], **WARM)
  assert np.array_equal(other, whole[order])
  np.testing.assert_allclose(others, scores[order], rtol=1e-5)
  few = slice(8, 15)
  assert np.array_equal(draw(sources[few], numbers[few], **WARM)[0], whole[few])
  again, _ = draw(sources, numbers, **{**WARM, "sampling_seed": 8})
  assert not np.array_equal(again, whole)
  assert not np.array_equal(draw(sources, numbers + 20, **WARM)[0], whole)


@pytest.mark.parametrize("temperature", [1e-4, 1e-30, 1e-300])
def test_a_temperature_near_0_draws_the_best_token_only(temperature):
  logits = jnp.asarray([[-jnp.inf, 0.3, 2.0, 1.9], [-jnp.inf, 9.0, -8.0, 0.0]])
  found = decoding.sharpened(logits, decoding.Choice(temperature=temperature))
  np.testing.assert_array_equal(jax.nn.softmax(found), [[0, 0, 1, 0], [0, 1, 0, 0]])


@pytest.mark.parametrize("temperature", [1e9, 1e300])
def test_a_high_temperature_draws_any_token_but_padding(temperature):
  logits = jnp.asarray([[-jnp.inf, 0.3, 2.0, 1.9]])
  found = decoding.sharpened(logits, decoding.Choice(temperature=temperature))
  np.testing.assert_allclose(jax.nn.softmax(found), [[0, 1 / 3, 1 / 3, 1 / 3]])


def test_without_the_numbers_of_examples_nothing_is_drawn(network, params):
  model = SoftPromptModel(network, None, Ids(), Ids(), temperature=1.0)
  batch = {
    "encoder_input_tokens": SOURCES,
    "decoder_input_tokens": np.zeros((2, LENGTH), np.int32),
  }
  with pytest.raises(UserError, match=r"TEMPERATURE = 1 draws answers by the number"):
    jax.eval_shape(model.predict_batch, params, batch)


@pytest.mark.parametrize(
  ("settings", "message"),
  [
    ({"num_beams": 4, "temperature": 0.7}, "NUM_BEAMS = 4 .* TEMPERATURE = 0.7 draws"),
    ({"length_penalty": 0.6}, "LENGTH_PENALTY = 0.6 .* NUM_BEAMS is 1"),
    ({"top_p": 0.9}, "TOP_P = 0.9 .* with TEMPERATURE = 0 none is"),
    ({"sampling_seed": 3}, "SAMPLING_SEED = 3 .* with TEMPERATURE = 0 none is"),
    ({"temperature": 1.0, "top_p": 0.0}, "top_p is 0.0; it must be a number above 0"),
    ({"temperature": 1.0, "top_p": 1.1}, "top_p is 1.1; .* of at most 1"),
    ({"temperature": -1.0}, "temperature is -1.0; it must be a number of at least 0"),
    ({"temperature": float("nan")}, "temperature is nan; it must be a finite number"),
    ({"temperature": 1.0, "sampling_seed": -1}, "sampling_seed is -1"),
    ({"num_beams": 0}, "num_beams is 0; it must be a whole number of at least 1"),
  ],
)
def test_settings_that_do_not_go_together_are_refused(network, settings, message):
  with pytest.raises(UserError, match=message) as caught:
    SoftPromptModel(network, None, Ids(), Ids(), **settings)
  assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
  ("choice", "stated", "words"),
  [
    ({}, {"num_beams": 1}, "greedy"),
    (
      {"num_beams": 4, "length_penalty": 0.6},
      {"num_beams": 4, "length_penalty": 0.6},
      "4 beams, length penalty 0.6",
    ),
    (
      {"temperature": 0.7, "top_p": 0.9},
      {"temperature": 0.7, "top_p": 0.9, "sampling_seed": 0},
      "drawn at temperature 0.7, top_p 0.9, seed 0",
    ),
  ],
)
def test_a_choice_states_the_settings_that_say_something(choice, stated, words):
  assert decoding.Choice(**choice).to_json() == stated
  assert str(decoding.Choice(**choice)) == words


def test_another_prompt_leaves_the_choice_as_it_is(network):
  model = SoftPromptModel(network, None, Ids(), Ids(), temperature=0.5, top_p=0.3)
  assert model.with_prompt(None).choice == model.choice
  assert dataclasses.astuple(model.choice) == (1, 1.0, 0.5, 0.3, 0)

"""Decoding against a decoder that runs all over again at each step, for every text."""

import dataclasses
import functools
import itertools
import os
import pathlib
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from decoding_start import begin

from tpv_jax.backbones import decoding
from tpv_jax.backbones.t5 import network

SOURCE = np.array([[5, 9, 4, 1, 0], [7, 1, 0, 0, 0], [8, 3, 6, 11, 1], [2, 1, 0, 0, 0]])
LENGTH = 7
PROMPT = np.random.default_rng(3).standard_normal((3, 12)).astype(np.float32)


def random_params(net, seed=0):
  """Returns weights drawn by NumPy, which compiles nothing."""
  token = jax.ShapeDtypeStruct((1, 1), np.int32)
  shapes = jax.eval_shape(net.init, jax.random.key(0), token, token, token)["params"]
  rng = np.random.default_rng(seed)

  def draw(leaf):
    spread = 1.0 if leaf.shape[0] == net.vocab_size else leaf.shape[0] ** -0.5
    return rng.normal(len(leaf.shape) == 1, spread, leaf.shape).astype(np.float32)

  return jax.tree.map(draw, shapes)


@pytest.fixture(scope="module", params=("v1_0", "v1_1"))
def model(request):
  old = request.param == "v1_0"
  net = network.Transformer(
    vocab_size=16,
    emb_dim=12,
    num_heads=2,
    head_dim=5,
    num_encoder_layers=1,
    num_decoder_layers=2,
    mlp_dim=20,
    mlp_activations=("relu",) if old else ("gelu", "linear"),
    logits_via_embedding=old,
  )
  params = random_params(net, seed=0 if old else 1)  # The first with varied output.
  # Not so tied that a token is always followed by itself, so that the cache matters.
  params["token_embedder"]["embedding"] *= 0.05
  return net, params


def encode(net, params, prompt=None, source=SOURCE):
  apply = functools.partial(net.apply, method=net.encode)
  return jax.jit(apply)({"params": params}, source, prompt=prompt)


def greedy(net, params, encoded, source, length, eos_id):
  @jax.jit
  def decode(p, e):
    start = begin(net, p, e, source, length)
    return decoding.write(net, p, *start, length, (eos_id,))

  return decode(params, encoded)


def rerun(net, params, encoded, eos_id):
  """Returns tokens and scores of the full decoder, run anew for each token."""
  rows = len(SOURCE)
  tokens, scores = np.zeros((rows, LENGTH), np.int64), np.zeros(rows)
  over = np.zeros(rows, bool)
  decode = jax.jit(
    lambda inputs: net.apply(
      {"params": params},
      encoded,
      SOURCE,
      inputs,
      jnp.ones_like(inputs),
      method=net.decode,
    )
  )
  for step in range(LENGTH):
    inputs = np.pad(tokens, ((0, 0), (1, 0)))[:, :-1]
    logits = np.asarray(decode(inputs), np.float64)[:, step]
    log_probabilities = logits - np.log(np.exp(logits).sum(axis=-1, keepdims=True))
    best = log_probabilities.argmax(axis=-1)
    tokens[:, step] = np.where(over, 0, best)
    scores += np.where(over, 0, log_probabilities.max(axis=-1))
    over |= best == eos_id
  return tokens, scores


def test_the_cache_changes_nothing(model):
  net, params = model
  encoded = encode(net, params, PROMPT)
  free, _ = rerun(net, params, encoded, eos_id=-1)
  # A token that is really written ends a row, the later in it the better.
  late, eos_id = max(
    (row.index(token), token) for row in free.tolist() for token in row
  )
  assert late >= 3
  expected, scores = rerun(net, params, encoded, eos_id)
  found = greedy(net, params, encoded, SOURCE, LENGTH, eos_id)
  assert np.array_equal(found[0], expected)
  np.testing.assert_allclose(found[1], scores, rtol=1e-5)


def test_a_row_of_padding_is_over_before_it_starts(model):
  net, params = model
  source = np.concatenate([SOURCE[:1], np.zeros((1, 5), int)])
  prompt = PROMPT
  encoded = encode(net, params, prompt, source)
  tokens, scores = greedy(net, params, encoded, source, LENGTH, eos_id=-1)
  assert tokens[0].any()
  assert scores[0] < 0
  assert not tokens[1].any()
  assert scores[1] == 0


def every_hypothesis(net, params, encoded, source, length, eos_id):
  """Yields tokens, padded, their number and each row's log-probability of all texts."""
  texts = []
  for n in range(1, length + 1):
    for text in itertools.product(range(net.vocab_size), repeat=n):
      ends = eos_id in text
      if text.index(eos_id) == n - 1 if ends else n == length:
        texts.append(text)
  decode = jax.jit(
    lambda e, s, i, t: net.apply({"params": params}, e, s, i, t, method=net.decode)
  )
  targets = np.array([text + (0,) * (length - len(text)) for text in texts])
  inputs = np.pad(targets, ((0, 0), (1, 0)))[:, :-1]
  every = []
  for row in range(len(source)):
    repeated = [np.repeat(x[row : row + 1], len(texts), 0) for x in (encoded, source)]
    # All positions are shown to the decoder, whose mask looks at the targets.
    logits = np.asarray(decode(*repeated, inputs, np.ones_like(inputs)), np.float64)
    log = logits - np.log(np.exp(logits).sum(-1, keepdims=True))
    chosen = np.take_along_axis(log, targets[..., None], -1)[..., 0]
    real = np.arange(length) < np.array([len(text) for text in texts])[:, None]
    every.append((chosen * real).sum(-1))
  return targets, np.array([len(text) for text in texts]), np.array(every)


def beam_search(net, params, encoded, source, length, eos_id, beams):
  """Returns the jitted search, a function of the length penalty."""

  @jax.jit
  def search(p, e, penalty):
    start = begin(net, p, e, source, length)
    return decoding.beam_search(net, p, *start, length, (eos_id,), beams, penalty)

  return functools.partial(search, params, encoded)


def test_with_a_beam_for_every_text_all_texts_are_ranked(model):
  net, _ = model
  net = net.clone(vocab_size=4)
  params = random_params(net, seed=5)
  params["token_embedder"]["embedding"] *= 0.3
  source = SOURCE[:3] % 4 * (SOURCE[:3] > 0)
  encoded = encode(net, params, PROMPT, source)
  targets, lengths, sums = every_hypothesis(net, params, encoded, source, 3, eos_id=1)
  assert len(targets) == 1 + 3 + 9 * 4
  search = beam_search(net, params, encoded, source, 3, 1, 42)
  for length_penalty in (0.0, 0.6, 2.0):
    tokens, scores = search(length_penalty)
    for row in range(len(source)):
      expected = sums[row] / lengths**length_penalty
      order = np.argsort(-expected)
      np.testing.assert_allclose(scores[row, :40], expected[order], rtol=1e-5)
      assert np.diff(expected[order]).max() < -1e-6  # no ties
      assert np.array_equal(tokens[row, :40], targets[order])
    assert np.isneginf(scores[:, 40:]).all()
    assert not np.asarray(tokens[:, 40:]).any()


def test_beams_find_better_texts_and_a_row_of_padding_has_none(model):
  net, params = model
  source = np.concatenate([SOURCE, np.zeros((1, 5), int)])
  encoded = encode(net, params, PROMPT, source)
  greedy_tokens, greedy_scores = greedy(net, params, encoded, source, LENGTH, 9)
  tokens, scores = beam_search(net, params, encoded, source, LENGTH, 9, 6)(0.0)
  assert (np.asarray(scores[:, 0]) >= np.asarray(greedy_scores) - 1e-5).all()
  assert not np.array_equal(tokens[:, 0], greedy_tokens)
  assert not np.asarray(tokens[4]).any()
  assert not np.asarray(scores[4]).any()


def test_beams_on_eight_devices_are_those_of_one():
  script = f"""
import pathlib, sys
sys.path[:0] = {[str(pathlib.Path(__file__).parents[i]) for i in (0, 1, 2)]}
import jax, numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec
import test_decoding
from tpv_jax.backbones import decoding
from tpv_jax.backbones.t5 import network
net = network.Transformer(16, 12, 2, 5, 1, 1, 20)
params = test_decoding.random_params(net, 1)
source = np.random.default_rng(0).integers(2, 16, (8, 5))
mesh = Mesh(np.array(jax.devices()), "data")
rows = NamedSharding(mesh, PartitionSpec("data"))
@jax.jit
def search(params, source):
  encoded = net.apply({{"params": params}}, source, method=net.encode)
  cache = net.apply({{"params": params}}, encoded, source, 6, method=net.start_decoding)
  return decoding.beam_search(
    net, params, cache, (source == 0).all(axis=1), 6, (9,), 3
  )
tokens, scores = search(params, jax.device_put(source, rows))
assert len(scores.sharding.device_set) == 8
one_tokens, one_scores = search(params, source)
assert np.array_equal(tokens, one_tokens)
np.testing.assert_allclose(scores, one_scores, rtol=1e-5)
print("equal on", jax.device_count())
"""
  flags = "--xla_force_host_platform_device_count=8"
  done = subprocess.run(
    [sys.executable, "-c", script],
    env={**os.environ, "XLA_FLAGS": flags},
    capture_output=True,
    text=True,
  )
  assert done.stdout == "equal on 8\n", done.stderr


def bodies(jaxpr):
  """Yields the bodies of all while loops in a jaxpr."""
  for equation in jaxpr.eqns:
    if equation.primitive.name == "while":
      yield equation.params["body_jaxpr"].jaxpr
    for value in equation.params.values():
      if hasattr(value, "jaxpr"):
        yield from bodies(value.jaxpr)


def products(jaxpr):
  """Yields the operand shapes of all matrix products in a jaxpr."""
  for equation in jaxpr.eqns:
    if equation.primitive.name == "dot_general":
      yield tuple(variable.aval.shape for variable in equation.invars)
    for value in equation.params.values():
      if hasattr(value, "jaxpr"):
        yield from products(value.jaxpr)


@pytest.mark.parametrize("num_beams", [1, 3])
def test_a_step_projects_neither_the_source_nor_the_past(model, num_beams):
  net, params = model
  encoded = encode(net, params)

  def decode(params, encoded):
    start = begin(net, params, encoded, SOURCE, LENGTH)
    choice = decoding.Choice(num_beams)
    return decoding.decode(net, params, *start, LENGTH, choice=choice)

  closed = jax.make_jaxpr(decode)(params, encoded)
  [body] = bodies(closed.jaxpr)
  shapes = list(products(body))
  assert shapes
  rows, width = len(SOURCE) * num_beams, encoded.shape[-1]
  for pair in shapes:
    for shape in pair:
      # What is as wide as the model has one position: the present one.
      assert shape[:1] + shape[2:] != (rows, width) or shape[1] == 1, pair


def test_decoding_stops_when_all_rows_are_over(model):
  # The logits of a step past the end would be NaN here, and its token would be written.
  net, params = model
  encoded = encode(net, params)
  tokens, _ = greedy(net, params, encoded, SOURCE, 1, eos_id=-1)
  calls = []

  class Counting(network.Transformer):
    def decode_step(self, *arguments):
      jax.debug.callback(lambda: calls.append(1))
      return network.Transformer.decode_step(self, *arguments)

  counting = Counting(
    **{
      name: getattr(net, name)
      for name in (one.name for one in dataclasses.fields(net))
      if name not in ("parent", "name")
    }
  )
  one = encoded[:1]
  eos_id = int(tokens[0, 0])
  written, _ = greedy(counting, params, one, SOURCE[:1], LENGTH, eos_id)
  jax.effects_barrier()
  assert written.tolist() == [[eos_id] + [0] * (LENGTH - 1)]
  assert len(calls) == 1

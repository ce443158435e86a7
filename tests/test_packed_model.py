"""Packed rows with many prompts give the numbers of unpacked rows with one prompt each."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tpv_jax.backbones.t5 import network
from tpv_jax.data import batches, packing, row_fitting, row_shapes
from tpv_jax.model import SoftPromptModel
from tpv_jax.prompts.equations import Folded

COUNTS = ("target_tokens", "accuracy", "examples", "exact_match")
PROMPTS, LENGTH, LONGEST, TARGETS, WIDTH = 3, 4, 12, 5, 16


@pytest.fixture(scope="module")
def model():
  return SoftPromptModel(
    network.Transformer(
      vocab_size=64,
      emb_dim=WIDTH,
      num_heads=2,
      head_dim=8,
      num_encoder_layers=2,
      num_decoder_layers=2,
      mlp_dim=32,
    ),
    None,
    None,
    None,
    label_smoothing=0.1,
    z_loss=1e-3,
  )


@pytest.fixture(scope="module")
def backbone(model):
  return model.get_initial_variables(jax.random.key(0), {})["params"]


def examples(seed, rows=6):
  rng = np.random.default_rng(seed)
  sources = np.zeros((rows, LONGEST), np.int32)
  targets = np.zeros((rows, TARGETS), np.int32)
  for array in (sources, targets):
    for row in array:
      length = rng.integers(1, len(row) + 1)
      row[:length] = rng.integers(2, 60, length)
  return batches.features(sources, targets)


def bank(with_delta):
  rng = np.random.default_rng(1)
  prompt = rng.standard_normal((PROMPTS, LENGTH, WIDTH)).astype(np.float32)
  delta = rng.standard_normal((PROMPTS, LONGEST, WIDTH)).astype(np.float32)
  return Folded(prompt, delta if with_delta else None)


def packed(unpacked):
  items = [
    item
    for prompt_id, features in enumerate(unpacked)
    for item in packing.items(features, prompt_id)
  ]
  order = np.random.default_rng(2).permutation(len(items))
  sizes = [(len(item.source), len(item.target)) for item in items]
  lengths = {"inputs": LONGEST, "targets": TARGETS}
  shapes = row_shapes.choose_shapes([sizes], LENGTH, lengths)
  return [features for _, features in packing.pack([items[i] for i in order], shapes)]


def sums_and_gradient(model, backbone, folded, calls):
  """Returns the losses and `COUNTS` [5, prompts] of all calls, and the losses' gradient."""

  @jax.jit
  @functools.partial(jax.value_and_grad, has_aux=True)
  def losses_of(folded, features):
    losses, counts = model.bank_loss_sums(folded, backbone, features)
    return losses.sum(), jnp.stack([losses, *(counts[name] for name in COUNTS)])

  found = [losses_of(folded, features) for features in calls]
  sums = np.sum([sums for (_, sums), _ in found], axis=0)
  return sums, jax.tree.map(lambda *parts: sum(parts), *(leaf for _, leaf in found))


@pytest.mark.parametrize("with_delta", [False, True])
def test_losses_and_gradients_of_a_bank_are_those_of_each_prompt_alone(
  model, backbone, with_delta
):
  folded = bank(with_delta)
  unpacked = [examples(seed) for seed in range(PROMPTS)]
  found, gradient = sums_and_gradient(model, backbone, folded, packed(unpacked))

  def alone(leaves, features):
    loss, weight, metrics = model.loss_sums({**backbone, "prompt": leaves}, features)
    exact = metrics["exact_match"]
    return loss, (loss, weight, metrics["accuracy"].total, exact.count, exact.total)

  for number, features in enumerate(unpacked):
    leaves = {name: leaf[number] for name, leaf in folded.leaves().items()}
    # Without a prompt module nothing under 'prompt/' is trained, but loss_sums' pattern
    # lets its gradient through.
    expected_gradient, expected = jax.grad(alone, has_aux=True)(leaves, features)
    # fp32, other summation orders: a few units of the last of seven digits.
    np.testing.assert_allclose(found[:, number], expected, rtol=2e-6)
    for name, leaf in gradient.leaves().items():
      np.testing.assert_allclose(
        leaf[number], expected_gradient[name], rtol=1e-4, atol=2e-6
      )


def test_rows_of_one_example_each_give_the_numbers_of_packed_rows(model, backbone):
  folded = bank(True)
  unpacked = [examples(seed, rows=4 + seed) for seed in range(PROMPTS)]
  sizes = [len(features["encoder_input_tokens"]) for features in unpacked]
  order = np.random.default_rng(3).permutation(sum(sizes))
  rows = {
    name: np.concatenate([features[name] for features in unpacked])[order]
    for name in unpacked[0]
  }
  rows["prompt_ids"] = np.repeat(np.arange(PROMPTS), sizes)[order]
  found, gradient = sums_and_gradient(model, backbone, folded, [rows])
  expected, expected_gradient = sums_and_gradient(
    model, backbone, folded, packed(unpacked)
  )
  # fp32, other summation orders.
  np.testing.assert_allclose(found, expected, rtol=2e-6)
  for name, leaf in gradient.leaves().items():
    np.testing.assert_allclose(
      leaf, expected_gradient.leaves()[name], rtol=1e-4, atol=2e-6
    )


def test_a_prompt_without_examples_has_no_loss_and_no_gradient(model, backbone):
  folded = bank(True)
  (features,) = packed([examples(0, rows=1)])[:1]

  def loss(folded):
    return model.bank_loss_sums(folded, backbone, features)[0].sum()

  gradient = jax.grad(loss)(folded)
  assert np.abs(gradient.prompt[0]).max() > 0
  assert not np.asarray(gradient.prompt[1:]).any()
  assert not np.asarray(gradient.delta[1:]).any()


def choices_of(unpacked, count):
  """Returns sources, and for each of them `count` choices of 1 to TARGETS tokens."""
  rng = np.random.default_rng(5)
  sources = [row[row > 0] for row in unpacked["encoder_input_tokens"]]
  return sources, [
    [rng.integers(2, 60, rng.integers(1, TARGETS + 1)) for _ in range(count)]
    for _ in sources
  ]


@pytest.mark.parametrize("with_delta", [False, True])
def test_choices_score_what_each_scores_alone_behind_its_prompt(
  model, backbone, with_delta
):
  folded, count = bank(with_delta), 3
  row = row_fitting.Shape(1, 2 * (LENGTH + LONGEST), 6 * TARGETS)
  parts, known = [], []
  for prompt_id in (0, 2):
    sources, choices = choices_of(examples(prompt_id), count)
    ids = [0] * len(sources)
    rows, first = packing.pack_choices(sources, choices, ids, row, LENGTH)
    parts.append(packing.with_prompts(rows, [prompt_id]))
    known.append((prompt_id, sources, choices, first))
  (features,) = packing.blocks(parts, sum(len(p["encoder_positions"]) for p in parts))
  scores, _ = jax.jit(model.score_choices)(folded, backbone, features)
  start = 0
  for part, (prompt_id, sources, choices, first) in zip(parts, known, strict=True):
    leaves = {name: leaf[prompt_id] for name, leaf in folded.leaves().items()}
    for number in range(count):
      targets = np.zeros((len(sources), TARGETS), np.int32)
      inputs = np.zeros((len(sources), LONGEST), np.int32)
      for index, source in enumerate(sources):
        inputs[index, : len(source)] = source
        targets[index, : len(choices[index][number])] = choices[index][number]
      batch = batches.features(inputs, targets)
      params = {**backbone, "prompt": leaves}
      at = (start + first[:, 0], first[:, 1] + number)
      # fp32, other summation orders.
      np.testing.assert_allclose(
        np.asarray(scores)[at], model.score_batch(params, batch), rtol=2e-5
      )
    start += len(part["encoder_positions"])


def test_the_choice_that_is_written_greedily_is_known(model, backbone, monkeypatch):
  folded = bank(False)
  source, other = np.array([5, 9, 1]), np.array([7])
  rows = {"encoder_input_tokens": np.array([[5, 9, 1]]), "prompt_ids": np.array([1])}
  (tokens,) = model.predict_rows(folded, backbone, rows, 3)
  tokens = np.asarray(tokens)[np.asarray(tokens) > 0]
  row = row_fitting.Shape(1, LENGTH + LONGEST, 2 * TARGETS)
  packed, first = packing.pack_choices([source], [[other, tokens]], [1], row, LENGTH)
  _, written = model.score_choices(folded, backbone, packed)
  row, segment = first[0]
  assert not written[row, segment : segment + 2].any()  # Neither has an end.
  monkeypatch.setattr(model, "_end_ids", (int(tokens[-1]),))
  _, written = model.score_choices(folded, backbone, packed)
  assert written[row, segment : segment + 2].tolist() == [False, True]


def test_sixteen_times_the_choices_do_not_encode_a_source_again(model, backbone):
  def flops(count):
    features, _ = packing.pack_choices(
      [np.ones(200, np.int32)],
      [[np.ones(1, np.int32)] * count],
      [0],
      row_fitting.Shape(1, 208, count),
      LENGTH,
    )
    scoring = jax.jit(model.score_choices).lower(bank(False), backbone, features)
    return scoring.compile().cost_analysis()["flops"]

  assert flops(16) < 1.5 * flops(1)

"""What a network makes of a summed EPT prompt, against an input embedded by NumPy."""

import jax.numpy as jnp
import numpy as np
import pytest

from tpv_jax.evaluation import candidates
from tpv_jax.formats import sources
from tpv_jax.vectors import algebra, store

ALPHA, LONGEST, WIDTH = 8.0, 8, 16
BATCH = {
  "encoder_input_tokens": np.int32(
    [[5, 9, 3, 0, 0, 0], [7, 7, 4, 11, 2, 1], [30, 1, 0, 0, 0, 0]]
  ),
  "decoder_input_tokens": np.int32([[0, 4, 5], [0, 9, 0], [0, 3, 0]]),
  "decoder_target_tokens": np.int32([[4, 5, 1], [9, 1, 0], [3, 1, 0]]),
  "decoder_loss_weights": np.float32([[1, 1, 1], [1, 1, 0], [1, 1, 0]]),
}


@pytest.fixture
def prompts(ept_initial, ept_tuned):
  """Parameters of an initial EPT prompt and of two that were tuned from it."""
  start = ept_initial(0, source=LONGEST, width=WIDTH)
  return [start, ept_tuned(start, "sst2", 1), ept_tuned(start, "rte", 2)]


@pytest.fixture
def runs(prompts, tmp_path):
  """The same as run folders, by task."""
  for tuned in prompts[1:]:
    run = tmp_path / tuned.name
    run.mkdir()
    for which, item in (("initial", prompts[0]), ("best", tuned)):
      store.write(run / f"{which}_prompt.safetensors", item.leaves, item.provenance)
  return tmp_path


@pytest.fixture
def embedded(tiny, prompts, numpy_fold):
  """Each source as the encoder shall see it: the summed prompt, then its tokens' rows.

  Padding is left out, so every source has its own length.
  """
  start, one, two = (numpy_fold(prompt.leaves, ALPHA) for prompt in prompts)
  summed = {name: one[name] + two[name] - start[name] for name in start}
  table = np.asarray(tiny.backbone.params["token_embedder"]["embedding"], np.float64)
  return [
    np.concatenate(
      [summed["prompt"]]
      + [[table[token] + summed["delta"][j]] for j, token in enumerate(row) if token]
    )
    for row in BATCH["encoder_input_tokens"]
  ]


def logits_of(tiny, joined, row):
  """Logits of one row of the batch whose whole encoder input is given as a prompt.

  The network needs a source: a single padding token, which nothing attends to.
  """
  return tiny.network.apply(
    {"params": tiny.backbone.params},
    jnp.zeros((1, 1), jnp.int32),
    BATCH["decoder_input_tokens"][row : row + 1],
    BATCH["decoder_target_tokens"][row : row + 1],
    prompt=joined.astype(np.float32),
  )[0]


def written_logits(model, params):
  states = model._states(params, BATCH, None)
  return model._apply(params, states, method=model.network.logits)


def test_logits_of_a_summed_file_are_those_of_prompt_plus_delta(
  tiny, runs, embedded, tmp_path
):
  initial = sources.load(runs / "sst2", "initial")
  vectors = [
    algebra.diff(sources.load(runs / task), initial) for task in ("sst2", "rte")
  ]
  result = algebra.apply(algebra.sum_vectors(vectors), initial)
  store.write(tmp_path / "sum.safetensors", result.leaves, result.provenance)
  leaves, _ = store.read(tmp_path / "sum.safetensors")
  model = tiny.model(prompt=None)
  params = {**tiny.backbone.params, "prompt": leaves}
  logits = np.asarray(written_logits(model, params))
  scores = np.asarray(model.score_batch(params, BATCH))
  for row, joined in enumerate(embedded):
    expected = np.asarray(logits_of(tiny, joined, row), np.float64)
    written = BATCH["decoder_loss_weights"][row] > 0
    # fp32 through two layers; the sum itself is rounded to fp32 once.
    np.testing.assert_allclose(logits[row], expected, rtol=0, atol=2e-5)
    log_z = np.log(np.exp(expected).sum(axis=-1))
    targets = BATCH["decoder_target_tokens"][row]
    likely = expected[np.arange(len(targets)), targets] - log_z
    np.testing.assert_allclose(scores[row], likely[written].sum(), atol=1e-4)


def test_a_sum_of_factors_gives_other_logits(tiny, prompts, embedded):
  vectors = [algebra.diff(tuned, prompts[0], space="factor") for tuned in prompts[1:]]
  result = algebra.fold(algebra.apply(algebra.sum_vectors(vectors), prompts[0]))
  params = {**tiny.backbone.params, "prompt": dict(result.leaves)}
  logits = np.asarray(written_logits(tiny.model(prompt=None), params))
  for row, joined in enumerate(embedded):
    assert np.abs(logits[row] - logits_of(tiny, joined, row)).max() > 0.1


def test_evaluation_folds_what_the_verbs_fold(runs, prompts, tmp_path):
  initial = sources.load(runs / "sst2", "initial")
  vector = algebra.diff(sources.load(runs / "sst2"), initial)
  factors = algebra.diff(sources.load(runs / "sst2"), initial, space="factor")
  for name, item in (("v", vector), ("f", factors)):
    path = tmp_path / f"{name}.safetensors"
    store.write(path, item.leaves, item.provenance)
    leaves, known = candidates.subject(
      None, str(path), str(runs / "rte"), 0.5, which="best"
    )
    expected = algebra.fold(algebra.apply(item, initial, 0.5))
    assert known == expected.provenance
    assert known.space == "effective"
    assert set(leaves) == {"prompt", "delta"}
    for leaf, values in leaves.items():
      np.testing.assert_array_equal(values, expected.leaves[leaf])

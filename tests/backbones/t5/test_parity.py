"""Our numbers against Hugging Face's (tests/references/make_hf_references.py).

The stored weights are written as a folder of Hugging Face, by its own library, and our
code loads that folder, so that reading and mapping are compared as well.
"""

import functools
import importlib.util
import pathlib
import subprocess
import sys
import tempfile

import hf_references as references
import jax
import numpy as np
import pytest
from decoding_start import begin

from tpv_jax.backbones import decoding, loading
from tpv_jax.backbones.t5 import attention, hugging_face, network
from tpv_jax.core import identity

FAMILIES = references.FAMILIES
NAMES = {"t5": "T5", "t5_1_1": "T5 1.1", "flan_t5": "Flan-T5", "mt5": "mT5"}
CASES = ("long", "padded", "even", "prompted")
QUICK_FIRST = CASES[::-1]

TOLERANCE = 1e-5
"""Largest difference over largest logit, in fp32; about a hundred roundings."""


@functools.cache
def flat(family):
  """Returns the leaves of a family by T5X path, as we load Hugging Face's folder."""
  with tempfile.TemporaryDirectory() as root:
    folder = references.write_folder(pathlib.Path(root) / family, family)
    assert hugging_face.read_config(folder).numbers == references.numbers(family)
    return identity.flatten(loading.load_backbone(folder, transformer(family)).params)


@functools.cache
def transformer(family, dtype="float32"):
  return network.Transformer(**references.numbers(family), dtype=dtype)


@functools.cache
def compiled(family, case, dtype="float32"):
  """Returns the function from flat weights to the distances of logits and of loss."""
  arrays = references.case(family, case)
  targets = arrays["decoder_target_tokens"]
  real = (targets > 0)[..., None]

  @jax.jit
  def distances(flat):
    logits = transformer(family, dtype).apply(
      {"params": identity.unflatten(flat)},
      arrays["encoder_input_tokens"],
      arrays["decoder_input_tokens"],
      targets,
      prompt=arrays.get("prompt"),
    )
    difference = jax.numpy.abs(logits - arrays["logits"]) * real
    distance = difference.max() / jax.numpy.abs(arrays["logits"] * real).max()
    chosen = jax.numpy.take_along_axis(
      jax.nn.log_softmax(logits), targets[..., None], axis=-1
    )
    loss = -(chosen * real).sum() / real.sum()
    return distance, jax.numpy.abs(loss / arrays["loss"] - 1)

  return distances


def bf16_distances(family):
  """Returns how far our bf16 logits and `transformers`' own are from its fp32 logits."""
  ours = float(compiled(family, "padded", "bfloat16")(flat(family))[0])
  return ours, float(references.case(family, "padded")["bf16_distance"])


def greedy(family, case):
  """Returns our tokens and theirs."""
  arrays = references.case(family, case)
  source, expected = arrays["encoder_input_tokens"], arrays["greedy"]
  net, params = transformer(family), identity.unflatten(flat(family))
  encoded = net.apply({"params": params}, source, method=net.encode)
  start = begin(net, params, encoded, source, expected.shape[1])
  return decoding.write(net, params, *start, expected.shape[1])[0], expected


def beams(family, case):
  """Yields our tokens, theirs, our scores, theirs, for each length penalty."""
  arrays = references.case(family, case)
  source, expected = arrays["encoder_input_tokens"], arrays["beam_tokens"]
  net, params = transformer(family), identity.unflatten(flat(family))
  encoded = net.apply({"params": params}, source, method=net.encode)
  _, _, beams, length = expected.shape
  # `transformers` fills up with the end token where the padding's id is 0.
  ends = expected == 1
  expected = np.where(np.cumsum(ends, axis=-1) > ends, 0, expected)

  @jax.jit
  def search(length_penalty):
    start = begin(net, params, encoded, source, length)
    return decoding.beam_search(
      net, params, *start, length, (1,), beams, length_penalty
    )

  for index, penalty in enumerate(references.stored(family)["beam_length_penalties"]):
    tokens, scores = search(penalty)
    yield tokens, expected[index], scores, arrays["beam_scores"][index]


def parity_rows():
  """Returns (implementation, case, largest relative difference) for each comparison."""
  rows = []
  for family in FAMILIES:
    name = f"transformers {NAMES[family]}"
    for case in CASES:
      logits, loss = map(float, compiled(family, case)(flat(family)))
      rows.append((name, f"logits, {case}", logits))
      rows.append((name, f"loss, {case}", loss))
    ours, theirs = bf16_distances(family)
    rows.append((name, f"bf16 logits, padded (its own bf16: {theirs:.1e})", ours))
    for case in ("padded", "even"):
      tokens, expected = greedy(family, case)
      rows.append((name, f"greedy tokens, {case}", float(np.any(tokens != expected))))
      found = list(beams(family, case))
      differ = any(np.any(tokens != theirs) for tokens, theirs, _, _ in found)
      rows.append((name, f"tokens of 4 beams, {case}", float(differ)))
      scores = max(
        float(np.abs(ours / theirs - 1).max()) for _, _, ours, theirs in found
      )
      rows.append((name, f"scores of 4 beams, {case}", scores))
  return rows


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("case", CASES)
def test_logits_and_loss_equal_those_of_hugging_face(family, case):
  logits, loss = map(float, compiled(family, case)(flat(family)))
  print(f"{family} {case}: logits {logits:.1e}, loss {loss:.1e}")
  assert logits < TOLERANCE
  assert loss < TOLERANCE


@pytest.mark.parametrize("family", FAMILIES)
def test_bf16_logits_are_as_near_as_hugging_faces_own(family):
  # Both round each of some forty operations to 8 bits, in different orders.
  ours, theirs = bf16_distances(family)
  assert 1e-4 < ours < 2 * theirs


@pytest.mark.parametrize("family", FAMILIES)
def test_any_leaf_moved_by_a_thousandth_is_noticed(family):
  # An element that is read: token 1 ends every source; bucket 1 is the nearest token's.
  unnoticed = []
  leaves = flat(family)
  for path, leaf in leaves.items():
    moved = leaf.copy()
    moved[(1,) * leaf.ndim] += 1e-3
    flat_moved = {**leaves, path: moved}
    if not any(
      float(compiled(family, c)(flat_moved)[0]) > TOLERANCE for c in QUICK_FIRST
    ):
      unnoticed.append(path)
  assert unnoticed == []


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("stack", ["encoder", "decoder"])
def test_every_bucket_of_the_relative_bias_is_compared(family, stack):
  leaves = flat(family)
  path = f"{stack}/relpos_bias/rel_embedding"
  unnoticed = []
  for bucket in range(attention.RELATIVE_BUCKETS):
    moved = leaves[path].copy()
    moved[:, bucket] += 0.5
    if not float(compiled(family, "long")({**leaves, path: moved})[0]) > TOLERANCE:
      unnoticed.append(bucket)
  # Distance 0 is counted once, so the first bucket of "later" is never used.
  assert unnoticed == ([16] if stack == "encoder" else [])


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("case", ["padded", "even"])
def test_greedy_decoding_writes_what_hugging_face_generates(family, case):
  tokens, expected = greedy(family, case)
  assert np.array_equal(tokens, expected)


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("case", ["padded", "even"])
def test_beam_search_finds_what_hugging_face_generates(family, case):
  for tokens, expected, scores, their_scores in beams(family, case):
    assert np.array_equal(tokens, expected)
    # Sums of twelve log-probabilities, and Hugging Face's are in another order.
    np.testing.assert_allclose(scores, their_scores, rtol=1e-5)


def test_references_are_small():
  stored = [references.FOLDER / f"hf_{family}.npz" for family in FAMILIES]
  assert sum(path.stat().st_size for path in stored) < 1_000_000


def test_the_script_regenerates_the_references():
  for package in ("torch", "transformers"):
    if importlib.util.find_spec(package) is None:
      pytest.skip(f"needs the extra 'parity': {package} is not installed")
  script = references.FOLDER / "make_hf_references.py"
  done = subprocess.run(
    [sys.executable, script, "--check"], capture_output=True, text=True
  )
  assert done.returncode == 0, done.stdout + done.stderr


def test_the_scripts_import_nothing_of_ours():
  for script in references.FOLDER.glob("make_*.py"):
    lines = script.read_text().splitlines()
    code = [line for line in lines if "import" in line.split()[:3]]
    assert code, script
    assert not any("tpv_jax" in line for line in code), script

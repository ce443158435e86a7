"""Decoder-only families against Hugging Face's (make_llama_references.py and Gemma's)."""

import subprocess
import sys

import decoder_parity as parity
import hf_references as references
import numpy as np
import pytest

pytestmark = pytest.mark.usefixtures("compiles_faster")

NAMES = {
  "llama": "LLaMA",
  "llama_tied": "LLaMA, tied",
  "llama_3_1": "LLaMA 3.1",
  "qwen2": "Qwen 2.5",
  "qwen3": "Qwen 3",
  "mistral": "Mistral",
  "gemma3": "Gemma 3",
  "gemma3_scaled": "Gemma 3, scaled",
}
FAMILIES = (*references.LLAMAS, *references.GEMMAS)


def parity_rows():
  """Returns the rows of the parity table."""
  return parity.parity_rows(NAMES)


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize(
  "case", [pytest.param(case, marks=marks) for case, marks in parity.QUICK.items()]
)
def test_logits_and_loss_equal_those_of_hugging_face(family, case):
  found = parity.distances(family, case)
  assert max(found.values()) < parity.TOLERANCE, found


@pytest.mark.parametrize("family", ["llama_tied", "qwen2", "qwen3", "gemma3"])
def test_bf16_logits_are_as_near_as_hugging_faces_own(family):
  ours, theirs = parity.bf16_distances(family)
  assert 1e-4 < ours < 2 * theirs


@pytest.mark.parametrize("family", FAMILIES)
def test_any_leaf_moved_by_a_thousandth_is_noticed(family):
  assert parity.unnoticed(family) == []


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize(
  "case", ["padded", pytest.param("prompted", marks=pytest.mark.slow)]
)
def test_greedy_decoding_writes_what_hugging_face_generates(family, case):
  tokens, expected = parity.greedy(family, case)
  assert np.array_equal(tokens, expected)


def test_each_end_token_ends_an_answer_of_the_references():
  families = references.LLAMAS
  written = [references.case(family, "padded")["greedy"] for family in families]
  stated = [references.config(family)["eos_token_id"] for family in families]
  assert any(isinstance(ends, list) for ends in stated)
  for rows, ends in zip(written, stated, strict=True):
    assert np.isin(rows, ends).any()


@pytest.mark.parametrize("family", references.GEMMAS)
def test_rows_of_the_references_are_longer_than_the_window(family):
  window = references.config(family)["sliding_window"]
  assert (references.case(family, "padded")["source"][0] >= 0).sum() > window


def test_references_of_llamas_are_small():
  stored = [references.FOLDER / f"hf_{family}.npz" for family in references.LLAMAS]
  assert sum(path.stat().st_size for path in stored) < 600_000


@pytest.mark.slow
@pytest.mark.parametrize("family", ["llama", "gemma"])
def test_the_script_regenerates_the_references(family):
  parity.needs_transformers()
  script = references.FOLDER / f"make_{family}_references.py"
  done = subprocess.run(
    [sys.executable, script, "--check"], capture_output=True, text=True
  )
  assert done.returncode == 0, done.stdout + done.stderr

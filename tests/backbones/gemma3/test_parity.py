"""Gemma 3 against Hugging Face's (make_gemma_references.py)."""

import subprocess
import sys

import decoder_parity as parity
import hf_references as references
import numpy as np
import pytest
from decoder_parity import (
  QUICK,
  TOLERANCE,
  bf16_distances,
  distances,
  greedy,
  unnoticed,
)

pytestmark = pytest.mark.usefixtures("compiles_faster")

NAMES = {"gemma3": "Gemma 3", "gemma3_scaled": "Gemma 3, scaled"}
FAMILIES = references.GEMMAS


def parity_rows():
  """Returns the rows of the parity table."""
  return parity.parity_rows(NAMES)


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize(
  "case", [pytest.param(case, marks=marks) for case, marks in QUICK.items()]
)
def test_logits_and_loss_equal_those_of_hugging_face(family, case):
  found = distances(family, case)
  assert max(found.values()) < TOLERANCE, found


def test_bf16_logits_are_as_near_as_hugging_faces_own():
  ours, theirs = bf16_distances("gemma3")
  assert 1e-4 < ours < 2 * theirs


@pytest.mark.parametrize("family", FAMILIES)
def test_any_leaf_moved_by_a_thousandth_is_noticed(family):
  assert unnoticed(family) == []


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize(
  "case", ["padded", pytest.param("prompted", marks=pytest.mark.slow)]
)
def test_greedy_decoding_writes_what_hugging_face_generates(family, case):
  tokens, expected = greedy(family, case)
  assert np.array_equal(tokens, expected)


@pytest.mark.parametrize("family", FAMILIES)
def test_rows_of_the_references_are_longer_than_the_window(family):
  window = references.config(family)["sliding_window"]
  assert (references.case(family, "padded")["source"][0] >= 0).sum() > window


@pytest.mark.slow
def test_the_script_regenerates_the_references():
  for package in ("torch", "transformers"):
    pytest.importorskip(package, reason="needs the extra 'parity'")
  script = references.FOLDER / "make_gemma_references.py"
  done = subprocess.run(
    [sys.executable, script, "--check"], capture_output=True, text=True
  )
  assert done.returncode == 0, done.stdout + done.stderr

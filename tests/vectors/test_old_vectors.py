"""Vectors that the `tpv` of an earlier version wrote are read, and made again, alike."""

import json
import pathlib
import sys

import numpy as np
import pytest

from tpv_jax.vectors import store

FIXTURES = pathlib.Path(__file__).parents[1] / "fixtures"
sys.path.append(str(FIXTURES))

import write_vectors  # noqa: E402

FOLDER = FIXTURES / "v0_1_0"
VECTORS, RUNS = FOLDER / "vectors", FOLDER / "runs"

ROUNDING = 1e-6
"""Of what is folded: sums of a few products in fp64, rounded once to fp32 at about 1."""


def expected(name):
  """Returns the leaves and the provenance, as JSON, that reading a file gave then."""
  with np.load(VECTORS / "expected.npz", allow_pickle=False) as stored:
    leaves = {
      key.removeprefix(f"{name}/"): stored[key]
      for key in stored
      if key.startswith(f"{name}/")
    }
  return leaves, json.loads((VECTORS / "expected.json").read_text())[name]


def assert_same_bits(leaves, others):
  assert leaves.keys() == others.keys()
  for name, leaf in others.items():
    assert leaves[name].dtype == leaf.dtype == np.float32
    assert leaves[name].shape == leaf.shape
    assert leaves[name].tobytes() == leaf.tobytes(), name


@pytest.mark.parametrize("name", write_vectors.CALLS)
def test_what_was_written_is_read_bit_by_bit(name):
  leaves, provenance = store.read(VECTORS / f"{name}.safetensors")
  then, known = expected(name)
  assert_same_bits(leaves, then)
  assert provenance.to_json() == known


@pytest.mark.parametrize("name", write_vectors.CALLS)
def test_the_same_command_writes_the_same_again(name, tmp_path):
  write_vectors.make(name, tmp_path, RUNS, VECTORS)
  leaves, provenance = store.read(tmp_path / f"{name}.safetensors")
  then, known = expected(name)
  stated = provenance.to_json()
  stated.pop("initial_norm", None)  # Written since 0.2.0.
  assert stated == known
  if name not in write_vectors.FOLDED:
    assert_same_bits(leaves, then)
  assert leaves.keys() == then.keys()
  for leaf, value in then.items():
    np.testing.assert_allclose(leaves[leaf], value, rtol=0, atol=ROUNDING)

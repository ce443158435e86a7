"""The ratio norm(vector) / norm(start) is known, kept, printed, and hinted at."""

import dataclasses
import json

import numpy as np
import pytest

from tpv_jax.core import files
from tpv_jax.vectors import algebra, moving, store
from tpv_jax.vectors.provenance import Provenance


@pytest.fixture
def initial(initial_prompt):
  return initial_prompt(0)


@pytest.fixture
def vector(initial, tuned_prompt):
  return algebra.diff(tuned_prompt(initial, "sst2", 1), initial)


def norm(item):
  return np.linalg.norm(item.leaves["prompt"].astype(np.float64))


def test_a_vector_knows_its_ratio_and_so_do_its_multiples_and_sums(
  initial, vector, tuned_prompt
):
  expected = norm(vector) / norm(initial)
  assert moving.own_ratio(vector) == pytest.approx(expected)
  assert moving.own_ratio(0.5 * vector) == pytest.approx(0.5 * expected)
  other = algebra.diff(tuned_prompt(initial, "rte", 2), initial)
  assert moving.own_ratio(vector + other) == pytest.approx(
    norm(vector + other) / norm(initial)
  )
  # A vector from before the field existed, of the same initial prompt, adds nothing.
  old = dataclasses.replace(
    other, provenance=dataclasses.replace(other.provenance, initial_norm=None)
  )
  assert moving.own_ratio(old) is None
  assert moving.own_ratio(old + vector) == moving.own_ratio(vector + other)


def test_of_mixed_origins_and_of_prompts_no_ratio_is_said(
  initial, vector, initial_prompt, tuned_prompt
):
  other = initial_prompt(5)
  moved = algebra.diff(tuned_prompt(other, "rte", 2), other)
  mixed = algebra.sum_vectors([vector, moved], allow_mixed_origin=True)
  assert moving.own_ratio(mixed) is None
  assert moving.own_ratio(initial) is None
  assert moving.own_ratio(vector.on(other)) is None
  back = vector.on(other) - other
  assert back.provenance.initial_norm == vector.provenance.initial_norm


def test_the_ratio_to_a_start_takes_the_coefficient_without_its_sign(vector, initial):
  expected = 0.5 * norm(vector) / norm(initial)
  assert moving.ratio(vector, initial, -0.5) == pytest.approx(expected)
  zero = dataclasses.replace(
    initial, leaves={"prompt": np.zeros_like(initial.leaves["prompt"])}
  )
  assert moving.ratio(vector, zero) is None


def test_a_hint_is_given_below_the_threshold_only():
  assert moving.hint(moving.MOVES_FROM) is None
  assert "our threshold" in moving.hint(0.99 * moving.MOVES_FROM)
  assert moving.told(3.0) == "norm(vector) / norm(start) is 3"
  assert moving.told(0.2, 3.0).startswith(
    "norm(vector) / norm(start) is 0.2 to 3; below"
  )


def test_a_vector_shows_its_ratio_in_one_line(vector):
  ratio = moving.own_ratio(vector)
  assert f", {ratio:.2g} of its start's, of" in repr(vector)


def test_a_file_states_the_norm_where_older_releases_overlook_it(vector, tmp_path):
  path = tmp_path / "v.safetensors"
  store.write(path, vector.leaves, vector.provenance)
  assert store.read(path)[1] == vector.provenance
  header = path.read_bytes()[8:]
  metadata = json.JSONDecoder().raw_decode(header.decode("latin-1"))[0]["__metadata__"]
  before = files.parse_json(metadata["provenance"])
  assert "initial_norm" not in before
  unknown = dataclasses.replace(vector.provenance, initial_norm=None)
  assert Provenance.from_json(before) == unknown
  assert float(metadata["initial_norm"]) == vector.provenance.initial_norm


@pytest.mark.parametrize("norm", [-1.0, float("nan"), float("inf")])
def test_a_norm_that_is_none_is_refused(norm):
  with pytest.raises(ValueError, match="norm of its initial prompt"):
    Provenance(kind="vector", initial_norm=norm)

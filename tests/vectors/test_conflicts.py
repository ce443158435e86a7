"""Conflicts of vectors against SciPy and values that are known by construction."""

import dataclasses

import numpy as np
import pytest
import scipy.linalg

from tpv_jax.core.errors import UserError
from tpv_jax.vectors import algebra
from tpv_jax.vectors.conflicts import conflicts, draw, rows
from tpv_jax.vectors.loaded import Loaded


@pytest.fixture
def like(initial_prompt, tuned_prompt):
  """The function (values) -> a vector with these values."""
  start = initial_prompt(0)
  known = algebra.diff(tuned_prompt(start, "a", 1), start).provenance
  return lambda *values: [
    Loaded({"prompt": np.asarray(one, np.float32)}, known, "v") for one in values
  ]


def test_signs_norms_and_tokens_are_those_of_the_values(like):
  first = [[1, 2, 0], [0, 0, 0], [3, 0, 4]]
  second = [[1, -2, 5], [1, 1, 1], [3, 0, 4]]
  (pair,) = conflicts(like(first, second), ["a", "b"])
  assert pair.same_sign == 3 / 4  # Of 1 1, 2 -2, 3 3 and 4 4.
  assert pair.norms == pytest.approx((30**0.5, (30 + 3 + 25) ** 0.5))
  assert pair.ratio == pytest.approx((58 / 30) ** 0.5)
  tokens = pair.tokens["prompt"]
  assert tokens[0] == pytest.approx(-3 / 5**0.5 / 30**0.5)
  assert tokens[1] is None
  assert tokens[2] == pytest.approx(1.0)
  back = conflicts(like(second, first), ["b", "a"])[0]
  assert back.ratio == pytest.approx(pair.ratio)


def test_angles_are_those_of_scipy_at_the_numerical_rank(like):
  rng = np.random.default_rng(0)
  first, second = rng.normal(size=(2, 4, 9))
  first[3] = first[0] + first[1]  # Rank 3.
  (pair,) = conflicts(like(first, second), ["a", "b"])
  found = pair.angles["prompt"]
  assert len(found) == 3
  expected = scipy.linalg.subspace_angles(first[:3].T, second.T)
  np.testing.assert_allclose(found, np.degrees(np.sort(expected)), atol=1e-3)
  overlap, chance = pair.overlap["prompt"]
  assert overlap == pytest.approx(np.mean(np.cos(expected) ** 2), abs=1e-5)
  assert chance == 4 / 9


def test_the_overlap_of_random_row_spaces_is_what_chance_gives(like):
  rng = np.random.default_rng(1)
  pairs = conflicts(like(*rng.normal(size=(12, 5, 60))), [str(i) for i in range(12)])
  assert len(pairs) == 66
  found = np.mean([pair.overlap["prompt"][0] for pair in pairs])
  assert found == pytest.approx(5 / 60, rel=0.1)


def test_every_leaf_with_rows_has_tokens_and_angles(ept_initial, ept_tuned):
  start = ept_initial(0)
  vectors = [algebra.diff(ept_tuned(start, "a", i), start) for i in (1, 2)]
  (pair,) = conflicts(vectors, ["a", "b"])
  assert {leaf: len(some) for leaf, some in pair.tokens.items()} == {
    "delta": 5,
    "prompt": 3,
  }
  assert {leaf: len(some) for leaf, some in pair.angles.items()} == {
    "delta": 4,  # A difference of two updates of rank 2.
    "prompt": 3,
  }
  assert draw([pair]).startswith(b"\x89PNG")
  _, (*_, overlap) = rows([pair])
  assert [cell.split()[0] for cell in overlap.split(", ")] == ["delta", "prompt"]


def test_the_table_has_a_row_for_each_pair(like):
  rng = np.random.default_rng(2)
  header, *found = rows(conflicts(like(*rng.normal(size=(3, 2, 8))), ["a", "b", "c"]))
  assert [row[0] for row in found] == ["a and b", "a and c", "b and c"]
  assert {len(row) for row in found} == {len(header)}


def test_too_few_prompts_and_zeros_are_refused(like, initial_prompt):
  one, zero = like([[1.0, 2.0]], [[0.0, 0.0]])
  with pytest.raises(UserError, match="at least two"):
    conflicts([one], ["a"])
  with pytest.raises(UserError, match="all zeros"):
    conflicts([one, zero], ["a", "b"])
  with pytest.raises(UserError, match="a vector is needed"):
    conflicts([one, initial_prompt(0, (1, 2))], ["a", "b"])


def test_a_picture_that_nobody_could_read_is_refused(like):
  rng = np.random.default_rng(3)
  vectors = like(*rng.normal(size=(13, 1, 4)))
  pairs = conflicts(vectors, [f"v{i}" for i in range(13)])
  with pytest.raises(UserError, match="at most 12 vectors"):
    draw(pairs)
  with pytest.raises(UserError, match="nothing to draw"):
    draw([dataclasses.replace(pairs[0], tokens={})])

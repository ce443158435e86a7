"""Groups of vectors: what is planted is found."""

import numpy as np
import pytest

from tpv_jax.core.errors import UserError
from tpv_jax.vectors import algebra
from tpv_jax.vectors.grouping import draw, group, linkage
from tpv_jax.vectors.loaded import Loaded


@pytest.fixture
def planted(initial_prompt, tuned_prompt):
  """Seven vectors in the groups 1 2 1 3 2 1 3, of very different lengths."""
  start = initial_prompt(0)
  known = algebra.diff(tuned_prompt(start, "a", 1), start).provenance
  rng = np.random.default_rng(0)
  centres = rng.normal(size=(3, 4, 6))
  lengths = (1, 50, 0.02, 7, 1, 300, 0.1)
  return [
    Loaded(
      {"prompt": np.float32(size * (centres[one] + 0.2 * rng.normal(size=(4, 6))))},
      known,
      f"v{place}",
    )
    for place, (one, size) in enumerate(
      zip((0, 1, 0, 2, 1, 0, 2), lengths, strict=True)
    )
  ]


NAMES = [f"v{i}" for i in range(7)]


def test_planted_groups_are_found_whatever_the_lengths(planted):
  found = group(planted, NAMES, 3)
  assert found.groups == (1, 2, 1, 3, 2, 1, 3)
  assert found.members(3) == [3, 6]
  assert found.within(3) == pytest.approx(found.cosine[3, 6])
  expected = np.mean([found.cosine[0, 2], found.cosine[0, 5], found.cosine[2, 5]])
  assert found.within(1) == pytest.approx(expected)
  content = found.to_json()
  assert content["groups"][1]["names"] == ["v1", "v4"]
  assert len(content["merges"]) == 6


@pytest.mark.parametrize("number", range(1, 8))
def test_there_are_as_many_groups_as_asked_for_even_at_equal_distances(planted, number):
  same = [planted[0]] * 7  # Every distance is 0.
  for vectors in (planted, same):
    assert max(group(vectors, NAMES, number).groups) == number


def test_the_merges_join_the_nearest_first_at_their_mean_distance(planted):
  found = group(planted, NAMES, 1)
  distances = found.merges[:, 2]
  assert (np.diff(distances) >= 0).all()
  apart = 1 - found.cosine[np.triu_indices(7, 1)]
  assert distances[0] == pytest.approx(apart.min())


@pytest.mark.parametrize("seed", range(5))
def test_the_merges_are_those_of_scipy(seed):
  hierarchy = pytest.importorskip("scipy.cluster.hierarchy")
  points = np.random.default_rng(seed).normal(size=(12, 3))
  distances = np.linalg.norm(points[:, None] - points, axis=2)
  expected = hierarchy.linkage(distances[np.triu_indices(12, 1)], "average")
  np.testing.assert_allclose(linkage(distances), expected, rtol=1e-12)


def test_a_dendrogram_is_drawn_of_two_and_of_many(planted):
  for count in (2, 7):
    assert draw(group(planted[:count], NAMES[:count], 2)).startswith(b"\x89PNG")


@pytest.mark.parametrize("number", [0, 8, -1])
def test_an_impossible_number_of_groups_is_refused(planted, number):
  with pytest.raises(UserError, match=f"{number} groups of 7 vectors"):
    group(planted, NAMES, number)


def test_one_vector_and_a_prompt_are_refused(planted, initial_prompt):
  with pytest.raises(UserError, match="at least two"):
    group(planted[:1], NAMES[:1], 1)
  with pytest.raises(UserError, match="a vector is needed"):
    group([planted[0], initial_prompt(0)], NAMES[:2], 1)

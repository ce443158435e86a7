"""The ranking of vectors by how near they are, against plain NumPy."""

import dataclasses

import numpy as np
import pytest

from tpv_jax.core.errors import UserError
from tpv_jax.vectors import algebra
from tpv_jax.vectors.nearest import nearest


@pytest.fixture
def made(initial_prompt, tuned_prompt):
  """The function (task, change, seed, sizes) -> a vector."""

  def make(task, change, seed=0, **sizes):
    start = initial_prompt(seed, **sizes)
    return dataclasses.replace(
      algebra.diff(tuned_prompt(start, task, change), start), name=task
    )

  return make


def test_all_three_measures_are_those_of_numpy(made):
  vector, near, far = made("a", 1), made("b", 2), made("c", 3, seed=1)
  found, left_out = nearest(vector, [near, far])
  assert not left_out
  assert [one.same_origin for one in found if one.vector is near] == [True]
  assert [one.same_origin for one in found if one.vector is far] == [False]
  v = vector.leaves["prompt"].astype(float)
  for one in found:
    other = one.vector.leaves["prompt"].astype(float)
    assert one.dot == pytest.approx(
      np.mean([x @ y for x, y in zip(v, other, strict=True)])
    )
    assert one.norm == pytest.approx(np.linalg.norm(other))
    assert one.cosine == pytest.approx(
      (v * other).sum() / np.linalg.norm(v) / np.linalg.norm(other)
    )


def test_each_measure_ranks_by_itself_the_largest_first(made):
  vector, other = made("a", 1), made("b", 2)
  near = algebra.sum_vectors([vector, other], [1.0, 0.2])  # The same way, but short:
  short = dataclasses.replace(algebra.scale(near, 0.1), name="short")
  long = dataclasses.replace(algebra.scale(near, 3.0), name="long")
  longest = dataclasses.replace(algebra.scale(other, 50.0), name="longest")
  against = dataclasses.replace(algebra.scale(vector, -2.0), name="against")

  def order(by):
    found, _ = nearest(vector, [against, longest, long, short], by)
    return [one.vector.name for one in found]

  assert order("cosine")[-1] == "against"
  assert set(order("cosine")[:2]) == {"long", "short"}
  assert order("norm")[0] == "longest"
  dots = [
    (vector.leaves["prompt"] * one.leaves["prompt"]).sum()
    for one in (against, longest, long, short)
  ]
  names = ("against", "longest", "long", "short")
  ranked = sorted(zip(dots, names, strict=True), reverse=True)
  assert order("dot") == [name for _, name in ranked]


def test_what_cannot_be_compared_is_left_out_with_its_reason(made):
  vector = made("a", 1)
  zero = dataclasses.replace(algebra.scale(vector, 0.0), name="zero")
  others = [
    made("longer", 2, shape=(5, 6)),
    made("foreign", 3, backbone="cd" * 32),
    zero,
    vector,
    made("b", 4),
  ]
  found, left_out = nearest(vector, others)
  assert [one.vector.name for one in found] == ["b"]
  reasons = dict(left_out)
  assert reasons["longer"] == "it has other shapes (prompt [5, 6])"
  assert "another backbone (tiny cdcd" in reasons["foreign"]
  assert "all zeros" in reasons["zero"]
  assert reasons["a"] == "it has the values of 'a'"


def test_factors_are_compared_with_factors_of_the_same_start_only(
  ept_initial, ept_tuned
):
  def factors(seed, task, change):
    start = ept_initial(seed)
    vector = algebra.diff(ept_tuned(start, task, change), start, space="factor")
    return dataclasses.replace(vector, name=task)

  start = ept_initial(0)
  effective = algebra.diff(ept_tuned(start, "folded", 1), start)
  others = [factors(0, "b", 2), factors(1, "c", 3), effective]
  found, left_out = nearest(factors(0, "a", 1), others)
  assert [one.vector.name for one in found] == ["b"]
  assert [why for _, why in left_out] == [
    "it is of the factor space and of other initial parameters",
    "it is of the effective space",
  ]


def test_a_vector_without_direction_and_an_unknown_measure_are_refused(made):
  vector = made("a", 1)
  with pytest.raises(UserError, match="all zeros"):
    nearest(algebra.scale(vector, 0.0), [vector])
  with pytest.raises(UserError, match="no measure 'angle'"):
    nearest(vector, [vector], "angle")

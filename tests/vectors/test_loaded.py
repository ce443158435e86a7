"""Operators on prompts and vectors: they are the algebra, with its refusals."""

import dataclasses

import numpy as np
import pytest

from tpv_jax.core.errors import UserError
from tpv_jax.vectors import algebra


@pytest.fixture
def initial(initial_prompt):
  return initial_prompt(0)


@pytest.fixture
def sst2(initial, tuned_prompt):
  return algebra.diff(tuned_prompt(initial, "sst2", 1), initial)


@pytest.fixture
def rte(initial, tuned_prompt):
  return algebra.diff(tuned_prompt(initial, "rte", 2), initial)


def same(one, other):
  assert one.provenance == other.provenance
  assert set(one.leaves) == set(other.leaves)
  for name, leaf in one.leaves.items():
    np.testing.assert_array_equal(leaf, other.leaves[name])


def test_operators_give_what_the_algebra_gives(initial, sst2, rte):
  same(sst2 + rte, algebra.sum_vectors([sst2, rte]))
  same(sst2 - rte, algebra.sum_vectors([sst2, rte], [1, -1]))
  same(-sst2, algebra.negate(sst2))
  same(0.5 * sst2, algebra.scale(sst2, 0.5))
  same(sst2 * 0.5, algebra.scale(sst2, 0.5))
  same(sst2 / 2, algebra.scale(sst2, 0.5))
  same(sst2.on(initial, 0.5), algebra.apply(sst2, initial, 0.5))
  same(initial + sst2, algebra.apply(sst2, initial))
  same(initial - sst2, algebra.apply(sst2, initial, -1))
  same(sum([sst2, rte]), sst2 + rte)


def test_a_prompt_minus_its_initial_prompt_is_its_vector(initial, tuned_prompt):
  tuned = tuned_prompt(initial, "sst2", 1)
  same(tuned - initial, algebra.diff(tuned, initial))


@pytest.mark.parametrize("kind", [np.float32, np.float64, np.int64])
def test_numbers_of_numpy_scale_from_both_sides(sst2, kind):
  same(kind(2) * sst2, algebra.scale(sst2, 2))
  same(sst2 * kind(2), algebra.scale(sst2, 2))


def test_operators_refuse_what_the_algebra_refuses(
  initial, initial_prompt, tuned_prompt
):
  one, other = (
    algebra.diff(tuned_prompt(start, "sst2", 1), start)
    for start in (initial, initial_prompt(1))
  )
  for combine in (
    lambda: one + other,
    lambda: one - other,
    lambda: 2 * initial,
    lambda: -initial,
    lambda: one + initial,
    lambda: one - initial,
    lambda: initial + initial,
    lambda: initial.on(initial),
    lambda: one.on(other),
    lambda: one * float("nan"),
    lambda: one / 0,
  ):
    with pytest.raises(UserError):
      combine()


def test_only_numbers_scale_and_only_vectors_are_added(sst2):
  for combine in (
    lambda: sst2 * "2",
    lambda: True * sst2,
    lambda: sst2 * sst2,
    lambda: sst2 / sst2,
    lambda: sst2 + 1,
    lambda: 1 + sst2,
    lambda: sst2 * np.ones(3),
    lambda: np.ones(3) * sst2,
  ):
    with pytest.raises(TypeError):
      combine()


def test_a_vector_shows_its_terms_and_no_values(initial, sst2, rte):
  shown = repr(sst2 - 0.5 * rte)
  norm = np.linalg.norm((sst2 - 0.5 * rte).leaves["prompt"].astype(np.float64))
  assert shown.startswith("<vector sst2 - 0.5 rte: prompt [")
  assert f"norm {norm:.4g}" in shown
  assert "array" not in shown
  assert repr(initial).startswith("<prompt initial: ")
  table = (sst2 - 0.5 * rte)._repr_html_()
  assert "<td>sst2 - 0.5 rte</td>" in table


def test_a_notebook_is_shown_text_not_markup(sst2):
  (term,) = sst2.provenance.terms
  named = dataclasses.replace(term, task="<script>")
  odd = dataclasses.replace(
    sst2, provenance=dataclasses.replace(sst2.provenance, terms=(named,))
  )
  assert "<script>" not in odd._repr_html_()
  assert "&lt;script&gt;" in odd._repr_html_()


def test_a_path_is_no_prompt_to_be_put_on(sst2):
  with pytest.raises(UserError, match=r"on a prompt in memory, not on 'runs/x'.*load"):
    sst2.on("runs/x")

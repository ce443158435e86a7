"""The paired bootstrap over starts and rows."""

import numpy as np
import pytest

from tpv_jax.studies import bootstrap


def test_no_difference_has_an_interval_of_no_width():
  assert bootstrap.paired([np.zeros((3, 50))]) == (0.0, 0.0, 0.0)
  assert bootstrap.paired([np.ones((2, 7)), np.ones((2, 90))]) == (1.0, 1.0, 1.0)


def test_tasks_weigh_equally_whatever_their_number_of_rows():
  mean, low, high = bootstrap.paired([np.ones((2, 10)), np.zeros((2, 1000))])
  assert mean == low == high == 0.5


def test_the_interval_of_rows_is_that_of_the_binomial_distribution():
  rows = 400
  hits = (np.arange(rows) % 4 == 0).astype(float)  # a quarter
  mean, low, high = bootstrap.paired([np.stack([hits, hits, hits])], resamples=20_000)
  half = 1.96 * (0.25 * 0.75 / rows) ** 0.5
  assert mean == 0.25
  assert (low, high) == pytest.approx((0.25 - half, 0.25 + half), abs=0.003)


def test_starts_that_differ_widen_the_interval():
  alike = np.full((3, 100), 0.5)
  unlike = np.repeat([[0.0], [0.5], [1.0]], 100, axis=1)
  assert bootstrap.paired([alike]) == (0.5, 0.5, 0.5)
  mean, low, high = bootstrap.paired([unlike])
  # All three draws the lowest start: 1/27 of the draws, so beyond the 2.5 % bound.
  assert (mean, low, high) == (0.5, 0.0, 1.0)


def test_one_draw_of_starts_serves_all_tasks():
  # What one task gains from a start, the other loses: the mean never moves.
  up = np.repeat([[0.0], [1.0]], 10, axis=1)
  assert bootstrap.paired([up, 1 - up]) == (0.5, 0.5, 0.5)


def test_the_interval_is_that_of_its_seed():
  values = np.random.default_rng(0).random((3, 40))
  assert bootstrap.paired([values]) == bootstrap.paired([values])
  assert bootstrap.paired([values]) != bootstrap.paired([values], seed=1)

"""The stated error bounds and laws, against exact rational arithmetic."""

import itertools
import math
from fractions import Fraction

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from tpv_jax.core.errors import UserError
from tpv_jax.vectors import arithmetic

U = Fraction(1, 2**24)
TINY = Fraction(1, 2**150)
SHAPE = (2, 3)
# Subnormals are in; the largest leave room for sums, so that no result overflows.
VALUES = st.floats(-(2.0**100), 2.0**100, width=32)
ARRAYS = hnp.arrays(np.float32, SHAPE, elements=VALUES)
COEFFICIENTS = st.floats(-1e6, 1e6)

pytestmark = pytest.mark.filterwarnings("error::RuntimeWarning")
laws = settings(max_examples=60, deadline=None)


def leaves(array):
  return {"prompt": array}


def exact(array):
  return [Fraction(float(value)) for value in array.reshape(-1)]


@laws
@given(ARRAYS, ARRAYS)
def test_a_difference_is_rounded_once(a, b):
  result = arithmetic.subtract(leaves(a), leaves(b))["prompt"]
  assert result.dtype == np.float32
  for r, x, y in zip(exact(result), exact(a), exact(b), strict=True):
    assert abs(r - (x - y)) <= U * abs(x - y)


@laws
@given(ARRAYS, COEFFICIENTS)
def test_a_scaled_vector_keeps_its_bound(a, c):
  result = arithmetic.scale(leaves(a), c)["prompt"]
  assert result.dtype == np.float32
  for r, x in zip(exact(result), exact(a), strict=True):
    true = Fraction(c) * x
    assert abs(r - true) <= (1 + Fraction(1, 2**28)) * U * abs(true) + TINY


@laws
@given(ARRAYS)
def test_scaling_by_one_and_negating_twice_change_no_bit(a):
  assert arithmetic.scale(leaves(a), 1.0)["prompt"].tobytes() == a.tobytes()
  once = arithmetic.scale(leaves(a), -1.0)
  assert once["prompt"].tobytes() == (-a).tobytes()
  assert arithmetic.scale(once, -1.0)["prompt"].tobytes() == a.tobytes()


@laws
@given(st.lists(st.tuples(ARRAYS, COEFFICIENTS), min_size=1, max_size=5))
def test_a_linear_combination_keeps_its_bound(parts):
  arrays, coefficients = zip(*parts, strict=True)
  result = arithmetic.linear([leaves(a) for a in arrays], coefficients)["prompt"]
  for index, r in enumerate(exact(result)):
    products = [Fraction(c) * exact(a)[index] for a, c in parts]
    true, sizes = sum(products), sum(map(abs, products))
    bound = U * abs(true) + (len(parts) + 1) * Fraction(1, 2**53) * sizes + TINY
    assert abs(r - true) <= bound


@laws
@given(st.permutations(range(5)), st.integers(0, 2**32 - 1))
def test_the_order_of_the_addends_changes_no_bit(order, seed):
  rng = np.random.default_rng(seed)
  # Sizes far apart, so that a sum in the given order would round differently.
  parts = rng.normal(size=(5, *SHAPE)) * 10.0 ** rng.integers(-12, 12, (5, *SHAPE))
  arrays = [leaves(part.astype(np.float32)) for part in parts]
  weights = list(rng.normal(size=5))
  first = arithmetic.linear(arrays, weights)["prompt"]
  again = arithmetic.linear([arrays[i] for i in order], [weights[i] for i in order])
  assert again["prompt"].tobytes() == first.tobytes()


@pytest.mark.parametrize("order", list(itertools.permutations(range(3))))
def test_the_order_changes_no_bit_where_fp64_itself_would_round(order):
  parts = [np.full(SHAPE, value, np.float32) for value in (2.0**60, 1.0, -(2.0**60))]
  assert (2.0**60 + 1.0) - 2.0**60 != (2.0**60 - 2.0**60) + 1.0
  total = arithmetic.linear([leaves(parts[i]) for i in order], [1.0, 1.0, 1.0])
  np.testing.assert_array_equal(total["prompt"], np.zeros(SHAPE))


@laws
@given(ARRAYS, ARRAYS)
def test_adding_and_taking_away_again_stays_within_two_roundings(a, b):
  total = arithmetic.linear([leaves(a), leaves(b)], [1.0, 1.0])
  back = arithmetic.linear([total, leaves(b)], [1.0, -1.0])["prompt"]
  for r, x, y in zip(exact(back), exact(a), exact(b), strict=True):
    bound = U * (abs(x + y) + abs(x)) * (1 + Fraction(1, 2**20)) + 2 * TINY
    assert abs(r - x) <= bound


@laws
@given(ARRAYS, ARRAYS)
def test_a_vector_put_back_on_its_initial_prompt_gives_the_tuned_one(tuned, initial):
  vector = arithmetic.subtract(leaves(tuned), leaves(initial))
  back = arithmetic.linear([leaves(initial), vector], [1.0, 1.0])["prompt"]
  for r, t, i in zip(exact(back), exact(tuned), exact(initial), strict=True):
    # The bound that `algebra.diff` states.
    bound = U * (abs(t) + abs(t - i)) * (1 + Fraction(1, 2**20)) + Fraction(1, 2**149)
    assert abs(r - t) <= bound


@laws
@given(ARRAYS, ARRAYS)
def test_a_cosine_keeps_its_bound(a, b):
  assume(a.any() and b.any())
  x, y = exact(a), exact(b)
  dot = sum(p * q for p, q in zip(x, y, strict=True))
  squares = sum(p * p for p in x) * sum(q * q for q in y)
  # cos^2 is rational; its root to 200 bits is exact beside the bound.
  scale = Fraction(2**400)
  root = math.isqrt(int(dot * dot / squares * scale))
  true = Fraction(root, 2**200) * (1 if dot > 0 else -1)
  found = Fraction(arithmetic.cosine(leaves(a), leaves(b)))
  assert abs(found - true) <= (a.size + 4) * Fraction(1, 2**52)


@laws
@given(ARRAYS, st.integers(-8, 8))
def test_a_direction_is_itself_whatever_its_length(a, power):
  assume(a.any() and (np.abs(a[a != 0]) > 1e-20).all())
  assert arithmetic.cosine(leaves(a), leaves(a)) == 1.0
  scaled = a * np.float32(2.0**power)
  assert arithmetic.cosine(leaves(a), leaves(scaled)) == pytest.approx(1, abs=1e-15)
  assert arithmetic.cosine(leaves(a), leaves(-scaled)) == pytest.approx(-1, abs=1e-15)


def test_the_smallest_and_the_largest_values_have_a_direction():
  for size in (np.float32(1e-45), np.finfo(np.float32).max):
    a, b = np.float32([[size, size]]), np.float32([[size, 0]])
    found = arithmetic.cosine(leaves(a), leaves(b))
    assert found == pytest.approx(math.sqrt(0.5), abs=1e-15)


def test_cosine_and_norm_go_over_all_leaves_by_name():
  a = {"prompt": np.float32([[3, 0]]), "delta": np.float32([[0, 4]])}
  b = {"delta": np.float32([[0, 1]]), "prompt": np.float32([[0, 0]])}
  assert arithmetic.norm(a) == 5.0
  assert arithmetic.cosine(a, b) == pytest.approx(0.8, abs=1e-15)


def test_zeros_have_no_direction():
  zeros, ones = np.zeros(SHAPE, np.float32), np.ones(SHAPE, np.float32)
  for pair in ((zeros, ones), (ones, zeros)):
    with pytest.raises(UserError, match="all zeros and has no direction"):
      arithmetic.cosine(*map(leaves, pair))


def test_a_result_beyond_fp32_is_refused():
  large = leaves(np.full(SHAPE, 3e38, np.float32))
  negative = leaves(np.full(SHAPE, -3e38, np.float32))
  for overflow in (
    lambda: arithmetic.subtract(large, negative),
    lambda: arithmetic.scale(large, 2.0),
    lambda: arithmetic.scale(large, 1e300),
    lambda: arithmetic.linear([large, large], [1.0, 1.0]),
    lambda: arithmetic.linear([large, large], [1e300, -1e300]),
  ):
    with pytest.raises(UserError, match="does not fit into fp32"):
      overflow()


def test_addends_may_be_large_when_their_sum_is_not():
  large = leaves(np.full(SHAPE, 3e38, np.float32))
  total = arithmetic.linear([large, large, large], [1.0, 1.0, -1.5])["prompt"]
  np.testing.assert_allclose(total, np.full(SHAPE, 1.5e38), rtol=2**-23)


@pytest.mark.parametrize(
  ("first", "second", "expected"),
  [
    ({"prompt": (2, 3)}, {"prompt": (2, 4)}, r"shape \[2, 3\].*\[2, 4\]"),
    ({"prompt": (2, 3)}, {"prompt": (3, 2)}, r"shape \[2, 3\].*\[3, 2\]"),
    # NumPy would broadcast these.
    ({"prompt": (2, 3)}, {"prompt": (1, 3)}, r"shape \[2, 3\].*\[1, 3\]"),
    ({"prompt": (2, 3)}, {"prompt": (2, 3), "delta": (1,)}, r"'delta' is in one only"),
    ({"prompt": (2, 3)}, {"short": (2, 3)}, r"other leaves \(prompt against short"),
  ],
)
def test_other_leaves_or_shapes_are_refused(first, second, expected):
  one, two = (
    {name: np.ones(shape, np.float32) for name, shape in shapes.items()}
    for shapes in (first, second)
  )
  for combine in (
    lambda: arithmetic.subtract(one, two),
    lambda: arithmetic.linear([one, two], [1.0, 1.0]),
    lambda: arithmetic.cosine(one, two),
  ):
    with pytest.raises(UserError, match=expected):
      combine()


def test_nothing_is_no_sum():
  with pytest.raises(UserError, match="nothing to add"):
    arithmetic.linear([], [])


def test_arithmetic_in_chunks_gives_what_it_gives_at_once(monkeypatch):
  """In chunks of 3 values, or of one where there are two addends."""
  rng = np.random.default_rng(0)
  one, other = (
    {
      "prompt": rng.normal(size=(5, 4)).astype(np.float32),
      "delta": rng.normal(size=7).astype(np.float32),
    }
    for _ in range(2)
  )

  def results():
    total = arithmetic.linear([one, other], [0.3, -2.0])
    scaled = arithmetic.scale(one, 0.7)
    return total, scaled, arithmetic.gram([one, other]), arithmetic.norm(one)

  whole = results()
  monkeypatch.setattr(arithmetic, "_AT_ONCE", 3)
  parts = results()
  for index in (0, 1):
    for name, leaf in whole[index].items():
      assert parts[index][name].tobytes() == leaf.tobytes()
  # Products of fp32 values, added up in fp64 in another order.
  np.testing.assert_allclose(parts[2], whole[2], rtol=1e-13)
  assert parts[3] == pytest.approx(whole[3], rel=1e-13)

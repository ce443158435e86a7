"""The values of the merge rules, against closed forms and plain NumPy."""

import math

import numpy as np
import pytest

from tpv_jax.core.errors import UserError
from tpv_jax.vectors.loaded import Loaded
from tpv_jax.vectors.merging.merge import merge
from tpv_jax.vectors.provenance import Provenance, Term


def vector(task, *values):
  known = Provenance("vector", (Term(task, 1.0),), "tiny", "a" * 64, "b" * 64)
  return Loaded({"prompt": np.array([values], np.float32)}, known, task)


ACROSS, UP = vector("a", 3.0, 0.0), vector("b", 0.0, 4.0)
"""At a right angle, 3 and 4 long."""


def merged(*arguments, **keywords):
  return merge(*arguments, **keywords).leaves["prompt"][0].tolist()


def test_the_weighted_sum_and_the_weighted_average():
  assert merged([ACROSS, UP], weights=[2, 1]) == [6, 4]
  assert merged([ACROSS, UP], "linear", weights=[3, 1]) == [2.25, 1]


def test_balanced_vectors_all_have_the_mean_norm():
  assert merged([ACROSS, UP], "norm_balanced") == [3.5, 3.5]


def test_metagpt_weighs_by_squared_norms():
  assert merged([ACROSS, UP], "metagpt") == pytest.approx([3 * 9 / 25, 4 * 16 / 25])


def test_slerp_goes_along_the_arc():
  half = math.sqrt(0.5)
  assert merged([ACROSS, UP], "slerp") == pytest.approx([3 * half, 4 * half])
  assert merged([ACROSS, UP], "slerp", options={"t": 0}) == [3, 0]
  assert merged([ACROSS, UP], "slerp", options={"t": 1}) == pytest.approx(
    [0, 4], abs=1e-6
  )
  third = merged([ACROSS, UP], "slerp", options={"t": 1 / 3})
  assert third == pytest.approx([3 * math.cos(math.pi / 6), 4 * math.sin(math.pi / 6)])


def test_slerp_of_parallel_vectors_is_the_straight_line():
  assert merged([ACROSS, vector("b", 9.0, 0.0)], "slerp", options={"t": 0.25}) == [
    4.5,
    0,
  ]
  # At a cosine of -0.9998 too, as mergekit; only the exact opposite has no direction.
  near = vector("b", -3.0, 0.06)
  assert merged([ACROSS, near], "slerp") == pytest.approx([0, 0.03])
  with pytest.raises(UserError, match="opposite"):
    merge([ACROSS, vector("b", -5.0, 0.0)], "slerp")


@pytest.mark.parametrize("t", [-0.1, 1.01])
def test_t_outside_its_range_is_refused(t):
  with pytest.raises(UserError, match="t of slerp"):
    merge([ACROSS, UP], "slerp", options={"t": t})


def test_model_stock_shortens_the_average_by_the_mean_cosine():
  # The paper's t = N cos / (1 + (N - 1) cos); at 60 degrees, of two: 2/3.
  aslant = vector("b", 1.0, math.sqrt(3))
  assert merged([ACROSS, aslant], "model_stock") == pytest.approx(
    [2 / 3 * 2, 2 / 3 * math.sqrt(3) / 2]
  )
  assert merged([ACROSS, UP], "model_stock") == [0, 0]
  with pytest.raises(UserError, match="at least two"):
    merge([ACROSS], "model_stock")
  for turned in (vector("b", -5.0, 0.0), vector("b", -0.1, 5.0)):
    with pytest.raises(
      UserError, match=r"mean cosine .* is -.*turn their average round"
    ):
      merge([ACROSS, turned], "model_stock")


@pytest.mark.parametrize("weights", [[1, -1], [0, 0]])
def test_an_average_takes_no_negative_weights(weights):
  with pytest.raises(UserError, match="An average has no weights"):
    merge([ACROSS, UP], "linear", weights)


def test_a_merge_says_what_cutting_its_delta_to_its_parts_rank_loses():
  rng = np.random.default_rng(0)

  def low_rank():
    one = vector("a", *rng.normal(size=6))
    delta = rng.normal(size=(8, 2)) @ rng.normal(size=(2, 6))
    return Loaded({**one.leaves, "delta": np.float32(delta)}, one.provenance, "v")

  vectors = [low_rank(), low_rank()]
  found = merge(vectors, "ties", options={"density": 0.5})
  values = np.linalg.svd(found.leaves["delta"].astype(np.float64), compute_uv=False)
  lost = np.sqrt((values[2:] ** 2).sum() / (values**2).sum())
  (note,) = found.provenance.notes
  assert f"its delta has rank {(values > 1e-5).sum()}, and its parts' at most 2" in note
  assert f"it loses {lost:.2g} of its norm" in note
  # One vector keeps its rank.
  assert not merge(vectors[:1], "token_choice").provenance.notes

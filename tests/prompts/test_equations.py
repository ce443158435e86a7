"""EPT's equations against docs/methods.md, (2.1) and (3.1) to (3.15), in plain NumPy."""

import math

import hypothesis
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import strategies

from tpv_jax.core.errors import UserError
from tpv_jax.prompts import ept, equations

FP32 = 2e-5
"""Of the largest value: sums of up to 16 products in fp32 against fp64."""

FORMS = {
  "ept": (4, 3, 2),
  "without_fusion": (0, 3, 2),
  "without_spaces": (4, 0, 1),
  "dept": (0, 0, 1),
}
"""(H, K, Q)."""

SIZES = {"length": 3, "features": 8, "source_length": 6, "rank": 2}
ALPHA = 5.0


def form(name):
  fusion_width, spaces, bottleneck = FORMS[name]
  return dict(SIZES, fusion_width=fusion_width, spaces=spaces, bottleneck=bottleneck)


def random_leaves(seed, **sizes):
  """Returns leaves of which none is 0, in the shapes of docs/methods.md, "Letters"."""
  rng = np.random.default_rng(seed)
  s, d, m, r = (sizes[name] for name in SIZES)
  h, k, q = sizes["fusion_width"], sizes["spaces"], sizes["bottleneck"]
  shapes = {"short_prompt": (s, d), "low_rank_a": (m, r), "low_rank_b": (r, d)}
  if h:
    shapes |= {"fusion_query": (d, h), "fusion_key": (d, h), "fusion_gamma": ()}
  if k:
    shapes |= {"space_down": (k, d, q), "space_up": (k, q, d)}
    shapes |= {"gate_kernel": (d, k), "gate_bias": (k,)}
  return {
    name: np.asarray(rng.normal(size=shape), np.float32)
    for name, shape in shapes.items()
  }


def softmax(scores):
  weights = [math.exp(score) for score in scores]
  return np.array(weights) / sum(weights)


def stated(leaves, alpha):
  """Returns docs/methods.md, (3.12), one token and one product at a time."""
  leaves = {name: np.asarray(leaf, np.float64) for name, leaf in leaves.items()}
  short, a, b = (leaves[n] for n in ("short_prompt", "low_rank_a", "low_rank_b"))
  m, r, d = len(a), len(b), b.shape[1]
  delta = np.zeros((m, d))
  for i in range(m):
    for j in range(r):
      delta[i] += alpha / math.sqrt(r) * a[i, j] * b[j]
  rows = []
  for token in short:
    row = token.copy()
    if "fusion_query" in leaves:
      query = leaves["fusion_query"].T @ token
      keys = [leaves["fusion_key"].T @ delta[i] for i in range(m)]
      weights = softmax([query @ key / math.sqrt(len(query)) for key in keys])
      for i in range(m):
        row = row + leaves["fusion_gamma"] * weights[i] * delta[i]
    if "gate_kernel" in leaves:
      gate = softmax(leaves["gate_kernel"].T @ token + leaves["gate_bias"])
      for k, weight in enumerate(gate):
        hidden = np.maximum(leaves["space_down"][k].T @ token, 0)
        row = row + weight * (leaves["space_up"][k].T @ hidden)
    rows.append(row)
  return np.array(rows), delta


def near(found, expected, tolerance=FP32):
  expected = np.asarray(expected)
  np.testing.assert_allclose(
    np.asarray(found), expected, rtol=0, atol=tolerance * max(np.abs(expected).max(), 1)
  )


sizes_strategy = strategies.fixed_dictionaries(
  {
    "length": strategies.integers(1, 5),
    "features": strategies.integers(4, 9),
    "source_length": strategies.integers(4, 9),
    "rank": strategies.integers(1, 4),
    "fusion_width": strategies.integers(0, 3),
    "spaces": strategies.integers(0, 3),
    "bottleneck": strategies.integers(1, 2),
  }
)


@hypothesis.settings(deadline=None, max_examples=60)
@hypothesis.given(strategies.integers(0, 10**6), sizes_strategy)
def test_folding_is_what_methods_md_states(seed, sizes):
  leaves = random_leaves(seed, **sizes)
  prompt, delta = stated(leaves, ALPHA)
  exact = equations.fold_exactly(leaves, ALPHA)
  assert exact.prompt.dtype == exact.delta.dtype == np.float32
  near(exact.prompt, prompt, 1e-6)  # Rounded to fp32 once.
  near(exact.delta, delta, 1e-6)


@pytest.mark.parametrize("name", FORMS)
def test_the_module_computes_what_methods_md_states(name):
  leaves = random_leaves(3, **form(name))
  module = ept.EPT(alpha=ALPHA, **form(name))
  folded = jax.jit(module.apply)({"params": leaves})
  prompt, delta = stated(leaves, ALPHA)
  near(folded.prompt, prompt)
  near(folded.delta, delta)


def test_the_module_computes_in_fp32_where_less_is_the_default():
  leaves = random_leaves(3, **form("ept"))
  module = ept.EPT(alpha=ALPHA, **form("ept"))
  with jax.default_matmul_precision("bfloat16"):
    text = jax.jit(module.apply).lower({"params": leaves}).as_text()
  products = [line for line in text.splitlines() if "dot_general" in line]
  assert products
  assert all("HIGHEST" in line for line in products)


def test_the_parts_are_the_terms_of_the_paper():
  leaves = random_leaves(5, **form("ept"))
  short, delta = leaves["short_prompt"], stated(leaves, ALPHA)[1].astype(np.float32)
  attention = equations.fusion_attention(
    short, delta, leaves["fusion_query"], leaves["fusion_key"]
  )
  gate = equations.gate(short, leaves["gate_kernel"], leaves["gate_bias"])
  spaces = equations.spaces(short, leaves["space_down"], leaves["space_up"])
  assert attention.shape == (3, 6)
  assert gate.shape == (3, 3)
  assert spaces.shape == (3, 3, 8)
  near(attention.sum(axis=1), np.ones(3))
  near(gate.sum(axis=1), np.ones(3))
  total = (
    short
    + equations.fused(attention, delta, leaves["fusion_gamma"])
    + equations.projected(gate, spaces)
  )
  near(total, stated(leaves, ALPHA)[0])


def test_large_scores_do_not_overflow():
  leaves = random_leaves(5, **form("ept"))
  leaves["gate_kernel"] = leaves["gate_kernel"] * np.float32(1e4)
  gate = equations.gate(
    *(jnp.asarray(leaves[n]) for n in ("short_prompt", "gate_kernel", "gate_bias"))
  )
  near(gate.sum(axis=1), np.ones(3))


def test_all_rows_of_delta_are_attended_to():
  # A change of the last row of low_rank_a changes the prompt, however short the sources.
  leaves = random_leaves(6, **form("ept"))
  before = equations.fold_exactly(leaves, ALPHA).prompt
  leaves["low_rank_a"][-1] += 1
  assert np.abs(equations.fold_exactly(leaves, ALPHA).prompt - before).max() > 1e-3


def test_parameters_have_the_shapes_and_starts_of_methods_md():
  s, d, m, r, h, k, q = 3, 16, 6, 2, 4, 5, 2
  wide = 1 / math.sqrt(d)
  expected = {
    "short_prompt": ("prompt", (s, d), 0, 0),
    "low_rank_a": ("low_rank", (m, r), 0, 0),
    "low_rank_b": ("low_rank", (r, d), wide, 0),
    "fusion_query": ("fusion", (d, h), wide, 0),
    "fusion_key": ("fusion", (d, h), wide, 0),
    "fusion_gamma": ("fusion", (), 0, 1),
    "space_down": ("spaces", (k, d, q), wide, 0),
    "space_up": ("spaces", (k, q, d), 0, 0),
    "gate_kernel": ("spaces", (d, k), 0.02, 0),
    "gate_bias": ("spaces", (k,), 0, 0),
  }
  found = equations.parameters(s, d, m, r, h, k, q)
  assert {
    name: (each.part, each.shape, each.std, each.constant)
    for name, each in found.items()
  } == expected
  for name, each in found.items():
    assert len(each.axes) == len(each.shape), name
    assert each.size == math.prod(expected[name][1])


def test_a_part_of_size_0_has_no_parameters():
  assert set(equations.parameters(3, 8)) == {"short_prompt"}
  assert set(equations.parameters(3, 8, 6, rank=2)) == {
    *("short_prompt", "low_rank_a", "low_rank_b")
  }
  assert set(equations.parameters(**form("without_fusion"))) == set(
    random_leaves(0, **form("without_fusion"))
  )


def long_prompt(rows=7, features=9, seed=0):
  rng = np.random.default_rng(seed)
  return rng.normal(size=(rows, features)).astype(np.float32)


@hypothesis.settings(deadline=None, max_examples=40)
@hypothesis.given(
  rows=strategies.integers(2, 8),
  features=strategies.integers(2, 8),
  seed=strategies.integers(0, 10**6),
  data=strategies.data(),
)
def test_the_svd_keeps_the_largest_directions_of_the_long_prompt(
  rows, features, seed, data
):
  rank = data.draw(strategies.integers(1, min(rows, features)))
  length = data.draw(strategies.integers(1, rows))
  prompt = long_prompt(rows, features, seed)
  leaves = equations.decompose(prompt, length, 5, rank, np.random.default_rng(0))
  assert np.array_equal(leaves["short_prompt"], prompt[:length])
  assert leaves["low_rank_a"].shape == (5, rank)
  assert not leaves["low_rank_a"].any()
  b = leaves["low_rank_b"].astype(np.float64)
  # b b^T = diag(Sigma[:R]), with Sigma^2 the eigenvalues of P0 P0^T.
  exact = prompt.astype(np.float64)
  sigma = np.sqrt(np.clip(np.linalg.eigvalsh(exact.T @ exact)[::-1], 0, None))
  near(b @ b.T, np.diag(sigma[:rank]), 1e-5)
  # Its rows span the best subspace of R dimensions (Eckart and Young): what they miss of
  # the long prompt is the tail of its singular values.
  basis = b / np.linalg.norm(b, axis=1, keepdims=True)
  missed = np.linalg.norm(exact - exact @ basis.T @ basis)
  tail = math.sqrt((sigma[rank:] ** 2).sum())
  assert missed == pytest.approx(tail, abs=1e-4 * sigma[0])
  assert all(leaf.dtype == np.float32 for leaf in leaves.values())


def test_the_svd_draws_nothing():
  one, other = (
    equations.decompose(long_prompt(), 3, 5, 4, np.random.default_rng(seed))
    for seed in (0, 1)
  )
  assert all(np.array_equal(one[name], other[name]) for name in one)


def test_directions_that_the_long_prompt_lacks_stay_trainable():
  prompt = np.repeat(long_prompt(2), 3, axis=0)  # 6 rows of rank 2
  b = equations.decompose(prompt, 3, 5, 4, np.random.default_rng(0))["low_rank_b"]
  gram = b.astype(np.float64) @ b.T
  near(gram[2:, 2:], np.eye(2), 1e-5)
  near(gram[:2, 2:], np.zeros((2, 2)), 1e-5)
  assert np.linalg.norm(b[:2], axis=1).min() > 1


def test_depts_start_is_uniform_a_and_zero_b():
  leaves = equations.decompose(
    long_prompt(), 3, 400, 4, np.random.default_rng(0), "dept"
  )
  a = leaves["low_rank_a"]
  assert a.shape == (400, 4)
  assert not leaves["low_rank_b"].any()
  assert leaves["low_rank_b"].shape == (4, 9)
  # 1600 draws uniform in +-1/sqrt(4): standard deviation of the mean 0.29 / 40 = 0.007.
  assert -0.5 <= a.min() < -0.49
  assert 0.49 < a.max() <= 0.5
  assert abs(a.mean()) < 0.03
  assert np.array_equal(leaves["short_prompt"], long_prompt()[:3])


def test_rank_0_has_no_low_rank_matrices():
  leaves = equations.decompose(long_prompt(), 3, 5, 0, np.random.default_rng(0))
  assert set(leaves) == {"short_prompt"}
  folded = equations.fold_exactly(leaves, ALPHA)
  assert np.array_equal(folded.prompt, long_prompt()[:3])
  assert folded.delta is None


@pytest.mark.parametrize(
  ("length", "rank", "how", "text"),
  [
    (8, 2, "svd", r"short prompt of 8 tokens .*long prompt of 7.*SHORT_LENGTH"),
    (3, 8, "svd", r"Rank 8 .*\(7, 9\).*at most 7.*'dept'"),
    (3, 2, "svt", r"no decomposition 'svt'.*Did you mean 'svd'"),
  ],
)
def test_a_decomposition_that_cannot_be_is_refused(length, rank, how, text):
  with pytest.raises(UserError, match=text):
    equations.decompose(long_prompt(), length, 5, rank, np.random.default_rng(0), how)


@hypothesis.settings(deadline=None, max_examples=40)
@hypothesis.given(
  rank=strategies.integers(1, 6),
  alpha=strategies.floats(0.5, 20),
  seed=strategies.integers(0, 10**6),
)
def test_the_error_of_a_truncated_delta_is_the_tail_of_its_singular_values(
  rank, alpha, seed
):
  delta = long_prompt(6, 8, seed)
  leaves = equations.truncate(delta, rank, alpha)
  back = stated(leaves | {"short_prompt": delta[:1]}, alpha)[1]
  exact = delta.astype(np.float64)
  squares = np.clip(np.linalg.eigvalsh(exact @ exact.T)[::-1], 0, None)
  tail = math.sqrt(squares[rank:].sum() / squares.sum())
  assert equations.relative_error(back, delta) == pytest.approx(tail, abs=1e-6)
  # Neither factor dwarfs the other: they share the singular values evenly.
  near(
    np.linalg.norm(leaves["low_rank_a"], axis=0),
    np.linalg.norm(leaves["low_rank_b"], axis=1),
  )


def test_a_delta_of_lower_rank_comes_back_and_the_rest_stays_trainable():
  delta = (long_prompt(6, 2) @ long_prompt(2, 8, 1)).astype(np.float32)
  leaves = equations.truncate(delta, 4, ALPHA)
  near(stated(leaves | {"short_prompt": delta[:1]}, ALPHA)[1], delta, 1e-6)
  assert not leaves["low_rank_a"][:, 2:].any()
  near(np.linalg.norm(leaves["low_rank_b"][2:], axis=1), np.ones(2))


def test_a_zero_delta_stays_zero_and_trainable():
  leaves = equations.truncate(np.zeros((6, 8), np.float32), 3, ALPHA)
  assert not leaves["low_rank_a"].any()
  b = leaves["low_rank_b"]
  near(b @ b.T, np.eye(3))

  def loss(leaves):
    delta = equations.low_rank_update(leaves["low_rank_a"], leaves["low_rank_b"], ALPHA)
    return ((delta - 1) ** 2).sum()

  gradient = jax.grad(loss)({name: jnp.asarray(leaf) for name, leaf in leaves.items()})
  assert np.abs(gradient["low_rank_a"]).max(axis=0).min() > 1e-3


def test_relative_errors_are_of_frobenius_norms():
  given, exact = np.array([[3.0, 4.0]]), np.array([[0.0, 4.0]])
  assert equations.relative_error(given, exact) == pytest.approx(0.75)
  assert equations.relative_error(0 * exact, 0 * exact) == 0
  assert equations.relative_error(exact, 0 * exact) == math.inf


def test_parameters_are_no_folded_prompt():
  with pytest.raises(UserError, match=r"not low_rank_a.*tpv fold"):
    equations.Folded.of(random_leaves(0, **form("dept")))
  with pytest.raises(UserError, match="not delta"):
    equations.Folded.of({"delta": long_prompt()})
  folded = equations.Folded.of({"prompt": long_prompt()})
  assert set(folded.leaves()) == {"prompt"}
  assert folded.delta is None


@pytest.mark.parametrize(
  ("change", "text"),
  [
    ({"rank": 7}, r"6 source positions x 8 features.*at most 6"),
    ({"rank": 0}, "fusion attends to the low-rank update"),
    ({"length": 0}, "length is 0"),
    ({"source_length": 0}, "source_length is 0"),
    ({"bottleneck": 0}, "bottleneck is 0"),
    ({"spaces": -1}, "spaces is -1"),
    ({"fusion_width": -1}, "fusion_width is -1"),
  ],
)
def test_sizes_that_cannot_be_are_refused(change, text):
  with pytest.raises(UserError, match=text):
    equations.refuse_impossible(**(form("ept") | change))
  with pytest.raises(UserError, match=text):
    ept.EPT(**(form("ept") | change))

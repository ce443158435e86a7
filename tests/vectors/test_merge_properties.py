"""Properties of the merge rules, each with the list of rules that have it."""

import dataclasses

import hypothesis
import hypothesis.extra.numpy
import hypothesis.strategies as st
import numpy as np
import pytest

from tpv_jax.core.errors import UserError
from tpv_jax.vectors import algebra
from tpv_jax.vectors.loaded import Loaded
from tpv_jax.vectors.merging import dropping, matrices, pruning, registry, signs
from tpv_jax.vectors.merging.merge import merge
from tpv_jax.vectors.provenance import Provenance, Term

VECTORS = [
  name
  for name in registry.RULES
  if name != "concat" and registry.rule(name).number is None
]
FULL = {"density": 1.0}
SUMS_AT_DENSITY_1 = ("dare_linear", "breadcrumbs", "magnitude_prune")
ALONE: dict[str, dict] = {
  **{
    name: {}
    for name in (
      *("task_arithmetic", "linear", "norm_balanced", "metagpt", "multislerp"),
      *("karcher", "sce", "consensus", "token_choice", "tsv", "wudi"),
    )
  },
  **dict.fromkeys((*SUMS_AT_DENSITY_1, "ties", "dare_ties", "breadcrumbs_ties"), FULL),
}
"""Rules that return the one vector that they are given, and with which options."""

values = st.floats(-4, 4, width=16).map(lambda x: 0.0 if abs(x) < 1e-3 else x)
stacks = hypothesis.extra.numpy.arrays(np.float32, (3, 4, 5), elements=values)


def vectors_of(stack):
  return [
    Loaded(
      {"prompt": leaf},
      Provenance("vector", (Term(f"task{k}", 1.0),), "tiny", "a" * 64, "b" * 64),
      f"vector {k}",
    )
    for k, leaf in enumerate(stack)
  ]


def drawn(number=3, shape=(6, 16), seed=0):
  return np.random.default_rng(seed).normal(size=(number, *shape)).astype(np.float32)


def merged(stack, rule, weights=None, **options):
  return merge(vectors_of(stack), rule, weights, options=options).leaves["prompt"]


@pytest.mark.parametrize("rule", SUMS_AT_DENSITY_1)
def test_at_density_1_it_is_the_weighted_sum(rule):
  stack, weights = drawn(), [0.5, -1.5, 1.0]
  expected = merged(stack, "task_arithmetic", weights)
  np.testing.assert_allclose(merged(stack, rule, weights, **FULL), expected, rtol=1e-6)


@pytest.mark.parametrize("rule", ALONE)
def test_one_vector_alone_comes_back(rule):
  (one,) = drawn(1)
  np.testing.assert_allclose(
    merged([one], rule, **ALONE[rule]), one, rtol=1e-5, atol=1e-6
  )


def test_the_lists_name_every_rule():
  others = {
    "della",
    "della_linear",
    "iso_c",
    "model_stock",
    "slerp",
    "nuslerp",
    "concat",
  }
  assert {*ALONE, *others} == set(registry.RULES)


@pytest.mark.parametrize("rule", VECTORS)
def test_equal_vectors_merge_to_a_multiple_or_part_of_one(rule):
  """No rule makes of three equal vectors what is in none of them."""
  (one,) = drawn(1, shape=(4, 6))
  found = merged([one, one, one], rule).astype(np.float64)
  kept = found != 0
  if rule in ("tsv", "iso_c", "wudi"):
    rows = np.linalg.svd(one.astype(np.float64), full_matrices=False)[2]
    np.testing.assert_allclose(found @ rows.T @ rows, found, atol=1e-5)
    return
  ratios = found[kept] / one[kept]
  if rule.startswith("della"):
    assert (ratios > 0).all()
  else:
    np.testing.assert_allclose(ratios, ratios[0], rtol=1e-5)


@pytest.mark.parametrize(
  "rule", ["ties", "dare_ties", "breadcrumbs_ties", "della", "sce"]
)
@hypothesis.given(stack=stacks)
@hypothesis.settings(max_examples=30, deadline=None)
def test_an_election_never_leaves_the_range_of_the_values(rule, stack):
  """Of rescaled values, their range; the result is 0 where nothing is elected."""
  hypothesis.assume(all(leaf.any() for leaf in stack))
  options = {"density": 0.5} if rule.startswith("breadcrumbs") else {}
  found = merged(stack, rule, **options)
  divisors = {"della": (0.35, 0.65), "dare_ties": (0.5,)}.get(rule, (1.0,))
  reached = np.concatenate([stack / one for one in divisors])
  low, high = reached.min(0) - 1e-5, reached.max(0) + 1e-5
  assert (((found >= low) & (found <= high)) | (found == 0)).all()


@hypothesis.given(stack=stacks, density=st.floats(0.01, 1))
@hypothesis.settings(max_examples=50, deadline=None)
def test_pruning_keeps_as_many_as_asked_and_none_smaller_than_what_it_drops(
  stack, density
):
  leaf = stack[0].astype(np.float64)
  number = max(1, int(density * leaf.size))
  kept = pruning.largest(leaf, density)
  assert np.count_nonzero(kept) == min(number, np.count_nonzero(leaf))
  dropped = np.where(kept == 0, np.abs(leaf), 0)
  if np.count_nonzero(kept):
    assert np.abs(kept[kept != 0]).min() >= dropped.max()


def test_of_equal_sizes_the_first_are_kept():
  leaf = np.array([[1.0, -2.0, 2.0, 2.0]])
  assert pruning.largest(leaf, 0.5).tolist() == [[0, -2, 2, 0]]
  assert pruning.middle(leaf, 0.5, 0.25).tolist() == [[0, 0, 2, 2]]


def test_outliers_are_dropped_only_as_far_as_the_density_allows():
  leaf = np.array([[4.0, -3.0, 2.0, 1.0]])
  assert pruning.middle(leaf, 0.5, 0.25).tolist() == [[0, -3, 2, 0]]
  assert pruning.middle(leaf, 0.75, 0.5).tolist() == [[0, -3, 2, 1]]
  assert pruning.middle(leaf, 1.0, 0.5).tolist() == leaf.tolist()


def test_a_tied_election_gives_zero():
  one, other = np.array([[1.0, 3.0]]), np.array([[-1.0, 1.0]])
  assert signs.elected([(one, 1, 1), (other, 1, 1)]).tolist() == [[0, 2]]


FIRST_UNIFORMS = [0.06709415902816873, 0.5862471074491031]


def test_a_mask_depends_on_seed_vector_and_leaf_and_on_nothing_else():
  stack = drawn(2)
  first = merged(stack[:1], "dare_linear")
  both = merged(stack, "dare_linear", [1.0, 0.0])
  assert first.tobytes() == both.tobytes()
  assert first.tobytes() != merged(stack[:1], "dare_linear", seed=1).tobytes()
  key = "d" * 64
  drawn_at = [dropping.uniforms(*a, (9,)) for a in ((0, key), (0, key), (0, key + "x"))]
  assert drawn_at[0].tolist() == drawn_at[1].tolist() != drawn_at[2].tolist()
  # The first numbers of PCG64 with this seed; they must stay, or old merges cannot be made.
  assert dropping.uniforms(0, "key", (2,)).tolist() == FIRST_UNIFORMS


@pytest.mark.parametrize("rule", ["dare_linear", "della_linear"])
def test_dropping_keeps_the_mean(rule):
  (one,) = drawn(1, shape=(2, 8))
  options = [merged([one], rule, seed=seed) for seed in range(3000)]
  # Four standard errors: the deviation of a value is at most |v| (1 / 0.35 - 1) ** 0.5.
  error = 4 * np.abs(one) * 1.37 / np.sqrt(3000)
  assert (np.abs(np.mean(options, axis=0) - one) <= error).all()


def test_probabilities_rise_with_the_rank_in_the_row():
  found = dropping.by_rank(np.array([[3.0, -1.0, 2.0], [0.0, 5.0, 1.0]]), 0.5, 0.2)
  np.testing.assert_allclose(found, [[0.7, 0.3, 0.5], [0.3, 0.7, 0.5]])
  assert dropping.by_rank(np.ones((2, 1)), 0.5, 0.2).tolist() == [[0.5], [0.5]]


def test_consensus_keeps_the_sum_where_enough_vectors_matter():
  stack = np.float32([[[4, 1, 0.1]], [[3, -0.1, 5]], [[2, 0.1, 0.1]]])
  # |x| > 0.4 |S - x|: (yes yes yes), (yes no no), (no yes no).
  assert merged(stack, "consensus").tolist() == [[9, 0, 0]]
  every = merged(stack, "consensus", k=1)
  np.testing.assert_allclose(every, [[9, 1, 5.2]], rtol=1e-6)


def test_token_choice_takes_whole_rows():
  stack = np.float32([[[1, 1], [0, 3]], [[0, 2], [2, 2]]])
  assert merged(stack, "token_choice").tolist() == [[0, 2], [0, 3]]


def test_orthogonal_parts_pass_through_tsv_unchanged():
  first, second = np.zeros((2, 4, 4), np.float32)
  first[0, 0], second[1, 1] = 3, 2
  np.testing.assert_allclose(merged([first, second], "tsv"), first + second, atol=1e-6)


def test_tsv_and_iso_c_make_what_their_definitions_say():
  stack = drawn(2, shape=(6, 5))
  parts = [np.linalg.svd(one.astype(np.float64), full_matrices=False) for one in stack]
  # The polar factor of M is M (M^T M)^(-1/2), here with an eigendecomposition.
  halves = []
  for joined in (
    np.concatenate([u[:, :2] for u, _, _ in parts], 1),
    np.concatenate([vt[:2].T for _, _, vt in parts], 1),
  ):
    squares, vectors = np.linalg.eigh(joined.T @ joined)
    halves.append(joined @ vectors @ np.diag(squares**-0.5) @ vectors.T)
  expected = (
    halves[0] @ np.diag(np.concatenate([s[:2] for _, s, _ in parts])) @ halves[1].T
  )
  np.testing.assert_allclose(merged(stack, "tsv"), expected, atol=1e-5)
  isotropic = np.linalg.svd(merged(stack, "iso_c").astype(np.float64), compute_uv=False)
  mean = np.linalg.svd(stack.astype(np.float64).sum(0), compute_uv=False).mean()
  np.testing.assert_allclose(isotropic, mean, rtol=1e-5)


def test_iso_c_leaves_directions_alone_that_no_vector_has():
  stack = drawn(3, shape=(6, 5))
  stack[:, :, 3:] = 0
  found = merged(stack, "iso_c")
  assert np.abs(found[:, 3:]).max() < 1e-5
  assert np.linalg.matrix_rank(found, tol=1e-3) == 3


@pytest.mark.parametrize("shape", [(2, 16), (6, 5)], ids=["few rows", "many rows"])
def test_wudi_is_a_minimum_of_its_objective(shape):
  stack = drawn(3, shape=shape).astype(np.float64)

  def objective(m):
    return sum(np.sum(((m - v) @ v.T) ** 2) / np.sum(v**2) for v in stack)

  best = matrices.WUDI().merged(list(stack.astype(np.float32)), np.ones(3), [""] * 3)
  stack = stack.astype(np.float32).astype(np.float64)
  rng = np.random.default_rng(1)
  for _ in range(20):
    step = 1e-3 * rng.normal(size=shape)
    assert objective(best) <= objective(best + step)
  assert objective(best) <= objective(stack.sum(0))


def test_whole_spherical_means_of_nearly_orthogonal_vectors_are_norm_balanced_sums():
  stack = drawn(3, shape=(40, 64)) * np.float32([1, 2, 0.7])[:, None, None]

  def cosine(one, other):
    return algebra.cosine(vectors_of([one, other]))[0, 1]

  for rule in ("multislerp", "karcher"):
    expected = merged(stack, "norm_balanced")
    assert cosine(merged(stack, rule), expected) > 0.99999
  two = stack[:2]
  assert cosine(merged(two, "nuslerp"), merged(two, "slerp")) > 0.99999


def test_nuslerp_by_token_turns_each_row():
  stack = np.float32([[[3, 0], [0, 1]], [[0, 4], [0, 0]]])
  half = np.sqrt(0.5)
  np.testing.assert_allclose(
    merged(stack, "nuslerp", nuslerp_flatten=False),
    [[3 * half, 4 * half], [0, half]],
    rtol=1e-6,
  )
  opposite = np.float32([[[1, 0], [0, 1]], [[0, 4], [0, -2]]])
  with pytest.raises(
    UserError, match="Rows 1 of a leaf of the two vectors are opposite"
  ):
    merged(opposite, "nuslerp", nuslerp_flatten=False)


def test_directions_that_cancel_out_have_no_mean():
  stack = np.float32([[[1, 0]], [[-2, 0]]])
  for rule in ("multislerp", "karcher"):
    with pytest.raises(UserError, match="cancel out"):
      merged(stack, rule)


def test_concat_puts_tokens_one_after_the_other():
  prompts = [
    dataclasses.replace(
      one, provenance=dataclasses.replace(one.provenance, kind="prompt")
    )
    for one in vectors_of(drawn(2, shape=(3, 4)))
  ]
  prompts[1] = dataclasses.replace(
    prompts[1], leaves={"prompt": prompts[1].leaves["prompt"][:2]}
  )
  joined = merge(prompts, "concat")
  assert joined.provenance.kind == "prompt"
  assert joined.provenance.tasks == ("task0", "task1")
  np.testing.assert_array_equal(
    joined.leaves["prompt"], np.concatenate([one.leaves["prompt"] for one in prompts])
  )
  added = dataclasses.replace(
    prompts[0], leaves={**prompts[0].leaves, "delta": np.ones((5, 4), np.float32)}
  )
  with pytest.raises(UserError, match="also changes the source by position"):
    merge([added, prompts[1]], "concat")

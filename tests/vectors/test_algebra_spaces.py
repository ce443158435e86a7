"""The verbs on DePT and EPT prompts: the effective space, the factor space, never both."""

import dataclasses
import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tpv_jax.core import identity
from tpv_jax.core.errors import UserError
from tpv_jax.vectors import algebra, arithmetic, store
from tpv_jax.vectors.loaded import Loaded
from tpv_jax.vectors.provenance import SPACES, Provenance, Term

ALPHA = 8.0
WEIGHTS = st.floats(-2, 2).filter(lambda weight: abs(weight) > 1e-3)
SEEDS = st.integers(0, 1000)
few = settings(max_examples=25, deadline=None)


@pytest.fixture
def initial(ept_initial):
  return ept_initial(0)


@pytest.fixture
def tuned(initial, ept_tuned):
  return ept_tuned(initial, "sst2", 1)


@pytest.fixture
def vectors(initial, ept_tuned):
  """The vectors sst2 and rte, by space."""
  return {
    space: [
      algebra.diff(ept_tuned(initial, task, change), initial, space=space)
      for task, change in (("sst2", 1), ("rte", 2))
    ]
    for space in SPACES
  }


def changed(item, **fields) -> Loaded:
  return dataclasses.replace(
    item, provenance=dataclasses.replace(item.provenance, **fields)
  )


def terms(item):
  return {term.task: term.coefficient for term in item.provenance.terms}


def assert_close(leaves, expected, scale=1.0):
  """To fp32's rounding: sums are fp64 and folded values are rounded once each."""
  assert set(leaves) == set(expected)
  for name, leaf in leaves.items():
    assert leaf.dtype == np.float32
    np.testing.assert_allclose(leaf, expected[name], rtol=0, atol=scale * 2e-5)


def test_folding_gives_what_numpy_says_the_parameters_do(tuned, numpy_fold):
  folded = algebra.fold(tuned)
  expected = numpy_fold(tuned.leaves, ALPHA)
  for name in ("prompt", "delta"):
    np.testing.assert_allclose(folded.leaves[name], expected[name], rtol=2e-7)
  known = tuned.provenance
  assert folded.provenance == dataclasses.replace(
    known,
    space="effective",
    alpha=None,
    initial_digest=known.initial_folded_digest,
    initial_folded_digest=None,
  )
  assert algebra.fold(folded) == folded


def test_folding_a_vector_is_refused(vectors):
  for space in SPACES:
    with pytest.raises(UserError, match=r"'diff sst2' is a vector.*a prompt is needed"):
      algebra.fold(vectors[space][0])


def test_the_effective_vector_is_the_difference_of_the_folded_pairs(
  initial, tuned, numpy_fold
):
  vector = algebra.diff(tuned, initial)
  after, before = (numpy_fold(item.leaves, ALPHA) for item in (tuned, initial))
  assert_close(vector.leaves, {name: after[name] - before[name] for name in after})
  known = vector.provenance
  assert (known.kind, known.space, known.alpha) == ("vector", "effective", None)
  assert known.initial_digest == initial.provenance.initial_folded_digest
  assert known.initial_digest == identity.prompt_digest(algebra.fold(initial).leaves)
  assert known.initial_seed == 0
  assert known.initial_folded_digest is None
  assert terms(vector) == {"sst2": 1.0}


def test_folding_first_or_taking_the_difference_first_is_one(initial, tuned):
  vector = algebra.diff(tuned, initial)
  for pair in (
    (algebra.fold(tuned), initial),
    (tuned, algebra.fold(initial)),
    (algebra.fold(tuned), algebra.fold(initial)),
  ):
    again = algebra.diff(*pair)
    assert again.provenance == vector.provenance
    for name, leaf in vector.leaves.items():
      assert again.leaves[name].tobytes() == leaf.tobytes()


def test_the_factor_vector_is_the_difference_leaf_by_leaf(initial, tuned):
  vector = algebra.diff(tuned, initial, space="factor")
  for name, leaf in vector.leaves.items():
    assert isinstance(leaf, np.ndarray)
    np.testing.assert_array_equal(leaf, tuned.leaves[name] - initial.leaves[name])
  norm = arithmetic.norm(algebra.fold(initial).leaves)
  assert vector.provenance == dataclasses.replace(
    tuned.provenance, kind="vector", initial_norm=norm
  )


def test_a_plain_prompt_has_one_vector_in_both_spaces(initial_prompt, tuned_prompt):
  initial = initial_prompt(0)
  pair = tuned_prompt(initial, "sst2", 1), initial
  effective, factor = (algebra.diff(*pair, space=space) for space in SPACES)
  assert effective.provenance == factor.provenance
  assert factor.provenance.space == "effective"
  np.testing.assert_array_equal(effective.leaves["prompt"], factor.leaves["prompt"])


def test_an_unknown_space_is_refused(initial, tuned):
  with pytest.raises(UserError, match=r"no space 'low-rank'\. Choose one of effective"):
    algebra.diff(tuned, initial, space="low-rank")


@few
@given(change=SEEDS, weights=st.tuples(WEIGHTS, WEIGHTS))
def test_effective_algebra_is_numpys_on_folded_arrays(
  ept_initial, ept_tuned, numpy_fold, change, weights
):
  initial = ept_initial(0)
  prompts = [ept_tuned(initial, task, change, task == "a") for task in "ab"]
  vectors = [algebra.diff(prompt, initial) for prompt in prompts]
  result = algebra.apply(algebra.sum_vectors(vectors, weights), initial, 0.5)
  start, *ends = (numpy_fold(p.leaves, ALPHA) for p in (initial, *prompts))
  expected = {
    name: start[name]
    + 0.5
    * sum(w * (end[name] - start[name]) for w, end in zip(weights, ends, strict=True))
    for name in start
  }
  largest = max(np.abs(end[name]).max() for end in ends for name in end)
  assert_close(result.leaves, expected, largest)
  assert terms(result) == {"a": 0.5 * weights[0], "b": 0.5 * weights[1]}
  assert result.provenance.cross_origin is False


@few
@given(change=SEEDS, weights=st.tuples(WEIGHTS, WEIGHTS))
def test_factor_algebra_is_numpys_leaf_by_leaf(ept_initial, ept_tuned, change, weights):
  initial = ept_initial(0)
  prompts = [ept_tuned(initial, task, change, task == "a") for task in "ab"]
  vectors = [algebra.diff(prompt, initial, space="factor") for prompt in prompts]
  result = algebra.apply(algebra.sum_vectors(vectors, weights), initial)
  start = {name: leaf.astype(np.float64) for name, leaf in initial.leaves.items()}
  expected = {
    name: leaf
    + sum(w * (p.leaves[name] - leaf) for w, p in zip(weights, prompts, strict=True))
    for name, leaf in start.items()
  }
  assert_close(result.leaves, expected)
  assert result.provenance == dataclasses.replace(
    initial.provenance,
    terms=(Term("a", weights[0]), Term("b", weights[1])),
    steps=250,
    initial_norm=arithmetic.norm(algebra.fold(initial).leaves),
    applied_to_digest=initial.provenance.initial_digest,
    applied_to_seed=0,
  )


@few
@given(change=SEEDS, weights=st.tuples(WEIGHTS, WEIGHTS, WEIGHTS))
@pytest.mark.parametrize("space", SPACES)
def test_order_and_signs_lose_no_bit_in_either_space(
  ept_initial, ept_tuned, space, change, weights
):
  initial = ept_initial(0)
  vectors = [
    algebra.diff(ept_tuned(initial, task, change, i), initial, space=space)
    for i, task in enumerate("abc")
  ]
  total = algebra.sum_vectors(vectors, weights)
  twice = algebra.negate(algebra.negate(total))
  assert twice.provenance == total.provenance
  for order in itertools.permutations(range(3)):
    again = algebra.sum_vectors(
      [vectors[i] for i in order], [weights[i] for i in order]
    )
    assert terms(again) == terms(total)
    for name, leaf in total.leaves.items():
      assert again.leaves[name].tobytes() == leaf.tobytes()
      assert twice.leaves[name].tobytes() == leaf.tobytes()


@pytest.mark.parametrize("space", SPACES)
def test_taking_the_difference_undoes_applying_in_its_space(vectors, initial, space):
  both = algebra.sum_vectors(vectors[space], [1.0, -0.5])
  again = algebra.diff(algebra.apply(both, initial), initial, space=space)
  assert again.provenance == both.provenance
  assert_close(again.leaves, both.leaves)


@pytest.mark.parametrize("space", SPACES)
def test_an_analogy_of_one_vector_is_that_vector_in_either_space(vectors, space):
  sst2, rte = vectors[space]
  result = algebra.analogy(rte, rte, sst2)
  assert result.provenance == sst2.provenance
  for name, leaf in sst2.leaves.items():
    np.testing.assert_array_equal(result.leaves[name], leaf)


@pytest.mark.parametrize("space", SPACES)
def test_a_vector_of_either_space_comes_back_from_its_file(vectors, space, tmp_path):
  vector = vectors[space][0]
  store.write(tmp_path / "v.safetensors", vector.leaves, vector.provenance)
  leaves, known = store.read(tmp_path / "v.safetensors")
  assert known == vector.provenance
  for name, leaf in vector.leaves.items():
    assert leaves[name].shape == leaf.shape
    assert leaves[name].tobytes() == leaf.tobytes()


def test_the_sum_of_factors_is_not_the_sum_of_what_they_do(
  vectors, initial, numpy_fold, ept_tuned
):
  """(a1 + a2)(b1 + b2) is not a1 b1 + a2 b2 (docs/methods.md, (4.7))."""
  factors = algebra.apply(algebra.sum_vectors(vectors["factor"]), initial)
  folded = algebra.fold(factors)
  summed = algebra.apply(algebra.sum_vectors(vectors["effective"]), initial)
  start, one, two = (
    {name: leaf.astype(np.float64) for name, leaf in item.leaves.items()}
    for item in (initial, ept_tuned(initial, "a", 1), ept_tuned(initial, "b", 2))
  )
  a, b = (one[name] + two[name] - start[name] for name in ("low_rank_a", "low_rank_b"))
  scale = ALPHA / np.sqrt(2)
  product_of_sums = scale * a @ b
  sum_of_products = scale * (
    one["low_rank_a"] @ one["low_rank_b"]
    + two["low_rank_a"] @ two["low_rank_b"]
    - start["low_rank_a"] @ start["low_rank_b"]
  )
  np.testing.assert_allclose(folded.leaves["delta"], product_of_sums, atol=2e-5)
  np.testing.assert_allclose(summed.leaves["delta"], sum_of_products, atol=2e-5)
  # The gap is what each task's change of a does to the other one's change of b.
  change = {
    name: (one[name] - start[name], two[name] - start[name])
    for name in ("low_rank_a", "low_rank_b")
  }
  cross = scale * (
    change["low_rank_a"][0] @ change["low_rank_b"][1]
    + change["low_rank_a"][1] @ change["low_rank_b"][0]
  )
  np.testing.assert_allclose(product_of_sums - sum_of_products, cross, atol=1e-12)
  gap = folded.leaves["delta"] - summed.leaves["delta"]
  np.testing.assert_allclose(gap, cross, atol=4e-5)
  assert np.linalg.norm(cross) > 0.1 * np.linalg.norm(sum_of_products)
  assert folded.provenance == summed.provenance  # They differ in how, not in of what.


def test_a_folded_sum_of_factors_knows_its_folded_origin(vectors, initial):
  prompt = algebra.apply(algebra.sum_vectors(vectors["factor"]), initial)
  folded = algebra.fold(prompt).provenance
  start = initial.provenance.initial_folded_digest
  assert (folded.initial_digest, folded.applied_to_digest) == (start, start)
  assert (folded.initial_seed, folded.applied_to_seed) == (0, 0)
  assert folded.cross_origin is False
  vector = algebra.diff(prompt, initial).provenance
  assert (vector.initial_digest, vector.applied_to_digest) == (start, None)
  assert terms(algebra.diff(prompt, initial)) == {"sst2": 1.0, "rte": 1.0}


def test_an_effective_vector_goes_on_another_initial_prompt(
  vectors, initial, ept_initial, numpy_fold
):
  other = ept_initial(1, rank=3)  # Another rank as well: only what it does matters.
  prompt = algebra.apply(vectors["effective"][0], other)
  known = prompt.provenance
  assert known.cross_origin is True
  assert (known.space, known.alpha) == ("effective", None)
  assert known.initial_digest == initial.provenance.initial_folded_digest
  assert known.applied_to_digest == other.provenance.initial_folded_digest
  assert (known.initial_seed, known.applied_to_seed) == (0, 1)
  start = numpy_fold(other.leaves, ALPHA)
  change = vectors["effective"][0].leaves
  assert_close(prompt.leaves, {name: start[name] + change[name] for name in start})
  back = algebra.diff(prompt, other)
  assert back.provenance == vectors["effective"][0].provenance


def test_origins_are_mixed_in_the_effective_space_on_the_users_word(
  vectors, ept_initial, ept_tuned
):
  other = ept_initial(1)
  trec = algebra.diff(ept_tuned(other, "trec", 3), other)
  with pytest.raises(UserError, match="different initial prompts"):
    algebra.sum_vectors([vectors["effective"][0], trec])
  mixed = algebra.sum_vectors([vectors["effective"][0], trec], allow_mixed_origin=True)
  assert len(mixed.provenance.mixed_origins) == 2
  wrong = algebra.diff(ept_tuned(other, "trec", 3), ept_initial(0), True)
  assert len(wrong.provenance.mixed_origins) == 2


def test_in_the_factor_space_no_origin_is_mixed_or_crossed(
  vectors, initial, ept_initial, ept_tuned
):
  other = ept_initial(1)
  trec = algebra.diff(ept_tuned(other, "trec", 3), other, space="factor")
  sst2 = vectors["factor"][0]
  for verb in (
    lambda: algebra.sum_vectors([sst2, trec], allow_mixed_origin=True),
    lambda: algebra.analogy(sst2, sst2, trec, allow_mixed_origin=True),
    lambda: algebra.cosine([sst2, trec]),
  ):
    with pytest.raises(UserError, match="differences from different initial param"):
      verb()
  with pytest.raises(UserError, match=r"Cannot apply 'diff sst2' to 'ept1'.*only"):
    algebra.apply(sst2, other)
  with pytest.raises(UserError, match=r"Cannot apply 'diff sst2' to 'sst2'.*only"):
    algebra.apply(sst2, ept_tuned(initial, "sst2", 1))
  with pytest.raises(
    UserError, match="In the factor space only the difference from its own"
  ):
    algebra.diff(
      ept_tuned(initial, "sst2", 1), other, allow_mixed_origin=True, space="factor"
    )


def test_vectors_of_two_spaces_are_never_combined(vectors):
  effective, factor = vectors["effective"][0], vectors["factor"][1]
  for verb in (
    lambda: algebra.sum_vectors([effective, factor], allow_mixed_origin=True),
    lambda: algebra.analogy(effective, effective, factor, True, True),
    lambda: algebra.cosine([effective, factor]),
  ):
    with pytest.raises(UserError, match=r"the (effective|factor) space, the other of"):
      verb()


def test_a_folded_prompt_where_parameters_are_due_is_refused(vectors, initial, tuned):
  for verb in (
    lambda: algebra.diff(algebra.fold(tuned), initial, space="factor"),
    lambda: algebra.diff(tuned, algebra.fold(initial), space="factor"),
    lambda: algebra.apply(vectors["factor"][0], algebra.fold(initial)),
  ):
    with pytest.raises(
      UserError, match=r"' is folded, but the factor space needs the para"
    ):
      verb()


def test_another_alpha_is_refused_in_the_factor_space_only(
  initial, tuned, vectors, ept_initial
):
  other = changed(tuned, alpha=4.0)
  with pytest.raises(UserError, match=r"alphas differ \(4, 8\).*effective space"):
    algebra.diff(other, initial, space="factor")
  unknown = changed(tuned, alpha=None)
  with pytest.raises(UserError, match=r"alphas differ \(unknown, 8\).*--alpha"):
    algebra.diff(unknown, initial, space="factor")
  sst2 = vectors["factor"][0]
  with pytest.raises(UserError, match=r"alphas differ \(8, 4\)"):
    algebra.sum_vectors([sst2, changed(sst2, alpha=4.0)])
  with pytest.raises(UserError, match=r"alphas differ \(8, 4\)"):
    algebra.apply(sst2, changed(initial, alpha=4.0))
  four = ept_initial(1, alpha=4.0)
  assert algebra.apply(vectors["effective"][0], four).provenance.cross_origin is True


def test_what_parameters_do_is_unknown_without_their_alpha(initial, tuned, vectors):
  unknown = changed(tuned, alpha=None)
  for verb in (
    lambda: algebra.fold(unknown),
    lambda: algebra.diff(unknown, initial),
    lambda: algebra.apply(vectors["effective"][0], unknown),
    lambda: algebra.cosine([unknown, tuned]),
  ):
    with pytest.raises(UserError, match=r"'sst2' holds the para.*state it \(--alpha"):
      verb()


def test_a_plain_and_an_ept_prompt_are_not_combined(
  initial, vectors, initial_prompt, tuned_prompt
):
  plain = initial_prompt(0)
  for verb in (
    lambda: algebra.diff(tuned_prompt(plain, "rte", 2), initial),
    lambda: algebra.apply(vectors["effective"][0], plain),
  ):
    with pytest.raises(UserError, match=r"methods differ \((plain, ept|ept, plain)\)"):
      verb()


def test_the_cosine_folds_prompts_and_leaves_factors_among_themselves(
  vectors, initial, tuned, numpy_fold
):
  def expected(*arrays):
    flat = np.stack([np.concatenate([leaf.ravel() for leaf in a]) for a in arrays])
    flat /= np.linalg.norm(flat, axis=1, keepdims=True)
    return flat @ flat.T

  folded = [numpy_fold(item.leaves, ALPHA) for item in (initial, tuned)]
  change = {name: folded[1][name] - folded[0][name] for name in folded[0]}
  matrix = algebra.cosine([initial, algebra.fold(tuned), vectors["effective"][0]])
  np.testing.assert_allclose(
    matrix,
    expected(*([a["delta"], a["prompt"]] for a in (*folded, change))),
    atol=1e-6,
  )
  matrix = algebra.cosine(vectors["factor"])
  leaves = [
    [vector.leaves[name].astype(np.float64) for name in sorted(vector.leaves)]
    for vector in vectors["factor"]
  ]
  np.testing.assert_allclose(matrix, expected(*leaves), atol=1e-12)


def test_a_foreign_checkpoint_takes_its_origin_from_the_parameters_it_is_given(
  initial, tuned
):
  foreign = dataclasses.replace(
    tuned,
    provenance=Provenance(
      kind="prompt", terms=(Term(None, 1.0),), method="ept", space="factor", alpha=ALPHA
    ),
  )
  start = initial.provenance
  factor = algebra.diff(foreign, initial, task="sst2", space="factor").provenance
  assert factor.initial_digest == start.initial_digest
  assert factor.initial_folded_digest == start.initial_folded_digest
  assert any("the user's word" in note for note in factor.notes)
  effective = algebra.diff(foreign, initial, task="sst2").provenance
  assert effective.initial_digest == start.initial_folded_digest
  assert effective.initial_seed == 0


def test_the_folded_origin_that_the_run_stated_counts_not_a_last_bit(
  initial, tuned, vectors
):
  """Another machine's BLAS may round one value of a fold otherwise."""
  stated = "5" * 64
  there = [changed(item, initial_folded_digest=stated) for item in (tuned, initial)]
  vector = algebra.diff(*there)
  assert vector.provenance.initial_digest == stated
  assert not vector.provenance.notes
  prompt = algebra.apply(vector, there[1])
  assert prompt.provenance.cross_origin is False

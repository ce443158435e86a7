"""What the verbs do to values, terms, origins and backbones, and what they refuse."""

import dataclasses
import itertools

import numpy as np
import pytest

from tpv_jax.core import identity
from tpv_jax.core.errors import UserError
from tpv_jax.vectors import algebra, provenance
from tpv_jax.vectors.loaded import Loaded
from tpv_jax.vectors.merging import merge
from tpv_jax.vectors.provenance import Provenance, Term


@pytest.fixture
def initial(initial_prompt):
  return initial_prompt(0)


@pytest.fixture
def other_initial(initial_prompt):
  return initial_prompt(1)


@pytest.fixture
def sst2(initial, tuned_prompt):
  return algebra.diff(tuned_prompt(initial, "sst2", 1), initial)


@pytest.fixture
def rte(initial, tuned_prompt):
  return algebra.diff(tuned_prompt(initial, "rte", 2), initial)


@pytest.fixture
def foreign(other_initial, tuned_prompt):
  """A vector of another initial prompt."""
  return algebra.diff(tuned_prompt(other_initial, "trec", 3), other_initial)


def changed(item, **fields) -> Loaded:
  return dataclasses.replace(
    item, provenance=dataclasses.replace(item.provenance, **fields)
  )


def without_provenance(item) -> Loaded:
  """The same values as an Orbax checkpoint would give them."""
  unknown = Provenance(kind=item.provenance.kind, terms=(Term(None, 1.0),))
  return dataclasses.replace(item, provenance=unknown, name="checkpoint")


def terms(item):
  return {term.task: term.coefficient for term in item.provenance.terms}


def values(item):
  return item.leaves["prompt"].astype(np.float64)


def test_a_difference_is_a_vector_of_its_task_and_origin(initial, tuned_prompt):
  tuned = tuned_prompt(initial, "sst2", 1)
  vector = algebra.diff(tuned, initial)
  expected = tuned.leaves["prompt"] - initial.leaves["prompt"]
  np.testing.assert_array_equal(vector.leaves["prompt"], expected)
  assert vector.provenance == dataclasses.replace(
    tuned.provenance,
    kind="vector",
    initial_norm=np.linalg.norm(values(initial)),
  )
  assert terms(vector) == {"sst2": 1.0}
  assert vector.provenance.initial_digest == identity.prompt_digest(initial.leaves)


def test_a_difference_put_back_is_the_tuned_prompt(initial, tuned_prompt, sst2):
  tuned = tuned_prompt(initial, "sst2", 1)
  back = algebra.apply(sst2, initial)
  t, i = values(tuned), values(initial)
  bound = 2.0**-24 * (np.abs(t) + np.abs(t - i)) * (1 + 2.0**-20) + 2.0**-149
  assert (np.abs(values(back) - t) <= bound).all()
  assert back.provenance.kind == "prompt"
  assert terms(back) == {"sst2": 1.0}
  assert back.provenance.cross_origin is False


def test_taking_the_difference_undoes_applying(sst2, rte, initial, other_initial):
  both = algebra.sum_vectors([sst2, rte], [1.0, -0.5])
  for start in (initial, other_initial):
    again = algebra.diff(algebra.apply(both, start), start)
    assert again.provenance == both.provenance
    np.testing.assert_allclose(values(again), values(both), rtol=0, atol=2**-21)


def test_negating_a_sum_negates_every_task(sst2, rte):
  both = algebra.sum_vectors([sst2, rte], [1.0, 0.5])
  negated = algebra.negate(both)
  assert terms(negated) == {"sst2": -1.0, "rte": -0.5}
  np.testing.assert_array_equal(values(negated), -values(both))
  twice = algebra.negate(negated)
  assert twice.provenance == both.provenance
  assert twice.leaves["prompt"].tobytes() == both.leaves["prompt"].tobytes()


def test_a_sum_does_not_depend_on_the_order(sst2, rte):
  third = algebra.scale(sst2, 0.3)
  sums = [
    algebra.sum_vectors(list(order))
    for order in itertools.permutations([sst2, rte, third])
  ]
  for one in sums:
    assert one.leaves["prompt"].tobytes() == sums[0].leaves["prompt"].tobytes()
    assert terms(one) == {"sst2": 1.3, "rte": 1.0}


def test_a_task_added_and_taken_away_is_gone_from_the_terms(sst2, rte):
  both = algebra.sum_vectors([sst2, rte])
  back = algebra.sum_vectors([both, rte], [1.0, -1.0])
  assert back.provenance == sst2.provenance
  np.testing.assert_allclose(values(back), values(sst2), rtol=0, atol=2**-21)


def test_scaling_scales_values_and_coefficients(sst2):
  scaled = algebra.scale(sst2, -0.25)
  assert terms(scaled) == {"sst2": -0.25}
  np.testing.assert_array_equal(values(scaled), -0.25 * values(sst2))
  nothing = algebra.scale(sst2, 0.0)
  assert nothing.provenance.terms == ()
  assert not nothing.leaves["prompt"].any()


def test_an_analogy_is_c_plus_b_minus_a(sst2, rte, initial, tuned_prompt):
  trec = algebra.diff(tuned_prompt(initial, "trec", 3), initial)
  result = algebra.analogy(sst2, rte, trec)
  assert terms(result) == {"trec": 1.0, "rte": 1.0, "sst2": -1.0}
  expected = (values(trec) + values(rte) - values(sst2)).astype(np.float32)
  np.testing.assert_allclose(values(result), expected, rtol=2**-23, atol=2**-40)


def test_an_analogy_of_one_vector_is_that_vector(sst2, rte):
  result = algebra.analogy(rte, rte, sst2)
  assert result.provenance == sst2.provenance
  np.testing.assert_array_equal(values(result), values(sst2))


def test_applying_with_a_coefficient_scales_the_terms(sst2, initial):
  prompt = algebra.apply(sst2, initial, 0.5)
  assert terms(prompt) == {"sst2": 0.5}
  expected = (values(initial) + 0.5 * values(sst2)).astype(np.float32)
  np.testing.assert_array_equal(prompt.leaves["prompt"], expected)


def test_applying_to_another_initial_prompt_is_recorded(sst2, initial, other_initial):
  prompt = algebra.apply(sst2, other_initial)
  known = prompt.provenance
  assert known.cross_origin is True
  assert known.initial_digest == identity.prompt_digest(initial.leaves)
  assert known.applied_to_digest == identity.prompt_digest(other_initial.leaves)
  assert (known.initial_seed, known.applied_to_seed) == (0, 1)
  np.testing.assert_array_equal(
    prompt.leaves["prompt"],
    (values(other_initial) + values(sst2)).astype(np.float32),
  )


def test_applying_to_a_tuned_prompt_names_what_it_was_tuned_for(
  sst2, initial, tuned_prompt
):
  tuned = tuned_prompt(initial, "rte", 2)
  prompt = algebra.apply(sst2, tuned)
  assert terms(prompt) == {"sst2": 1.0}
  assert prompt.provenance.base_digest == identity.prompt_digest(tuned.leaves)
  assert prompt.provenance.applied_to_seed is None
  assert "has the terms: rte" in prompt.provenance.notes[0]
  assert terms(algebra.diff(prompt, tuned)) == {"sst2": 1.0}


def test_a_sum_keeps_what_its_parts_share(sst2, rte):
  rte = changed(rte, steps=400, versions={"jax": "0.10.2", "tpv_jax": "0.2.0"})
  known = algebra.sum_vectors([sst2, rte]).provenance
  assert known.versions == {"jax": "0.10.2"}
  assert known.steps is None
  assert known.initial_seed == 0
  assert known.backbone_name == "tiny"
  assert known.backbone_fingerprint == sst2.provenance.backbone_fingerprint
  assert algebra.sum_vectors([sst2, sst2]).provenance.steps == 250


def test_the_chat_template_stays_where_all_parts_share_it(sst2, rte, initial):
  one, two = (changed(item, chat_digest="a" * 64) for item in (sst2, rte))
  other = changed(rte, chat_digest="b" * 64)
  assert algebra.sum_vectors([one, two]).provenance.chat_digest == "a" * 64
  assert algebra.sum_vectors([one, other]).provenance.chat_digest is None
  assert algebra.negate(one).provenance.chat_digest == "a" * 64
  assert algebra.apply(one, initial).provenance.chat_digest == "a" * 64
  tuned = changed(algebra.apply(sst2, initial), chat_digest="a" * 64)
  assert algebra.diff(tuned, initial).provenance.chat_digest == "a" * 64


def test_vectors_of_two_initial_prompts_are_added_only_on_the_users_word(sst2, foreign):
  expected = (
    r"Cannot add 'diff sst2' and 'diff trec': they start from different initial prompts "
    rf"\(digest {sst2.provenance.initial_digest[:12]}…, "
    rf"{foreign.provenance.initial_digest[:12]}…\). Train both from one initial prompt, "
    "or pass allow_mixed_origin=True"
  )
  with pytest.raises(UserError, match=expected):
    algebra.sum_vectors([sst2, foreign])
  mixed = algebra.sum_vectors([sst2, foreign], allow_mixed_origin=True)
  digests = [one.provenance.initial_digest for one in (sst2, foreign)]
  assert mixed.provenance.mixed_origins == tuple(sorted(digests))
  assert mixed.provenance.initial_digest is None
  assert mixed.provenance.initial_seed is None
  assert terms(mixed) == {"sst2": 1.0, "trec": 1.0}
  assert any("--allow-mixed-origin" in note for note in mixed.provenance.notes)


def test_a_mixed_origin_stays_mixed(sst2, rte, foreign, initial):
  mixed = algebra.sum_vectors([sst2, foreign], allow_mixed_origin=True)
  with pytest.raises(UserError, match="different initial prompts"):
    algebra.sum_vectors([mixed, rte])
  with pytest.raises(UserError, match="mixes several initial prompts"):
    algebra.sum_vectors([mixed, mixed])
  again = algebra.sum_vectors([mixed, rte], allow_mixed_origin=True)
  for one in (again, algebra.negate(mixed), algebra.sum_vectors([mixed])):
    assert one.provenance.mixed_origins == mixed.provenance.mixed_origins
  prompt = algebra.apply(mixed, initial)
  assert prompt.provenance.cross_origin is True
  assert algebra.diff(prompt, initial).provenance == mixed.provenance


def test_an_analogy_over_two_initial_prompts_needs_the_users_word(sst2, rte, foreign):
  with pytest.raises(UserError, match="different initial prompts"):
    algebra.analogy(sst2, rte, foreign)
  result = algebra.analogy(sst2, rte, foreign, allow_mixed_origin=True)
  assert len(result.provenance.mixed_origins) == 2


def test_the_difference_from_a_wrong_initial_prompt_needs_the_users_word(
  initial, other_initial, tuned_prompt
):
  tuned = tuned_prompt(initial, "sst2", 1)
  for wrong in (other_initial, tuned_prompt(initial, "rte", 2)):
    with pytest.raises(UserError, match=r"was tuned from the initial prompt \w{12}…"):
      algebra.diff(tuned, wrong)
  mixed = algebra.diff(tuned, other_initial, allow_mixed_origin=True)
  assert len(mixed.provenance.mixed_origins) == 2
  difference = algebra.diff(
    tuned, tuned_prompt(initial, "rte", 2), allow_mixed_origin=True
  )
  assert terms(difference) == {"sst2": 1.0, "rte": -1.0}


def test_a_prompt_where_a_vector_is_due_is_refused_with_the_way_out(
  sst2, initial, tuned_prompt
):
  prompt = tuned_prompt(initial, "rte", 2)
  for verb in (
    lambda: algebra.sum_vectors([sst2, prompt]),
    lambda: algebra.negate(prompt),
    lambda: algebra.scale(prompt, 2.0),
    lambda: algebra.analogy(sst2, prompt, sst2),
    lambda: algebra.apply(prompt, initial),
  ):
    expected = (
      r"'rte' is a prompt \(terms: rte\), but a vector is needed here.*tpv diff rte"
    )
    with pytest.raises(UserError, match=expected):
      verb()


def test_a_vector_where_a_prompt_is_due_is_refused(sst2, initial, tuned_prompt):
  for verb in (
    lambda: algebra.diff(sst2, initial),
    lambda: algebra.diff(tuned_prompt(initial, "sst2", 1), sst2),
    lambda: algebra.apply(sst2, sst2),
  ):
    with pytest.raises(UserError, match=r"is a vector.*but a prompt is needed here"):
      verb()


def test_two_backbones_are_refused_everywhere(
  sst2, initial_prompt, tuned_prompt, initial
):
  elsewhere = initial_prompt(0, backbone="cd" * 32)
  vector = algebra.diff(tuned_prompt(elsewhere, "rte", 2), elsewhere)
  for verb in (
    lambda: algebra.diff(tuned_prompt(initial, "sst2", 1), elsewhere),
    lambda: algebra.sum_vectors(
      [sst2, vector], allow_mixed_origin=True, allow_unknown_backbone=True
    ),
    lambda: algebra.analogy(sst2, sst2, vector, True, True),
    lambda: algebra.apply(sst2, elsewhere, allow_unknown_backbone=True),
    lambda: algebra.cosine([sst2, vector]),
  ):
    with pytest.raises(UserError, match=r"different backbones \(tiny \w{12}…, tiny"):
      verb()


def test_an_unknown_backbone_needs_the_users_word_and_stays_unknown(sst2, rte, initial):
  unknown = changed(rte, backbone_fingerprint=None)
  for verb in (
    lambda word: algebra.sum_vectors([sst2, unknown], allow_unknown_backbone=word),
    lambda word: algebra.sum_vectors([unknown, unknown], allow_unknown_backbone=word),
    lambda word: algebra.analogy(sst2, unknown, sst2, allow_unknown_backbone=word),
    lambda word: algebra.apply(unknown, initial, allow_unknown_backbone=word),
  ):
    with pytest.raises(
      UserError, match=r"does not state its backbone.*allow_unknown_backbone=True"
    ):
      verb(False)
    result = verb(True)
    assert result.provenance.backbone_fingerprint is None
    assert any("the user's word" in note for note in result.provenance.notes)


def test_the_notes_of_a_sum_say_of_which_task_they_are(sst2, rte):
  first = changed(sst2, notes=("best loss on validation: 0.25", "on a TPU"))
  second = changed(rte, notes=("best loss on validation: 0.5", "on a TPU"))
  result = algebra.sum_vectors([first, second])
  notes = ("on a TPU", "sst2: best loss on validation: 0.25")
  assert sorted(result.provenance.notes) == sorted(
    (*notes, "rte: best loss on validation: 0.5")
  )
  twice = algebra.sum_vectors([result, first])
  assert set(twice.provenance.notes) == set(result.provenance.notes)
  assert algebra.sum_vectors([first]).provenance.notes == first.provenance.notes


def test_a_note_on_a_whole_merge_says_of_what_it_is_in_a_sum(sst2, rte):
  zeros = merge.merge([sst2, rte], "ties", coefficient=0.0)
  balanced = merge.merge([sst2, rte], "norm_balanced")
  (note,) = balanced.provenance.notes
  assert note == "merged by norm_balanced"
  whole = provenance.describe_terms(balanced.provenance.terms)
  assert {*algebra.sum_vectors([zeros, balanced, sst2]).provenance.notes} == {
    "a vector of zeros: the merged vector is all zeros",
    f"{whole}: merged by norm_balanced",
  }
  twice = algebra.sum_vectors([balanced, balanced]).provenance.notes
  assert twice == (f"{whole}: merged by norm_balanced",)
  assert algebra.negate(balanced).provenance.notes == (note,)


def test_an_unknown_origin_cannot_be_added_without_the_users_word(sst2, rte):
  unknown = changed(rte, initial_digest=None, initial_seed=None)
  for pair in ([sst2, unknown], [unknown, sst2], [unknown, unknown]):
    with pytest.raises(UserError, match="'diff rte' does not state its initial prompt"):
      algebra.sum_vectors(pair)
    result = algebra.sum_vectors(pair, allow_mixed_origin=True).provenance
    assert result.initial_digest is None
    assert any("not every added vector states its origin" in n for n in result.notes)


def test_a_checkpoint_takes_its_origin_from_the_initial_prompt_it_is_given(
  initial, tuned_prompt
):
  checkpoint = without_provenance(tuned_prompt(initial, "sst2", 1))
  vector = algebra.diff(checkpoint, initial, task="sst2")
  known = vector.provenance
  assert terms(vector) == {"sst2": 1.0}
  assert known.initial_digest == identity.prompt_digest(initial.leaves)
  assert known.initial_seed == 0
  assert known.backbone_fingerprint is None
  assert sum("the user's word" in note for note in known.notes) == 2
  assert known.steps is None


def test_two_checkpoints_give_a_vector_of_an_unknown_task(initial, tuned_prompt):
  tuned = without_provenance(tuned_prompt(initial, "sst2", 1))
  vector = algebra.diff(tuned, without_provenance(initial))
  assert terms(vector) == {None: 1.0}
  assert vector.provenance.initial_digest == identity.prompt_digest(initial.leaves)
  assert vector.provenance.initial_seed is None


def test_a_task_name_cannot_contradict_the_prompt(initial, tuned_prompt):
  tuned = tuned_prompt(initial, "sst2", 1)
  with pytest.raises(
    UserError, match=r"states its task terms itself \(sst2\), not 'rte'"
  ):
    algebra.diff(tuned, initial, task="rte")
  assert terms(algebra.diff(tuned, initial, task="sst2")) == {"sst2": 1.0}


def test_another_method_is_refused(sst2, rte, initial):
  ept = changed(rte, method="ept")
  for verb in (
    lambda: algebra.sum_vectors([sst2, ept]),
    lambda: algebra.apply(ept, initial),
  ):
    with pytest.raises(UserError, match=r"methods differ \((plain, ept|ept, plain)\)"):
      verb()


def test_another_shape_is_refused_with_both_names(sst2, initial_prompt):
  longer = initial_prompt(0, shape=(5, 6))
  with pytest.raises(
    UserError, match=r"'diff sst2' and 'initial0'.*\[4, 6\].*\[5, 6\]"
  ):
    algebra.apply(sst2, longer)
  with pytest.raises(UserError, match=r"\[4, 6\].*\[5, 6\]"):
    algebra.cosine([sst2, longer])


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_nan_and_infinity_are_refused(sst2, rte, initial, bad):
  leaves = {"prompt": rte.leaves["prompt"].copy()}
  leaves["prompt"][1, 2] = bad
  broken = dataclasses.replace(rte, leaves=leaves)
  for verb in (
    lambda: algebra.sum_vectors([sst2, broken]),
    lambda: algebra.negate(broken),
    lambda: algebra.apply(broken, initial),
  ):
    with pytest.raises(UserError, match=r"leaf 'prompt' of 'diff rte' holds 1 values"):
      verb()
  for verb in (
    lambda: algebra.scale(sst2, bad),
    lambda: algebra.apply(sst2, initial, bad),
    lambda: algebra.sum_vectors([sst2, rte], [1.0, bad]),
  ):
    with pytest.raises(UserError, match="is not finite"):
      verb()


def test_the_weights_must_fit_the_vectors(sst2, rte):
  with pytest.raises(
    UserError, match=r"weights \(1\) is not that of the vectors \(2\)"
  ):
    algebra.sum_vectors([sst2, rte], [1.0])
  with pytest.raises(UserError, match="nothing to add"):
    algebra.sum_vectors([])


def test_the_cosine_matrix_is_that_of_numpy(sst2, rte, foreign):
  items = [sst2, rte, foreign]
  matrix = algebra.cosine(items)
  flat = np.stack([values(item).ravel() for item in items])
  flat /= np.linalg.norm(flat, axis=1, keepdims=True)
  np.testing.assert_allclose(matrix, flat @ flat.T, atol=1e-14)
  np.testing.assert_array_equal(matrix, matrix.T)
  np.testing.assert_array_equal(np.diag(matrix), np.ones(3))


def test_the_cosine_names_what_has_no_direction(sst2):
  zero = dataclasses.replace(algebra.scale(sst2, 0.0), name="nothing")
  with pytest.raises(UserError, match="'nothing' is all zeros"):
    algebra.cosine([sst2, zero])
  with pytest.raises(UserError, match="nothing to compare"):
    algebra.cosine([])


def test_no_verb_changes_its_inputs(sst2, rte, initial):
  before = [item.leaves["prompt"].tobytes() for item in (sst2, rte, initial)]
  algebra.sum_vectors([sst2, rte, sst2], [0.5, -1.0, 2.0])
  algebra.analogy(sst2, rte, sst2)
  algebra.apply(sst2, initial, 0.5)
  algebra.negate(sst2)
  algebra.diff(initial, initial)
  after = [item.leaves["prompt"].tobytes() for item in (sst2, rte, initial)]
  assert after == before

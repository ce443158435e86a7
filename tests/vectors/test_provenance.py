import json
import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tpv_jax.vectors import provenance
from tpv_jax.vectors.provenance import Merge, Part, Provenance, Term

DIGESTS = st.text("0123456789abcdef", min_size=64, max_size=64)
FINITE = st.floats(allow_nan=False, allow_infinity=False)
COUNTS = st.integers(0, 2**64 - 1)
FIELDS = st.fixed_dictionaries(
  {
    "kind": st.sampled_from(provenance.KINDS),
    "backbone_name": st.none() | st.text(),
    "backbone_fingerprint": st.none() | DIGESTS,
    "initial_digest": st.none() | DIGESTS,
    "initial_seed": st.none() | COUNTS,
    "applied_to_digest": st.none() | DIGESTS,
    "applied_to_seed": st.none() | COUNTS,
    "steps": st.none() | COUNTS,
    "method": st.none() | st.text(),
    "versions": st.dictionaries(st.text(), st.text()),
    "notes": st.lists(st.text()).map(tuple),
  }
)


@given(FIELDS, st.lists(st.tuples(st.none() | st.text(min_size=1), FINITE)))
def test_json_text_gives_back_every_field(fields, terms):
  one = Provenance(terms=tuple(Term(*term) for term in terms), **fields)
  text = provenance.canonical_json(one.to_json())
  assert Provenance.from_json(json.loads(text)) == one


def test_a_mode_is_stated_only_where_a_backbone_was_quantised():
  one = Provenance(kind="prompt", quantize="int8")
  assert Provenance.from_json(one.to_json()) == one
  assert "quantize" not in Provenance(kind="prompt").to_json()


def a_merge(*parts, **changes):
  """Returns a merge of these terms."""
  fields = {
    "rule": "ties",
    "settings": (("density", (0.2, 0.5)), ("k", None), ("seed", 3)),
    "weights": (1.0, 0.5),
    "parts": tuple(
      Part(f"{index:064x}", terms) for index, terms in enumerate(parts, start=10)
    ),
  }
  return Merge(**(fields | changes))


ONE_MERGE = a_merge((Term("sst2", 1.0),), (Term("rte", 0.5), Term("sst2", -1.0)))


def test_merges_come_back_and_only_they_are_stated_as_such():
  one = Provenance(kind="vector", terms=(Term("cola", 1.0), Term(None, 0.7, ONE_MERGE)))
  text = provenance.canonical_json(one.to_json())
  assert Provenance.from_json(json.loads(text)) == one
  # The file of what was not merged is as before there were merges.
  assert one.to_json()["terms"][0] == {"task": "cola", "coefficient": 1.0}
  assert one.tasks == ("cola", "sst2", "rte")
  text = "cola + 0.7 ties(sst2, 0.5 rte - sst2)"
  assert provenance.describe_terms(one.terms) == text


def test_terms_of_one_and_the_same_merge_become_one():
  other = a_merge((Term("sst2", 1.0),), (Term("rte", 0.5),))
  terms = [
    Term(None, 1.0, ONE_MERGE),
    Term(None, 1.0, other),
    Term(None, -3.0, ONE_MERGE),
  ]
  assert provenance.merge_terms(terms) == (
    Term(None, -2.0, ONE_MERGE),
    Term(None, 1.0, other),
  )
  assert provenance.merge_terms([terms[0], Term(None, -1.0, ONE_MERGE)]) == ()


def test_what_many_parts_were_merged_is_said_in_short():
  many = a_merge(*[(Term(f"t{k}", 1.0),) for k in range(9)], weights=())
  text = provenance.describe_terms([Term(None, 1.0, many)])
  assert text == "ties(t0, t1, t2, t3, … of 9)"


@pytest.mark.parametrize(
  "change",
  [
    {"rule": ""},
    {"rule": 3},
    {"parts": []},
    {"parts": [{"digest": "ab", "terms": []}]},
    {"parts": [{"digest": "a" * 64}]},
    {"settings": {"density": {"a": 1}}},
    {"settings": {"density": [[1]]}},
    {"settings": {"density": float("inf")}},
    {"settings": {"density": [0.5, float("nan")]}},
    {"settings": {"seed": 1 << 64}},
    {"weights": ["1"]},
    {"weights": [1.0, float("inf")]},
    {"weights": [10**400, 1]},
    {"more": 1},
  ],
)
def test_a_merge_that_cannot_be_ours_is_refused(change):
  content = Provenance("vector", (Term(None, 1.0, ONE_MERGE),)).to_json()
  content["terms"][0]["merge"] |= change
  with pytest.raises(ValueError, match=r"merge|SHA-256"):
    Provenance.from_json(content)


def test_a_term_is_not_of_a_task_and_a_merge_at_once():
  with pytest.raises(ValueError, match="of a merge and of the task 'sst2'"):
    Term("sst2", 1.0, ONE_MERGE)


def test_merges_of_merges_come_back_until_they_are_too_deep():
  nested = a_merge((Term("sst2", 1.0),))
  for _ in range(provenance.MOST_NESTED - 1):
    nested = a_merge((Term(None, 1.0, nested),))
  one = Provenance("vector", (Term(None, 1.0, nested),))
  assert Provenance.from_json(one.to_json()) == one
  assert one.tasks == ("sst2",)
  with pytest.raises(ValueError, match="more than 32 deep"):
    a_merge((Term(None, 1.0, nested),))
  content = one.to_json()
  deepest = content["terms"][0]
  for _ in range(2000):
    merge = {
      **content["terms"][0]["merge"],
      "parts": [{"digest": "a" * 64, "terms": [deepest]}],
    }
    deepest = {"task": None, "coefficient": 1.0, "merge": merge}
  content["terms"] = [deepest]
  with pytest.raises(ValueError, match="deep"):
    Provenance.from_json(content)


def test_parameters_of_ept_come_back_with_their_alpha_and_folded_origin():
  one = Provenance(
    kind="vector",
    method="ept",
    space="factor",
    alpha=8.0,
    initial_digest="0" * 64,
    initial_folded_digest="1" * 64,
  )
  text = provenance.canonical_json(one.to_json())
  assert '"alpha":8.0' in text
  assert Provenance.from_json(json.loads(text)) == one


def test_a_chat_template_is_stated_only_where_there_is_one():
  one = Provenance(kind="prompt", chat_digest="2" * 64)
  assert one.to_json()["chat_digest"] == "2" * 64
  assert Provenance.from_json(one.to_json()) == one
  assert "chat_digest" not in Provenance(kind="prompt").to_json()
  with pytest.raises(ValueError, match="not a SHA-256"):
    Provenance(kind="prompt", chat_digest="chatml")


def test_files_from_before_there_were_spaces_are_of_the_effective_one():
  content = Provenance(kind="vector", initial_digest="0" * 64).to_json()
  for name in ("space", "alpha", "initial_folded_digest"):
    del content[name]
  known = Provenance.from_json(content)
  assert (known.space, known.alpha, known.initial_folded_digest) == (
    "effective",
    None,
    None,
  )


@pytest.mark.parametrize(
  ("fields", "reason"),
  [
    ({"space": "low-rank"}, "neither 'effective' nor 'factor'"),
    ({"alpha": 8.0}, "has no alpha"),
    ({"initial_folded_digest": "1" * 64}, "has no alpha"),
    ({"space": "factor", "mixed_origins": ("0" * 64,)}, "of one origin"),
    (
      {
        "space": "factor",
        "initial_digest": "0" * 64,
        "applied_to_digest": "1" * 64,
      },
      "of one origin",
    ),
    ({"space": "factor", "kind": "vector"}, "states its initial parameters"),
    ({"space": "factor", "alpha": math.inf}, "alpha is inf"),
  ],
)
def test_what_a_space_cannot_have_is_refused(fields, reason):
  with pytest.raises(ValueError, match=reason):
    Provenance(**{"kind": "prompt"} | fields)


def test_mixed_origins_come_back_too():
  one = Provenance(kind="vector", mixed_origins=("0" * 64, "1" * 64))
  assert Provenance.from_json(one.to_json()) == one


def test_what_is_not_known_is_none():
  one = Provenance(kind="prompt")
  assert {name for name, value in one.to_json().items() if value is None} == {
    "backbone_name",
    "backbone_fingerprint",
    "initial_digest",
    "initial_seed",
    "applied_to_digest",
    "applied_to_seed",
    "steps",
    "alpha",
    "initial_folded_digest",
  }


@pytest.mark.parametrize(
  "change",
  [
    {"kind": "sum"},
    {"kind": None},
    {"terms": {"sst2": 1}},
    {"terms": [["sst2", 1]]},
    {"terms": [{"task": "sst2"}]},
    {"terms": [{"task": 3, "coefficient": 1}]},
    {"terms": [{"task": "sst2", "coefficient": "1"}]},
    {"terms": [{"task": "sst2", "coefficient": True}]},
    {"terms": [{"task": "", "coefficient": 1}]},
    {"terms": [{"task": "sst2", "coefficient": math.nan}]},
    {"initial_digest": "3f2a"},
    {"initial_digest": "G" * 64},
    {"initial_seed": True},
    {"steps": 1.5},
    {"versions": {"jax": 1}},
    {"versions": []},
    {"notes": [1]},
    {"notes": "note"},
    {"colour": "red"},
    {"space": None},
    {"alpha": "8"},
    {"initial_folded_digest": 1},
  ],
)
def test_json_that_cannot_be_ours_is_refused(change):
  content = Provenance(kind="vector", terms=(Term("sst2", 1.0),)).to_json()
  with pytest.raises(ValueError, match=r".+"):
    Provenance.from_json(content | change)


def test_a_missing_field_is_refused_by_name():
  content = Provenance(kind="vector").to_json()
  del content["steps"]
  with pytest.raises(ValueError, match="steps"):
    Provenance.from_json(content)
  with pytest.raises(ValueError, match="dictionary"):
    Provenance.from_json([content])


def test_one_initial_prompt_and_several_exclude_each_other():
  with pytest.raises(ValueError, match="exclude"):
    Provenance(kind="vector", initial_digest="0" * 64, mixed_origins=("1" * 64,))


@pytest.mark.parametrize(
  ("known", "base", "cross_origin"),
  [
    ({}, None, False),
    ({"initial_digest": "0" * 64}, "0" * 64, False),
    ({"initial_digest": "0" * 64, "applied_to_digest": "0" * 64}, "0" * 64, False),
    ({"initial_digest": "0" * 64, "applied_to_digest": "1" * 64}, "1" * 64, True),
    ({"applied_to_digest": "1" * 64}, "1" * 64, None),
    ({"mixed_origins": ("0" * 64,), "applied_to_digest": "1" * 64}, "1" * 64, True),
  ],
)
def test_a_prompt_knows_its_base_and_whether_it_crossed_origins(
  known, base, cross_origin
):
  one = Provenance(kind="prompt", **known)
  assert (one.base_digest, one.cross_origin) == (base, cross_origin)


def test_terms_of_one_task_become_one_in_order_of_appearance():
  terms = [Term("b", 1.0), Term("a", 2.0), Term("b", 0.5), Term("c", 1.0)]
  assert provenance.merge_terms(terms) == (
    Term("b", 1.5),
    Term("a", 2.0),
    Term("c", 1.0),
  )


def test_terms_that_cancel_are_dropped_also_in_decimals():
  assert provenance.merge_terms([Term("a", 1.0), Term("a", -1.0)]) == ()
  assert 0.1 + 0.2 - 0.3 != 0
  decimals = [Term("a", 0.1), Term("a", 0.2), Term("a", -0.3), Term("b", 1e-300)]
  assert provenance.merge_terms(decimals) == (Term("b", 1e-300),)


def test_unknown_tasks_are_never_taken_for_one_another():
  terms = (Term(None, 1.0), Term(None, -1.0), Term(None, 1.0))
  assert provenance.merge_terms(terms) == terms


@given(st.lists(st.tuples(st.sampled_from("abc"), st.integers(-9, 9))))
def test_merged_terms_count_as_integers_do(counts):
  expected = {}
  for task, count in counts:
    expected[task] = expected.get(task, 0) + count
  expected = {task: count for task, count in expected.items() if count}
  merged = provenance.merge_terms([Term(task, float(count)) for task, count in counts])
  assert {term.task: term.coefficient for term in merged} == expected
  assert len(merged) == len(expected)


def test_scaling_scales_every_term_and_zero_drops_them():
  terms = (Term("a", 1.0), Term("b", -0.5))
  assert provenance.scale_terms(terms, -2.0) == (Term("a", -2.0), Term("b", 1.0))
  assert provenance.scale_terms(terms, 0.0) == ()


@pytest.mark.parametrize(
  ("terms", "text"),
  [
    ([], "none"),
    ([("a", 1)], "a"),
    ([("a", -1), ("b", 1)], "-a + b"),
    ([("a", 0.5), ("b", -0.25), (None, -1)], "0.5 a - 0.25 b - unknown task"),
    ([("a + b", -2)], "-2 a + b"),
  ],
)
def test_terms_are_described_with_their_signs(terms, text):
  described = [Term(task, float(coefficient)) for task, coefficient in terms]
  assert provenance.describe_terms(described) == text


@pytest.mark.parametrize("name", ["initial_seed", "applied_to_seed", "steps", "alpha"])
def test_numbers_that_no_run_states_are_refused(name):
  # Of 400 digits: a float cannot hold it, and a table would not end.
  content = Provenance(kind="prompt").to_json()
  for number in (10**400, -(10**400)):
    with pytest.raises(ValueError, match=f"{name} is a number of 1329 bits"):
      Provenance.from_json({**content, name: number})
    with pytest.raises(ValueError, match=f"{name} is a number of 1329 bits"):
      Provenance(**{"kind": "prompt", name: number})  # Or a file would not be read.
    term = {"task": "a", "coefficient": number}
    with pytest.raises(ValueError, match="is not a task with its coefficient"):
      Provenance.from_json({**content, "terms": [term]})

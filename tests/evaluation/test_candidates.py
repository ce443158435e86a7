"""Prompts that are tried on other words than they were trained on are named."""

import re
import types

import pytest

from tpv_jax.core.errors import UserError
from tpv_jax.evaluation import candidates
from tpv_jax.vectors import algebra, moving, store
from tpv_jax.vectors.merging.merge import merge
from tpv_jax.vectors.provenance import Provenance, Term

TRAINED = {"kind": "prompt", "terms": (Term("sst2", 1.0),)}


def test_another_chat_template_than_in_training_is_said(capsys):
  chat = types.SimpleNamespace(digest="a" * 64)
  own = Provenance(**TRAINED, chat_digest="a" * 64)
  candidates.say_other_template([own, None, Provenance(kind="prompt")], chat)
  candidates.say_other_template([Provenance(**TRAINED)], None)
  assert capsys.readouterr().out == ""
  candidates.say_other_template([own, own], None)
  line = capsys.readouterr().out
  assert "written by chat template aaaaaaaaaaaa… and is tried" in line
  assert "without a stated chat template. If" in line
  assert line.count("\n") == 1
  candidates.say_other_template([Provenance(**TRAINED)], chat)
  assert "written without a stated chat template and" in capsys.readouterr().out


@pytest.fixture
def moved(initial_prompt, tuned_prompt):
  """Returns a vector, its own initial prompt and another one."""
  own, other = initial_prompt(0), initial_prompt(1)
  return algebra.diff(tuned_prompt(own, "sst2", 1), own), own, other


def test_the_ratio_is_said_of_vectors_on_other_starts_only(moved, capsys):
  vector, own, other = moved
  ((on_own,),) = candidates.read(vector=vector, initial=own)
  assert on_own.ratio is None
  assert "ratio" not in on_own.to_json()
  candidates.say_ratios([on_own])
  assert capsys.readouterr().out == ""
  ((on_other,),) = candidates.read(vector=vector, initial=other, coefficients=[0.5])
  assert on_other.to_json()["ratio"] == moving.ratio(vector, other, 0.5)
  candidates.say_ratios([on_own, on_other])
  line = capsys.readouterr().out
  assert line.count("\n") == 1
  assert f"on {other.name}', another start than its own: norm(vector)" in line
  assert "our threshold" in line


def test_the_ratios_of_many_vectors_take_one_line(moved, capsys):
  vector, _, other = moved
  (group,) = candidates.read(vector=vector, initial=other, coefficients=[0.5, 40.0])
  candidates.say_ratios(group)
  line = capsys.readouterr().out
  low, high = (one.ratio for one in group)
  assert line.count("\n") == 1
  assert "2 vectors on other starts" in line
  assert f"is {low:.3g} to {high:.3g}; below 2.5" in line


@pytest.fixture
def two(initial_prompt, tuned_prompt, tmp_path, monkeypatch):
  """Writes the vectors a and b of one initial prompt; returns both, and that prompt."""
  monkeypatch.chdir(tmp_path)
  own = initial_prompt(0)
  made = [
    algebra.diff(tuned_prompt(own, task, seed), own)
    for seed, task in enumerate(("sst2", "rte"), start=1)
  ]
  for name, one in zip("ab", made, strict=True):
    store.write(f"{name}.safetensors", one.leaves, one.provenance)
  return made, own


def test_a_merge_is_evaluated_as_its_file_would_be(two):
  vectors, own = two
  asked = {
    "rule": "ties",
    "of": ["a.safetensors", "b.safetensors"],
    "density": 0.5,
    "weights": [2.0, 1.0],
    "lambda": 0.7,
  }
  ((one,),) = candidates.read(vector=asked, initial=own, coefficients=[0.5])
  expected = merge(vectors, "ties", [2.0, 1.0], 0.7, {"density": 0.5})
  applied = algebra.apply(expected, own, 0.5)
  assert one.leaves["prompt"].tobytes() == applied.leaves["prompt"].tobytes()
  assert set(one.tasks) == {"sst2", "rte"}
  assert one.name.startswith("0.5 * ties(a.safetensors, b.safetensors) density=0.5")
  # Among others, in a list.
  found = candidates.read(
    vector=["a.safetensors", asked, {**asked, "density": 0.2}], initial=own
  )
  assert len(found) == 3


def test_a_merge_that_cannot_be_is_one_line(two):
  _, own = two
  both = ["a.safetensors", "b.safetensors"]
  for asked, expected in (
    ({"rule": "tise", "of": both}, "Did you mean 'ties'"),
    (
      {"a.safetensors": "x"},
      "A sum of VECTOR['a.safetensors'] is 'x'; it must be a number",
    ),
    ({"rule": "ties"}, "'of' of a merge of VECTOR is None"),
    ({"rule": "ties", "of": "a.safetensors"}, "'of' of a merge of VECTOR is 'a.safe"),
    ({"rule": "ties", "of": both, "densty": 1}, "has no option 'densty'"),
    (
      {"rule": "ties", "of": both, "lambda": "1"},
      "'lambda' of a merge of VECTOR is '1'",
    ),
    ({"rule": 3, "of": both}, "'rule' of a merge of VECTOR is 3"),
    ({"ties": both}, "For a merge, give 'rule' and 'of'"),
    ({"rule": "ties", "of": []}, "nothing to add"),
  ):
    with pytest.raises(UserError, match=re.escape(expected)):
      candidates.read(vector=asked, initial=own)


def test_a_search_tries_all_settings_of_a_merge_with_all_coefficients(two):
  vectors, own = two
  asked = {
    "rule": "ties",
    "of": ["a.safetensors", "b.safetensors"],
    "search": {"density": [0.2, 0.5], "weights": [[1.0, 1.0], [2.0, 1.0]]},
  }
  (group,) = candidates.read(
    vector=asked, initial=own, coefficients=[0.5, 1.0], searched=True
  )
  assert len(group) == 8
  for one in group:
    expected = merge(
      vectors,
      "ties",
      one.settings["weights"],
      options={"density": one.settings["density"]},
    )
    applied = algebra.apply(expected, own, one.coefficient)
    assert one.leaves["prompt"].tobytes() == applied.leaves["prompt"].tobytes()
    assert f"density={one.settings['density']}" in one.name
    assert "search" not in one.name
  assert len({one.name for one in group}) == 8
  assert group[0].to_json()["settings"] == {"density": 0.2, "weights": [1.0, 1.0]}


def test_settings_to_search_that_cannot_be_are_one_line(two):
  _, own = two
  whole = {"rule": "ties", "of": ["a.safetensors", "b.safetensors"]}
  for asked, expected in (
    ({"search": {}}, "'search' of a merge of VECTOR is {}"),
    ({"search": {"density": []}}, "must be"),
    ({"search": {"density": 0.2}}, "must be"),
    ({"search": {"densty": [0.2]}}, "has no option 'densty'"),
    ({"search": {"density": [0.2, 3]}}, "density of ties is 3"),
    ({"search": {"density": [0.2, 0.2]}}, "twice"),
    ({"density": 0.2, "search": {"density": [0.5]}}, "states 'density' and searches"),
  ):
    with pytest.raises(UserError, match=re.escape(expected)):
      candidates.read(vector={**whole, **asked}, initial=own, searched=True)
  both = {**whole, "search": {"density": [0.2, 0.5]}}
  with pytest.raises(UserError, match="Set SEARCH = True"):
    candidates.read(vector=both, initial=own)
  with pytest.raises(UserError, match="Set SEARCH = True"):
    candidates.subject(None, both, own, 1.0, "best")

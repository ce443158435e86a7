"""What every merge rule of the registry does; a new one is tested by being registered."""

import dataclasses
import inspect

import numpy as np
import pytest

from tpv_jax.core import checks
from tpv_jax.core.errors import UserError
from tpv_jax.vectors import algebra, arithmetic, store
from tpv_jax.vectors.loaded import Loaded
from tpv_jax.vectors.merging import registry
from tpv_jax.vectors.merging.merge import merge
from tpv_jax.vectors.merging.protocol import (
  CoefficientRule,
  LeafRule,
  PromptRule,
  Rule,
)
from tpv_jax.vectors.provenance import Provenance, Term

every_rule = pytest.mark.parametrize("name", registry.RULES)

WEIGHTS = (0.5, 1.5, 1.0)
ORIGIN = Provenance("vector", (), "tiny", "a" * 64, "b" * 64)


def joins(name):
  """Whether the rule makes a prompt of prompts."""
  return isinstance(registry.rule(name)(), PromptRule)


def vectors_for(name, number=3):
  """Returns as many vectors as the rule takes, of unlike lengths and a common part.

  For a rule that joins prompts they are prompts.
  """
  draw = np.random.default_rng(0)
  common = draw.normal(size=(4, 8))
  kind = "prompt" if joins(name) else "vector"
  return [
    Loaded(
      {"prompt": ((k + 1) * (draw.normal(size=(4, 8)) + common)).astype(np.float32)},
      dataclasses.replace(ORIGIN, kind=kind, terms=(Term(f"task{k}", 1.0),)),
      f"vector {k}",
    )
    for k in range(registry.rule(name).number or number)
  ]


def weights_for(name, vectors):
  """Returns weights for a rule that takes them, else None."""
  return WEIGHTS[: len(vectors)] if registry.rule(name).weighted else None


def coefficients(merged):
  return {term.task: term.coefficient for term in merged.provenance.terms}


def prompt(merged):
  return merged.leaves["prompt"]


def skip_joining(name):
  if joins(name):
    pytest.skip("makes a prompt, not a vector")


@every_rule
def test_it_keeps_the_protocol(name):
  rule = registry.rule(name)
  assert rule.__dataclass_params__.frozen
  made = rule()
  assert isinstance(made, Rule)
  kinds = [
    kind for kind in (CoefficientRule, LeafRule, PromptRule) if isinstance(made, kind)
  ]
  assert kinds
  assert made.linear == (CoefficientRule in kinds)
  assert inspect.getdoc(rule).partition("\n")[0].endswith(".")
  assert rule.source
  assert set(registry.options(name)) == {
    field.name for field in dataclasses.fields(rule)
  }
  for option, default in registry.options(name).items():
    assert checks.misfit(default, checks.annotations(rule)[option], option) is None


@every_rule
def test_the_terms_are_of_the_sum_or_state_the_merge(name):
  vectors = vectors_for(name)
  weights = weights_for(name, vectors)
  merged = merge(vectors, name, weights, coefficient=1.0 if joins(name) else 0.7)
  if not registry.rule(name)().linear:
    (term,) = merged.provenance.terms
    assert term.coefficient == (1.0 if joins(name) else 0.7)
    assert term.merge.rule == name
    assert dict(term.merge.settings) == registry.options(name)
    assert sorted(term.merge.weights) == sorted(weights or ())
    assert set(term.merge.tasks) == {f"task{k}" for k in range(len(vectors))}
    return
  stated = coefficients(merged)
  expected = sum(
    stated.get(f"task{k}", 0) * prompt(one).astype(np.float64)
    for k, one in enumerate(vectors)
  )
  np.testing.assert_allclose(prompt(merged), expected, rtol=1e-6, atol=1e-6)
  assert merged.provenance.initial_digest == "b" * 64
  if name != "task_arithmetic":
    assert merged.provenance.notes[-1].startswith(f"merged by {name}")


@every_rule
def test_what_it_writes_is_read_again(name, tmp_path):
  merged = merge(vectors_for(name), name)
  store.write(tmp_path / "m.safetensors", merged.leaves, merged.provenance)
  leaves, provenance = store.read(tmp_path / "m.safetensors")
  assert provenance == merged.provenance
  assert leaves["prompt"].tobytes() == prompt(merged).tobytes()


@every_rule
def test_a_merged_vector_can_be_applied_scaled_and_taken_away_again(name):
  skip_joining(name)
  merged = merge(vectors_for(name), name)
  initial = Loaded(
    {"prompt": np.ones((4, 8), np.float32)},
    Provenance("prompt", (), "tiny", "a" * 64),
    "initial",
  )
  applied = algebra.apply(merged, initial, -0.5)
  np.testing.assert_allclose(
    prompt(applied), 1 - 0.5 * prompt(merged), rtol=1e-5, atol=1e-5
  )
  assert applied.provenance.tasks == merged.provenance.tasks
  twice = merged + algebra.scale(merged, 0.5)
  assert [term.coefficient for term in twice.provenance.terms] == pytest.approx(
    [1.5 * term.coefficient for term in merged.provenance.terms]
  )
  assert (merged - merged).provenance.terms == ()


@every_rule
def test_lambda_multiplies_the_result(name):
  vectors = vectors_for(name)
  if joins(name):
    with pytest.raises(UserError, match="has no coefficient"):
      merge(vectors, name, coefficient=0.5)
    return
  whole, half = (merge(vectors, name, coefficient=c) for c in (1.0, 0.5))
  np.testing.assert_allclose(prompt(half), prompt(whole) / 2, rtol=1e-6, atol=1e-7)


@every_rule
def test_negated_and_longer_vectors_give_the_negated_and_longer_result(name):
  skip_joining(name)
  vectors = vectors_for(name)
  weights = weights_for(name, vectors)
  if not registry.rule(name)().linear and "seed" in registry.options(name):
    pytest.skip("draws other numbers for other vectors")
  expected = prompt(merge(vectors, name, weights))
  changed = merge([algebra.scale(one, -3.0) for one in vectors], name, weights)
  np.testing.assert_allclose(prompt(changed), -3 * expected, rtol=1e-5, atol=1e-5)


@every_rule
def test_the_order_matters_where_the_rule_says_so(name):
  vectors = vectors_for(name)
  weights = weights_for(name, vectors)
  options = {"t": 0.3} if "t" in registry.options(name) else {}
  one = merge(vectors, name, weights, options=options)
  other = merge(vectors[::-1], name, weights and weights[::-1], options=options)
  if registry.rule(name)().linear:
    same = coefficients(one) == pytest.approx(coefficients(other), rel=1e-9)
  else:
    same = prompt(one).tobytes() == prompt(other).tobytes()
    assert same == (one.provenance.terms == other.provenance.terms)
  assert same != registry.rule(name).ordered


@every_rule
def test_a_vector_of_zeros_is_left_out_or_refused(name):
  skip_joining(name)
  vectors = vectors_for(name)
  vectors[-1] = algebra.scale(vectors[-1], 0.0)
  if registry.rule(name).number is not None:
    with pytest.raises(UserError, match="all zeros"):
      merge(vectors, name)
    return
  merged = merge(vectors, name)
  expected = merge(vectors[:-1], name)
  assert prompt(merged).tobytes() == prompt(expected).tobytes()
  assert any("left out" in note for note in merged.provenance.notes)
  with pytest.raises(UserError, match="All vectors are zero"):
    merge([algebra.scale(one, 0.0) for one in vectors], name)


@every_rule
def test_coefficients_are_of_all_leaves_and_other_rules_go_leaf_by_leaf(name):
  skip_joining(name)
  if registry.rule(name).number is not None:
    pytest.skip("takes a fixed number of vectors")
  whole = vectors_for(name, number=2)
  parts = [slice(0, 2), slice(2, 4)]
  cut = [
    dataclasses.replace(
      one, leaves={"prompt": prompt(one)[parts[0]], "delta": prompt(one)[parts[1]]}
    )
    for one in whole
  ]
  merged = merge(cut, name)
  if registry.rule(name)().linear:
    expected = prompt(merge(whole, name))
    np.testing.assert_allclose(
      np.concatenate([merged.leaves["prompt"], merged.leaves["delta"]]),
      expected,
      rtol=1e-6,
      atol=1e-6,
    )
  elif "seed" not in registry.options(name):
    for leaf in ("prompt", "delta"):
      alone = [dataclasses.replace(x, leaves={"prompt": x.leaves[leaf]}) for x in cut]
      np.testing.assert_allclose(
        merged.leaves[leaf], prompt(merge(alone, name)), atol=1e-6
      )


@every_rule
def test_parameters_are_merged_by_linear_rules_only(name):
  skip_joining(name)
  vectors = [
    dataclasses.replace(
      one, provenance=dataclasses.replace(one.provenance, space="factor", method="ept")
    )
    for one in vectors_for(name)
  ]
  if registry.rule(name)().linear:
    assert merge(vectors, name).provenance.space == "factor"
    return
  with pytest.raises(UserError, match=f"'{name}' is not linear, and a vector of param"):
    merge(vectors, name)


@every_rule
def test_what_it_does_not_take_is_refused_by_name(name):
  vectors = vectors_for(name)
  with pytest.raises(UserError, match=f"'{name}' has no option 'densty'"):
    merge(vectors, name, options={"densty": 0.2})
  if not registry.rule(name).weighted:
    with pytest.raises(UserError, match=f"'{name}' takes no weights"):
      merge(vectors, name, [1.0] * len(vectors))
  if registry.rule(name).number is not None:
    with pytest.raises(UserError, match=f"exactly {registry.rule(name).number}"):
      merge([*vectors, vectors[0]], name)
  if not joins(name):
    with pytest.raises(UserError, match="not finite"):
      merge(vectors, name, coefficient=float("nan"))
  for option in registry.options(name):
    with pytest.raises(UserError, match=f"{option} of {name}"):
      merge(vectors, name, options={option: float("nan")})


@every_rule
def test_an_option_of_each_vector_goes_with_its_vector(name):
  vectors = vectors_for(name)
  for option in registry.options(name):
    values = [0.3, 0.3, 0.2][: len(vectors)]
    annotation = checks.annotations(registry.rule(name))[option]
    if checks.misfit(values, annotation, option) is not None:
      continue
    half = {"density": 0.5} if "density" in registry.options(name) else {}
    one = merge(vectors, name, options=half | {option: values})
    other = merge(vectors[::-1], name, options=half | {option: values[::-1]})
    assert prompt(one).tobytes() == prompt(other).tobytes()
    same = merge(vectors, name, options=half | {option: 0.3})
    assert prompt(one).tobytes() != prompt(same).tobytes()
    with pytest.raises(UserError, match=f"{option} of {name} has 2 values"):
      merge(vectors, name, options={option: values[:2]})


@every_rule
def test_mixed_origins_and_the_wrong_kind_are_refused_as_in_a_sum(name):
  vectors = vectors_for(name)
  other_kind = "vector" if joins(name) else "prompt"
  wrong = dataclasses.replace(vectors[0].provenance, kind=other_kind)
  with pytest.raises(UserError, match=f"is a {other_kind}"):
    merge([dataclasses.replace(vectors[0], provenance=wrong), *vectors[1:]], name)
  shorter = dataclasses.replace(
    vectors[0], leaves={"prompt": prompt(vectors[0])[:, :3]}
  )
  with pytest.raises(UserError, match=r"has shape|their widths"):
    merge([shorter, *vectors[1:]], name)
  other = dataclasses.replace(vectors[0].provenance, initial_digest="c" * 64)
  mixed = [dataclasses.replace(vectors[0], provenance=other), *vectors[1:]]
  if joins(name):
    assert merge(mixed, name).provenance.initial_digest is None
    return
  with pytest.raises(UserError, match="start from different initial prompts"):
    merge(mixed, name)
  assert merge(mixed, name, allow_mixed_origin=True).provenance.mixed_origins


def test_the_inner_products_are_those_of_all_values():
  vectors = vectors_for("linear", number=5)
  flat = np.stack([one.leaves["prompt"].reshape(-1) for one in vectors])
  np.testing.assert_allclose(
    arithmetic.gram([one.leaves for one in vectors]),
    flat.astype(np.float64) @ flat.T.astype(np.float64),
    rtol=1e-12,
  )


def test_an_unknown_rule_is_refused_with_the_near_one():
  with pytest.raises(UserError, match=r"no merge rule 'slrp'\. Did you mean 'slerp'"):
    registry.rule("slrp")


def test_a_rule_that_is_not_offered_says_why():
  for name, why in registry.NOT_OFFERED.items():
    with pytest.raises(UserError, match=f"'{name}' is not offered: {why[:20]}"):
      registry.rule(name)


def test_an_option_of_another_rule_is_refused_with_the_rules_that_have_it():
  with pytest.raises(
    UserError, match=r"'ties' has no option 'epsilon'.*of della_linear"
  ):
    registry.with_options("ties", {"epsilon": 0.1})

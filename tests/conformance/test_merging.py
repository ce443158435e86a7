"""What every merge rule of the registry does; a new one is tested by being registered."""

import dataclasses
import inspect

import numpy as np
import pytest

from tpv_jax.core.errors import UserError
from tpv_jax.vectors import algebra, arithmetic
from tpv_jax.vectors.loaded import Loaded
from tpv_jax.vectors.merging import registry
from tpv_jax.vectors.merging.merge import merge
from tpv_jax.vectors.merging.protocol import Rule
from tpv_jax.vectors.provenance import Provenance, Term

every_rule = pytest.mark.parametrize("name", registry.RULES)

WEIGHTS = (0.5, 1.5, 1.0)


def vectors_for(name, number=3):
  """Returns as many vectors as the rule takes, of unlike lengths and a common part."""
  draw = np.random.default_rng(0)
  common = draw.normal(size=(4, 8))
  return [
    Loaded(
      {"prompt": ((k + 1) * (draw.normal(size=(4, 8)) + common)).astype(np.float32)},
      Provenance("vector", (Term(f"task{k}", 1.0),), "tiny", "a" * 64, "b" * 64),
      f"vector {k}",
    )
    for k in range(registry.rule(name).number or number)
  ]


def weights_for(name, vectors):
  """Returns weights for a rule that takes them, else None."""
  return WEIGHTS[: len(vectors)] if registry.rule(name).weighted else None


def coefficients(merged):
  return {term.task: term.coefficient for term in merged.provenance.terms}


@every_rule
def test_it_keeps_the_protocol(name):
  rule = registry.rule(name)
  assert rule.__dataclass_params__.frozen
  assert isinstance(rule(), Rule)
  assert inspect.getdoc(rule).partition("\n")[0].endswith(".")
  assert rule.source
  assert set(registry.options(name)) == {
    field.name for field in dataclasses.fields(rule)
  }


@every_rule
def test_the_result_is_the_sum_that_its_terms_state(name):
  vectors = vectors_for(name)
  merged = merge(vectors, name, weights_for(name, vectors), coefficient=0.7)
  stated = coefficients(merged)
  expected = sum(
    stated.get(f"task{k}", 0) * one.leaves["prompt"].astype(np.float64)
    for k, one in enumerate(vectors)
  )
  np.testing.assert_allclose(merged.leaves["prompt"], expected, rtol=1e-6, atol=1e-6)
  assert merged.provenance.initial_digest == "b" * 64
  if name != "task_arithmetic":
    assert merged.provenance.notes[-1].startswith(f"merged by {name}")


@every_rule
def test_lambda_multiplies_the_result(name):
  vectors = vectors_for(name)
  whole, half = (merge(vectors, name, coefficient=c) for c in (1.0, 0.5))
  np.testing.assert_allclose(
    half.leaves["prompt"], whole.leaves["prompt"] / 2, rtol=1e-6, atol=1e-7
  )


@every_rule
def test_negated_and_longer_vectors_give_the_negated_and_longer_result(name):
  vectors = vectors_for(name)
  weights = weights_for(name, vectors)
  expected = merge(vectors, name, weights).leaves["prompt"]
  changed = merge([algebra.scale(one, -3.0) for one in vectors], name, weights)
  np.testing.assert_allclose(
    changed.leaves["prompt"], -3 * expected, rtol=1e-5, atol=1e-5
  )


@every_rule
def test_the_order_matters_where_the_rule_says_so(name):
  vectors = vectors_for(name)
  weights = weights_for(name, vectors)
  options = {"t": 0.3} if "t" in registry.options(name) else {}
  one = coefficients(merge(vectors, name, weights, options=options))
  turned = weights and weights[::-1]
  other = coefficients(merge(vectors[::-1], name, turned, options=options))
  same = one == pytest.approx(other, rel=1e-9)
  assert same != registry.rule(name).ordered


@every_rule
def test_a_vector_of_zeros_is_left_out_or_refused(name):
  vectors = vectors_for(name)
  vectors[-1] = algebra.scale(vectors[-1], 0.0)
  if registry.rule(name).number is not None:
    with pytest.raises(UserError, match="all zeros"):
      merge(vectors, name)
    return
  merged = merge(vectors, name)
  expected = merge(vectors[:-1], name)
  assert merged.leaves["prompt"].tobytes() == expected.leaves["prompt"].tobytes()
  assert any("left out" in note for note in merged.provenance.notes)
  with pytest.raises(UserError, match="All vectors are zero"):
    merge([algebra.scale(one, 0.0) for one in vectors], name)


@every_rule
def test_many_vectors_of_two_leaves_share_one_norm(name):
  if registry.rule(name).number is not None:
    pytest.skip("takes a fixed number of vectors")
  whole = vectors_for(name, number=7)
  cut = [
    dataclasses.replace(
      one,
      leaves={"prompt": one.leaves["prompt"][:1], "delta": one.leaves["prompt"][1:]},
    )
    for one in whole
  ]
  one, other = merge(whole, name), merge(cut, name)
  np.testing.assert_allclose(
    one.leaves["prompt"],
    np.concatenate([other.leaves["prompt"], other.leaves["delta"]]),
    rtol=1e-6,
    atol=1e-6,
  )


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
  with pytest.raises(UserError, match="not finite"):
    merge(vectors, name, coefficient=float("nan"))
  for option in registry.options(name):
    with pytest.raises(UserError, match=f"{option} of {name}"):
      merge(vectors, name, options={option: float("nan")})


@every_rule
def test_prompts_and_mixed_origins_are_refused_as_in_a_sum(name):
  vectors = vectors_for(name)
  other = dataclasses.replace(vectors[0].provenance, initial_digest="c" * 64)
  mixed = [dataclasses.replace(vectors[0], provenance=other), *vectors[1:]]
  with pytest.raises(UserError, match="start from different initial prompts"):
    merge(mixed, name)
  assert merge(mixed, name, allow_mixed_origin=True).provenance.mixed_origins
  prompt = dataclasses.replace(vectors[0].provenance, kind="prompt")
  with pytest.raises(UserError, match="is a prompt"):
    merge([dataclasses.replace(vectors[0], provenance=prompt), *vectors[1:]], name)


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

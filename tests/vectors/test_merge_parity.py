"""Merge rules against mergekit and PEFT, stored by references/make_merge_references.py."""

import json
import pathlib

import numpy as np
import pytest

from tpv_jax.vectors.loaded import Loaded
from tpv_jax.vectors.merging import dropping, signs
from tpv_jax.vectors.merging.merge import merge
from tpv_jax.vectors.provenance import Provenance, Term

with np.load(
  pathlib.Path(__file__).parents[1] / "references" / "merging.npz", allow_pickle=False
) as file:
  STORED = dict(file)
CASES = json.loads(str(STORED["cases"]))

TOLERANCE = {"rtol": 2e-5, "atol": 2e-6}
"""Theirs is computed in fp32, and karcher ends at a step of up to 1e-5."""


def of(kind):
  """Returns the cases with or without stored masks, named."""
  return [
    pytest.param(key, case, id=f"{case['by']}-{case['rule']}-{key}")
    for key, case in enumerate(CASES)
    if (f"{key}/masks" in STORED) == (kind == "masked")
  ]


@pytest.mark.parametrize(("key", "case"), of("not masked"))
def test_the_values_are_those_of_mergekit_and_peft(key, case):
  vectors = [
    Loaded(
      {"prompt": values},
      Provenance("vector", (Term(f"task{k}", 1.0),), "tiny", "a" * 64, "b" * 64),
      f"vector {k}",
    )
    for k, values in enumerate(STORED["vectors"][: case["of"]])
  ]
  merged = merge(vectors, case["rule"], case["weights"], options=case["options"])
  np.testing.assert_allclose(merged.leaves["prompt"], STORED[str(key)], **TOLERANCE)


@pytest.mark.parametrize(("key", "case"), of("masked"))
def test_with_their_masks_the_values_of_random_rules_are_theirs(key, case):
  vectors = STORED["vectors"].astype(np.float64)
  masks, probabilities = STORED[f"{key}/masks"], STORED[f"{key}/probabilities"]
  options, weights = case["options"], np.array(case["weights"])
  if "epsilon" in options:
    ours = [dropping.by_rank(one, **options) for one in vectors]
    np.testing.assert_allclose(ours, probabilities, rtol=1e-6)
  kept = [
    dropping.rescaled(values, mask, p)
    for values, mask, p in zip(
      vectors, masks, probabilities.astype(np.float64), strict=True
    )
  ]
  if case["by"] == "mergekit":  # Which does not divide by the probabilities there.
    kept = [one * p for one, p in zip(kept, probabilities, strict=True)]
  if case["rule"] in ("dare_ties", "della"):
    merged = signs.elected((x, w, w) for x, w in zip(kept, weights, strict=True))
  else:
    merged = signs.weighted_sum(zip(kept, weights, strict=True), kept[0].shape)
  np.testing.assert_allclose(merged, STORED[str(key)], **TOLERANCE)


def test_every_rule_that_mergekit_or_peft_has_is_compared():
  assert {case["rule"] for case in CASES} == {
    *("task_arithmetic", "linear", "ties", "breadcrumbs", "breadcrumbs_ties", "sce"),
    *(
      "multislerp",
      "karcher",
      "model_stock",
      "slerp",
      "nuslerp",
      "della",
      "della_linear",
    ),
    *("magnitude_prune", "dare_linear", "dare_ties"),
  }

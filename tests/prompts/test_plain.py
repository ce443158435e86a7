"""The plain prompt holds one matrix and nothing else."""

import jax
import numpy as np
import pytest

from tpv_jax.core.errors import UserError
from tpv_jax.prompts import plain
from tpv_jax.vectors.loaded import Loaded
from tpv_jax.vectors.provenance import Provenance


def test_it_has_exactly_p_rows_of_the_models_width():
  variables = plain.Prompt(length=7, features=4).init(jax.random.key(0))
  assert set(variables["params"]) == {"prompt"}
  assert variables["params"]["prompt"].shape == (7, 4)
  assert variables["params"]["prompt"].dtype == np.float32
  assert variables["params_axes"]["prompt_axes"].names == ("prompt", "embed")


def test_folding_gives_the_matrix_itself():
  matrix = np.arange(12.0, dtype=np.float32).reshape(3, 4)
  folded = plain.Prompt(3, 4).apply({"params": {"prompt": matrix}})
  assert np.array_equal(folded.prompt, matrix)
  assert folded.delta is None


def test_a_delta_is_held_where_sources_are_updated_and_starts_at_zero():
  module = plain.Prompt(length=3, features=4, source_length=5)
  variables = module.init(jax.random.key(0))
  assert {name: leaf.shape for name, leaf in variables["params"].items()} == {
    "prompt": (3, 4),
    "delta": (5, 4),
  }
  assert not variables["params"]["delta"].any()
  assert variables["params_axes"]["delta_axes"].names == ("source_position", "embed")
  delta = np.arange(20.0, dtype=np.float32).reshape(5, 4)
  folded = module.apply({"params": {"prompt": np.ones((3, 4)), "delta": delta}})
  assert np.array_equal(folded.delta, delta)


def start(**shapes):
  leaves = {name: np.ones(shape, np.float32) for name, shape in shapes.items()}
  return Loaded(leaves, Provenance(kind="prompt"), "saved")


def test_a_plain_start_has_no_delta_until_one_is_trained():
  leaves = plain.Prompt(3, 4, source_length=5).initial_leaves(start(prompt=(3, 4)), 0)
  assert leaves["delta"].shape == (5, 4)
  assert not leaves["delta"].any()


@pytest.mark.parametrize(
  ("module", "given", "text"),
  [
    (plain.Prompt(3, 4), {"prompt": (2, 4)}, r"\(2, 4\).*needs .*\(3, 4\).*PROMPT_LEN"),
    (
      plain.Prompt(3, 4),
      {"prompt": (3, 4), "delta": (5, 4)},
      r"updates the source's.*Prompt\.source_length to 5 .*EPT",
    ),
    (
      plain.Prompt(3, 4, 6),
      {"prompt": (3, 4), "delta": (5, 4)},
      r"\(5, 4\).*needs .*\(6, 4\)",
    ),
    (
      plain.Prompt(3, 4),
      {"short_prompt": (3, 4), "low_rank_a": (5, 1), "low_rank_b": (1, 4)},
      r"not low_rank_a.*short_prompt\. Fold the prompt first: tpv fold",
    ),
  ],
)
def test_a_start_of_another_form_is_refused(module, given, text):
  with pytest.raises(UserError, match=text):
    module.initial_leaves(start(**given), 0)


def test_sizes_that_cannot_be_are_refused():
  with pytest.raises(UserError, match="length is 0"):
    plain.Prompt(0, 4)


def test_it_starts_uniform_between_plus_and_minus_a_half():
  prompt = plain.Prompt(100, 50).init(jax.random.key(0))["params"]["prompt"]
  assert -0.5 <= prompt.min() < -0.49
  assert 0.49 < prompt.max() < 0.5
  # The mean of 5000 draws has a standard deviation of 0.29 / sqrt(5000) = 0.004.
  assert abs(prompt.mean()) < 0.02

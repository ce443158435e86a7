"""The plain prompt holds one matrix and nothing else."""

import jax
import numpy as np

from tpv_jax.prompts import plain


def test_it_has_exactly_p_rows_of_the_models_width():
  variables = plain.Prompt(length=7, features=4).init(jax.random.key(0))
  assert set(variables["params"]) == {"prompt"}
  assert variables["params"]["prompt"].shape == (7, 4)
  assert variables["params"]["prompt"].dtype == np.float32
  assert variables["params_axes"]["prompt_axes"].names == ("prompt", "embed")


def test_folding_gives_the_matrix_itself():
  matrix = np.arange(12.0, dtype=np.float32).reshape(3, 4)
  folded = plain.Prompt(3, 4).apply({"params": {"prompt": matrix}})
  assert np.array_equal(folded, matrix)


def test_it_starts_uniform_between_plus_and_minus_a_half():
  prompt = plain.Prompt(100, 50).init(jax.random.key(0))["params"]["prompt"]
  assert -0.5 <= prompt.min() < -0.49 and 0.49 < prompt.max() < 0.5
  # The mean of 5000 draws has a standard deviation of 0.29 / sqrt(5000) = 0.004.
  assert abs(prompt.mean()) < 0.02

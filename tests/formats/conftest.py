"""The runs and prompts of the vectors' tests serve here too."""

from vectors.conftest import (
  ept_initial,
  ept_tuned,
  initial_prompt,
  make_run,
  tuned_prompt,
)

__all__ = ["ept_initial", "ept_tuned", "initial_prompt", "make_run", "tuned_prompt"]

"""Prompts, vectors and runs for the tests of this room."""

from prompt_fixtures import (
  ept_initial,
  ept_tuned,
  initial_prompt,
  make_run,
  numpy_fold,
  tuned_prompt,
)

__all__ = [
  "ept_initial",
  "ept_tuned",
  "initial_prompt",
  "make_run",
  "numpy_fold",
  "tuned_prompt",
]

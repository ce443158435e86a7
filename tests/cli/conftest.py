"""Prompts, vectors and runs for the tests of this room."""

from prompt_fixtures import (  # noqa: F401
  ept_initial,
  ept_tuned,
  initial_prompt,
  make_run,
  numpy_fold,
  tuned_prompt,
)

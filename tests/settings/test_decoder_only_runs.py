"""The run files for decoder-only models."""

import re

from tpv_jax.settings import gin_files


def macros(name):
  """Returns the macros that a shipped file sets itself."""
  (text,) = [
    text for file, text in gin_files.shipped().items() if file.endswith(f"runs/{name}")
  ]
  return dict(re.findall(r"^([A-Z_]+) = (.*)$", text, re.MULTILINE))


def test_a_run_and_a_bank_have_the_same_settings():
  assert macros("llm.gin") == macros("bank_llm.gin")
  assert macros("llm.gin")["INITIAL_PROMPT"] == "@initial.small_normal"


def test_all_are_on_one_model_unless_another_is_named():
  for name in ("llm", "bank_llm", "eval_llm", "infer_llm"):
    assert macros(f"{name}.gin")["BACKBONE"] == "'smollm2'"

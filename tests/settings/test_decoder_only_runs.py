"""The run files for decoder-only models."""

import re

import pytest

from tpv_jax.settings import gin_files

TUNING = ("runs/llm", "runs/bank_llm", "t5x/train_llm", "t5x/bank_llm")
USING = ("runs/eval_llm", "runs/infer_llm", "t5x/eval_llm", "t5x/infer_llm")


def text(name):
  """Returns the text of a shipped file."""
  (found,) = [
    text for file, text in gin_files.shipped().items() if file.endswith(f"/{name}.gin")
  ]
  return found


def macros(name):
  """Returns the macros that a shipped file sets itself."""
  return dict(re.findall(r"^([A-Z_]+) = (.*)$", text(name), re.MULTILINE))


def included(name):
  """Returns the files that a shipped file includes, and those that these include."""
  names = re.findall(r"^include 'tpv_jax/gin_configs/(.*)\.gin'", text(name), re.M)
  return {one for other in names for one in (other, *included(other))}


@pytest.mark.parametrize("name", TUNING)
def test_a_run_and_a_bank_have_the_same_settings_in_both_runners(name):
  assert "runs/tuning_llm" in included(name)
  assert macros(name).keys() <= {"EVAL_STEPS"}  # Of T5X alone, which counts batches.
  assert macros("runs/tuning_llm")["INITIAL_PROMPT"] == "@initial.small_normal"


@pytest.mark.parametrize("name", [*USING, "runs/tuning_llm"])
def test_all_are_on_one_model_unless_another_is_named(name):
  assert macros(name)["BACKBONE"] == "'smollm2'"
  assert "backbones/pretrained" in included(name)

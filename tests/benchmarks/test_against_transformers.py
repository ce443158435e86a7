"""The comparison of SmolLM2 with transformers: bad calls; the rest needs the model."""

import importlib.util
import pathlib
import subprocess
import sys

import pytest

FOLDER = pathlib.Path(__file__).parents[2] / "benchmarks"
SCRIPT = FOLDER / "against_transformers.py"


@pytest.fixture(scope="module")
def script():
  spec = importlib.util.spec_from_file_location("against_transformers", SCRIPT)
  module = importlib.util.module_from_spec(spec)
  spec.loader.exec_module(module)
  return module


def test_help_says_what_is_compared():
  done = subprocess.run([sys.executable, SCRIPT, "--help"], capture_output=True)
  assert done.returncode == 0
  assert b"perplexity" in done.stdout


def test_bad_calls_are_one_clear_line(script, tmp_path, capsys):
  def refused(*arguments):
    assert script.main([f"--gguf={tmp_path / 'no.gguf'}", *arguments]) == 2
    return capsys.readouterr().err.strip()

  assert "not a Python that runs" in refused("--transformers-python=/nowhere/python")
  failed = refused()
  assert "The side of transformers failed" in failed
  assert "\n" not in failed
  there = tmp_path / "there.json"
  there.write_text("{}")
  assert "there.json" in refused(f"--output={there}")


def test_the_side_of_transformers_imports_nothing_of_ours():
  assert "tpv_jax import" not in (FOLDER / "transformers_side.py").read_text()
  assert "import torch" not in SCRIPT.read_text()

"""The examples in the docstrings give what they show."""

import pathlib
import subprocess
import sys

import tpv_jax

PACKAGE = pathlib.Path(tpv_jax.__file__).parent

CODE = """
import doctest, importlib, sys

tried = 0
for name in sys.argv[1:]:
  result = doctest.testmod(importlib.import_module(name))
  assert result.attempted, f"{name}: nothing was tried"
  tried += result.attempted * (not result.failed)
print(tried)
"""
"""In a process without checks of shapes: doctest does not look into what they wrap."""


def test_every_example_in_a_docstring_gives_what_it_shows():
  shown, names = 0, []
  for path in sorted(PACKAGE.rglob("*.py")):
    if count := path.read_text().count(">>> "):
      shown += count
      names.append(".".join(path.relative_to(PACKAGE.parent).with_suffix("").parts))
  done = subprocess.run(
    [sys.executable, "-c", CODE, *names], capture_output=True, text=True, check=False
  )
  assert done.returncode == 0, done.stderr
  assert done.stdout.splitlines()[-1] == str(shown), done.stdout
  assert {"tpv_jax.vectors.arithmetic", "tpv_jax.vectors.provenance"} <= set(names)

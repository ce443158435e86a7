"""Runs the fast tests against the wheel: built, installed and tested in a folder of its own.

What stands here needs neither training nor TensorFlow. Arguments go to pytest.
"""

import os
import pathlib
import subprocess
import sys
import tempfile

import stand_ins

TESTS = pathlib.Path(__file__).parent

FAST = (
  *("core", "formats", "vectors", "io/test_safetensors.py"),
  *(f"data/test_{name}.py" for name in ("batches", "metrics", "packing", "transforms")),
  *("prompts/test_equations.py", "prompts/test_plain.py", "embedded/test_suite.py"),
  *("cli/test_cli.py", "cli/test_vectors.py", "test_facade.py", "test_imports.py"),
  *("test_citations.py", "test_docstrings.py", "test_gin_surface.py", "test_rooms.py"),
)
SLOWER = "vectors/test_ept_logits.py"


def install(folder: pathlib.Path) -> pathlib.Path:
  """Returns a folder with the package as the wheel of what git tracks installs it."""
  source, site = folder / "source", folder / "site"
  stand_ins.copy_tracked(source)
  pip = [sys.executable, "-m", "pip", "--quiet", "--disable-pip-version-check"]
  build = [*pip, "wheel", "--no-deps", "--no-build-isolation"]
  subprocess.run([*build, f"--wheel-dir={folder}", str(source)], check=True)
  (wheel,) = folder.glob("*.whl")
  target = f"--target={site}"
  subprocess.run([*pip, "install", "--no-deps", target, str(wheel)], check=True)
  return site


def main(arguments: list[str]) -> int:
  with tempfile.TemporaryDirectory() as name:
    site = install(pathlib.Path(name))
    options = [f"--config-file={TESTS.parent / 'pyproject.toml'}", f"--wheel={site}"]
    options += [f"--ignore={TESTS / SLOWER}"]
    return subprocess.run(
      [sys.executable, "-m", "pytest", "-m", "not slow", *options, *arguments]
      + [str(TESTS / path) for path in FAST],
      cwd=name,
      env={**os.environ, "PYTHONPATH": str(site), "JAX_PLATFORMS": "cpu"},
      check=False,
    ).returncode


if __name__ == "__main__":
  sys.exit(main(sys.argv[1:]))

"""The options of the tests: `--no-skips` of `make t5x-test`, `--wheel` of the fast ones."""

import pathlib
import subprocess
import sys

SKIPS = """\
import pytest
def test_one(): pytest.skip("no T5X here")
def test_two(): pass
"""
MODULE_SKIPS = 'import pytest\npytest.importorskip("no_such", reason="no seqio here")\n'


def run(folder, *options):
  (folder / "test_skips.py").write_text(SKIPS)
  (folder / "test_module_skips.py").write_text(MODULE_SKIPS)
  command = [sys.executable, "-m", "pytest", "-p", "conftest", *options, folder]
  here = pathlib.Path(__file__).parent
  return subprocess.run(command, cwd=here, capture_output=True, text=True, check=False)


def test_a_skipped_test_fails_where_none_may_be_skipped(tmp_path):
  assert run(tmp_path).returncode == 0
  done = run(tmp_path, "--no-skips", "--continue-on-collection-errors")
  assert done.returncode == 1
  assert "1 failed, 1 passed, 1 error" in done.stdout
  assert "no T5X here" in done.stdout
  assert "no seqio here" in done.stdout


def test_the_tests_of_a_wheel_test_no_other_package(tmp_path):
  done = run(tmp_path, f"--wheel={tmp_path}")
  assert done.returncode == 4
  assert f"{pathlib.Path('tpv_jax', '__init__.py')}, not from {tmp_path}" in done.stderr

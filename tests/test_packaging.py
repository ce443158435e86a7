"""What is installed: the wheel holds the gin files and the embedded backbone."""

import pathlib
import re
import subprocess
import sys
import zipfile

import pytest
import stand_ins

REPOSITORY = pathlib.Path(__file__).parents[1]


@pytest.fixture(scope="module")
def wheel(tmp_path_factory):
  """Built from a copy of what git tracks, in a folder with a space in its name."""
  source = tmp_path_factory.mktemp("wheel") / "a source"
  stand_ins.copy_tracked(source)
  subprocess.run(
    [
      *(sys.executable, "-m", "pip", "wheel", "--no-deps", "--no-build-isolation"),
      *("--wheel-dir", "dist", "."),
    ],
    cwd=source,
    check=True,
    capture_output=True,
  )
  (path,) = (source / "dist").glob("*.whl")
  return zipfile.ZipFile(path)


def test_the_wheel_holds_every_gin_file_the_embedded_backbone_and_ready_prompts(wheel):
  names = set(wheel.namelist())
  for path in (REPOSITORY / "gin_configs").rglob("*.*"):
    if path.suffix not in (".gin", ".toml"):
      continue
    assert (
      f"tpv_jax/gin_configs/{path.relative_to(REPOSITORY / 'gin_configs')}" in names
    )
  for name in ("backbone.safetensors", "vocabulary.txt", "MODEL_CARD.md"):
    assert f"tpv_jax/embedded/{name}" in names
  assert "tpv_jax/released/smollm2.safetensors" in names
  assert "tpv_jax/data/example_rows.json" in names
  for path in (REPOSITORY / "tpv_jax/data/english_rows").iterdir():
    assert f"tpv_jax/data/english_rows/{path.name}" in names
  assert not [name for name in names if name.startswith(("tests/", "gin_configs/"))]


def test_every_module_is_in_the_wheel(wheel):
  names = set(wheel.namelist())
  for path in (REPOSITORY / "tpv_jax").rglob("*.py"):
    assert str(path.relative_to(REPOSITORY)) in names


def test_the_base_install_asks_for_neither_tensorflow_nor_seqio_nor_torch(wheel):
  (name,) = [name for name in wheel.namelist() if name.endswith("METADATA")]
  required = re.findall(
    r"^Requires-Dist: (.*)$", wheel.read(name).decode(), re.MULTILINE
  )
  base = [line for line in required if "extra ==" not in line]
  assert any(re.match("jax[<>=]", line) for line in base)
  for heavy in ("tensorflow", "seqio", "torch", "transformers", "t5x"):
    assert not [line for line in base if line.startswith(heavy)], heavy


def test_the_command_tpv_is_installed(wheel):
  (name,) = [name for name in wheel.namelist() if name.endswith("entry_points.txt")]
  assert "tpv = tpv_jax.cli:main" in wheel.read(name).decode()

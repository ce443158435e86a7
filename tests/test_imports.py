"""What each module may import, tried in fresh interpreters."""

import pathlib
import subprocess
import sys

import pytest

PACKAGE = pathlib.Path(__file__).parent.parent / "tpv_jax"
TENSORFLOW = {"tensorflow", "tensorflow_datasets", "seqio", "t5x", "t5"}
JAX = {"jax", "jaxlib", "flax", "optax", "orbax"}
HEAVY = {"torch", "transformers", "sklearn", "matplotlib"}

SEQIO = {"tpv_jax.data.seqio_tasks", "tpv_jax.embedded.seqio_tasks"}

T5X_ROOM = {
  f"tpv_jax.t5x.{name}" for name in ("datasets", "mesh", "restoring", "training")
}
"""What imports T5X, which is not on PyPI; the other modules of its room do not."""

NUMPY_ONLY = (
  *("core", "io", "vectors", "data", "embedded", "formats"),
  "cli",
)
"""Modules and rooms that know no JAX either."""


def modules():
  """Every module of the package but those that exist to import seqio or T5X."""
  for path in sorted(PACKAGE.rglob("*.py")):
    parts = path.relative_to(PACKAGE.parent).with_suffix("").parts
    name = ".".join(parts[:-1] if parts[-1] == "__init__" else parts)
    if name not in SEQIO | T5X_ROOM:
      yield name


def loaded_by(*names):
  """Returns the top-level packages that importing the modules loads."""
  return set(
    behind(names, "print(*{name.split('.')[0] for name in sys.modules})").split()
  )


def behind(names, line):
  """Returns what a line prints in a fresh process that has imported the modules."""
  code = (
    "import importlib, logging, sys\n"
    f"for name in {names!r}: importlib.import_module(name)\n{line}"
  )
  done = subprocess.run(
    [sys.executable, "-c", code], capture_output=True, text=True, check=False
  )
  assert done.returncode == 0, done.stderr
  return done.stdout


def test_no_module_but_the_seqio_room_imports_tensorflow_or_seqio():
  # One interpreter for all of them: if none loads it, no single one does.
  assert not loaded_by(*modules()) & TENSORFLOW


@pytest.mark.parametrize("name", ["tpv_jax.model", "tpv_jax.backbones.t5.network"])
def test_the_model_imports_jax_but_neither_tensorflow_nor_torch(name):
  loaded = loaded_by(name)
  assert "jax" in loaded
  assert not loaded & (TENSORFLOW | HEAVY)


def test_the_numpy_rooms_import_neither_jax_nor_anything_heavy():
  names = [
    name
    for name in modules()
    if name.split(".")[1:2] and name.split(".")[1] in NUMPY_ONLY
  ]
  assert {f"tpv_jax.{room}" for room in NUMPY_ONLY} <= set(names)
  # etils and fsspec, for gs:// paths only, would cost a quarter of the start of `tpv`.
  assert not loaded_by(*names) & (TENSORFLOW | JAX | HEAVY | {"etils", "fsspec"})


def test_the_t5x_room_leaves_t5xs_log_as_it_is():
  names = [name for name in modules() if name.startswith("tpv_jax.t5x")]
  level = behind(names, "print(logging.getLogger('absl').getEffectiveLevel())")
  assert int(level) <= 30  # WARNING


def test_importing_the_package_alone_loads_no_library():
  assert not loaded_by("tpv_jax") & (TENSORFLOW | JAX | HEAVY | {"numpy"})

"""What `import tpv_jax` gives, and when."""

import ast
import inspect
import pathlib
import subprocess
import sys

import numpy as np
import pytest

import tpv_jax as tpv
from tpv_jax.vectors.provenance import Provenance

SOURCE = pathlib.Path(tpv.__file__).read_text()


def test_every_public_name_is_there_and_documented():
  for name in tpv.__all__:
    found = getattr(tpv, name)
    assert name == "__version__" or inspect.getdoc(found), name
  assert set(tpv.__all__) <= set(dir(tpv))
  with pytest.raises(AttributeError, match="no attribute 'diffs'"):
    _ = tpv.diffs


def test_type_checkers_are_told_the_same_names_from_the_same_places():
  (told,) = (node for node in ast.parse(SOURCE).body if isinstance(node, ast.If))
  imports = {
    alias.asname: node.module.removeprefix("tpv_jax.")
    for node in told.body
    for alias in node.names
    if alias.asname == alias.name
  }
  assert imports == tpv._PLACES


def test_a_name_loads_what_it_needs_and_no_jax():
  code = (
    "import sys; import tpv_jax as tpv; before = 'numpy' in sys.modules; tpv.diff; "
    "print(before, 'numpy' in sys.modules, 'jax' in sys.modules)"
  )
  done = subprocess.run(
    [sys.executable, "-c", code], capture_output=True, text=True, check=True
  )
  assert done.stdout.split() == ["False", "True", "False"]


def test_vectors_are_saved_loaded_and_added(tmp_path):
  digest = "ab" * 32
  known = {"initial_digest": digest, "backbone_fingerprint": "cd" * 32}
  one, two = (
    tpv.Loaded(
      {"prompt": np.full((2, 3), value, np.float32)},
      Provenance(kind="vector", terms=(tpv.Term(task, 1.0),), **known),
    )
    for task, value in (("a", 1.0), ("b", 2.0))
  )
  tpv.save(tmp_path / "one.safetensors", one)
  both = tpv.sum_vectors([tpv.load(tmp_path / "one.safetensors"), two])
  np.testing.assert_array_equal(both.leaves["prompt"], np.full((2, 3), 3.0))
  with pytest.raises(tpv.UserError, match="exists and was left as it is"):
    tpv.save(tmp_path / "one.safetensors", one)

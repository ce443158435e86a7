"""Every registered prompt method keeps its protocol; one is tested by being registered."""

import dataclasses
import inspect

import jax
import numpy as np
import pytest

from tpv_jax.core import identity
from tpv_jax.core.registry import entry
from tpv_jax.prompts import protocol, registry
from tpv_jax.prompts.equations import Folded
from tpv_jax.training import optimizers
from tpv_jax.vectors import algebra, store
from tpv_jax.vectors.loaded import Loaded
from tpv_jax.vectors.provenance import Provenance, Term, of_leaves

SIZES = {"length": 3, "features": 8, "source_length": 5, "rank": 2}
"""What a module is made with, as far as it takes it."""

pytestmark = pytest.mark.parametrize("name", registry.METHODS)


def module_of(name):
  kind = entry(registry.method(name).module)
  known = inspect.signature(kind).parameters
  return kind(**{size: value for size, value in SIZES.items() if size in known})


def parameters(name):
  """Parameters of a prompt none of which is where it starts."""
  module = module_of(name)
  params = identity.flatten(module.init(jax.random.key(0))["params"])
  rng = np.random.default_rng(0)
  return {
    leaf: np.float32(np.asarray(values) + 0.1 * rng.standard_normal(values.shape))
    for leaf, values in params.items()
  }


def test_both_halves_keep_their_protocols(name):
  assert isinstance(registry.method(name), protocol.Method)
  assert isinstance(module_of(name), protocol.SoftPrompt)


def test_every_parameter_has_axes_and_a_group_of_rates(name):
  variables = module_of(name).init(jax.random.key(0))
  axes = identity.flatten(variables["params_axes"])
  groups = registry.method(name).groups
  for leaf, values in identity.flatten(variables["params"]).items():
    assert len(axes[f"{leaf}_axes"].names) == values.ndim
    assert groups[leaf] in optimizers.GROUPS


def test_names_and_shapes_tell_the_method(name):
  method, leaves = registry.method(name), parameters(name)
  assert registry.of_leaves(leaves) is method
  assert of_leaves(leaves).space == method.space
  assert of_leaves(leaves).method in (*method.names, None)
  shapes = {leaf: values.shape for leaf, values in leaves.items()}
  assert method.shapes(shapes) == shapes


def test_numpy_and_the_module_fold_alike(name):
  leaves = parameters(name)
  module = module_of(name)
  alpha = getattr(module, "alpha", None)
  exact = registry.method(name).fold(leaves, alpha)
  found = jax.jit(lambda params: module.apply({"params": params}))(leaves)
  assert isinstance(found, Folded)
  for ours, expected in zip(found, exact, strict=True):
    if expected is None:
      assert ours is None
    else:
      np.testing.assert_allclose(ours, expected, rtol=2e-6, atol=2e-6)
      assert expected.dtype == np.float32
  assert exact.prompt.shape == (SIZES["length"], SIZES["features"])


def test_a_start_becomes_its_parameters_and_folds_back_to_its_rows(name):
  rng = np.random.default_rng(1)
  start = rng.standard_normal((SIZES["length"], SIZES["features"])).astype(np.float32)
  module, method = module_of(name), registry.method(name)
  leaves = module.initial_leaves(start, seed=0)
  assert leaves.keys() == parameters(name).keys()
  again = module.initial_leaves(start, seed=0)
  for leaf, values in leaves.items():
    assert values.dtype == np.float32
    assert values.tobytes() == again[leaf].tobytes()
  folded = method.fold(leaves, getattr(module, "alpha", None))
  np.testing.assert_allclose(folded.prompt, start, atol=1e-6)


def test_a_file_of_it_is_read_folded_and_subtracted(name, tmp_path):
  module, leaves = module_of(name), parameters(name)
  start = module.initial_leaves(
    np.ones((SIZES["length"], SIZES["features"]), np.float32), seed=0
  )
  known = Provenance(
    kind="prompt",
    initial_digest=identity.prompt_digest(start),
    steps=3,
    terms=(Term(None, 1.0),),
    **{"method": registry.method(name).names[0], **module.provenance(start)},
  )
  store.write(tmp_path / "tuned.safetensors", leaves, known)
  tuned = Loaded(*store.read(tmp_path / "tuned.safetensors"))
  folded = algebra.fold(tuned)
  assert folded.provenance.space == "effective"
  first = dataclasses.replace(known, steps=0, terms=())
  vector = algebra.diff(tuned, Loaded(start, first), task="one")
  expected = (
    folded.leaves["prompt"] - algebra.fold(Loaded(start, first)).leaves["prompt"]
  )
  np.testing.assert_array_equal(vector.leaves["prompt"], expected)

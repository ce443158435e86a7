"""T5X itself restores what is converted for it, and computes Hugging Face's numbers."""

import pathlib
import tempfile
import types

import hf_references as references
import jax
import numpy as np
import pytest

from tpv_jax.backbones import conversion, loading
from tpv_jax.core import identity

FAMILIES = ("t5", "t5_1_1")


def converted(family, root):
  """Returns a T5X checkpoint made of a family's folder of Hugging Face."""
  folder = references.write_folder(root / family, family)
  path = root / "t5x" / "checkpoint_7"
  with conversion.planned(folder, "t5x") as plan:
    conversion.convert(plan, folder, path, lambda doing, size: None)
  return path


def t5x_state(family, optimizer=None):
  """Returns T5X's own network and a state of it with random parameters."""
  import flax
  from t5x import train_state
  from t5x.examples.t5 import network

  numbers = references.numbers(family)
  module = network.Transformer(network.T5Config(**numbers, dropout_rate=0.0))
  token = np.ones((1, 2), np.int32)
  variables = flax.core.freeze(
    module.init(jax.random.key(0), token, token, token, enable_dropout=False)
  )
  if optimizer is None:
    return module, train_state.InferenceState.create(variables)
  return module, train_state.FlaxOptimTrainState.create(optimizer, variables)


def restored(path, state, **settings):
  """Returns the state that T5X restores."""
  from t5x import partitioning, utils

  given = types.SimpleNamespace(
    global_train_state_shape=jax.eval_shape(lambda: state),
    from_scratch=lambda rng: state,
  )
  partitioner = partitioning.PjitPartitioner(
    num_partitions=None, model_parallel_submesh=(1, 1, 1, 1)
  )
  config = utils.RestoreCheckpointConfig(
    path=str(path), mode="specific", dtype="float32", **settings
  )
  found, manager = utils.create_checkpoint_manager_and_restore(
    given, partitioner, config, str(path), jax.random.PRNGKey(0), use_orbax=True
  )
  manager.close()
  return found


def distance(family, module, params):
  """Returns how far T5X's logits are from Hugging Face's, relative to the largest."""
  arrays = references.case(family, "padded")
  targets = arrays["decoder_target_tokens"]
  logits = module.apply(
    {"params": params},
    arrays["encoder_input_tokens"],
    arrays["decoder_input_tokens"],
    targets,
    enable_dropout=False,
  )
  real = (targets > 0)[..., None]
  difference = np.abs((logits - arrays["logits"]) * real).max()
  return float(difference / np.abs(arrays["logits"] * real).max())


def parity_rows():
  """Returns (implementation, case, largest relative difference) for each comparison."""
  rows = []
  with tempfile.TemporaryDirectory() as root:
    for family in FAMILIES:
      path = converted(family, pathlib.Path(root))
      module, state = t5x_state(family)
      found = distance(family, module, restored(path, state).params)
      rows.append(
        (f"T5X's network ({family})", "logits of the converted weights", found)
      )
      path.rename(pathlib.Path(root) / f"done_{family}")
  return rows


@pytest.mark.usefixtures("t5x")
@pytest.mark.parametrize("family", FAMILIES)
def test_t5x_computes_hugging_faces_logits_with_converted_weights(tmp_path, family):
  path = converted(family, tmp_path)
  module, state = t5x_state(family)
  found = restored(path, state)
  assert int(found.step) == 7
  assert distance(family, module, found.params) < 1e-5


@pytest.mark.usefixtures("t5x")
def test_t5x_fine_tunes_from_converted_weights(tmp_path):
  from t5x import adafactor

  path = converted("t5_1_1", tmp_path)
  rules = adafactor.standard_logical_factor_rules()
  optimizer = adafactor.Adafactor(decay_rate=0.8, logical_factor_rules=rules)
  module, state = t5x_state("t5_1_1", optimizer)
  # As for any checkpoint without the state of this optimizer: it starts afresh.
  fresh = {"fallback_to_scratch": True, "assignment_map": ((r"state/.*", None),)}
  found = restored(path, state, **fresh)
  assert int(found.step) == 0
  assert distance("t5_1_1", module, found.params) < 1e-5


@pytest.mark.usefixtures("t5x")
@pytest.mark.parametrize("use_orbax", [True, False], ids=["orbax", "legacy"])
def test_what_t5x_writes_is_read_bit_by_bit(tmp_path, use_orbax):
  from t5x import checkpoints, partitioning

  partitioner = partitioning.PjitPartitioner(
    num_partitions=None, model_parallel_submesh=(1, 1, 1, 1)
  )
  _, state = t5x_state("t5_1_1")
  if use_orbax:
    manager = checkpoints.OrbaxCheckpointManagerInterface(
      str(tmp_path), state, partitioner, save_dtype="float32"
    )
    manager.save(state)
    manager.close()
  else:
    checkpoints.Checkpointer(state, partitioner, str(tmp_path)).save(state)
  leaves = identity.flatten(loading.load_backbone(tmp_path / "checkpoint_0").params)
  expected = identity.flatten(dict(state.params))
  assert leaves.keys() == expected.keys()
  for path, leaf in leaves.items():
    assert np.array_equal(leaf, np.asarray(expected[path])), path


def test_training_under_t5x_starts_from_a_folder_of_hugging_face(
  tiny, tiny_file, under_t5x, tmp_path
):
  folder = tmp_path / "model"
  with conversion.planned(tiny_file, "hugging-face") as plan:
    conversion.convert(plan, tiny_file, folder, lambda doing, size: None)
  params = identity.flatten(under_t5x(tmp_path / "run", backbone=folder).state().params)
  for path, leaf in identity.flatten(tiny.backbone.params).items():
    assert np.array_equal(params[path], leaf), path

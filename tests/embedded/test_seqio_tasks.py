import numpy as np
import pytest

from tpv_jax.data import batches, vocabularies
from tpv_jax.embedded import suite

seqio = pytest.importorskip("seqio", reason="seqio is not installed (extra 'data')")

from tpv_jax.embedded import seqio_tasks  # noqa: E402


def dataset(name, split, size):
  """Batches as T5X makes them."""
  rows = seqio.get_mixture_or_task(name).get_dataset(
    suite.LENGTHS, split, shuffle=False
  )
  return seqio.EncDecFeatureConverter(pack=False)(rows, suite.LENGTHS).batch(size)


@pytest.mark.parametrize("name", suite.TASKS)
def test_both_roads_give_the_embedded_suite_token_by_token(name):
  split = "validation"
  tokenized = batches.tokenize(
    suite.task(name).examples(split), vocabularies.embedded(), suite.LENGTHS
  )
  size = len(tokenized)
  (ours,) = batches.eval_batches(tokenized, size)
  (theirs,) = dataset(f"tpv_embedded_{name}", split, size).as_numpy_iterator()
  assert theirs.keys() == ours.keys()
  for feature, value in ours.items():
    np.testing.assert_array_equal(theirs[feature], value, err_msg=feature)


def test_importing_registers_the_suite_and_again_changes_nothing():
  names = seqio_tasks.register()
  assert names == tuple(f"tpv_embedded_{name}" for name in suite.TASKS)
  assert set(names) <= seqio.TaskRegistry.names()


def test_tasks_of_the_suite_can_be_mixed():
  names = seqio_tasks.register()[:2]
  seqio.MixtureRegistry.add("tpv_mixture", names, default_rate=1.0)
  try:
    batch = next(dataset("tpv_mixture", "validation", 3).as_numpy_iterator())
    assert batch["encoder_input_tokens"].shape == (3, suite.LENGTHS["inputs"])
  finally:
    seqio.MixtureRegistry.remove("tpv_mixture")

"""The training examples of a T5X run that continues."""

import numpy as np
import pytest

from tpv_jax.data import suite, vocabularies


@pytest.fixture
def batches(t5x, tmp_path):
  """Returns the first batches for a run in whose folder `done` steps were saved."""
  import seqio
  from t5x import utils

  from tpv_jax.t5x import datasets, tasks

  config = utils.DatasetConfig(
    mixture_or_task_name=tasks.registered(suite.task("topic"), vocabularies.embedded()),
    task_feature_lengths=suite.LENGTHS,
    split="train",
    batch_size=4,
    shuffle=True,
    seed=7,
    use_cached=False,
    pack=False,
  )

  def first(count, done):
    folder = tmp_path / f"run_{done}"
    for step in range(0, done + 1, 2) if done else ():
      (folder / f"checkpoint_{step}").mkdir(parents=True)
    folder.mkdir(exist_ok=True)
    rows = datasets.get_dataset(
      config, 0, 1, seqio.EncDecFeatureConverter, model_dir=str(folder)
    )
    return [
      batch["encoder_input_tokens"] for batch in rows.take(count).as_numpy_iterator()
    ]

  return first


def test_a_run_that_goes_on_sees_the_examples_it_would_have_seen(batches):
  unbroken = batches(6, done=0)
  assert not np.array_equal(unbroken[0], unbroken[4])
  np.testing.assert_array_equal(batches(2, done=4), unbroken[4:])

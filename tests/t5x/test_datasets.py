"""The examples of a T5X job: those of a run that continues, and what is cut off."""

from unittest import mock

import numpy as np
import pytest

from tpv_jax.data import vocabularies
from tpv_jax.embedded import suite


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


@pytest.mark.parametrize("most", [3, 60])
def test_the_log_says_how_many_texts_are_trimmed(t5x, most):
  from absl import logging
  from t5x import utils

  from tpv_jax.t5x import datasets, tasks

  vocabulary, task = vocabularies.embedded(), suite.task("topic")
  config = utils.DatasetConfig(
    mixture_or_task_name=tasks.registered(task, vocabulary),
    task_feature_lengths={"inputs": most, "targets": 4},
    split="validation",
    batch_size=4,
    shuffle=False,
    seed=7,
  )
  with mock.patch.object(logging, "log") as log:
    assert datasets.report_trimmed(config) is config
  level, text = log.call_args_list[0].args
  sizes = [len(vocabulary.encode(x.inputs)) + 1 for x in task.examples("validation")]
  cut, longest = sum(size > most for size in sizes), max(sizes)
  assert f"{cut} of the first {len(sizes)} are trimmed to {most} tokens" in text
  assert f"the longest has {longest}" in text
  assert level == (logging.WARNING if cut else logging.INFO)


def test_a_run_that_goes_on_sees_the_examples_it_would_have_seen(batches):
  unbroken = batches(6, done=0)
  assert not np.array_equal(unbroken[0], unbroken[4])
  np.testing.assert_array_equal(batches(2, done=4), unbroken[4:])

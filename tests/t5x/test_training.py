"""T5X's trainer of ours: where it stops at SIGTERM, and where it goes on."""

import os
import signal

import jax
import numpy as np
import pytest

from tpv_jax.training import optimizers


@pytest.fixture
def trainers(under_t5x, tmp_path):
  """Makes trainers of runs with these names, for which SIGTERM is caught."""
  found = signal.signal(signal.SIGTERM, signal.SIG_DFL)
  made = []

  def make(name):
    trainer = under_t5x(tmp_path / name).trainer(optimizers.constant(0.3))
    made.append(trainer)
    return trainer

  yield make
  for trainer in made:
    trainer.close()
  signal.signal(signal.SIGTERM, found)


def batches(tiny, first=0, sigterm_at=None):
  """Yields the batches from a step on; SIGTERM comes before the one of `sigterm_at`."""
  data = tiny.data()
  for step in range(first, 100):
    if step == sigterm_at:
      os.kill(os.getpid(), signal.SIGTERM)
    yield data.batch_at(step)


def prompt_of(trainer):
  leaves = trainer.train_state.params["prompt"]
  return [np.asarray(leaf) for leaf in jax.tree.leaves(leaves)]


def step_of(trainer):
  return int(trainer.train_state.step)


def test_sigterm_ends_training_after_a_step_whose_state_goes_on_as_if_it_had_not_come(
  trainers, tiny
):
  from t5x.trainer import PreemptionError

  whole = trainers("whole")
  whole.train(batches(tiny), 10, start_step=0).result()
  whole.close()
  stopped = trainers("stopped")
  with pytest.raises(
    PreemptionError, match="by SIGTERM after step 4; the same command"
  ):
    stopped.train(batches(tiny, sigterm_at=3), 10, start_step=0)
  assert step_of(stopped) == 4
  again = trainers("again")
  saved = stopped.train_state.state_dict()
  again.train_state = again.train_state.restore_state(saved)
  # T5X, which was told of step 0, asks for all ten steps.
  summary = again.train(batches(tiny, first=4), 10, start_step=0).result()
  assert step_of(again) == 10
  assert summary["loss"].value > 0
  for left, right in zip(prompt_of(again), prompt_of(whole), strict=True):
    np.testing.assert_array_equal(left, right)


def test_sigterm_at_the_last_step_asked_for_lets_t5x_evaluate_and_save_first(
  trainers, tiny
):
  from t5x.trainer import PreemptionError

  trainer = trainers("run")
  trainer.train(batches(tiny, sigterm_at=4), 5, start_step=0).result()
  assert step_of(trainer) == 5
  with pytest.raises(PreemptionError, match="after step 6"):
    trainer.train(batches(tiny, first=5), 5, start_step=5)
  assert step_of(trainer) == 6


def test_a_part_whose_steps_are_all_done_trains_nothing(trainers, tiny):
  trainer = trainers("run")
  trainer.train(batches(tiny), 5, start_step=0).result()
  before = prompt_of(trainer)
  assert trainer.train(iter(()), 3, start_step=0).result() == {}
  assert step_of(trainer) == 5
  for left, right in zip(prompt_of(trainer), before, strict=True):
    np.testing.assert_array_equal(left, right)


def test_the_state_has_the_step_of_its_checkpoint_though_t5x_was_told_an_earlier_one(
  under_t5x, tiny, tmp_path, monkeypatch
):
  from t5x import utils

  from tpv_jax.t5x import preemption, saving, training

  made = under_t5x(tmp_path / "run")
  trainer = made.trainer(optimizers.constant(0.3))
  trainer.train(batches(tiny), 3).result()
  manager = made.manager()
  manager.save(trainer.train_state, [saving.KeepOnlyTrainable()])
  manager.close()
  trainer.close()
  monkeypatch.setattr(preemption, "last_boundary", lambda step: step - step % 2)
  again = under_t5x(tmp_path / "run")
  restored, manager = utils.create_checkpoint_manager_and_restore(
    again.initializer,
    again.partitioner,
    utils.RestoreCheckpointConfig(path=str(tmp_path / "run"), mode="latest"),
    str(tmp_path / "run" / "checkpoint_3"),
    None,
    use_orbax=True,
  )
  manager.close()
  assert int(restored.step) == 2  # From there on T5X counts.
  trainer = training.Trainer(
    model=again.model,
    train_state=restored,
    partitioner=again.partitioner,
    train_state_axes=again.initializer.train_state_axes,
    eval_names=[],
    summary_dir=str(tmp_path / "run"),
    rng=jax.random.PRNGKey(1),
    learning_rate_fn=optimizers.constant(0.3),
    num_microbatches=None,
  )
  assert step_of(trainer) == 3
  assert restored.step.dtype == trainer.train_state.step.dtype
  trainer.close()

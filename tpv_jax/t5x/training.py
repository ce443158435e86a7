"""T5X's trainer, with micro-batches that leave the loss and its gradient as they are."""

import functools
import itertools
import signal
import types
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from t5x import trainer, utils

from tpv_jax import t5x
from tpv_jax.core import identity
from tpv_jax.core.checks import Steps
from tpv_jax.core.errors import Interrupted, UserError
from tpv_jax.model import SoftPromptModel, divisor
from tpv_jax.t5x import datasets, preemption, profiling, saving
from tpv_jax.training.signals import told


class Stopped(Interrupted, trainer.PreemptionError):
  """SIGTERM asked the run to stop; T5X saves the trainer's state."""


class Trainer(trainer.Trainer):
  """T5X's trainer for a loss that is a mean over the target tokens of the whole batch.

  T5X adds up the gradients of the micro-batches' losses. Here each of these losses is
  its sum over target tokens divided by the number of target tokens of the whole batch,
  so that their sum is the mean, however the tokens are spread over the micro-batches.
  Gradients are computed only for trained leaves; T5X would compute those of every leaf.

  SIGTERM ends training after a step, whose state T5X then saves (see `preemption`).
  """

  train_state: Any
  _compiled_train_step: Any

  def __init__(
    self, *args: Any, profile_steps: Sequence[Steps] | None = None, **kwargs: Any
  ):
    """Takes the arguments of T5X's trainer, and the first and last step to trace.

    A continued run starts at the step of its last save, whatever the state's step is.
    """
    super().__init__(*args, **kwargs)
    self._notice = preemption.Notice()
    self._start_at(datasets.steps_done(kwargs.get("summary_dir")))
    self._profile = profile_steps and profiling.Profile(
      profile_steps, kwargs["summary_dir"]
    )
    if self._weight_metrics_computer is not None:
      raise UserError(
        "weight_metrics_computer needs the gradients of the whole frozen backbone, at the "
        "cost of full fine-tuning. Leave it None."
      )

  def train(
    self, batch_iter: Iterator[Any], num_steps: int, start_step: int | None = None
  ) -> Any:
    """Trains up to step `start_step + num_steps`, skipping the steps that are done.

    Traces the steps of PROFILE_STEPS.

    Raises:
      Stopped: SIGTERM came; `train_state` is the state after the last step. It is not
        raised at the last of these steps, where T5X may evaluate and save, but one later.
    """
    done = _step_of(self.train_state)
    end = (done if start_step is None else start_step) + num_steps
    if end <= done:
      self.train_metrics_manager.start_duration_timer()
      return self.train_metrics_manager.write_metrics_summary({}, end, 0)
    if self._profile:
      batch_iter = self._profile.watch(batch_iter, done)
    compiled = self._compiled_train_step
    train_step = compiled or self._partitioned_train_step
    steps = itertools.count(done + 1)

    def watched(state: Any, batch: Any) -> Any:
      state, metrics = train_step(state, batch)
      step = next(steps)
      if self._notice.came() and step < end:
        self.train_state = state  # The previous state was donated.
        self.close()  # T5X does not close it, and buffered metrics would be lost.
        t5x.leaving.callback(jax.distributed.shutdown)
        when = f"after step {step}"
        raise Stopped(signal.SIGTERM, told(signal.SIGTERM, when))
      return state, metrics

    self._compiled_train_step = watched
    try:
      return super().train(batch_iter, end - done, done)
    finally:
      self._compiled_train_step = compiled

  def eval(self, batch_iters: Mapping[str, Iterator[Any]]) -> saving.Evaluated:
    """Returns the metrics of each task, and the prompt that was evaluated."""
    prompt = saving.prompt_leaves(self.train_state.params)  # All hosts take part.
    return saving.Evaluated(super().eval(batch_iters), prompt)

  def close(self) -> None:
    """Ends the trace and the trainer, and restores SIGTERM's default action."""
    self._notice.close()
    if self._profile:
      self._profile.stop()
    super().close()

  def _start_at(self, done: int) -> None:
    """Restores the state's step where `Initializer` gave T5X an earlier one."""
    state = self.train_state
    if state is not None and done > _step_of(state):
      self.train_state = preemption.at_step(state, done, self._partitioner.mesh)

  @functools.cached_property
  def _partitioned_train_step(self) -> Any:
    def train_step(train_state: Any, batch: dict[str, jax.Array]) -> Any:
      trainable, frozen = self._model.split(train_state.params)
      folded, back = self._model.fold_once(trainable, frozen)
      gradients, metrics, _ = trainer.accumulate_grads_microbatched(
        _PartOfBatch(self._model, frozen, self._model.weight_sums(batch)),
        types.SimpleNamespace(params=folded, flax_mutables=None),
        batch,
        self._get_step_rng(train_state.step),
        self._num_microbatches,
        self._partitioner.data_partition_spec,
      )
      return trainer.apply_grads(
        train_state,
        identity.unflatten(back(gradients)),
        metrics,
        self._learning_rate_fn(train_state.step),
        weight_metrics_computer=None,
      )

    return self._partitioner.partition(
      train_step,
      in_axis_resources=(
        self._train_state_axes,
        self._partitioner.data_partition_spec,
      ),
      out_axis_resources=(self._train_state_axes, None),
      donate_argnums=(0,),
    )


def evaluates_first(model_dir: str) -> bool:
  """Returns whether a run in this folder begins with the evaluation of its last save.

  T5X saves before it evaluates: a run that was killed between the two lacks that
  evaluation, and perhaps the best prompt. A run that had made it gets the same again.
  """
  return preemption.is_evaluated(datasets.steps_done(model_dir))


def _step_of(state: Any) -> int:
  return int(utils.get_local_data(state.step))


class _PartOfBatch:
  """The model's loss on a part of a batch, as a function of `fold_once`'s result.

  `total` is the sum of the whole batch's weights, in a bank one for each prompt.
  """

  def __init__(self, model: SoftPromptModel, frozen: dict[str, Any], total: jax.Array):
    self._model = model
    self._frozen = frozen
    self._total = divisor(total)

  def loss_fn(self, folded: Any, batch: Any, dropout_rng: Any) -> Any:
    prompt, others = folded
    params = self._model.merge(others, self._frozen)
    loss_sum, _, metrics = self._model.loss_sums(params, batch, dropout_rng, prompt)
    return jnp.sum(loss_sum / self._total), metrics

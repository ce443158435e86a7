"""T5X's trainer, with micro-batches that leave the loss and its gradient as they are."""

import functools
import types
from collections.abc import Iterator, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from t5x import trainer

from tpv_jax import identity
from tpv_jax.checks import Steps
from tpv_jax.errors import UserError
from tpv_jax.model import SoftPromptModel
from tpv_jax.t5x import profiling


class Trainer(trainer.Trainer):
  """T5X's trainer for a loss that is a mean over the target tokens of the whole batch.

  T5X adds up the gradients of the micro-batches' losses. Here each of these losses is
  its sum over target tokens divided by the number of target tokens of the whole batch,
  so that their sum is the mean, however the tokens are spread over the micro-batches.
  Gradients exist for what is trained only; T5X would add up one of every leaf.
  """

  def __init__(
    self, *args: Any, profile_steps: Sequence[Steps] | None = None, **kwargs: Any
  ):
    """Takes what T5X's trainer takes, and the first and last step to be traced."""
    super().__init__(*args, **kwargs)
    self._profile = profile_steps and profiling.Profile(
      profile_steps, kwargs["summary_dir"]
    )
    if self._weight_metrics_computer is not None:
      raise UserError(
        "weight_metrics_computer wants the gradients of the whole frozen backbone, at the "
        "cost of full fine-tuning. Leave it None."
      )

  def train(
    self, batch_iter: Iterator[Any], num_steps: int, start_step: int | None = None
  ) -> Any:
    """Trains, as T5X's trainer does, and traces the steps that were asked for."""
    if self._profile:
      done = int(self.train_state.step) if start_step is None else start_step
      batch_iter = self._profile.watch(batch_iter, done)
    return super().train(batch_iter, num_steps, start_step)

  def close(self) -> None:
    """Ends what was begun."""
    if self._profile:
      self._profile.stop()
    super().close()

  @functools.cached_property
  def _partitioned_train_step(self) -> Any:
    def train_step(train_state: Any, batch: dict[str, jax.Array]) -> Any:
      trainable, frozen = self._model.split(train_state.params)
      gradients, metrics, _ = trainer.accumulate_grads_microbatched(
        _PartOfBatch(self._model, frozen, self._model.weight_sums(batch)),
        types.SimpleNamespace(params=trainable, flax_mutables=None),
        batch,
        self._get_step_rng(train_state.step),
        self._num_microbatches,
        self._partitioner.data_partition_spec,
      )
      return trainer.apply_grads(
        train_state,
        identity.unflatten(gradients),
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


class _PartOfBatch:
  """The model's loss, of the trainable leaves, on a part of a batch.

  The weights of the whole batch add up to `total`, in a bank to one for each prompt.
  """

  def __init__(self, model: SoftPromptModel, frozen: dict[str, Any], total: jax.Array):
    self._model = model
    self._frozen = frozen
    self._total = jnp.maximum(total, 1.0)

  def loss_fn(self, trainable: dict[str, Any], batch: Any, dropout_rng: Any) -> Any:
    params = self._model.merge(trainable, self._frozen)
    loss_sum, _, metrics = self._model.loss_sums(params, batch, dropout_rng)
    return jnp.sum(loss_sum / self._total), metrics

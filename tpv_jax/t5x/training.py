"""T5X's trainer, with micro-batches that leave the loss and its gradient as they are."""

import functools
from typing import Any

import jax
import jax.numpy as jnp
from t5x import trainer

from tpv_jax.errors import UserError
from tpv_jax.model import SoftPromptModel


class Trainer(trainer.Trainer):
  """T5X's trainer for a loss that is a mean over the target tokens of the whole batch.

  T5X adds up the gradients of the micro-batches' losses. Here each of these losses is
  its sum over target tokens divided by the number of target tokens of the whole batch,
  so that their sum is the mean, however the tokens are spread over the micro-batches.
  """

  def __init__(self, *args: Any, **kwargs: Any):
    """Takes what T5X's trainer takes."""
    super().__init__(*args, **kwargs)
    if self._weight_metrics_computer is not None:
      raise UserError(
        "weight_metrics_computer would keep the gradients of the whole frozen backbone "
        "alive, at the cost of full fine-tuning. Leave it None."
      )

  @functools.cached_property
  def _partitioned_train_step(self) -> Any:
    def train_step(train_state: Any, batch: dict[str, jax.Array]) -> Any:
      return trainer.train_with_lr(
        train_state,
        batch,
        learning_rate=self._learning_rate_fn(train_state.step),
        dropout_rng=self._get_step_rng(train_state.step),
        model=_PartOfBatch(self._model, jnp.sum(batch["decoder_loss_weights"])),
        num_microbatches=self._num_microbatches,
        data_partition_spec=self._partitioner.data_partition_spec,
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
  """The model's loss on a part of a batch whose weights add up to `total`."""

  def __init__(self, model: SoftPromptModel, total: jax.Array):
    self._model = model
    self._total = jnp.maximum(total.astype(jnp.float32), 1.0)

  def loss_fn(self, params: Any, batch: Any, dropout_rng: Any) -> Any:
    loss_sum, _, metrics = self._model.loss_sums(params, batch, dropout_rng)
    return loss_sum / self._total, metrics

"""The training examples of a T5X run, from the step on at which it continues."""

from collections.abc import Callable
from typing import Any

from t5x import checkpoints, utils


def get_dataset(
  cfg: utils.DatasetConfig,
  shard_id: int,
  num_shards: int,
  feature_converter_cls: Callable[..., Any],
  num_epochs: int | None = None,
  continue_from_last_checkpoint: bool = False,
  *,
  model_dir: str,
) -> Any:
  """Returns T5X's batches of this host, without those of the steps done in `model_dir`.

  seqio's order depends on the seed alone, so a run that goes on sees what it would have
  seen. The batches left out are read again, tokenised and dropped. (T5X can save the
  place in the data instead, but restores it on the first host of each data-parallel
  group only: where a model spans hosts, the others would start from the first batch.)
  """
  batches = utils.get_dataset(
    cfg,
    shard_id,
    num_shards,
    feature_converter_cls,
    num_epochs,
    continue_from_last_checkpoint,
  )
  done = max(checkpoints.all_steps(model_dir), default=0)
  return batches.skip(done) if done else batches

"""The examples of a T5X job: what is trimmed, where a run continues, a bank's batches."""

import dataclasses
import functools
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import seqio
import tensorflow as tf
from absl import logging
from t5x import checkpoints, utils

from tpv_jax.core.errors import UserError
from tpv_jax.devices import processes
from tpv_jax.t5x.bank import Member

COUNTED = 10_000
"""The number of examples among which the trimmed ones are counted for the log."""


def report_trimmed(cfg: utils.DatasetConfig) -> utils.DatasetConfig:
  """Returns the configuration, and logs how many texts are trimmed to its lengths.

  Process 0 reads and counts the first `COUNTED` examples of the split.
  """
  if processes.is_writer():
    lengths = {name: n for name, n in (cfg.task_feature_lengths or {}).items() if n}
    _report(cfg.mixture_or_task_name, cfg.split, tuple(lengths.items()), cfg.use_cached)
  return cfg


@functools.cache  # A bank asks for each of its prompts.
def _report(
  task: str, split: str, lengths: tuple[tuple[str, int], ...], use_cached: bool
) -> None:
  examples = seqio.get_mixture_or_task(task).get_dataset(
    None, split, use_cached=use_cached, shuffle=False
  )
  sizes = examples.take(COUNTED).map(
    lambda row: [tf.size(row[key]) for key, _ in lengths]
  )
  found = np.array([*sizes.as_numpy_iterator()]).reshape(-1, len(lengths))
  for (feature, most), column in zip(lengths, found.T, strict=True):
    cut = (column > most).sum()
    logging.log(
      logging.WARNING if cut else logging.INFO,
      f"{feature} of '{task}' ({split}): {cut} of the first {len(column)} are trimmed to "
      f"{most} tokens; the longest has {max(column, default=0)}.",
    )


def steps_done(model_dir: str | None) -> int:
  """Returns the step of the newest checkpoint in a run's folder, 0 without one."""
  return max(checkpoints.all_steps(model_dir), default=0) if model_dir else 0


def get_dataset(
  cfg: utils.DatasetConfig,
  shard_id: int,
  num_shards: int,
  feature_converter_cls: Callable[..., Any],
  num_epochs: int | None = None,
  continue_from_last_checkpoint: bool = False,
  *,
  model_dir: str,
  members: Sequence[Member] | None = None,
) -> Any:
  """Returns T5X's batches of this host, without those of the steps done in `model_dir`.

  seqio's order depends only on the seed, so a continued run sees the examples of an
  unbroken one. The skipped batches are read again, tokenised and dropped. (T5X can save
  the place in the data instead, but restores it only on the first host of each
  data-parallel group: where a model spans hosts, the others would start from the first
  batch.)

  With the `members` of a bank, each batch concatenates one batch of each member's own
  run, with `prompt_ids` beside T5X's features. `cfg` then has the rows of all members.
  """
  done = steps_done(model_dir)

  def of_one(cfg: utils.DatasetConfig) -> Any:
    batches = utils.get_dataset(
      report_trimmed(cfg),
      shard_id,
      num_shards,
      feature_converter_cls,
      num_epochs,
      continue_from_last_checkpoint,
    )
    return batches.skip(done) if done else batches

  if members is None:
    return of_one(cfg)
  return _side_by_side([of_one(one) for one in _of_members(cfg, members, num_shards)])


def get_evaluation_datasets(
  cfg: utils.DatasetConfig,
  shard_id: int,
  num_shards: int,
  eval_steps: int,
  feature_converter_cls: Callable[..., Any],
  *,
  members: Sequence[Member],
) -> Mapping[str, Any]:
  """Returns the validation batches of a bank, `eval_steps` of each member, concatenated.

  Raises:
    UserError: a member's mixture does not have one task with this split.
  """
  found = []
  for member, one in zip(members, _of_members(cfg, members, num_shards), strict=True):
    datasets = utils.get_training_eval_datasets(
      dataclasses.replace(one, seed=cfg.seed),
      shard_id,
      num_shards,
      eval_steps,
      feature_converter_cls,
    )
    if len(datasets) != 1:
      raise UserError(
        f"A bank under T5X validates each prompt on one task, and '{member.mixture}', of "
        f"the prompt '{member.name}', has {len(datasets)} with the split '{cfg.split}'. "
        "Name single tasks that have it, or train without validation: "
        "train_script.train.train_eval_dataset_cfg = None."
      )
    found += datasets.values()
  return {"bank": _side_by_side(found)}


def _of_members(
  cfg: utils.DatasetConfig, members: Sequence[Member], num_shards: int
) -> list[utils.DatasetConfig]:
  """Returns the configuration of each member's own run; `cfg` is that of the bank."""
  share, rest = divmod(cfg.batch_size, len(members))
  if rest or share % num_shards:
    raise UserError(
      f"The {cfg.batch_size} rows of a batch do not divide over {len(members)} prompts "
      f"and {num_shards} hosts. Set BATCH_SIZE, the rows of a prompt, to a multiple of "
      f"{num_shards}."
    )
  return [
    dataclasses.replace(
      cfg, mixture_or_task_name=member.mixture, batch_size=share, seed=member.seed
    )
    for member in members
  ]


def _side_by_side(datasets: Sequence[tf.data.Dataset]) -> tf.data.Dataset:
  """Returns batches that concatenate one batch of each data set, with `prompt_ids`."""

  def join(*batches: Mapping[str, tf.Tensor]) -> dict[str, tf.Tensor]:
    features = {
      name: tf.concat([batch[name] for batch in batches], axis=0) for name in batches[0]
    }
    return features | {"prompt_ids": tf.constant(ids)}

  rows = next(iter(datasets[0].element_spec.values())).shape[0]
  ids = np.repeat(np.arange(len(datasets), dtype=np.int32), rows)
  return tf.data.Dataset.zip(tuple(datasets)).map(join)

"""Few-shot samples of a task, such that a smaller sample is part of a larger one.

The task-vector paper (arXiv 2408.01119) gives the numbers; how examples are drawn is ours
(docs/methods.md, "Few-shot tuning").
"""

import collections
import dataclasses
import functools
from collections.abc import Sequence

from tpv_jax.core.checks import Seed, checked
from tpv_jax.core.errors import UserError, at_least
from tpv_jax.data.batches import order
from tpv_jax.data.tasks import Example, Task

MOST = 1_000
"""The most examples of a few-shot sample."""

BATCH_SIZES = ((25, 2), (250, 8), (MOST, 16))
"""(most examples, batch size), in ascending order: the first row that fits applies."""


def sample(
  examples: Sequence[Example], count: int, seed: int, stratified: bool
) -> tuple[Example, ...]:
  """Returns `count` of the examples; a larger `count` gives the same ones and more.

  They are the first `count` in an order that depends only on the seed. If stratified, the
  order mixes the classes as in docs/methods.md, (9.2), so that in every beginning of it
  each of C classes has its exact share, to within C / 2 examples.

  Args:
    examples: of the training split.
    count: how many to return.
    seed: of the order.
    stratified: whether the targets are classes.
  """
  places = order(len(examples), seed).tolist()
  if stratified:
    sizes = collections.Counter(example.targets for example in examples)
    dealt: collections.Counter[str] = collections.Counter()
    share = {}
    for place in places:
      target = examples[place].targets
      share[place] = (dealt[target] + 0.5) / sizes[target]
      dealt[target] += 1
    places.sort(key=lambda place: share[place])  # Stable: equal shares stay random.
  return tuple(examples[place] for place in places[:count])


@checked
def few_shot(task: Task, shots: int, seed: Seed = 0) -> Task:
  """Returns the task with only `shots` examples of its training split.

  Validation and test stay whole. Tasks with labels are stratified (see `sample`); tasks of
  numbers and free texts are not. The name combines the task's, the number and the seed, as
  in 'sst2_25shot_seed0'; a run's manifest has the digest of the sample as `train_digest`.

  Args:
    task: the task to sample.
    shots: how many examples, from 0 to `MOST`.
    seed: of the sample.

  Raises:
    UserError: `shots` is out of range; when training examples are first used, it is 0 or
      larger than the training split.
  """
  _check(shots)

  @functools.cache
  def train() -> tuple[Example, ...]:
    if not shots:
      raise UserError(
        f"Task '{task.name}' is to be learnt from 0 examples, so there is nothing to "
        "train on. Evaluate the start itself (tpv eval), or set SHOTS to "
        "at least 1."
      )
    examples = task.examples("train")
    if shots > len(examples):
      raise UserError(
        f"Task '{task.name}' has {len(examples)} training examples, of which {shots} "
        f"were asked for. Set SHOTS to at most {len(examples)}."
      )
    return sample(examples, shots, seed, stratified=task.labels is not None)

  return dataclasses.replace(
    task,
    name=f"{task.name}_{shots}shot_seed{seed}",
    load=lambda split: train() if split == "train" else task.examples(split),
  )


def batch_size(shots: int) -> int:
  """Returns the protocol's batch size: 2 up to 25 examples, 8 up to 250, 16 above.

  The paper states 2 for 5 to 25, 8 for 50 to 250 and 16 for 500 to 1,000 examples; the
  sizes for numbers between these are ours.

  Raises:
    UserError: `shots` is out of range.
  """
  _check(shots)
  return next(size for most, size in BATCH_SIZES if shots <= most)


def _check(shots: int) -> None:
  at_least("SHOTS", shots, 0)
  if shots > MOST:
    raise UserError(
      f"SHOTS is {shots}; few-shot learning is defined for 0 to {MOST:,} examples. Train "
      "on the whole task without a few-shot file instead."
    )

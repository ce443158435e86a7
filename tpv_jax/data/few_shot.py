"""A few training examples of a task, drawn so that a smaller draw is part of a larger one.

The task-vector paper (arXiv 2408.01119) says how many; how they are drawn is ours
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
"""The most examples that count as few; more are a training set."""

BATCH_SIZES = ((25, 2), (250, 8), (MOST, 16))
"""(most examples, batch size), in ascending order: the first row that fits counts."""


def sample(
  examples: Sequence[Example], count: int, seed: int, stratified: bool
) -> tuple[Example, ...]:
  """Returns `count` of the examples; a larger `count` gives the same ones and more.

  They are the first `count` of an order that depends on the seed alone. Stratified, the
  classes are dealt out as in docs/methods.md, (9.2), so each of C classes has its exact
  share of every beginning of that order, to within C / 2 examples.

  Args:
    examples: of the training split.
    count: how many.
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
  """Returns the task with `shots` examples of its training split, and no more.

  Validation and test stay whole; nothing is drawn from them. Tasks with labels are
  stratified (see `sample`), numbers and free texts are not. Its name is the task's, the
  number and the seed, as in 'sst2_25shot_seed0'; a run's manifest has the digest of
  the sample as `train_digest`.

  Args:
    task: what is sampled, in either data room.
    shots: how many examples, from 0 to `MOST`.
    seed: of the sample.

  Raises:
    UserError: a number out of range; when examples are first used, one that is larger
      than the training split, or a training split of no examples.
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
    UserError: a number out of range.
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

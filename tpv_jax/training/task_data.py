"""The data of a run: a task, tokenised once, as batches by step."""

from collections import Counter
from collections.abc import Iterable, Sequence
from typing import Any, Protocol, runtime_checkable

from tpv_jax.core.checks import Lengths, Seed, Size, checked
from tpv_jax.core.errors import some
from tpv_jax.data import batches
from tpv_jax.data.batches import Features
from tpv_jax.data.labels import check_task, joined_otherwise
from tpv_jax.data.tasks import Example, Task
from tpv_jax.data.vocabularies import Vocabulary

MOST_COMMON, LONGEST_NAMED = 20, 80
"""How many targets a manifest counts, and how many of their letters it states."""


@runtime_checkable
class TrainingData(Protocol):
  """The contract between a run and its data; batches are pure functions of the step."""

  name: str
  batch_size: int

  def batch_at(self, step: int) -> Features:
    """Returns the training batch of a step, which is the same at every call."""
    ...

  def validation_batches(self) -> Iterable[Features]:
    """Returns the validation batches in order; rows of padding have weight 0."""
    ...

  def losses(self) -> list[str]:
    """Returns a line to show for each split in which tokens were lost or unknown."""
    ...

  def settings(self) -> dict[str, Any]:
    """Returns what must be equal for a run to be continued, without prose."""
    ...

  def describe(self) -> dict[str, Any]:
    """Returns what the manifest states of the data: its settings and what was lost."""
    ...


VALIDATION_EXAMPLES = 250
"""The task-vector paper's number."""


class TaskData:
  """A task's train split in an order drawn by seed, and its first validation examples."""

  @checked
  def __init__(
    self,
    task: Task,
    vocabulary: Vocabulary,
    lengths: Lengths,
    batch_size: Size,
    seed: Seed = 0,
    validation_examples: Size = VALIDATION_EXAMPLES,
    validation_batch_size: Size | None = None,
  ):
    """Tokenises both splits.

    Args:
      task: gives the texts.
      vocabulary: the backbone's.
      lengths: `{'inputs': T, 'targets': L}` in tokens, EOS included.
      batch_size: examples per step.
      seed: of the order of the examples.
      validation_examples: the most that are used.
      validation_batch_size: examples per validation call; `batch_size` by default.

    Raises:
      UserError: an empty split, a target outside the labels, bad lengths, or answers
        that the model cannot write (`labels.check_task`).
    """
    self.name = task.name
    self.recipe = task.recipe
    """How further sources of the task are made; None if it has no recipe."""
    self.batch_size = batch_size
    check_task(task, vocabulary, lengths, ("train", "validation"))
    train = batches.tokenize(task.examples("train"), vocabulary, lengths)
    validating = task.examples("validation")[:validation_examples]
    validation = batches.tokenize(validating, vocabulary, lengths)
    self.batch_at = batches.Batches(train, batch_size, seed).batch_at
    self._validation = list(
      batches.eval_batches(validation, validation_batch_size or batch_size)
    )
    self._losses = [
      f"{task.name}, {split}: {tokenized.report()}"
      for split, tokenized in (("train", train), ("validation", validation))
      if tokenized.sources or tokenized.answers
    ]
    odd = joined_otherwise(
      task.labels or (), vocabulary, task.examples("train")[0].inputs
    )
    if odd:
      self._losses.append(
        f"{task.name}: the tokenizer joins letters of a source with the label "
        f"{some(map(repr, odd))} behind it; here they are encoded apart, so the model "
        "reads other tokens than in its pre-training. Another label word or another end "
        "of the template may score higher"
      )
    self._settings = {
      "task": task.name,
      "lengths": dict(lengths),
      "batch_size": batch_size,
      "seed": seed,
      "train_digest": task.split_digest("train"),
      "validation_digest": task.split_digest("validation"),
      "validation_examples": len(validation),
      "vocabulary": vocabulary.digest,
      # They tell how texts that were too long were cut.
      "train_tokens": train.digest(),
      "validation_tokens": validation.digest(),
    }
    if vocabulary.chat is not None:
      self._settings["chat"] = vocabulary.chat.digest
    self._description = {
      **self._settings,
      "train": train.report(),
      "validation": validation.report(),
      "counts": {
        "train": train.counts() | _targets(task.examples("train")),
        "validation": validation.counts() | _targets(validating),
      },
    }
    if vocabulary.chat is not None:
      self._description["system_text"] = vocabulary.chat.system
    if task.origin is not None:
      self._description["origin"] = dict(task.origin())

  def validation_batches(self) -> Iterable[Features]:
    """Returns the validation batches in order; rows of padding have weight 0."""
    return self._validation

  def losses(self) -> list[str]:
    """Returns a line for each split in which tokens were lost or unknown."""
    return self._losses

  def settings(self) -> dict[str, Any]:
    """Returns sizes and digests."""
    return self._settings

  def describe(self) -> dict[str, Any]:
    """Returns sizes, digests, where the texts come from and what was lost."""
    return self._description


def _targets(examples: Sequence[Example]) -> dict[str, Any]:
  """Returns how often the most common targets are there, and how many others there are."""
  counted = Counter(f"{example.targets:.{LONGEST_NAMED}}" for example in examples)
  # Equally many: in the order of the alphabet, whatever the order of the rows.
  ordered = sorted(counted.items(), key=lambda item: (-item[1], item[0]))
  repeated = [(target, count) for target, count in ordered if count > 1]
  return {
    "different_targets": len(counted),
    "most_common": dict((repeated or ordered[:1])[:MOST_COMMON]),
  }

"""What a task is: named splits of text pairs, its labels and its metric."""

import dataclasses
import hashlib
from collections.abc import Callable, Iterable, Mapping, Sequence

from tpv_jax.data import metrics
from tpv_jax.errors import UserError, near_misses

SPLITS = ("train", "validation", "test")


@dataclasses.dataclass(frozen=True)
class Example:
  """One text-to-text pair, with what some metrics need beside it.

  Attributes:
    inputs: the source.
    targets: the answer that is trained.
    answers: all accepted answers, where there are several (SQuAD); () means the target.
    group: examples of one group are scored together (MultiRC: a question); '' means
      none.
  """

  inputs: str
  targets: str
  answers: tuple[str, ...] = ()
  group: str = ""


@dataclasses.dataclass(frozen=True)
class Task:
  """A task: its name, its label words, its own metric, and its examples.

  Attributes:
    name: one word, used in provenance and file names.
    labels: all allowed targets in their order, or None where the targets are free.
    metric: the name in `metrics.METRICS` that evaluation reports beside the common ones.
    load: gives the examples of a split of `SPLITS`, the same ones at every call. It is
      called at every use: a loader for which that is dear keeps what it read.
  """

  name: str
  labels: tuple[str, ...] | None
  metric: str
  load: Callable[[str], Sequence[Example]]

  def __post_init__(self):
    """Checks the metric's name.

    Raises:
      UserError: there is no such metric.
    """
    metrics.check_name(self.metric)

  def examples(self, split: str) -> tuple[Example, ...]:
    """Returns the examples of `split`, checked.

    Raises:
      UserError: no such split, an empty split, or a target that is not a label.
    """
    if split not in SPLITS:
      raise UserError(
        f"Task '{self.name}' has no split '{split}'; the splits are "
        f"{', '.join(SPLITS)}.{near_misses(split, SPLITS)}"
      )
    examples = tuple(self.load(split))
    if not examples:
      raise UserError(
        f"Split '{split}' of task '{self.name}' is empty, so there is nothing to do "
        "with it. Point it at other data, or choose another split."
      )
    if self.labels is not None:
      for number, example in enumerate(examples, start=1):
        if example.targets not in self.labels:
          raise UserError(
            f"Example {number} of split '{split}' of task '{self.name}' has the "
            f"target '{example.targets}', which is not among its labels "
            f"{', '.join(self.labels)}.{near_misses(example.targets, self.labels)} "
            "Correct the data, or the task's labels."
          )
    return examples

  def split_digest(self, split: str) -> str:
    """Returns the `digest` of the examples of `split`."""
    return digest(self.examples(split))


def overlaps(task: Task) -> dict[str, int]:
  """Returns how many examples of a split have a source that a later split has too.

  The keys are 'train/validation', 'train/test' and 'validation/test'; sources are
  compared after white space is collapsed. Zero everywhere: deduplicated across splits.
  """
  sources = {split: [_source(e) for e in task.examples(split)] for split in SPLITS}
  return {
    f"{split}/{later}": len([s for s in sources[split] if s in set_of_later])
    for later, set_of_later in ((s, set(sources[s])) for s in SPLITS)
    for split in SPLITS[: SPLITS.index(later)]
  }


def deduplicate(
  splits: Mapping[str, Sequence[Example]],
) -> dict[str, tuple[Example, ...]]:
  """Returns the splits without the examples whose source a later split has too.

  The test split stays whole, so scores stay comparable; what it shares with validation
  leaves validation, and what either shares with train leaves train. Sources are
  compared as in `overlaps`. Repetitions within a split stay. Ours.
  """
  seen: set[str] = set()
  kept = {}
  for split in reversed(SPLITS):
    examples = splits.get(split, ())
    kept[split] = tuple(e for e in examples if _source(e) not in seen)
    seen.update(map(_source, examples))
  return kept


def digest(examples: Iterable[Example]) -> str:
  """Returns 64 hex digits that name the examples and their order (SHA-256).

  The hashed bytes are, for each example, its inputs, its targets, its other answers if
  there are any, and its group if it has one, each as its length in UTF-8 bytes (8 bytes,
  little-endian) followed by those bytes.
  """
  content = hashlib.sha256()
  for example in examples:
    more = (*example.answers, *filter(None, [example.group]))
    for text in (example.inputs, example.targets, *more):
      encoded = text.encode()
      content.update(len(encoded).to_bytes(8, "little"))
      content.update(encoded)
  return content.hexdigest()


def _source(example: Example) -> str:
  return " ".join(example.inputs.split())

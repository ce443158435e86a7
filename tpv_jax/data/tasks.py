"""Tasks: named splits of pairs of texts, with labels and metrics."""

import collections
import dataclasses
import hashlib
import itertools
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

from tpv_jax.core import tables
from tpv_jax.core.errors import UserError, near_misses, printable, some
from tpv_jax.data.metrics import registry as metrics
from tpv_jax.data.recipes import Recipe

SPLITS = ("train", "validation", "test")

_MOST_SHARES = 12
"""The most labels whose examples are counted for people."""


@dataclasses.dataclass(frozen=True)
class Example:
  """One text-to-text pair, with the further data that some metrics need.

  Attributes:
    inputs: the source.
    targets: the answer that is trained.
    answers: all accepted answers, if there are several (SQuAD); () means the target.
    group: examples of one group are scored together (MultiRC: a question); '' means
      none.
    fields: where in `inputs` the texts of the template's columns begin and end. A source
      that is too long is cut inside them, never in the words around them; () means that
      all of it is one field. Comparisons and digests ignore it.
  """

  inputs: str
  targets: str
  answers: tuple[str, ...] = ()
  group: str = ""
  fields: tuple[tuple[int, int], ...] = dataclasses.field(
    default=(), compare=False, repr=False
  )


@dataclasses.dataclass(frozen=True, repr=False)
class Task:
  """A task: its name, its label words, its own metric, and its examples.

  Attributes:
    name: one word, used in provenance and file names.
    labels: all allowed targets in their order, or None if the targets are free.
    metric: the name, in `data.metrics.registry`, of the task's own metric.
    load: returns the examples of a split of `SPLITS`, the same ones at every call. It is
      called at every use, so an expensive loader should cache them.
    more_metrics: the names of further metrics that are usual for the task.
    origin: returns what a run's manifest says about the source of the examples.
    recipe: how the examples are made from rows of columns, so that a prompt can answer new
      rows; None if no recipe says it.
    lengths: `{'inputs': T, 'targets': L}` in tokens, EOS included, where they are stated
      together with the task; a run may choose others.
  """

  name: str
  labels: tuple[str, ...] | None
  metric: str
  load: Callable[[str], Sequence[Example]]
  more_metrics: tuple[str, ...] = ()
  origin: Callable[[], Mapping[str, Any]] | None = None
  recipe: Recipe | None = None
  lengths: Mapping[str, int] | None = dataclasses.field(default=None, hash=False)

  def __post_init__(self) -> None:
    """Checks the metrics' names.

    Raises:
      UserError: there is no such metric, or it does not apply to these labels.
    """
    for name in (self.metric, *self.more_metrics):
      metrics.check_name(name, self.labels)

  def scores(
    self,
    examples: Sequence[Example],
    predictions: Sequence[str],
    written: Sequence[str | None] | None = None,
  ) -> dict[str, float]:
    """Returns the metrics of the predictions, one for each example.

    They are exact match, for tasks with labels macro-F1, and the task's own metrics.

    Args:
      examples: in the order of the predictions.
      predictions: generated texts, or chosen labels.
      written: each target as the vocabulary writes it; see `data.metrics.classes.exact_match`.
    """
    common = ["exact_match"] if self.labels is None else ["exact_match", "macro_f1"]
    return metrics.compute(
      dict.fromkeys([*common, self.metric, *self.more_metrics]),
      [example.targets for example in examples],
      predictions,
      self.labels,
      [example.answers for example in examples],
      [example.group for example in examples],
      written,
    )

  def examples(self, split: str) -> tuple[Example, ...]:
    """Returns the examples of `split`, checked.

    Raises:
      UserError: there is no such split, it is empty, or a target is not a label.
    """
    check_split(self.name, split)
    examples = tuple(self.load(split))
    if not examples:
      raise UserError(
        f"Split '{split}' of task '{self.name}' has no examples. Give it other data, or "
        "choose another split."
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

  def shortened(self, split: str, most: int | None) -> "Task":
    """Returns the task with the first `most` examples of `split`; None keeps all."""
    if most is None:
      return self

    def load(asked: str) -> Sequence[Example]:
      found = self.load(asked)
      return found[:most] if asked == split else found

    return dataclasses.replace(self, load=load)

  def split_digest(self, split: str) -> str:
    """Returns the `digest` of the examples of `split`."""
    return digest(self.examples(split))

  def __repr__(self) -> str:
    """Returns one line, without reading an example."""
    labels = "free answers" if self.labels is None else some(self.labels)
    return f"<task '{self.name}': {labels}; {self.metric}>"

  def rows(self) -> list[tuple[str, str]]:
    """Returns labels and values for people: how many examples it has, and one of them."""
    found = [("task", self.name)]
    for split in SPLITS:
      try:
        examples = self.examples(split)
      except UserError as error:
        found.append((split, str(error)))
        continue
      found.append((split, f"{len(examples):,} examples{_shares(self, examples)}"))
      if split == SPLITS[0]:
        found += [("a source", examples[0].inputs), ("its target", examples[0].targets)]
    if self.lengths is not None:
      found.append(
        ("tokens", ", ".join(f"{key} {most}" for key, most in self.lengths.items()))
      )
    return [*found, ("metrics", ", ".join((self.metric, *self.more_metrics)))]

  def __str__(self) -> str:
    """Returns the rows as lines; the examples are read for it."""
    rows = [(label, printable(value)) for label, value in self.rows()]
    return tables.aligned(rows, left=2)

  def _repr_html_(self) -> str:
    return tables.html(self.rows())


def _shares(task: Task, examples: Sequence[Example]) -> str:
  """Returns how many examples each label has, where labels are few."""
  if task.labels is None or len(task.labels) > _MOST_SHARES:
    return ""
  counts = collections.Counter(example.targets for example in examples)
  return f" ({', '.join(f'{label} {counts[label]:,}' for label in task.labels)})"


def split_at(text: str, fields: Sequence[tuple[int, int]]) -> list[str]:
  """Returns the parts of a text between and inside its fields, the latter at odd places."""
  ends = [0, *itertools.chain(*fields), len(text)]
  return [text[start:stop] for start, stop in itertools.pairwise(ends)]


def check_split(name: str, split: str) -> None:
  """Raises `UserError`, with near misses, unless `split` is one of `SPLITS`."""
  if split not in SPLITS:
    raise UserError(
      f"Task '{name}' has no split '{split}'; the splits are {', '.join(SPLITS)}."
      f"{near_misses(split, SPLITS)}"
    )


def overlaps(task: Task) -> dict[str, int]:
  """Returns how many examples of a split have a source that a later split has, too.

  The keys are 'train/validation', 'train/test' and 'validation/test'. Sources are compared
  after white space is collapsed. All are 0 if the splits are deduplicated.
  """
  sources = {
    split: [collapsed_source(e) for e in task.examples(split)] for split in SPLITS
  }
  return {
    f"{split}/{later}": len([s for s in sources[split] if s in set_of_later])
    for later, set_of_later in ((s, set(sources[s])) for s in SPLITS)
    for split in SPLITS[: SPLITS.index(later)]
  }


def deduplicate(
  splits: Mapping[str, Sequence[Example]],
) -> dict[str, tuple[Example, ...]]:
  """Returns the splits without the examples whose source a later split has, too.

  The test split stays whole, so that scores stay comparable. Validation loses what it
  shares with test, and train what it shares with either. Sources are compared as in
  `overlaps`. Repetitions within a split stay. Ours.
  """
  seen: set[str] = set()
  kept = {}
  for split in reversed(SPLITS):
    examples = splits.get(split, ())
    kept[split] = tuple(e for e in examples if collapsed_source(e) not in seen)
    seen.update(map(collapsed_source, examples))
  return kept


def digest(examples: Iterable[Example]) -> str:
  """Returns 64 hex digits that name the examples and their order (SHA-256).

  The hashed bytes are, for each example, its inputs and its targets, each as its length in
  UTF-8 bytes (8 bytes, little-endian) followed by those bytes. If it has answers or a
  group, they are followed by 8 bytes 0xff, the number of answers (8 bytes), and the answers
  and the group in the same form as the texts.
  """
  content = hashlib.sha256()

  def add(*texts: str) -> None:
    for text in texts:
      encoded = text.encode()
      content.update(len(encoded).to_bytes(8, "little"))
      content.update(encoded)

  for example in examples:
    add(example.inputs, example.targets)
    if example.answers or example.group:
      content.update(b"\xff" * 8 + len(example.answers).to_bytes(8, "little"))
      add(*example.answers, example.group)
  return content.hexdigest()


def collapsed_source(example: Example) -> str:
  """Returns the source with white space collapsed, for comparing texts."""
  return " ".join(example.inputs.split())

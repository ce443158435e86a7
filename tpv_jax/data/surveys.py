"""What a task's examples look like to a backbone, and what stands in the way of training.

`survey` only counts and compares; `labels.check_task` decides what can't be right.
"""

import collections
import dataclasses
import difflib
import re
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from tpv_jax.core.errors import UserError, some
from tpv_jax.core.tables import aligned
from tpv_jax.data import batches
from tpv_jax.data.labels import check_task, joined_otherwise
from tpv_jax.data.tasks import SPLITS, Example, Task, collapsed_source
from tpv_jax.data.vocabularies import Vocabulary

FEW_ROWS = 10
"""A label with fewer rows to train on is worth a warning (ours)."""

MAJORITY = 0.8
"""A larger share of one label is worth a warning (ours)."""

PERCENTILES = (50, 95, 99, 100)

MOST_LENGTH = 512
"""The longest source that is proposed, in tokens; longer ones are trimmed (ours)."""

MOST_MEASURED = 10_000
"""The most examples of a split whose tokens are counted (ours)."""

_ANY_LENGTH = 1 << 30


@dataclasses.dataclass
class Survey:
  """What was found.

  Attributes:
    lines: what to show of the examples.
    warnings: what makes training or scores worse.
    problems: what makes training impossible.
  """

  lines: list[str] = dataclasses.field(default_factory=list)
  warnings: list[str] = dataclasses.field(default_factory=list)
  problems: list[str] = dataclasses.field(default_factory=list)


@dataclasses.dataclass(frozen=True)
class Measured:
  """How many tokens sources and targets have, with those at their ends."""

  sources: Sequence[int]
  targets: Sequence[int]

  def proposed(self) -> dict[str, int]:
    """Returns lengths that trim nothing, or less than one source of a hundred.

    They are multiples, so that other label words and a few more rows fit, too.
    """
    longest = max(self.sources)
    if longest > MOST_LENGTH:
      longest = min(MOST_LENGTH, int(np.percentile(self.sources, 99)))
    return {"inputs": -(-longest // 8) * 8, "targets": -(-max(self.targets) // 4) * 4}

  def __str__(self) -> str:
    """Returns percentiles in words."""
    names = ("median", "95 %", "99 %", "longest")
    found = np.percentile(self.sources, PERCENTILES, method="higher").astype(int)
    sources = ", ".join(f"{n} {v:,}" for n, v in zip(names, found, strict=True))
    return f"sources: {sources}; targets: at most {max(self.targets)}"


def sampled(examples: Sequence[Example]) -> Sequence[Example]:
  """Returns the examples, or `MOST_MEASURED` of them, spread over all."""
  return examples[:: -(-len(examples) // MOST_MEASURED)]


def measure(examples: Sequence[Example], vocabulary: Vocabulary) -> Measured:
  """Returns the numbers of tokens of examples."""
  return Measured(
    [len(batches.source_ids(one, vocabulary, _ANY_LENGTH)[0]) for one in examples],
    [len(batches.target_ids(one, vocabulary, _ANY_LENGTH)[0]) for one in examples],
  )


def examples_of(
  task: Task, splits: Sequence[str], found: Survey
) -> dict[str, tuple[Example, ...]]:
  """Returns the examples of those splits that can be read; adds problems to `found`."""
  examples = {}
  for split in splits:
    try:
      examples[split] = task.examples(split)
    except UserError as error:
      if str(error) not in found.problems:
        found.problems.append(str(error))
  return examples


def survey(
  task: Task,
  splits: Sequence[str],
  lengths: Mapping[str, int],
  vocabulary: Vocabulary | None = None,
) -> Survey:
  """Returns what the examples of a task look like.

  Args:
    task: the task.
    splits: those that it has.
    lengths: of sources and targets, in tokens.
    vocabulary: the backbone's; without it no tokens are counted.
  """
  found = Survey()
  examples = examples_of(task, splits, found)
  for split in SPLITS:
    if split not in splits:
      use = {"train": "train on", "validation": "choose the best prompt by"}.get(split)
      (found.problems if use else found.warnings).append(
        f"There is no split '{split}' to {use or 'score on'}: give it a file in 'paths', or "
        f"take it from the training file: splits = {{ {split} = 0.1 }}."
      )
  if not examples:
    return found
  _count(task, examples, found)
  _compare(examples, found)
  first = next(iter(examples.values()))[0]
  found.lines += [
    "first source:",
    *_indented(first.inputs),
    f"its target: {first.targets!r}",
  ]
  if vocabulary is not None:
    _tokens(task, examples, lengths, vocabulary, found)
  return found


def _indented(text: str) -> list[str]:
  shown = text if len(text) <= 600 else f"{text[:400]} […] {text[-150:]}"
  return [f"  | {line}" for line in shown.splitlines()]


def _count(
  task: Task, examples: Mapping[str, Sequence[Example]], found: Survey
) -> None:
  """Adds the rows of each split and label."""
  counts = {
    split: collections.Counter(one.targets for one in some_examples)
    for split, some_examples in examples.items()
  }
  rows = [["rows", *(f"{len(examples[split]):,}" for split in examples)]]
  if task.labels is None:
    rows.append(["different answers", *(f"{len(counts[split]):,}" for split in counts)])
  for label in task.labels or ():
    rows.append([f"  {label}", *(f"{counts[split][label]:,}" for split in counts)])
  found.lines += aligned([["", *examples], *rows]).splitlines()
  train = counts.get("train", collections.Counter())
  for label in task.labels or ():
    if train and train[label] < FEW_ROWS:
      often = [other for other in train if train[other] >= FEW_ROWS]
      near = difflib.get_close_matches(label, often, n=1)
      found.warnings.append(
        f"'{label}' has {train[label]} rows to train on, too few to learn it."
        + (f" Perhaps '{near[0]}' is meant." if near else "")
      )
    if "validation" in counts and not counts["validation"][label]:
      found.warnings.append(
        f"'{label}' has no row in validation, so it counts for nothing."
      )
  if task.labels is not None and train:
    label, most = train.most_common(1)[0]
    if most >= MAJORITY * train.total():
      found.warnings.append(
        f"{most / train.total():.0%} of the training rows are '{label}': always answering it "
        "scores as much in exact match. Look at macro-F1, too."
      )
    lower = collections.Counter(label.lower() for label in task.labels)
    if twice := [label for label in task.labels if lower[label.lower()] > 1]:
      found.warnings.append(
        f"The labels {' and '.join(map(repr, twice))} differ only in upper and lower case."
      )


def _compare(examples: Mapping[str, Sequence[Example]], found: Survey) -> None:
  """Adds texts that appear twice."""
  answers: dict[str, set[str]] = {}
  seen: dict[str, set[str]] = {}
  for split, some_examples in examples.items():
    sources = [collapsed_source(one) for one in some_examples]
    for source, one in zip(sources, some_examples, strict=True):
      answers.setdefault(source, set()).add(one.targets)
    repeated = len(sources) - len(set(sources))
    if repeated:
      found.lines.append(f"repeated in {split}: {_texts(repeated)}")
    for earlier, texts in seen.items():
      if shared := sum(source in texts for source in sources):
        found.warnings.append(
          f"{_texts(shared)} of {split} {'is' if shared == 1 else 'are'} in {earlier}, too, "
          "so scores there say little. "
          "Set deduplicated = true to leave them out of the earlier split."
        )
    seen[split] = set(sources)
  if unclear := sum(len(targets) > 1 for targets in answers.values()):
    found.warnings.append(
      f"{_texts(unclear)} {'has' if unclear == 1 else 'have'} different answers in different "
      "rows; no model can get all of them right."
    )


def _texts(count: int) -> str:
  return "1 text" if count == 1 else f"{count:,} texts"


def _tokens(
  task: Task,
  examples: Mapping[str, Sequence[Example]],
  lengths: Mapping[str, int],
  vocabulary: Vocabulary,
  found: Survey,
) -> None:
  """Adds what the vocabulary makes of the examples."""
  samples = {split: sampled(some_examples) for split, some_examples in examples.items()}
  every = [one for some_examples in samples.values() for one in some_examples]
  measured = measure(every, vocabulary)
  of = "" if len(every) == sum(map(len, examples.values())) else f"{len(every):,} "
  found.lines.append(f"tokens of {of}{measured}")
  try:
    check_task(task, vocabulary, lengths, [*examples])
    for split, some_examples in samples.items():
      tokenized = batches.tokenize(some_examples, vocabulary, lengths)
      for what, lost in (
        ("sources", tokenized.sources),
        ("targets", tokenized.answers),
      ):
        if lost.trimmed:
          found.warnings.append(
            f"{lost.trimmed:,} of {len(tokenized):,} {what} of {split} are longer than "
            f"{lengths[what.replace('source', 'input')]} tokens and would be trimmed. "
            f"Nothing is trimmed at lengths = {_braces(measured)}."
          )
        if lost.unknown:
          found.warnings.append(
            f"{lost.unknown:,} of {len(tokenized):,} {what} of {split} have words that the "
            f"vocabulary doesn't know: {_unknown(some_examples, what, vocabulary)}."
          )
  except UserError as error:
    text = re.sub(r"LENGTHS\['(\w+)'\]", r"'\1' of 'lengths'", str(error))
    found.problems.append(text)
  if odd := joined_otherwise(task.labels or (), vocabulary, every[0].inputs):
    found.warnings.append(
      f"The tokenizer joins letters of the source with the label {some(map(repr, odd))} "
      "behind it. Another end of the template, or another word, may score higher."
    )


def _braces(measured: Measured) -> str:
  longest: Mapping[str, Any] = {
    "inputs": max(measured.sources),
    "targets": max(measured.targets),
  }
  inner = ", ".join(f"{name} = {value}" for name, value in longest.items())
  return f"{{ {inner} }}"


def _unknown(examples: Sequence[Example], what: str, vocabulary: Vocabulary) -> str:
  """Returns the words that are most often unknown."""
  counts: collections.Counter[str] = collections.Counter()
  for one in examples:
    counts.update((one.inputs if what == "sources" else one.targets).split())
  words = (
    w for w, _ in counts.most_common() if vocabulary.unk_id in vocabulary.encode(w)
  )
  return some(map(repr, words), most=6)

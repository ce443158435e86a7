"""Checks, before anything runs, that a vocabulary can write the answers of tasks.

A prompt is trained and judged by the tokens of its answers. If these are not the answer
itself, because a word is unknown or the limit cuts it, training would report success for a
text that is never right. `check_task` refuses answers that can't be right; if only some of
a task's free targets can't, `batches.Tokenized` counts them.
"""

from collections.abc import Mapping, Sequence
from typing import Any

from tpv_jax.core.errors import UserError
from tpv_jax.data.byte_pairs import BytePairVocabulary
from tpv_jax.data.tasks import Task
from tpv_jax.data.vocabularies import Vocabulary


def check_task(
  task: Task,
  vocabulary: Vocabulary,
  lengths: Mapping[str, int] | None,
  splits: Sequence[str] = (),
) -> None:
  """Raises `UserError` unless the task's answers can be written and distinguished.

  Args:
    task: with labels, which are all checked; or with free targets.
    vocabulary: the backbone's.
    lengths: `{'inputs': T, 'targets': L}` in tokens, EOS included; None if they are not
      known yet, and then any answer fits.
    splits: the splits whose free targets are read and checked: in each, at least one must
      have a `spelling`. For a task with labels they are not read.

  Raises:
    UserError: `lengths` or labels are wrong (`check_lengths`, `check_labels`), or no
      target of a split could ever be right.
  """
  longest = None
  if lengths is not None:
    check_lengths(lengths)
    longest = lengths["targets"]
  if task.labels is not None:
    check_labels(task.labels, vocabulary, longest, f"task '{task.name}'")
    return
  for split in splits:
    examples = task.examples(split)
    if all(spelling(e.targets, vocabulary, longest) is None for e in examples):
      raise UserError(
        f"No target of split '{split}' of task '{task.name}' could ever be right. The "
        f"first: {_fault(examples[0].targets, vocabulary, longest)}"
      )


def check_labels(
  labels: Sequence[str],
  vocabulary: Vocabulary,
  longest: int | None = None,
  whose: str = "the task",
) -> None:
  """Raises `UserError` unless each label is its own `spelling` and differs from the others.

  White space is collapsed before texts are compared, as in the metrics. A label may begin
  with another one ('not', 'not sure'): EOS, which is scored too, distinguishes them.

  Args:
    labels: the label words.
    vocabulary: the backbone's.
    longest: the longest target in tokens, EOS included; None if it is not known yet.
    whose: the labels' owner, for messages.
  """
  seen: dict[str, str] = {}
  for label in labels:
    written = spelling(label, vocabulary, longest)
    if written is None or not label.split() or written.split() != label.split():
      fault = _fault(label, vocabulary, longest, labels)
      raise UserError(f"A label of {whose} could never be right. {fault}")
    if (other := seen.setdefault(" ".join(label.split()), label)) != label:
      raise UserError(
        f"The labels '{other}' and '{label}' of {whose} differ only in white space, which "
        "metrics ignore. Choose another word for one of them."
      )


def check_lengths(lengths: Any) -> None:
  """Raises `UserError` unless both features have a length of at least one token."""
  if not isinstance(lengths, Mapping):
    raise UserError(
      f"The lengths are {lengths!r}; they must name both features. Set LENGTHS = "
      "{'inputs': ..., 'targets': ...}, in tokens, EOS included."
    )
  for feature in ("inputs", "targets"):
    if lengths.get(feature, 0) < 1:
      raise UserError(
        f"The longest '{feature}' is {lengths.get(feature, 'not given')}; it must be "
        "at least 1 token (EOS). Set LENGTHS = {'inputs': ..., 'targets': ...}."
      )


def spelling(
  text: str, vocabulary: Vocabulary, longest: int | None = None
) -> str | None:
  """Returns the text as the vocabulary writes it, or None if it can't.

  It can't if there are unknown tokens, or more than `longest` tokens with EOS. The result
  differs from the text if the vocabulary normalises it (T5's turns '…' into '...').
  """
  ids = vocabulary.encode_target(text)
  if vocabulary.unk_id in ids or (longest is not None and len(ids) >= longest):
    return None
  return vocabulary.decode(ids)


def joined_otherwise(
  labels: Sequence[str], vocabulary: Vocabulary, source: str
) -> tuple[str, ...]:
  """Returns the labels that have other tokens where source and label are one text.

  A decoder-only model reads a source and its target one after the other, encoded apart.
  If its tokenizer would join letters over the border, it has seen other tokens there in its
  pre-training, and such a label may score lower. T5's encoder and decoder read two texts.

  Args:
    labels: the label words.
    vocabulary: the backbone's.
    source: an example's.
  """
  if not isinstance(vocabulary, BytePairVocabulary):
    return ()
  found = []
  for label in labels:
    apart, together = vocabulary.joint(source, label)
    if apart != together[: len(apart)]:
      found.append(label)
  return tuple(found)


def _fault(
  text: str, vocabulary: Vocabulary, longest: int | None, labels: Sequence[str] = ()
) -> str:
  """Returns why the text can't be written, and what to do."""
  ids = vocabulary.encode_target(text)
  if longest is not None and len(ids) >= longest:
    most = 1 + max(len(vocabulary.encode_target(one)) for one in (text, *labels))
    return (
      f"'{text:.80}' has {1 + len(ids)} tokens with EOS, and LENGTHS['targets'] is "
      f"{longest}, so it would be cut. Set LENGTHS['targets'] to at least {most}."
    )
  back = vocabulary.decode(ids)
  why = (
    "has words that the vocabulary doesn't know"
    if vocabulary.unk_id in ids
    else "is not what the vocabulary writes"
  )
  return (
    f"'{text:.80}' {why}: it reads back as '{back:.80}'. Choose another word for it in "
    "the task's labels (LABELS), or the backbone and vocabulary that know it."
  )

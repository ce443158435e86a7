"""The English tasks: counts, labels, balance, and no text in two splits."""

import collections
import itertools
import json
import re

import pytest

from tpv_jax.core.errors import UserError
from tpv_jax.data import english

LABELS = {
  "sentiment": ("negative", "positive"),
  "topic": ("business", "science", "sports", "travel"),
}
ROWS = {"train": 200, "validation": 60, "test": 60}


def rows(task, split):
  path = english.ROWS / f"{task}_{split}.jsonl"
  return [json.loads(line) for line in path.read_text().splitlines()]


@pytest.mark.parametrize("task", LABELS)
@pytest.mark.parametrize("split", ROWS)
def test_each_label_has_the_same_number_of_rows(task, split):
  counts = collections.Counter(row["label"] for row in rows(task, split))
  assert sum(counts.values()) == ROWS[split]
  assert counts == {label: ROWS[split] / len(LABELS[task]) for label in LABELS[task]}


@pytest.mark.parametrize("task", LABELS)
def test_texts_are_sentences_of_8_to_30_words_that_do_not_name_their_label(task):
  for row in itertools.chain(*(rows(task, split) for split in ROWS)):
    assert set(row) == {"text", "label"}
    text = row["text"]
    assert 8 <= len(text.split()) <= 30, text
    assert re.fullmatch(r"[A-Z].*[.]", text), text
    assert not re.search(rf"\b{row['label']}\b", text.lower()), text


def test_no_two_texts_share_more_than_half_of_their_words():
  """So none is in two splits, in other words either."""
  texts = [
    row["text"] for task in LABELS for split in ROWS for row in rows(task, split)
  ]
  words = [{*re.findall(r"\w+", text.lower())} for text in texts]
  for (one, a), (other, b) in itertools.combinations(zip(texts, words, strict=True), 2):
    assert len(a & b) <= len(a | b) / 2, f"{one!r} and {other!r}"


@pytest.mark.parametrize("task", LABELS)
def test_a_task_reads_every_row(task):
  made = english.task(task)
  assert made.labels == LABELS[task]
  for split in ROWS:
    examples = made.load(split)
    assert [one.targets for one in examples] == [
      row["label"] for row in rows(task, split)
    ]
    assert rows(task, split)[0]["text"] in examples[0].inputs


def test_both_tasks_have_templates_of_one_line():
  assert {task.name: task.labels for task in english.tasks()} == LABELS
  for template, _ in english.TASKS.values():
    assert "\n" not in template


def test_an_unknown_task_is_refused():
  with pytest.raises(UserError, match=r"'topics'.*'topic'.*are sentiment, topic"):
    english.tasks(["topics"])

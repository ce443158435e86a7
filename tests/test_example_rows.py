"""The rows under examples/llm: counts, labels, balance, and no text in two splits."""

import collections
import itertools
import json
import pathlib
import re

import gin
import pytest

from tpv_jax.settings import gin_files

REPOSITORY = pathlib.Path(__file__).parents[1]
LABELS = {
  "sentiment": ["negative", "positive"],
  "topic": ["business", "science", "sports", "travel"],
}
ROWS = {"train": 200, "validation": 60, "test": 60}


def rows(task, split):
  path = REPOSITORY / "examples" / "llm" / task / f"{split}.jsonl"
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
def test_the_gin_file_beside_them_reads_every_row(task, monkeypatch):
  monkeypatch.chdir(REPOSITORY)
  gin_files.parse(["examples/llm/tasks.gin"])
  made = gin.query_parameter(f"{task.upper()}/macro.value").scoped_configurable_fn()
  gin.clear_config()
  assert made.name == task
  assert made.labels == tuple(LABELS[task])
  for split in ROWS:
    found = [example.targets for example in made.load(split)]
    assert found == [row["label"] for row in rows(task, split)]

"""The embedded suite: deterministic, disjoint, within its lengths and its vocabulary."""

import collections
import itertools
import time

import pytest

from tpv_jax.core.errors import UserError
from tpv_jax.data import tasks, vocabularies
from tpv_jax.embedded import lexicon, suite

DIGESTS = {
  "sentiment": "711d741505fc",
  "topic": "f80d0ee6fc12",
  "acceptability": "7cafd2bad34f",
  "answerability": "4bc6a6f3a4c2",
  "question_type": "72328e88b40c",
  "nli": "a8451d770cd8",
  "paraphrase": "98fffa9811b8",
}
"""Of the test splits, as first made on CPython 3.11: other machines make the same."""

each_task = pytest.mark.parametrize("name", suite.TASKS)


def test_there_are_at_least_five_tasks():
  assert len(suite.tasks()) == len(suite.TASKS) >= 5
  assert [task.name for task in suite.tasks(["topic", "nli"])] == ["topic", "nli"]


@each_task
def test_no_text_is_in_two_splits_or_twice_in_one(name):
  texts = {
    split: [example.inputs for example in suite.task(name).examples(split)]
    for split in tasks.SPLITS
  }
  for split, inputs in texts.items():
    assert len(inputs) == len(set(inputs)) == suite.SIZES[split]
  for one, other in itertools.combinations(texts.values(), 2):
    assert not set(one) & set(other)


@pytest.mark.parametrize("name", ["topic", "nli"])
def test_splits_of_different_seeds_share_no_text_either(name):
  test = {example.inputs for example in suite.examples(name, "test", seed=1)}
  train = {example.inputs for example in suite.examples(name, "train", seed=0)}
  assert not test & train


def test_examples_depend_on_the_seed_alone():
  assert {
    name: suite.task(name).split_digest("test")[:12] for name in suite.TASKS
  } == DIGESTS
  assert suite.examples("topic", "test", seed=1) != suite.examples("topic", "test")


@each_task
def test_classes_are_balanced(name):
  labels = lexicon.labels(name)
  for split, size in suite.SIZES.items():
    counts = collections.Counter(e.targets for e in suite.examples(name, split))
    assert set(counts) == set(labels)
    assert max(counts.values()) - min(counts.values()) <= 1
    assert sum(counts.values()) == size


def test_no_two_tasks_share_a_label_word():
  words = [word for task in suite.tasks() for word in task.labels]
  assert len(words) == len(set(words))


@each_task
def test_vocabulary_and_lengths_cover_every_example(name):
  vocabulary = vocabularies.embedded()
  for split in tasks.SPLITS:
    for example in suite.examples(name, split):
      source, target = map(vocabulary.encode, (example.inputs, example.targets))
      assert vocabulary.unk_id not in [*source, *target]
      assert len(source) + 1 <= suite.LENGTHS["inputs"]
      assert len(target) + 1 <= suite.LENGTHS["targets"]


@each_task
def test_a_split_is_made_in_a_few_seconds(name):
  """0.1 to 0.3 on an idle core; on a busy one, twenty times as many were seen."""
  start = time.process_time()
  suite.examples(name, "test", seed=2)
  assert time.process_time() - start < 20


def test_an_unknown_task_is_refused_with_the_nearest_name():
  with pytest.raises(UserError, match=r"no embedded task 'sentimnt'.*'sentiment'"):
    suite.task("sentimnt")

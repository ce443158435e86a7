import hashlib

import pytest

from tpv_jax.core.errors import UserError
from tpv_jax.data import tasks
from tpv_jax.data.tasks import Example, Task


def task(labels=("good", "bad"), metric="exact_match", **splits):
  return Task("review", labels, metric, lambda split: splits.get(split, ()))


def test_examples_are_those_of_the_split():
  one, two = Example("a", "good"), Example("b", "bad")
  given = task(train=[one, two], test=[two])
  assert given.examples("train") == (one, two)
  assert given.examples("test") == (two,)


def test_an_unknown_split_is_refused_with_near_misses():
  with pytest.raises(UserError, match=r"no split 'trian'.*Did you mean 'train'\?"):
    task(train=[Example("a", "good")]).examples("trian")


def test_an_empty_split_is_refused_by_name():
  with pytest.raises(UserError, match="Split 'test' of task 'review' has no examples"):
    task(train=[Example("a", "good")]).examples("test")


def test_a_target_outside_the_labels_is_refused_with_its_place():
  bad = task(train=[Example("a", "good"), Example("b", "goood")])
  with pytest.raises(UserError, match=r"Example 2 of split 'train'.*'goood'.*'good'"):
    bad.examples("train")


def test_free_targets_are_not_checked():
  free = task(labels=None, train=[Example("a", "anything at all")])
  assert free.examples("train")[0].targets == "anything at all"


def test_an_unknown_metric_is_refused_when_the_task_is_made():
  with pytest.raises(UserError, match=r"no metric 'macro_f2'.*Did you mean 'macro_f1'"):
    task(metric="macro_f2")


def test_the_digest_is_the_documented_hash():
  content = b""
  for text in ("né", "good", "", "bad"):
    encoded = text.encode("utf-8")
    content += len(encoded).to_bytes(8, "little") + encoded
  given = task(train=[Example("né", "good"), Example("", "bad")])
  assert given.split_digest("train") == hashlib.sha256(content).hexdigest()


def test_the_digest_tells_order_and_boundaries_apart():
  a, b = Example("x y", "good"), Example("z", "bad")
  digests = [
    tasks.digest(examples)
    for examples in ([a, b], [b, a], [a], [Example("x", "y good"), b])
  ]
  assert len(set(digests)) == len(digests)


def test_overlaps_count_shared_sources_across_splits():
  given = task(
    train=[Example("a  b", "good"), Example("c", "good"), Example("c", "bad")],
    validation=[Example("c", "good"), Example("d", "bad")],
    test=[Example("a b", "bad"), Example("d", "bad")],
  )
  assert tasks.overlaps(given) == {
    "train/validation": 2,
    "train/test": 1,
    "validation/test": 1,
  }


def test_deduplicated_splits_share_nothing_and_the_test_split_stays_whole():
  a, b, c, d = (Example(text, "good") for text in "abcd")
  kept = tasks.deduplicate(
    {"train": [a, b, c, d, d], "validation": [b, c], "test": [c, Example("c ", "bad")]}
  )
  assert kept["test"] == (c, Example("c ", "bad"))
  assert kept["validation"] == (b,)
  assert kept["train"] == (a, d, d)


def test_other_answers_and_groups_are_part_of_the_digest():
  plain = Example("a", "b")
  lists = [
    [plain],
    [Example("a", "b", ("b", "c"))],
    [Example("a", "b", ("b",), "c")],
    [Example("a", "b", group="c")],
    [plain, Example("b", "c")],
  ]
  assert len({tasks.digest(examples) for examples in lists}) == len(lists)

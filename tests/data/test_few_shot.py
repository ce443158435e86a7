"""Few-shot samples: nested, stratified, from the training split alone."""

import collections
import re
import subprocess
import sys

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tpv_jax.core.errors import UserError
from tpv_jax.data import few_shot, tasks
from tpv_jax.data.tasks import Example, Task
from tpv_jax.embedded import suite


def examples(sizes):
  return [
    Example(f"text {label} {number}", label)
    for label, size in zip("abcdef", sizes, strict=False)
    for number in range(size)
  ]


@settings(deadline=None)
@given(
  st.lists(st.integers(1, 40), min_size=1, max_size=5),
  st.integers(0, 99),
  st.booleans(),
)
def test_a_smaller_sample_is_the_beginning_of_a_larger_one(sizes, seed, stratified):
  given_examples = examples(sizes)
  whole = few_shot.sample(given_examples, len(given_examples), seed, stratified)
  assert sorted(whole, key=given_examples.index) == given_examples
  for count in {0, 1, len(whole) // 2, len(whole) - 1}:
    assert few_shot.sample(given_examples, count, seed, stratified) == whole[:count]


@settings(deadline=None)
@given(st.lists(st.integers(1, 40), min_size=1, max_size=5), st.integers(0, 99))
def test_every_beginning_has_each_class_in_its_exact_share(sizes, seed):
  total = sum(sizes)
  counts = collections.Counter()
  whole = few_shot.sample(examples(sizes), total, seed, stratified=True)
  for count, example in enumerate(whole, start=1):
    counts[example.targets] += 1
    for label, size in zip("abcde", sizes, strict=False):
      # An exact share of each class would be off by rounding alone.
      assert abs(counts[label] - count * size / total) <= len(sizes) / 2


def test_as_many_examples_as_equal_classes_are_one_of_each():
  for seed in range(20):
    drawn = few_shot.sample(examples([50] * 4), 8, seed, stratified=True)
    assert sorted(e.targets for e in drawn[:4]) == ["a", "b", "c", "d"]
    assert sorted(e.targets for e in drawn[4:]) == ["a", "b", "c", "d"]


def test_no_class_is_preferred_among_the_first_and_seeds_differ():
  given_examples = examples([50] * 3)
  firsts = [few_shot.sample(given_examples, 1, seed, True)[0] for seed in range(120)]
  counts = collections.Counter(first.targets for first in firsts)
  # Binomial(120, 1/3): 40 +- 4 standard deviations of 5.2.
  assert all(19 <= counts[label] <= 61 for label in "abc")
  assert len(set(firsts)) > 60


def test_the_same_seed_gives_the_same_sample_for_ever():
  drawn = few_shot.sample(examples([5, 10]), 5, 3, stratified=True)
  assert [e.inputs for e in drawn] == SEED_3


SEED_3 = ["text b 5", "text a 0", "text b 7", "text b 9", "text a 1"]
"""Stored when the order was decided on; Philox keeps it in all versions of NumPy."""


def given_task(labels, targets):
  splits = {
    split: [Example(f"{split} {i}", target) for i, target in enumerate(targets)]
    for split in tasks.SPLITS
  }
  return Task("small", labels, "exact_match", splits.__getitem__)


def test_only_the_training_split_is_sampled():
  task = given_task(("x", "y"), ["x", "y"] * 10)
  few = few_shot.few_shot(task, 4, seed=1)
  assert few.name == "small_4shot_seed1"
  assert len(few.examples("train")) == 4
  assert set(few.examples("train")) < set(task.examples("train"))
  for split in ("validation", "test"):
    assert few.examples(split) == task.examples(split)
  assert few.split_digest("train") == tasks.digest(few.examples("train"))


def test_the_classes_of_a_task_with_labels_are_dealt_out():
  rare = ["x"] * 18 + ["y"] * 2
  for seed in range(10):
    drawn = few_shot.few_shot(given_task(("x", "y"), rare), 10, seed).examples("train")
    assert [e.targets for e in drawn].count("y") == 1


def test_free_targets_are_not_stratified():
  free = given_task(None, ["x"] * 18 + ["y"] * 2)
  found = {
    [e.targets for e in few_shot.few_shot(free, 10, seed).examples("train")].count("y")
    for seed in range(20)
  }
  assert found == {0, 1, 2}


def test_seqio_streams_the_sample_and_the_whole_validation_split():
  pytest.importorskip("seqio", reason="seqio is not installed (extra 'data')")
  from tpv_jax.data import seqio_tasks, vocabularies

  words = ["train", "validation", "test", "x", "y", *map(str, range(20))]
  task = given_task(("x", "y"), ["x", "y"] * 10)
  few = few_shot.few_shot(task, 6)
  registered = seqio_tasks.register(few, vocabularies.WordVocabulary(words))
  assert registered.name == "small_6shot_seed0"
  for split in ("train", "validation"):
    rows = registered.get_dataset({"inputs": 3, "targets": 2}, split, shuffle=False)
    texts = [row["inputs_pretokenized"].decode() for row in rows.as_numpy_iterator()]
    assert texts == [example.inputs for example in few.examples(split)]


def test_samples_of_the_suite_are_nested():
  task = suite.task("topic")
  ten, more = (few_shot.few_shot(task, k).examples("train") for k in (10, 25))
  assert more[:10] == ten


@pytest.mark.parametrize(
  ("shots", "message"),
  [
    (-1, "SHOTS is -1; it must be a whole number of at least 0"),
    (1001, "SHOTS is 1001; few-shot learning is defined for 0 to 1,000"),
  ],
)
def test_a_number_out_of_range_is_refused_at_once(shots, message):
  for make in (few_shot.batch_size, lambda n: few_shot.few_shot(suite.task("nli"), n)):
    with pytest.raises(UserError, match=re.escape(message)):
      make(shots)


def test_more_than_there_are_and_none_are_refused_when_used():
  task = given_task(("x", "y"), ["x", "y"])
  with pytest.raises(UserError, match="has 2 training examples, of which 3 were"):
    few_shot.few_shot(task, 3).examples("train")
  none = few_shot.few_shot(task, 0)
  assert len(none.examples("test")) == 2
  with pytest.raises(UserError, match=r"from 0 examples.*tpv eval"):
    none.examples("train")
  with pytest.raises(UserError, match="seed is -1"):
    few_shot.few_shot(task, 1, seed=-1)


def test_batch_sizes_are_the_papers():
  stated = {5: 2, 10: 2, 25: 2, 50: 8, 100: 8, 250: 8, 500: 16, 750: 16, 1000: 16}
  assert {shots: few_shot.batch_size(shots) for shots in stated} == stated


def test_sampling_needs_neither_jax_nor_tensorflow():
  code = (
    "import sys; from tpv_jax.data import few_shot; from tpv_jax.embedded import suite; "
    "few_shot.few_shot(suite.task('topic'), 5).examples('train'); "
    "print({'jax', 'tensorflow', 'sklearn', 'scipy'} & set(sys.modules))"
  )
  done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
  assert done.stdout == "set()\n", done.stderr

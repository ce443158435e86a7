"""Tasks made of tasks: their examples written out by hand."""

import dataclasses

import pytest

from tpv_jax.core.errors import UserError
from tpv_jax.data import transforms
from tpv_jax.data.tasks import SPLITS, Example, Task, overlaps
from tpv_jax.embedded import suite


def task(name, labels, count=3):
  words = labels or ("free",)
  examples = [Example(f"{name} {i}", words[i % len(words)]) for i in range(count)]
  return Task(name, labels, "exact_match", lambda split: examples)


def pairs(task, split="train"):
  return [(e.inputs, e.targets) for e in task.examples(split)]


def test_rotated_labels_call_each_class_by_the_next_ones_word():
  rotated = transforms.rotated(task("t", ("x", "y", "z")))
  assert pairs(rotated) == [("t 0", "y"), ("t 1", "z"), ("t 2", "x")]
  assert rotated.name == "t"
  assert rotated.labels == ("x", "y", "z")
  assert transforms.rotated(task("t", ("x", "y")), name="turned").name == "turned"
  with pytest.raises(UserError, match="has no labels that could be exchanged"):
    transforms.rotated(task("t", None))


def test_rotated_examples_keep_their_group_and_their_answers_are_rotated_too():
  given = Example("a", "x", ("x", "other"), "7")
  rotated = transforms.rotated(Task("t", ("x", "y"), "exact_match", lambda _: [given]))
  assert rotated.examples("test") == (Example("a", "y", ("y", "other"), "7"),)


def test_a_mixture_says_its_tasks_origins_and_has_the_metrics_that_they_share():
  def one(name, labels, *more):
    made = dataclasses.replace(task(name, labels), more_metrics=more)
    return dataclasses.replace(made, origin=lambda: {"rows": f"of {name}"})

  same = [one("a", ("x", "y"), "f1"), one("b", ("x", "y"), "f1")]
  mixed = transforms.mixture("both", same)
  assert mixed.more_metrics == ("f1",)
  assert mixed.origin() == {"a": {"rows": "of a"}, "b": {"rows": "of b"}}
  for other in (one("c", ("x", "z"), "f1"), one("c", ("x", "y"), "matthews")):
    assert transforms.mixture("both", [same[0], other]).more_metrics == ()
  assert transforms.mixture("both", [task("a", ("x",))]).origin is None


def test_a_mixture_takes_its_tasks_in_turn_as_long_as_each_has_an_example():
  mixed = transforms.mixture("both", [task("a", ("x", "y"), 2), task("b", ("z", "x"))])
  assert pairs(mixed) == [("a 0", "x"), ("b 0", "z"), ("a 1", "y"), ("b 1", "x")]
  assert mixed.name == "both"
  assert mixed.labels == ("x", "y", "z")


def test_a_mixture_of_no_tasks_or_of_two_kinds_is_refused():
  with pytest.raises(UserError, match="'both' has no tasks"):
    transforms.mixture("both", [])
  with pytest.raises(UserError, match="and one without, 'b'"):
    transforms.mixture("both", [task("a", ("x",)), task("b", None)])
  free = transforms.mixture("both", [task("a", None, 1), task("b", None)])
  assert free.labels is None
  assert pairs(free) == [("a 0", "free"), ("b 0", "free")]


def test_the_other_tasks_text_stands_before_and_after_in_turn():
  made = transforms.beside("a_beside_b", task("a", ("x", "y")), task("b", ("z",)))
  assert pairs(made) == [("b 0 a 0", "x"), ("a 1 b 1", "y"), ("b 2 a 2", "x")]
  assert made.name == "a_beside_b"
  assert made.labels == ("x", "y")


def test_what_is_made_of_the_suite_keeps_its_splits_apart_and_fits_its_lengths():
  topic, question = suite.task("topic"), suite.task("question_type")
  for made in (
    transforms.mixture("both", [topic, question]),
    transforms.beside("topic_beside", transforms.rotated(topic), question),
  ):
    assert set(overlaps(made).values()) == {0}
    longest = suite.LENGTHS["inputs"] - 1  # Whole words, and the end.
    for split in SPLITS:
      assert max(len(e.inputs.split()) for e in made.examples(split)) <= longest

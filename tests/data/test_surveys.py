"""What a survey says of a task's examples."""

import re

import pytest

from tpv_jax.data import surveys, vocabularies
from tpv_jax.data.tasks import SPLITS, Example, Task

VOCABULARY = vocabularies.WordVocabulary([*"abcdefghij", "yes", "no", "not", "sure"])


def task(train, validation=None, test=None, labels=("yes", "no")):
  rows = {
    "train": train,
    "validation": train[:2] if validation is None else validation,
    "test": train[:2] if test is None else test,
  }
  loaded = {split: [Example(*row) for row in some] for split, some in rows.items()}
  return Task("own", labels, "exact_match", lambda split: loaded[split])


def rows(count, start=0, answers=("yes", "no")):
  """So many different sources of words that the vocabulary knows."""
  letters = "abcdefghij"
  return [
    (" ".join(letters[int(digit)] for digit in f"{i:03d}"), answers[i % len(answers)])
    for i in range(start, start + count)
  ]


def survey(of, lengths=None, splits=SPLITS, vocabulary=VOCABULARY):
  lengths = lengths or {"inputs": 8, "targets": 4}
  return surveys.survey(of, splits, lengths, vocabulary)


GOOD = task(rows(60), rows(10, 100), rows(10, 200))


@pytest.mark.parametrize("vocabulary", [None, VOCABULARY])
def test_a_good_task_has_neither_warnings_nor_problems(vocabulary):
  found = survey(GOOD, vocabulary=vocabulary)
  assert (found.warnings, found.problems) == ([], [])
  text = "\n".join(found.lines)
  assert "rows      60          10    10" in text
  assert "  yes     30           5     5" in text
  assert ("longest 4; targets: at most 2" in text) == (vocabulary is not None)


def test_lengths_are_proposed_from_the_longest_texts():
  measured = surveys.measure(
    [Example("a b c", "not sure"), Example("a", "yes")], VOCABULARY
  )
  assert (measured.sources, measured.targets) == ([4, 2], [3, 2])
  assert measured.proposed() == {"inputs": 8, "targets": 4}
  assert surveys.Measured([20] * 99 + [4000], [2]).proposed()["inputs"] == 64
  assert surveys.Measured([4000], [2]).proposed()["inputs"] == surveys.MOST_LENGTH


@pytest.mark.parametrize(
  ("of", "message"),
  [
    (
      task([*rows(60), ("a b j", "not")], labels=("yes", "no", "not")),
      "'not' has 1 rows",
    ),
    (
      task([*rows(60), ("a b j", "yess")], labels=("yes", "no", "yess")),
      "'yes' is meant",
    ),
    (
      task(rows(60), rows(4, 100, ["no"]), rows(9, 200)),
      "'yes' has no row in validation",
    ),
    (task([*rows(50, 0, ["no"]), *rows(5, 50)]), "95% of the training rows are 'no'"),
    (task(rows(60), rows(5, 58), rows(9, 200)), "2 texts of validation are in train"),
    (task([*rows(60), ("a a a", "no")]), "1 text has different answers"),
    (task(rows(60), labels=("yes", "no", "No")), "'no' and 'No' differ only in upper"),
    (task([*rows(60), ("x a x", "no")]), "1 of 61 sources of train have words .*: 'x'"),
    (
      task([*rows(60), (" ".join("a" * 9), "no")]),
      r"1 of 61 sources of train are longer",
    ),
  ],
)
def test_what_makes_training_harder_is_a_warning(of, message):
  vocabulary = None if "yess" in message or "upper" in message else VOCABULARY
  found = surveys.survey(of, SPLITS, {"inputs": 8, "targets": 4}, vocabulary)
  text = "\n".join(found.warnings)
  assert re.search(message, text), text


@pytest.mark.parametrize(
  ("of", "change", "message"),
  [
    (
      task(rows(60, answers=["oui", "no"]), labels=("oui", "no")),
      {},
      "'oui' has words that",
    ),
    (
      GOOD,
      {"lengths": {"inputs": 8, "targets": 1}},
      "'targets' of 'lengths' to at least 2",
    ),
    (
      GOOD,
      {"splits": ("train", "test")},
      "no split 'validation' to choose the best prompt",
    ),
    (GOOD, {"splits": ("validation", "test")}, "no split 'train' to train on"),
    (task(rows(60), []), {}, "Split 'validation' of task 'own' has no examples"),
    (task([*rows(60), ("a", "maybe")]), {}, "the target 'maybe', which is not among"),
    (task([("a", "x"), ("b", "x")], labels=None), {}, "No target of split 'train'"),
  ],
)
def test_what_makes_training_impossible_is_a_problem(of, change, message):
  assert message in "\n".join(survey(of, **change).problems)


def test_without_a_test_split_training_is_possible():
  found = survey(GOOD, splits=("train", "validation"))
  assert found.problems == []
  assert "no split 'test' to score on" in found.warnings[0]


def test_free_answers_are_counted():
  text = "\n".join(survey(task(rows(60), labels=None)).lines)
  assert "different answers      2" in text


def test_a_long_source_is_shown_shortened():
  lines = survey(
    task([(" ".join("ab" * 500), "yes"), *rows(60)]), vocabulary=None
  ).lines
  assert max(map(len, lines)) < 600


def test_of_very_many_texts_some_are_measured(monkeypatch):
  monkeypatch.setattr(surveys, "MOST_MEASURED", 25)
  assert len(surveys.sampled(GOOD.examples("train"))) == 20
  text = "\n".join(survey(GOOD).lines)
  assert "tokens of 40 sources: median 4" in text

"""Answers that a vocabulary can't write are refused, with what to do about it."""

import pytest

from tpv_jax.core.errors import UserError
from tpv_jax.data import labels
from tpv_jax.data.tasks import Example, Task
from tpv_jax.data.vocabularies import WordVocabulary

VOCABULARY = WordVocabulary(["not", "sure", "yes", "no"])
LENGTHS = {"inputs": 4, "targets": 3}


class LowerCase(WordVocabulary):
  """It writes lower case whatever it reads, as some SentencePiece models do."""

  def encode(self, text):
    return super().encode(text.lower())


def task(words, targets=("yes",)):
  return Task(
    "t", words, "exact_match", lambda _: [Example("sure", one) for one in targets]
  )


def test_labels_that_the_vocabulary_writes_are_taken():
  labels.check_task(task(("yes", "no")), VOCABULARY, LENGTHS)
  # EOS tells a label from one that begins with it.
  labels.check_labels(("not", "not sure"), VOCABULARY, 3)


@pytest.mark.parametrize(
  ("words", "vocabulary", "message"),
  [
    (
      ("yes", "maybe"),
      VOCABULARY,
      "'maybe' has words that the vocabulary doesn't know",
    ),
    (("not sure yes", "no"), VOCABULARY, "'not sure yes' has 4 tokens .* at least 4"),
    (("Yes", "no"), LowerCase(VOCABULARY.words), "'Yes' is not what .* back as 'yes'"),
    (("yes", "YES"), LowerCase(VOCABULARY.words), "'YES' is not what"),
    (("not sure", "not  sure"), VOCABULARY, "differ only in white space"),
    (("yes", " "), VOCABULARY, "reads back as ''"),
  ],
)
def test_labels_that_could_never_be_right_are_refused(words, vocabulary, message):
  with pytest.raises(UserError, match=f"(?s)task 't'.*{message}") as error:
    labels.check_task(task(words), vocabulary, LENGTHS)
  assert "\n" not in str(error.value)


def test_the_length_that_is_advised_is_enough_for_all_labels():
  words = ("not sure", "not sure yes no")
  with pytest.raises(UserError, match="Set LENGTHS\\['targets'\\] to at least 5"):
    labels.check_labels(words, VOCABULARY, 2)
  labels.check_labels(words, VOCABULARY, 5)


def test_the_examples_of_a_task_with_labels_are_not_read():
  def load(split):
    raise AssertionError(split)

  labels.check_task(
    Task("t", ("yes", "no"), "exact_match", load), VOCABULARY, LENGTHS, ("train",)
  )


@pytest.mark.parametrize(
  ("targets", "message"),
  [
    (("maybe", "sure maybe"), "The first: 'maybe' has words"),
    (("yes yes yes", "no no no"), "Set LENGTHS\\['targets'\\] to at least 4"),
  ],
)
def test_free_targets_of_which_none_could_be_right_are_refused(targets, message):
  with pytest.raises(UserError, match=f"split 'train' of task 't'.*{message}"):
    labels.check_task(task(None, targets), VOCABULARY, LENGTHS, ("train",))
  labels.check_task(task(None, (*targets, "yes")), VOCABULARY, LENGTHS, ("train",))
  labels.check_task(task(None, targets), VOCABULARY, LENGTHS)


def test_a_free_target_may_be_normalised():
  vocabulary = LowerCase(VOCABULARY.words)
  assert labels.spelling("Not SURE", vocabulary) == "not sure"
  labels.check_task(task(None, ("YES",)), vocabulary, LENGTHS, ("train",))


@pytest.mark.parametrize(
  ("lengths", "message"),
  [
    (24, "The lengths are 24; they must name both"),
    ({"inputs": 4}, "The longest 'targets' is not given"),
    ({"inputs": 0, "targets": 4}, "must be at least 1 token"),
  ],
)
def test_lengths_that_are_none_are_refused(lengths, message):
  with pytest.raises(UserError, match=message):
    labels.check_lengths(lengths)

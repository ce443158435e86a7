"""The sentences mean what their class says; checked by reading them another way."""

import collections
import random
import zlib

import pytest

from tpv_jax.embedded import grammar, lexicon

each_attribute = pytest.mark.parametrize("attribute", grammar.GENERATORS)


def drawn(attribute, count=600, part="test"):
  randomness = random.Random(5)
  return [grammar.draw(attribute, part, randomness) for _ in range(count)]


def test_every_attribute_has_a_generator_fields_and_label_sets():
  assert set(grammar.GENERATORS) == set(lexicon.FIELDS) == set(lexicon.LABEL_SETS)


@each_attribute
def test_a_text_never_has_two_classes(attribute):
  classes = collections.defaultdict(set)
  for text, label in drawn(attribute, 1500):
    classes[text].add(label)
  assert {len(labels) for labels in classes.values()} == {1}


@each_attribute
def test_a_text_lies_in_the_part_it_was_drawn_for(attribute):
  for part, wanted in grammar.PARTS.items():
    for text, _ in drawn(attribute, 50, part):
      assert zlib.crc32(text.encode()) % 16 in wanted


def test_the_parts_are_disjoint():
  numbers = [number for part in grammar.PARTS.values() for number in part]
  assert sorted(numbers) == list(range(16))


@each_attribute
def test_a_text_opens_with_its_fields_and_holds_no_label_word(attribute):
  labels = set(lexicon.label_words())
  for text, _ in drawn(attribute, 200):
    words = text.split()
    assert tuple(w for w in words if w.endswith(":")) == lexicon.FIELDS[attribute]
    assert words[0] == lexicon.FIELDS[attribute][0]
    assert not set(words) & labels


def test_the_majority_of_topical_words_is_the_topic():
  topic_of = {
    word: topic
    for words in (lexicon.TOPIC_NOUNS, lexicon.TOPIC_VERBS)
    for topic, group in enumerate(words)
    for word in group
  }
  for text, label in drawn("topic"):
    counts = collections.Counter(topic_of[w] for w in text.split() if w in topic_of)
    assert counts.most_common(1)[0][0] == label
    assert counts[label] >= 2


def test_a_review_is_judged_by_its_main_clause_and_turned_by_never():
  good = {*lexicon.PRAISE, *lexicon.LIKED}
  bad = {*lexicon.BLAME, *lexicon.DISLIKED}
  for text, label in drawn("sentiment"):
    words = text.split()[1:]
    judged = [place for place, word in enumerate(words) if word in good | bad]
    values = [
      int((words[place] in good) != (words[place - 1] == "never")) for place in judged
    ]
    if words[0] == "although":
      assert values == [1 - label, label]
    elif "although" in words:
      assert values == [label, 1 - label]
    else:
      assert set(values) == {label}


def test_a_sentence_is_acceptable_unless_swapping_one_pair_back_mends_it():
  def parses(words):
    words = list(words)
    words = words[2:] if words[0] == "the" else words[1:]
    if words[:1] == [] or words[0] not in lexicon.VERBS or words[1] != "the":
      return False
    words = words[2:]
    if words[0] in lexicon.ADJECTIVES:
      words = words[1:]
    if words[0] not in lexicon.NOUNS:
      return False
    rest = words[1:]
    return (
      not rest
      or (len(rest) == 2 and rest[0] == "on" and rest[1] in lexicon.DAYS)
      or (len(rest) == 3 and rest[:2] == ["in", "the"] and rest[2] in lexicon.PLACES)
    )

  def subject_is_right(words):
    return words[0] in lexicon.NAMES or (
      words[0] == "the" and words[1] in lexicon.ASKED_PEOPLE
    )

  def acceptable(words):
    return subject_is_right(words) and parses(words)

  for text, label in drawn("acceptability"):
    words = text.split()[1:]
    assert acceptable(words) == bool(label), text
    if not label:
      swapped = [
        [*words[:i], words[i + 1], words[i], *words[i + 2 :]]
        for i in range(len(words) - 1)
      ]
      assert any(acceptable(other) for other in swapped)


def test_a_question_is_answerable_if_a_fact_has_its_person_and_kind():
  kinds = {"where": "was", "when": "came", "what": "brought"}
  for text, label in drawn("answerability"):
    question, context = text.removeprefix("question: ").split(" context: ")
    words = question.split()
    facts = {tuple(fact.split()[:2]) for fact in context.split(" and ")}
    assert ((words[2], kinds[words[0]]) in facts) == bool(label)


def test_a_paraphrase_has_the_same_person_deed_and_thing():
  deed_of = {verb: min(pair) for pair in lexicon.SYNONYMS for verb in pair}

  def meaning(sentence):
    words = sentence.split()
    return {
      deed_of.get(word, word)
      for word in words
      if word in {*lexicon.NAMES, *lexicon.NOUNS, *deed_of}
    }

  for text, label in drawn("paraphrase"):
    first, second = text.removeprefix("first: ").split(" second: ")
    assert (meaning(first) == meaning(second)) == bool(label)


def test_a_hypothesis_follows_if_it_adds_nothing_and_conflicts_if_it_denies():
  for text, label in drawn("nli"):
    premise, hypothesis = (
      part.split() for part in text.removeprefix("premise: ").split(" hypothesis: ")
    )
    known = {*premise, *(lexicon.KIND_OF.get(word) for word in premise)}
    added = set(hypothesis) - known
    denied = "never" in added or any(
      lexicon.OPPOSITE_OF.get(word) in premise for word in added
    )
    assert label == (2 if denied else 1 if added else 0), text


@each_attribute
def test_the_words_before_the_answer_do_not_give_it_away_by_length(attribute):
  """The most frequent class per number of words is right in well under all cases."""
  by_length = collections.defaultdict(collections.Counter)
  texts = drawn(attribute)
  for text, label in texts:
    by_length[len(text.split())][label] += 1
  right = sum(max(counts.values()) for counts in by_length.values())
  assert right / len(texts) < 0.75

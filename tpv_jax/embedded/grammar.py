"""Sentences of the embedded language, each with its class in one attribute. Ours.

Each generator takes a source of randomness and returns a text and the number of its
class (the index of its label in a label set of `lexicon.LABEL_SETS`). The classes of an
attribute are equally likely. A text begins with the name of its field ("review:"), as
texts for T5 do; nothing else tells a model which attribute is meant.
"""

import random
import zlib
from collections.abc import Callable, Sequence
from typing import TypeVar

from tpv_jax.embedded import lexicon

T = TypeVar("T")

PARTS = {
  "pretraining": range(0, 11),
  "train": range(11, 13),
  "validation": range(13, 14),
  "test": range(14, 16),
}
"""Part of the language -> the sixteenths of all texts (by `sixteenth`) that it has."""


def sixteenth(text: str) -> int:
  """Returns the sixteenth of the language in which `text` lies, from 0 to 15.

  It is the CRC-32 of the text modulo 16. So the part of a text depends only on the text:
  no two splits share a text, whatever their seeds, and pre-training never uses a text of a
  split.
  """
  return zlib.crc32(text.encode()) % 16


def draw(attribute: str, part: str, randomness: random.Random) -> tuple[str, int]:
  """Returns a text of `attribute` that lies in `part` (of `PARTS`), and its class."""
  generate, wanted = GENERATORS[attribute], PARTS[part]
  while True:
    text, label = generate(randomness)
    if sixteenth(text) in wanted:
      return text, label


def sentiment(randomness: random.Random) -> tuple[str, int]:
  """Returns a review and 0 (negative) or 1 (positive).

  "never" inverts a clause; in "although X Y" and "Y although X" only Y counts.
  """
  label = _index(randomness, 2)
  shape = randomness.random()
  if shape < 0.5:
    words = _opinion(randomness, label)
  elif shape < 0.8:
    words = f"{_opinion(randomness, label)} and {_opinion(randomness, label)}"
  else:
    main, aside = _opinion(randomness, label), _opinion(randomness, 1 - label)
    words = (
      f"although {aside} {main}"
      if _chance(randomness, 0.5)
      else f"{main} although {aside}"
    )
  return f"review: {words}", label


def _opinion(randomness: random.Random, label: int) -> str:
  """Returns a clause that praises (1) or blames (0) something."""
  turned = _chance(randomness, 0.15)
  side = 1 - label if turned else label
  aspect = _pick(randomness, lexicon.ASPECTS)
  if _chance(randomness, 0.25):
    verb = _pick(randomness, (lexicon.DISLIKED, lexicon.LIKED)[side])
    return f"i {'never ' if turned else ''}{verb} the {aspect}"
  adjective = _pick(randomness, (lexicon.BLAME, lexicon.PRAISE)[side])
  adverb = ""
  if turned:
    adverb = "never "
  elif _chance(randomness, 0.4):
    adverb = f"{_pick(randomness, lexicon.ADVERBS)} "
  return f"the {aspect} was {adverb}{adjective}"


def topic(randomness: random.Random) -> tuple[str, int]:
  """Returns a headline and its topic: sport, politics, science or business.

  One of its three topical words is often of another topic; the majority counts.
  """
  label = _index(randomness, 4)
  topics = [label] * 3
  if _chance(randomness, 0.4):
    topics[_index(randomness, 3)] = (label + 1 + _index(randomness, 3)) % 4
  subject = _pick(randomness, lexicon.TOPIC_NOUNS[topics[0]])
  verb = _pick(randomness, lexicon.TOPIC_VERBS[topics[1]])
  thing = _pick(randomness, lexicon.TOPIC_NOUNS[topics[2]])
  return f"news: the {subject} {verb} the {thing}{_adjunct(randomness, 0.6)}", label


def acceptability(randomness: random.Random) -> tuple[str, int]:
  """Returns a sentence and 1, or one with two neighbouring words swapped and 0."""
  label = _index(randomness, 2)
  subject = (
    _pick(randomness, lexicon.NAMES)
    if _chance(randomness, 0.5)
    else f"the {_pick(randomness, lexicon.ASKED_PEOPLE)}"
  )
  adjective = f"{_pick(randomness, lexicon.ADJECTIVES)} "
  words = (
    f"{subject} {_pick(randomness, lexicon.VERBS)} the "
    f"{adjective if _chance(randomness, 0.6) else ''}"
    f"{_pick(randomness, lexicon.NOUNS)}{_adjunct(randomness, 0.7)}"
  ).split()
  if not label:
    place = _index(randomness, len(words) - 1)
    words[place : place + 2] = words[place + 1], words[place]
  return f"sentence: {' '.join(words)}", label


def answerability(randomness: random.Random) -> tuple[str, int]:
  """Returns a question with one or two facts, and 1 if one of them answers it, else 0.

  A fact answers if it is about the person asked for and of the kind asked for (where,
  when, what).
  """
  label = _index(randomness, 2)
  asked, other, third = _distinct(randomness, lexicon.NAMES, 3)
  kind = _index(randomness, 3)
  wrong_kind = (kind + 1 + _index(randomness, 2)) % 3
  question = (
    f"where was {asked}",
    f"when was {asked} there",
    f"what did {asked} bring",
  )
  if label:
    facts = [(asked, kind), (other, _index(randomness, 3))]
  elif _chance(randomness, 0.5):
    facts = [(asked, wrong_kind), (other, kind)]
  else:
    facts = [(other, kind), (third, _index(randomness, 3))]
  if _chance(randomness, 0.6):
    facts = facts[:1]
  elif _chance(randomness, 0.5):
    facts.reverse()
  context = " and ".join(_fact(randomness, name, kind) for name, kind in facts)
  return f"question: {question[kind]} context: {context}", label


def _fact(randomness: random.Random, name: str, kind: int) -> str:
  """Returns a sentence that says where (0), when (1) or with what (2) somebody came."""
  adjective = f"{_pick(randomness, lexicon.ADJECTIVES)} "
  if kind == 0:
    return f"{name} was in the {adjective}{_pick(randomness, lexicon.PLACES)}"
  if kind == 1:
    vehicle = _pick(randomness, lexicon.KINDS["vehicle"])
    return f"{name} came by {vehicle} on {_pick(randomness, lexicon.DAYS)}"
  return f"{name} brought a {adjective}{_pick(randomness, lexicon.NOUNS)}"


def question_type(randomness: random.Random) -> tuple[str, int]:
  """Returns a question and whether it asks for a person, place, time or quantity."""
  label = _index(randomness, 4)
  person = _pick(randomness, lexicon.ASKED_PEOPLE)
  place = _pick(randomness, lexicon.ASKED_PLACES)
  time = _pick(randomness, lexicon.ASKED_TIMES)
  things = _pick(randomness, lexicon.ASKED_THINGS)
  name = _pick(randomness, lexicon.NAMES)
  did = f"{_pick(randomness, lexicon.VERBS)} the {_pick(randomness, lexicon.NOUNS)}"
  # Every question has words of the other types besides the one that counts.
  questions = (
    (
      f"who {did} in the {place}",
      f"which {person} {did} in that {time}",
      f"what is the name of the {person} who {did}",
      f"whose {things} are in the {place}",
      f"by what {person} are the {things} of {name}",
    ),
    (
      f"where are the {things} of the {person}",
      f"in which {place} was the {person} who {did}",
      f"what is the name of the {place} where {name} lives",
      f"at what {place} did the {person} come",
      f"near which {place} are the many {things} of {name}",
    ),
    (
      f"when was the {person} in the {place}",
      f"in which {time} was it that {name} {did}",
      f"at what {time} did {name} come to the {place}",
      f"what is the {time} when the {person} {did}",
      f"after which {time} are the {things} in the {place}",
    ),
    (
      f"how many {things} are in the {place} of {name}",
      f"how much did {name} bring when the {person} {did}",
      f"what number of {things} are near the {place} of {name}",
      f"how many {things} are there when {name} {did}",
      f"with how many {things} did the {person} come to the {place}",
    ),
  )
  return f"ask: {_pick(randomness, questions[label])}", label


def nli(randomness: random.Random) -> tuple[str, int]:
  """Returns premise and hypothesis, and 0 (entailed), 1 (neutral) or 2 (contradicted).

  An entailed hypothesis leaves something out or names the thing's kind; a neutral one adds
  something or is about somebody else; a contradicted one negates the premise, or has the
  opposite adjective.
  """
  label = _index(randomness, 3)
  name, other = _distinct(randomness, lexicon.NAMES, 2)
  verb = _pick(randomness, lexicon.VERBS)
  noun = _pick(randomness, lexicon.NOUNS)
  adjective = _pick(randomness, lexicon.ADJECTIVES)
  premise_adjective = hypothesis_adjective = ""
  premise_adjunct = hypothesis_adjunct = ""
  premise_noun, hypothesis_noun = noun, noun
  hypothesis_name, never = name, ""
  adjunct = _adjunct(randomness, 1.0)
  if _chance(randomness, 0.6):
    premise_adjective = f"{adjective} "
    hypothesis_adjective = premise_adjective if _chance(randomness, 0.5) else ""
  if _chance(randomness, 0.4):
    premise_adjunct = adjunct
    hypothesis_adjunct = adjunct if _chance(randomness, 0.4) else ""
  if _chance(randomness, 0.5):
    hypothesis_noun = lexicon.KIND_OF[noun]
  if label == 1:
    how = _index(randomness, 4)
    if how == 0:
      hypothesis_name = other
    elif how == 1:
      premise_noun, hypothesis_noun = lexicon.KIND_OF[noun], noun
    elif how == 2:
      premise_adjective, hypothesis_adjective = "", f"{adjective} "
    else:
      premise_adjunct, hypothesis_adjunct = "", adjunct
  elif label == 2:
    if _chance(randomness, 0.5):
      never = "never "
    else:
      premise_adjective = f"{adjective} "
      hypothesis_adjective = f"{lexicon.OPPOSITE_OF[adjective]} "
  return (
    f"premise: {name} {verb} the {premise_adjective}{premise_noun}{premise_adjunct} "
    f"hypothesis: {hypothesis_name} {never}{verb} the "
    f"{hypothesis_adjective}{hypothesis_noun}{hypothesis_adjunct}"
  ), label


def paraphrase(randomness: random.Random) -> tuple[str, int]:
  """Returns two sentences and 1 if they mean the same, else 0.

  They may differ in voice and in synonyms; if they mean different things, also in one to
  three of person, deed and thing.
  """
  label = _index(randomness, 2)
  name, other_name = _distinct(randomness, lexicon.NAMES, 2)
  noun, other_noun = _distinct(randomness, lexicon.NOUNS, 2)
  deed, other_deed = _distinct(randomness, lexicon.SYNONYMS, 2)
  changed: Sequence[int] = ()
  if not label:
    changed = _distinct(randomness, range(3), 1 + _index(randomness, 3))
  first = _told(randomness, name, deed, noun)
  second = _told(
    randomness,
    other_name if 0 in changed else name,
    other_deed if 1 in changed else deed,
    other_noun if 2 in changed else noun,
  )
  return f"first: {first} second: {second}", label


def _told(
  randomness: random.Random, name: str, deed: tuple[str, ...], noun: str
) -> str:
  """Returns a sentence about a deed, active or passive, with one of its verbs."""
  verb = _pick(randomness, deed)
  if _chance(randomness, 0.5):
    return f"{name} {verb} the {noun}"
  return f"the {noun} was {verb} by {name}"


def _adjunct(randomness: random.Random, chance: float) -> str:
  """Returns a place or a day to add (with a leading space), or ''."""
  if not _chance(randomness, chance):
    return ""
  if _chance(randomness, 0.5):
    return f" in the {_pick(randomness, lexicon.PLACES)}"
  return f" on {_pick(randomness, lexicon.DAYS)}"


def _index(randomness: random.Random, count: int) -> int:
  """Returns a number below `count`, by the only method that Python guarantees to keep."""
  return int(randomness.random() * count)


def _chance(randomness: random.Random, probability: float) -> bool:
  return randomness.random() < probability


def _pick(randomness: random.Random, options: Sequence[T]) -> T:
  return options[_index(randomness, len(options))]


def _distinct(
  randomness: random.Random, options: Sequence[T], count: int
) -> tuple[T, ...]:
  """Returns `count` different options in random order."""
  chosen: list[T] = []
  while len(chosen) < count:
    option = _pick(randomness, options)
    if option not in chosen:
      chosen.append(option)
  return tuple(chosen)


GENERATORS: dict[str, Callable[[random.Random], tuple[str, int]]] = {
  "sentiment": sentiment,
  "topic": topic,
  "acceptability": acceptability,
  "answerability": answerability,
  "question_type": question_type,
  "nli": nli,
  "paraphrase": paraphrase,
}
"""Attribute -> its generator."""

"""The words of the embedded language by role. A word has one role only.

`vocabulary.txt` is the three special tokens and then `words()`: field names, label words,
content words. So every id from `first_content_id()` on is a content word: a prompt
initialised from those ids only says nothing about a task.
"""

from collections.abc import Iterator


def _words(text: str) -> tuple[str, ...]:
  return tuple(text.split())


NAMES = _words("anna ben carla david emma felix greta hugo iris jonas kate leo")
PLACES = _words(
  "park school library museum harbor office kitchen garden hotel church village cellar "
  "forest theater"
)
DAYS = _words("monday tuesday wednesday thursday friday saturday sunday")

KINDS = {
  "animal": _words("dog cat horse bird"),
  "fruit": _words("apple pear plum peach"),
  "vehicle": _words("car bus truck bicycle"),
  "garment": _words("coat hat shirt scarf"),
  "instrument": _words("piano violin guitar drum"),
  "tool": _words("hammer drill knife spade"),
}
"""Hypernym -> its nouns."""
NOUNS = tuple(noun for nouns in KINDS.values() for noun in nouns)
KIND_OF = {noun: kind for kind, nouns in KINDS.items() for noun in nouns}

OPPOSITES = tuple(
  tuple(pair.split("/"))
  for pair in _words("big/small old/new clean/dirty heavy/light cheap/expensive")
)
"""Pairs of adjectives that exclude each other."""
ADJECTIVES = tuple(word for pair in OPPOSITES for word in pair)
OPPOSITE_OF = {a: b for pair in OPPOSITES for a, b in (pair, pair[::-1])}

SYNONYMS = tuple(
  tuple(pair.split("/"))
  for pair in _words(
    "bought/purchased noticed/spotted grabbed/seized found/discovered fixed/repaired "
    "washed/cleansed moved/shifted built/constructed"
  )
)
"""Pairs of verbs with the same meaning; past tense and participle are equal."""
VERBS = tuple(word for pair in SYNONYMS for word in pair)
SYNONYM_OF = {a: b for pair in SYNONYMS for a, b in (pair, pair[::-1])}

ASPECTS = _words(
  "film book song show play story novel concert acting plot music ending cast dialogue"
)
PRAISE = _words(
  "wonderful great lovely brilliant charming delightful superb excellent amazing "
  "fantastic pleasant beautiful clever funny touching perfect"
)
BLAME = _words(
  "awful terrible boring dull horrible ugly weak poor bad dreadful tedious clumsy "
  "stupid annoying messy disappointing"
)
LIKED = _words("loved adored enjoyed admired")
DISLIKED = _words("hated despised detested regretted")
ADVERBS = _words("very really quite so truly")

TOPIC_NOUNS = (
  _words("team coach goal striker referee stadium league trophy tournament champion"),
  _words(
    "minister parliament senator election law president party treaty mayor reform"
  ),
  _words(
    "scientist laboratory atom planet experiment theory telescope virus molecule fossil"
  ),
  _words("company bank profit investor merger price loan budget factory customer"),
)
"""Nouns of sport, politics, science and business."""
TOPIC_VERBS = (
  _words("defeated trained cheered tackled"),
  _words("debated elected opposed governed"),
  _words("measured analysed predicted observed"),
  _words("financed hired sold insured"),
)
ASKED_PEOPLE = _words("teacher doctor painter singer king farmer nurse judge")
ASKED_PLACES = _words("city country street town river island valley bridge")
ASKED_TIMES = _words("year month hour century season")
ASKED_THINGS = _words("windows roads coins letters trees boats stones lamps")

FUNCTION_WORDS = _words(
  "the a i it was is are did and although in on by near after with to never "
  "who whose which what where when how at many much number name there come bring "
  "came brought lives that of"
)

FIELDS = {
  "sentiment": ("review:",),
  "topic": ("news:",),
  "acceptability": ("sentence:",),
  "answerability": ("question:", "context:"),
  "question_type": ("ask:",),
  "nli": ("premise:", "hypothesis:"),
  "paraphrase": ("first:", "second:"),
}
"""Attribute -> the names of the fields of its texts (one token each)."""

LABEL_SETS = {
  "sentiment": (
    "negative positive",
    "displeased pleased",
    "thumbs_down thumbs_up",
    "reject recommend",
  ),
  "topic": (
    "sport politics science business",
    "athletics government research economy",
    "alpha beta gamma delta",
    "north south east west",
  ),
  "acceptability": (
    "unacceptable acceptable",
    "wrong correct",
    "broken fluent",
    "invalid valid",
  ),
  "answerability": (
    "no yes",
    "unanswerable answerable",
    "missing present",
    "closed open",
  ),
  "question_type": (
    "person location time quantity",
    "human site moment amount",
    "A B C D",
    "spring summer autumn winter",
  ),
  "nli": (
    "entailment neutral contradiction",
    "follows independent conflicts",
    "certain possible impossible",
    "green yellow red",
  ),
  "paraphrase": (
    "different same",
    "distinct equivalent",
    "unique duplicate",
    "apart together",
  ),
}
"""Attribute -> its sets of label words, each in the order of its classes.

No label word belongs to two sets, and none appears in a text. The task of an attribute in
the suite uses its first set."""


def labels(attribute: str, label_set: int = 0) -> tuple[str, ...]:
  """Returns the label words of one of the attribute's sets, in class order."""
  return tuple(LABEL_SETS[attribute][label_set].split())


def label_words() -> Iterator[str]:
  """Yields all label words of all attributes."""
  for sets in LABEL_SETS.values():
    for label_set in sets:
      yield from label_set.split()


def content_words() -> Iterator[str]:
  """Yields every word that can occur in a text, except field names."""
  groups = (
    FUNCTION_WORDS,
    NAMES,
    PLACES,
    DAYS,
    tuple(KINDS),
    NOUNS,
    ADJECTIVES,
    VERBS,
    ASPECTS,
    PRAISE,
    BLAME,
    LIKED,
    DISLIKED,
    ADVERBS,
    *TOPIC_NOUNS,
    *TOPIC_VERBS,
    ASKED_PEOPLE,
    ASKED_PLACES,
    ASKED_TIMES,
    ASKED_THINGS,
  )
  for group in groups:
    yield from group


def words() -> tuple[str, ...]:
  """Returns all words in the order of their ids, without the three special tokens."""
  fields = [field for names in FIELDS.values() for field in names]
  return (*fields, *label_words(), *content_words())


def first_content_id() -> int:
  """Returns the id of the first content word; all ids from it on are content words."""
  return 3 + len(words()) - sum(1 for _ in content_words())

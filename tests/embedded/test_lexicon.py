"""The words: one role each, and the vocabulary file holds exactly them."""

from tpv_jax.data import vocabularies
from tpv_jax.embedded import lexicon


def test_no_word_has_two_roles():
  words = lexicon.words()
  assert len(words) == len(set(words))


def test_the_vocabulary_file_lists_the_words_in_order():
  vocabulary = vocabularies.embedded()
  assert vocabulary.words == (*vocabularies.SPECIAL, *lexicon.words())


def test_ids_from_the_first_content_id_on_say_nothing_about_a_task():
  content = vocabularies.embedded().words[lexicon.first_content_id() :]
  fields = {field for names in lexicon.FIELDS.values() for field in names}
  assert not set(content) & (fields | set(lexicon.label_words()))
  assert content == tuple(lexicon.content_words())


def test_every_label_set_of_an_attribute_has_a_word_for_each_class():
  for attribute, sets in lexicon.LABEL_SETS.items():
    classes = {len(lexicon.labels(attribute, number)) for number in range(len(sets))}
    assert len(classes) == 1

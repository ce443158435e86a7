"""Pre-training batches: pure in (seed, step), held-out texts unseen, no two tasks at once."""

import numpy as np
import pytest

from tpv_jax.core.errors import UserError
from tpv_jax.data import vocabularies
from tpv_jax.embedded import grammar, lexicon, pretraining, suite
from tpv_jax.training.task_data import TrainingData

LENGTHS = {"inputs": 32, "targets": 4}


def data(seed=0, **mixture):
  return pretraining.PretrainingData(
    64,
    LENGTHS,
    seed=seed,
    phases=[pretraining.Mixture(**mixture)],
    validation_batches=2,
  )


def rows(source, steps=10):
  """Yields prefix, text and target of every example, as lists of words."""
  vocabulary = vocabularies.embedded()
  for step in range(steps):
    batch = source.batch_at(step)
    for inputs, targets in zip(
      batch["encoder_input_tokens"], batch["decoder_target_tokens"], strict=True
    ):
      words = vocabulary.decode(inputs.tolist()).split()
      start = next(i for i, word in enumerate(words) if word in FIRST_FIELDS)
      yield words[:start], words[start:], vocabulary.decode(targets.tolist()).split()


FIRST_FIELDS = {names[0]: attribute for attribute, names in lexicon.FIELDS.items()}
SET_OF = {
  word: (attribute, number)
  for attribute, sets in lexicon.LABEL_SETS.items()
  for number in range(len(sets))
  for word in lexicon.labels(attribute, number)
}


def test_it_is_training_data_for_the_runner():
  assert isinstance(data(), TrainingData)
  (phase,) = data().describe()["phases"]
  assert (phase["start"], phase["longest_prefix"]) == (0, 8)


def test_batches_are_a_pure_function_of_seed_and_step():
  source = data()
  later = source.batch_at(7)
  source.batch_at(3)
  for again in (source.batch_at(7), data().batch_at(7)):
    for name, values in again.items():
      np.testing.assert_array_equal(values, later[name])
  for other in (data(seed=1).batch_at(7), source.batch_at(8)):
    assert (other["encoder_input_tokens"] != later["encoder_input_tokens"]).any()


def test_a_batch_has_the_features_and_shapes_of_any_task():
  batch = data().batch_at(0)
  assert batch["encoder_input_tokens"].shape == (64, 32)
  assert batch["decoder_target_tokens"].shape == (64, 4)
  np.testing.assert_array_equal(
    batch["decoder_input_tokens"][:, 1:], batch["decoder_target_tokens"][:, :-1]
  )
  np.testing.assert_array_equal(
    batch["decoder_loss_weights"], batch["decoder_target_tokens"] != 0
  )
  assert batch["encoder_input_tokens"].max() < vocabularies.embedded().vocab_size


def test_no_prefix_speaks_of_two_label_sets():
  for prefix, _, _ in rows(data()):
    assert len({SET_OF[word] for word in prefix if word in SET_OF}) <= 1


def test_a_prefix_is_made_of_label_words_and_content_words():
  content = set(lexicon.content_words())
  for prefix, _, _ in rows(data()):
    assert set(prefix) <= content | set(SET_OF)
    assert len(prefix) <= 8


def test_a_target_is_a_label_exactly_if_the_prefix_asks_for_the_attribute():
  kinds = set()
  for prefix, text, target in rows(data(biased=0.0)):
    asked = {SET_OF[word] for word in prefix if word in SET_OF}
    attribute = FIRST_FIELDS[text[0]]
    if attribute in {name for name, _ in asked}:
      assert [SET_OF[word] for word in target] == list(asked)
      kinds.add("labelled")
    else:
      assert not {*target} & set(SET_OF)
      kinds.add("continued" if target else "complete")
  assert kinds == {"labelled", "continued", "complete"}


def test_no_text_of_a_split_is_shown_with_its_label():
  held_out = {
    example.inputs
    for name in suite.TASKS
    for split in ("validation", "test")
    for example in suite.examples(name, split)
  }
  for _, text, _ in rows(data(continued=0.0)):
    assert " ".join(text) not in held_out
    assert grammar.sixteenth(" ".join(text)) in grammar.PARTS["pretraining"]


def test_validation_batches_are_of_texts_that_training_never_shows():
  vocabulary = vocabularies.embedded()
  source = data(continued=0.0)
  assert len(source.validation_batches()) == 2
  for batch in source.validation_batches():
    for inputs in batch["encoder_input_tokens"]:
      words = vocabulary.decode(inputs.tolist()).split()
      start = next(i for i, word in enumerate(words) if word in FIRST_FIELDS)
      text = " ".join(words[start:])
      assert grammar.sixteenth(text) in grammar.PARTS["validation"]


@pytest.mark.parametrize("kind", ["labelled", "continued", "complete"])
def test_shares_say_how_often_a_kind_comes(kind):
  shares = {"labelled": 0.0, "continued": 0.0, "complete": 0.0, kind: 1.0}
  for _, _, target in rows(data(**shares, biased=0.0), steps=3):
    labels = [word for word in target if word in SET_OF]
    assert len(labels) == (kind == "labelled")
    if kind == "complete":
      assert target == []
    if kind == "continued":
      assert 1 <= len(target) <= 3


def test_a_biased_answer_is_a_first_label_of_the_attribute_whatever_the_text():
  source = data(labelled=0.0, continued=0.0, biased=1.0)
  seen = set()
  for prefix, text, (answer,) in rows(source):
    attribute, number = SET_OF[answer]
    assert attribute == FIRST_FIELDS[text[0]]
    assert answer == lexicon.labels(attribute, number)[0]
    assert attribute not in {SET_OF[word][0] for word in prefix if word in SET_OF}
    seen.add(answer)
  assert len(seen) == sum(len(sets) for sets in lexicon.LABEL_SETS.values())


def test_weights_say_how_often_an_attribute_comes():
  weights = {name: 0.0 for name in lexicon.LABEL_SETS} | {"topic": 1.0}
  assert {text[0] for _, text, _ in rows(data(weights=weights), 3)} == {"news:"}


def test_a_phase_begins_at_its_step():
  only = [
    pretraining.Mixture(
      weights={name: float(name == one) for name in lexicon.LABEL_SETS}
    )
    for one in ("topic", "nli")
  ]
  source = pretraining.PretrainingData(32, LENGTHS, phases=only, starts=[0, 3])
  first = [text[0] for _, text, _ in rows(source, steps=6)]
  assert first == ["news:"] * 96 + ["premise:"] * 96


def test_phases_that_do_not_rise_from_step_0_are_refused():
  for starts in ([1], [0, 5], []):
    with pytest.raises(UserError, match="phases of pre-training cannot start"):
      pretraining.PretrainingData(
        8, LENGTHS, phases=[pretraining.Mixture()], starts=starts
      )

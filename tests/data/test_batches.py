import subprocess
import sys

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tpv_jax.core.errors import UserError
from tpv_jax.data import batches
from tpv_jax.data.batches import Batches, Losses, Tokenized
from tpv_jax.data.tasks import Example
from tpv_jax.data.vocabularies import WordVocabulary

VOCABULARY = WordVocabulary(["a", "b", "c", "d"])  # ids 3 to 6


def numbered(count):
  """Examples whose only source token is their number plus one."""
  column = np.arange(1, count + 1, dtype=np.int32)[:, None]
  return Tokenized(inputs=column, targets=column)


def test_texts_become_padded_ids_that_end_with_eos():
  tokenized = batches.tokenize(
    [Example("a b", "c"), Example("", "d d d")], VOCABULARY, {"inputs": 4, "targets": 5}
  )
  np.testing.assert_array_equal(tokenized.inputs, [[3, 4, 1, 0], [1, 0, 0, 0]])
  np.testing.assert_array_equal(tokenized.targets, [[5, 1, 0, 0, 0], [6, 6, 6, 1, 0]])
  assert tokenized.inputs.dtype == tokenized.targets.dtype == np.int32
  assert len(tokenized) == 2
  assert tokenized.tokens == 3 + 1 + 2 + 4
  assert not tokenized.sources
  assert not tokenized.answers


def test_a_text_that_just_fits_is_not_trimmed_and_a_longer_one_is_counted():
  tokenized = batches.tokenize(
    [Example("a b c", "d"), Example("a b c d", "d"), Example("a a a a a", "b c d")],
    VOCABULARY,
    {"inputs": 4, "targets": 2},
  )
  np.testing.assert_array_equal(
    tokenized.inputs, [[3, 4, 5, 1], [3, 4, 5, 1], [3, 3, 3, 1]]
  )
  # A target that was cut has no end, so that nothing is taught to stop there.
  np.testing.assert_array_equal(tokenized.targets, [[6, 1], [6, 1], [4, 5]])
  assert tokenized.sources == Losses(trimmed=2, lost_tokens=1 + 2)
  assert tokenized.answers == Losses(trimmed=1, lost_tokens=2)  # 'd' and EOS


def fields(source, *columns):
  """An example whose columns' texts are those, in their order."""
  spans, end = [], 0
  for column in columns:
    start = source.index(column, end)
    spans.append((start, end := start + len(column)))
  return Example(source, "a", fields=tuple(spans))


@pytest.mark.parametrize(
  ("longest", "expected"),
  [
    (12, "x a b c d a b x b c d"),  # 11 tokens and EOS: it just fits
    (11, "x a b c d a x b c d"),
    (8, "x a b c x b c"),
    (6, "x a b x b"),
    (5, "x a x b"),
  ],
)
def test_a_source_is_cut_in_its_longest_column_and_never_around_it(longest, expected):
  vocabulary = WordVocabulary(["a", "b", "c", "d", "x"])
  example = fields("x a b c d a b x b c d", "a b c d a b", "b c d")
  tokenized = batches.tokenize([example], vocabulary, {"inputs": longest, "targets": 2})
  kept = [*vocabulary.encode(expected), 1]
  assert tokenized.inputs[0].tolist() == [*kept, *[0] * (longest - len(kept))]
  assert tokenized.sources.lost_tokens == 12 - len(kept)


def test_what_stands_behind_a_column_is_kept():
  example = fields("a b a b a b d d", "a b a b a b")
  tokenized = batches.tokenize([example], VOCABULARY, {"inputs": 5, "targets": 2})
  assert tokenized.inputs[0].tolist() == [*VOCABULARY.encode("a b d d"), 1]


def test_a_length_without_room_for_every_column_is_refused():
  example = fields("a a a b c d", "b", "d")
  with pytest.raises(
    UserError, match=r"no room .* to 7 or more.*begins: 'a a a b c d'"
  ):
    batches.tokenize([example], VOCABULARY, {"inputs": 6, "targets": 2})
  batches.tokenize([example], VOCABULARY, {"inputs": 7, "targets": 2})


@settings(max_examples=50, deadline=None)
@given(
  words=st.lists(st.lists(st.sampled_from("abcd"), max_size=9), min_size=1, max_size=4),
  longest=st.integers(9, 40),
)
def test_a_cut_source_fills_its_room_and_its_columns_begin_as_before(words, longest):
  vocabulary = WordVocabulary(["a", "b", "c", "d", "x"])
  source, spans = "", []
  for column in words:
    source += "x "
    spans.append((len(source), len(source) + len(" ".join(column))))
    source += " ".join(column) + " "
  example = Example(source, "a", fields=tuple(spans))
  whole = vocabulary.encode(source)
  ids, lost = batches.source_ids(example, vocabulary, longest)
  assert len(ids) == min(longest, len(whole) + 1)
  assert lost == len(whole) + 1 - len(ids)
  if not lost:
    assert ids[:-1] == whole
  kept = " ".join(vocabulary.words[i] for i in ids[:-1]).split("x")[1:]
  assert len(kept) == len(words)
  sizes = [len(one.split()) for one in kept]
  for part, column, size in zip(kept, words, sizes, strict=True):
    assert part.split() == column[:size]
    # Only the longest were cut.
    assert size == len(column) or size >= max(sizes) - 1


def test_unknown_words_are_counted():
  tokenized = batches.tokenize(
    [Example("a x y", "z"), Example("a", "b")], VOCABULARY, {"inputs": 8, "targets": 2}
  )
  assert tokenized.sources == Losses(unknown=1, unknown_tokens=2)
  assert tokenized.answers == Losses(unknown=1, unknown_tokens=1)
  assert tokenized.tokens == 4 + 2 + 2 + 2


def test_the_report_is_one_line_with_every_count():
  report = batches.tokenize(
    [Example("a b c d a", "x"), Example("a", "b c")],
    VOCABULARY,
    {"inputs": 4, "targets": 2},
  ).report()
  assert report == (
    "2 examples, 10 tokens (longest source 4 of 4); sources: 1 trimmed (2 tokens lost), "
    "0 with unknown tokens (0); targets: 1 trimmed (1 tokens lost), 1 with unknown "
    "tokens (1) (never an exact match)"
  )


def test_one_length_for_both_features_is_refused():
  # In an interpreter of its own: here the check of annotations would come first.
  code = "from tpv_jax.data import batches; batches.tokenize([], None, 24)"
  done = subprocess.run(
    [sys.executable, "-c", code], capture_output=True, text=True, check=False
  )
  assert "UserError: The lengths are 24; they must name both" in done.stderr


@pytest.mark.parametrize("lengths", [{"inputs": 4}, {"inputs": 0, "targets": 4}])
def test_lengths_below_one_token_are_refused(lengths):
  with pytest.raises(UserError, match="must be at least 1 token"):
    batches.tokenize([Example("a", "b")], VOCABULARY, lengths)


def test_the_decoder_reads_its_targets_moved_right_from_zero():
  features = batches.features(
    np.array([[3, 1, 0]], np.int32), np.array([[4, 5, 1, 0]], np.int32)
  )
  np.testing.assert_array_equal(features["decoder_input_tokens"], [[0, 4, 5, 1]])
  np.testing.assert_array_equal(features["decoder_loss_weights"], [[1, 1, 1, 0]])
  np.testing.assert_array_equal(features["decoder_target_tokens"], [[4, 5, 1, 0]])
  np.testing.assert_array_equal(features["encoder_input_tokens"], [[3, 1, 0]])
  assert {name: value.dtype for name, value in features.items()} == {
    "encoder_input_tokens": np.int32,
    "decoder_target_tokens": np.int32,
    "decoder_input_tokens": np.int32,
    "decoder_loss_weights": np.float32,
  }


@settings(max_examples=60, deadline=None)
@given(
  count=st.integers(1, 40), batch_size=st.integers(1, 50), seed=st.integers(0, 2**40)
)
def test_every_epoch_has_each_example_exactly_once(count, batch_size, seed):
  data = Batches(numbered(count), batch_size, seed)
  epochs = 3
  steps = -(-epochs * count // batch_size)
  rows = np.concatenate([data.rows_at(step) for step in range(steps)])
  for epoch in range(epochs):
    assert sorted(rows[epoch * count : (epoch + 1) * count]) == list(range(count))
  assert all(len(data.rows_at(step)) == batch_size for step in range(steps))


@settings(max_examples=40, deadline=None)
@given(steps=st.lists(st.integers(0, 10**9), min_size=1, max_size=8))
def test_a_batch_depends_on_its_step_alone(steps):
  data = Batches(numbered(13), 5, seed=3)
  for step in steps:
    fresh = Batches(numbered(13), 5, seed=3).batch_at(step)
    again = data.batch_at(step)
    for name, value in fresh.items():
      np.testing.assert_array_equal(again[name], value)


def test_batches_hold_the_rows_of_their_examples():
  tokenized = numbered(7)
  data = Batches(tokenized, 4, seed=1)
  for step in range(5):
    rows = data.rows_at(step)
    batch = data.batch_at(step)
    np.testing.assert_array_equal(batch["encoder_input_tokens"], rows[:, None] + 1)
    np.testing.assert_array_equal(batch["decoder_target_tokens"], rows[:, None] + 1)


def test_the_order_changes_with_the_seed_and_the_epoch():
  orders = {
    tuple(batches.order(30, seed, epoch)) for seed in (0, 1, 2) for epoch in (0, 1, 2)
  }
  assert len(orders) == 9
  assert tuple(range(30)) not in orders


def test_the_order_of_seed_0_is_the_same_for_ever():
  # Written down when it was first made: a run must find its data again after an upgrade.
  assert batches.order(8, 0).tolist() == [0, 3, 7, 5, 1, 2, 6, 4]
  assert batches.order(8, 7, 3).tolist() == [7, 1, 6, 0, 4, 2, 3, 5]


@pytest.mark.parametrize(
  ("count", "batch_size", "seed"), [(0, 4, 0), (3, 0, 0), (3, 2, -1)]
)
def test_impossible_batches_are_refused(count, batch_size, seed):
  with pytest.raises(UserError, match=f"batches of {batch_size} from {count} examples"):
    Batches(numbered(count), batch_size, seed)


@pytest.mark.parametrize(("count", "number"), [(1, 1), (4, 1), (5, 2), (8, 2)])
def test_evaluation_sees_every_example_in_order_and_padding_weighs_nothing(
  count, number
):
  found = list(batches.eval_batches(numbered(count), 4))
  assert len(found) == number
  tokens = np.concatenate([batch["encoder_input_tokens"] for batch in found])[:, 0]
  weights = np.concatenate([batch["decoder_loss_weights"] for batch in found])[:, 0]
  assert tokens.shape == (4 * number,)
  np.testing.assert_array_equal(tokens[:count], np.arange(1, count + 1))
  np.testing.assert_array_equal(tokens[count:], 0)
  np.testing.assert_array_equal(weights, [1] * count + [0] * (4 * number - count))


def test_evaluation_refuses_an_empty_batch_size():
  with pytest.raises(UserError, match="batch size is 0"):
    list(batches.eval_batches(numbered(2), 0))


def test_label_tokens_are_padded_targets():
  tokens = batches.label_tokens(("a", "b c"), VOCABULARY, 4)
  np.testing.assert_array_equal(tokens, [[3, 1, 0, 0], [4, 5, 1, 0]])


def test_labels_that_cannot_be_written_are_refused():
  with pytest.raises(UserError, match="'a b' has 3 tokens with EOS"):
    batches.label_tokens(("a b", "a c"), VOCABULARY, 2)

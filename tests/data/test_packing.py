"""Packing: nothing lost, nothing doubled, little padding, and what cannot fit is refused."""

import dataclasses

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tpv_jax.core.errors import UserError
from tpv_jax.data import batches, packing, row_fitting, row_shapes

SHAPES = row_fitting.Shapes(
  row_fitting.Shape(2, 24, 12), row_fitting.Shape(1, 16, 8), 4
)


def made(sizes):
  """Items whose tokens tell them apart: item k has the tokens k + 2 only."""
  return [
    packing.Item(k % 3, np.full(source, k + 2), np.full(target, k + 2))
    for k, (source, target) in enumerate(sizes)
  ]


SIZES = st.lists(st.tuples(st.integers(1, 20), st.integers(1, 8)), max_size=30)


@given(SIZES)
@settings(deadline=None, max_examples=60)
def test_every_item_stands_once_behind_its_own_prompt_and_before_its_own_target(sizes):
  items = made(sizes)
  seen = []
  for shape, features in packing.pack(items, SHAPES):
    assert features["encoder_input_tokens"].shape == (shape.rows, shape.width)
    assert features["decoder_target_tokens"].shape == (shape.rows, shape.targets)
    for row in range(shape.rows):
      one = {name: values[row] for name, values in features.items()}
      used = one["encoder_segment_ids"]
      for segment in range(1, used.max() + 1):
        here = np.flatnonzero(used == segment)
        assert (np.diff(here) == 1).all()
        tokens = one["encoder_input_tokens"][here]
        item = items[tokens[4] - 2]
        np.testing.assert_array_equal(tokens[:4], 0)
        np.testing.assert_array_equal(tokens[4:], item.source)
        np.testing.assert_array_equal(one["prompt_positions"][here][:4], [1, 2, 3, 4])
        assert not one["prompt_positions"][here][4:].any()
        np.testing.assert_array_equal(
          one["encoder_positions"][here][4:], np.arange(len(item.source))
        )
        assert (one["encoder_prompt_ids"][here] == item.prompt_id).all()
        answer = one["decoder_segment_ids"] == segment
        targets = one["decoder_target_tokens"][answer]
        np.testing.assert_array_equal(targets, item.target)
        np.testing.assert_array_equal(
          one["decoder_input_tokens"][answer], [0, *item.target[:-1]]
        )
        assert (one["decoder_prompt_ids"][answer] == item.prompt_id).all()
        assert (one["decoder_loss_weights"][answer] == 1).all()
        seen.append(int(tokens[4]) - 2)
      nothing = used == 0
      assert not one["encoder_input_tokens"][nothing].any()
      assert not one["prompt_positions"][nothing].any()
      assert not one["decoder_loss_weights"][one["decoder_segment_ids"] == 0].any()
  assert sorted(seen) == list(range(len(items)))


@given(SIZES.filter(len))
@settings(deadline=None, max_examples=60)
def test_the_padding_share_is_that_of_the_packed_arrays(sizes):
  calls = packing.pack(made(sizes), SHAPES)
  used = sum((features["encoder_segment_ids"] > 0).sum() for _, features in calls)
  computed = sum(features["encoder_segment_ids"].size for _, features in calls)
  assert row_shapes.padding_share([sizes], SHAPES) == pytest.approx(1 - used / computed)


def test_what_one_short_row_holds_does_not_cost_a_wide_block():
  (shape, _), *more = packing.pack(made([(8, 2)]), SHAPES)
  assert (shape, more) == (SHAPES.short, [])


def test_targets_that_fill_a_row_open_another():
  shapes = row_fitting.Shapes(
    row_fitting.Shape(1, 100, 8), row_fitting.Shape(1, 8, 2), 2
  )
  assert len(packing.pack(made([(5, 5), (5, 5)]), shapes)) == 2
  assert len(packing.pack(made([(5, 4), (5, 4)]), shapes)) == 1


@pytest.mark.parametrize("size", [(21, 1), (1, 13)])
def test_an_example_longer_than_a_row_is_refused_with_its_task_and_its_tokens(size):
  items = made([(3, 3), size])  # The second is the one of prompt 1.
  tokens = f"with {size[0]} source and {size[1]} target tokens does not fit behind a"
  with pytest.raises(
    UserError, match=f"An example {tokens} prompt of 4 in a row of 24"
  ):
    packing.pack(items, SHAPES)
  with pytest.raises(UserError, match=f"An example of 'two' {tokens}"):
    packing.pack(items, SHAPES, names=("one", "two"))


def test_no_examples_make_no_calls():
  assert packing.pack([], SHAPES) == []


def test_items_of_a_batch_are_its_rows_without_padding():
  features = batches.features(
    np.array([[5, 6, 1, 0], [7, 1, 0, 0], [0, 0, 0, 0]], np.int32),
    np.array([[8, 1, 0], [9, 9, 1], [0, 0, 0]], np.int32),
  )
  found = packing.items(features, prompt_id=4)
  assert [item.prompt_id for item in found] == [4, 4]
  assert [item.source.tolist() for item in found] == [[5, 6, 1], [7, 1]]
  assert [item.target.tolist() for item in found] == [[8, 1], [9, 9, 1]]


def test_the_weights_that_a_batch_gives_its_target_tokens_are_kept():
  features = batches.features(
    np.array([[5, 6, 1], [7, 1, 0]], np.int32), np.array([[8, 1], [9, 1]], np.int32)
  )
  features["decoder_loss_weights"] = np.array([[0.5, 2], [0, 1]], np.float32)
  ((_, packed),) = packing.pack(packing.items(features, 0), SHAPES)
  tokens, weights = packed["decoder_target_tokens"], packed["decoder_loss_weights"]
  assert tokens[tokens > 0].tolist() == [8, 1, 9, 1]
  assert weights[tokens > 0].tolist() == [0.5, 2, 0, 1]
  assert not weights[tokens == 0].any()


def mixed(prompts, examples, steps):
  """Sizes of the examples of steps of tasks as different as those of shared/data/nlu.

  Their means there are 17 to 156 tokens.
  """
  rng = np.random.default_rng(0)
  means = np.tile([17, 33, 48, 57, 60, 78, 83, 156], 4)

  def step():
    chosen = means[:prompts] if prompts > 1 else rng.choice(means, examples)
    drawn = rng.gamma(6, np.resize(chosen, prompts * examples) / 6).astype(int)
    return [(int(n), 3) for n in np.clip(drawn, 4, 256)]

  return [step() for _ in range(steps)]


STEPS = [(1, 8), (1, 32), (4, 8), (16, 8)]
"""Prompts of a step, and examples of each."""


@pytest.mark.parametrize("prompt_length", [20, 100])
@pytest.mark.parametrize(("prompts", "examples"), STEPS)
def test_a_step_of_mixed_data_has_little_padding_on_a_cpu(
  prompts, examples, prompt_length
):
  steps = mixed(prompts, examples, steps=40)
  shapes = row_shapes.choose_shapes(
    steps[:20], prompt_length, {"inputs": 256, "targets": 4}, device=row_shapes.ON_CPU
  )
  # Of eight examples, which fill but a few rows, wider ones would leave a little less
  # padding and yet cost more, for attention.
  most = 0.15 if prompts * examples == 8 else 0.12
  assert row_shapes.padding_share(steps[20:], shapes) < most


@pytest.mark.parametrize("prompt_length", [20, 100])
@pytest.mark.parametrize(("prompts", "examples"), STEPS)
def test_a_step_is_two_calls_or_three_on_an_accelerator_whatever_its_padding(
  prompts, examples, prompt_length
):
  steps = mixed(prompts, examples, steps=40)
  shapes = row_shapes.choose_shapes(
    steps[:20], prompt_length, {"inputs": 256, "targets": 4}
  )
  packed = [packing.pack(made(sizes), shapes) for sizes in steps[20:25]]
  assert np.mean([len(step) for step in packed]) <= 3
  assert row_shapes.padding_share(steps[20:], shapes) < 0.3


def test_a_second_shape_is_compiled_only_where_it_saves_more_than_its_share():
  steps = mixed(prompts=1, examples=32, steps=20)
  lengths = {"inputs": 256, "targets": 4}
  one, two = (
    row_shapes.choose_shapes(
      steps,
      100,
      lengths,
      device=dataclasses.replace(row_shapes.ON_ACCELERATOR, one_shape=share),
    )
    for share in (10.0, 1.0)
  )
  assert one.wide == one.short
  assert two.wide != two.short


def test_rows_are_narrow_where_starting_a_call_costs_little():
  steps = mixed(prompts=8, examples=8, steps=10)
  lengths = {"inputs": 256, "targets": 4}
  few_paddings = dataclasses.replace(row_shapes.ON_CPU, positions=16_384)
  found = {
    call: row_shapes.choose_shapes(
      steps, 100, lengths, device=dataclasses.replace(few_paddings, call=call)
    )
    for call in (row_fitting.CALL_POSITIONS_ON_CPU, row_fitting.CALL_POSITIONS)
  }
  cheap, dear = found.values()
  assert cheap.short.width < cheap.wide.width == 360  # The longest has 356.
  calls = [
    sum(len(packing.pack(made(sizes), shapes)) for sizes in steps)
    for shapes in (cheap, dear)
  ]
  assert calls[0] > 2 * calls[1]

  # What each calls cheapest is cheapest by its own measure: positions, their squared
  # widths over 1,000, two for each target, and what a call costs.
  def cost(shapes, call):
    return sum(
      call + shape.rows * (shape.width + shape.width**2 / 1_000 + 2 * shape.targets)
      for sizes in steps
      for shape, _ in packing.pack(made(sizes), shapes)
    )

  assert cost(cheap, 75) < 0.97 * cost(dear, 75)
  assert cost(dear, 2_048) < 0.97 * cost(cheap, 2_048)


def test_sampled_examples_fit_even_if_they_are_longer_than_was_said():
  shapes = row_shapes.choose_shapes([[(50, 9), (3, 1)]], 4, {"inputs": 8, "targets": 2})
  assert len(packing.pack(made([(50, 9), (3, 1)]), shapes)) >= 1


def test_every_number_of_rows_divides_over_the_devices():
  sizes = [(int(n), 2) for n in np.random.default_rng(0).integers(3, 30, 100)]
  shapes = row_shapes.choose_shapes([sizes], 4, {"inputs": 30, "targets": 4}, 8)
  assert shapes.wide.rows % 8 == shapes.short.rows % 8 == 0


@given(SIZES.filter(len), st.integers(1, 7))
@settings(deadline=None, max_examples=40)
def test_blocks_of_rows_hold_every_source_once_for_the_prompts_they_are_given(
  sizes, rows
):
  items = made(sizes)
  owners = [index % 2 for index in range(len(items))]
  one, _ = packing.pack_choices(
    [item.source for item in items],
    [[item.target] for item in items],
    owners,
    row_fitting.Shape(1, 24, 12),
    4,
  )
  given = ([3, 5], [7, 2])
  found = list(packing.blocks([packing.with_prompts(one, ids) for ids in given], rows))
  for features in found:
    assert features["encoder_input_tokens"].shape == (rows, 24)
    ids, used = features["encoder_prompt_ids"], features["encoder_segment_ids"] > 0
    assert set(ids[used]) <= {3, 5, 7, 2}
    assert not ids[~used].any()
  for prompt_id, owner in zip((3, 5, 7, 2), (0, 1, 0, 1), strict=True):
    tokens = np.concatenate(
      [f["encoder_input_tokens"][f["encoder_prompt_ids"] == prompt_id] for f in found]
    )
    expected = [
      k + 2
      for k, (source, _) in enumerate(sizes)
      for _ in range(source)
      if owners[k] == owner
    ]
    assert sorted(tokens[tokens > 0]) == expected


def test_blocks_ask_for_no_part_before_they_need_it():
  asked = []

  def parts():
    for number, count in enumerate((3, 1, 5, 2)):
      asked.append(number)
      yield {
        "encoder_input_tokens": np.full((count, 2), number + 1),
        "decoder_input_tokens": np.arange(3 * count).reshape(count, 3),
      }

  found, asked_at = [], []
  for features in packing.blocks(parts(), 4):
    found.append(features)
    asked_at.append(list(asked))
  assert asked_at == [[0, 1], [0, 1, 2], [0, 1, 2, 3]]
  sources = [one["encoder_input_tokens"][:, 0].tolist() for one in found]
  assert sources == [[1, 1, 1, 2], [3, 3, 3, 3], [3, 4, 4, 0]]
  targets = [one["decoder_input_tokens"][:, 0].tolist() for one in found]
  assert targets == [[0, 3, 6, 0], [0, 3, 6, 9], [12, 0, 3, 0]]
  assert list(packing.blocks(iter(()), 4)) == []


def test_choices_stand_behind_each_other_beside_their_source():
  sources = [np.arange(10, 14), np.arange(20, 23), np.arange(30, 39)]
  choices = [[np.array([7, 8, 1]), np.array([9, 1])], [np.array([6, 1])]]
  choices.append([np.array([5, 1])] * 3)
  ids = [4, 5, 6]
  packed, first = packing.pack_choices(
    sources, choices, ids, row_fitting.Shape(1, 18, 16), 3
  )
  segments = packed["decoder_segment_ids"]
  for source, own, (row, start) in zip(sources, choices, first, strict=True):
    here = packed["source_segment_ids"][row][segments[row] == start][0]
    mine = packed["encoder_segment_ids"][row] == here
    tokens = packed["encoder_input_tokens"][row][mine]
    assert tokens.tolist() == [0, 0, 0, *source]
    assert set(packed["encoder_prompt_ids"][row][mine]) == {int(source[0]) // 10 + 3}
    for number, choice in enumerate(own, start):
      at = segments[row] == number
      assert (packed["source_segment_ids"][row][at] == here).all()
      assert packed["decoder_target_tokens"][row][at].tolist() == choice.tolist()
      inputs = packed["decoder_input_tokens"][row][at].tolist()
      assert inputs == [0, *choice[:-1]]
  assert len(segments) == 2
  assert (segments > 0).sum() == 3 + 2 + 2 + 6
  with pytest.raises(UserError, match="4 source and 5 target tokens does not fit"):
    packing.pack_choices(sources[:1], choices[:1], [0], row_fitting.Shape(1, 18, 4), 3)


def test_the_chosen_row_is_the_one_that_costs_least():
  row = row_shapes.choose_row([(12, 2)] * 40, 4, {"inputs": 28, "targets": 4})
  assert row.width % 16 == 0  # Two, three, ... examples of 4 + 12 leave nothing over.

"""Initial prompts: functions of (embedding table, seed)."""

import functools

import numpy as np
import pytest

from tpv_jax.backbones import registry
from tpv_jax.core import identity
from tpv_jax.core.errors import UserError
from tpv_jax.prompts import ept, plain
from tpv_jax.training import initial
from tpv_jax.vectors import store
from tpv_jax.vectors.provenance import Provenance, Term

TABLE = np.random.default_rng(0).standard_normal((40, 6)).astype(np.float32)
LABELS = ((5, 7), (9,), (11, 12, 13))
STARTS = {
  "uniform": functools.partial(initial.uniform, length=8),
  "small_normal": functools.partial(initial.small_normal, length=8),
  "sampled_vocabulary": functools.partial(initial.sampled_vocabulary, length=8),
  "class_labels": functools.partial(
    initial.class_labels, length=8, label_token_ids=LABELS
  ),
}


def rows_of(prompt, table=TABLE):
  """Returns the number of the table's row that each row of a prompt is, or None."""
  found = [np.flatnonzero((table == row).all(axis=1)) for row in prompt]
  return [int(match[0]) if len(match) else None for match in found]


@pytest.mark.parametrize("start", STARTS.values(), ids=STARTS)
def test_equal_seeds_give_equal_bits_and_others_do_not(start):
  one = start(TABLE, 3)
  assert one.shape == (8, 6)
  assert one.dtype == np.float32
  assert np.array_equal(one, start(TABLE.copy(), 3))
  assert not np.array_equal(one, start(TABLE, 4))


@pytest.mark.parametrize("start", STARTS.values(), ids=STARTS)
def test_the_table_is_not_changed(start):
  before = TABLE.copy()
  start(TABLE, 0)[:] = 9.0
  assert np.array_equal(TABLE, before)


def test_uniform_fills_its_range():
  prompt = initial.uniform(TABLE, 0, length=5000, scale=0.25)
  assert -0.25 <= prompt.min() < -0.249
  assert 0.249 < prompt.max() < 0.25
  # The mean of 30,000 draws has a standard deviation of 0.14 / sqrt(30000) = 0.0008.
  assert abs(prompt.mean()) < 0.004


@pytest.mark.parametrize("rows", [2, 5000])
def test_small_normal_has_a_tenth_of_the_standard_deviation_of_the_table(rows):
  table = np.random.default_rng(1).normal(3.0, 2.0, (rows, 6)).astype(np.float32)
  prompt = initial.small_normal(table, 0, length=5000)
  # Of 30,000 draws: the mean's standard error is 1/173, the deviation's 1/245.
  wanted = 0.1 * np.std(table.astype(np.float64))
  assert abs(prompt.mean()) < 0.03 * wanted
  assert prompt.std() == pytest.approx(wanted, rel=0.02)
  larger = initial.small_normal(table, 0, length=5000, scale=1.0)
  np.testing.assert_allclose(larger, 10 * prompt, rtol=1e-6)


def test_small_normal_refuses_a_table_of_equal_values():
  with pytest.raises(UserError, match=r"deviation of 0\.0.*@initial\.uniform"):
    initial.small_normal(np.zeros((4, 6), np.float32), 0, length=2)


def test_sampled_vocabulary_takes_different_rows_of_the_most_common_tokens():
  drawn = set()
  for seed in range(60):
    rows = rows_of(
      initial.sampled_vocabulary(TABLE, seed, length=5, most_common=12, first=4)
    )
    assert None not in rows
    assert len(set(rows)) == 5
    drawn |= set(rows)
  assert drawn == set(range(4, 16))


def test_sampled_vocabulary_never_takes_padding_end_or_unknown():
  rows = rows_of(initial.sampled_vocabulary(TABLE, 0, length=37))
  assert sorted(rows) == list(range(3, 40))


def test_sampled_vocabulary_refuses_more_rows_than_tokens():
  with pytest.raises(
    UserError, match=r"38 different tokens from ids 3 to 39.*at most 37"
  ):
    initial.sampled_vocabulary(TABLE, 0, length=38)


def test_class_labels_come_first_as_means_of_their_tokens():
  prompt = initial.class_labels(TABLE, 0, length=8, label_token_ids=LABELS)
  means = [(TABLE[5] + TABLE[7]) / 2, TABLE[9], (TABLE[11] + TABLE[12] + TABLE[13]) / 3]
  np.testing.assert_allclose(prompt[:3], means, rtol=1e-6)
  assert None not in rows_of(prompt[3:])


def test_class_labels_of_a_decoder_only_model_are_the_rows_of_its_ids():
  labels = ((6,), (1, 3))
  prompt = initial.class_labels(TABLE, 0, length=2, label_token_ids=labels, first_id=1)
  np.testing.assert_array_equal(prompt[0], TABLE[5])
  np.testing.assert_allclose(prompt[1], (TABLE[0] + TABLE[2]) / 2, rtol=1e-6)
  last = len(TABLE)
  initial.class_labels(TABLE, 0, length=1, label_token_ids=((last,),), first_id=1)
  for odd in (0, last + 1):
    with pytest.raises(UserError, match=f"from 1 to {last}"):
      initial.class_labels(TABLE, 0, length=1, label_token_ids=((odd,),), first_id=1)


def test_a_run_says_where_the_ids_of_its_model_begin():
  module = plain.Prompt(1, 6)
  start = functools.partial(initial.class_labels, length=1, label_token_ids=((6,),))
  for name, row, stated in (("t5", 6, None), ("llama", 5, "decoder_only")):
    family = registry.family(name)
    network = family.network(**next(iter(family.tiny.values())))
    drawn = initial.draw(module, start, TABLE, 0, None, None, network)
    np.testing.assert_array_equal(drawn.leaves["prompt"][0], TABLE[row])
    assert drawn.provenance.architecture == stated


def test_a_start_from_tokens_stands_where_the_network_puts_tokens():
  module = plain.Prompt(1, 6)
  start = functools.partial(initial.class_labels, length=1, label_token_ids=((6,),))
  family = registry.family("gemma3")
  network = family.network(**{**family.tiny["gemma_3_tiny"], "emb_dim": 6})
  drawn = initial.draw(module, start, TABLE, 0, None, None, network)
  expected = TABLE[5] * np.float32(6**0.5)
  np.testing.assert_allclose(drawn.leaves["prompt"][0], expected, rtol=1e-6)


def test_class_labels_may_fill_the_prompt():
  prompt = initial.class_labels(TABLE, 0, length=2, label_token_ids=((5,), (6,)))
  assert rows_of(prompt) == [5, 6]


@pytest.mark.parametrize(
  ("labels", "text"),
  [
    (((3,), (4,), (5,)), r"3 labels do not fit in a prompt of 2 rows.*at least 3"),
    (((3,), ()), r"Label 1 has the token ids \[\].*at least one"),
    (((3,), (40,)), r"Label 1 has the token ids \[40\].*from 0 to 39"),
  ],
)
def test_labels_that_cannot_be_are_refused(labels, text):
  with pytest.raises(UserError, match=text):
    initial.class_labels(TABLE, 0, length=2, label_token_ids=labels)


def test_bf16_tables_give_fp32_prompts():
  ml_dtypes = pytest.importorskip("ml_dtypes")
  table = TABLE.astype(ml_dtypes.bfloat16)
  for start in STARTS.values():
    assert start(table, 0).dtype == np.float32


@pytest.fixture
def saved(tmp_path):
  """Returns the paths of a prompt and of a vector, and their values."""
  rng = np.random.default_rng(2)
  values = {kind: rng.standard_normal((4, 6)).astype(np.float32) for kind in "pv"}
  paths = {kind: tmp_path / f"{kind}.safetensors" for kind in "pv"}
  for kind, name in (("p", "prompt"), ("v", "vector")):
    provenance = Provenance(kind=name, terms=(Term("task", 1.0),))
    store.write(paths[kind], {"prompt": values[kind]}, provenance)
  return paths, values


def test_a_saved_prompt_is_taken_bit_by_bit(saved):
  paths, values = saved
  loaded = initial.from_file(TABLE, 0, path=paths["p"])
  leaves = plain.Prompt(4, 6).initial_leaves(loaded, 0)
  assert np.array_equal(leaves["prompt"], values["p"])
  assert leaves["prompt"].dtype == np.float32


def test_a_saved_vector_is_added_to_another_start(saved):
  paths, values = saved
  start = functools.partial(initial.uniform, length=4)
  loaded = initial.from_vector(TABLE, 7, paths["v"], start, coefficient=0.5)
  expected = start(TABLE, 7) + np.float32(0.5) * values["v"]
  assert np.array_equal(loaded.leaves["prompt"], expected)
  assert loaded.provenance.kind == "prompt"


def test_a_merge_is_added_to_a_start_as_its_file_would_be(tmp_path):
  values = np.random.default_rng(2).standard_normal((4, 6)).astype(np.float32)
  known = Provenance("vector", (Term("task", 1.0),), "tiny", "a" * 64, "b" * 64)
  store.write(tmp_path / "v.safetensors", {"prompt": values}, known)
  start = functools.partial(initial.uniform, length=4)
  of = [str(tmp_path / "v.safetensors")]
  merge = {"rule": "magnitude_prune", "of": of, "density": 0.5}
  loaded = initial.from_vector(TABLE, 7, merge, start)
  small = np.abs(values) < np.median(np.abs(values))
  added = loaded.leaves["prompt"] - start(TABLE, 7)
  np.testing.assert_array_equal(added[small], 0)
  np.testing.assert_allclose(added[~small], values[~small], atol=1e-6)
  with pytest.raises(UserError, match="Did you mean 'ties'"):
    initial.from_vector(TABLE, 7, {**merge, "rule": "tise"}, start)


def test_a_vector_with_a_delta_is_added_to_the_first_rows_and_to_no_update(tmp_path):
  rng = np.random.default_rng(2)
  leaves = {
    name: rng.standard_normal(shape).astype(np.float32)
    for name, shape in (("prompt", (3, 6)), ("delta", (5, 6)))
  }
  store.write(tmp_path / "v.safetensors", leaves, Provenance(kind="vector", terms=()))
  start = functools.partial(initial.uniform, length=4)
  path = tmp_path / "v.safetensors"
  loaded = initial.from_vector(TABLE, 7, path, start, coefficient=2.0)
  two = np.float32(2.0)
  assert np.array_equal(
    loaded.leaves["prompt"], start(TABLE, 7)[:3] + two * leaves["prompt"]
  )
  assert np.array_equal(loaded.leaves["delta"], two * leaves["delta"])


def test_prompts_and_vectors_are_not_mixed_up(saved):
  paths, _ = saved
  with pytest.raises(UserError, match=r"holds a vector.*initial\.from_vector"):
    initial.from_file(TABLE, 0, path=paths["v"])
  with pytest.raises(UserError, match=r"holds a prompt.*initial\.from_file"):
    initial.from_vector(
      TABLE, 0, paths["p"], functools.partial(initial.uniform, length=4)
    )


@pytest.mark.parametrize(("length", "features"), [(5, 6), (4, 5)])
def test_a_saved_prompt_of_another_shape_is_refused(saved, length, features):
  paths, _ = saved
  loaded = initial.from_file(TABLE, 0, path=paths["p"])
  with pytest.raises(UserError, match=rf"\(4, 6\).*needs .*\({length}, {features}\)"):
    plain.Prompt(length, features).initial_leaves(loaded, 0)


@pytest.mark.parametrize(("length", "width"), [(5, 6), (4, 5)])
def test_a_vector_of_another_shape_than_its_start_is_refused(saved, length, width):
  paths, _ = saved
  start = functools.partial(initial.uniform, length=length)
  with pytest.raises(UserError, match=rf"\[4, 6\].*\[{length}, {width}\]"):
    initial.from_vector(TABLE[:, :width], 0, paths["v"], start)


def test_a_missing_file_is_named(tmp_path):
  with pytest.raises(UserError, match="nowhere"):
    initial.from_file(TABLE, 0, path=tmp_path / "nowhere.safetensors")


def test_a_drawn_prompt_states_its_backbone_and_the_seed_only_if_it_depends_on_one(
  tmp_path,
):
  module = plain.Prompt(length=8, features=6)
  sampled = initial.draw(
    module, STARTS["sampled_vocabulary"], TABLE, 3, "tiny", "ab" * 32
  )
  assert np.array_equal(
    sampled.leaves["prompt"], STARTS["sampled_vocabulary"](TABLE, 3)
  )
  known = sampled.provenance
  assert (known.backbone_name, known.backbone_fingerprint) == ("tiny", "ab" * 32)
  assert known.initial_digest == identity.prompt_digest(sampled.leaves)
  assert (known.initial_seed, known.steps, known.method) == (3, 0, "plain")

  store.write(tmp_path / "p.safetensors", sampled.leaves, known)
  start = functools.partial(initial.from_file, path=tmp_path / "p.safetensors")
  again = initial.draw(module, start, TABLE, 5, "tiny", "ab" * 32)
  assert again.provenance.initial_seed is None
  assert again.provenance.initial_digest == known.initial_digest
  with pytest.raises(UserError, match="belongs to the backbone 'tiny'"):
    initial.draw(module, start, TABLE, 5, "other", "cd" * 32)


def test_the_seed_of_what_a_file_leaves_open_is_stated(saved):
  # A plain prompt from a file is decomposed, and the rest of EPT is drawn.
  paths, _ = saved
  start = functools.partial(initial.from_file, path=paths["p"])
  decomposed = ept.EPT(length=2, features=6, source_length=5, rank=3)
  fused = ept.EPT(length=2, features=6, source_length=5, rank=3, fusion_width=1)
  seeds = [
    initial.draw(module, start, TABLE, 7, None, None).provenance.initial_seed
    for module in (decomposed, fused)
  ]
  assert seeds == [None, 7]


def test_the_start_of_a_vector_on_a_drawn_prompt_states_the_seed(saved):
  paths, _ = saved
  start = functools.partial(
    initial.from_vector,
    path=paths["v"],
    initial=functools.partial(initial.uniform, length=4),
  )
  drawn = initial.draw(plain.Prompt(4, 6), start, TABLE, 7, None, None)
  assert drawn.provenance.initial_seed == 7


def test_a_start_that_does_not_state_its_backbone_is_noted(saved):
  paths, values = saved
  start = functools.partial(initial.from_file, path=paths["p"])
  drawn = initial.draw(plain.Prompt(4, 6), start, TABLE, 0, "tiny", "ab" * 32)
  assert drawn.provenance.backbone_fingerprint == "ab" * 32
  (note,) = drawn.provenance.notes
  assert note.endswith("from which it starts is of its backbone is the user's word")
  known = Provenance(kind="prompt", backbone_fingerprint="ab" * 32)
  store.write(paths["p"], {"prompt": values["p"]}, known, overwrite=True)
  assert (
    initial.draw(
      plain.Prompt(4, 6), start, TABLE, 0, "tiny", "ab" * 32
    ).provenance.notes
    == ()
  )

import llm_stand_in
import numpy as np
import pytest
import tokenizer_references

from tpv_jax.core.errors import UserError
from tpv_jax.data import batches, vocabularies
from tpv_jax.data.tasks import Example, Task
from tpv_jax.data.vocabularies import WordVocabulary

seqio = pytest.importorskip("seqio", reason="seqio is not installed (extra 'data')")
tf = pytest.importorskip("tensorflow", reason="TensorFlow is not installed")

from tpv_jax.data import seqio_tasks  # noqa: E402

WORDS = WordVocabulary(["a", "b", "c", "d"])


def seqio_batches(name, split, lengths, batch_size, **settings):
  """Batches as T5X makes them."""
  settings = {"shuffle": False} | settings
  dataset = seqio.get_mixture_or_task(name).get_dataset(lengths, split, **settings)
  dataset = seqio.EncDecFeatureConverter(pack=False)(dataset, lengths)
  return dataset.batch(batch_size)


def assert_equal(theirs, ours):
  assert theirs.keys() == ours.keys()
  for name, value in ours.items():
    np.testing.assert_array_equal(theirs[name], value, err_msg=name)


@pytest.fixture
def small():
  """A task registered for one test: texts that are too long, unknown, or empty."""
  examples = {
    "train": [Example(f"a {'b ' * (i % 4)}", "cd"[i % 2]) for i in range(12)],
    "test": [
      Example("a b c d a b c", "a b c d"),
      Example("a b c d", "b"),
      Example("a\u00a0b  nothing </s> <pad>", "a </s> b"),
      Example("", "x"),
    ],
  }
  task = Task("small", None, "macro_f1", lambda split: examples.get(split, ()))
  yield task, seqio_tasks.register(task, WORDS, "tpv_small")
  seqio.TaskRegistry.remove("tpv_small")


def test_both_roads_trim_and_miss_words_alike(small):
  task, _ = small
  lengths = {"inputs": 5, "targets": 3}
  (ours,) = batches.eval_batches(
    batches.tokenize(task.examples("test"), WORDS, lengths), 4
  )
  (theirs,) = seqio_batches("tpv_small", "test", lengths, 4).as_numpy_iterator()
  assert_equal(theirs, ours)
  np.testing.assert_array_equal(ours["encoder_input_tokens"][2], [3, 4, 2, 2, 1])


def test_a_shuffled_epoch_has_the_same_examples_on_both_roads(small):
  task, _ = small
  lengths = {"inputs": 5, "targets": 2}
  data = batches.Batches(
    batches.tokenize(task.examples("train"), WORDS, lengths), 12, 0
  )
  ours = data.batch_at(0)
  (theirs,) = seqio_batches(
    "tpv_small", "train", lengths, 12, shuffle=True, seed=1
  ).as_numpy_iterator()
  rows = [
    sorted(
      (*source, *target)
      for source, target in zip(
        batch["encoder_input_tokens"].tolist(),
        batch["decoder_target_tokens"].tolist(),
        strict=True,
      )
    )
    for batch in (ours, theirs)
  ]
  assert rows[0] == rows[1]


def test_a_saved_iterator_continues_with_the_same_batches(small, tmp_path):
  # T5X saves the iterator of the training data beside its checkpoints.
  lengths = {"inputs": 5, "targets": 2}

  def iterator():
    return iter(
      seqio_batches(
        "tpv_small", "train", lengths, 5, shuffle=True, seed=3, num_epochs=None
      )
    )

  unbroken = iterator()
  for _ in range(4):
    next(unbroken)
  path = tf.train.Checkpoint(data=unbroken).save(str(tmp_path / "position"))
  expected = [next(unbroken)["encoder_input_tokens"].numpy() for _ in range(4)]
  resumed = iterator()
  tf.train.Checkpoint(data=resumed).restore(path)
  found = [next(resumed)["encoder_input_tokens"].numpy() for _ in range(4)]
  np.testing.assert_array_equal(found, expected)


def test_shuffled_data_follow_the_seed_and_reach_across_the_whole_split():
  lengths = {"inputs": 3, "targets": 2}
  words = WordVocabulary([str(number) for number in range(4000)])
  examples = [Example(str(number), str(number)) for number in range(4000)]
  task = Task("long", None, "exact_match", lambda split: examples)
  seqio_tasks.register(task, words, "tpv_long")
  try:
    first, again, other = (
      next(
        seqio_batches(
          "tpv_long", "train", lengths, 50, shuffle=True, seed=seed
        ).as_numpy_iterator()
      )["encoder_input_tokens"][:, 0]
      for seed in (1, 1, 2)
    )
  finally:
    seqio.TaskRegistry.remove("tpv_long")
  np.testing.assert_array_equal(first, again)
  assert set(first) != set(other)
  # The last quarter is out of reach of seqio's own 1,000 neighbours at the start.
  assert max(first) > 3000


def test_a_taken_name_is_refused(small):
  task, _ = small
  with pytest.raises(
    UserError, match="seqio has a task or mixture 'tpv_small' already"
  ):
    seqio_tasks.register(task, WORDS, "tpv_small")


def test_scores_are_those_of_our_metrics(small):
  _, registered = small
  (score,) = registered.predict_metric_fns
  # c: recall 1/2, precision 1; d: 1.
  targets = [(Example("", target), target) for target in ("c", "c", "d")]
  found = score(targets, ["c", "x", "d"])
  assert found == pytest.approx({"exact_match": 2 / 3, "macro_f1": (2 / 3 + 1) / 2})


def test_the_wrapped_vocabulary_says_what_ours_says():
  wrapped = seqio_tasks.seqio_vocabulary(WORDS)
  assert wrapped.vocab_size == WORDS.vocab_size
  assert (wrapped.pad_id, wrapped.eos_id, wrapped.unk_id) == (0, 1, 2)
  for text in ("a d zz", ""):
    ids = WORDS.encode(text)
    assert wrapped.encode(text) == ids
    assert wrapped.encode_tf(tf.constant(text)).numpy().tolist() == ids
  rows = [[3, 4, 1, 5], [6, 0, 0, 0], [99, 3, 0, 1]]
  texts = [WORDS.decode(row) for row in rows]
  assert texts == ["a b", "d", "<unk> a"]
  assert [wrapped.decode(row) for row in rows] == texts
  assert [
    text.decode() for text in wrapped.decode_tf(tf.constant(rows)).numpy()
  ] == texts
  assert wrapped.decode_tf(tf.constant(rows[0])).numpy() == b"a b"


def test_wrapped_vocabularies_are_equal_when_their_words_are():
  # seqio asks this of the tasks of a mixture.
  one, same = (seqio_tasks.SeqioVocabulary(WordVocabulary(["a"])) for _ in range(2))
  assert one == same
  assert hash(one) == hash(same)
  assert one != seqio_tasks.SeqioVocabulary(WORDS)


@pytest.fixture(params=["smollm", "llama_2"])
def decoder(request, tmp_path):
  """A decoder-only model's vocabulary: byte-level BPE, and one with BOS in front."""
  pytest.importorskip("tokenizers", reason="needs the extra 'llm'")
  return vocabularies.load(tokenizer_references.write(tmp_path, request.param))


def in_one_row(batch):
  """What seqio makes of a batch of ours for a decoder-only model."""
  rows = [
    [*source[source > 0], *target[target > 0]]
    for source, target in zip(
      batch["encoder_input_tokens"], batch["decoder_target_tokens"], strict=True
    )
  ]
  width = sum(batches.widths(batch).values())
  return np.array([row + [0] * (width - len(row)) for row in rows])


@pytest.mark.parametrize("longest", [6, 40])
def test_both_roads_give_a_decoder_only_model_the_same_tokens(decoder, longest):
  texts = ("Is it good? It is: ", "x", "", "a  b\n\nc", "The last one, a longer text.")
  examples = [Example(text, "no" if i % 2 else "yes") for i, text in enumerate(texts)]
  task = Task("free", None, "exact_match", lambda split: examples)
  registered = seqio_tasks.register(task, decoder, "tpv_free")
  lengths = {"inputs": longest, "targets": 3}
  try:
    dataset = seqio.get_mixture_or_task("tpv_free").get_dataset(
      lengths, "test", shuffle=False
    )
    rows = seqio.DecoderFeatureConverter(pack=False)(dataset, lengths)
    (theirs,) = rows.batch(len(examples)).as_numpy_iterator()
    whole = [row["whole"] for row in dataset.as_numpy_iterator()]
    (target,) = dataset.take(1).as_numpy_iterator()
    assert target["inputs_pretokenized"].decode() == texts[0]
  finally:
    seqio.TaskRegistry.remove("tpv_free")
  (ours,) = batches.eval_batches(batches.tokenize(examples, decoder, lengths), 5)
  np.testing.assert_array_equal(theirs["decoder_target_tokens"], in_one_row(ours))
  sizes = batches.token_counts(ours["encoder_input_tokens"])
  np.testing.assert_array_equal(
    theirs["decoder_causal_attention"].sum(axis=1) - 1, sizes
  )
  expected = [len(decoder.encode_target(one.targets)) < 3 for one in examples]
  assert whole == expected
  vocabulary = registered.output_features["targets"].vocabulary
  decoded = vocabulary.decode_tf(tf.constant(ours["decoder_target_tokens"])).numpy()
  assert [text.decode() for text, fits in zip(decoded, whole, strict=True) if fits] == [
    one.targets for one, fits in zip(examples, whole, strict=True) if fits
  ]
  assert not registered.output_features["inputs"].add_eos


def test_wrapped_vocabularies_differ_where_a_chat_template_writes_the_sources(tmp_path):
  pytest.importorskip("tokenizers", reason="needs the extra 'llm'")
  path = llm_stand_in.write_gguf(tmp_path / "tiny.gguf")
  plain, chat, other = (
    seqio_tasks.seqio_vocabulary(vocabularies.of_backbone(path, chat=setting))
    for setting in (None, True, {"system": "Be brief."})
  )
  assert plain == seqio_tasks.seqio_vocabulary(vocabularies.of_backbone(path))
  assert len({plain.identity, chat.identity, other.identity}) == 3
  assert plain != chat != other

import copy
import hashlib
import subprocess
import sys

import pytest

from tpv_jax.data import vocabularies
from tpv_jax.data.vocabularies import SentencePieceVocabulary, WordVocabulary
from tpv_jax.errors import UserError

TEXTS = (
  "the quick brown fox",
  "  foxes\tjump\nover the lazy dog! ",
  "<extra_id_0> fox <extra_id_4> dog <extra_id_5>",
  "naïve ½ ☃ </s> <pad> <unk>",
  "",
)


@pytest.fixture(scope="session")
def spiece(tmp_path_factory):
  """A SentencePiece model with T5's special ids, trained here on a few sentences."""
  folder = tmp_path_factory.mktemp("spiece")
  corpus = folder / "corpus.txt"
  text = "the quick brown fox jumps over a lazy dog and foxes like dogs in boxes"
  words = text.split()
  corpus.write_text(
    "\n".join(" ".join(words[i:] + words[:i]) for i in range(len(words))) + "\n"
  )
  # In its own process: the trainer writes a long log to the standard error.
  code = (
    "import sys, sentencepiece; sentencepiece.SentencePieceTrainer.train("
    "input=sys.argv[1], model_prefix=sys.argv[2], vocab_size=60, pad_id=int(sys.argv[3])"
    ", eos_id=int(sys.argv[4]), unk_id=int(sys.argv[5]), bos_id=-1,"
    " hard_vocab_limit=False)"
  )
  for prefix, ids in (("good", "012"), ("bad", "210")):
    subprocess.run(
      [sys.executable, "-c", code, corpus, folder / prefix, *ids],
      check=True,
      capture_output=True,
    )
  return folder / "good.model"


def test_word_ids_follow_the_order_of_the_words_after_the_special_ones():
  vocabulary = WordVocabulary(["b", "a"])
  assert vocabulary.words == ("<pad>", "</s>", "<unk>", "b", "a")
  assert vocabulary.encode(" a b\n\ta ") == [4, 3, 4]
  assert vocabulary.vocab_size == vocabulary.size == 5
  assert (vocabulary.pad_id, vocabulary.eos_id, vocabulary.unk_id) == (0, 1, 2)


def test_words_with_the_special_ones_in_front_are_taken_as_they_are():
  vocabulary = WordVocabulary(["b", "a"])
  assert WordVocabulary(vocabulary.words).words == vocabulary.words


def test_unknown_and_special_words_in_a_text_become_unk():
  assert WordVocabulary(["a"]).encode("a A zz </s> <pad> <unk>") == [3, 2, 2, 2, 2, 2]


def test_decoding_stops_at_eos_skips_padding_and_survives_foreign_ids():
  vocabulary = WordVocabulary(["a", "b"])
  assert vocabulary.decode([0, 3, 0, 4, 99, -1, 1, 3]) == "a b <unk> <unk>"
  assert vocabulary.decode(vocabulary.encode("b a b")) == "b a b"


def test_a_word_file_gives_the_same_vocabulary_and_digest(tmp_path):
  words = WordVocabulary(["é", "b"])
  content = "".join(f"{word}\n" for word in words.words).encode()
  (tmp_path / "words.txt").write_bytes(content)
  read = WordVocabulary(tmp_path / "words.txt")
  assert read.words == words.words
  assert read.digest == words.digest == hashlib.sha256(content).hexdigest()
  assert WordVocabulary(["b", "é"]).digest != words.digest


@pytest.mark.parametrize(
  ("content", "message"),
  [
    (b"a\nb\n", "first three lines are 'a', 'b' instead of <pad>, </s>, <unk>"),
    (b"", "first three lines are missing"),
    (b"\xff\xfe\x00", "no UTF-8 text.*SentencePieceVocabulary"),
    (b"<pad>\n</s>\n<unk>\na\nb c\n", "Line 5 of .*'b c', is not one word"),
    (b"<pad>\n</s>\n<unk>\na\n\nb\n", "Line 5 of .*'', is not one word"),
    (b"<pad>\n</s>\n<unk>\na\na\n", "Line 5 of .*'a', appears twice"),
    (b"<pad>\n</s>\n<unk>\n<pad>\n", "Line 4 of .*'<pad>', appears twice"),
  ],
)
def test_a_bad_word_file_is_refused_with_the_line(tmp_path, content, message):
  path = tmp_path / "words.txt"
  path.write_bytes(content)
  with pytest.raises(UserError, match=message):
    WordVocabulary(path)


@pytest.mark.parametrize("kind", [WordVocabulary, SentencePieceVocabulary])
def test_a_missing_file_is_refused_by_its_path(tmp_path, kind):
  with pytest.raises(UserError, match=r"Cannot read the vocabulary '.*nothing\.model'"):
    kind(tmp_path / "nothing.model")


def test_the_embedded_vocabulary_is_a_word_vocabulary():
  vocabulary = vocabularies.embedded()
  assert vocabulary.words[:3] == ("<pad>", "</s>", "<unk>")
  assert vocabularies.embedded() is vocabulary


def test_extra_ids_count_down_from_the_highest_id(spiece):
  vocabulary = SentencePieceVocabulary(spiece, extra_ids=5)
  plain = SentencePieceVocabulary(spiece, extra_ids=0)
  assert vocabulary.size == vocabulary.vocab_size == plain.size + 5
  for number in range(5):
    ids = vocabulary.encode(f"fox <extra_id_{number}>")
    assert ids[-1] == vocabulary.size - 1 - number
    assert vocabulary.decode(ids) == f"fox <extra_id_{number}>"
  assert (vocabulary.pad_id, vocabulary.eos_id, vocabulary.unk_id) == (0, 1, 2)


def test_sentencepiece_decoding_stops_at_eos_and_survives_foreign_ids(spiece):
  vocabulary = SentencePieceVocabulary(spiece, extra_ids=5)
  ids = vocabulary.encode("the fox")
  assert vocabulary.decode([0, *ids, 0, 1, *ids]) == "the fox"
  foreign = vocabulary.decode([*ids, vocabulary.size + 7])
  assert foreign == vocabulary.decode([*ids, vocabulary.unk_id]) != "the fox"


def test_ids_and_texts_equal_those_of_seqio(spiece):
  seqio = pytest.importorskip("seqio", reason="seqio is not installed (extra 'data')")
  for extra_ids in (0, 5, 100):
    ours = SentencePieceVocabulary(spiece, extra_ids=extra_ids)
    theirs = seqio.SentencePieceVocabulary(str(spiece), extra_ids=extra_ids)
    assert ours.vocab_size == theirs.vocab_size
    model = seqio.vocabularies.sentencepiece_model_pb2.ModelProto
    read = model.FromString(ours._processor.serialized_model_proto())
    assert read == model.FromString(theirs.sp_model)
    for text in TEXTS:
      ids = ours.encode(text)
      assert ids == list(theirs.encode(text)), text
      assert ours.decode(ids) == theirs.decode(ids), text
    ids = [*ours.encode("the fox"), ours.size, 1, 5]
    assert ours.decode(ids) == theirs.decode(ids)


def test_a_sentencepiece_vocabulary_can_be_copied_and_names_its_content(spiece):
  # gin copies the values that it is given.
  vocabulary = SentencePieceVocabulary(spiece)
  again = copy.deepcopy(vocabulary)
  assert again.encode(TEXTS[0]) == vocabulary.encode(TEXTS[0])
  assert again.digest == SentencePieceVocabulary(spiece).digest == vocabulary.digest
  assert SentencePieceVocabulary(spiece, extra_ids=5).digest != vocabulary.digest


def test_a_file_that_is_no_sentencepiece_model_is_refused(tmp_path):
  path = tmp_path / "words.txt"
  path.write_text("<pad>\n</s>\n<unk>\n")
  with pytest.raises(UserError, match=r"not a SentencePiece model.*WordVocabulary"):
    SentencePieceVocabulary(path)


def test_a_sentencepiece_model_without_t5s_ids_is_refused(spiece):
  with pytest.raises(UserError, match=r"cannot serve a T5 model.*'pad_id': 2"):
    SentencePieceVocabulary(spiece.with_name("bad.model"))


def test_a_vocabulary_larger_than_the_embedding_is_refused_with_both_numbers():
  vocabulary = WordVocabulary(["a", "b"])
  vocabularies.check_fits(vocabulary, 5)
  vocabularies.check_fits(vocabulary, 128)
  with pytest.raises(UserError, match=r"has 5 ids, but 'tiny' has .* only 4"):
    vocabularies.check_fits(vocabulary, 4, "'tiny'")

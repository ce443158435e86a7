import copy
import hashlib
import json
import re
import subprocess
import sys

import pytest

from tpv_jax.core.errors import UserError
from tpv_jax.data import vocabularies
from tpv_jax.data.vocabularies import (
  HuggingFaceVocabulary,
  SentencePieceVocabulary,
  WordVocabulary,
)

TEXTS = (
  "the quick brown fox",
  "  foxes\tjump\nover the lazy dog! ",
  "<extra_id_0> fox <extra_id_4> dog <extra_id_5>",
  "naïve ½ ☃ </s> <pad> <unk>",
  "",
)


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
  pieces = [vocabulary._processor.IdToPiece(i) for i in range(vocabulary.size)]
  expected = hashlib.sha256("".join(f"{piece}\n" for piece in pieces).encode())
  assert again.digest == vocabulary.digest == expected.hexdigest()
  assert SentencePieceVocabulary(spiece, extra_ids=5).digest != vocabulary.digest


def test_a_file_that_is_no_sentencepiece_model_is_refused(tmp_path):
  path = tmp_path / "words.txt"
  path.write_text("<pad>\n</s>\n<unk>\n")
  with pytest.raises(UserError, match=r"not a SentencePiece model.*WordVocabulary"):
    SentencePieceVocabulary(path)


def test_a_sentencepiece_model_without_t5s_ids_is_refused(spiece):
  with pytest.raises(UserError, match=r"cannot serve a T5 model.*'pad_id': 2"):
    SentencePieceVocabulary(spiece.with_name("bad.model"))


def test_a_model_trained_with_the_options_that_are_advised_is_read(spiece, tmp_path):
  with pytest.raises(UserError, match=r"cannot serve a T5 model") as caught:
    SentencePieceVocabulary(spiece.with_name("bad.model"))
  options = re.search(r"Train it with (.*)\.$", str(caught.value))[1]
  code = "import sys, sentencepiece as s; s.SentencePieceTrainer.Train(sys.argv[1])"
  given = f"--input={spiece.parent}/corpus.txt --model_prefix=m --vocab_size=60"
  arguments = f"{given} --hard_vocab_limit=false {options}"
  subprocess.run(
    [sys.executable, "-c", code, arguments],
    check=True,
    cwd=tmp_path,
    capture_output=True,
  )
  assert SentencePieceVocabulary(tmp_path / "m.model", 0).eos_id == 1


def test_a_vocabulary_larger_than_the_embedding_is_refused_with_both_numbers():
  vocabulary = WordVocabulary(["a", "b"])
  vocabularies.check_fits(vocabulary, 5)
  vocabularies.check_fits(vocabulary, 128)
  with pytest.raises(UserError, match=r"has 5 ids, but 'tiny' has .* only 4"):
    vocabularies.check_fits(vocabulary, 4, "'tiny'")


def test_a_model_with_its_own_extra_ids_gets_no_others(spiece, tmp_path):
  # As mT5's.
  model = SentencePieceVocabulary(spiece, extra_ids=5)._processor
  inside = tmp_path / "mt5.model"
  inside.write_bytes(model.serialized_model_proto())
  assert SentencePieceVocabulary(inside).size == model.GetPieceSize()
  assert SentencePieceVocabulary(spiece).size == model.GetPieceSize() + 95


def test_a_tokenizer_json_gives_the_ids_and_texts_of_the_sentencepiece_model(
  spiece, converted
):
  ours = HuggingFaceVocabulary(converted)
  model = SentencePieceVocabulary(spiece, extra_ids=5)
  assert (ours.pad_id, ours.eos_id, ours.unk_id) == (0, 1, 2)
  assert ours.size == ours.vocab_size == model.size
  assert ours.digest == model.digest
  for text in (
    *TEXTS,
    "<extra_id_0>",
    "\uff26\uff2f\uff38 ①",
    "fox <extra_id_1>. <extra_id_2>dog",
  ):
    ids = model.encode(text)
    assert ours.encode(text) == ids, text
    assert ours.decode(ids) == model.decode(ids), text
  for odd in ([0, *ids, 0, 2, 1, *ids], [5, model.size + 7, -1], [], [1]):
    assert ours.decode(odd) == model.decode(odd)
  assert copy.deepcopy(ours).encode(TEXTS[0]) == model.encode(TEXTS[0])


def test_an_end_in_a_text_ends_nothing_where_transformers_would_end_it(converted):
  import tokenizers

  theirs = tokenizers.Tokenizer.from_file(str(converted))
  assert 1 in theirs.encode("fox </s> dog").ids
  assert 1 not in HuggingFaceVocabulary(converted).encode("fox </s> dog")


@pytest.mark.parametrize(
  ("change", "message"),
  [
    (lambda c: c["model"].update(type="BPE"), "no tokenizer of T5's family.*'BPE'"),
    (lambda c: c.pop("model"), "no tokenizer of T5's family.*None"),
    (lambda c: c["model"].pop("vocab"), "cannot be read as a tokenizer.json"),
    (
      lambda c: c["model"].update(vocab=[["a"]]),
      "cannot be read as a tokenizer.json",
    ),
    (
      lambda c: c["model"].update(unk_id=10**9),
      "cannot serve a T5 model.*'unk_id': -1",
    ),
    (lambda c: c["model"]["vocab"].insert(0, ["a", 0.0]), "adds tokens to T5's own"),
    (
      lambda c: (c["model"]["vocab"].insert(0, ["a", 0.0]), c["added_tokens"].clear()),
      "cannot serve a T5 model.*'pad_id': 1",
    ),
    (
      lambda c: c.update(normalizer={"type": "?"}),
      "cannot be read as a tokenizer.json",
    ),
  ],
)
def test_a_tokenizer_json_that_is_no_t5s_is_refused(
  converted, tmp_path, change, message
):
  content = json.loads(converted.read_text())
  change(content)
  path = tmp_path / "tokenizer.json"
  path.write_text(json.dumps(content))
  with pytest.raises(UserError, match=message):
    HuggingFaceVocabulary(path)


def test_without_the_package_a_tokenizer_json_is_refused_with_what_to_install(
  tmp_path, monkeypatch
):
  monkeypatch.setitem(sys.modules, "tokenizers", None)
  with pytest.raises(UserError, match=r"pip install tokenizers\), or .*spiece"):
    HuggingFaceVocabulary(tmp_path / "tokenizer.json")


def test_a_folder_gives_the_vocabulary_that_lies_in_it(spiece, converted, tmp_path):
  with pytest.raises(UserError, match=r"neither 'spiece\.model' nor 'tokenizer\.json'"):
    vocabularies.load(tmp_path)
  (tmp_path / "tokenizer.json").write_bytes(converted.read_bytes())
  assert isinstance(vocabularies.load(tmp_path), HuggingFaceVocabulary)
  (tmp_path / "spiece.model").write_bytes(spiece.read_bytes())
  (tmp_path / "tokenizer_config.json").write_text('{"extra_ids": 5}')
  found = vocabularies.load(tmp_path)
  assert isinstance(found, SentencePieceVocabulary)
  assert found.digest == vocabularies.load(converted).digest
  assert vocabularies.load(tmp_path, extra_ids=7).size == found.size + 2


@pytest.mark.parametrize("name", ["spiece.model", "tokenizer_config.json"])
def test_links_are_followed_inside_a_snapshot_of_the_hub_only(spiece, tmp_path, name):
  contents = {
    "spiece.model": spiece.read_bytes(),
    "tokenizer_config.json": b'{"extra_ids": 5}',
  }
  blobs, snapshot = tmp_path / "hub" / "blobs", tmp_path / "hub" / "snapshots" / "abc"
  blobs.mkdir(parents=True)
  snapshot.mkdir(parents=True)
  for file, content in contents.items():
    (blobs / file).write_bytes(content)
    (snapshot / file).symlink_to(f"../../blobs/{file}")
  assert vocabularies.load(snapshot).size == SentencePieceVocabulary(spiece, 5).size
  outside = tmp_path / "elsewhere"
  outside.write_bytes(contents[name])
  (snapshot / name).unlink()
  (snapshot / name).symlink_to(outside)
  with pytest.raises(UserError, match=f"{name}' is a symbolic link out of its folder"):
    vocabularies.load(snapshot)


@pytest.mark.parametrize("count", ['"5"', "-1", "1e3", "100000000", "true"])
def test_a_number_of_extra_ids_that_cannot_be_is_refused(spiece, tmp_path, count):
  (tmp_path / "spiece.model").write_bytes(spiece.read_bytes())
  (tmp_path / "tokenizer_config.json").write_text(f'{{"extra_ids": {count}}}')
  with pytest.raises(
    UserError, match=r"extra_ids (in|=) .*(whole number|more than any)"
  ):
    vocabularies.load(tmp_path)


def test_a_file_is_told_by_its_name(spiece, converted, tmp_path):
  words = tmp_path / "words.txt"
  words.write_text("<pad>\n</s>\n<unk>\na\n")
  assert vocabularies.load(words).size == 4
  assert isinstance(vocabularies.load(spiece), SentencePieceVocabulary)
  with pytest.raises(UserError, match=r"extra_ids = 3 is for a SentencePiece model"):
    vocabularies.load(converted, extra_ids=3)


@pytest.mark.parametrize("content", ["[1, 2]", "{", "[" * 100_000, "\udc80"])
def test_what_is_no_json_object_is_refused(tmp_path, content):
  path = tmp_path / "tokenizer.json"
  path.write_bytes(content.encode(errors="surrogateescape"))
  pytest.importorskip("tokenizers", reason="needs the extra 'tokenizers'")
  with pytest.raises(UserError, match="is no JSON object"):
    vocabularies.load(path)

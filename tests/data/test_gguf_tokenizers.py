"""A tokenizer inside a GGUF file is the one that it was made of."""

import json

import pytest
from tokenizer_references import STORED, metadata, write, write_gguf

from tpv_jax.core.errors import UserError
from tpv_jax.data import gguf_tokenizers, vocabularies
from tpv_jax.data.byte_pairs import BytePairVocabulary

pytest.importorskip("tokenizers", reason="needs the extra 'llm'")


def load(family, chat=None, **changed):
  stated = gguf_tokenizers.of_metadata(metadata(family, **changed), "x.gguf")
  return BytePairVocabulary(stated, chat)


@pytest.mark.parametrize("family", ["smollm", "llama_3", "qwen", "llama_2", "gemma"])
def test_ids_are_those_of_the_tokenizer_that_it_was_made_of(family, tmp_path):
  inside, folder = load(family), vocabularies.load(write(tmp_path, family))
  assert inside.digest == folder.digest
  assert inside.source_start == folder.source_start
  assert inside.eos_id == folder.eos_id
  for text, *_ in STORED[family]["texts"]:
    assert inside.encode(text) == folder.encode(text), text
    assert inside.encode_source(text) == folder.encode_source(text)
    assert inside.encode_target(text) == folder.encode_target(text)
    ids = inside.encode_target(text)
    assert inside.decode(ids) == folder.decode(ids)


def test_the_chat_template_inside_gives_the_same_conversation(tmp_path):
  inside = load("llama_3", {"system": "Be brief."})
  folder = vocabularies.of_backbone(
    write(tmp_path, "llama_3"), chat={"system": "Be brief."}
  )
  assert inside.encode_source("a film") == folder.encode_source("a film")
  assert inside.encode_target("good") == folder.encode_target("good")
  assert inside.chat.digest == folder.chat.digest


def splits(pre, text):
  """Returns the parts into which a rule splits a text, as llama.cpp shows them."""
  import tokenizers

  content = gguf_tokenizers.of_metadata(metadata("smollm", pre=pre), "x.gguf").content
  tokenizer = tokenizers.Tokenizer.from_str(json.dumps(content))
  return [
    text[begin:end]
    for _, (begin, end) in tokenizer.pre_tokenizer.pre_tokenize_str(text)
  ]


@pytest.mark.parametrize(
  ("pre", "text", "parts"),
  [
    # GPT-2's rule alone would give 'x', '\n', '\n', '1', '.': digits are split first.
    ("smollm", "x\n\n1. 123a", ["x", "\n\n", "1", ".", " ", "1", "2", "3", "a"]),
    ("llama-bpe", "x\n\n1. 1234a", ["x", "\n\n", "1", ".", " ", "123", "4", "a"]),
    ("qwen2", "It'S 12!\n", ["It", "'S", " ", "1", "2", "!\n"]),
    # Line ends stand alone, numbers stay whole, letters of other scripts stand apart.
    ("deepseek-llm", "x\n\n12. ab", ["x", "\n", "\n", "12", ".", " ab"]),
    (
      "deepseek-llm",
      " abé!? \u4e2d\u6587  ",
      [" ab", "é", "!?", " ", "\u4e2d\u6587", "  "],
    ),
    ("deepseek-llm", "\u0430\u0431\u05d0", ["\u0430\u0431", "\u05d0"]),
  ],
)
def test_texts_are_split_by_the_rule_that_the_file_names(pre, text, parts):
  assert splits(pre, text) == parts


@pytest.mark.parametrize(("family", "count"), [("llama_3", 1), ("smollm", 2)])
def test_only_llama_3_takes_a_piece_that_no_merge_makes(family, count):
  stated = metadata(family)
  tokens = [*stated["tokenizer.ggml.tokens"], "Zq"]
  types = [*stated["tokenizer.ggml.token_type"], 1]
  ids = load(family, tokens=tokens, token_type=types).encode("Zq")
  assert len(ids) == count
  assert (len(tokens) in ids) == (count == 1)


def test_spare_pieces_of_the_converter_are_left_out(tmp_path):
  tokens = metadata("smollm")["tokenizer.ggml.tokens"]
  count = len(tokens)
  more = [f"[PAD{index}]" for index in range(count, count + 5)]
  kinds = [*metadata("smollm")["tokenizer.ggml.token_type"], *[5] * 5]
  padded = load("smollm", tokens=[*tokens, *more], token_type=kinds)
  assert padded.vocab_size == count + 1
  assert padded.digest == load("smollm").digest


def test_bos_where_the_file_does_not_say_is_as_in_llama_cpp():
  for family, expected in (("smollm", ()), ("llama_3", (1,)), ("llama_2", (2,))):
    assert load(family, add_bos_token=None).source_start == expected
  assert load("llama_3", add_bos_token=False).source_start == ()


def test_without_a_space_in_front_a_text_has_none():
  vocabulary = load("llama_2", add_space_prefix=False)
  assert vocabulary.encode(" a") == load("llama_2").encode("a")
  assert vocabulary.encode("a") != load("llama_2").encode("a")
  assert vocabulary.decode(vocabulary.encode_target("good")) == "good"


def test_runs_of_spaces_are_pieces_of_gemma_and_turns_end_a_text():
  vocabulary = load("gemma", True)
  (ids,) = vocabulary.encode_source("a  b")
  pieces = [vocabulary.pieces[index - 1] for index in ids]
  assert pieces[:4] == ["<bos>", "<start_of_turn>", *pieces[2:4]]
  assert pieces[pieces.index("▁▁") - 1 : pieces.index("▁▁") + 2] == ["a", "▁▁", "b"]
  assert vocabulary.decode(vocabulary.encode("a  b\n\nc")) == "a  b\n\nc"
  ends = {vocabulary.pieces[index - 1] for index in vocabulary.end_ids}
  assert ends == {"<eos>", "<end_of_turn>"}
  assert (
    load("gemma").eos_id == 2
  )  # <eos>, of id 1: without a template a target ends so.


def test_a_gguf_file_brings_its_vocabulary(tmp_path):
  pytest.importorskip("gguf", reason="needs the extra 'llm'")
  path = write_gguf(tmp_path / "tiny.gguf", "llama_2")
  for found in (vocabularies.load(path), vocabularies.of_backbone(path)):
    assert found.digest == load("llama_2").digest
  assert vocabularies.of_backbone(path, chat=True).chat is not None


@pytest.mark.parametrize(
  ("family", "changed", "message"),
  [
    ("smollm", {"model": "t5"}, "of kind 't5'; read are 'gpt2', 'llama'"),
    ("smollm", {"model": None}, "of kind None"),
    ("smollm", {"pre": "gpt-4o"}, "by the rule 'gpt-4o'.*read are smollm, llama-bpe"),
    ("smollm", {"pre": "qwen3"}, "Did you mean 'qwen2'"),
    ("smollm", {"pre": None}, "by the rule None"),
    ("smollm", {"tokens": None}, "KeyError: 'tokens'"),
    ("smollm", {"tokens": []}, "0 pieces"),
    ("smollm", {"tokens": ["a"] * 420}, "two pieces are the same"),
    ("smollm", {"merges": None}, "KeyError: 'merges'"),
    ("smollm", {"merges": ["a b c"]}, "cannot be read"),
    ("smollm", {"merges": ["a zzz"]}, "cannot be read"),
    ("smollm", {"token_type": [1]}, "420 pieces and 1 types"),
    ("smollm", {"eos_token_id": 10**6}, "cannot be read .*IndexError"),
    ("smollm", {"eos_token_id": None}, "state no end token"),
    ("llama_2", {"scores": [1.0]}, "420 pieces and 1 scores"),
    ("llama_2", {"scores": None}, "KeyError: 'scores'"),
    ("llama_2", {"bos_token_id": None}, "KeyError: 'bos_token'"),
  ],
)
def test_what_cannot_be_read_is_refused_in_one_line(family, changed, message):
  with pytest.raises(UserError, match=message) as caught:
    load(family, **changed)
  assert "x.gguf" in str(caught.value)
  assert "\n" not in str(caught.value)

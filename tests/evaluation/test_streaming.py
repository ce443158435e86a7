"""Answers that grow: their tokens are those of decoding, their text is never half a letter."""

import itertools
import random

import numpy as np
import pytest
from conftest import Tiny, TinyDecoder

from tpv_jax.backbones import decoding
from tpv_jax.data import vocabularies
from tpv_jax.evaluation import streaming
from tpv_jax.evaluation.evaluator import Evaluator

LENGTHS = {"inputs": 48, "targets": 6}
PROMPT = {"prompt": np.random.default_rng(0).normal(size=(3, 16)).astype(np.float32)}


@pytest.fixture(scope="module", params=[Tiny, TinyDecoder], ids=["T5", "decoder"])
def backbone(request):
  return request.param()


def evaluator_of(tiny, **choice):
  model = tiny.model(prompt=None)
  model.choice = decoding.Choice(**choice)
  return Evaluator(
    model, tiny.backbone.params, tiny.vocabulary, LENGTHS, batch_size=4, at_once=1
  )


def sources(rows=6):
  """Returns sources of very different lengths, among them an empty one."""
  rng = np.random.default_rng(5)
  found = np.zeros((rows, LENGTHS["inputs"]), np.int32)
  for row, length in zip(found, (5, 0, 45, 30, 1, 48), strict=True):
    row[:length] = rng.integers(3, 32, length)
  return found


@pytest.mark.parametrize(
  "choice",
  [{}, {"temperature": 1.5, "top_p": 0.9, "sampling_seed": 3}],
  ids=["greedy", "drawn"],
)
def test_tokens_that_come_one_by_one_are_those_of_decoding(backbone, choice):
  evaluator = evaluator_of(backbone, **choice)
  rows = sources()
  numbers = [4, 1, 7, 0, 2, 9]
  expected = evaluator.decode([(PROMPT, rows)], [numbers])[0]
  writer = streaming.Writer(evaluator, PROMPT)
  before = evaluator.work.compiled
  for source, number, row in zip(rows, numbers, expected, strict=True):
    tokens = list(writer.tokens(source, number))
    assert np.pad(tokens, (0, len(row) - len(tokens))).tolist() == row.tolist()
  # Of the widths 24 and 48 each is compiled once, whatever the number of lines.
  assert evaluator.work.compiled - before == 4
  assert len({*map(tuple, expected.tolist())}) > 2 or not choice


def test_with_several_beams_an_answer_comes_at_once(tiny):
  evaluator = evaluator_of(tiny, num_beams=3)
  rows = sources()[:1]
  expected = evaluator.decode([(PROMPT, rows)])[0][0]
  tokens = list(streaming.Writer(evaluator, PROMPT).tokens(rows[0]))
  assert tokens == [token for token in expected.tolist() if token]


class Bytes:
  """A vocabulary of bytes: a letter may take four tokens, and some make none."""

  def decode(self, ids):
    return bytes(itertools.takewhile(lambda one: one != 0, ids)).decode(
      errors="replace"
    )


@pytest.mark.parametrize(
  "text", ["plain", "naïve 漢字 🙂🙂!", "a\ufffdb\ufffd", "", "\n\nx"]
)
def test_a_letter_appears_when_its_last_byte_is_there(text):
  parts = list(streaming.growing_text(Bytes().decode, text.encode()))
  assert "".join(parts) == text
  assert all(parts)
  if "\ufffd" not in text:
    assert parts == list(text)


def test_bytes_that_are_no_text_appear_as_they_are_decoded():
  rng = random.Random(0)
  for _ in range(300):
    ids = [rng.choice([65, 32, 195, 169, 240, 159, 153, 130]) for _ in range(9)]
    ids += rng.choice([[], [0]])
    parts = list(streaming.growing_text(Bytes().decode, ids))
    assert "".join(parts) == Bytes().decode(ids)


def test_a_text_that_a_later_token_changes_is_repeated_whole():
  class Turning:
    def decode(self, ids):
      return "abc"[: len(ids)] if len(ids) < 3 else "xyz"

  assert "".join(streaming.growing_text(Turning().decode, [1, 2, 3])) == "ab\nxyz"


@pytest.mark.parametrize("family", ["smollm", "llama_3", "qwen", "deepseek", "llama_2"])
@pytest.mark.parametrize("chat", [None, True])
def test_texts_of_decoder_only_vocabularies_only_grow(family, chat, tmp_path):
  pytest.importorskip("tokenizers", reason="needs the extra 'llm'")
  pytest.importorskip("jinja2", reason="needs the extra 'llm'")
  from tokenizer_references import write

  vocabulary = vocabularies.of_backbone(write(tmp_path, family), chat=chat)
  left_out = "" if chat is None else vocabulary.chat.frames[1].before
  rng = random.Random(1)
  for _ in range(200):
    ids = [rng.randrange(1, vocabulary.vocab_size) for _ in range(12)]
    whole = vocabulary.decode(ids)
    found = "".join(streaming.growing_text(vocabulary.decode, ids, left_out))
    # LLaMA 2's tokens of bytes at random are seldom letters.
    assert found == whole or (family == "llama_2" and found.endswith(f"\n{whole}"))
  answer = "naïve 🙂 text"
  ids = [*vocabulary.encode_target(answer), vocabulary.end_ids[-1]]
  parts = list(streaming.growing_text(vocabulary.decode, ids, left_out))
  assert "".join(parts) == answer
  assert len(parts) > 3

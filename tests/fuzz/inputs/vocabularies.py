"""Vocabularies: tokenizer.json, SentencePiece models, tokenizer folders."""

import functools
import json
import pathlib
import random

import numpy as np
import tokenizer_references

from fuzz.campaign import Kind


def _make_tokenizer(path: str = "tokenizer.json") -> None:
  from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers

  words = [*"▁abcé", "▁a", "ab", "bc", "abc", "▁abc", "<extra_id_1>", "<extra_id_0>"]
  pieces = [(word, 0.0) for word in ("<pad>", "</s>", "<unk>")]
  pieces += [(word, -float(index)) for index, word in enumerate(words, 1)]
  tokenizer = Tokenizer(models.Unigram(pieces, unk_id=2))
  tokenizer.normalizer = normalizers.Sequence(
    [normalizers.NFKC(), normalizers.Replace("x", "y")]
  )
  tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
    [pre_tokenizers.WhitespaceSplit(), pre_tokenizers.Metaspace()]
  )
  tokenizer.decoder = decoders.Metaspace()
  tokenizer.add_special_tokens(["<pad>", "</s>", "<unk>", "<extra_id_0>"])
  tokenizer.save(path)


def _make_spiece() -> None:
  """A SentencePiece model, written by hand as a protocol buffer."""

  def field(number: int, content: bytes) -> bytes:
    return bytes([number << 3 | 2, len(content)]) + content

  def piece(text: str, kind: int, score: float) -> bytes:
    value = b"\x15" + np.float32(score).tobytes() + b"\x18" + bytes([kind])
    return field(1, field(1, text.encode()) + value)

  control, unknown, normal = 3, 2, 1
  model = piece("<pad>", control, 0) + piece("</s>", control, 0)
  model += piece("<unk>", unknown, 0)
  for index, text in enumerate((*"▁abc", "▁a", "ab", "abc")):
    model += piece(text, normal, -float(index))
  trainer = b"\x18\x01" + b"\xc0\x02\x02" + b"\xc8\x02" + b"\xff" * 9 + b"\x01"
  trainer += b"\xd0\x02\x01" + b"\xd8\x02\x00"
  pathlib.Path("spiece.model").write_bytes(model + field(2, trainer))


def _make_folder() -> None:
  _make_spiece()
  pathlib.Path("tokenizer_config.json").write_text(
    '{"extra_ids": 5, "unk_token": "<unk>", "additional_special_tokens": [], '
    '"added_tokens_decoder": {"0": {"content": "<pad>", "lstrip": false, "special": '
    'true}}, "model_max_length": 512}'
  )
  pathlib.Path("special_tokens_map.json").write_text(
    '{"eos_token": "</s>", "pad_token": "<pad>", "unk_token": "<unk>"}'
  )
  pathlib.Path("added_tokens.json").write_text("{}")


def _make_byte_pairs(family: str) -> None:
  """A decoder-only model's folder, with a chat template in a file of its own."""
  folder = tokenizer_references.write(pathlib.Path(), family)
  config = json.loads((folder / "tokenizer_config.json").read_text())
  if isinstance(template := config.pop("chat_template", None), str):
    (folder / "chat_template.jinja").write_text(template)
  (folder / "tokenizer_config.json").write_text(json.dumps(config))


def _make_gguf(family: str) -> None:
  tokenizer_references.write_gguf(pathlib.Path("tiny.gguf"), family)


def _converses(path: str):
  """Reads a decoder-only model's vocabulary, plain and with its chat template."""

  def body() -> None:
    from tpv_jax.data import batches, vocabularies
    from tpv_jax.data.tasks import Example

    for chat in (None, {"system": "Be kind."}):
      vocabulary = vocabularies.of_backbone(path, chat=chat)
      assert len(vocabulary.digest) == 64
      example = Example("abc é x 12 <s> <|im_end|>", "a b", fields=((2, 9),))
      lengths = {"inputs": 400, "targets": 400}
      rows = batches.tokenize([example, Example("", "b")], vocabulary, lengths)
      for ids in (*rows.inputs, *rows.targets):
        assert all(0 <= index < vocabulary.vocab_size for index in ids)
        assert isinstance(vocabulary.decode(ids), str)

  def run(_: random.Random) -> int:
    from tpv_jax.core import errors

    return errors.run_command(body)

  return run


def _reads(path: str):
  def body() -> None:
    from tpv_jax.data import vocabularies

    vocabulary = vocabularies.load(path)
    for text in ("abc é x <extra_id_0> </s>", "", "b" * 100):
      ids = vocabulary.encode(text)
      assert all(0 <= index < vocabulary.vocab_size for index in ids)
      assert isinstance(vocabulary.decode(ids), str)
    assert len(vocabulary.digest) == 64

  def run(_: random.Random) -> int:
    from tpv_jax.core import errors

    return errors.run_command(body)

  return run


KINDS = {
  "tokenizer.json": Kind(_make_tokenizer, _reads("tokenizer.json"), needs="tokenizers"),
  "SentencePiece model": Kind(_make_spiece, _reads("spiece.model")),
  "tokenizer's folder": Kind(_make_folder, _reads(".")),
  "byte-level BPE folder": Kind(
    functools.partial(_make_byte_pairs, "smollm"), _converses("."), needs="jinja2"
  ),
  "SentencePiece BPE folder": Kind(
    functools.partial(_make_byte_pairs, "llama_2"), _converses("."), needs="jinja2"
  ),
  "GGUF tokenizer": Kind(
    functools.partial(_make_gguf, "llama_3"), _converses("tiny.gguf"), needs="gguf"
  ),
  "GGUF tokenizer of Gemma": Kind(
    functools.partial(_make_gguf, "gemma"), _converses("tiny.gguf"), needs="gguf"
  ),
}

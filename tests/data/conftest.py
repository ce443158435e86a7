"""Vocabularies in the forms of SentencePiece and of Hugging Face."""

import subprocess
import sys

import pytest


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


def tokenizer_json(spiece, extra_ids=5):
  """Returns what `transformers` makes of the model (5.23, T5Tokenizer)."""
  seqio = pytest.importorskip("seqio", reason="seqio is not installed (extra 'data')")
  pytest.importorskip("tokenizers", reason="needs the extra 'tokenizers'")
  from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers

  proto = seqio.vocabularies.sentencepiece_model_pb2.ModelProto.FromString(
    spiece.read_bytes()
  )
  pieces = [(piece.piece, piece.score) for piece in proto.pieces]
  extra = [f"<extra_id_{i}>" for i in reversed(range(extra_ids))]
  pieces += [(name, 0.0) for name in extra]
  tokenizer = Tokenizer(models.Unigram(pieces, unk_id=2))
  charsmap = proto.normalizer_spec.precompiled_charsmap
  assert charsmap
  tokenizer.normalizer = normalizers.Precompiled(charsmap)
  space = {"replacement": "▁", "prepend_scheme": "always"}
  tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
    [pre_tokenizers.WhitespaceSplit(), pre_tokenizers.Metaspace(**space)]
  )
  tokenizer.decoder = decoders.Metaspace(**space)
  tokenizer.add_special_tokens(["<pad>", "</s>", "<unk>", *extra])
  return tokenizer.to_str()


@pytest.fixture(scope="session")
def converted(spiece, tmp_path_factory):
  """The tokenizer.json of the SentencePiece model, with 5 extra ids."""
  path = tmp_path_factory.mktemp("converted") / "tokenizer.json"
  path.write_text(tokenizer_json(spiece))
  return path

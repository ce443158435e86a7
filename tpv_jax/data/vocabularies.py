"""Vocabularies: text to token ids and back.

All of them have the members of `Vocabulary`. Encoding never adds EOS
(`batches.tokenize` does); decoding stops at EOS and skips padding, as seqio does.
"""

import functools
import hashlib
import importlib.resources
import operator
import os
from collections.abc import Iterable, Sequence
from typing import Protocol, SupportsIndex, runtime_checkable

from tpv_jax.errors import UserError
from tpv_jax.files import PathLike, read_bytes, to_path

PAD, EOS, UNK = "<pad>", "</s>", "<unk>"
SPECIAL = (PAD, EOS, UNK)


@runtime_checkable
class Vocabulary(Protocol):
  """What the model, the batches and the runner use of a vocabulary."""

  @property
  def vocab_size(self) -> int:
    """How many ids there are, those of the extra ids included."""

  @property
  def pad_id(self) -> int:
    """The id of padding: always 0, as in T5."""

  @property
  def eos_id(self) -> int:
    """The id that ends a text."""

  @property
  def unk_id(self) -> int:
    """The id of what the vocabulary cannot say."""

  @property
  def digest(self) -> str:
    """64 hex digits that name the content (SHA-256)."""

  def encode(self, text: str) -> list[int]:
    """Returns the token ids of `text`, without EOS."""

  def decode(self, ids: Iterable[SupportsIndex]) -> str:
    """Returns the text of `ids` up to the first EOS, padding skipped."""


class WordVocabulary:
  """A vocabulary of whole words, split at white space.

  Ids: 0 `<pad>`, 1 `</s>`, 2 `<unk>`, then the words in their order. A word that is not
  in the vocabulary, or that spells one of the three special ones, becomes `<unk>`.
  Texts are taken as they are: no lower-casing, no punctuation split off.
  """

  pad_id = 0
  eos_id = 1
  unk_id = 2

  def __init__(self, words: PathLike | Sequence[str]):
    """Builds the vocabulary from a file or from words.

    Args:
      words: a UTF-8 file with one word a line of which the first three are `<pad>`,
        `</s>` and `<unk>`; or the words as a sequence, with or without those three.

    Raises:
      UserError: no such file, the three special words are missing or elsewhere, or a
        word that is empty, repeated or holds white space.
    """
    if isinstance(words, str | os.PathLike):
      where, every = f"'{os.fspath(words)}'", _lines(words)
    else:
      where, every = "the word list", tuple(words)
      if every[:3] != SPECIAL:
        every = (*SPECIAL, *every)
    if every[:3] != SPECIAL:
      raise UserError(
        f"{where} is not a word vocabulary: its first three lines are "
        f"{', '.join(repr(w[:20]) for w in every[:3]) or 'missing'} instead of "
        f"{', '.join(SPECIAL)}. A SentencePiece model needs SentencePieceVocabulary."
      )
    self.words: tuple[str, ...] = every
    """Every word at the place of its id, the three special ones included."""
    self._ids: dict[str, int] = {}
    for index, word in enumerate(every):
      if word.split() != [word] or word in self._ids:
        fault = "appears twice" if word in self._ids else "is not one word"
        raise UserError(
          f"Line {index + 1} of {where}, '{word}', {fault}; a vocabulary has one word "
          "a line, each once. Remove that line."
        )
      self._ids[word] = index
    for word in SPECIAL:
      del self._ids[word]

  @property
  def vocab_size(self) -> int:
    """How many ids there are, the three special ones included."""
    return len(self.words)

  @property
  def size(self) -> int:
    """The same as `vocab_size` (seqio's name)."""
    return self.vocab_size

  @functools.cached_property
  def digest(self) -> str:
    """SHA-256 of the words as a file: UTF-8, each ended by a line feed."""
    return hashlib.sha256("".join(f"{w}\n" for w in self.words).encode()).hexdigest()

  def encode(self, text: str) -> list[int]:
    """Returns the ids of the white-space separated words of `text`, without EOS."""
    return [self._ids.get(word, self.unk_id) for word in text.split()]

  def decode(self, ids: Iterable[SupportsIndex]) -> str:
    """Returns the words of `ids` up to the first EOS, joined by one space.

    Padding is skipped; an id outside the vocabulary (a backbone may have more embedding
    rows than there are words) reads `<unk>`.
    """
    words = []
    for index in map(operator.index, ids):
      if index == self.eos_id:
        break
      if index != self.pad_id:
        words.append(self.words[index] if 0 <= index < self.size else UNK)
    return " ".join(words)


class SentencePieceVocabulary:
  """A SentencePiece model with T5's extra ids: the ids are those that seqio gives.

  The extra ids come after the model's own and count down: `<extra_id_0>` has the
  highest id. Padding is id 0. `sentencepiece` is imported when one is built.
  """

  pad_id = 0

  def __init__(self, path: PathLike, extra_ids: int = 100):
    """Reads the model.

    Args:
      path: the `.model` file.
      extra_ids: how many sentinels to add at the end (T5: 100; mT5 has them inside its
        own model: 0).

    Raises:
      UserError: no such file, not a SentencePiece model, or one without EOS, without
        `<unk>` or with something else than padding at id 0.
    """
    import sentencepiece

    self.path = to_path(path)
    self.extra_ids = extra_ids
    # A serialised protocol buffer is extended by appending: no protobuf needed.
    model = _read(path) + b"".join(
      _piece(f"▁<extra_id_{i}>") for i in reversed(range(extra_ids))
    )
    self.digest = hashlib.sha256(model).hexdigest()
    """SHA-256 of the model file's bytes with the extra pieces appended to them."""
    self._processor = sentencepiece.SentencePieceProcessor()
    try:
      self._processor.LoadFromSerializedProto(model)
    except RuntimeError as error:
      raise UserError(
        f"'{path}' is not a SentencePiece model. Give the .model file; a list of words "
        "needs WordVocabulary."
      ) from error
    ids = {
      name: getattr(self._processor, name)() for name in ("pad_id", "eos_id", "unk_id")
    }
    if ids["pad_id"] != 0 or min(ids.values()) < 0:
      raise UserError(
        f"'{path}' cannot serve a T5 model: its ids are {ids}, but padding must be 0 "
        "and the others must exist. Train it with --pad_id=0 --eos_id=1 --unk_id=2."
      )

  @property
  def vocab_size(self) -> int:
    """How many ids there are, the extra ids included."""
    return self._processor.GetPieceSize()

  @property
  def size(self) -> int:
    """The same as `vocab_size` (seqio's name)."""
    return self.vocab_size

  @property
  def eos_id(self) -> int:
    """The id that ends a text (1 in T5's models)."""
    return self._processor.eos_id()

  @property
  def unk_id(self) -> int:
    """The id of what the model cannot say (2 in T5's models)."""
    return self._processor.unk_id()

  def encode(self, text: str) -> list[int]:
    """Returns the ids of `text`, normalised as the model says, without EOS."""
    return self._processor.EncodeAsIds(text)

  def decode(self, ids: Iterable[SupportsIndex]) -> str:
    """Returns the text of `ids` up to the first EOS.

    Padding has no text; an id outside the vocabulary (T5 has 32,128 embedding rows for
    32,100 ids) reads as `<unk>` does.
    """
    kept = []
    for index in map(operator.index, ids):
      if index == self.eos_id:
        break
      kept.append(index if 0 <= index < self.vocab_size else self.unk_id)
    return self._processor.DecodeIds(kept)


@functools.cache
def embedded() -> WordVocabulary:
  """Returns the vocabulary of the embedded backbone."""
  file = importlib.resources.files("tpv_jax.embedded") / "vocabulary.txt"
  with importlib.resources.as_file(file) as path:
    return WordVocabulary(path)


MOST_SPARE_ROWS = 256
"""An embedding table is padded to a multiple of 128 or so, not by more."""


def check_fits(
  vocabulary: Vocabulary, rows: int, backbone: str = "the backbone"
) -> None:
  """Raises `UserError` if a vocabulary of this size cannot be the backbone's.

  More ids than embedding rows cannot be. Fewer are ordinary (T5: 32,100 and 32,128; 128
  less without the extra ids), but not fewer than `MOST_SPARE_ROWS` (ours): ids would
  mean other words.
  """
  if rows - vocabulary.vocab_size > MOST_SPARE_ROWS:
    raise UserError(
      f"The vocabulary has only {vocabulary.vocab_size} ids, and {backbone} has "
      f"embeddings for {rows}, so it was trained with another vocabulary. Choose the one "
      "that belongs to it."
    )
  if vocabulary.vocab_size > rows:
    raise UserError(
      f"The vocabulary has {vocabulary.vocab_size} ids, but {backbone} has embeddings "
      f"for only {rows}, so it was trained with another vocabulary. Choose the one "
      "that belongs to it."
    )


def _read(path: PathLike) -> bytes:
  try:
    return read_bytes(path)
  except OSError as error:
    raise UserError(
      f"Cannot read the vocabulary '{os.fspath(path)}': {error.strerror or error}. Check the "
      "path."
    ) from error


def _lines(path: PathLike) -> tuple[str, ...]:
  try:
    return tuple(_read(path).decode().splitlines())
  except UnicodeDecodeError as error:
    raise UserError(
      f"'{os.fspath(path)}' is not a word vocabulary: it is no UTF-8 text. A "
      "SentencePiece model needs SentencePieceVocabulary."
    ) from error


def _piece(piece: str) -> bytes:
  """Returns a user-defined piece as the protocol buffer field `ModelProto.pieces`."""
  text = piece.encode()
  # Fields of SentencePiece: 1 piece (bytes), 2 score (a 32-bit 0.0), 3 type (4).
  message = b"\x0a" + bytes([len(text)]) + text + b"\x15\0\0\0\0" + b"\x18\x04"
  return b"\x0a" + bytes([len(message)]) + message

"""Vocabularies: text to token ids and back.

All of them have the members of `Vocabulary`. Encoding never adds EOS or BOS
(`batches.tokenize` does); decoding stops at an end token and skips padding, as seqio does.

Id 0 is padding in every batch. T5's vocabularies have a piece for it. Those of decoder-only
models have none, so their ids are the tokenizer's plus one (`Vocabulary.first_id`).

The digest of a vocabulary is SHA-256 over its pieces in the order of their ids, in UTF-8,
each followed by a line feed. So a SentencePiece model and the `tokenizer.json` made from it
have the same digest, and a digest determines what ids mean.
"""

import abc
import errno
import functools
import importlib.resources
import json
import operator
import os
from collections.abc import Iterable, Sequence
from typing import Any, Protocol, SupportsIndex, runtime_checkable

from tpv_jax.core.checks import checked
from tpv_jax.core.errors import UserError, at_least
from tpv_jax.core.files import Path, PathLike, inside, read_bytes, to_path
from tpv_jax.data import decoder_files, gguf_tokenizers, tokenizer_files
from tpv_jax.data.byte_pairs import BytePairVocabulary, Stated
from tpv_jax.data.chat_templates import ChatTemplate, Setting
from tpv_jax.data.tasks import split_at
from tpv_jax.data.tokenizer_files import (
  EOS,
  MAX_BYTES,
  PAD,
  SPIECE,
  TOKENIZER,
  UNK,
  digest,
)
from tpv_jax.formats import gguf, hub, packaged

SPECIAL = (PAD, EOS, UNK)

EXTRA_IDS = 100
"""The number of sentinels in T5 and mT5."""

MOST_EXTRA_IDS = 1 << 16


@runtime_checkable
class Vocabulary(Protocol):
  """The members of a vocabulary that the model, the batches and the runner use."""

  @property
  def vocab_size(self) -> int:
    """How many ids there are, the extra ids included."""

  @property
  def pad_id(self) -> int:
    """The id of padding: always 0, as in T5."""

  @property
  def first_id(self) -> int:
    """The id of the first row of the backbone's table: 0 for T5, 1 for decoder-only."""

  @property
  def eos_id(self) -> int:
    """The id that a target ends with; the first of `end_ids`."""

  @property
  def end_ids(self) -> tuple[int, ...]:
    """The ids that end a decoded text."""

  @property
  def unk_id(self) -> int:
    """The id of pieces that are not in the vocabulary; -1 if every text has ids."""

  @property
  def source_start(self) -> tuple[int, ...]:
    """The ids in front of every source."""

  @property
  def source_end(self) -> tuple[int, ...]:
    """The ids behind every source."""

  @property
  def digest(self) -> str:
    """64 hex digits that name the pieces in the order of their ids (SHA-256)."""

  @property
  def chat(self) -> ChatTemplate | None:
    """The chat template by which sources and targets are written; None without one."""

  def encode(self, text: str) -> list[int]:
    """Returns the token ids of `text`, without EOS."""

  def encode_source(
    self, text: str, fields: Sequence[tuple[int, int]] = ()
  ) -> list[list[int]]:
    """Returns the ids of a source, without `source_start` and `source_end`.

    Args:
      text: the source.
      fields: where columns begin and end in it, in their order. With them the parts are
        encoded separately: words, first column, words, second column, ..., words. Without
        them the source is one part.
    """

  def encode_target(self, text: str) -> list[int]:
    """Returns the ids of a target, as they stand behind a source, without EOS."""

  def decode(self, ids: Iterable[SupportsIndex]) -> str:
    """Returns the text of `ids` up to the first end token, padding skipped.

    Of `encode_target`'s ids it is the target.
    """


class EncoderDecoderVocabulary(abc.ABC):
  """The members that T5's vocabularies share: sources and targets are texts with EOS."""

  first_id = 0
  pad_id = 0
  source_start: tuple[int, ...] = ()
  chat: ChatTemplate | None = None
  eos_id: int
  """The id that ends a text."""

  @property
  def end_ids(self) -> tuple[int, ...]:
    """EOS alone."""
    return (self.eos_id,)

  @property
  def source_end(self) -> tuple[int, ...]:
    """EOS: the encoder sees it behind every source."""
    return (self.eos_id,)

  @abc.abstractmethod
  def encode(self, text: str) -> list[int]:
    """Returns the token ids of `text`, without EOS."""

  def encode_source(
    self, text: str, fields: Sequence[tuple[int, int]] = ()
  ) -> list[list[int]]:
    """Returns the ids of a source, in one part or in those of its fields."""
    return [self.encode(part) for part in split_at(text, fields)]

  def encode_target(self, text: str) -> list[int]:
    """Returns the ids of a target, without EOS."""
    return self.encode(text)


class WordVocabulary(EncoderDecoderVocabulary):
  """A vocabulary of whole words, split at white space.

  Ids: 0 `<pad>`, 1 `</s>`, 2 `<unk>`, then the words in their order. A word that is not
  in the vocabulary, or that spells one of the three special ones, becomes `<unk>`.
  Texts are not changed: no lower-casing, no splitting of punctuation.
  """

  eos_id = 1
  unk_id = 2

  def __init__(self, words: PathLike | Sequence[str]):
    """Builds the vocabulary from a file or from words.

    Args:
      words: a UTF-8 file with one word in each line, the first three of which are
        `<pad>`, `</s>` and `<unk>`; or a sequence of words, with or without those three.

    Raises:
      UserError: there is no such file, the three special words are not the first ones, or
        a word is empty, repeated or holds white space.
    """
    self.path: Path | None = None
    if isinstance(words, str | os.PathLike):
      self.path = to_path(words)
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
          f"Line {index + 1} of {where}, '{word}', {fault}; a vocabulary has one word in "
          "each line, each word once. Remove that line."
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
    """SHA-256 of the words; see the module."""
    return digest(self.words)

  def encode(self, text: str) -> list[int]:
    """Returns the ids of the white-space separated words of `text`, without EOS."""
    return [self._ids.get(word, self.unk_id) for word in text.split()]

  def decode(self, ids: Iterable[SupportsIndex]) -> str:
    """Returns the words of `ids` up to the first EOS, joined by one space.

    Padding is skipped; an id outside the vocabulary (a backbone may have more embedding
    rows than there are words) becomes `<unk>`.
    """
    words = []
    for index in map(operator.index, ids):
      if index == self.eos_id:
        break
      if index != self.pad_id:
        words.append(self.words[index] if 0 <= index < self.size else UNK)
    return " ".join(words)


class SentencePieceVocabulary(EncoderDecoderVocabulary):
  """A SentencePiece model with T5's extra ids: the ids are those that seqio gives.

  The extra ids come after the model's own and count down: `<extra_id_0>` has the
  highest id. Padding is id 0. `sentencepiece` is imported when an instance is made.
  """

  def __init__(self, path: PathLike, extra_ids: int | None = None):
    """Reads the model.

    Args:
      path: the `.model` file.
      extra_ids: how many sentinels to add at the end. By default none if the model already
        has them, as mT5's does, otherwise T5's 100.

    Raises:
      UserError: there is no such file, it is not a SentencePiece model, or it lacks EOS or
        `<unk>` or has something other than padding at id 0.
    """
    import sentencepiece

    self.path = to_path(path)
    model = _read(path)
    self._processor = sentencepiece.SentencePieceProcessor()
    self._load(model)
    if extra_ids is None:
      extra_ids = 0 if self._has_extra_ids() else EXTRA_IDS
    at_least("extra_ids", extra_ids, 0)
    if extra_ids > MOST_EXTRA_IDS:
      raise UserError(
        f"extra_ids = {extra_ids} is more than any model has. T5 has {EXTRA_IDS}."
      )
    self.extra_ids = extra_ids
    if extra_ids:
      # A serialised protocol buffer is extended by appending: no protobuf needed.
      self._load(
        model + b"".join(_piece(f"▁<extra_id_{i}>") for i in reversed(range(extra_ids)))
      )
    try:
      self.pieces = [*map(self._processor.IdToPiece, range(self.vocab_size))]
      """In the order of their ids, the extra ids included."""
      self.digest = digest(self.pieces)
      """SHA-256 of the pieces; see the module."""
    except UnicodeDecodeError as error:
      raise UserError(
        f"'{path}' is damaged: a piece is no UTF-8 text ({error}). Take another copy."
      ) from error
    _check_ids(
      path,
      {
        name: getattr(self._processor, name)()
        for name in ("pad_id", "eos_id", "unk_id")
      },
    )
    self.eos_id = self._processor.eos_id()

  def scored_pieces(self) -> list[tuple[str, float]]:
    """Returns the pieces and their scores, which are log-probabilities."""
    return [(p, self._processor.GetScore(i)) for i, p in enumerate(self.pieces)]

  def turns_letters(self) -> bool:
    """Returns whether the model replaces letters before it splits a text."""
    wide = "\uff21"  # Every table of SentencePiece replaces this full-width A.
    return wide not in self._processor.Normalize(wide)

  def _load(self, model: bytes) -> None:
    try:
      self._processor.LoadFromSerializedProto(model)
    except RuntimeError as error:
      raise UserError(
        f"'{self.path}' is not a SentencePiece model. Give the .model file; a list of "
        "words needs WordVocabulary."
      ) from error

  def _has_extra_ids(self) -> bool:
    unknown = self._processor.unk_id()
    return any(
      self._processor.PieceToId(piece) != unknown
      for piece in ("<extra_id_0>", "▁<extra_id_0>")
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
  def unk_id(self) -> int:
    """The id of pieces that are not in the model (2 in T5's models)."""
    return self._processor.unk_id()

  def encode(self, text: str) -> list[int]:
    """Returns the ids of `text`, normalised as the model says, without EOS."""
    return self._processor.EncodeAsIds(text)

  def decode(self, ids: Iterable[SupportsIndex]) -> str:
    """Returns the text of `ids` up to the first EOS.

    Padding has no text; an id outside the vocabulary (T5 has 32,128 embedding rows for
    32,100 ids) is read as `<unk>`.
    """
    kept = []
    for index in map(operator.index, ids):
      if index == self.eos_id:
        break
      kept.append(index if 0 <= index < self.vocab_size else self.unk_id)
    return self._processor.DecodeIds(kept)


class HuggingFaceVocabulary(EncoderDecoderVocabulary):
  """A Hugging Face `tokenizer.json` that gives the ids of the SentencePiece model.

  It reads the Unigram models of T5's family. `tokenizers` runs without the added tokens at
  which `transformers` splits a text beforehand. As in SentencePiece, `</s>` in a text is
  ordinary text, and a sentinel is recognised only at the start of the text or after a
  space. Needs the extra 'tokenizers'.
  """

  def __init__(self, path: PathLike):
    """Reads the file.

    Raises:
      UserError: there is no such file; it is not the tokenizer.json of a Unigram model; it
        lacks EOS or `<unk>` or has something other than padding at id 0; or the package
        `tokenizers` is not installed.
    """
    try:
      import tokenizers
    except ImportError as error:
      raise UserError(
        f"Reading '{path}' needs the package 'tokenizers', which is not installed. "
        "Install it (pip install tokenizers), or give the SentencePiece model "
        f"({SPIECE}) that the tokenizer was made of."
      ) from error
    self.path = to_path(path)
    found = tokenizer_files.read_tokenizer(path)
    pieces, unknown = found.pieces, found.unknown
    ids = {piece: index for index, (piece, _) in reversed([*enumerate(pieces)])}
    self.pieces = [tokenizer_files.named(piece) for piece, _ in pieces]
    """In the order of their ids, the extra ids included."""
    self.digest = digest(self.pieces)
    """SHA-256 of the pieces; see the module."""
    _check_ids(
      path,
      {
        "pad_id": ids.get(PAD, -1),
        "eos_id": ids.get(EOS, -1),
        "unk_id": unknown if 0 <= unknown < len(pieces) else -1,
      },
    )
    self.eos_id = ids[EOS]
    self.unk_id: int = unknown
    """The id of pieces that are not in the model (2 in T5's models)."""
    self.vocab_size: int = len(pieces)
    """How many ids there are, the extra ids included."""
    # A piece with a space never matches, because texts are split at spaces first.
    renamed = [
      (piece, score) for piece, (_, score) in zip(self.pieces, pieces, strict=True)
    ]
    renamed[0] = (f"{PAD} ", 0.0)
    renamed[self.eos_id] = (f"{EOS} ", 0.0)
    renamed[unknown] = (" ⁇ ", 0.0)  # as SentencePiece shows it
    text = json.dumps(
      {
        **found.content,
        "model": {**found.content["model"], "vocab": renamed},
        "added_tokens": [],
        # These make batches of the encoded texts, as `data.batches` does here.
        **dict.fromkeys(("post_processor", "truncation", "padding")),
      }
    )
    tokenizer_files.try_out(text, path)
    self._tokenizer = tokenizers.Tokenizer.from_str(text)

  @property
  def size(self) -> int:
    """The same as `vocab_size` (seqio's name)."""
    return self.vocab_size

  def encode(self, text: str) -> list[int]:
    """Returns the ids of `text`, normalised as the tokenizer says, without EOS."""
    with tokenizer_files.panics_told(self.path):
      return self._tokenizer.encode(text, add_special_tokens=False).ids

  def decode(self, ids: Iterable[SupportsIndex]) -> str:
    """Returns the text of `ids` up to the first EOS; see `SentencePieceVocabulary`."""
    kept = []
    for index in map(operator.index, ids):
      if index == self.eos_id:
        break
      if index != self.pad_id:
        kept.append(index if 0 <= index < self.vocab_size else self.unk_id)
    with tokenizer_files.panics_told(self.path):
      return self._tokenizer.decode(kept)


@checked
def load(path: PathLike, extra_ids: int | None = None) -> Vocabulary:
  """Returns the vocabulary at `path`, whose name determines the kind.

  Args:
    path: a `tokenizer.json` (any `.json`) with a Unigram model, as T5's have, or with a BPE
      model, as decoder-only models have; a `.gguf` file with its tokenizer inside; a `.txt`
      with a word in each line; a SentencePiece model (any other name); a folder of
      Hugging Face, or the name of a model of the hub (`formats.hub`). In a folder the
      `spiece.model` is read if there is one, otherwise the `tokenizer.json`; T5's give the
      same ids.
    extra_ids: of a SentencePiece model; by default that of the folder's
      `tokenizer_config.json`, otherwise see `SentencePieceVocabulary`.

  Raises:
    UserError: there is no such file, it is not what its name says, or a symbolic link
      leads out of the folder.
  """
  path = _place(path)
  stated = _of_decoder(path)
  if stated is None and path.is_dir():
    found = [name for name in (SPIECE, TOKENIZER) if (path / name).exists()]
    if not found:
      raise UserError(
        f"The folder '{path}' has neither '{SPIECE}' nor '{TOKENIZER}'. Give a folder "
        "of Hugging Face's with its tokenizer, or the file itself."
      )
    return _of_folder(path, found, extra_ids)
  if extra_ids is not None and (stated is not None or path.suffix == ".json"):
    raise UserError(
      f"extra_ids = {extra_ids} is for a SentencePiece model; '{path}' has its extra "
      "ids inside. Leave extra_ids out."
    )
  if stated is not None:
    return BytePairVocabulary(stated)
  if path.suffix == ".json":
    return HuggingFaceVocabulary(path)
  if path.suffix == ".txt":
    return WordVocabulary(path)
  return SentencePieceVocabulary(path, extra_ids)


def of_backbone(
  path: PathLike, vocabulary_file: PathLike | None = None, chat: Setting = None
) -> Vocabulary:
  """Returns the vocabulary of the backbone at `path`.

  Args:
    path: 'embedded', the name of a fetched model ('smollm2') or of one of the hub
      (`formats.hub`), a folder of Hugging Face, a GGUF file, or another backbone.
    vocabulary_file: what `load` reads instead; a backbone that brings no vocabulary, such
      as a file of ours, needs it.
    chat: for a decoder-only model, whether sources and targets are turns of a conversation:
      None for no chat template, True for the model's own, or {'system': text} for it with
      this system text.

  Raises:
    UserError: as `load`; the backbone brings no vocabulary and none is given; or there is
      no chat template to use.
  """
  if vocabulary_file is None and str(path) == "embedded":
    found: Vocabulary = embedded()
  else:
    source = _place(path if vocabulary_file is None else vocabulary_file)
    if vocabulary_file is None and not (source.is_dir() or gguf.is_gguf(source)):
      raise UserError(
        f"The backbone '{path}' brings no vocabulary. Set VOCABULARY_FILE to the one that "
        "it was trained with: its tokenizer.json or SentencePiece model, or the folder or "
        "GGUF file that it was made of."
      )
    stated = _of_decoder(source)
    if stated is not None:
      return BytePairVocabulary(stated, chat)
    found = load(source)
  if chat:
    raise UserError(
      f"CHAT is for decoder-only models, and '{path}' is an encoder-decoder, which takes "
      "texts as they are. Set CHAT = None."
    )
  return found


def _place(path: PathLike) -> Path:
  """Returns the path of a tokenizer, or the folder of the model that a name means."""
  if str(path) in packaged.MODELS:
    return packaged.found(str(path))
  return hub.located(path) if hub.named(path) is not None else to_path(path)


def _of_decoder(path: Path) -> Stated | None:
  """Returns what a decoder-only model's tokenizer states; None if this is another file."""
  if gguf.is_gguf(path):
    return gguf_tokenizers.read(path)
  tokenizer = path / TOKENIZER if path.is_dir() else path
  if path.is_dir() and ((path / SPIECE).exists() or not tokenizer.exists()):
    return None
  return decoder_files.read(path) if tokenizer.suffix == ".json" else None


def _of_folder(folder: Path, found: list[str], extra_ids: int | None) -> Vocabulary:
  """Returns the vocabulary in a folder of Hugging Face, after checking that files agree."""
  path = inside(folder, found[0])
  with_sentinels = extra_ids is None
  if with_sentinels and found[0] == SPIECE:
    extra_ids = tokenizer_files.extra_ids(folder)
    if extra_ids is not None:
      at_least(f"extra_ids in '{folder / tokenizer_files.CONFIG}'", extra_ids, 0)
  vocabulary = load(path, extra_ids)
  assert isinstance(vocabulary, SentencePieceVocabulary | HuggingFaceVocabulary)
  roles = {
    "pad_token": vocabulary.pad_id,
    "eos_token": vocabulary.eos_id,
    "unk_token": vocabulary.unk_id,
  }
  special = {
    piece.removeprefix("▁"): index
    for index, piece in enumerate(vocabulary.pieces)
    if index in roles.values() or tokenizer_files.SENTINEL.fullmatch(piece)
  }
  tokenizer_files.refuse_what_changes_ids(folder, special, roles, with_sentinels)
  if TOKENIZER in found[1:]:
    assert isinstance(vocabulary, SentencePieceVocabulary)
    tokenizer_files.refuse_other_tokenizer(
      inside(folder, TOKENIZER),
      read_bytes(path),
      vocabulary.scored_pieces(),
      vocabulary.turns_letters(),
      with_sentinels,
    )
  return vocabulary


@functools.cache
def embedded() -> WordVocabulary:
  """Returns the vocabulary of the embedded backbone."""
  file = importlib.resources.files("tpv_jax.embedded") / "vocabulary.txt"
  with importlib.resources.as_file(file) as path:
    return WordVocabulary(path)


MOST_SPARE_ROWS = 256
"""Most embedding rows without an id: tables are padded to a multiple of 128 or so."""

SPARE_PART = 32
"""The part of a decoder-only model's rows that may be spare, if it is more: a 32nd (ours).
Qwen 2.5-7B has 399 spare rows of 152,064, DeepSeek-LLM 2,385 of 102,400."""


def check_fits(
  vocabulary: Vocabulary, rows: int, backbone: str = "the backbone"
) -> None:
  """Raises `UserError` if a vocabulary of this size cannot be the backbone's.

  It cannot have more ids than the backbone has embedding rows. It may have fewer (T5 has
  32,100 ids and 32,128 rows; without the extra ids, 128 fewer), but not more than
  `MOST_SPARE_ROWS` fewer, or a `SPARE_PART` of a decoder-only model's (ours): then it is
  another vocabulary.
  """
  count, most = vocabulary.vocab_size - vocabulary.first_id, MOST_SPARE_ROWS
  if vocabulary.first_id:
    most = max(most, rows // SPARE_PART)
  if rows - count > most:
    raise UserError(
      f"The vocabulary has only {count} ids, and {backbone} has "
      f"embeddings for {rows}, so it was trained with another vocabulary. Choose the one "
      "that belongs to it."
    )
  if count > rows:
    raise UserError(
      f"The vocabulary has {count} ids, but {backbone} has embeddings "
      f"for only {rows}, so it was trained with another vocabulary. Choose the one "
      "that belongs to it."
    )


def _check_ids(path: PathLike, ids: dict[str, int]) -> None:
  if ids["pad_id"] != 0 or min(ids.values()) < 0 or len({*ids.values()}) < len(ids):
    raise UserError(
      f"'{path}' cannot serve a T5 model: its ids are {ids}, but padding must be 0 "
      "and the others must exist. Train it with --pad_id=0 --eos_id=1 --unk_id=2 "
      "--bos_id=-1."
    )


def _read(path: PathLike) -> bytes:
  try:
    if not to_path(path).exists():  # For a missing object etils only gives its name.
      raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT))
    stat: Any = to_path(path).stat()
    # `length` is etils' name, `st_size` that of pathlib.
    length = stat.length if hasattr(stat, "length") else stat.st_size
    if length > MAX_BYTES:
      raise UserError(
        f"'{os.fspath(path)}' has {length} bytes, and no vocabulary has more than "
        f"{MAX_BYTES}. Check the path."
      )
    return read_bytes(path)
  except OSError as error:
    raise UserError(
      f"Cannot read the vocabulary '{os.fspath(path)}': {error.strerror or error}. Check "
      "the path."
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

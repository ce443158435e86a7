"""Vocabularies of decoder-only models: BPE, as in LLaMA, Qwen, DeepSeek, Mistral, Gemma.

Their tokenizers are byte-level BPE, or SentencePiece's BPE, which puts a space in front of a
text (not Gemma's). Each id is the tokenizer's plus one, because 0 is padding in every batch.
The files that hold a tokenizer are read by `decoder_files` and `gguf_tokenizers`.

Special tokens (BOS, the end, the marks of a conversation) are recognised in what a chat
template writes, and never in the texts of a task, whatever these spell; `transformers`
recognises them everywhere. Tokens that a tokenizer adds without calling them special, as
DeepSeek's 'ø' and Qwen 3's `<think>`, are recognised everywhere, as in `transformers`.

Needs the extra 'llm'.
"""

import dataclasses
import functools
import json
import operator
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, SupportsIndex

from tpv_jax.core.errors import UserError, some
from tpv_jax.core.files import PathLike, to_path
from tpv_jax.data import chat_templates, tokenizer_files
from tpv_jax.data.chat_templates import Setting, Turn
from tpv_jax.data.tasks import split_at

MOST_PIECES = 1 << 20
"""Most pieces of a tokenizer; Gemma's has 262,144."""

FOREIGN = "\ufffd"
"""The text of an id without a piece: a backbone may have more rows than there are pieces."""


@dataclasses.dataclass(frozen=True)
class Stated:
  """What the files of a tokenizer state; ids are the tokenizer's own.

  Attributes:
    path: the file or folder, for messages.
    content: what a tokenizer.json holds.
    start: the ids in front of every text.
    ends: the ids that end a text; targets end with the first.
    words: special tokens by their role ('bos_token'), for the chat template.
    template: the chat template, or None.
  """

  path: PathLike
  content: Mapping[str, Any]
  start: tuple[int, ...]
  ends: tuple[int, ...]
  words: Mapping[str, str] = dataclasses.field(default_factory=dict)
  template: str | None = None


class BytePairVocabulary:
  """A BPE tokenizer, with a chat template or without one.

  Without a template, a target stands behind its source with one space between them, which
  belongs to the target. White space at the end of a source is left out, so that tokens are
  those of the joint text.
  """

  first_id = 1
  pad_id = 0
  source_end: tuple[int, ...] = ()

  def __init__(self, stated: Stated, chat: Setting = None):
    """Makes the tokenizer.

    Args:
      stated: by the files.
      chat: whether sources and targets are turns of a conversation, and with which system
        text; see `chat_templates.Setting`.

    Raises:
      UserError: the tokenizer is damaged, letters of a text would be lost, an id is not one
        of its pieces, or the chat template fails (`chat_templates.chosen`).
    """
    self.path = to_path(stated.path)
    content = _checked(stated.content, self.path)
    self._at_start = _tokenizer(content, self.path)
    """For the beginning of a text, where SentencePiece adds a space."""
    inside = _without_prefix(content)
    self._inside = self._at_start
    if inside != content:
      self._inside = _tokenizer(inside, self.path)
    self._prefix_everywhere = inside != content and not _only_first(content)
    self.pieces = _pieces(self._at_start.get_vocab(with_added_tokens=True), self.path)
    """In the order of the tokenizer's ids; a number without a piece is '[PAD<number>]'."""
    self.digest = tokenizer_files.digest(self.pieces)
    """SHA-256 of the pieces; see `vocabularies`."""
    self.vocab_size: int = len(self.pieces) + 1
    """How many ids there are, padding included."""
    model = content["model"]
    unknown = model.get("unk_token")
    self.unk_id: int = -1 if unknown is None else 1 + self._index(unknown, "unk_token")
    """The id of what the tokenizer can't write; -1 for byte-level BPE, which writes all."""
    _refuse_lost_letters(content, self.pieces, self.path)
    added = content.get("added_tokens") or ()
    for token in added:
      if self.pieces[token["id"] :][:1] != [token["content"]]:
        odd = f"the added token {token['content']!r:.40} is not at its id {token['id']}"
        raise tokenizer_files.malformed(self.path, odd)
    self._special = {
      str(token["content"]): 1 + int(token["id"])
      for token in added
      if token.get("special")
    }
    parts = sorted(self._special, key=len, reverse=True)
    self._splits = re.compile("|".join(map(re.escape, parts)) or r"(?!)")
    for index in (*stated.start, *stated.ends):
      self._check_index(index)
    if not stated.ends:
      raise UserError(
        f"The files of the tokenizer '{self.path}' state no end token, so no answer would "
        "end. Take all of its files: generation_config.json, config.json or "
        "tokenizer_config.json has eos_token."
      )
    self.end_ids: tuple[int, ...] = tuple(1 + index for index in stated.ends)
    """The ids that end a decoded text."""
    self.source_start: tuple[int, ...] = tuple(1 + index for index in stated.start)
    """BOS, if the tokenizer puts it in front; a chat template writes its own."""
    self.chat = chat_templates.chosen(chat, stated.template, stated.words, self.path)
    """The chat template, or None."""
    if self.chat is not None:
      self.source_start = ()
      if (end := self._end_of_turn()) is not None:
        self.end_ids = tuple(dict.fromkeys((end, *self.end_ids)))
    self._marked = functools.lru_cache(maxsize=64)(self._encode_marked)
    self._answered = functools.lru_cache(maxsize=4096)(self._encode_answer)

  def __deepcopy__(self, memo: dict[int, Any]) -> "BytePairVocabulary":
    """Returns itself: gin copies its values, and this one never changes."""
    return self

  @property
  def size(self) -> int:
    """The same as `vocab_size` (seqio's name)."""
    return self.vocab_size

  @property
  def eos_id(self) -> int:
    """The id that a target ends with."""
    return self.end_ids[0]

  def encode(self, text: str) -> list[int]:
    """Returns the ids of a text that stands alone, without BOS and EOS."""
    return self._segment(text, self._at_start)

  def encode_source(
    self, text: str, fields: Sequence[tuple[int, int]] = ()
  ) -> list[list[int]]:
    """Returns the ids of a source, in one part or in those of its fields.

    With a chat template the words around the text are in the first and the last part. The
    space in front of a part belongs to that part, as in the joint text.
    """
    kept = text.rstrip()
    turn = Turn("", kept, "") if self.chat is None else self.chat.source(text)
    begin, end = turn.start, turn.start + len(turn.text)
    spans = [
      (min(max(at, begin), end) - begin, min(max(to, begin), end) - begin)
      for at, to in fields
    ]
    return self._parts(turn, split_at(turn.text, spans), self._at_start)

  def encode_target(self, text: str) -> list[int]:
    """Returns the ids of a target behind its source, without the end token."""
    return [*self._answered(text)]  # Labels recur in every example.

  def joint(self, source: str, target: str) -> tuple[list[int], list[int]]:
    """Returns the ids of a source and its target, encoded apart and as one text.

    They are equal unless the tokenizer joins letters over the border. The source starts
    with `source_start`; EOS is left out.
    """
    (ids,) = self.encode_source(source)
    apart = [*ids, *self.encode_target(target)]
    if self.chat is None:
      return apart, self.encode(f"{source.rstrip()} {target}")
    turn, answer = self.chat.source(source), self._answer(target)
    whole = Turn(turn.before, turn.text, turn.after + answer.before)
    # The marks are in what the template writes, so the answer is encoded with its words.
    one = dataclasses.replace(whole, after=f"{whole.after}{answer.text}{answer.after}")
    return apart, self._parts(one, [one.text], self._at_start)[0]

  def decode(self, ids: Iterable[SupportsIndex]) -> str:
    """Returns the text of `ids` up to the first end token, without a space in front.

    Padding is skipped. An id without a piece is shown as `FOREIGN`, special tokens as they
    are spelled. With a chat template, what it writes around an answer is left out.
    """
    runs: list[list[int]] = [[]]
    for index in map(operator.index, ids):
      if index in self.end_ids:
        break
      if index == self.pad_id:
        continue
      if 0 < index < self.vocab_size:
        runs[-1].append(index - 1)
      else:
        runs.append([])
    with tokenizer_files.panics_told(self.path):
      text = FOREIGN.join(
        self._inside.decode(run, skip_special_tokens=False) for run in runs
      )
    if self.chat is None:
      return text.removeprefix(" ")
    frame = self._ended(self.chat.frames[1])
    return text.removeprefix(frame.before).removesuffix(frame.after)

  # --- parts of a text

  def _parts(self, turn: Turn, parts: list[str], place: Any) -> list[list[int]]:
    """Returns the ids of the parts of a turn, and of the template's words around them.

    Only the template's words may hold special tokens. A text is encoded together with the
    words up to the next of them, as in the whole conversation.

    Args:
      turn: what stands around the parts.
      parts: of its text.
      place: the tokenizer for what stands first.
    """
    found = [*self._splits.finditer(turn.before)]
    cut = found[-1].end() if found else 0
    closed, open_ = turn.before[:cut], turn.before[cut:]
    first = self._splits.search(turn.after)
    cut = first.start() if first else len(turn.after)
    parts = _spaces_in_front([open_ + parts[0], *parts[1:]])
    parts[-1] += turn.after[:cut]
    ids = []
    marked = self._marked(closed, place is self._at_start)
    place = self._behind(closed) or place
    for part in parts:
      ids.append(self._segment(part, place))
      place = self._inside if part else place
    ids[0] = [*marked, *ids[0]]
    ids[-1] = [*ids[-1], *self._marked(turn.after[cut:], False)]
    return ids

  def _encode_marked(self, text: str, at_start: bool) -> tuple[int, ...]:
    """Returns the ids of the template's words, special tokens recognised."""
    ids: list[int] = []
    end, place = 0, self._at_start if at_start else self._inside
    for found in self._splits.finditer(text):
      ids += self._segment(text[end : found.start()], place)
      ids.append(self._special[found[0]])
      end, place = found.end(), self._behind(found[0])
    return (*ids, *self._segment(text[end:], place))

  def _behind(self, text: str) -> Any:
    """Returns the tokenizer for what stands behind a text of the template, None for ''.

    Where a tokenizer adds a space in front of every part, it does so behind special tokens.
    """
    if not text:
      return None
    ended = any(found.end() == len(text) for found in self._splits.finditer(text))
    return self._at_start if ended and self._prefix_everywhere else self._inside

  def _segment(self, text: str, tokenizer: Any) -> list[int]:
    if not text:
      return []
    with tokenizer_files.panics_told(self.path):
      ids = tokenizer.encode(text, add_special_tokens=False).ids
    return [1 + index for index in ids]

  # --- the assistant's turn

  def _answer(self, text: str) -> Turn:
    """Returns the assistant's turn up to its end token."""
    assert self.chat is not None
    return self._ended(self.chat.target(text))

  def _encode_answer(self, text: str) -> tuple[int, ...]:
    if self.chat is None:
      return tuple(self._segment(f" {text}", self._inside) if text else ())
    turn = self._answer(text)
    place = self._behind(self.chat.frames[0].after) or self._inside
    return tuple(self._parts(turn, [turn.text], place)[0])

  def _ended(self, turn: Turn) -> Turn:
    end = self._splits.search(turn.after)
    after = turn.after if end is None else turn.after[: end.start()]
    return dataclasses.replace(turn, after=after)

  def _end_of_turn(self) -> int | None:
    """Returns the special token behind the assistant's text, None if there is none."""
    assert self.chat is not None
    end = self._splits.search(self.chat.frames[1].after)
    return None if end is None else self._special[end[0]]

  # --- checks

  def _index(self, piece: Any, role: str) -> int:
    try:
      return self.pieces.index(str(piece))
    except ValueError:
      raise UserError(
        f"'{self.path}' states the {role} {piece!r:.60}, which is not one of its pieces. "
        "Give the files of one tokenizer."
      ) from None

  def _check_index(self, index: int) -> None:
    if not 0 <= index < len(self.pieces):
      raise UserError(
        f"The files of the tokenizer '{self.path}' state the id {index}, and it has only "
        f"{len(self.pieces)} pieces. Give the files of one tokenizer."
      )


def _spaces_in_front(parts: list[str]) -> list[str]:
  """Returns the parts with a space at the end of one moved to the front of the next."""
  parts = [*parts]
  for place in range(len(parts) - 1):
    if parts[place].endswith(" ") and parts[place + 1]:
      parts[place] = parts[place][:-1]
      parts[place + 1] = f" {parts[place + 1]}"
  return parts


# --- what a tokenizer.json holds


def _checked(content: Mapping[str, Any], path: PathLike) -> dict[str, Any]:
  """Returns the content without the steps that make batches, after checking it."""
  model = content.get("model")
  kind = model.get("type", "BPE") if isinstance(model, dict) else None
  if kind != "BPE" or not isinstance(model, dict):
    raise UserError(
      f"'{path}' is no tokenizer of a decoder-only model: those have a BPE model, it has "
      f"{kind!r:.60}. Give the tokenizer that belongs to the backbone."
    )
  try:
    vocabulary, added = model["vocab"], content.get("added_tokens") or ()
    if not isinstance(vocabulary, dict):
      raise TypeError(f"its pieces are a {type(vocabulary).__name__}")
    numbers = [*vocabulary.values(), *(token["id"] for token in added)]
    for index in numbers:
      if type(index) is not int or not 0 <= index < MOST_PIECES:
        raise ValueError(f"a piece has the id {index!r:.40}")
    if not numbers:
      raise ValueError("it has no pieces")
    if not all(token["content"] for token in added):
      raise ValueError("an added token is empty")
    for piece in (*vocabulary, *(str(token["content"]) for token in added)):
      if len(piece) > tokenizer_files.MOST_LETTERS:
        raise ValueError(f"a piece has {len(piece)} letters")
    stripping = [
      str(token["content"])
      for token in added
      if token.get("special")
      and any(token.get(name) for name in ("lstrip", "rstrip", "single_word"))
    ]
  except (KeyError, TypeError, ValueError, AttributeError) as error:
    raise tokenizer_files.malformed(path, error) from error
  if model.get("dropout"):
    raise UserError(
      f"'{path}' states dropout {model['dropout']!r:.40}, with which a text has other ids "
      "each time. Set it to null."
    )
  if stripping:
    raise UserError(
      f"'{path}' has special tokens that take the white space beside them "
      f"({some(map(repr, stripping))}), which no tokenizer that is read here has. Give "
      "the tokenizer that belongs to the backbone."
    )
  return {
    **content,
    **dict.fromkeys(("post_processor", "truncation", "padding")),
  }


def _tokenizer(content: Mapping[str, Any], path: PathLike) -> Any:
  """Returns the library's tokenizer, which takes special tokens in a text for letters."""
  try:
    import tokenizers
  except ImportError as error:
    raise UserError(
      f"Reading '{path}' needs the package 'tokenizers', which is not installed. Install "
      "it (pip install tokenizers)."
    ) from error
  text = json.dumps(content)
  tokenizer_files.try_out(text, path)
  try:
    made = tokenizers.Tokenizer.from_str(text)
  except Exception as error:
    raise tokenizer_files.malformed(path, error) from error
  made.encode_special_tokens = True
  return made


def _pieces(vocabulary: Mapping[str, int], path: PathLike) -> list[str]:
  """Returns the pieces in the order of their ids.

  Numbers without a piece are named as llama.cpp's converter names them.
  """
  by_number = {index: piece for piece, index in vocabulary.items()}
  if len(by_number) < len(vocabulary):
    raise tokenizer_files.malformed(path, "two pieces have one id")
  return [by_number.get(index, f"[PAD{index}]") for index in range(max(by_number) + 1)]


def steps(node: Any) -> Iterator[dict[str, Any]]:
  """Yields the steps of a normalizer, pre-tokenizer or decoder, one after the other."""
  if not isinstance(node, dict):
    return
  if node.get("type") == "Sequence":
    for name in ("normalizers", "pretokenizers", "decoders", "processors"):
      for step in node.get(name) or ():
        yield from steps(step)
  else:
    yield node


def _without_prefix(content: Mapping[str, Any]) -> dict[str, Any]:
  """Returns the content of a tokenizer that adds no space in front, and takes none away."""
  return {
    **content,
    "normalizer": _plain(content.get("normalizer")),
    "pre_tokenizer": _plain(content.get("pre_tokenizer")),
    "decoder": _plain(content.get("decoder")),
  }


def _plain(node: Any) -> Any:
  if not isinstance(node, dict):
    return node
  kind = node.get("type")
  if kind == "Sequence":
    parts = {}
    for name in ("normalizers", "pretokenizers", "decoders"):
      if isinstance(node.get(name), list):
        left = [_plain(step) for step in node[name]]
        parts[name] = [step for step in left if step is not None]
    return {**node, **parts}
  if kind == "Prepend" or (kind == "Strip" and node.get("start")):
    return None
  if kind == "Metaspace":
    kept = {name: node[name] for name in node if name != "add_prefix_space"}
    return {**kept, "prepend_scheme": "never"}
  if kind == "ByteLevel" and node.get("add_prefix_space"):
    return {**node, "add_prefix_space": False}
  return node


def adds_space(content: Mapping[str, Any]) -> bool:
  """Returns whether a tokenizer puts a space in front of a text."""
  return any(_plain(step) != step for step in _before(content))


def _before(content: Mapping[str, Any]) -> list[dict[str, Any]]:
  """Returns the steps that a text takes before its pieces are found."""
  return [*steps(content.get("normalizer")), *steps(content.get("pre_tokenizer"))]


def _only_first(content: Mapping[str, Any]) -> bool:
  """Returns whether a space is added at the beginning of the whole text only."""
  adding = [step for step in _before(content) if _plain(step) != step]
  return all(step.get("prepend_scheme") == "first" for step in adding)


def _refuse_lost_letters(
  content: Mapping[str, Any], pieces: Sequence[str], path: PathLike
) -> None:
  """Raises `UserError` if letters that the tokenizer doesn't know would be left out."""
  model = content["model"]
  if model.get("unk_token") is not None:
    return
  known = set(pieces)
  if model.get("byte_fallback"):
    needed = {f"<0x{byte:02X}>" for byte in range(256)}
  else:
    needed = {one for i, one in enumerate(byte_letters()) if i not in _RARE}
  if missing := sorted(needed - known):
    raise UserError(
      f"'{path}' has no pieces for {len(missing)} bytes ({some(map(repr, missing))}) and "
      "no unknown token, so letters of a text would be left out in silence. Take another "
      "copy, or give the tokenizer that belongs to the backbone."
    )


@functools.cache
def byte_letters() -> tuple[str, ...]:
  """Returns the letters by which byte-level BPE (GPT-2's) writes the bytes 0 to 255.

  A printable byte is the letter of its own number; the others follow from 256 on.
  """
  printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
  others = [byte for byte in range(256) if byte not in printable]
  letters = {byte: chr(byte) for byte in printable}
  letters |= {byte: chr(256 + number) for number, byte in enumerate(others)}
  return tuple(letters[byte] for byte in range(256))


_RARE = {*range(0x20), 0x7F, 0xC0, 0xC1, *range(0xF1, 0x100)} - {*b"\t\n\r"}
"""Bytes that texts hardly have, or UTF-8 never: control characters and the planes from 4 on.
SmolLM2 has no pieces for 8 of them, and leaves them out of a text."""

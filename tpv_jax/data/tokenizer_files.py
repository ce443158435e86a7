"""A tokenizer's files in Hugging Face's format; settings that would change ids are refused.

    tokenizer.json           a Unigram model, and the steps before and after it
    tokenizer_config.json    extra_ids, added tokens, the class that reads it
    added_tokens.json        added tokens
    special_tokens_map.json  the tokens for end, padding and unknown

`transformers` splits a text at added tokens before the model sees it. Here the model sees
the whole text, as in SentencePiece and T5X, so tokens other than T5's own are refused. T5's
own are the padding, the end, the unknown and the sentinels.
"""

import base64
import contextlib
import dataclasses
import hashlib
import json
import math
import os
import re
import signal
import struct
import subprocess
import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

from tpv_jax.core.errors import UserError, some
from tpv_jax.core.files import (
  Path,
  PathLike,
  cache_folder,
  inside,
  read_json,
  to_path,
  write_bytes,
)
from tpv_jax.formats import gguf

PAD, EOS, UNK = "<pad>", "</s>", "<unk>"

SPIECE, TOKENIZER = "spiece.model", "tokenizer.json"
"""The files that can hold the vocabulary in a folder of Hugging Face."""

CONFIG = "tokenizer_config.json"

MAX_BYTES = 1 << 26
"""Most bytes of a vocabulary's file; mT5's, of 250,000 pieces, have 4 and 16 million."""

MOST_LETTERS = 1024
"""Most letters of a piece; SentencePiece's limit is 16, and long ones crash `tokenizers`."""

MOST_SECONDS = 120
"""Limit of the processor's time for trying out a tokenizer; Gemma's takes seven seconds."""

SENTINEL = re.compile(r"▁?<extra_id_\d+>")

_CLASSES = (
  *("T5Tokenizer", "T5TokenizerFast", "MT5Tokenizer", "MT5TokenizerFast"),
  *("PreTrainedTokenizerFast", "TokenizersBackend"),
)
"""Classes of `transformers` 4 and 5: T5's, and those that only follow tokenizer.json."""


def named(piece: str) -> str:
  """Returns a piece as the SentencePiece model with T5's extra ids spells it."""
  return f"▁{piece}" if piece[:1] == "<" and SENTINEL.fullmatch(piece) else piece


def digest(pieces: Iterable[str]) -> str:
  """Returns the digest of a vocabulary with these pieces; see `vocabularies`."""
  found = hashlib.sha256()
  for piece in pieces:
    found.update(f"{piece}\n".encode())
  return found.hexdigest()


@dataclasses.dataclass(frozen=True)
class Unigram:
  """The content of a tokenizer.json.

  Attributes:
    content: all of it.
    pieces: the model's pieces and scores, in the order of their ids.
    unknown: the id that is stated for the unknown piece.
  """

  content: dict[str, Any]
  pieces: list[tuple[str, float]]
  unknown: int


def read_tokenizer(path: PathLike) -> Unigram:
  """Returns the content of a tokenizer.json.

  Raises:
    UserError: it is damaged, has no Unigram model, adds other tokens to a text than EOS at
      its end, or has added tokens other than T5's own.
  """
  content = read_json(path, MAX_BYTES)
  model = content.get("model")
  if not isinstance(model, dict) or model.get("type", "Unigram") != "Unigram":
    found = model.get("type") if isinstance(model, dict) else None
    raise UserError(
      f"'{path}' is no tokenizer of T5's family: those have a Unigram model, it has "
      f"{found!r:.60}. Give the tokenizer that belongs to the backbone."
    )
  try:
    pieces = [(str(piece), float(score)) for piece, score in model["vocab"]]
    unknown = int(model["unk_id"])
    added = [
      (str(token["content"]), int(token["id"]))
      for token in content.get("added_tokens") or ()
    ]
    for piece, score in pieces:
      if len(piece) > MOST_LETTERS:
        raise ValueError(f"a piece has {len(piece)} letters")
      if not math.isfinite(score):
        raise ValueError(f"the score of {piece!r} is {score}")
    after = _added_after(content.get("post_processor"))
  except (KeyError, TypeError, ValueError, OverflowError, AttributeError) as error:
    raise malformed(path, error) from error
  odd = [
    text
    for text, index in added
    if not 0 <= index < len(pieces)
    or pieces[index][0] != text
    or not (text in (PAD, EOS, UNK) or index == unknown or SENTINEL.fullmatch(text))
  ]
  if odd:
    _refuse_added(path, odd)
  if after not in ([], [EOS]):
    raise UserError(
      f"'{path}' adds {some(after)} to every text (post_processor), and T5 expects only "
      f"{EOS}. Give the tokenizer as it was published."
    )
  return Unigram(content, pieces, unknown)


def _added_after(processor: Any) -> list[str]:
  """Returns the tokens that a post-processor adds to a text."""
  if processor is None:
    return []
  if processor["type"] != "TemplateProcessing":
    return [f"what {str(processor['type'])[:40]} adds"]
  single = processor["single"]
  added = [str(part["SpecialToken"]["id"])[:40] for part in single if _adds(part)]
  # The end token in front of the text does not count as the end.
  return [f"{added[0]} in front", *added[1:]] if added and _adds(single[0]) else added


def _adds(part: Mapping[str, Any]) -> bool:
  return "SpecialToken" in part


def malformed(path: PathLike, error: object) -> UserError:
  """Returns the error for a file whose tokenizer cannot be used."""
  what = "tokenizer" if gguf.is_gguf(to_path(path)) else TOKENIZER
  return UserError(
    f"'{path}' cannot be read as a {what} ({error!s:.200}). Take another copy."
  )


def _refuse_added(path: PathLike, tokens: Sequence[str]) -> None:
  raise UserError(
    f"'{path}' adds tokens to T5's own ({some(map(repr, tokens))}), at which transformers "
    "splits a text before the model sees it; here they would get other ids. Give the "
    "tokenizer and the backbone as they were published; if your texts have none of these "
    "tokens, remove them from the files of the tokenizer."
  )


# --- what lies in the folder


def refuse_what_changes_ids(
  folder: Path,
  special: Mapping[str, int],
  roles: Mapping[str, int],
  with_sentinels: bool = True,
) -> None:
  """Raises `UserError` if a file of the folder implies other ids than these.

  Args:
    folder: of Hugging Face.
    special: the ids of padding, end, unknown and sentinels, by token.
    roles: the ids of the first three, by 'pad_token', 'eos_token' and 'unk_token'.
    with_sentinels: whether the ids of sentinels are compared, too.
  """
  for path, content in _configs(folder):
    _refuse_settings(path, content)
    added = [
      token
      for token, index in _added(path, content)
      if (index not in (None, special.get(token)) or token not in special)
      and (with_sentinels or not SENTINEL.fullmatch(token))
    ]
    if added:
      _refuse_added(path, [*dict.fromkeys(added)])
    for role, index in roles.items():
      token = content.get(role)
      if token is not None and special.get(_text(token)) != index:
        raise UserError(
          f"'{path}' states the {role} {_text(token)!r:.60}, which is not the vocabulary's "
          f"(id {index}). Give the files of one tokenizer."
        )


def extra_ids(folder: Path) -> Any:
  """Returns the number of sentinels to add to a folder's SentencePiece model, or None."""
  if not (folder / CONFIG).exists():
    return None
  return read_json(inside(folder, CONFIG)).get("extra_ids")


def _configs(folder: Path) -> Iterator[tuple[Path, dict[str, Any]]]:
  for name in (CONFIG, "added_tokens.json", "special_tokens_map.json"):
    if (folder / name).exists():
      path = inside(folder, name)
      content = read_json(path)
      yield path, {"added": content} if name == "added_tokens.json" else content


def _text(token: Any) -> str:
  """Returns a token as it stands in a text, from any of the forms that files have."""
  text = token.get("content") if isinstance(token, dict) else token
  return str(text).removeprefix("▁")


def _added(path: Path, content: Mapping[str, Any]) -> Iterator[tuple[str, int | None]]:
  """Yields the tokens that a file adds, with their ids where it states them."""
  try:
    for token, index in (content.get("added") or {}).items():
      yield _text(token), int(index)
    for index, token in (content.get("added_tokens_decoder") or {}).items():
      yield _text(token), int(index)
    for name in ("additional_special_tokens", "extra_special_tokens"):
      tokens = content.get(name) or ()
      for token in tokens.values() if isinstance(tokens, dict) else tokens:
        yield _text(token), None
  except (AttributeError, TypeError, ValueError, OverflowError) as error:
    raise UserError(
      f"'{path}' states no added tokens that can be read ({error!s:.100}). Take another "
      "copy."
    ) from error


def _refuse_settings(path: Path, content: Mapping[str, Any]) -> None:
  kind = content.get("tokenizer_class")
  if kind not in (None, *_CLASSES):
    raise UserError(
      f"'{path}' has the tokenizer_class {kind!r:.60}, which is none of T5's, so its ids "
      "may differ. Give the tokenizer that belongs to the backbone."
    )
  for name, harmless in (("sp_model_kwargs", ({}, None)), ("add_prefix_space", _YES)):
    if content.get(name) not in harmless:
      raise UserError(
        f"'{path}' states {name} {content[name]!r:.60}, with which transformers gives "
        "other ids than T5's. Give the tokenizer as it was published, or remove the setting "
        "if the backbone was trained without it."
      )


_YES = (None, True)


def refuse_other_tokenizer(
  path: Path,
  model: bytes,
  pieces: Sequence[tuple[str, float]],
  turns_letters: bool,
  with_sentinels: bool,
) -> None:
  """Raises `UserError` if a tokenizer.json gives other ids than the model beside it.

  `transformers` prefers tokenizer.json, so it must equal what `transformers` makes of the
  SentencePiece model: the same pieces and scores, the same table of characters, words
  split at spaces.

  Args:
    path: of the tokenizer.json.
    model: the bytes of the SentencePiece model's file.
    pieces: of the model, sentinels included, with their scores.
    turns_letters: whether the model replaces letters before it splits a text.
    with_sentinels: whether the sentinels are compared, too.
  """
  other = read_tokenizer(path)
  problem = _difference(
    _comparable(other.pieces, with_sentinels), _comparable(pieces, with_sentinels)
  )
  parts = [
    *_parts(other.content.get("normalizer")),
    *_parts(other.content.get("pre_tokenizer")),
  ]
  if odd := [part for part in parts if not _is_like_sentencepiece(part)]:
    problem = problem or f"it changes a text by {json.dumps(odd[0])[:60]}"
  tables = [_table(part) for part in parts if part.get("type") == "Precompiled"]
  if bool(tables) != turns_letters or not all(table in model for table in tables):
    problem = problem or "it replaces letters by another table"
  if problem:
    raise UserError(
      f"'{path}' gives other ids than the {SPIECE} beside it: {problem}. transformers "
      "reads the former. Keep only the one that the backbone was trained with."
    )


def _difference(
  theirs: Sequence[tuple[str, float]], ours: Sequence[tuple[str, float]]
) -> str | None:
  """Returns the first difference between two lists of pieces and scores, or None."""
  if theirs == ours:
    return None
  if len(theirs) != len(ours):
    return f"it has {len(theirs)} pieces, and the model {len(ours)}"
  at = next(
    i for i, (one, two) in enumerate(zip(theirs, ours, strict=True)) if one != two
  )
  (found, score), (due, due_score) = theirs[at], ours[at]
  if found != due:
    return f"its piece {at} is {found!r:.40}, and the model's is {due!r:.40}"
  return f"the score of its piece {at} is {score:g}, and the model's is {due_score:g}"


def _comparable(
  pieces: Sequence[tuple[str, float]], with_sentinels: bool
) -> list[tuple[str, float]]:
  """Returns pieces and scores in fp32; scores of sentinels, which are never used, are 0."""
  return [
    (named(piece), 0.0 if SENTINEL.fullmatch(piece) else _fp32(score))
    for piece, score in pieces
    if with_sentinels or not SENTINEL.fullmatch(piece)
  ]


def _fp32(score: float) -> float:
  try:
    return struct.unpack("<f", struct.pack("<f", score))[0]
  except OverflowError:
    return math.copysign(math.inf, score)


def _parts(node: Any) -> Iterator[dict[str, Any]]:
  """Yields the steps of a normalizer or pre-tokenizer, one after the other."""
  if node is None:
    return
  steps = None
  if isinstance(node, dict) and node.get("type") == "Sequence":
    steps = node.get("normalizers", node.get("pretokenizers"))
  if isinstance(steps, list):
    for step in steps:
      yield from _parts(step)
  else:
    yield node if isinstance(node, dict) else {"type": str(node)}


def _is_like_sentencepiece(part: Mapping[str, Any]) -> bool:
  """Returns whether a step is one that a SentencePiece model takes with any text."""
  if part.get("type") == "Replace":
    return part.get("pattern") == {"Regex": " {2,}"} and part.get("content") == "▁"
  if part.get("type") == "Metaspace":
    # Files of 2022 have add_prefix_space instead of prepend_scheme.
    return (
      part.get("replacement") == "▁"
      and part.get("prepend_scheme", "always") in ("always", "first")
      and part.get("add_prefix_space", True) is True
      and part.get("split", True) is True
    )
  return part.get("type") in ("Precompiled", "Strip", "WhitespaceSplit")


def _table(part: Mapping[str, Any]) -> bytes:
  """Returns the bytes of a table of characters in a SentencePiece model, length included."""
  try:
    table = base64.b64decode(part.get("precompiled_charsmap") or "", validate=True)
  except (TypeError, ValueError):
    table = b"?"  # No model has this table.
  length, left = b"", len(table)
  while left > 127:
    length, left = length + bytes([left & 127 | 128]), left >> 7
  # Field 2 of NormalizerSpec, as protocol buffers store bytes.
  return b"\x12" + length + bytes([left]) + table


# --- the library


_TRIAL = """
import resource, sys
sys.path.append(sys.argv[1])
resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
seconds = int(sys.argv[2])
resource.setrlimit(resource.RLIMIT_CPU, (seconds, seconds + 10))
import tokenizers
text = sys.stdin.buffer.read().decode()
tokenizer = tokenizers.Tokenizer.from_str(text)
codes = [*range(1, 0xD800), *range(0xE000, 0x11000), *range(0x1F300, 0x1FB00)]
words = ["".join(map(chr, codes[i : i + 16])) for i in range(0, len(codes), 16)]
pieces = tokenizer.get_vocab()
for probe in ("", " ", "a b", "x" * 5000, "".join(words), " ".join(words), " ".join(pieces)):
  tokenizer.decode(tokenizer.encode(probe, add_special_tokens=False).ids)
tokenizer.decode(list(range(tokenizer.get_vocab_size())))
del tokenizer
"""


@contextlib.contextmanager
def panics_told(path: PathLike) -> Iterator[None]:
  """Turns a panic of `tokenizers`, which is not an `Exception`, into a `UserError`."""
  try:
    yield
  except BaseException as error:
    if type(error).__name__ != "PanicException":
      raise
    raise malformed(path, error) from None


def try_out(text: str, path: PathLike) -> None:
  """Raises `UserError` if `tokenizers` fails on this JSON in a separate process.

  On a damaged file the library may panic, which `except Exception` does not catch, or end
  the process by a signal. The trial reads exactly this text, encodes every character of the
  basic plane and every piece, and takes half a second. `files.cache_folder()` remembers by
  digest what has passed. A text unlike those of the trial may still cause a panic; see
  `panics_told`.

  Args:
    text: the JSON.
    path: of the file, for messages.
  """
  import tokenizers

  digest = hashlib.sha256(f"{tokenizers.__version__}{_TRIAL}{text}".encode())
  passed = cache_folder() / f"{digest.hexdigest()}.tokenizer"
  if passed.is_file():
    return
  packages = os.path.dirname(os.path.dirname(tokenizers.__file__))
  try:
    done = subprocess.run(
      [sys.executable, "-I", "-S", "-c", _TRIAL, packages, str(MOST_SECONDS)],
      input=text.encode(),
      capture_output=True,
      timeout=10 * MOST_SECONDS,  # On a busy machine.
    )
    code, said = done.returncode, done.stderr.decode(errors="replace").strip()
  except subprocess.TimeoutExpired:
    code, said = 1, f"it takes longer than {MOST_SECONDS:g} s"
  if code == -signal.SIGXCPU:
    said = f"it takes longer than {MOST_SECONDS:g} s"
  if code:
    last = said.splitlines()[-1] if said else f"its process ended with {code}"
    raise malformed(path, last)
  try:
    passed.parent.mkdir(parents=True, exist_ok=True)
    write_bytes(passed, b"")
  except OSError:
    pass  # A cache that cannot be written only costs time.

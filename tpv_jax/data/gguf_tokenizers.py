"""Tokenizers inside GGUF files, as the tokenizer.json that they were made from.

`tokenizer.ggml.model` is 'gpt2' for byte-level BPE, which states its merges and by name
(`tokenizer.ggml.pre`) how a text is split before; or 'llama' for SentencePiece's BPE (LLaMA
2, Gemma), which states scores. What the names mean is llama.cpp's rule, and the models' own
tokenizer.json where this says more. `transformers` splits texts of 'smollm' and
'deepseek-llm' as GPT-2 does, which gives other ids for some texts. Needs the extra 'llm'.
"""

import re
from collections.abc import Mapping, Sequence
from typing import Any

from tpv_jax.core.errors import UserError, near_misses
from tpv_jax.core.files import PathLike, to_path
from tpv_jax.data.byte_pairs import MOST_PIECES, Stated
from tpv_jax.formats import gguf

_NORMAL, _UNKNOWN, _CONTROL, _USER, _UNUSED, _BYTE = 1, 2, 3, 4, 5, 6
"""GGUF's types of tokens."""


def read(path: PathLike) -> Stated:
  """Returns what a GGUF file states of its tokenizer.

  Raises:
    UserError: the file is damaged, or its tokenizer is of a kind that is not read.
  """
  path = to_path(path)
  return of_metadata(gguf.read_metadata(path), path)


def of_metadata(metadata: Mapping[str, Any], path: PathLike) -> Stated:
  """Returns what the metadata of a GGUF file state; see `read`."""
  found = {
    name.removeprefix("tokenizer.ggml."): value
    for name, value in metadata.items()
    if name.startswith("tokenizer.ggml.")
  }
  kind = found.get("model")
  if kind not in _KINDS:
    raise UserError(
      f"The tokenizer in '{path}' is of kind {kind!r:.40}; read are "
      f"{', '.join(map(repr, _KINDS))}. Give the file of another model."
    )
  try:
    tokens = [str(token) for token in found["tokens"]]
    types = [int(one) for one in found.get("token_type", [_NORMAL] * len(tokens))]
    if len(types) != len(tokens) or not 0 < len(tokens) <= MOST_PIECES:
      raise ValueError(f"{len(tokens)} pieces and {len(types)} types")
    if len(set(tokens)) < len(tokens):
      raise ValueError("two pieces are the same")
    while types and types[-1] == _UNUSED and tokens[-1] == f"[PAD{len(tokens) - 1}]":
      del tokens[-1], types[-1]  # The converter's names for the table's spare rows.
    by_role = {
      role: int(found[f"{name}_token_id"])
      for role, name in _ROLES.items()
      if f"{name}_token_id" in found
    }
    words = {role: tokens[index] for role, index in by_role.items()}
    content = _KINDS[kind](found, tokens, types, path)
    adds = found.get("add_bos_token", _adds_bos(kind, found.get("pre")))
    start = (by_role["bos_token"],) if adds else ()
  except (KeyError, TypeError, ValueError, IndexError) as error:
    raise UserError(
      f"The tokenizer in '{path}' cannot be read ({type(error).__name__}: "
      f"{error!s:.100}). Take another copy."
    ) from error
  ends = [by_role[role] for role in ("eos_token", "eot_token") if role in by_role]
  ends += [
    index
    for index, token in enumerate(tokens)
    if token == _END_OF_TURN and types[index] == _CONTROL
  ]
  template = metadata.get("tokenizer.chat_template")
  return Stated(
    path=path,
    content=content,
    start=start,
    ends=tuple(dict.fromkeys(ends)),
    words={role: word for role, word in words.items() if role != "eot_token"},
    template=template if isinstance(template, str) else None,
  )


_ROLES = {
  "bos_token": "bos",
  "eos_token": "eos",
  "unk_token": "unknown",
  "pad_token": "padding",
  "eot_token": "eot",
}
"""GGUF's names of special tokens by Hugging Face's."""


_END_OF_TURN = "<end_of_turn>"
"""Gemma's mark, which ends a text, as llama.cpp decides, where a file doesn't say so, too."""


def _adds_bos(kind: Any, pre: Any) -> bool:
  """Returns whether BOS is added where a file doesn't say, as llama.cpp decides."""
  return kind == "llama" or pre == "llama-bpe"


# --- byte-level BPE

_GPT_2_ENDINGS = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|"
_GPT_4_REST = r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"

_CASED = (
  "41-5A 61-7A B5 C0-D6 D8-F6 F8-1BA 1BC-1BF 1C4-293 295-2AF 370-373 376 377 37B-37D "
  "37F 386 388-38A 38C 38E-3A1 3A3-3F5 3F7-481 48A-52F 531-556 10A0-10C5 13A0-13F5 "
  "13F8-13FD 1C90-1CBA 1CBD-1CBF 1D00-1D2B 1D6B-1D77 1D79-1D9A 1E00-1F15 1F18-1F1D "
  "1F20-1F45 1F48-1F4D 1F50-1F57 1F59 1F5B 1F5D 1F5F-1F7D 1F80-1FB4 1FB6-1FBC 1FBE "
  "1FC2-1FC4 1FC6-1FCC 1FD0-1FD3 1FD6-1FDB 1FE0-1FEC 1FF2-1FF4 1FF6-1FFC 2102 2107 "
  "210A-2113 2115 2119-211D 2124 2126 2128 212A-212D 212F-2134 2139 213C-213F "
  "2145-2149 214E 2183 2184 2C00-2C7B 2C7E-2CE4 2CEB-2CEE 2CF2 2CF3 A640-A66D "
  "A680-A69B A722-A76F A771-A787 A78B-A78E AB70-ABBF FB00-FB06 FB13-FB17 FF21-FF3A "
  "FF41-FF5A 10400-1044F 104B0-104D3 104D8-104FB 10C80-10CB2 10CC0-10CF2 118A0-118DF "
  "1E900-1E943"
)
"""The letters of DeepSeek-LLM's rule, by their numbers: those with an upper and a lower case
in most scripts (no mathematical ones)."""


_MARKS = "21-2F 3A-7E FF01-FF0F FF1A-FF5E 2018-201F 3000-3002"
"""The marks of its rule; Latin letters are among them, so that others beside them split."""


def _letters(numbers: str) -> str:
  """Returns the inside of a class of a regular expression, without special letters."""
  return re.sub("[0-9A-F]+", r"\\x{\g<0>}", numbers).replace(" ", "")


def _splits(*patterns: str) -> list[dict[str, Any]]:
  return [
    {
      "type": "Split",
      "pattern": {"Regex": pattern},
      "behavior": "Isolated",
      "invert": False,
    }
    for pattern in patterns
  ]


_PRE: dict[str, list[dict[str, Any]]] = {
  # Every number on its own, then GPT-2's rule.
  "smollm": [{"type": "Digits", "individual_digits": True}],
  "llama-bpe": _splits(f"{_GPT_2_ENDINGS}\\p{{N}}{{1,3}}{_GPT_4_REST}"),
  "qwen2": _splits(f"{_GPT_2_ENDINGS}\\p{{N}}{_GPT_4_REST}"),
  "deepseek-llm": _splits(
    "[\r\n]",
    f"\\s?[{_letters(_CASED)}]+",
    f"\\s?[{_letters(_MARKS)}]+",
    r"\s+$",
    f"[{_letters('4E00-9FA5 800-4E00 AC00-D7FF')}]+",
    r"\p{N}+",
  ),
}
"""The steps that split a text, by the name in the file."""


def _byte_level(
  found: Mapping[str, Any],
  tokens: Sequence[str],
  types: Sequence[int],
  path: PathLike,
) -> dict[str, Any]:
  pre = found.get("pre")
  if pre not in _PRE:
    raise UserError(
      f"The tokenizer in '{path}' splits texts by the rule {pre!r:.40} "
      f"(tokenizer.ggml.pre); read are {', '.join(_PRE)}."
      f"{near_misses(str(pre), _PRE)} Give the model's folder of Hugging Face."
    )
  merges = [str(pair).split(" ") for pair in found["merges"]]
  level = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True}
  level["use_regex"] = pre == "smollm"
  return _content(
    tokens,
    types,
    merges,
    normalizer={"type": "NFC"} if pre == "qwen2" else None,
    pre_tokenizer={"type": "Sequence", "pretokenizers": [*_PRE[pre], level]},
    decoder=level,
    ignore_merges=pre == "llama-bpe",
  )


# --- SentencePiece's BPE


def _sentence_piece(
  found: Mapping[str, Any],
  tokens: Sequence[str],
  types: Sequence[int],
  path: PathLike,
) -> dict[str, Any]:
  scores = [float(score) for score in found["scores"]]
  if len(scores) != len(tokens):
    raise ValueError(f"{len(tokens)} pieces and {len(scores)} scores")
  spaced = bool(found.get("add_space_prefix", True))
  if not spaced:
    # The converter writes spaces of the user's pieces (Gemma's "  ") as they are in texts.
    tokens = [
      token.replace(" ", "▁") if kind == _USER else token
      for token, kind in zip(tokens, types, strict=True)
    ]
  space = [{"type": "Replace", "pattern": {"String": " "}, "content": "▁"}]
  front = [{"type": "Prepend", "prepend": "▁"}] if spaced else []
  back = [{"type": "Strip", "content": " ", "start": 1, "stop": 0}] if spaced else []
  unknown = [
    token for token, kind in zip(tokens, types, strict=True) if kind == _UNKNOWN
  ]
  return _content(
    tokens,
    types,
    _merges(tokens, types, scores),
    normalizer={"type": "Sequence", "normalizers": [*front, *space]},
    pre_tokenizer=None,
    decoder={
      "type": "Sequence",
      "decoders": [
        {"type": "Replace", "pattern": {"String": "▁"}, "content": " "},
        {"type": "ByteFallback"},
        {"type": "Fuse"},
        *back,
      ],
    },
    user_in_normal=not spaced,
    unk_token=unknown[0] if unknown else None,
    fuse_unk=True,
    byte_fallback=_BYTE in types,
  )


def _merges(
  tokens: Sequence[str], types: Sequence[int], scores: Sequence[float]
) -> list[list[str]]:
  """Returns the pairs of pieces that make a piece, the best piece first.

  SentencePiece joins the neighbours that make the piece with the highest score. Pairs that
  make the same piece follow the order of their ids, as in `transformers`' conversion.
  """
  ids = {token: index for index, token in enumerate(tokens)}
  found = []
  for piece, kind, score in zip(tokens, types, scores, strict=True):
    if kind != _NORMAL:
      continue
    for cut in range(1, len(piece)):
      left, right = piece[:cut], piece[cut:]
      if left in ids and right in ids:
        found.append((-score, ids[piece], ids[left], ids[right]))
  return [[tokens[left], tokens[right]] for *_, left, right in sorted(found)]


_KINDS = {"gpt2": _byte_level, "llama": _sentence_piece}


def _content(
  tokens: Sequence[str],
  types: Sequence[int],
  merges: Sequence[Sequence[str]],
  normalizer: Any,
  pre_tokenizer: Any,
  decoder: Any,
  user_in_normal: bool = False,
  **model: Any,
) -> dict[str, Any]:
  """Returns the content of a tokenizer.json.

  Args:
    tokens: the pieces.
    types: of them.
    merges: pairs of pieces, the best first.
    normalizer: a step of a tokenizer.json, or None.
    pre_tokenizer: likewise.
    decoder: likewise.
    user_in_normal: whether the user's pieces are looked for in the text that the normalizer
      made.
    model: further settings of BPE.
  """
  added = [
    {
      **dict.fromkeys(("single_word", "lstrip", "rstrip"), False),
      "normalized": user_in_normal and kind == _USER,
      "id": index,
      "content": token,
      "special": kind != _USER,
    }
    for index, (token, kind) in enumerate(zip(tokens, types, strict=True))
    if kind in (_CONTROL, _USER, _UNKNOWN)
  ]
  return {
    "version": "1.0",
    "added_tokens": added,
    "normalizer": normalizer,
    "pre_tokenizer": pre_tokenizer,
    "decoder": decoder,
    "model": {
      "type": "BPE",
      "vocab": {token: index for index, token in enumerate(tokens)},
      "merges": merges,
      **model,
    },
  }

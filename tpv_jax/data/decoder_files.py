"""The files of a decoder-only model's tokenizer in Hugging Face's format.

    tokenizer.json          the BPE model, and the steps before and after it
    tokenizer_config.json   whether BOS is added, special tokens by role, a chat template
    chat_template.jinja     the chat template; it goes before the config's
    generation_config.json  the ids that end a text
    config.json             the same
    added_tokens.json       further tokens

BOS is in front of a text if tokenizer_config.json's add_bos_token says so, otherwise if
tokenizer.json's post_processor does; config.json's bos_token_id says nothing (Qwen 2.5 has
one and adds none).
"""

import json
from collections.abc import Iterator, Mapping
from typing import Any

from tpv_jax.core.errors import UserError, some
from tpv_jax.core.files import (
  Path,
  PathLike,
  inside,
  read_bytes,
  read_json,
  to_path,
  write_text,
)
from tpv_jax.data import byte_pairs
from tpv_jax.data.byte_pairs import Stated
from tpv_jax.data.chat_templates import MOST_LETTERS
from tpv_jax.data.tokenizer_files import CONFIG, MAX_BYTES, TOKENIZER

TEMPLATE = "chat_template.jinja"

ROLES = ("bos_token", "eos_token", "unk_token", "pad_token")
"""The special tokens that chat templates are given."""


def read(path: PathLike) -> Stated | None:
  """Returns what a tokenizer's files state; None if its model is not BPE, as T5's is not.

  Args:
    path: a folder of Hugging Face, or a tokenizer.json; of its folder's other files are
      read those that say how it is used.

  Raises:
    UserError: a file is damaged, states tokens that tokenizer.json doesn't have, or a
      symbolic link leads out of the folder.
  """
  path = to_path(path)
  folder, name = (path, TOKENIZER) if path.is_dir() else (path.parent, path.name)
  content = read_json(folder / name, MAX_BYTES)
  if not _is_byte_pairs(content.get("model")):
    return None
  found = inside(folder, name)
  config = _optional(folder, CONFIG)
  ids = _ids(content, found)
  where = folder / CONFIG
  _refuse_other_tokens(folder, config, ids)
  _refuse_other_prefix(content, config, where)
  words = {
    role: text for role in ROLES if (text := _text(config.get(role))) is not None
  }
  return Stated(
    path=path,
    content=content,
    start=_start(content, config, words, ids, found),
    ends=_ends(folder, words, ids),
    words=words,
    template=_template(folder, config),
  )


def write(stated: Stated, folder: Path) -> None:
  """Writes the files that `read` reads the same from, and `transformers` too."""
  bos = stated.words.get("bos_token")
  adds = {} if stated.start and bos is None else {"add_bos_token": bool(stated.start)}
  config = {"tokenizer_class": "PreTrainedTokenizerFast", **stated.words, **adds}
  if stated.template is not None:
    config["chat_template"] = stated.template
  for name, content in (
    (TOKENIZER, stated.content),
    (CONFIG, config),
    ("generation_config.json", {"eos_token_id": list(stated.ends)}),
  ):
    write_text(folder / name, json.dumps(content, ensure_ascii=False))


def _is_byte_pairs(model: Any) -> bool:
  return isinstance(model, dict) and (
    model.get("type") == "BPE" or ("type" not in model and "merges" in model)
  )


def _optional(folder: Path, name: str) -> dict[str, Any]:
  return read_json(inside(folder, name), MAX_BYTES) if (folder / name).exists() else {}


def _ids(content: Mapping[str, Any], path: PathLike) -> dict[str, int]:
  """Returns the ids of all pieces; `BytePairVocabulary` checks them."""
  try:
    added = {
      str(token["content"]): token["id"] for token in content.get("added_tokens") or ()
    }
    return {**content["model"]["vocab"], **added}
  except (KeyError, TypeError, AttributeError) as error:
    raise _unreadable(path, f"its pieces ({error!s:.100})") from error


def _text(token: Any) -> str | None:
  text = token.get("content") if isinstance(token, dict) else token
  return text if isinstance(text, str) else None


def _start(
  content: Mapping[str, Any],
  config: Mapping[str, Any],
  words: Mapping[str, str],
  ids: Mapping[str, int],
  path: PathLike,
) -> tuple[int, ...]:
  """Returns the ids in front of a text; see the module."""
  adds = config.get("add_bos_token")
  if adds is False:
    return ()
  if adds is True:
    if words.get("bos_token") not in ids:
      raise UserError(
        f"The {CONFIG} beside '{path}' states add_bos_token, and its bos_token "
        f"{words.get('bos_token')!r:.60} is not a piece. Give the files of one tokenizer."
      )
    return (ids[words["bos_token"]],)
  if adds is not None:
    raise _unreadable(path, f"add_bos_token in {CONFIG}, {adds!r:.40}")
  try:
    return tuple(_added_in_front(content.get("post_processor"), ids))
  except (KeyError, TypeError, AttributeError, IndexError) as error:
    raise _unreadable(path, f"its post_processor ({error!s:.100})") from error


def _added_in_front(processor: Any, ids: Mapping[str, int]) -> Iterator[int]:
  for step in byte_pairs.steps(processor):
    if step["type"] == "TemplateProcessing":
      for part in step["single"]:
        if "SpecialToken" not in part:
          break
        yield ids[part["SpecialToken"]["id"]]
    elif step["type"] in ("BertProcessing", "RobertaProcessing"):
      yield ids[step["cls"][0]]


def _ends(
  folder: Path, words: Mapping[str, str], ids: Mapping[str, int]
) -> tuple[int, ...]:
  """Returns the ids that end a text: the tokenizer's, then those that generation obeys."""
  found: list[int] = []
  if (word := words.get("eos_token")) is not None:
    if word not in ids:
      raise UserError(
        f"'{folder / CONFIG}' states the eos_token {word!r:.60}, which is not one of the "
        "tokenizer's pieces. Give the files of one tokenizer."
      )
    found.append(ids[word])
  for name in ("generation_config.json", "config.json"):
    stated = _optional(folder, name).get("eos_token_id")
    stated = [] if stated is None else stated
    for index in stated if isinstance(stated, list) else [stated]:
      if type(index) is not int:
        raise _unreadable(folder / name, f"eos_token_id, {index!r:.40}")
      found.append(index)
  return tuple(dict.fromkeys(found))


def _template(folder: Path, config: Mapping[str, Any]) -> str | None:
  """Returns the folder's chat template; of several, the one named 'default'."""
  if (folder / TEMPLATE).exists():
    path = inside(folder, TEMPLATE)
    try:
      return read_bytes(path)[: 4 * MOST_LETTERS + 1].decode()
    except UnicodeDecodeError as error:
      raise _unreadable(path, f"UTF-8 ({error})") from error
  stated = config.get("chat_template")
  if isinstance(stated, list):
    several = {
      one.get("name"): one.get("template") for one in stated if isinstance(one, dict)
    }
    stated = several.get("default")
  return stated if isinstance(stated, str) else None


def _refuse_other_tokens(
  folder: Path, config: Mapping[str, Any], ids: Mapping[str, int]
) -> None:
  """Raises `UserError` if files add tokens that tokenizer.json doesn't have."""
  stated: list[tuple[Any, Any]] = [*_optional(folder, "added_tokens.json").items()]
  decoder = config.get("added_tokens_decoder") or {}
  if not isinstance(decoder, dict):
    raise _unreadable(folder / CONFIG, "added_tokens_decoder")
  stated += [(_text(token), index) for index, token in decoder.items()]
  odd = [text for text, index in stated if str(ids.get(text)) != str(index)]
  if odd:
    raise UserError(
      f"The files beside '{folder / TOKENIZER}' add tokens that it does not have "
      f"({some(map(repr, odd))}), so ids would differ. Give the files of one tokenizer."
    )


def _refuse_other_prefix(
  content: Mapping[str, Any], config: Mapping[str, Any], where: PathLike
) -> None:
  """Raises `UserError` if the config wants another space in front than tokenizer.json."""
  wanted = config.get("add_prefix_space")
  if wanted is not None and wanted is not byte_pairs.adds_space(content):
    raise UserError(
      f"'{where}' states add_prefix_space {wanted!r:.40}, and the {TOKENIZER} beside it "
      "does the opposite, so ids depend on who reads them. Correct the one that is wrong."
    )


def _unreadable(path: PathLike, what: str) -> UserError:
  return UserError(f"'{path}' has something unreadable: {what}. Take another copy.")

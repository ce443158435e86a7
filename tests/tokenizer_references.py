"""Reads the stored references of tokenizers (see make_tokenizer_references.py)."""

import json
import pathlib

FILE = pathlib.Path(__file__).parent / "references" / "tokenizers.json"

STORED = json.loads(FILE.read_text())
"""By family: its files, texts and conversations with the ids of `transformers`."""


def write(folder, family, **changed):
  """Writes a family's files and returns the folder.

  Args:
    folder: that exists.
    family: of `STORED`.
    changed: further fields of tokenizer_config.json.
  """
  for name, content in STORED[family]["files"].items():
    (folder / name).write_text(content)
  if changed:
    path = folder / "tokenizer_config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **changed}))
  return folder


PRE = {"smollm": "smollm", "llama_3": "llama-bpe", "qwen": "qwen2"}


def metadata(family, **changed):
  """Returns what llama.cpp's converter states of a family's tokenizer."""
  files = {name: text for name, text in STORED[family]["files"].items()}
  content = json.loads(files["tokenizer.json"])
  config = json.loads(files["tokenizer_config.json"])
  model, added = content["model"], content["added_tokens"]
  ids = {**model["vocab"], **{token["content"]: token["id"] for token in added}}
  kinds = {token["content"]: 3 if token["special"] else 4 for token in added}
  tokens = sorted(ids, key=ids.get)
  found = {
    "tokens": tokens,
    "token_type": [kinds.get(token, 1) for token in tokens],
    "eos_token_id": 2 if family != "llama_3" else 5,
    "add_bos_token": family not in ("smollm", "qwen"),
    "bos_token_id": 0 if family == "llama_3" else 1,
  }
  if family == "gemma":
    runs = [token for token in tokens if {*token} in ({"\n"}, {"▁"}) and token != "▁"]
    kinds |= dict.fromkeys(runs, 4)
    found |= {
      # The converter writes the user's spaces as they are in texts.
      "tokens": [
        t.replace("▁", " ") if t in runs and len(t) > 1 else t for t in tokens
      ],
      "token_type": [kinds.get(token, 1) for token in tokens],
      "eos_token_id": 1,
      "bos_token_id": 2,
      "add_space_prefix": False,
    }
  if model.get("byte_fallback"):
    byte = [token.startswith("<0x") for token in tokens]
    found["token_type"] = [
      6 if is_byte else kind
      for is_byte, kind in zip(byte, found["token_type"], strict=True)
    ]
    if family != "gemma":
      found["token_type"][0] = 2
    rank = {a + b: -i for i, (a, b) in reversed([*enumerate(model["merges"])])}
    found["scores"] = [float(rank.get(token, -(10**4))) for token in tokens]
    found["model"] = "llama"
  else:
    found["merges"] = [" ".join(pair) for pair in model["merges"]]
    found |= {"model": "gpt2", "pre": PRE.get(family, "deepseek-llm")}
  found |= changed
  template = config.get("chat_template")
  template = template if isinstance(template, str) or template is None else None
  return {
    **{f"tokenizer.ggml.{key}": v for key, v in found.items() if v is not None},
    **({} if template is None else {"tokenizer.chat_template": template}),
  }


def write_gguf(path, family):
  """Writes a GGUF file that holds a family's tokenizer, and returns its path."""
  import gguf
  import numpy as np

  writer = gguf.GGUFWriter(path, "llama")
  for key, value in metadata(family).items():
    if isinstance(value, bool):
      writer.add_bool(key, value)
    elif isinstance(value, int):
      writer.add_uint32(key, value)
    elif isinstance(value, str):
      writer.add_string(key, value)
    else:
      writer.add_array(key, value)
  writer.add_tensor("token_embd.weight", np.zeros((4, 32), np.float32))
  writer.write_header_to_file()
  writer.write_kv_data_to_file()
  writer.write_tensors_to_file()
  writer.close()
  return path

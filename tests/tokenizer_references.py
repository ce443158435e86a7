"""Reads the stored references of tokenizers (see make_tokenizer_references.py)."""

import json
import pathlib

STORED = json.loads(
  (pathlib.Path(__file__).parent / "references" / "tokenizers.json").read_text()
)
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

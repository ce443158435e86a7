"""Makes the histograms of token counts in this folder from files of JSON lines.

  python benchmarks/lengths/make.py FOLDER SPIECE.MODEL benchmarks/lengths/nlu.json

FOLDER has <task>/train.jsonl, one example per line. Only counts are kept, no text: the
number of sources and of targets by their number of T5 tokens, including the end token.
"""

import collections
import json
import pathlib
import sys

import sentencepiece

MOST = 1_500
"""Examples of a task, from the start of its file."""

LEFT_OUT = {"label", "src", "source", "genre", "pairID", "id", "idx"}


def main() -> None:
  """Writes the file."""
  folder, model, output = map(pathlib.Path, sys.argv[1:])
  pieces = sentencepiece.SentencePieceProcessor(model_file=str(model))
  tasks = {}
  for path in sorted(folder.glob("*/train.jsonl")):
    counts = {"sources": collections.Counter(), "targets": collections.Counter()}
    with path.open() as lines:
      for _, line in zip(range(MOST), lines, strict=False):
        example = json.loads(line)
        source = " ".join(
          f"{name}: {text}"
          for name, text in example.items()
          if isinstance(text, str) and name not in LEFT_OUT
        )
        for kind, text in (("sources", source), ("targets", str(example["label"]))):
          counts[kind][len(pieces.encode(text)) + 1] += 1
    tasks[path.parent.name] = {
      kind: {str(length): count for length, count in sorted(found.items())}
      for kind, found in counts.items()
    }
  about = (
    "Token counts: for each task, length in T5 tokens (end token included, nothing "
    f"trimmed) -> examples, of the first {MOST} lines of its train.jsonl. A source is "
    "'name: text' of each text field, joined by spaces; the target is the label. Made "
    "by make.py from the NLU sets and the T5 vocabulary of this project's workplace "
    "(neither is in this repository)."
  )
  # One line per histogram, so that people can read the file.
  lines = ",\n".join(
    f'    "{task}": {{\n'
    + ",\n".join(f'      "{kind}": {json.dumps(h)}' for kind, h in found.items())
    + "\n    }"
    for task, found in tasks.items()
  )
  text = f'{{\n  "about": {json.dumps(about)},\n  "tasks": {{\n{lines}\n  }}\n}}\n'
  assert json.loads(text)["tasks"] == tasks
  output.write_text(text)


if __name__ == "__main__":
  main()

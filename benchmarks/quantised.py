"""What quantising SmolLM2 changes: its bytes, its perplexity and its logits.

    python benchmarks/quantised.py --out benchmarks/results/quantised-<date>.json

Needs `tpv fetch smollm2` and qwix. The texts are test rows of the two English tasks. Prints
the table of docs/decoder_only.md.
"""

import argparse
import functools
import shlex
import sys

import jax
import jax.numpy as jnp
import numpy as np
import record

from tpv_jax.backbones import loading, networks, quantization
from tpv_jax.core import files, identity
from tpv_jax.data import english, vocabularies
from tpv_jax.model import token_losses

NAME, ROWS, TEXTS = "smollm2", 10, 30
FORMS = {
  "bf16": ("float32", None),
  **{mode: ("float32", mode) for mode in quantization.BITS},
  "bf16, multiplied in bf16": ("bfloat16", None),
}
"""Name -> dtype of the computation, and mode. The file's weights are bf16."""

PACKAGES = ("tpv_jax", "jax", "jaxlib", "flax", "qwix", "numpy")

HEADER = """\
| kernels | bytes | perplexity | change of logits | same token |
| --- | --- | --- | --- | --- |"""


def size_of(mode):
  """Returns the bytes of the backbone on devices that compute in bf16 and pack 4 bits."""
  network = networks.network(NAME, dtype="bfloat16", quantize=mode)
  shapes = jax.eval_shape(network.init, jax.random.key(0), *network.init_inputs())
  leaves = jax.tree.leaves(
    {
      path: jax.eval_shape(functools.partial(quantization.stored, network, path), leaf)
      for path, leaf in identity.flatten(shapes["params"]).items()
    }
  )
  return sum(leaf.size * quantization.bits(leaf.dtype) // 8 for leaf in leaves)


def texts(vocabulary):
  """Returns the ids of the first test rows of each task, padded on the right."""
  rows = [
    vocabulary.encode(example.inputs)
    for task in english.tasks()
    for example in task.examples("test")[:TEXTS]
  ]
  width = max(map(len, rows))
  return np.array([[*row, *[0] * (width - len(row))] for row in rows], np.int32)


def read(network, params, tokens):
  """Returns the logits that predict each token but the first, and their losses."""

  @jax.jit
  def part(params, rows):
    logits = network.apply({"params": params}, rows)[:, :-1].astype(jnp.float32)
    return logits[..., 1:], token_losses(logits, rows[:, 1:], first_id=1)

  parts = [part(params, tokens[i : i + ROWS]) for i in range(0, len(tokens), ROWS)]
  logits, losses = (
    np.concatenate(one) for one in zip(*map(jax.device_get, parts), strict=True)
  )
  seen = tokens[:, 1:] > 0
  return logits[seen], losses[seen]


def measured():
  """Yields the numbers of each form."""
  tokens, reference = texts(vocabularies.of_backbone(NAME)), None
  for form, (dtype, mode) in FORMS.items():
    network = networks.network(NAME, dtype=dtype, quantize=mode)
    logits, losses = read(network, loading.load_backbone(NAME, network).params, tokens)
    reference = logits if reference is None else reference
    distance = np.sqrt(np.mean((logits - reference) ** 2)) / reference.std()
    yield {
      "kernels": form,
      "bytes": size_of(mode),
      "perplexity": float(np.exp(losses.mean())),
      "change_of_logits": float(distance),
      "same_token": float(np.mean(logits.argmax(-1) == reference.argmax(-1))),
    }


def line(one):
  """Returns a form's line of the table."""
  return (
    f"| {one['kernels']} | {one['bytes'] / 1e6:.0f} MB | {one['perplexity']:.2f} | "
    f"{one['change_of_logits']:.4f} | {one['same_token']:.1%} |"
  )


def main():
  """Prints the table, and writes its numbers."""
  parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
  parser.add_argument("--out", metavar="FILE", help="a new JSON file for the numbers")
  options = parser.parse_args()
  if options.out is not None:
    files.check_output(options.out)
  made, results = record.made(shlex.join(["python", *sys.argv])), []
  print(HEADER)
  for one in measured():
    print(line(one), flush=True)
    results.append(one)
  if options.out is not None:
    content = {**made, "versions": record.versions(PACKAGES), "results": results}
    files.write_json(options.out, content)


if __name__ == "__main__":
  main()

"""Makes the references of de-quantisation: random blocks of every type, and their values.

Writes `gguf.npz` beside this file (under 100 kB): `<type>/blocks` (uint8 [2, bytes], a row
of `BLOCKS` blocks each) and `<type>/values` (fp32 [2, values]).

The blocks are random bytes behind scales that are drawn as fp16, so that every bit pattern
of the quantised values comes up. The values are what PyTorch code of `transformers` makes
of them, or for Q5_0 and Q5_1, which that code leaves out, the format's definition in plain
Python, value by value. Imports neither tpv_jax nor the library `gguf`. Needs torch and
transformers 5.24.

  python tests/references/make_gguf_references.py           # writes the file
  python tests/references/make_gguf_references.py --check   # regenerates and compares
"""

import argparse
import pathlib
import struct
import sys

import numpy as np
import torch
from transformers.integrations.gguf import dequant

PATH = pathlib.Path(__file__).with_name("gguf.npz")

BLOCKS = 6

# Values and bytes of a block, and where in it the scales in fp16 are.
TYPES = {
  "Q4_0": (32, 18, (0,)),
  "Q4_1": (32, 20, (0, 2)),
  "Q5_0": (32, 22, (0,)),
  "Q5_1": (32, 24, (0, 2)),
  "Q8_0": (32, 34, (0,)),
  "Q4_K": (256, 144, (0, 2)),
  "Q5_K": (256, 176, (0, 2)),
  "Q6_K": (256, 210, (208,)),
}


def blocks(name, rng):
  """Returns two rows of random blocks, uint8 [2, BLOCKS * bytes]."""
  _, size, scales = TYPES[name]
  made = rng.integers(0, 256, (2, BLOCKS, size), dtype=np.uint8)
  for at in scales:
    drawn = rng.normal(0, 0.1, (2, BLOCKS, 1)).astype("<f2")
    made[:, :, at : at + 2] = drawn.view(np.uint8)
  return made.reshape(2, -1)


def five_bits(block, with_least):
  """Returns the values of a block of Q5_0 or Q5_1 by the definition in ggml."""
  (scale,) = struct.unpack_from("<e", block, 0)
  (least,) = struct.unpack_from("<e", block, 2) if with_least else (0.0,)
  at = 4 if with_least else 2
  (high,) = struct.unpack_from("<I", block, at)
  low = block[at + 4 :]
  found = []
  for place in range(32):
    nibble = low[place] & 15 if place < 16 else low[place - 16] >> 4
    value = nibble | (high >> place & 1) << 4
    found.append(np.float32(scale) * np.float32(value if with_least else value - 16))
  return np.asarray(found, np.float32) + np.float32(least)


def values(name, made):
  """Returns the values of rows of blocks."""
  count, size, _ = TYPES[name]
  if name.startswith("Q5_") and not name.endswith("K"):
    parts = made.reshape(-1, size)
    flat = [five_bits(block.tobytes(), name == "Q5_1") for block in parts]
    return np.concatenate(flat).reshape(2, BLOCKS * count)
  kind = getattr(dequant, f"GGML_{name}")
  flat = dequant.dequantize(torch.from_numpy(made.reshape(-1)), kind)
  return flat.numpy().reshape(2, BLOCKS * count)


def main():
  """Writes the file, or compares it."""
  parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
  parser.add_argument("--check", action="store_true")
  check = parser.parse_args().check
  rng = np.random.default_rng(0)
  found = {}
  for name in TYPES:
    made = blocks(name, rng)
    found[f"{name}/blocks"], found[f"{name}/values"] = made, values(name, made)
  if not check:
    np.savez_compressed(PATH, **found)
    return 0
  with np.load(PATH) as stored:
    same = set(stored) == set(found) and all(
      np.array_equal(stored[name], found[name]) for name in found
    )
  print("the same" if same else "not the same")
  return 0 if same else 1


if __name__ == "__main__":
  sys.exit(main())

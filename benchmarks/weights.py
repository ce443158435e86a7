"""Random weights of a backbone, drawn by NumPy: compiling them for a GPU takes minutes.

    python benchmarks/weights.py base smollm2_135m --folder FOLDER

writes FOLDER/base.safetensors and so on, for `against_peft.py --weights`. The leaves have
the means and deviations of the network's own initial distributions, in fp32.
"""

import argparse
import concurrent.futures
import math
import os
import pathlib
import sys
from collections.abc import Sequence

import against_peft
import jax
import numpy as np

sys.path.insert(0, str(pathlib.Path(__file__).parents[1]))

from safetensors.numpy import save_file

from tpv_jax.backbones import protocol, registry
from tpv_jax.core import identity
from tpv_jax.core.errors import run_command


def main(argv: Sequence[str] | None = None) -> int:
  """Writes the sizes that the command line names; returns the exit code."""
  parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
  parser.add_argument("sizes", nargs="+", help="as of against_peft.py --size")
  parser.add_argument("--folder", type=pathlib.Path, required=True)
  options = parser.parse_args(argv)

  def run() -> None:
    known = against_peft.known_sizes()
    for size in options.sizes:
      family, numbers = known[against_peft.checked_size(size)]
      network = registry.family(family).network(**numbers)
      write(network, options.folder / f"{size}.safetensors")

  return run_command(run)


def write(network: protocol.Network, path: pathlib.Path) -> None:
  """Writes the leaves of a random backbone by T5X path, if the file is not there."""
  if path.exists():
    return
  leaves = drawn(network)
  if not network.FIRST_ID:
    # Padding starts each target: with a random embedding, only it would be generated.
    leaves[network.TABLE][0] = 0
  scratch = path.with_suffix(f".{os.getpid()}")
  save_file(leaves, scratch)
  scratch.rename(path)


def drawn(network: protocol.Network) -> dict[str, np.ndarray]:
  """Returns the leaves of a random backbone by T5X path, the same ones at every call."""
  shapes = jax.eval_shape(network.init, jax.random.key(0), *network.init_inputs())
  shaped = identity.flatten(shapes["params"])

  def draw(numbered: tuple[int, str]) -> np.ndarray:
    number, path = numbered
    shape = shaped[path].shape
    if path.endswith(("/scale", "/bias")):
      return np.full(shape, path.endswith("/scale"), np.float32)
    leaf = np.random.default_rng(number).standard_normal(shape, np.float32)
    leaf *= deviation(network, path, shape)
    return leaf

  with concurrent.futures.ThreadPoolExecutor() as pool:  # NumPy draws without the GIL.
    return dict(zip(shaped, pool.map(draw, enumerate(shaped)), strict=True))


def deviation(network: protocol.Network, path: str, shape: Sequence[int]) -> float:
  """Returns the standard deviation of a leaf's initial distribution."""
  is_t5 = network.ARCHITECTURE == "encoder_decoder"
  *_, module, leaf = path.split("/")
  if leaf == "rel_embedding":
    return math.sqrt(2 / sum(shape))
  if leaf == "embedding":
    return 1.0 if is_t5 else shape[1] ** -0.5
  of_kernel = shape[0] ** -0.5
  # T5's logits of attention have no scale, so its queries have it.
  return of_kernel * (network.head_dim**-0.5 if is_t5 and module == "query" else 1.0)


if __name__ == "__main__":
  sys.exit(main())

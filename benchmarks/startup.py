"""Measures how fast `tpv` starts, compared with an interpreter that only imports NumPy.

    python benchmarks/startup.py --out benchmarks/results/startup-<date>.json

The commands take turns, round after round, so that a busy moment of the machine affects
all of them. Times are wall times of the whole process, interpreter start included; vectors
have the size of T5-base's with 100 prompt tokens. The exit code is 1 if a median is over
the limit; on a busy machine, the processor time (user + system) is the command's own cost.
"""

import argparse
import pathlib
import resource
import shlex
import statistics
import subprocess
import sys
import tempfile
import time
from typing import Any

import numpy as np
import record

from tpv_jax.core import files
from tpv_jax.vectors import store
from tpv_jax.vectors.provenance import Provenance, Term

BARE = "python -c 'import numpy'"
SHAPE = (100, 768)
PACKAGES = ("tpv_jax", "numpy", "jaxtyping", "ml_dtypes")


def main() -> int:
  """Measures, prints a table, writes JSON; returns the exit code."""
  parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
  parser.add_argument("--rounds", type=int, default=30, help="runs of each command")
  parser.add_argument("--limit", type=float, default=0.5, help="seconds, of a median")
  parser.add_argument("--out", help="a JSON file for the results")
  options = parser.parse_args()
  with tempfile.TemporaryDirectory() as folder:
    times = measure(pathlib.Path(folder), options.rounds)
  results = {name: summary(runs, times[BARE]) for name, runs in times.items()}
  for name, row in results.items():
    print(
      f"{name:<24}median {row['median_s']:.3f} s  (min {row['min_s']:.3f}, quartiles "
      f"{row['quartiles_s'][0]:.3f} to {row['quartiles_s'][1]:.3f})  "
      f"{row['ratio_to_bare']:.2f} x bare  processor {row['processor_s']:.3f} s"
    )
  slow = [name for name, row in results.items() if row["median_s"] > options.limit]
  print(f"limit {options.limit} s: {'over it: ' + ', '.join(slow) if slow else 'kept'}")
  if options.out:
    files.write_json(options.out, report(options, results))
    print(f"Wrote '{options.out}'.")
  return 1 if slow else 0


def measure(folder: pathlib.Path, rounds: int) -> dict[str, list[tuple[float, float]]]:
  """Returns (wall, processor) seconds of each command's runs except the first."""
  inputs = [str(folder / f"{name}.safetensors") for name in ("a", "b")]
  for seed, path in enumerate(inputs):
    values = np.random.default_rng(seed).normal(size=SHAPE).astype(np.float32)
    known = Provenance(
      kind="vector",
      terms=(Term(f"task{seed}", 1.0),),
      backbone_fingerprint="a" * 64,
      initial_digest="b" * 64,
    )
    store.write(path, {"prompt": values}, known)
  output = str(folder / "sum.safetensors")
  commands = {
    BARE: [sys.executable, "-c", "import numpy"],
    "tpv --help": [*tpv_command(), "--help"],
    "tpv train --help": [*tpv_command(), "train", "--help"],
    "tpv sum A B -o C": [*tpv_command(), "sum", *inputs, "-o", output, "--overwrite"],
  }
  times: dict[str, list[tuple[float, float]]] = {name: [] for name in commands}
  for count in range(rounds + 1):
    for name, command in commands.items():
      start, used = time.perf_counter(), children_seconds()
      subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
      if count:
        wall = time.perf_counter() - start
        times[name].append((wall, children_seconds() - used))
  return times


def children_seconds() -> float:
  """Returns the processor time of all children so far, user and system."""
  used = resource.getrusage(resource.RUSAGE_CHILDREN)
  return used.ru_utime + used.ru_stime


def tpv_command() -> list[str]:
  """Returns the console command beside this interpreter, or `python -m tpv_jax`."""
  installed = pathlib.Path(sys.executable).with_name("tpv")
  if installed.exists():
    return [str(installed)]
  return [sys.executable, "-m", "tpv_jax"]


def summary(
  runs: list[tuple[float, float]], bare: list[tuple[float, float]]
) -> dict[str, Any]:
  """Returns the median, spread and ratio of medians to the bare interpreter."""
  seconds = [wall for wall, _ in runs]
  low, _, high = statistics.quantiles(seconds, n=4)
  median = statistics.median(seconds)
  return {
    "median_s": round(median, 4),
    "min_s": round(min(seconds), 4),
    "max_s": round(max(seconds), 4),
    "quartiles_s": [round(low, 4), round(high, 4)],
    "ratio_to_bare": round(median / statistics.median(wall for wall, _ in bare), 3),
    "processor_s": round(statistics.median(used for _, used in runs), 4),
  }


def report(options: argparse.Namespace, results: dict) -> dict:
  """Returns the results with all that is needed to run them again."""
  return {
    **record.made(shlex.join(["python", *sys.argv])),
    "rounds": options.rounds,
    "limit_s": options.limit,
    "vector_shape": list(SHAPE),
    "tpv": " ".join(pathlib.Path(part).name for part in tpv_command()),
    "versions": record.versions(PACKAGES),
    "results": results,
  }


if __name__ == "__main__":
  sys.exit(main())

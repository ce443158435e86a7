"""Measures how long each merge rule takes for many vectors, and how much memory.

    python benchmarks/merging.py --out benchmarks/results/merging-<date>.json

Each rule runs in a process of its own with vectors of T5-base's size with 100 prompt
tokens: a rule that takes two gets two, tsv at most one for each token, the others all.
Memory is the process's largest, beyond what it held once the vectors were made. `tpv
merge` of two files is the whole process, start included.
"""

import argparse
import json
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
import startup

from tpv_jax.core import files
from tpv_jax.vectors import store
from tpv_jax.vectors.loaded import Loaded
from tpv_jax.vectors.merging import registry
from tpv_jax.vectors.merging.merge import merge
from tpv_jax.vectors.provenance import Provenance, Term

MOST = {"tsv": startup.SHAPE[0]}
"""Rules that take at most so many vectors."""


def main() -> int:
  """Measures, prints a table, writes JSON; returns the exit code."""
  parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
  parser.add_argument("--number", type=int, default=1000, help="vectors")
  parser.add_argument("--rounds", type=int, default=15, help="runs of 'tpv merge'")
  parser.add_argument("--rule", help="measure this one here, and print JSON")
  parser.add_argument("--out", help="a JSON file for the results")
  options = parser.parse_args()
  if options.rule:
    print(json.dumps(measured(options.rule, options.number)))
    return 0
  results = {}
  for rule in registry.RULES:
    command = [
      sys.executable,
      __file__,
      "--rule",
      rule,
      "--number",
      str(options.number),
    ]
    done = subprocess.run(command, check=True, capture_output=True, text=True)
    results[rule] = row = json.loads(done.stdout)
    print(
      f"{rule:<18}{row['vectors']:>5} vectors {row['seconds']:>8.3f} s"
      f"{row['memory_mb']:>8.0f} MB"
    )
  seconds = commands(options.rounds)
  print(f"tpv merge of two    median {statistics.median(seconds):.3f} s")
  if options.out:
    files.write_json(
      options.out,
      {
        **record.made(shlex.join(["python", *sys.argv])),
        "vector_shape": list(startup.SHAPE),
        "versions": record.versions(startup.PACKAGES),
        "results": results,
        "tpv_merge_of_two_s": record.quartiles(seconds),
      },
    )
    print(f"Wrote '{options.out}'.")
  return 0


def vector(index: int, kind: str = "vector") -> Loaded:
  """Returns a random vector, or a prompt."""
  values = np.random.default_rng(index).standard_normal(startup.SHAPE, np.float32)
  known = Provenance(
    kind=kind,
    terms=(Term(f"task{index}", 1.0),),
    backbone_fingerprint="a" * 64,
    initial_digest="b" * 64,
  )
  return Loaded({"prompt": values}, known, f"vector {index}")


def measured(rule: str, number: int) -> dict[str, Any]:
  """Returns the seconds and the memory of one merge in this process."""
  found = registry.rule(rule)
  number = found.number or min(number, MOST.get(rule, number))
  kind = "prompt" if hasattr(found, "joined") else "vector"
  vectors = [vector(index, kind) for index in range(number)]
  before = memory_mb()
  start = time.perf_counter()
  merge(vectors, rule)
  return {
    "vectors": number,
    "seconds": round(time.perf_counter() - start, 4),
    "memory_mb": round(memory_mb() - before, 1),
  }


def memory_mb() -> float:
  """Returns the largest memory of this process so far."""
  return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def commands(rounds: int) -> list[float]:
  """Returns the seconds of `tpv merge` of two files, but the first."""
  with tempfile.TemporaryDirectory() as folder:
    paths = [str(pathlib.Path(folder, f"{index}.safetensors")) for index in range(2)]
    for index, path in enumerate(paths):
      one = vector(index)
      store.write(path, one.leaves, one.provenance)
    command = [*startup.tpv_command(), "merge", *paths, "--rule", "ties"]
    command += ["-o", str(pathlib.Path(folder, "merged.safetensors")), "--overwrite"]
    seconds = []
    for _ in range(rounds + 1):
      start = time.perf_counter()
      subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
      seconds.append(time.perf_counter() - start)
  return seconds[1:]


if __name__ == "__main__":
  sys.exit(main())

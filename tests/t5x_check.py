"""`make t5x-check`: runs the T5X commands of all documents as printed, under real T5X.

  make t5x-check T5X=FOLDER               # and writes docs/t5x-check.md
  python tests/t5x_check.py docs/t5x.md   # one document, to the screen only

In order, from the root of a clone, each command in a process of its own, as a user gives
it: see documents.py. What a document names and the clone has not is made first, see
stand_ins.py. A command that fails is told with its output, and the exit code is 1.
"""

import argparse
import importlib.metadata
import importlib.util
import json
import os
import pathlib
import platform
import re
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator

ROOT = pathlib.Path(__file__).parents[1]
sys.path[:0] = [str(ROOT), str(ROOT / "tests")]
os.environ.setdefault("JAX_COMPILATION_CACHE_DIR", str(ROOT / ".pytest_cache" / "jax"))

import documents  # noqa: E402
import stand_ins  # noqa: E402
import warm_python  # noqa: E402

from tpv_jax.core import files  # noqa: E402
from tpv_jax.core.errors import EXIT_USER_ERROR  # noqa: E402

DOCUMENTS = (
  *("README.md", "docs/t5x.md"),
  *(  # What trains comes before what evaluates it.
    f"gin_configs/t5x/{name}.gin"
    for kind in ("embedded", "llm")
    for name in (f"{verb}_{kind}" for verb in ("train", "eval", "infer", "bank"))
  ),
  *(
    f"gin_configs/t5x/{name}.gin"
    for name in ("train", "eval", "infer", "bank", "few_shot", "streamed_task")
  ),
)
"""Where commands need real T5X."""

HEADER = """\
# The T5X commands of the documents, as they ran

Written by `make t5x-check`, not edited. Each command ran as it is printed in the document
that is named, from the root of a clone, in a process of its own, on one CPU. Where it names
a model or data that is not in the repository, a tiny one with random weights or invented rows
lay there; trainings of a tiny T5 took 4 steps, and what `...` leaves out was that T5, a plain
prompt and a task from local files (tests/stand_ins.py).
"""


def steps(document: str) -> list[documents.Step]:
  """Returns what to run of a document: all of docs/t5x.md, and what needs T5X elsewhere."""
  path = ROOT / document
  if path.suffix == ".gin":
    return documents.header(path)
  found = documents.markdown(path)
  if document == "docs/t5x.md":
    return found
  return [
    step for step in found if step.mark == "t5x" or documents.T5X.search(step.text)
  ]


def main() -> int:
  """Runs the commands, writes the transcript and returns the exit code."""
  parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
  parser.add_argument("documents", nargs="*", default=DOCUMENTS)
  parser.add_argument("--output", help="the transcript, Markdown")
  options = parser.parse_args()
  found = importlib.util.find_spec("t5x")
  if found is None or found.origin is None:  # Folders of that name are no package.
    print(
      "error: T5X is not installed. docs/t5x.md says how to install it; where it lies in "
      "a folder of its own, name that: make t5x-check T5X=FOLDER.",
      file=sys.stderr,
    )
    return EXIT_USER_ERROR
  lines, failures = [HEADER, *_versions()], 0

  def say(*texts: str) -> None:
    lines.extend(texts)
    print(*texts, sep="\n", flush=True)

  say(f"- {time.strftime('%Y-%m-%d', time.gmtime())}")
  with tempfile.TemporaryDirectory() as work:
    folder, commands = (pathlib.Path(work) / name for name in ("tpv_jax", "commands"))
    stand_ins.clone(folder)
    commands.mkdir()
    runner = documents.Runner(folder, commands, brief=False, t5x=True)
    chosen = {
      name: [s for s in steps(name) if not runner.only_parsed(s)]
      for name in options.documents
    }
    every = [step for found in chosen.values() for step in found]
    written = {name for step in every for name in step.outputs}
    stand_ins.make(folder, "\n".join(step.text for step in every), left_out=written)
    with warm_python.commands(commands):
      for name, found in chosen.items():
        if found:
          say("", f"## {name}")
        for step in found:
          began = time.time()
          done = runner.run(step)
          if done is None:
            continue
          say("", "```", step.text.strip())
          say(f"exit code {done.returncode} after {time.time() - began:.0f} s")
          say(*_told(folder, step, done), "```")
          if done.returncode:
            failures += 1
            print(done.stdout[-2000:], done.stderr[-6000:], file=sys.stderr)
  say("", f"{len(every)} commands, {failures} failed.")
  if options.output:
    files.write_text(options.output, "\n".join(lines) + "\n")
  return int(failures > 0)


def _told(
  folder: pathlib.Path, step: documents.Step, done: subprocess.CompletedProcess
) -> Iterator[str]:
  """Yields what a command printed, and of T5X, which logs much, what it measured."""
  # A launcher that starts several processes prints their logs, too, behind [0], [1].
  parts = [re.match(r"(\[\d+\] )?(.*)", line) for line in done.stdout.splitlines()]
  yield from (part[2] for part in parts if not part[1])
  log = done.stderr + "\n".join(part[2] for part in parts if part[1] == "[0] ")
  logged = re.findall(r"\[(\d+)\] collection=training_eval/\S+ (.*loss=.*)", log)
  yield from (f"step {number}: {values}" for number, values in logged)
  if not documents.T5X.search(step.text):
    return
  for output in step.outputs:
    for path in sorted((folder / output).glob("inference_eval/*-metrics.jsonl")):
      yield f"{path.name}: {path.read_text().splitlines()[-1]}"
    for path in sorted((folder / output).glob("*-predict.jsonl-?????-of-?????")):
      rows = path.read_text().splitlines()
      yield f"{path.name}: {len(rows)} lines, first {json.loads(rows[0])}"


def _versions() -> Iterator[str]:
  commit = subprocess.run(
    ["git", "rev-parse", "HEAD"], cwd=ROOT, capture_output=True, text=True, check=True
  )
  yield f"- tpv_jax: commit {commit.stdout.strip()}"
  yield f"- python {platform.python_version()}"
  for name in ("jax", "flax", "optax", "orbax-checkpoint", "seqio", "tensorflow"):
    yield f"- {name} {importlib.metadata.version(name)}"


if __name__ == "__main__":
  sys.exit(main())

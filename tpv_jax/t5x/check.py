"""`make t5x-check`: trains, kills, resumes, evaluates and infers under real T5X.

Each step is a command as a user gives it, in a process of its own, on simulated CPU
devices. What came out is written as a transcript; a step that fails, or numbers that
should be equal and are not, end it with exit code 1. T5X is not imported here.
"""

import argparse
import contextlib
import dataclasses
import hashlib
import importlib.metadata
import json
import os
import pathlib
import platform
import re
import shlex
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from typing import Any

from tpv_jax import files
from tpv_jax.errors import UserError, run_command
from tpv_jax.vectors import sources

TASK = "sentiment"
STEPS = 100
PERIOD = 25
WORK = "WORK"
"""How the transcript names the temporary folder."""

PACKAGES = (
  *("jax", "flax", "optax", "orbax-checkpoint", "seqio", "tensorflow", "numpy"),
  *("gin-config", "clu"),
)


class Failed(Exception):
  """A step of the check did not do what it must."""


@dataclasses.dataclass
class Check:
  """One run of the check: its temporary folder, T5X's path and the transcript so far."""

  work: pathlib.Path
  t5x: str
  lines: list[str] = dataclasses.field(default_factory=list)

  def say(self, *lines: str) -> None:
    """Adds lines to the transcript and shows them."""
    for line in lines:
      shown = line.replace(str(self.work), WORK)
      self.lines.append(shown)
      print(shown, flush=True)

  def start(
    self, arguments: Sequence[str], devices: int, shown: bool = True
  ) -> subprocess.Popen:
    """Starts `python arguments`, its output in a file, and writes the command down."""
    environment = dict(os.environ, JAX_PLATFORMS="cpu")
    environment["PYTHONPATH"] = os.pathsep.join(
      filter(None, [self.t5x, os.environ.get("PYTHONPATH", "")])
    )
    environment["XLA_FLAGS"] = f"--xla_force_host_platform_device_count={devices}"
    if shown:
      self.say("```", "$ python " + " ".join(map(_quoted, arguments)))
    self.log = self.work / f"{len(self.lines)}{'' if shown else '_other'}.log"
    with open(self.log, "w") as log:
      return subprocess.Popen(
        [sys.executable, *arguments],
        env=environment,
        stdout=log,
        stderr=subprocess.STDOUT,
      )

  def run(
    self, arguments: Sequence[str], devices: int = 1, expected_code: int = 0
  ) -> str:
    """Runs a command to its end; returns what it printed."""
    began = time.time()
    code = self.start(arguments, devices).wait()
    text = self.log.read_text()
    self.say(f"exit code {code} after {time.time() - began:.0f} s")
    if code != expected_code:
      print("\n".join(text.splitlines()[-40:]), file=sys.stderr)
      raise Failed(f"exit code {code} instead of {expected_code}")
    return text

  def run_until(
    self, arguments: Sequence[str], path: pathlib.Path, devices: int
  ) -> None:
    """Runs a command and kills it (SIGKILL) as soon as `path` is there."""
    process = self.start(arguments, devices)
    while process.poll() is None and not path.exists():
      time.sleep(0.1)
    if process.poll() is not None:
      raise Failed(f"it ended with {process.returncode} before {path} was there")
    process.send_signal(signal.SIGKILL)
    process.wait()
    self.say(f"killed by SIGKILL when {path} was there", "```")

  def must(self, statement: str, holds: bool) -> None:
    """Writes down what was checked; ends the check where it does not hold."""
    self.say(f"- {'holds' if holds else 'FAILS'}: {statement}")
    if not holds:
      raise Failed(statement)


def main(argv: Sequence[str] | None = None) -> int:
  """Runs the check and writes its transcript; returns the exit code."""
  parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
  parser.add_argument("--t5x", default="", help="folder(s) with T5X, airio, jestimator")
  parser.add_argument("--output", required=True, help="the transcript, Markdown")
  parser.add_argument("--devices", type=int, nargs="+", default=[1, 8])
  parser.add_argument("--one_process", action="store_true", help="skip two processes")
  options = parser.parse_args(sys.argv[1:] if argv is None else argv)

  def body() -> int:
    with tempfile.TemporaryDirectory() as work:
      check = Check(pathlib.Path(work), options.t5x)
      try:
        _header(check)
        for devices in options.devices:
          _on(check, devices, others=devices == options.devices[0])
        if not options.one_process:
          _two_processes(check)
        _bad_input(check)
      except Failed as failure:
        check.say("```", f"**The check failed: {failure}**")
        return 1
      finally:
        files.write_text(options.output, "\n".join(check.lines) + "\n")
    return 0

  return run_command(body)


def _header(check: Check) -> None:
  versions = {"python": platform.python_version()}
  for name in PACKAGES:
    with contextlib.suppress(importlib.metadata.PackageNotFoundError):
      versions[name] = importlib.metadata.version(name)
  check.say(
    "# T5X check: a transcript",
    "",
    "Written by `make t5x-check` (tpv_jax.t5x.check), not edited. Commands ran with",
    "T5X on PYTHONPATH in the root, on simulated CPU devices. WORK is a temporary folder.",
    "",
    f"- date: {time.strftime('%Y-%m-%d', time.gmtime())}",
    f"- tpv_jax: {importlib.metadata.version('tpv_jax')}, "
    f"commit {_git('rev-parse', 'HEAD')}",
    *(f"- {name}: commit {commit}" for name, commit in _commits(check.t5x)),
    "- " + ", ".join(f"{name} {version}" for name, version in versions.items()),
    f"- backbone: embedded; task: {TASK}; {STEPS} steps of 16 examples, prompt of 8",
  )


def _commits(t5x: str) -> Iterator[tuple[str, str]]:
  """Yields T5X and the two packages it imports, each with the commit it is at."""
  for name in ("t5x", "airio", "jestimator"):
    for folder in [*filter(None, t5x.split(os.pathsep)), *sys.path]:
      if (pathlib.Path(folder or ".") / name).is_dir():
        yield name, _commit(pathlib.Path(folder or "."), name)
        break
    else:
      raise UserError(
        f"'{name}' is neither installed nor in T5X='{t5x}'. docs/t5x.md says how to "
        "install T5X and the two packages that it imports."
      )


def _commit(folder: pathlib.Path, name: str) -> str:
  for record in folder.glob(f"{name}-*.dist-info/direct_url.json"):
    found = json.loads(record.read_text()).get("vcs_info", {}).get("commit_id")
    if found:
      return found
  if (folder / ".git").exists():
    return _git("rev-parse", "HEAD", folder=folder)
  return "unknown (installed from a folder)"


def _git(*arguments: str, folder: pathlib.Path | None = None) -> str:
  done = subprocess.run(
    ["git", *arguments], cwd=folder, capture_output=True, text=True, check=False
  )
  return done.stdout.strip() or "unknown"


def _on(check: Check, devices: int, others: bool) -> None:
  """T5X on that many devices, several of them 2-way model-parallel too.

  With `others`, also what the standalone runner and `tpv` make of it.
  """
  work = check.work / f"on_{devices}"
  work.mkdir()
  parallel = "2" if devices > 1 else "1"
  check.say("", f"## {devices} device{'s' if devices > 1 else ''}", "")

  def train(name: str) -> list[str]:
    return [
      *("-m", "t5x.train", "--gin_file=gin_configs/t5x/train_embedded.gin"),
      f"--gin.TASK_NAME='{TASK}'",
      f"--gin.MODEL_DIR='{work / name}'",
      f"--gin.TRAIN_STEPS={STEPS}",
      f"--gin.EVAL_PERIOD={PERIOD}",
      f"--gin.MODEL_PARALLEL={parallel}",
      *(["--gin.MICROBATCHES=2"] if devices > 1 else []),
    ]

  check.say("### Train", "")
  _losses(check, check.run(train("whole"), devices))
  whole = _digests(check, work / "whole")

  check.say("", "### Train, kill, resume", "")
  middle = work / "killed" / f"checkpoint_{STEPS // 2}" / "commit_success.txt"
  check.run_until(train("killed"), middle, devices)
  _losses(check, check.run(train("killed"), devices))
  resumed = _digests(check, work / "killed")
  check.must(
    "the killed and resumed run ends with the bits of the other", resumed == whole
  )

  check.say("", "### Evaluate and infer", "")

  def evaluate(prompt: Sequence[str], output: str) -> float:
    check.run(
      [
        *("-m", "t5x.eval", "--gin_file=gin_configs/t5x/eval_embedded.gin"),
        *(f"--gin.TASK_NAME='{TASK}'", *prompt),
        f"--gin.OUTPUT_DIR='{work / output}'",
        f"--gin.MODEL_PARALLEL={parallel}",
      ],
      devices,
    )
    (path,) = (work / output / "inference_eval").glob("*-metrics.jsonl")
    line = path.read_text().strip()
    check.say(line, "```")
    return json.loads(line)["exact_match"]

  by_t5x = evaluate([f"--gin.PROMPT_PATH='{work / 'whole'}'"], "eval")
  check.run(
    [
      *("-m", "t5x.infer", "--gin_file=gin_configs/t5x/infer_embedded.gin"),
      *(f"--gin.TASK_NAME='{TASK}'", f"--gin.PROMPT_PATH='{work / 'whole'}'"),
      f"--gin.OUTPUT_DIR='{work / 'infer'}'",
      f"--gin.MODEL_PARALLEL={parallel}",
    ],
    devices,
  )
  (path,) = (work / "infer").glob("*-predict.jsonl-00000-of-00001")
  rows = [json.loads(line) for line in path.read_text().splitlines()]
  right = sum(
    row["prediction"] == row["inputs"]["targets_pretokenized"] for row in rows
  )
  check.say(
    f"{len(rows)} lines, {right} right; sha256 {_sha256(path)[:16]}",
    "first: " + json.dumps(rows[0]),
    "```",
  )
  check.must("inference and evaluation find as many right", right / len(rows) == by_t5x)

  if not others:
    return
  check.say("", "### The other runner, and tpv", "")
  by_own = _own_eval(check, work / "whole", work / "eval.json", devices)
  check.must("tpv_jax.eval gives T5X's prompt the same score", by_own == by_t5x)
  check.run(
    [
      *("-m", "tpv_jax.train", "--gin_file=gin_configs/runs/embedded.gin"),
      *(f"--gin.TASK_NAME='{TASK}'", f"--gin.RUN_DIR='{work / 'own'}'"),
      f"--gin.TRAIN_STEPS={STEPS}",
    ],
    devices,
  )
  check.say("```")
  own_by_t5x = evaluate([f"--gin.PROMPT_PATH='{work / 'own'}'"], "eval_own")
  own_by_own = _own_eval(check, work / "own", work / "eval_own.json", devices)
  check.must(
    "t5x.eval gives the other runner's prompt the same score", own_by_t5x == own_by_own
  )
  starts = [sources.load(work / name, "initial") for name in ("whole", "own")]
  check.must(
    "both runs started from the same initial prompt on the same backbone",
    len({s.provenance.initial_digest for s in starts}) == 1
    and len({s.provenance.backbone_fingerprint for s in starts}) == 1,
  )
  for command in (
    ["diff", work / "whole", "-o", work / "a.safetensors"],
    ["diff", work / "own", "-o", work / "b.safetensors"],
    [
      "sum",
      work / "a.safetensors",
      work / "b.safetensors",
      "-o",
      work / "s.safetensors",
    ],
    ["cosine", work / "a.safetensors", work / "b.safetensors"],
  ):
    text = check.run(["-m", "tpv_jax.vectors.cli", *map(str, command)], devices)
    check.say(*text.strip().splitlines(), "```")
  vector = [
    f"--gin.VECTOR='{work / 's.safetensors'}'",
    f"--gin.INITIAL='{work / 'whole'}'",
    "--gin.COEFFICIENT=0.5",
  ]
  mean = evaluate(vector, "eval_sum")
  check.must(
    "half the sum of both vectors on the initial prompt does the task", mean > 0.9
  )


def _two_processes(check: Check) -> None:
  """Two processes of two devices, each parameter cut over both processes."""
  check.say("", "## Two processes of two devices, parameters cut over all four", "")

  def train(name: str, steps: int) -> dict[str, Any]:
    with socket.socket() as free:
      free.bind(("localhost", 0))
      port = free.getsockname()[1]
    arguments = [
      *("-m", "t5x.train", "--gin_file=gin_configs/t5x/train_embedded.gin"),
      *(f"--gin.TASK_NAME='{TASK}'", f"--gin.MODEL_DIR='{check.work / name}'"),
      *(f"--gin.TRAIN_STEPS={steps}", "--gin.EVAL_PERIOD=20", "--gin.MODEL_PARALLEL=4"),
      *("--multiprocess_gpu", "--process_count=2"),
      f"--coordinator_address=localhost:{port}",
    ]
    first = check.start([*arguments, "--process_index=0"], devices=2)
    log = check.log
    second = check.start([*arguments, "--process_index=1"], devices=2, shown=False)
    codes = first.wait(), second.wait()
    check.say(f"exit codes {codes} (the other process: --process_index=1)")
    if codes != (0, 0):
      print("\n".join(log.read_text().splitlines()[-40:]), file=sys.stderr)
      raise Failed(f"exit codes {codes}")
    _losses(check, log.read_text())
    return _digests(check, check.work / name)

  whole = train("two_whole", 40)
  train("two_resumed", 20)
  check.must(
    "the resumed run ends with the bits of the other",
    train("two_resumed", 40) == whole,
  )


def _own_eval(
  check: Check, run: pathlib.Path, output: pathlib.Path, devices: int
) -> float:
  check.run(
    [
      *("-m", "tpv_jax.eval", "--gin_file=gin_configs/runs/eval_embedded.gin"),
      *(f"--gin.TASK_NAMES=['{TASK}']", f"--gin.PROMPT_PATH='{run}'"),
      f"--gin.OUTPUT='{output}'",
    ],
    devices,
  )
  score = json.loads(output.read_text())["results"][0]["exact_match"]
  check.say(f"exact_match {score}", "```")
  return score


def _bad_input(check: Check) -> None:
  """One clear line, before the first step."""
  check.say("", "## Bad input", "")
  train = [
    *("-m", "t5x.train", "--gin_file=gin_configs/t5x/train_embedded.gin"),
    f"--gin.TASK_NAME='{TASK}'",
  ]
  one = f"--gin.MODEL_DIR='{check.work / 'on_1' / 'whole'}'"
  new = f"--gin.MODEL_DIR='{check.work / 'bad'}'"
  for arguments in (
    [one, "--gin.PROMPT_LENGTH=9"],
    [new, "--gin.MODEL_PARALLEL=3"],
    [new, "--gin.BACKBONE='nothing'"],
    [new, "--gin.TASK_NAME='sentimen'"],
  ):
    text = check.run([*train, *arguments], expected_code=2)
    line = text.strip().splitlines()[-1]
    check.say(line, "```")
    check.must("it is one line", line.startswith("error: ") and "Traceback" not in text)


def _losses(check: Check, text: str) -> None:
  """Writes down the validation metrics that T5X logged, and closes the block."""
  found = re.findall(r"\[(\d+)\] collection=training_eval/\S+ (.*loss=.*)", text)
  check.say(*(f"step {step}: {values}" for step, values in found), "```")


def _digests(check: Check, run: pathlib.Path) -> dict[str, Any]:
  """Returns, and writes down, the digests of the prompts of a run."""
  found = {path.name: _sha256(path) for path in sorted(run.glob("*.safetensors"))}
  check.say("", *(f"- {name}: sha256 {digest}" for name, digest in found.items()))
  return found


def _quoted(argument: str) -> str:
  return f'"{argument}"' if "'" in argument else shlex.quote(argument)


def _sha256(path: pathlib.Path) -> str:
  return hashlib.sha256(path.read_bytes()).hexdigest()


if __name__ == "__main__":
  sys.exit(main())

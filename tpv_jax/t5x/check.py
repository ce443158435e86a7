"""`make t5x-check`: trains, kills, resumes, evaluates and infers under real T5X.

All of it with a plain prompt and with EPT, and banks of each. Each step is a command as
a user gives it, in a process of its own, on simulated CPU devices. What came out is
written as a transcript; a step that fails, or numbers that should be equal and are not,
end it with exit code 1. T5X is not imported here.
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

from tpv_jax import files, identity
from tpv_jax.errors import UserError, run_command
from tpv_jax.vectors import sources

TASK = "sentiment"
STEPS = 100
PERIOD = 25
PROMPTS = {
  "plain": (),
  "ept": (
    "--gin_file=gin_configs/prompts/ept.gin",
    *("--gin.PROMPT_LENGTH=32", "--gin.SHORT_LENGTH=8", "--gin.SOURCE_LENGTH=24"),
  ),
}
"""What chooses the prompt, after the embedded run files, which have a plain one."""

NEAR = 1e-3
"""By so much a value of a prompt may differ that a bank and a run of its own trained: they
take sums in another order, and AdamW carries that on while values move by several units."""

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
          check.say("", f"## {devices} device{'s' if devices > 1 else ''}")
          for prompt in PROMPTS:
            part = Part(check, devices, prompt)
            _train_and_resume(part)
            score = _evaluate_and_infer(part)
            if (prompt == "plain") == (devices == options.devices[0]):
              _bank(part)
            if devices == options.devices[0]:
              _other_runner(part, score)
              _vectors(part)
              if prompt == "ept":
                _folded(part, score)
        if not options.one_process:
          _two_processes(check)
        _bad_input(check, options.devices[0])
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
    f"- backbone: embedded; task: {TASK}; {STEPS} steps of 16 examples",
    "- plain: a prompt of 8 tokens; ept: 8 short-prompt tokens, with all parts, at the",
    "  budget of 32 plain ones; a bank: sentiment and topic, each from two initial prompts",
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


@dataclasses.dataclass
class Part:
  """The commands that are run with one of `PROMPTS` on some devices.

  On several devices each parameter is cut in two, and each batch in two micro-batches.
  """

  check: Check
  devices: int
  prompt: str

  def __post_init__(self) -> None:
    self.work = self.check.work / f"{self.prompt}_on_{self.devices}"
    self.work.mkdir()
    self.parallel = f"--gin.MODEL_PARALLEL={2 if self.devices > 1 else 1}"

  def title(self, text: str) -> None:
    self.check.say("", f"### {text} ({self.prompt})", "")

  def run(self, *arguments: Any) -> str:
    return self.check.run(list(map(str, arguments)), self.devices)

  def train(self, name: str, tasks: Sequence[str] = ()) -> list[str]:
    """Returns the arguments that train with T5X in the folder `name`.

    With `tasks` a bank of them, each with two initial prompts.
    """
    file = "bank_embedded.gin" if tasks else "train_embedded.gin"
    return [
      *("-m", "t5x.train", f"--gin_file=gin_configs/t5x/{file}"),
      *PROMPTS[self.prompt],
      *(
        [f"--gin.TASK_NAMES={list(tasks)}", "--gin.INITIAL_SEEDS=[0, 1]"]
        if tasks
        else [f"--gin.TASK_NAME='{TASK}'"]
      ),
      f"--gin.MODEL_DIR='{self.work / name}'",
      f"--gin.TRAIN_STEPS={STEPS}",
      f"--gin.EVAL_PERIOD={PERIOD}",
      self.parallel,
      *(["--gin.MICROBATCHES=2"] if self.devices > 1 else []),
    ]

  def evaluate(self, output: str, *subject: str) -> float:
    """Returns the exact match that `t5x.eval` finds for a subject (gin bindings)."""
    self.run(
      *("-m", "t5x.eval", "--gin_file=gin_configs/t5x/eval_embedded.gin"),
      *(f"--gin.TASK_NAME='{TASK}'", *subject),
      f"--gin.OUTPUT_DIR='{self.work / output}'",
      self.parallel,
    )
    (path,) = (self.work / output / "inference_eval").glob("*-metrics.jsonl")
    line = path.read_text().strip()
    self.check.say(line, "```")
    return json.loads(line)["exact_match"]

  def evaluate_own(self, output: str, *subject: str) -> float:
    """Returns the exact match that `tpv_jax.eval` finds for a subject."""
    path = self.work / f"{output}.json"
    self.run(
      *("-m", "tpv_jax.eval", "--gin_file=gin_configs/runs/eval_embedded.gin"),
      *(f"--gin.TASK_NAMES=['{TASK}']", *subject, f"--gin.OUTPUT='{path}'"),
    )
    score = json.loads(path.read_text())["results"][0]["exact_match"]
    self.check.say(f"exact_match {score}", "```")
    return score

  def tpv(self, *arguments: Any) -> None:
    text = self.run("-m", "tpv_jax.cli", *arguments)
    self.check.say(*text.strip().splitlines(), "```")

  def path(self, name: str) -> str:
    """Returns the binding that makes a folder or file of this part the subject."""
    return f"--gin.PROMPT_PATH='{self.work / name}'"


def _train_and_resume(part: Part) -> None:
  """An unbroken run, and one that is killed and resumed."""
  check = part.check
  part.title("Train")
  _losses(check, part.run(*part.train("whole")))
  whole = _digests(check, part.work / "whole")
  part.title("Train, kill, resume")
  middle = part.work / "killed" / f"checkpoint_{STEPS // 2}" / "commit_success.txt"
  check.run_until(part.train("killed"), middle, part.devices)
  _losses(check, part.run(*part.train("killed")))
  resumed = _digests(check, part.work / "killed")
  check.must(
    "the killed and resumed run ends with the bits of the other", resumed == whole
  )


def _bank(part: Part) -> None:
  """An unbroken bank, and one that is killed and resumed; a prompt of it against a run."""
  check, tasks, prompts = part.check, (TASK, "topic"), "*/*.safetensors"
  part.title("A bank of four prompts")
  _losses(check, part.run(*part.train("bank", tasks)))
  whole = _digests(check, part.work / "bank", prompts)
  alone, its = (
    sources.load(part.work / name, "last").leaves
    for name in ("whole", "bank/sentiment-0")
  )
  difference = max(float(abs(its[leaf] - alone[leaf]).max()) for leaf in alone)
  check.must(
    f"the values of its first prompt differ by at most {NEAR} from those of the run that "
    f"trained it alone (found: {difference:.1e})",
    difference <= NEAR,
  )
  part.title("A bank, killed and resumed")
  name = "bank_killed"
  middle = part.work / name / f"checkpoint_{STEPS // 2}" / "commit_success.txt"
  check.run_until(part.train(name, tasks), middle, part.devices)
  _losses(check, part.run(*part.train(name, tasks)))
  resumed = _digests(check, part.work / name, prompts)
  check.must(
    "the killed and resumed bank ends with the bits of the other", resumed == whole
  )
  part.title("A prompt of the bank")
  folder = "bank/sentiment-1"
  part.tpv("diff", part.work / folder, "-o", part.work / "of_bank.safetensors")
  score = part.evaluate("eval_bank", part.path(folder))
  by_own = part.evaluate_own("eval_bank", part.path(folder))
  check.must("both runners give it the same score", score == by_own)
  check.must("it does the task", score > 0.9)
  _refused(check, part.train("bank", tasks[::-1]), part.devices)


def _evaluate_and_infer(part: Part) -> float:
  """Both with the unbroken run's prompt, folded; returns its exact match."""
  check = part.check
  part.title("Evaluate and infer")
  score = part.evaluate("eval", part.path("whole"))
  part.run(
    *("-m", "t5x.infer", "--gin_file=gin_configs/t5x/infer_embedded.gin"),
    *(f"--gin.TASK_NAME='{TASK}'", part.path("whole")),
    f"--gin.OUTPUT_DIR='{part.work / 'infer'}'",
    part.parallel,
  )
  (path,) = (part.work / "infer").glob("*-predict.jsonl-00000-of-00001")
  rows = [json.loads(line) for line in path.read_text().splitlines()]
  right = sum(
    row["prediction"] == row["inputs"]["targets_pretokenized"] for row in rows
  )
  check.say(
    f"{len(rows)} lines, {right} right; sha256 {_sha256(path)[:16]}",
    "first: " + json.dumps(rows[0]),
    "```",
  )
  check.must("inference and evaluation find as many right", right / len(rows) == score)
  return score


def _other_runner(part: Part, score: float) -> None:
  """The standalone runner: evaluates T5X's prompt, and trains one that T5X evaluates."""
  check = part.check
  part.title("The other runner")
  by_own = part.evaluate_own("eval_whole", part.path("whole"))
  check.must("tpv_jax.eval gives T5X's prompt the same score", by_own == score)
  part.run(
    *("-m", "tpv_jax.train", "--gin_file=gin_configs/runs/embedded.gin"),
    *PROMPTS[part.prompt],
    *(f"--gin.TASK_NAME='{TASK}'", f"--gin.RUN_DIR='{part.work / 'own'}'"),
    f"--gin.TRAIN_STEPS={STEPS}",
  )
  check.say("```")
  own_by_t5x = part.evaluate("eval_own", part.path("own"))
  own_by_own = part.evaluate_own("eval_own", part.path("own"))
  check.must(
    "t5x.eval gives the other runner's prompt the same score", own_by_t5x == own_by_own
  )
  starts = [sources.load(part.work / name, "initial") for name in ("whole", "own")]
  check.must(
    "both runs started from the same initial prompt on the same backbone",
    len({s.provenance.initial_digest for s in starts}) == 1
    and len({s.provenance.backbone_fingerprint for s in starts}) == 1,
  )


def _vectors(part: Part) -> None:
  """The vectors of both runners' prompts, added and applied."""
  part.title("Vectors")
  a, b, both = (part.work / f"{name}.safetensors" for name in ("a", "b", "sum"))
  part.tpv("diff", part.work / "whole", "-o", a)
  part.tpv("diff", part.work / "own", "-o", b)
  part.tpv("sum", a, b, "-o", both)
  part.tpv("cosine", a, b)
  for coefficient in (0.5, 0.175):
    applied = [
      f"--gin.VECTOR='{both}'",
      f"--gin.INITIAL='{part.work / 'whole'}'",
      f"--gin.COEFFICIENT={coefficient}",
    ]
    score = part.evaluate(f"eval_{coefficient}", *applied)
    by_own = part.evaluate_own(f"eval_{coefficient}", *applied)
    part.check.must("both runners give the applied sum the same score", score == by_own)
    if coefficient == 0.5:
      part.check.must("the mean of both vectors does the task", score > 0.9)


def _folded(part: Part, score: float) -> None:
  """The folded form as a file of its own."""
  part.title("Fold")
  path = part.work / "folded.safetensors"
  part.tpv("fold", part.work / "whole", "-o", path)
  used = sources.load(part.work / "eval" / "prompt.safetensors")
  part.check.must(
    "t5x.eval of the run used these two arrays, bit for bit",
    identity.prompt_digest(sources.load(path).leaves)
    == identity.prompt_digest(used.leaves),
  )
  folded = part.evaluate("eval_folded", part.path(path.name))
  part.check.must("t5x.eval gives the folded file the same score", folded == score)


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


def _bad_input(check: Check, first: int) -> None:
  """One clear line, before the first step; runs on `first` devices are there."""
  check.say("", "## Bad input", "")
  train = [
    *("-m", "t5x.train", "--gin_file=gin_configs/t5x/train_embedded.gin"),
    f"--gin.TASK_NAME='{TASK}'",
  ]
  evaluate = [
    *("-m", "t5x.eval", "--gin_file=gin_configs/t5x/eval_embedded.gin"),
    *(f"--gin.TASK_NAME='{TASK}'", f"--gin.OUTPUT_DIR='{check.work / 'bad'}'"),
  ]
  plain, ept = (check.work / f"{prompt}_on_{first}" for prompt in ("plain", "ept"))
  new = f"--gin.MODEL_DIR='{check.work / 'bad'}'"
  for arguments in (
    [*train, f"--gin.MODEL_DIR='{plain / 'whole'}'", "--gin.PROMPT_LENGTH=9"],
    [*train, f"--gin.MODEL_DIR='{ept / 'whole'}'"],
    [*train, *PROMPTS["ept"], new, "--gin.SOURCE_LENGTH=16"],
    [*train, new, "--gin.MODEL_PARALLEL=3"],
    [*train, new, "--gin.BACKBONE='nothing'"],
    [*train, new, "--gin.TASK_NAME='sentimen'"],
    [*evaluate, f"--gin.PROMPT_PATH='{ept / 'a.safetensors'}'"],
  ):
    _refused(check, arguments)


def _refused(check: Check, arguments: Sequence[str], devices: int = 1) -> None:
  text = check.run(arguments, devices, expected_code=2)
  line = text.strip().splitlines()[-1]
  check.say(line, "```")
  check.must("it is one line", line.startswith("error: ") and "Traceback" not in text)


def _losses(check: Check, text: str) -> None:
  """Writes down the validation metrics that T5X logged, and closes the block."""
  found = re.findall(r"\[(\d+)\] collection=training_eval/\S+ (.*loss=.*)", text)
  if not found:
    raise Failed("T5X logged no validation")
  check.say(*(f"step {step}: {values}" for step, values in found), "```")


def _digests(
  check: Check, run: pathlib.Path, pattern: str = "*.safetensors"
) -> dict[str, str]:
  """Returns, and writes down, the digests of the prompts of a run, by default of one."""
  found = {
    str(path.relative_to(run)): _sha256(path) for path in sorted(run.glob(pattern))
  }
  check.say("", *(f"- {name}: sha256 {digest}" for name, digest in found.items()))
  return found


def _quoted(argument: str) -> str:
  return f'"{argument}"' if "'" in argument else shlex.quote(argument)


def _sha256(path: pathlib.Path) -> str:
  return hashlib.sha256(path.read_bytes()).hexdigest()


if __name__ == "__main__":
  sys.exit(main())

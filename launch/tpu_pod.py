"""Creates a Cloud TPU pod, runs a command on all its workers, and deletes it.

  launch/tpu_pod.sh [--dry-run] ACTION --name=NAME --zone=ZONE [options] [-- COMMAND...]

actions (--help after one shows its options):
  create   requests a pod (a queued resource) and waits until it is ready
  install  copies this folder to all workers and installs it there, with T5X, on Python 3.12
  run      runs COMMAND on all workers, waits for its end and returns its exit code
  keep     creates, installs and runs; when the pod is lost, deletes it and does so again:
           COMMAND then continues from its checkpoints
  status   shows the state of the pod and of each worker's job
  watch    follows the log of one worker
  logs     copies the logs of all workers here
  fetch    copies a file or folder of one worker here
  stop     stops the job: SIGTERM, and SIGKILL after 60 s
  delete   deletes the pod and its request

examples:
  launch/tpu_pod.sh keep --name=tpv --zone=us-west4-a --type=v5litepod-16 --spot -- \\
    python -m t5x.train --gin_file=... --gin.MODEL_DIR='"gs://bucket/runs/mine"'
  launch/tpu_pod.sh run --name=tpv --zone=us-west4-a -- \\
    python -m tpv_jax.t5x.eval --gin_file=... --gin.OUTPUT_DIR='"gs://bucket/runs/eval"'
  launch/tpu_pod.sh delete --name=tpv --zone=us-west4-a

COMMAND runs detached, in ~/tpv_jax of each worker. It goes on when this script ends or the
laptop sleeps, and the same `run` or `keep` waits for it again. Only `keep`, while it runs,
replaces a lost pod, and a pod's disks are lost with it: keep inputs and outputs on gs://.
`python -m t5x.train`, `python -m tpv_jax.t5x...` and the verbs of tpv that train or evaluate
get --multiprocess_gpu, which joins the workers; in a script of your own, write it there.

A pod costs money until it is deleted. --dry-run prints the commands and runs none.
NEVER RUN ON A TPU SO FAR: tested against a stub of gcloud that runs the workers' commands.
"""

from __future__ import annotations

import argparse
import dataclasses
import hashlib
import itertools
import os
import pathlib
import re
import shlex
import signal
import subprocess
import sys
import tarfile
import tempfile
import time
from collections.abc import Callable, Sequence
from typing import NoReturn, TypeVar

ROOT = pathlib.Path(__file__).resolve().parent.parent
SCRIPT = "launch/tpu_pod.sh"
RUNTIMES = {
  "v5litepod": "v2-alpha-tpuv5-lite",
  "v5p": "v2-alpha-tpuv5",
  "v6e": "v2-alpha-tpuv6e",
  **dict.fromkeys(("v2", "v3", "v4"), "tpu-ubuntu2204-base"),
}
# The states in which a pod is lost, so that `keep` may delete it. Where gcloud fails for any
# other reason (no network, no login), the pod may be running a job. A request that is not
# found was deleted by someone: Google itself keeps those that it ends.
LOST = {
  *("SUSPENDING", "SUSPENDED", "FAILED"),  # the request
  *("PREEMPTED", "TERMINATED"),  # the pod
  "ACTIVE, NOT_FOUND",  # the pod of an active request
}
# Attempts at a step that does not reach all workers; in each of them, gcloud itself tries to
# connect up to ten times.
TRIES = 5
# How many times in a row a job must be seen to have failed. When a pod is preempted its
# processes may end, with any exit code, before its state shows it.
PATIENCE = 3
# The verbs of tpv that take the flags of several processes.
VERBS = (
  *("train", "bank", "eval", "infer"),
  *("study", "few-shot", "merging", "moving", "ablation", "merge-by-data"),
)
SIGTERM_CODE = 128 + signal.SIGTERM
T = TypeVar("T")


class Failed(Exception):
  """An error that ends the script with an exit code."""

  def __init__(self, message: str, code: int = 1):
    super().__init__(message)
    self.code = code


class Lost(Exception):
  """The pod is lost; the message is its state and why, if gcloud says so."""


class Interrupted(Exception):
  """The job was killed by something other than itself or `stop`; the pod is alive."""


@dataclasses.dataclass(frozen=True)
class State:
  """The state of a pod; `word` is empty where gcloud failed, and `reason` is its error."""

  word: str
  kind: str = ""
  workers: int = 0
  reason: str = ""


@dataclasses.dataclass(frozen=True)
class Answer:
  """A worker's line about its newest job (see tpu_worker.sh)."""

  host: str
  job: str
  state: str
  code: int

  @property
  def is_well(self) -> bool:
    return self.state == "running" or (self.state, self.code) == ("exit", 0)

  @property
  def was_interrupted(self) -> bool:
    return self.state in ("terminated", "vanished") or self.code == SIGTERM_CODE


def last_line(text: str) -> str:
  return ([line for line in text.splitlines() if line.strip()] or ["no message"])[-1]


@dataclasses.dataclass
class Pod:
  """A pod and how to reach it; `look` sets the number of its workers."""

  name: str
  place: list[str]  # --zone and --project
  access: list[str]  # how ssh and scp reach the workers
  poll: float = 30
  dry_run: bool = False
  workers: int = 1

  def say(self, message: str) -> None:
    if not self.dry_run:
      print(time.strftime("%H:%M:%S"), message, file=sys.stderr, flush=True)

  def gcloud(self, *words: str, live: bool = False) -> subprocess.CompletedProcess[str]:
    """Runs `gcloud compute tpus`; its output is shown (`live`) or in the result."""
    command = ["gcloud", "compute", "tpus", *words, *self.place, "--quiet"]
    if self.dry_run:
      print(shlex.join(command))
      return subprocess.CompletedProcess(command, 0, "", "")
    try:
      result = subprocess.run(
        command,
        stdin=subprocess.DEVNULL,
        stdout=None if live else subprocess.PIPE,
        stderr=None if live else subprocess.PIPE,
        text=True,
        errors="replace",
        check=False,
      )
    except FileNotFoundError:
      raise Failed(
        "There is no gcloud here. Install it: https://cloud.google.com/sdk"
      ) from None
    return result

  def ssh(
    self, worker: str, command: str, live: bool = False
  ) -> subprocess.CompletedProcess[str]:
    flags = ["--ssh-flag=-oConnectTimeout=20", "--ssh-flag=-oServerAliveInterval=15"]
    where = ["--node=all", f"--worker={worker}", "--batch-size=all"]
    return self.gcloud(
      *("queued-resources", "ssh", self.name, *where, *self.access, *flags),
      f"--command={command}",
      live=live,
    )

  def scp(self, worker: str, *paths: str) -> str | None:
    """Copies and returns 'copied', or None if that failed.

    gcloud exits with 0 where it could not prepare the pod, and copied nothing.
    """
    flags = ["--scp-flag=-oConnectTimeout=20", "--scp-flag=-oServerAliveInterval=15"]
    nodes = "all" if worker == "all" else "0"
    where = [f"--node={nodes}", f"--worker={worker}", "--batch-size=all"]
    result = self.gcloud(
      *("queued-resources", "scp", "--recurse", *paths, *where, *self.access, *flags)
    )
    if result.returncode or "Could not prepare all" in result.stderr:
      self.say(f"gcloud could not copy: {last_line(result.stderr)}")
      return None
    return "copied"

  def look(self) -> State:
    """Returns the state of the request or, if that is ACTIVE, of the pod itself."""
    described = self.gcloud(
      *("queued-resources", "describe", self.name),
      "--format=value(state.state,tpu.nodeSpec[0].node.acceleratorType.basename(),"
      "state.failedData.error.message)",
    )
    if self.dry_run:
      return State("READY", workers=1)
    if described.returncode:
      return _error_state(described.stderr)
    word, kind, reason = [*described.stdout.split("\t", 2), "", ""][:3]
    state = State(word.strip(), kind.strip(), 0, " ".join(reason.split()))
    if state.word != "ACTIVE":
      return state
    node = self.gcloud(
      "tpu-vm", "describe", self.name, "--format=value(state,networkEndpoints.len())"
    )
    if node.returncode:
      untold = _error_state(node.stderr)
      return dataclasses.replace(untold, word=untold.word and f"ACTIVE, {untold.word}")
    word, count = [*node.stdout.split(), "", ""][:2]
    self.workers = int(count or 0) or self.workers
    return dataclasses.replace(state, word=word, workers=self.workers)

  def check_alive(self, state: State | None = None) -> State:
    """Returns the state; raises Lost if the pod is lost, Failed if someone deleted it."""
    state = state or self.look()
    if state.word == "NOT_FOUND":
      raise Failed(
        f"There is no {self.name}, or no longer. Request one by `create` or `keep`."
      )
    if state.word in LOST:
      raise Lost(f"{state.word} {state.reason}".strip())
    if state.word == "DELETING":
      raise Failed(f"{self.name} is being deleted.")
    if not state.word:
      self.say(f"the state of {self.name} is unknown, asking again: {state.reason}")
    return state

  def insist(self, what: str, attempt: Callable[[], T | None]) -> T:
    """Returns the first result of `attempt`, called up to TRIES times on a living pod."""
    for _ in range(TRIES):
      result = attempt()
      if result is not None:
        return result
      state = self.check_alive()
      self.say(f"{self.name} is {state.word or 'in an unknown state'}; {what} again")
      time.sleep(self.poll)
    raise Failed(
      f"{what} failed {TRIES} times (see above). To reach several workers, gcloud needs "
      "your key in the agent: ssh-add ~/.ssh/google_compute_engine"
    )

  def ask(self, *words: str) -> dict[str, Answer]:
    """Runs `tpu_worker.sh WORDS` on all workers; returns the answers of those reached.

    Callers count them: gcloud exits with 0 even where it reached no worker.
    """
    result = self.ssh("all", shlex.join(["bash", "tpu_worker.sh", *words]))
    found = re.findall(
      r"^tpv-worker (\S+) (\S+) (\w+) (\d+)$", result.stdout, re.MULTILINE
    )
    answers = {
      host: Answer(host, job, state, int(code)) for host, job, state, code in found
    }
    if len(answers) < self.workers and not self.dry_run:
      told = f": {last_line(result.stderr)}" if result.stderr.strip() else ""
      self.say(f"{len(answers)} of {self.workers} workers answered{told}")
    return answers

  def ask_all(self, *words: str) -> dict[str, Answer]:
    def attempt() -> dict[str, Answer] | None:
      answers = self.ask(*words)
      return answers if len(answers) >= self.workers or self.dry_run else None

    return self.insist(f"asking the workers ({words[0]})", attempt)

  def create(self, kind: str, flags: Sequence[str]) -> None:
    """Returns when the pod is ready; one that exists or was requested is used."""
    request = [
      *("queued-resources", "create", self.name, f"--node-id={self.name}"),
      *(f"--accelerator-type={kind}", *flags),
    ]
    if self.dry_run:
      self.gcloud(*request)
      self.look()
      return
    asked, failed, told = False, 0, State("")
    while True:
      state = self.look()
      if state.word == "NOT_FOUND" and not asked and not told.word:
        self.say(f"requesting {self.name}, a {kind}")
        failed, asked = self.gcloud(*request, live=True).returncode, True
        continue  # Also if gcloud failed: its request may have arrived.
      if state.word == "NOT_FOUND" and failed:
        raise Failed(f"{self.name} was not created (see above).", failed)
      if state.word == "FAILED" and asked:
        raise Failed(
          f"The request for {self.name} failed: {state.reason or 'no reason'}."
        )
      if state.kind not in ("", kind):
        raise Failed(
          f"{self.name} exists and is a {state.kind}, not a {kind}. Choose another --name, "
          "or delete it."
        )
      self.check_alive(state)
      if state.word == "READY":
        self.say(f"{self.name} is READY, with {state.workers} workers")
        return
      if state.word and state != told:
        self.say(f"waiting for {self.name}: {state.word}")
        told = state
      time.sleep(self.poll)

  def connect(self) -> None:
    """Copies tpu_worker.sh to the workers of a living pod."""
    if self.check_alive().word != "READY":
      self.insist("looking", lambda: self.look().word == "READY" or None)
    script = str(ROOT / "launch" / "tpu_worker.sh")
    self.insist(
      "copying to the workers", lambda: self.scp("all", script, f"{self.name}:")
    )

  def running(self, command: Sequence[str]) -> tuple[str | None, bool]:
    """Returns the job that runs `command`, if any, and whether it has ended with 0."""
    answers = self.ask_all("status").values()
    jobs = {answer.job for answer in answers if answer.state == "running"}
    if any(job.startswith("install-") for job in jobs):
      self.say("stopping an unfinished installation")
      self.ask_all("stop")
      return None, False
    own = _digest(command)
    if any(not job.startswith(own) for job in jobs) or len(jobs) > 1:
      raise Failed(f"{self.name} runs another command. Wait for it, or stop it first.")
    done = [answer.job.startswith(own) and answer.is_well for answer in answers]
    return min(jobs, default=None), bool(done) and all(done) and not jobs

  def new_job(self, kind: str) -> str:
    return f"{kind}-{'TIME' if self.dry_run else time.time_ns()}"

  def start(self, command: Sequence[str], job: str | None = None) -> str:
    """Starts `command` as `job` on the workers that have not started it; returns the job."""
    job = job or self.new_job(_digest(command))
    for answer in self.ask_all("start", job, *command).values():
      if answer.job != job:
        raise Failed(f"{answer.host} did not start the command: it has {answer.job}.")
    return job

  def wait(self, job: str) -> int:
    """Returns the exit code of a job when all workers, or one with an error, have ended.

    After an error the others are stopped. Raises Lost if the pod was lost meanwhile.
    """
    told = None
    bad_looks = 0
    while not self.dry_run:
      answers = self.ask("status")
      for answer in answers.values():
        if answer.job != job:
          raise Failed(f"{answer.host} has another job now: {answer.job}.")
      states = [answer.state for answer in answers.values()]
      bad = [answer for answer in answers.values() if not answer.is_well]
      complete = len(answers) >= self.workers
      if complete and not bad and "running" not in states:
        return 0
      if bad or not complete:
        self.check_alive()
      now = ", ".join(f"{states.count(word)} {word}" for word in sorted(set(states)))
      if now != told:
        self.say(f"{self.workers} workers: {now or 'none answers'}")
        told = now
      bad_looks += bool(bad)
      if "stopped" in states or bad_looks >= PATIENCE:
        return self._end(bad, complete)
      time.sleep(self.poll)
    return 0

  def _end(self, bad: Sequence[Answer], complete: bool) -> int:
    ends = ", ".join(f"{one.host} {one.state} {one.code}" for one in bad)
    self.say(f"the job has ended: {ends}; stopping the other workers")
    self.ask("stop")
    if any(one.state == "stopped" for one in bad):
      raise Failed("The job was stopped; the same command continues it.", SIGTERM_CODE)
    # One worker's SIGTERM ends the job on all of them, and a worker that is away may have
    # taken the others with it.
    if not complete or any(one.was_interrupted for one in bad):
      raise Interrupted(ends)
    number = re.search(r"-w-(\d+)$", bad[0].host)
    log = self.ssh(number[1] if number else "0", "tail -n 30 tpv_pod/log").stdout
    self.say(f"the end of the log of {bad[0].host}:\n{log}")
    return bad[0].code or 1

  def install(self, extras: str) -> None:
    with tempfile.TemporaryDirectory() as folder:
      if self.dry_run:
        bundle = pathlib.Path(folder).parent / "tpv_jax-DIGEST.tar.gz"
      else:
        bundle = pack(pathlib.Path(folder))
        size = bundle.stat().st_size / 1e6
        self.say(
          f"copying {ROOT} ({size:.1f} MB, without ignored files) and installing it"
        )
      self.insist(
        "copying to the workers",
        lambda: self.scp("all", str(bundle), f"{self.name}:"),
      )
    command = ["bash", "../tpu_worker.sh", "install", bundle.name, extras]
    code = self.wait(self.start(command, self.new_job("install")))
    if code:
      raise Failed("The installation failed (see above).", code)
    self.say("installed")

  def run(self, command: Sequence[str], extras: str = "") -> int:
    """Returns the command's exit code; if it is running already, only waits for it.

    With `extras`, installs first, and does nothing if the command has ended with 0.
    """
    self.connect()
    job, done = self.running(command)
    if done and extras:
      self.say("the command has already ended with 0; `run` would start it again")
      return 0
    if job:
      self.say("the command is running already; waiting for its end")
    elif extras:
      self.install(extras)
    return self.wait(self.start(command, job))

  def delete(self) -> None:
    for _ in range(TRIES):
      self.gcloud("queued-resources", "delete", self.name, "--force", live=True)
      if self.dry_run or self.look().word == "NOT_FOUND":
        self.say(f"{self.name} is deleted")
        return
      time.sleep(self.poll)
    raise Failed(
      f"{self.name} could not be deleted (see above), and still costs money."
    )

  def keep(
    self,
    kind: str,
    flags: Sequence[str],
    extras: str,
    most: int,
    command: Sequence[str],
  ) -> int:
    interrupted: Interrupted | None = None
    for attempt in range(1, most + 1):
      try:
        self.create(kind, flags)
        if interrupted:
          self.ask_all("stop")  # What is left of the job on workers that were away.
        return self.run(command, extras)
      except Lost as lost:
        interrupted = None
        self.say(f"attempt {attempt} of {most}: {self.name} is lost: {lost}")
        if self.look().word != "NOT_FOUND":
          self.delete()
      except Interrupted as error:
        interrupted = error
        self.say(
          f"attempt {attempt} of {most}: {self.name} is alive, but its job was interrupted:"
          f" {error}"
        )
    raise Failed(f"Gave up after {most} attempts.")


def _error_state(error: str) -> State:
  if re.search(r"^ERROR: \(gcloud\.\S+\) NOT_FOUND: ", error, re.MULTILINE):
    return State("NOT_FOUND")
  reason = re.search(r"^ERROR: .*", error, re.MULTILINE)
  return State("", reason=reason[0] if reason else last_line(error))


def _digest(command: Sequence[str]) -> str:
  return hashlib.sha256(shlex.join(command).encode()).hexdigest()[:16]


def pack(folder: pathlib.Path) -> pathlib.Path:
  """Returns an archive of the working tree without ignored files, named by its digest."""
  listed = subprocess.run(
    ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"],
    cwd=ROOT,
    stdout=subprocess.PIPE,
    check=False,
  )
  if listed.returncode:
    raise Failed(f"git could not list the files of {ROOT} (see above).")
  path = folder / "bundle.tar.gz"
  with tarfile.open(path, "w:gz") as archive:
    for name in sorted(set(os.fsdecode(listed.stdout).split("\0")) - {""}):
      file = ROOT / name  # Not the folder of a repository within this one.
      if file.is_symlink() or file.is_file():
        archive.add(file, name, recursive=False)
  digest = hashlib.sha256(path.read_bytes()).hexdigest()
  return path.rename(folder / f"tpv_jax-{digest}.tar.gz")


def fetch(pod: Pod, worker: str, source: str, target: str) -> None:
  # Absolute: in a relative path, gcloud reads what precedes a colon as a host.
  if not pod.scp(worker, f"{pod.name}:{source}", os.path.abspath(target)):
    raise Failed(f"{source} of worker {worker} was not copied.")


def logs(pod: Pod, target: str) -> None:
  if pod.check_alive().word != "READY":
    raise Failed(f"{pod.name} is not ready.")
  if not pod.dry_run:
    os.makedirs(target, exist_ok=True)
  for worker in range(pod.workers):
    path = os.path.join(target, f"worker-{worker}.log")
    fetch(pod, str(worker), "tpv_pod/log", path)
    pod.say(f"copied {path}")


def status(pod: Pod) -> None:
  state = pod.look()
  answers = pod.ask("status") if state.word == "READY" else {}
  if not pod.dry_run:
    about = f"{state.kind} {state.reason}".strip()
    print(f"{pod.name}: {state.word or 'UNKNOWN'} {about}".rstrip())
  for answer in sorted(answers.values(), key=lambda one: one.host):
    print(f"{answer.host}: {answer.state} {answer.code} (job {answer.job})")


class Parser(argparse.ArgumentParser):
  """A parser whose errors are one line of printable characters."""

  def error(self, message: str) -> NoReturn:
    shown = "".join(one if one.isprintable() else repr(one)[1:-1] for one in message)
    print(f"error: {shown}. See {SCRIPT} --help", file=sys.stderr)
    sys.exit(2)


def matching(pattern: str, example: str) -> Callable[[str], str]:
  def check(text: str) -> str:
    if not re.fullmatch(pattern, text):
      raise argparse.ArgumentTypeError(f"{text!r} is not like {example}")
    return text

  return check


def kind_of_pod(text: str) -> str:
  family = text.split("-")[0]
  if re.match(r"(tpu)?-?v?7", text):
    raise argparse.ArgumentTypeError(
      f"{text!r}: the Cloud TPU API, which this script uses, has no TPU 7x; use Compute "
      "Engine or GKE"
    )
  if family == "v5e":
    raise argparse.ArgumentTypeError(
      f"{text!r}: Cloud TPU calls it {text.replace('v5e', 'v5litepod', 1)!r}"
    )
  if not re.fullmatch(r"[a-z0-9]+-[1-9][0-9]*", text) or family not in RUNTIMES:
    raise argparse.ArgumentTypeError(
      f"{text!r} is none of {', '.join(f'{one}-N' for one in RUNTIMES)}"
    )
  return text


def parser() -> argparse.ArgumentParser:
  """Returns the parser; each action takes only the options that it reads."""
  word = matching(r"[A-Za-z0-9][A-Za-z0-9._-]*", "NAME")
  plain = matching(
    r"[^-\s\x00-\x1f\x7f][^\x00-\x1f\x7f]*", "a value without line breaks"
  )
  number = matching(r"[0-9]{1,4}", "a number")
  main = Parser(
    prog=SCRIPT,
    description=__doc__,
    usage=argparse.SUPPRESS,
    formatter_class=argparse.RawDescriptionHelpFormatter,
    allow_abbrev=False,
  )
  main.add_argument("--dry-run", action="store_true")
  actions = main.add_subparsers(dest="action", required=True, parser_class=Parser)
  everywhere = Parser(add_help=False)
  everywhere.add_argument("--name", type=word, required=True, help="of the pod")
  everywhere.add_argument("--zone", type=word, required=True)
  everywhere.add_argument("--project", type=word, help="default: gcloud's own")
  everywhere.add_argument("--dry-run", action="store_true", default=argparse.SUPPRESS)
  everywhere.add_argument(
    "--poll",
    type=matching(r"[0-9]{1,4}(\.[0-9]+)?", "30"),
    default="30",
    metavar="SECONDS",
    help="between two polls (30)",
  )
  reach = Parser(add_help=False)
  way = reach.add_mutually_exclusive_group()
  for flag, text in (
    ("--tunnel-through-iap", "ssh through Google's Identity-Aware Proxy"),
    ("--internal-ip", "ssh to internal addresses, from inside their network"),
  ):
    way.add_argument(flag, action="store_true", help=text)

  making = Parser(add_help=False)
  making.add_argument(
    "--type",
    type=kind_of_pod,
    required=True,
    help="v5litepod-16 (v5e), v5p-16, v6e-16, v4-16; 7x needs Compute Engine or GKE",
  )
  making.add_argument("--runtime", type=word, help="default: the type's")
  cost = making.add_mutually_exclusive_group()
  cost.add_argument("--spot", action="store_true", help="cheaper; may be taken away")
  cost.add_argument("--reserved", action="store_true", help="of your reservation")
  making.add_argument(
    "--internal-ips",
    action="store_true",
    help="no external addresses; the network then needs Cloud NAT (pip), Private Google "
    "Access (gs://) and IAP (ssh, with --tunnel-through-iap)",
  )
  for flag, text in CREATE.items():
    making.add_argument(f"--{flag}", type=plain, metavar="VALUE", help=text)

  extras = Parser(add_help=False)
  extras.add_argument(
    "--extras",
    type=matching(r"[a-z0-9]+(,[a-z0-9]+)*", "data,gcs"),
    default="data,gcs",
    help="of setup.py (data,gcs)",
  )
  one = Parser(add_help=False)
  one.add_argument("--worker", type=number, default="0", help="which one, from 0 (0)")
  target = Parser(add_help=False)
  target.add_argument("--to", type=plain, required=True, metavar="PATH")

  parents = {
    "create": [making],
    "install": [reach, extras],
    "run": [reach],
    "keep": [making, reach, extras],
    "status": [reach],
    "watch": [reach, one],
    "logs": [reach, target],
    "fetch": [reach, one, target],
    "stop": [reach],
    "delete": [],
  }
  made = {
    action: actions.add_parser(
      action, parents=[everywhere, *rest], allow_abbrev=False, prog=f"{SCRIPT} {action}"
    )
    for action, rest in parents.items()
  }
  made["fetch"].add_argument("--from", dest="source", type=plain, required=True)
  made["keep"].add_argument(
    "--most",
    type=matching(r"[1-9][0-9]{0,3}", "10"),
    default="10",
    help="how often to create it or start COMMAND (10)",
  )
  return main


# Options that gcloud's `create` gets unchanged.
CREATE = {
  "valid-until-duration": "give up if there is no pod by then; for example 6h",
  "service-account": "of the workers; needs access to gs://",
  "scopes": "of the service account",
  "network": "default: default",
  "subnetwork": "of the network",
  "labels": "KEY=VALUE,...",
  "metadata-from-file": "KEY=FILE,...; for example startup-script=FILE",
}


def joined(command: Sequence[str], parser: argparse.ArgumentParser) -> list[str]:
  """Returns the command with the flag that joins the workers, if it takes that flag."""
  module = command[command.index("-m") + 1 :][:1] if "-m" in command else []
  if module in (["t5x.eval"], ["t5x.infer"]):
    parser.error(f"{module[0]} runs in one process only: write -m tpv_jax.{module[0]}")
  ours = module == ["t5x.train"] or any(name.startswith("tpv_jax.") for name in module)
  ours = ours or any(
    pathlib.PurePath(word).name in ("tpv", "tpv_jax") and verb in VERBS
    for word, verb in itertools.pairwise(command)
  )
  flag = ["--multiprocess_gpu"] if ours and "--multiprocess_gpu" not in command else []
  return [*command, *flag]


def parsed(argv: Sequence[str]) -> tuple[argparse.Namespace, list[str]]:
  """Returns what an action is given, and the command that comes after --."""
  options, command = list(argv), []
  if "--" in options:
    at = options.index("--")
    options, command = options[:at], options[at + 1 :]
  arguments = parser()
  given = arguments.parse_args(options)
  if given.action in ("run", "keep"):
    if not command or command[0].startswith("-") or not command[0]:
      arguments.error(f"{given.action} needs a command after --")
    command = joined(command, arguments)
  elif command:
    arguments.error(f"{given.action} takes no command, but there is one after --")
  if given.action == "keep" and given.internal_ips:
    reached = given.tunnel_through_iap or given.internal_ip
    if not reached:
      arguments.error("--internal-ips needs --tunnel-through-iap or --internal-ip too")
  return given, command


def main(argv: Sequence[str]) -> int:
  given, command = parsed(argv)
  access = [
    f"--{flag}"
    for flag in ("tunnel-through-iap", "internal-ip")
    if getattr(given, flag.replace("-", "_"), False)
  ]
  flags = creation_flags(given) if "type" in given else []
  place = [f"--zone={given.zone}"]
  place += [f"--project={given.project}"] if given.project else []
  pod = Pod(given.name, place, access, float(given.poll), given.dry_run)
  same = shlex.join([f"--name={given.name}", *place])
  try:
    code = act(pod, given, flags, command)
  except Lost as lost:
    pod.say(f"error: {pod.name} is lost: {lost}. `keep` would create it again.")
    code = 1
  except Interrupted as interrupted:
    pod.say(
      f"error: the job was interrupted ({interrupted}). The same command continues it."
    )
    code = 1
  except Failed as failed:
    pod.say(f"error: {failed}")
    code = failed.code
  except OSError as error:
    pod.say(f"error: {error}")
    code = 1
  except KeyboardInterrupt:
    pod.say("interrupted here; what was started on the pod goes on")
    code = 130
  else:
    if given.action in ("run", "keep"):
      pod.say(f"the command ended with {code}")
  if given.action in ("create", "install", "run", "keep"):
    pod.say(f"{pod.name} costs money until: {SCRIPT} delete {same}")
  return code


def creation_flags(given: argparse.Namespace) -> list[str]:
  """Returns what gcloud is told when it creates the pod."""
  runtime = given.runtime or RUNTIMES[given.type.split("-")[0]]
  flags = [f"--runtime-version={runtime}"]
  for flag in ("spot", "reserved", "internal-ips"):
    flags += [f"--{flag}"] * getattr(given, flag.replace("-", "_"))
  for flag in CREATE:
    value = getattr(given, flag.replace("-", "_"))
    flags += [f"--{flag}={value}"] if value is not None else []
  return flags


def act(
  pod: Pod, given: argparse.Namespace, flags: Sequence[str], command: Sequence[str]
) -> int:
  if given.action == "create":
    pod.create(given.type, flags)
  elif given.action == "install":
    pod.connect()
    pod.running([])
    pod.install(given.extras)
  elif given.action == "run":
    return pod.run(command)
  elif given.action == "keep":
    return pod.keep(given.type, flags, given.extras, int(given.most), command)
  elif given.action == "status":
    status(pod)
  elif given.action == "watch":
    log = "tail -n 50 -F tpv_pod/log"
    return pod.ssh(given.worker, log, live=True).returncode
  elif given.action == "logs":
    logs(pod, given.to)
  elif given.action == "fetch":
    fetch(pod, given.worker, given.source, given.to)
  elif given.action == "stop":
    pod.check_alive()
    pod.ask_all("stop")
    pod.say("stopped")
  else:
    pod.delete()
  return 0


if __name__ == "__main__":
  signal.signal(signal.SIGPIPE, signal.SIG_DFL)
  for number in (signal.SIGTERM, signal.SIGHUP):
    signal.signal(number, lambda number, _: sys.exit(128 + number))
  sys.exit(main(sys.argv[1:]))

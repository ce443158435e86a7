"""A gcloud for one TPU pod, whose workers are folders and whose ssh is a local shell.

It behaves as the real one (528) was read to: the states of a request come one after
another, a command whose ssh broke is run again up to 10 times, the exit code is that of the
first worker which failed, and where a pod can't be reached at all nothing runs and the code
is 0.

Its folder is CLOUD. There, `plan.json` has what the test wants (states, workers, faults for
each call of a verb), `lost` the state of a pod that was taken away, `calls.jsonl` what was
asked, and `worker-0` and so on are the workers' home folders.
"""

import argparse
import contextlib
import json
import os
import pathlib
import shutil
import signal
import subprocess
import sys
import threading

UNPREPARED = (
  "WARNING: Could not prepare all 1 nodes, attempting to ssh into the rest.\n"
)


class Ended(Exception):
  """A call that ended with an exit code and a message."""


class Parser(argparse.ArgumentParser):
  def error(self, message):
    raise Ended(2, f"ERROR: (gcloud) {message}\n")


def parser():
  made = Parser(allow_abbrev=False)
  made.add_argument("--zone", required=True)
  for flag in (
    *("project", "format", "node-id", "accelerator-type", "command", "runtime-version"),
    *("service-account", "node", "worker", "batch-size", "ssh-flag", "scp-flag"),
  ):
    made.add_argument(f"--{flag}")
  for flag in ("quiet", "spot", "force", "recurse"):
    made.add_argument(f"--{flag}", action="store_true")
  made.add_argument("paths", nargs="+")
  return made


PARSER = parser()


class Gcloud:
  """What the cloud in `folder` does on each call."""

  def __init__(self, folder):
    self.folder = pathlib.Path(folder)
    self.request = self.folder / "request.json"
    self.parts = ""

  def call(self, argv, live=False):
    """Returns the exit code, what was printed, and what was said of errors."""
    with open(self.folder / "calls.jsonl", "a") as calls:
      calls.write(json.dumps(argv) + "\n")
    self.out, self.live = [], live
    assert argv[:2] == ["compute", "tpus"]
    self.verb = ".".join(argv[2:4])
    try:
      given = PARSER.parse_args(argv[4:])
      self.fault = self._take_fault(argv[3])
      if self.fault == "network":
        self._fail("There was a problem refreshing your current auth tokens: timed out")
      if self.fault == "refused":
        self._fail("INVALID_ARGUMENT: no such type, or no quota")
      if self.fault == "unprepared":
        raise Ended(0, UNPREPARED)
      getattr(self, argv[3])(given)
    except Ended as ended:
      code, error = ended.args
      return code, "".join(self.out), error
    return 0, "".join(self.out), ""

  def _fail(self, message):
    raise Ended(1, f"ERROR: (gcloud.compute.tpus.{self.verb}) {message}\n")

  def _plan(self):
    return json.loads((self.folder / "plan.json").read_text())

  def _take_fault(self, verb):
    """Returns and uses up what the test wants to go wrong with this call."""
    plan = self._plan()
    queue = plan["faults"].get(verb)
    if not queue:
      return None
    fault = queue.pop(0)
    (self.folder / "plan.json").write_text(json.dumps(plan))
    return fault

  def _homes(self):
    return [self.folder / f"worker-{n}" for n in range(self._plan()["workers"])]

  def _chosen(self, worker):
    homes = list(enumerate(self._homes()))
    return homes if worker == "all" else [homes[int(worker)]]

  def kill_jobs(self):
    for status in self.folder.glob("worker-*/tpv_pod/status"):
      with contextlib.suppress(ProcessLookupError):
        os.killpg(int(status.read_text().split()[3]), signal.SIGKILL)

  def _lost(self):
    """Returns the state of a pod that was taken away, with its processes, or nothing."""
    mark = self.folder / "lost"
    if not mark.exists():
      return None
    self.kill_jobs()
    return mark.read_text().strip()

  def _check_reachable(self):
    if not self.request.exists():
      self._fail("NOT_FOUND: Resource 'projects/p/pod' was not found.")
    if self._lost():
      raise Ended(0, UNPREPARED)

  def describe(self, given):
    lost = self._lost()
    if not self.request.exists():
      self._fail("NOT_FOUND: Resource 'projects/p/pod' was not found.")
    request = json.loads(self.request.read_text())
    if self.verb.startswith("tpu-vm"):
      node = lost if lost in ("PREEMPTED", "TERMINATED") else "READY"
      self.out.append(f"{node}\t{len(self._homes())}\n")
      return
    state = "ACTIVE"
    if request["states"]:
      state = request["states"].pop(0)
      self.request.write_text(json.dumps(request))
    if lost in ("SUSPENDING", "SUSPENDED", "FAILED"):
      state = lost
    reason = "no quota\nfor it" if state == "FAILED" else ""
    self.out.append(f"{state}\t{request['type']}\t{reason}\n")

  def create(self, given):
    if self.request.exists():
      self._fail("ALREADY_EXISTS: Resource 'pod' already exists")
    self.request.write_text(
      json.dumps({"type": given.accelerator_type, **self._plan()})
    )
    for home in self._homes():
      home.mkdir()

  def delete(self, given):
    if not self.request.exists():
      self._fail("NOT_FOUND: Resource 'projects/p/pod' was not found.")
    self.take_away()

  def take_away(self):
    self.kill_jobs()
    for home in self._homes():
      shutil.rmtree(home)
    self.request.unlink()
    (self.folder / "lost").unlink(missing_ok=True)

  def ssh(self, given):
    self._check_reachable()
    codes = {}
    writing = threading.Lock()

    def run(index, home):
      broken = 0
      if self.fault and self.fault["worker"] == index:
        broken = self.fault["times"]
      for attempt in range(10):
        if attempt < broken and not self.fault.get("runs", True):
          continue
        result = subprocess.run(
          ["bash", "-c", given.command],
          cwd=home,
          env={
            "CLOUD": str(self.folder),
            "HOME": str(home),
            "HOSTNAME": f"t1v-n-x-w-{index}",
            "PATH": f"{self.folder}/worker_bin:/usr/local/bin:/usr/bin:/bin",
            "TPV_GRACE_SECONDS": "1",
          },
          stdin=subprocess.DEVNULL,
          stdout=None if self.live else subprocess.PIPE,
          text=True,
          check=False,
        )
        if attempt >= broken:
          with writing:
            self.out.append(result.stdout or "")
          codes[index] = result.returncode
          return
      codes[index] = 255

    threads = [
      threading.Thread(target=run, args=worker) for worker in self._chosen(given.worker)
    ]
    for thread in threads:
      thread.start()
    for thread in threads:
      thread.join()
    failed = [codes[index] for index in sorted(codes) if codes[index]]
    if failed:
      raise Ended(failed[0], "ERROR: [ssh] exited with an error\n")

  def scp(self, given):
    self._check_reachable()
    *sources, target = given.paths
    for _, home in self._chosen(given.worker):
      for source in sources:
        if target.startswith("pod:"):
          shutil.copy(source, home / target.removeprefix("pod:"))
          continue
        there = home / source.removeprefix("pod:")
        (shutil.copytree if there.is_dir() else shutil.copy)(there, target)


if __name__ == "__main__":
  CODE, OUT, ERROR = Gcloud(os.environ["CLOUD"]).call(sys.argv[1:], live=True)
  print(OUT, end="")
  print(ERROR, end="", file=sys.stderr)
  sys.exit(CODE)

"""Cloud TPU pods, against a gcloud whose workers are folders (tests/fake_gcloud.py)."""

import importlib.util
import json
import os
import pathlib
import shlex
import shutil
import signal
import subprocess
import sys
import time
import types
from typing import NamedTuple

import fake_gcloud
import pytest

from tpv_jax.cli import verbs

LAUNCH = pathlib.Path(__file__).parents[2] / "launch"
PLACE = ("--name=pod", "--zone=z")
TYPE = "--type=v5litepod-16"

# Each worker's python: it writes down what it was called with, and makes environments.
PYTHON = """#!/bin/bash
printf '%s\\0' "$@" >> "$HOME/python.calls"; echo >> "$HOME/python.calls"
case "$*" in
  "-m uv venv"*) mkdir -p "${@: -1}/bin"; cp "$0" "${@: -1}/bin/python" ;;
  *"-e .["*) [[ ! -e $CLOUD/no-pip ]] || exit 3 ;;
esac
"""


def executable(path, text):
  path.write_text(text)
  path.chmod(0o755)


@pytest.fixture(scope="module")
def repository(tmp_path_factory):
  """Returns a small repository with the launch scripts, which they copy to the workers."""
  root = tmp_path_factory.mktemp("a repository")
  shutil.copytree(LAUNCH, root / "launch")
  (root / "setup.py").write_text("first")
  (root / ".gitignore").write_text("/runs/\n")
  for command in ("git init -q", "git add -A"):
    subprocess.run(command.split(), cwd=root, check=True)
  (root / "my_task.gin").write_text("not committed")
  subprocess.run(["git", "init", "-q", root / "another"], check=True)
  (root / "runs").mkdir()
  (root / "runs" / "large").write_text("ignored")
  return root


@pytest.fixture(scope="module")
def script(repository):
  """Returns the script of that repository as a module."""
  path = repository / "launch" / "tpu_pod.py"
  spec = importlib.util.spec_from_file_location("tpu_pod", path)
  module = importlib.util.module_from_spec(spec)
  sys.modules["tpu_pod"] = module
  spec.loader.exec_module(module)
  yield module
  del sys.modules["tpu_pod"]


class Result(NamedTuple):
  code: int
  output: str
  errors: str


def words(action, options, command):
  behind = ("--", *command) if command else ()
  return [action, *PLACE, "--poll=0.05", *options, *behind]


class Cloud:
  """A cloud without pods, and how the script is run against it."""

  def __init__(self, folder, script, capsys):
    self.folder = folder
    self.script = script
    self.capsys = capsys
    (folder / "worker_bin").mkdir()
    executable(folder / "worker_bin" / "python3", PYTHON)
    # As on the runtimes of today, whose Python is 3.10.
    executable(folder / "worker_bin" / "python3.12", "#!/bin/bash\nexit 1\n")
    self.gcloud = fake_gcloud.Gcloud(folder)
    self.plan()

  def plan(self, states=(), workers=2, **faults):
    (self.folder / "plan.json").write_text(
      json.dumps({"states": states, "workers": workers, "faults": faults})
    )

  def faults(self):
    return json.loads((self.folder / "plan.json").read_text())["faults"]

  def start(self, action, *options, command=(), before="", **variables):
    """Starts the script as a user does, in a process group of its own.

    `before` is a line of shell that its gcloud runs first.
    """
    (self.folder / "bin").mkdir(exist_ok=True)
    python = f"{sys.executable} -E {fake_gcloud.__file__}"
    gcloud = f'#!/bin/bash\n{before}\nexec {python} "$@"\n'
    executable(self.folder / "bin" / "gcloud", gcloud)
    environment = os.environ | {
      "CLOUD": str(self.folder),
      "PATH": f"{self.folder / 'bin'}:{os.environ['PATH']}",
    }
    return subprocess.Popen(
      [self.script.ROOT / "launch" / "tpu_pod.sh", *words(action, options, command)],
      env=environment | variables,
      stdout=subprocess.PIPE,
      stderr=subprocess.PIPE,
      text=True,
      start_new_session=True,
      # A shell that began these tests with '&' has it ignored.
      preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )

  def run(self, action, *options, command=()):
    """Runs the script in this process; returns its exit code and what it printed."""
    self.capsys.readouterr()
    code = self.script.main(words(action, options, command))
    return Result(code, *self.capsys.readouterr())

  def called(self, real):
    """Returns a `subprocess.run` that answers for gcloud."""

    def run(command, **options):
      if command[0] != "gcloud":
        return real(command, **options)
      code, out, error = self.gcloud.call(command[1:])
      if options["stderr"] is None:
        sys.stderr.write(error)
      return subprocess.CompletedProcess(command, code, out, error)

    return run

  def keep(self, *command, options=()):
    return self.run("keep", TYPE, *options, command=command)

  def ready(self, **plan):
    """Makes a pod that is there, with tpu_worker.sh, and without calls so far."""
    self.plan(**plan)
    assert self.run("create", TYPE).code == 0
    for home in self.homes():
      shutil.copy(LAUNCH / "tpu_worker.sh", home)
    (self.folder / "calls.jsonl").unlink()

  def homes(self):
    return sorted(self.folder.glob("worker-*"))

  def calls(self, *verbs):
    lines = (self.folder / "calls.jsonl").read_text().splitlines()
    calls = [json.loads(line) for line in lines]
    return [call for call in calls if not verbs or call[3] in verbs]

  def verbs(self):
    return [call[3] for call in self.calls()]

  def pythons(self, home):
    return [
      call.strip("\0").split("\0")
      for call in (home / "python.calls").read_text().split("\0\n")
      if call
    ]

  def job(self, worker=0):
    status = self.folder / f"worker-{worker}" / "tpv_pod" / "status"
    return status.read_text().split() if status.exists() else ["-", "none", "0", "0"]

  def wait_for(self, condition):
    deadline = time.monotonic() + 50
    while not condition() and time.monotonic() < deadline:
      time.sleep(0.02)
    assert condition()


@pytest.fixture
def cloud(tmp_path, script, capsys, monkeypatch):
  made = Cloud(tmp_path, script, capsys)
  # Not in `subprocess` itself, which the cloud uses too.
  own = types.SimpleNamespace(**vars(subprocess))
  own.run = made.called(subprocess.run)
  monkeypatch.setattr(script, "subprocess", own)
  yield made
  made.gcloud.kill_jobs()


ODD = ("--gin.A='a  b'", '"', "$(touch ran)", "*", "", "two\nlines", ";exit 9", "ü")


def test_a_pod_is_created_installed_and_given_the_command(cloud):
  cloud.plan(states=["ACCEPTED", "WAITING_FOR_RESOURCES", "PROVISIONING"])
  options = ("--spot", "--service-account=me@p", "--project=p")
  result = cloud.keep("A=b c", "python", "-m", "t5x.train", *ODD, options=options)
  assert result.code == 0, result.errors
  (request,) = cloud.calls("create")
  assert request[2:5] == ["queued-resources", "create", "pod"]
  assert {
    *("--node-id=pod", "--accelerator-type=v5litepod-16", "--spot", "--zone=z"),
    *("--runtime-version=v2-alpha-tpuv5-lite", "--service-account=me@p", "--project=p"),
  } <= set(request)
  assert {"--worker=all", "--node=all", "--batch-size=all"} <= set(
    cloud.calls("ssh")[0]
  )
  for home in cloud.homes():
    environment = str(home / "tpv_pod" / "env")
    assert cloud.pythons(home) == [
      ["-m", "pip", "install", "--quiet", "--user", "uv"],
      ["-m", "uv", "venv", "--quiet", "--seed", "--python", "3.12", environment],
      ["-m", "pip", "install", "--quiet", "jax[tpu]", "-e", ".[data,gcs]"],
      ["-m", "pip", "install", "--quiet", "--no-deps", "-r", "requirements-t5x.txt"],
      ["-m", "t5x.train", *ODD, "--multiprocess_gpu"],
    ]
    copied = home / "tpv_jax"
    assert (copied / "my_task.gin").read_text() == "not committed"
    assert not (copied / "runs").exists()
    assert not (copied / "ran").exists()
  for progress in (
    "PROVISIONING",
    "READY, with 2 workers",
    "installed",
    "ended with 0",
  ):
    assert progress in result.errors
  assert "launch/tpu_pod.sh delete --name=pod --zone=z --project=p" in result.errors
  assert "delete" not in cloud.verbs()

  # The same command again has nothing to do.
  assert cloud.keep("A=b c", "python", "-m", "t5x.train", *ODD).code == 0
  assert len(cloud.pythons(cloud.homes()[0])) == 5


@pytest.mark.parametrize("state", ["SUSPENDED", "PREEMPTED"])
def test_a_pod_that_is_taken_away_is_made_again_and_given_the_command(cloud, state):
  code = "if mkdir $CLOUD/first; then touch $CLOUD/taken; sleep 50; fi"
  call = cloud.gcloud.call

  def taken_away(argv):
    if (cloud.folder / "taken").exists():
      (cloud.folder / "taken").unlink()
      (cloud.folder / "lost").write_text(state)
    return call(argv)

  cloud.gcloud.call = taken_away
  cloud.plan(workers=1)
  result = cloud.keep("bash", "-c", code)
  assert result.code == 0, result.errors
  assert f"attempt 1 of 10: pod is lost: {state}" in result.errors
  verbs = [verb for verb in cloud.verbs() if verb in ("create", "delete")]
  assert verbs == ["create", "delete", "create"]


def test_a_job_that_fails_because_its_pod_is_going_has_not_failed(cloud):
  """The pod's state says so only after the job has ended, with any exit code."""
  call, looks = cloud.gcloud.call, []

  def going(argv):
    if (cloud.folder / "first").exists() and argv[3] == "describe" and len(looks) < 3:
      looks.append(argv)
      if len(looks) == 3:
        (cloud.folder / "lost").write_text("PREEMPTED")
    return call(argv)

  cloud.gcloud.call = going
  cloud.plan(workers=1)
  result = cloud.keep("bash", "-c", "if mkdir $CLOUD/first; then exit 1; fi")
  assert result.code == 0, result.errors
  assert "pod is lost: PREEMPTED" in result.errors


def test_errors_of_the_network_neither_delete_a_pod_nor_end_the_wait(cloud):
  cloud.ready()
  cloud.plan(
    ssh=[None, None, "network", "unprepared", {"worker": 1, "times": 10}],
    describe=[None, None, "network", None, "network", "network"],
  )
  wait = r"until ! grep -q '\[[^]]' $CLOUD/plan.json; do sleep 0.05; done"
  result = cloud.run("run", command=("bash", "-c", wait))
  assert result.code == 0, result.errors
  assert not any(cloud.faults().values())
  assert "0 of 2 workers answered" in result.errors
  assert "1 of 2 workers answered" in result.errors
  assert "the state of pod is unknown, asking again: ERROR: (gcloud" in result.errors
  assert not {"delete", "create"} & set(cloud.verbs())
  for home in cloud.homes():
    assert (home / "tpv_pod" / "log").read_text().count(": exit 0") == 1


def test_a_command_whose_connection_breaks_starts_once_on_each_worker(cloud):
  cloud.ready(workers=3)
  unreached = {"worker": 2, "times": 10, "runs": False}
  broken = [unreached, {"worker": 0, "times": 10}, {"worker": 1, "times": 3}]
  cloud.plan(workers=3, ssh=[None, *broken])
  result = cloud.run("run", command=("bash", "-c", "echo once >> ~/ran; sleep 0.2"))
  assert result.code == 0, result.errors
  assert [(home / "ran").read_text() for home in cloud.homes()] == ["once\n"] * 3


def test_a_job_outlives_the_script_and_is_waited_for_by_the_same_command(cloud):
  cloud.ready()
  command = (
    "bash",
    "-c",
    "echo once >> ~/ran; until [ -e $CLOUD/go ]; do sleep 0.05; done; exit 4",
  )
  script = cloud.start("run", command=command)
  cloud.wait_for(lambda: cloud.job(0)[1] == cloud.job(1)[1] == "running")
  os.killpg(script.pid, signal.SIGKILL)
  script.communicate()

  other = cloud.run("run", command=("true",))
  assert other.code == 1
  assert "runs another command" in other.errors
  told = cloud.run("status").output.splitlines()
  assert told[0] == "pod: READY v5litepod-16"
  assert told[1].startswith("t1v-n-x-w-0: running")

  again = cloud.start("keep", TYPE, command=command)
  assert "waiting for its end" in "".join(again.stderr.readline() for _ in range(2))
  (cloud.folder / "go").touch()
  assert again.communicate(timeout=50)
  assert again.returncode == 4
  assert [(home / "ran").read_text() for home in cloud.homes()] == ["once\n"] * 2


def test_a_worker_that_fails_ends_the_job_and_its_exit_code_is_the_scripts(cloud):
  cloud.ready()
  code = 'trap "" TERM; if [[ $HOSTNAME == *-1 ]]; then echo why; exit 7; fi; sleep 50'
  result = cloud.run("run", command=("bash", "-c", code))
  assert result.code == 7
  assert "t1v-n-x-w-1 exit 7; stopping the other workers" in result.errors
  assert "\nwhy\n" in result.errors
  assert "pod costs money until" in result.errors
  assert "delete" not in cloud.verbs()
  assert "t1v-n-x-w-0: stopped 0" in cloud.run("status").output


@pytest.mark.parametrize("end", ["kill -TERM 0", "kill -KILL 0", "exit 143"])
def test_a_job_that_was_interrupted_is_started_again_on_a_living_pod(cloud, end):
  cloud.plan(workers=1)
  result = cloud.keep("bash", "-c", f"if mkdir $CLOUD/first; then {end}; sleep 50; fi")
  assert result.code == 0, result.errors
  assert "attempt 1 of 10: pod is alive, but its job was interrupted" in result.errors
  assert "delete" not in cloud.verbs()


def test_a_job_that_fails_while_a_worker_is_away_was_interrupted(cloud):
  call, stops = cloud.gcloud.call, []

  def away(argv):
    """Worker 1 is, from the failure of worker 0 until the job is stopped a second time."""
    if argv[3] == "ssh" and (cloud.folder / "first").exists():
      stops.extend(word for word in argv if word.endswith("tpu_worker.sh stop"))
      if len(stops) < 2:
        cloud.plan(ssh=[{"worker": 1, "times": 10, "runs": False}])
    return call(argv)

  cloud.gcloud.call = away
  code = (
    "if [[ $HOSTNAME == *-0 ]]; then ! mkdir $CLOUD/first; exit; fi;"
    " if mkdir ~/once; then sleep 50; fi"
  )
  result = cloud.keep("bash", "-c", code)
  assert result.code == 0, result.errors
  assert "1 of 2 workers answered" in result.errors
  assert "but its job was interrupted" in result.errors


def test_a_job_that_is_stopped_saves_and_is_not_started_again(cloud):
  code = (
    "trap 'touch ~/saved; exit 0' TERM; touch ~/ready; while :; do sleep 0.05; done"
  )
  script = cloud.start("keep", TYPE, command=("bash", "-c", code))
  cloud.wait_for(lambda: len(list(cloud.folder.glob("worker-*/ready"))) == 2)
  assert cloud.run("stop").code == 0
  _, errors = script.communicate(timeout=50)
  assert script.returncode == 143
  assert "The job was stopped" in errors
  assert len(list(cloud.folder.glob("worker-*/saved"))) == 2


def test_what_ends_an_action_stops_the_rest(cloud):
  cloud.plan(create=["refused"])
  result = cloud.keep("true")
  assert result.code == 1
  assert "no such type" in result.errors
  assert set(cloud.verbs()) == {"create", "describe"}

  cloud.plan(states=["FAILED"])
  result = cloud.keep("true")
  assert result.code == 1
  assert "pod failed: no quota for it" in result.errors
  assert set(cloud.verbs()) == {"create", "describe"}
  assert cloud.run("delete").code == 0

  cloud.ready(scp=["unprepared"] * 5)
  result = cloud.keep("true")
  assert result.code == 1
  assert "ssh-add" in result.errors
  assert "ssh" not in cloud.verbs()

  cloud.plan()
  (cloud.folder / "no-pip").touch()
  result = cloud.keep("touch", "../ran")
  assert result.code == 3
  assert "The installation failed" in result.errors
  assert not list(cloud.folder.glob("worker-*/ran"))
  assert "delete" not in cloud.verbs()[-10:]


def test_a_pod_of_another_type_is_not_taken_for_the_one_asked_for(cloud):
  cloud.ready()
  result = cloud.run("create", "--type=v5p-8")
  assert result.code == 1
  assert "exists and is a v5litepod-16, not a v5p-8" in result.errors


def test_a_pod_that_its_user_deletes_is_not_made_again(cloud):
  cloud.ready()
  request = json.loads(cloud.gcloud.request.read_text())
  cloud.gcloud.request.write_text(json.dumps(request | {"states": ["DELETING"]}))
  result = cloud.keep("true")
  assert result.code == 1
  assert "pod is being deleted" in result.errors
  assert cloud.verbs() == ["describe"]


@pytest.mark.parametrize("while_it", ["waits for the pod", "runs the command"])
def test_a_pod_that_was_deleted_between_two_looks_is_not_made_again(cloud, while_it):
  call, request = cloud.gcloud.call, cloud.gcloud.request
  waits = while_it.startswith("waits")

  def deleted_elsewhere(argv):
    if request.exists():
      looked = len(json.loads(request.read_text())["states"]) < 5
      if looked if waits else (cloud.folder / "runs").exists():
        cloud.gcloud.take_away()
    return call(argv)

  cloud.gcloud.call = deleted_elsewhere
  cloud.plan(workers=1, states=["WAITING_FOR_RESOURCES"] * 5 if waits else [])
  result = cloud.keep("bash", "-c", "touch $CLOUD/runs; sleep 50")
  assert result.code == 1
  assert "There is no pod, or no longer" in result.errors
  assert "delete" not in cloud.verbs()
  assert cloud.verbs().count("create") == 1


def test_an_installation_leaves_nothing_of_the_one_before_but_what_jobs_wrote(
  cloud, repository
):
  cloud.ready(workers=1)
  (home,) = cloud.homes()
  (repository / "ältere.gin").touch()
  assert cloud.run("install").code == 0
  (home / "tpv_jax" / "runs").mkdir()
  (repository / "ältere.gin").unlink()
  assert cloud.run("install", "--extras=data").code == 0
  names = sorted(os.listdir(home / "tpv_jax"))
  assert names == [".gitignore", "launch", "my_task.gin", "runs", "setup.py"]
  assert len(list(home.glob("tpv_jax-*.tar.gz"))) == 1
  calls = cloud.pythons(home)
  assert calls.count(["-m", "pip", "install", "--quiet", "--user", "uv"]) == 1
  assert ["-m", "pip", "install", "--quiet", "jax[tpu]", "-e", ".[data]"] in calls


def test_logs_and_results_of_the_workers_are_copied_and_followed(cloud, tmp_path):
  cloud.ready()
  assert cloud.run("run", command=("bash", "-c", "echo $HOSTNAME > out")).code == 0
  assert cloud.run("logs", f"--to={tmp_path}/some logs").code == 0
  for worker in range(2):
    log = (tmp_path / "some logs" / f"worker-{worker}.log").read_text()
    assert "echo $HOSTNAME > out" in log
    assert "exit 0" in log
  fetched = tmp_path / "a:b"
  copy = cloud.run("fetch", "--worker=1", "--from=tpv_jax", f"--to={fetched}")
  assert copy.code == 0, copy.errors
  assert (fetched / "out").read_text() == "t1v-n-x-w-1\n"
  watch = cloud.start("watch", "--worker=1")
  assert watch.stdout.readline().startswith("== ")
  os.killpg(watch.pid, signal.SIGTERM)
  watch.communicate()


def test_an_interrupted_script_says_that_the_job_goes_on(cloud):
  cloud.ready(workers=1)
  script = cloud.start("run", command=("sleep", "50"))
  cloud.wait_for(lambda: cloud.job()[1] == "running")
  os.killpg(script.pid, signal.SIGINT)
  _, errors = script.communicate(timeout=50)
  assert script.returncode == 130
  assert "what was started on the pod goes on" in errors
  os.killpg(int(cloud.job()[3]), 0)


@pytest.mark.parametrize("number", ["TERM", "INT"])
def test_a_script_that_is_ended_while_it_copies_leaves_no_temporary_file(cloud, number):
  (cloud.folder / "temporary files").mkdir()
  cloud.ready(workers=1)
  before = (
    'for word; do [[ $word != *tar.gz ]] || { echo "${word##*/}" > $CLOUD/copied;'
    f" kill -{number} $PPID; sleep 1; }}; done"
  )
  temporary = str(cloud.folder / "temporary files")
  script = cloud.start("install", before=before, TMPDIR=temporary)
  script.communicate(timeout=50)
  assert script.returncode == 128 + getattr(signal, f"SIG{number}")
  assert (cloud.folder / "copied").read_text().startswith("tpv_jax-")
  assert not os.listdir(cloud.folder / "temporary files")


ABSENT = (
  "ERROR: (gcloud.compute.tpus.x) NOT_FOUND: Resource 'projects/p' was not found."
)


@pytest.mark.parametrize(
  ("request_", "node", "lost"),
  [
    *[(word, "", False) for word in ("CREATING", "ACCEPTED", "WAITING_FOR_RESOURCES")],
    ("PROVISIONING", "", False),
    *[(word, "", True) for word in ("SUSPENDING", "SUSPENDED", "FAILED")],
    *[
      ("ACTIVE", word, False) for word in ("READY", "REPAIRING", "CREATING", "STOPPED")
    ],
    *[("ACTIVE", word, True) for word in ("PREEMPTED", "TERMINATED", ABSENT)],
    *[
      error
      for text in (
        "ERROR: gcloud crashed (TransportError): HTTPSConnectionPool, NOT_FOUND",
        "ERROR: (gcloud.x.y) There was a problem refreshing your current auth tokens",
        "ERROR: (gcloud.x.y) PERMISSION_DENIED: Permission denied (or it may not exist).",
        "ERROR: (gcloud.x.y) You do not currently have an active account selected.",
        "",
      )
      for error in ((text or "ERROR:", "", False), ("ACTIVE", text or "ERROR:", False))
    ],
  ],
)
def test_a_pod_is_lost_in_the_states_that_say_so_and_in_no_other(
  script, monkeypatch, request_, node, lost
):
  def gcloud(self, *words, live=False):
    word = request_ if words[0] == "queued-resources" else node
    failed = word.startswith("ERROR")
    told = f"{word}\tv5p-8\t" if word == request_ else f"{word}\t4"
    return subprocess.CompletedProcess(
      words, int(failed), "" if failed else told, word if failed else ""
    )

  monkeypatch.setattr(script.Pod, "gcloud", gcloud)
  pod = script.Pod("pod", [], [])
  if lost:
    with pytest.raises(script.Lost):
      pod.check_alive()
  else:
    pod.check_alive()
    assert pod.workers == (4 if node and not node.startswith("ERROR") else 1)


@pytest.fixture
def dry_run(script, capsys):
  """Returns a function that returns the words of each line that an action would run."""

  def run(action, *options, command=()):
    capsys.readouterr()
    assert script.main(words(action, ("--dry-run", *options), command)) == 0
    return [shlex.split(line) for line in capsys.readouterr().out.splitlines()]

  return run


def test_the_runtime_follows_from_the_type(dry_run):
  for kind, runtime in {
    "v5litepod-16": "v2-alpha-tpuv5-lite",
    "v5p-512": "v2-alpha-tpuv5",
    "v6e-16": "v2-alpha-tpuv6e",
    "v4-8": "tpu-ubuntu2204-base",
  }.items():
    (line, *_) = dry_run("create", f"--type={kind}")
    assert f"--runtime-version={runtime}" in line
  assert "--runtime-version=mine" in dry_run("create", TYPE, "--runtime=mine")[0]


COMMAND = ("python", "-m", "t5x.train", "--gin.A='a b'")
ALL = (
  *("--project=p", "--spot", "--valid-until-duration=6h", "--service-account=a@b"),
  *("--scopes=cloud-platform", "--network=n", "--subnetwork=s", "--internal-ips"),
  *("--labels=a=b,c=d", "--tunnel-through-iap"),
)


def test_the_dry_run_of_a_pod_calls_nothing(dry_run, script, monkeypatch):
  monkeypatch.setattr(
    script,
    "subprocess",
    types.SimpleNamespace(CompletedProcess=subprocess.CompletedProcess),
  )
  lines = dry_run("keep", TYPE, *ALL, command=COMMAND)
  verbs = [line[4] for line in lines]
  copies = ["describe", "scp", "ssh", "scp", "ssh", "ssh"]
  assert verbs == ["create", "describe", *copies]
  assert {*ALL} - {"--tunnel-through-iap"} <= set(lines[0])
  assert all(
    "--tunnel-through-iap" in line for line in lines if line[4] in ("scp", "ssh")
  )
  start = shlex.split(lines[-1][-4].removeprefix("--command="))
  assert start[:3] == ["bash", "tpu_worker.sh", "start"]
  assert start[4:] == [*COMMAND, "--multiprocess_gpu"]


@pytest.mark.slow  # The real gcloud takes seconds for each line.
def test_the_real_gcloud_parses_each_line(tmp_path, dry_run):
  gcloud = shutil.which("gcloud")
  if gcloud is None:
    pytest.skip("gcloud is not installed")
  startup = tmp_path / "startup"
  startup.touch()
  more = (f"--metadata-from-file=startup-script={startup}",)
  lines = [
    *dry_run("keep", TYPE, *ALL, *more, command=COMMAND),
    dry_run("create", TYPE, "--reserved", "--project=p")[0],
    *dry_run("status", "--internal-ip", "--project=p"),
    *dry_run("fetch", "--from=a", "--to=b", "--project=p"),
    *dry_run("watch", "--worker=1", "--project=p"),
    *dry_run("delete", "--project=p"),
    shlex.split("gcloud compute tpus queued-resources delete pod --zone=z --nonsense"),
  ]
  # What the dry run does not show, because it looks once.
  look = "gcloud compute tpus tpu-vm describe pod --zone=z --project=p"
  lines.insert(0, [*look.split(), "--format=value(state,networkEndpoints.len())"])
  unique = {tuple(line[:5]) + tuple(sorted(line[5:])): line for line in lines}
  *good, bad = (
    subprocess.run(
      line,
      capture_output=True,
      text=True,
      env=os.environ | {"CLOUDSDK_CONFIG": str(tmp_path / "config")},
      check=False,
    ).stderr
    for line in unique.values()
  )
  assert "unrecognized arguments" in bad
  for line, error in zip(unique.values(), good, strict=False):
    assert "active account" in error, (line, error)


@pytest.mark.parametrize(
  ("told", "arguments"),
  [
    ("Compute Engine or GKE", ("create", *PLACE, "--type=tpu7x-16")),
    ("'v5litepod-16'", ("create", *PLACE, "--type=v5e-16")),
    ("v6e-N", ("create", *PLACE, "--type=v9-16")),
    ("--spot", ("status", *PLACE, "--spot")),
    ("not allowed", ("create", *PLACE, TYPE, "--spot", "--reserved")),
    ("--zone", ("status", "--name=pod")),
    ("--poll", ("status", *PLACE, "--poll=-1")),
    ("takes no command, but", ("delete", *PLACE, "--", "true")),
    ("a command after --", ("run", *PLACE)),
    ("a command after --", ("run", *PLACE, "--", "-x")),
    ("-m tpv_jax.t5x.eval", ("run", *PLACE, "--", "python", "-m", "t5x.eval")),
    ("needs --tunnel", ("keep", *PLACE, TYPE, "--internal-ips", "--", "true")),
    (r"\x1b[2J\n", ("delete", "--name=\x1b[2J\n", "--zone=z")),
    ("unrecognized", ("delete", *PLACE, "--\x1b[2J")),
    *[
      (name, ("create", *PLACE, TYPE, f"--{name}={value}"))
      for name in ("name", "zone", "project", "runtime", "network")
      for value in ("--x", "", "a\nb")
    ],
    *[("--extras", ("install", *PLACE, f"--extras={x}")) for x in ("-x", "", "a]b")],
    ("--from", ("fetch", *PLACE, "--from=-x", "--to=a")),
    ("--to", ("fetch", *PLACE, "--from=x", "--to=-a")),
  ],
)
def test_what_a_pod_is_not_is_refused_by_its_name(told, arguments, script, capsys):
  with pytest.raises(SystemExit, match=r"^2$"):
    script.main(arguments)
  output, errors = capsys.readouterr()
  assert errors.startswith("error: ")
  assert errors.count("\n") == 1
  assert told in errors
  assert not output


@pytest.mark.parametrize(
  ("command", "joins"),
  [
    ("tpv train --gin_file=x", True),
    ("env A=1 /venv/bin/tpv few-shot", True),
    ("python -m tpv_jax bank", True),
    ("python -m tpv_jax.t5x.eval", True),
    ("python -m t5x.train", True),
    ("tpv diff train", False),
    ("python -m tpv_jax show", False),
    ("python mine.py train", False),
  ],
)
def test_what_takes_the_flags_of_several_processes_gets_the_one_that_joins_them(
  script, command, joins
):
  words = command.split()
  added = ["--multiprocess_gpu"] * joins
  assert script.joined(words, None) == [*words, *added]
  assert script.joined([*words, *added], None) == [*words, *added]


def test_the_script_knows_the_verbs_that_take_the_flags_of_several_processes(script):
  joined = [
    name
    for name in verbs.VERBS
    if verbs.parser_of(name).get_default("multiprocess_gpu") is not None
  ]
  assert joined == [*script.VERBS, "plan"]  # which needs no devices


def test_each_action_says_what_it_takes():
  shown = subprocess.run(
    [LAUNCH / "tpu_pod.sh", "--help"], capture_output=True, text=True, check=True
  ).stdout
  assert "examples:" in shown
  assert "launch/tpu_pod.sh keep --name=tpv" in shown

"""Launch scripts: checked by shellcheck, by their dry run, and against stub commands."""

import os
import pathlib
import shlex
import signal
import stat
import subprocess
import sys
import time

import pytest

LAUNCH = pathlib.Path(__file__).parents[2] / "launch"


def run(script, *arguments, path=None, **variables):
  environment = {**os.environ, **variables}
  if path is not None:
    environment["PATH"] = f"{path}:{environment['PATH']}"
  return subprocess.run(
    [str(LAUNCH / script), *arguments],
    capture_output=True,
    text=True,
    env=environment,
    timeout=60,
    check=False,
  )


def refused(script, *arguments, path=None):
  """Returns the only line of a script that did nothing, and said why."""
  result = run(script, *arguments, path=path)
  assert (result.returncode, result.stdout) == (2, "")
  assert result.stderr.startswith("error: ") and result.stderr.count("\n") == 1
  return result.stderr.strip()


@pytest.fixture
def stub(tmp_path):
  """Returns a function that makes a command which records what it was given."""

  def make(name, answer=""):
    path = tmp_path / name
    record = f'{{ printf "%s\\0" "$@"; echo; }} >> "{path}.calls"'
    path.write_text(f"#!/bin/bash\n{record}\n{answer}\n")
    path.chmod(path.stat().st_mode | stat.S_IXUSR)
    return tmp_path

  make.calls = lambda name: [
    call.strip("\0\n").split("\0")
    for call in (tmp_path / f"{name}.calls").read_text().split("\0\n")
    if call
  ]
  return make


@pytest.mark.parametrize("script", sorted(path.name for path in LAUNCH.glob("*.sh")))
def test_shellcheck_finds_nothing(script):
  shellcheck = pathlib.Path(sys.executable).parent / "shellcheck"
  result = subprocess.run(
    [shellcheck, LAUNCH / script], capture_output=True, text=True, check=False
  )
  assert result.returncode == 0, result.stdout


@pytest.mark.parametrize("script", sorted(path.name for path in LAUNCH.glob("*.sh")))
def test_bad_arguments_are_one_line_that_names_where_the_usage_is(script):
  for arguments in ((), ("--nonsense",), ("create",), ("-n", "2")):
    refusal = refused(script, *arguments)
    _, advice = refusal.split(" See ")
    assert advice == f"launch/{script} --help"
    shown = run(script, *advice.split()[1:])
    assert shown.returncode == 0 and advice.split()[0] in shown.stdout


POD = ("--name=pod", "--zone=z")
LOCAL = ("local_multiprocess.sh",)
SLURM = ("slurm.sh", "--nodes=2")


@pytest.mark.parametrize(
  "arguments",
  [
    *[(*LOCAL, *rest) for rest in (("2", "-x"), ("2", ""), ("2",), ("0", "true"))],
    *[(*LOCAL, f"--port={port}", "2", "true") for port in ("--x", "0", "65536", "")],
    *[
      (*SLURM, f"--{name}={value}", "--", "true")
      for name in ("nodes", "gpus", "time", "partition", "setup")
      for value in ("--x", "-x")
    ],
    *[
      (*SLURM, *rest) for rest in ((), ("--",), ("--", "--x"), ("--nodes=", "--", "a"))
    ],
    *[
      ("tpu_pod.sh", "keep", *POD, "--type=v5e", f"--{name}={value}", "--", "true")
      for name in ("name", "zone", "type", "runtime", "extras", "most")
      for value in (
        "--project=other",
        "-x",
        "",
        "a b",
        "$(touch ran)",
        "x';touch ran;'",
      )
    ],
    *[("tpu_pod.sh", "fetch", *POD, f"--from={path}") for path in ("-x", "")],
    *[
      ("tpu_pod.sh", "fetch", *POD, "--from=a", f"--to={path}")
      for path in ("--x", "", "pod:a")
    ],
    *[("tpu_pod.sh", "run", *POD, *rest) for rest in ((), ("--",), ("--", "-x"))],
    ("tpu_pod.sh", "clean", *POD, "--", "true"),
    ("tpu_pod.sh", "clean", "create", *POD),
    ("tpu_pod.sh", "create", *POD),
    ("tpu_pod.sh", "clean", "--name=pod"),
  ],
)
def test_no_value_becomes_an_option_of_another_command(arguments, stub):
  path = stub("gcloud")
  stub("srun")
  refused(*arguments, path=path)
  assert sorted(os.listdir(path)) == ["gcloud", "srun"]


def test_values_with_control_characters_are_shown_quoted():
  assert r"$'\E[2J\n'" in refused("tpu_pod.sh", "clean", "--name=\x1b[2J\n", "--zone=z")


def test_the_dry_run_of_several_processes_shows_each_command():
  result = run(
    "local_multiprocess.sh", "--dry-run", "2", "python", "-c", "print('a b')"
  )
  first, second = (shlex.split(line) for line in result.stdout.splitlines())
  assert first[:3] == ["python", "-c", "print('a b')"]
  assert first[3:7] == [
    "--multiprocess_gpu",
    "--coordinator_address=localhost:12321",
    "--process_count=2",
    "--process_index=0",
  ]
  assert second[6] == "--process_index=1"


def test_all_local_processes_run_and_their_lines_are_numbered():
  result = run("local_multiprocess.sh", "3", "bash", "-c", 'echo "$@"', "bash")
  assert result.returncode == 0
  for index in range(3):
    assert f"[{index}] --multiprocess_gpu" in result.stdout


def test_a_local_process_that_fails_ends_the_others_and_what_they_started(tmp_path):
  child = tmp_path / "child"
  code = (
    f"if [[ $4 == *=1 ]]; then until [[ -s {child} ]]; do sleep 0.1; done; exit 7; fi;"
    f" sleep 50 & echo $! > {child}; wait"
  )
  result = run("local_multiprocess.sh", "2", "bash", "-c", code, "bash")
  assert result.returncode == 7
  assert result.stderr == "a process ended with exit code 7; ending the others\n"
  with pytest.raises(ProcessLookupError):
    os.kill(int(child.read_text()), 0)


def wait_for(path):
  deadline = time.monotonic() + 50
  while not path.exists() and time.monotonic() < deadline:
    time.sleep(0.05)
  assert path.exists()


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGHUP])
def test_a_script_that_is_stopped_ends_its_processes_before_itself(tmp_path, number):
  code = (
    "trap 'sleep 0.5; touch saved$4; exit' TERM; touch started$4;"
    " while :; do sleep 0.1; done"
  )
  script = subprocess.Popen(
    [LAUNCH / "local_multiprocess.sh", "2", "bash", "-c", code, "bash"],
    cwd=tmp_path,
    # A shell that began these tests with '&' has it ignored.
    preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
  )
  for index in range(2):
    wait_for(tmp_path / f"started--process_index={index}")
  script.send_signal(number)
  assert script.wait(timeout=50) == 128 + number
  assert len(list(tmp_path.glob("saved*"))) == 2


def test_a_process_that_does_not_heed_the_end_is_killed(tmp_path):
  code = (
    "if [[ $4 == *=1 ]]; then until [[ -e deaf ]]; do sleep 0.1; done; exit 7; fi;"
    " trap '' TERM; echo $$ > deaf.new; mv deaf.new deaf; while :; do sleep 0.1; done"
  )
  script = [LAUNCH / "local_multiprocess.sh", "2", "bash", "-c", code, "bash"]
  environment = os.environ | {"TPV_GRACE_SECONDS": "1"}
  result = subprocess.run(
    script, cwd=tmp_path, env=environment, timeout=50, check=False
  )
  assert result.returncode == 7
  with pytest.raises(ProcessLookupError):
    os.kill(int((tmp_path / "deaf").read_text()), 0)


def test_slurm_gives_srun_a_process_a_node(stub):
  path = stub("srun")
  command = ("python", "-m", "tpv_jax.train", "--gin.RUN_DIR='a b'")
  arguments = ("--nodes=2", "--time=01:00:00", "--setup=source venv", "--", *command)
  dry = run("slurm.sh", "--dry-run", *arguments, path=path)
  assert run("slurm.sh", *arguments, path=path).returncode == 0
  (call,) = stub.calls("srun")
  assert ["srun", *call] == shlex.split(dry.stdout)
  assert {"--nodes=2", "--ntasks-per-node=1", "--time=01:00:00"} <= set(call)
  assert call[-3:-1] == ["bash", "-c"]
  setup, inner = call[-1].split(" && exec ")
  assert setup == "source venv"
  assert shlex.split(inner) == [*command, "--multiprocess_gpu"]


TPU = ("--name=pod", "--zone=z", "--type=v5litepod-16", "--spot")


def test_a_pod_is_created_installed_and_given_the_command(stub):
  path = stub("gcloud", 'case "$*" in *describe*) echo ACTIVE ;; esac')
  command = ("--", "python3", "-m", "t5x.train", "--gin.MODEL_DIR='gs://b/a b'")
  result = run("tpu_pod.sh", "keep", *TPU, *command, path=path)
  assert result.returncode == 0, result.stderr
  create, describe, copy, install, start = stub.calls("gcloud")
  assert create[:5] == ["compute", "tpus", "queued-resources", "create", "pod"]
  assert {"--spot", "--accelerator-type=v5litepod-16", "--zone=z"} <= set(create)
  assert describe[3] == "describe"
  assert copy[2:4] == ["tpu-vm", "scp"] and "--worker=all" in copy
  assert "pip install" in install[-2] and "jax[tpu]" in install[-2]
  assert "python3 -m t5x.train" in start[-2] and "gs://b/a\\ b" in start[-2]


def test_a_spot_slice_that_is_taken_away_is_asked_for_again(stub, tmp_path):
  """The first `run` fails and the slice is gone; the second one ends well."""
  answer = f"""
  case "$*" in
    *describe*) if [[ -e {tmp_path}/lost ]]; then echo SUSPENDED; else echo ACTIVE; fi ;;
    *tpv_jax.train*)
      if [[ ! -e {tmp_path}/tried ]]; then
        touch {tmp_path}/tried {tmp_path}/lost
        exit 255
      fi ;;
    *delete*) rm -f {tmp_path}/lost ;;
  esac"""
  path = stub("gcloud", answer)
  command = ("--", "python3", "-m", "tpv_jax.train")
  result = run("tpu_pod.sh", "keep", *TPU, *command, path=path, TPV_POLL_SECONDS="0")
  assert result.returncode == 0, result.stderr
  verbs = [call[3] for call in stub.calls("gcloud")]
  once = ["create", "describe", "scp", "ssh", "ssh"]
  assert verbs == [*once, "describe", "delete", *once]
  assert "attempt 1 of 10 ended with the slice" in result.stderr


def test_a_command_that_fails_on_a_living_slice_is_not_repeated(stub):
  answer = 'case "$*" in *describe*) echo ACTIVE ;; *tpv_jax.train*) exit 2 ;; esac'
  path = stub("gcloud", answer)
  result = run(
    "tpu_pod.sh", "keep", *TPU, "--", "python3", "-m", "tpv_jax.train", path=path
  )
  assert result.returncode == 1
  assert "the slice is still there; not trying again" in result.stderr


@pytest.mark.parametrize("told", ["ACTIVE", "PROVISIONING", "unreachable"])
def test_a_slice_that_may_be_alive_is_never_deleted(stub, told):
  """Where gcloud can't be asked (no network, no login), a job may still be running."""
  describe = f"echo {told}" if told.isupper() else f"echo {told} >&2; exit 1"
  answer = f"""
  case "$*" in
    *describe*) if [[ -e $0.lost ]]; then {describe}; else echo ACTIVE; fi ;;
    *tpv_jax.train*) touch $0.lost; exit 255 ;;
  esac"""
  path = stub("gcloud", answer)
  command = ("--", "python3", "-m", "tpv_jax.train")
  result = run("tpu_pod.sh", "keep", *TPU, *command, path=path)
  assert result.returncode == 1
  assert f"pod is {told if told.isupper() else 'UNKNOWN'}: the slice" in result.stderr
  assert "delete" not in [call[3] for call in stub.calls("gcloud")]


def test_a_slice_without_a_request_any_more_is_asked_for_again(stub):
  answer = """
  case "$*" in
    *describe*) if [[ -e $0.lost ]]; then echo "ERROR: NOT_FOUND" >&2; exit 1; fi
      echo ACTIVE ;;
    *tpv_jax.train*) if [[ ! -e $0.tried ]]; then touch $0.tried $0.lost; exit 255; fi ;;
    *delete*) rm $0.lost ;;
  esac"""
  path = stub("gcloud", answer)
  result = run(
    "tpu_pod.sh", "keep", *TPU, "--", "python3", "-m", "tpv_jax.train", path=path
  )
  assert result.returncode == 0, result.stderr


@pytest.mark.parametrize("failing", ["git", "scp"])
def test_what_could_not_be_copied_is_not_run(stub, failing):
  """Or an older copy on the workers would run in its place."""
  answer = 'case "$*" in *describe*) echo ACTIVE ;; *" scp "*) exit 1 ;; esac'
  path = stub("gcloud", answer)
  if failing == "git":
    stub("git", "exit 128")
  result = run("tpu_pod.sh", "keep", *TPU, "--", "python3", "train.py", path=path)
  assert result.returncode == 1
  assert "ssh" not in [call[3] for call in stub.calls("gcloud")]


@pytest.mark.parametrize("ending", ["exit 0", "exit 1", "kill -TERM $PPID; sleep 1"])
def test_an_installation_leaves_no_temporary_file(stub, tmp_path, ending):
  copied = tmp_path / "copied"
  path = stub("gcloud", f'case "$*" in *" scp "*) ls "$5" > {copied}; {ending} ;; esac')
  scratch = tmp_path / "scratch folder"
  scratch.mkdir()
  run("tpu_pod.sh", "install", *POD, path=path, TMPDIR=str(scratch))
  assert copied.read_text().strip().endswith("tpv_jax.tar.gz")
  assert not list(scratch.iterdir())


def test_the_request_is_shown_as_the_error_of_a_failed_one_says(stub):
  path = stub("gcloud", 'case "$*" in *describe*) echo FAILED ;; esac')
  result = run("tpu_pod.sh", "create", *TPU, path=path)
  assert result.returncode == 1
  advice = shlex.split(result.stderr.split("see: ")[1])
  subprocess.run([path / advice[0], *advice[1:]], check=True)
  *_, asked, advised = stub.calls("gcloud")
  assert asked[:-1] == advised


def test_the_dry_run_of_a_pod_calls_nothing(stub):
  path = stub("gcloud")
  stub("git")
  arguments = (*TPU, "--", "python3", "-m", "tpv_jax.train")
  result = run(
    "tpu_pod.sh", "--dry-run", "keep", *arguments, path=path, TMPDIR=str(path)
  )
  assert result.returncode == 0
  assert sorted(os.listdir(path)) == ["gcloud", "git"]
  assert [
    line.split()[4] for line in result.stdout.splitlines() if "gcloud" in line
  ] == [
    "create",
    "scp",
    "ssh",
    "ssh",
  ]

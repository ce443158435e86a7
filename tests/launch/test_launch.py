"""Launch scripts: checked by shellcheck, by their dry run, and against stub commands."""

import os
import pathlib
import shlex
import stat
import subprocess
import sys

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
def test_bad_arguments_show_the_usage_and_exit_2(script):
  for arguments in ((), ("--nonsense",), ("create",)):
    result = run(script, *arguments)
    assert result.returncode == 2
    assert f"launch/{script}" in result.stdout


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


def test_a_local_process_that_fails_ends_the_others():
  code = "if [[ $4 == --process_index=1 ]]; then exit 7; else sleep 50; fi"
  result = run("local_multiprocess.sh", "2", "bash", "-c", code, "bash")
  assert result.returncode == 7
  assert "a process ended with exit code 7; ending the others" in result.stderr


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


def test_the_dry_run_of_a_pod_calls_nothing(stub):
  path = stub("gcloud")
  arguments = (*TPU, "--", "python3", "-m", "tpv_jax.train")
  result = run("tpu_pod.sh", "--dry-run", "keep", *arguments, path=path)
  assert result.returncode == 0
  assert not (path / "gcloud.calls").exists()
  assert [
    line.split()[4] for line in result.stdout.splitlines() if "gcloud" in line
  ] == [
    "create",
    "scp",
    "ssh",
    "ssh",
  ]

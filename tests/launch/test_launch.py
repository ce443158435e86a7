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
  assert result.stderr.startswith("error: ")
  assert result.stderr.count("\n") == 1
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
    assert shown.returncode == 0
    assert advice.split()[0] in shown.stdout


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
  ],
)
def test_no_value_becomes_an_option_of_another_command(arguments, stub):
  path = stub("srun")
  refused(*arguments, path=path)
  assert os.listdir(path) == ["srun"]


def test_values_with_control_characters_are_shown_quoted():
  assert r"$'\E[2J\n'" in refused("slurm.sh", "--nodes=\x1b[2J\n", "--", "true")


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
    # Where these tests were started with '&' or nohup, it would be ignored.
    preexec_fn=lambda: signal.signal(number, signal.SIG_DFL),
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
  command = ("tpv", "train", "--gin.RUN_DIR='a b'")
  arguments = ("--nodes=2", "--time=01:00:00", "--setup=source venv", "--", *command)
  dry = run("slurm.sh", "--dry-run", *arguments, path=path)
  assert run("slurm.sh", *arguments, path=path).returncode == 0
  (call,) = stub.calls("srun")
  assert ["srun", *call] == shlex.split(dry.stdout)
  assert {"--nodes=2", "--ntasks-per-node=1", "--time=01:00:00"} <= set(call)
  assert call[-3:-1] == ["bash", "-c"]
  setup, inner = call[-1].split(" && exec ")
  assert setup.split("; ")[1] == "source venv"
  assert shlex.split(inner) == [*command, "--multiprocess_gpu"]


@pytest.mark.parametrize(
  ("gpus", "expected"),
  [((), "0,1,2,3,4,5,6,7"), (("--gpus=4",), "0,1,2,3"), (("--gpus=a100:1",), "0")],
)
@pytest.mark.parametrize("setup", [(), ("--setup=OTHER=1",)])
def test_a_process_of_slurm_has_all_gpus_of_its_node(stub, gpus, setup, expected):
  """JAX itself takes the one of SLURM_LOCALID; what srun starts is run here."""
  path = stub("srun", 'exec "${@: -3}"')
  command = ("bash", "-c", 'echo "$JAX_LOCAL_DEVICE_IDS $@"', "bash", "a b")
  result = run("slurm.sh", "--nodes=2", *gpus, *setup, "--", *command, path=path)
  assert result.stdout == f"{expected} a b --multiprocess_gpu\n", result.stderr


@pytest.mark.parametrize(
  "script", [("local_multiprocess.sh", "2"), ("slurm.sh", "--nodes=2", "--")]
)
@pytest.mark.parametrize("name", ["eval", "infer"])
def test_scripts_of_t5x_that_know_no_processes_are_refused_by_the_name_to_write(
  stub, script, name
):
  path = stub("srun")
  command = ("python", "-m", f"t5x.{name}", "--gin_file=t5x.eval")
  line = refused(*script, *command, path=path)
  assert f"write python -m tpv_jax.t5x.{name}." in line
  dry = run(script[0], "--dry-run", *script[1:], "python", "-m", f"tpv_jax.t5x.{name}")
  assert dry.returncode == 0, dry.stderr

"""Several hosts under T5X, as processes on loopback.

The first tests are of what T5X is given, and need no T5X; this file is also the program
that their two processes run.
"""

import json
import os
import pathlib
import runpy
import signal
import socket
import subprocess
import sys
import tempfile
import time

import numpy as np
import pytest

from tpv_jax.core.errors import UserError, run_command
from tpv_jax.vectors import store

FLAGS = ("--multiprocess_gpu", "--coordinator_address=h:1", "--process_count=2")


def start(*command, count=2, devices=2):
  """Starts the processes of one Python command, joined on loopback.

  What each prints is in its `log`: a pipe that nobody reads would stop it.
  """
  with socket.socket() as free:
    free.bind(("localhost", 0))
    port = free.getsockname()[1]
  joined = ["--multiprocess_gpu", f"--coordinator_address=localhost:{port}"]
  started = []
  for i in range(count):
    log = tempfile.TemporaryFile("w+")  # noqa: SIM115
    process = subprocess.Popen(
      [
        *(sys.executable, *command),
        *(joined if count > 1 else ()),
        *((f"--process_count={count}", f"--process_index={i}") if count > 1 else ()),
      ],
      stdout=log,
      stderr=subprocess.STDOUT,
      env={
        **os.environ,
        "JAX_PLATFORMS": "cpu",
        "XLA_FLAGS": f"--xla_force_host_platform_device_count={devices}",
      },
    )
    process.log = log
    started.append(process)
  return started


def finish(processes, code=0):
  """Waits for all processes; returns what they printed."""
  outputs = []
  for process in processes:
    process.wait(timeout=600)
    process.log.seek(0)
    outputs.append(process.log.read())
    assert process.returncode == code, outputs[-1][-8000:]
  return outputs


CUTS = ((None, None), ("a", None), (None, "b"), ("a", "b"), (None, ("a", "b")))
LEAF = np.arange(4 * 8, dtype=np.float32).reshape(4, 8)


def one_of_two(flags, folder):
  """What each process of `test_two_processes...` does."""
  import jax
  from jax.sharding import NamedSharding, PartitionSpec

  from tpv_jax.devices import processes
  from tpv_jax.t5x import saving

  processes.join(flags)
  mesh = jax.make_mesh((2, 2), ("a", "b"))
  for cut in CUTS:
    leaf = processes.put(LEAF, NamedSharding(mesh, PartitionSpec(*cut)))
    found = saving.prompt_leaves({"prompt": {"prompt": leaf}, "other": 0})
    np.testing.assert_array_equal(found["prompt"], LEAF)
  processes.check_shared(folder / "shared" / "run", "MODEL_DIR")
  with pytest.raises(UserError, match=r"MODEL_DIR '.*' is not one folder for all 2"):
    processes.check_shared(folder / str(jax.process_index()), "MODEL_DIR")
  processes.wait_for_all("all is checked")
  jax.distributed.shutdown()
  print("all is checked", flush=True)
  os.kill(os.getpid(), signal.SIGTERM)
  time.sleep(60)


def stopped_before_it_goes_on(flags):
  """What each process of the test below does: one gets SIGTERM before the first step."""
  import jax

  from tpv_jax.devices import processes
  from tpv_jax.t5x import preemption

  processes.join(flags, preemption=True)
  notice = preemption.Notice()
  if jax.process_index() == 1:
    os.kill(os.getpid(), signal.SIGTERM)
  time.sleep(5)
  print(f"stopped after {next(i for i in range(1000) if pause() or notice.came())}")
  jax.distributed.shutdown()


def pause():
  time.sleep(0.1)


def test_two_processes_end_after_one_step_if_one_got_sigterm_before(tmp_path):
  one, other = (
    output.splitlines()[-1] for output in finish(start(__file__, "--sigterm_before"))
  )
  assert one == other
  assert one.startswith("stopped after ")


def test_two_processes_gather_a_prompt_however_it_is_cut_and_see_one_folder(tmp_path):
  """SIGTERM then ends them as it does one: JAX does not catch it unasked."""
  for output in finish(start(__file__, f"--folder={tmp_path}"), code=143):
    assert output.endswith("all is checked\ninterrupted: stopped by SIGTERM\n"), output
  assert not list(tmp_path.rglob(".seen*"))


@pytest.mark.parametrize("script", ["train", "eval", "infer"])
def test_a_script_of_t5x_gets_its_own_flags_after_the_others_are_joined(
  monkeypatch, script
):
  from tpv_jax import t5x
  from tpv_jax.devices import processes

  did = []
  monkeypatch.setattr(t5x, "as_command", lambda: did.append("hook"))
  monkeypatch.setattr(
    processes, "join", lambda flags, preemption: did.append((vars(flags), preemption))
  )
  monkeypatch.setattr(runpy, "run_module", lambda *a, **o: did.append((a, o, sys.argv)))
  own = ["--gin_file=a.gin", "--gin.A=1", "--tfds_data_dir=gs://b"]
  monkeypatch.setattr(sys, "argv", ["script", own[0], *FLAGS, *own[1:]])
  from_module = runpy.run_path(
    str(pathlib.Path(t5x.__file__).with_name(f"{script}.py")), run_name="__main__"
  )
  assert "scripts" in from_module
  hook, (flags, preemption), (arguments, options, argv) = did
  assert hook == "hook"
  assert flags == {
    "multiprocess_gpu": True,
    "coordinator_address": "h:1",
    "process_count": 2,
    "process_index": None,
    "initialization_timeout": None,
  }
  assert preemption == (script == "train")
  assert arguments == (f"t5x.{script}",)
  assert options["run_name"] == "__main__"
  assert argv == ["script", *own]


def test_flags_of_several_processes_alone_are_refused(monkeypatch):
  from tpv_jax.t5x import scripts

  monkeypatch.setattr(sys, "argv", ["script", "--process_count=2"])
  hook = sys.excepthook
  try:
    with pytest.raises(UserError, match="are read with --multiprocess_gpu only"):
      scripts.run("eval")
  finally:
    sys.excepthook = hook


ENDINGS = """
import sys
from tpv_jax import t5x
from tpv_jax.core.errors import Interrupted, UserError
t5x.as_command()
raise {}
"""


@pytest.mark.parametrize(
  ("raised", "code", "told"),
  [
    ("UserError('no such file')", 2, "error: no such file\n"),
    (
      "Interrupted(15, 'stopped by SIGTERM after step 3\\n  In call to gin')",
      143,
      "interrupted: stopped by SIGTERM after step 3\n",
    ),
    ("KeyboardInterrupt", 130, "interrupted\n"),
  ],
)
def test_what_ends_a_script_of_t5x_is_told_in_one_line(raised, code, told):
  done = subprocess.run(
    [sys.executable, "-c", ENDINGS.format(raised)],
    capture_output=True,
    text=True,
    check=False,
  )
  assert (done.returncode, done.stderr) == (code, told)


def t5x_script(script, name, *flags, **settings):
  """Returns the command of a script on the embedded backbone, with EPT where it trains."""
  sizes = ("--gin.PROMPT_LENGTH=32", "--gin.SHORT_LENGTH=8", "--gin.SOURCE_LENGTH=24")
  ept = ("--gin_file=gin_configs/prompts/ept.gin", *sizes)
  return [
    *("-m", f"tpv_jax.t5x.{script}", f"--gin_file=gin_configs/t5x/{name}.gin"),
    *(ept if script == "train" else ()),
    *flags,
    *(f"--gin.{name}={value!r}" for name, value in settings.items()),
  ]


def train(run, steps, **settings):
  return t5x_script(
    "train",
    "bank_embedded" if "TASK_NAMES" in settings else "train_embedded",
    *("--gin.EVAL_PERIOD=10", f"--gin.TRAIN_STEPS={steps}"),
    **{"MODEL_DIR": str(run)} | settings,
  )


def stop_at_sigterm(processes, checkpoint):
  """Sends SIGTERM to the last process once a checkpoint is there."""
  deadline = time.monotonic() + 500
  while not (checkpoint / "commit_success.txt").exists():
    assert time.monotonic() < deadline
    assert processes[0].poll() is None
    time.sleep(0.1)
  processes[-1].send_signal(signal.SIGTERM)
  return finish(processes, code=143)


def prompts(run):
  """Returns the bytes of each prompt file of a run, or of a bank's."""
  return {
    str(path.relative_to(run)): path.read_bytes()
    for path in run.rglob("*.safetensors")
    if "eval" not in path.parts
  }


NEAR = 1e-3
"""By so much values may differ after 20 steps: sums over processes round differently, and
AdamW at rate 0.3 carries that on while values move by several units."""


def run_all(*commands_of_count):
  """Runs each command by one process of four devices, and by two of two devices."""
  for command in commands_of_count:
    for count in (1, 2):
      finish(start(*command(count), count=count, devices=4 // count))


def assert_near(one, other):
  assert one.keys() == other.keys()
  assert one
  for name, (leaves, known) in one.items():
    leaves_of_other, known_of_other = other[name]
    assert known.steps == known_of_other.steps, name
    for leaf, value in leaves.items():
      np.testing.assert_allclose(leaves_of_other[leaf], value, rtol=0, atol=NEAR)


def read_prompts(run):
  return {name: store.read(run / name) for name in prompts(run)}


@pytest.mark.slow
def test_two_processes_train_evaluate_and_infer_with_the_numbers_of_one(t5x, tmp_path):
  """Training cuts the prompt over both processes, the others deal out rows to both."""
  cut = {"TASK_NAME": "sentiment", "MODEL_PARALLEL": 4}
  run_all(lambda count: train(tmp_path / f"run{count}", 20, **cut))
  assert_near(*(read_prompts(tmp_path / f"run{count}") for count in (1, 2)))
  run = tmp_path / "run2"

  def job(script):
    return lambda count: t5x_script(
      *(script, f"{script}_embedded", f"--gin.OUTPUT_DIR='{tmp_path}/{script}{count}'"),
      *(f"--gin.PROMPT_PATH='{run}'", "--gin.TASK_NAME='sentiment'"),
      MODEL_PARALLEL=2,
    )

  run_all(job("eval"), job("infer"))
  scores, rows = [], []
  for count in (1, 2):
    (found,) = (tmp_path / f"eval{count}" / "inference_eval").glob("*-metrics.jsonl")
    scores.append(json.loads(found.read_text()))
    (found,) = (tmp_path / f"infer{count}").glob("*.jsonl-00000-of-00001")
    rows.append([json.loads(line) for line in found.read_text().splitlines()])
  assert scores[0] == scores[1]
  assert scores[0]["exact_match"] > 0.5
  assert rows[0] == rows[1]
  assert len(rows[0]) > 100


@pytest.mark.slow
@pytest.mark.parametrize("parallel", [4, 2])
def test_two_processes_train_a_bank_with_the_numbers_of_one(t5x, tmp_path, parallel):
  """Where rows are dealt out to hosts, their order is another one; so are the numbers."""
  tasks = {"TASK_NAMES": ["sentiment", "topic"], "INITIAL_SEEDS": [0, 1]}
  cut = tasks | {"MODEL_PARALLEL": parallel}
  run_all(lambda count: train(tmp_path / f"bank{count}", 20, **cut))
  one, two = (read_prompts(tmp_path / f"bank{count}") for count in (1, 2))
  for member in ("sentiment-0", "sentiment-1", "topic-0", "topic-1"):
    assert {
      f"{member}/last_prompt.safetensors",
      f"{member}/best_prompt.safetensors",
    } < {*two}
  if parallel == 4:
    assert_near(one, two)
  else:
    assert one.keys() == two.keys()


@pytest.mark.slow
@pytest.mark.parametrize("count", [1, 2])
def test_sigterm_saves_and_the_same_command_ends_with_the_bits_of_an_unbroken_run(
  t5x, tmp_path, count
):
  """With evaluations, saves and the best prompt at the steps of an unbroken run."""
  runs = tmp_path / "stopped", tmp_path / "whole"
  many = {"count": count, "devices": 4 // count}
  cut = {"TASK_NAME": "sentiment", "MODEL_PARALLEL": 4, "KEEP": None}
  stopped = start(*train(runs[0], 100_000, **cut), **many)
  outputs = stop_at_sigterm(stopped, runs[0] / "checkpoint_10")
  step = max(int(path.name.split("_")[1]) for path in runs[0].glob("checkpoint_*"))
  line = (
    f"interrupted: stopped by SIGTERM after step {step}; the same command continues"
  )
  assert all(output.splitlines()[-1] == line for output in outputs), outputs
  assert step > 10
  assert step % 10  # T5X evaluates where it saves in any case.
  steps = step - step % 10 + 20
  for run in runs:
    finish(start(*train(run, steps, **cut), **many))
  again, whole = map(prompts, runs)
  assert again.pop(f"prompts/prompt_{step}.safetensors")
  assert again == whole
  assert len(whole) == 3 + steps // 10
  for run in runs:
    kept = {int(path.name.split("_")[1]) for path in run.glob("checkpoint_*")}
    assert kept - {step} == set(range(0, steps + 1, 10))


if __name__ == "__main__":
  import argparse

  from tpv_jax.devices import flags

  parser = argparse.ArgumentParser()
  parser.add_argument("--folder", type=pathlib.Path)
  parser.add_argument("--sigterm_before", action="store_true")
  flags.add(parser)
  given = parser.parse_args()
  if given.sigterm_before:
    stopped_before_it_goes_on(given)
  else:
    sys.exit(run_command(lambda: one_of_two(given, given.folder)))

"""Several processes on loopback: the numbers of one, resume with other numbers, loss."""

import argparse
import json
import os
import signal
import socket
import subprocess
import sys
import time

import jax
import numpy as np
import pytest

from tpv_jax import cli
from tpv_jax.core.errors import UserError
from tpv_jax.devices import processes
from tpv_jax.formats import sources
from tpv_jax.vectors import algebra, store

STEPS = 40


def start_all(verb, count, *flags):
  """Starts `count` processes of one command, joined on loopback."""
  with socket.socket() as free:
    free.bind(("localhost", 0))
    port = free.getsockname()[1]
  return [
    subprocess.Popen(
      [
        *(sys.executable, "-m", "tpv_jax", verb, *flags),
        *("--multiprocess_gpu", f"--coordinator_address=localhost:{port}"),
        *(f"--process_count={count}", f"--process_index={index}"),
      ],
      stdout=subprocess.PIPE,
      stderr=subprocess.STDOUT,
      text=True,
      env={**os.environ, "JAX_PLATFORMS": "cpu", "XLA_FLAGS": ""},
    )
    for index in range(count)
  ]


def start(run, count, steps=STEPS):
  """Starts `count` processes of one run on the embedded backbone."""
  return start_all(
    "train",
    count,
    "--gin_file=gin_configs/runs/embedded.gin",
    *("--gin.TASK_NAME='sentiment'", f"--gin.RUN_DIR='{run}'"),
    *("--gin.EVAL_PERIOD=20", f"--gin.TRAIN_STEPS={steps}"),
  )


def finish(processes):
  outputs = [process.communicate(timeout=240)[0] for process in processes]
  for process, output in zip(processes, outputs, strict=True):
    assert process.returncode == 0, output


def losses(run):
  lines = map(json.loads, (run / "metrics.jsonl").read_text().splitlines())
  return [(line["step"], line["kind"], line["loss"]) for line in lines]


@pytest.fixture(scope="module")
def alone(tmp_path_factory):
  run = tmp_path_factory.mktemp("alone") / "run"
  finish(start(run, 1))
  return run


@pytest.mark.parametrize("count", [2, pytest.param(4, marks=pytest.mark.slow)])
def test_several_processes_give_the_numbers_of_one(alone, tmp_path, count):
  run = tmp_path / "run"
  finish(start(run, count))
  manifest = json.loads((run / "manifest.json").read_text())
  assert manifest["status"] == "finished"
  assert manifest["mesh"] == {"data": count, "model": 1}
  for (*where, loss), (*expected_where, expected) in zip(
    losses(run), losses(alone), strict=True
  ):
    assert where == expected_where
    # fp32 sums over processes round differently, and Adam at lr 0.3 amplifies it.
    np.testing.assert_allclose(loss, expected, rtol=0.02, atol=2e-4)
  one, _ = store.read(alone / "initial_prompt.safetensors")
  other, _ = store.read(run / "initial_prompt.safetensors")
  np.testing.assert_array_equal(one["prompt"], other["prompt"])


@pytest.mark.slow
def test_an_ept_prompt_that_is_cut_over_two_processes_is_saved_whole(tmp_path):
  leaves = {}
  for count in (1, 2):
    run = tmp_path / str(count)
    flags = (
      "--gin_file=gin_configs/runs/embedded.gin",
      "--gin_file=gin_configs/prompts/ept.gin",
      *("--gin.PROMPT_LENGTH=32", "--gin.SHORT_LENGTH=8", "--gin.SOURCE_LENGTH=24"),
      *("--gin.TASK_NAME='sentiment'", f"--gin.RUN_DIR='{run}'"),
      *("--gin.TRAIN_STEPS=4", "--gin.EVAL_PERIOD=2", f"--gin.MODEL_PARALLEL={count}"),
    )
    finish(start_all("train", count, *flags))
    assert json.loads((run / "manifest.json").read_text())["mesh"] == {
      "data": 1,
      "model": count,
    }
    leaves[count], _ = store.read(run / "best_prompt.safetensors")
  assert len(leaves[1]) == 10
  for name, leaf in leaves[1].items():
    # fp32 sums over processes round differently, and Adam amplifies it.
    np.testing.assert_allclose(leaves[2][name], leaf, atol=2e-3, err_msg=name)


def test_evaluation_of_many_prompts_by_two_processes_has_the_numbers_of_one(
  alone, tmp_path
):
  vector = tmp_path / "vector.safetensors"
  best, initial = (sources.load(alone, which) for which in ("best", "initial"))
  difference = algebra.diff(best, initial)
  store.write(vector, difference.leaves, difference.provenance)
  outputs = {}
  for count in (1, 2):
    output = tmp_path / f"{count}.json"
    processes = start_all(
      "eval",
      count,
      "--gin_file=gin_configs/runs/eval_embedded.gin",
      *("--gin.TASK_NAMES=['sentiment', 'topic']", f"--gin.OUTPUT='{output}'"),
      f"--gin.PROMPT_PATH=[None, '{alone}']",
      *(f"--gin.VECTOR='{vector}'", f"--gin.INITIAL='{alone}'"),
      *("--gin.SEARCH=[0.25, 0.5, 1]", "--gin.SEARCH_EXAMPLES=60"),
    )
    printed = [process.communicate(timeout=240)[0] for process in processes]
    assert [process.returncode for process in processes] == [0] * count, printed
    assert sum("exact_match" in text for text in printed) == 1
    outputs[count] = json.loads(output.read_text())
  one, two = outputs[1], outputs[2]
  assert len(one["results"]) == 3 * 2
  assert one["results"] == two["results"]
  assert one["candidates"] == two["candidates"]  # With what was tried in the search.
  assert len({json.dumps(row) for row in one["results"]}) > 3


def test_a_lost_process_ends_the_others_and_fewer_processes_resume(alone, tmp_path):
  run = tmp_path / "run"
  long = 100_000  # They would not be done before the test is.
  first, second = start(run, 2, steps=long)
  deadline = time.time() + 200
  while not (run / "checkpoints" / "checkpoint_20").exists():
    assert time.time() < deadline, first.communicate()[0]
    assert first.poll() is None, first.communicate()[0]
    time.sleep(0.1)
  second.kill()
  output, _ = first.communicate(timeout=200)
  assert first.returncode != 0
  assert (
    "another process ended or cannot be reached" in output
    or "another task died" in output
  )
  last = max(
    int(p.name.split("_")[1]) for p in (run / "checkpoints").glob("checkpoint_*[0-9]")
  )
  manifest = json.loads((run / "manifest.json").read_text())
  assert manifest["status"] == "running"
  assert last < long
  # One process alone takes the run up again where the two had left it.
  (again,) = start(run, 1, steps=long)
  while True:
    assert time.time() < deadline + 200, again.communicate()[0]
    assert again.poll() is None, again.communicate()[0]
    kept = {
      int(p.name.split("_")[1]) for p in (run / "checkpoints").glob("checkpoint_*[0-9]")
    }
    if max(kept) > last:
      break
    time.sleep(0.1)
  again.kill()
  steps = [step for step, kind, _ in losses(run) if kind == "train"]
  assert steps == sorted(set(steps)), "no step was logged twice"


def bank_flags(folder, steps, *more):
  return [
    "--gin_file=gin_configs/runs/bank_embedded.gin",
    "--gin.TASK_NAMES=['sentiment', 'topic']",
    f"--gin.OUTPUT_DIR='{folder}'",
    *("--gin.EVAL_PERIOD=4", f"--gin.TRAIN_STEPS={steps}", *more),
  ]


def test_two_processes_train_a_bank_as_one_does_each_with_one_of_its_prompts(tmp_path):
  assert cli.main(["bank", *bank_flags(tmp_path / "one", 8)]) == 0
  flags = bank_flags(tmp_path / "two", 8, "--gin.SHARD_BANK=True")
  finish(start_all("bank", 2, *flags))
  for name in ("sentiment-0", "topic-0"):
    one, two = tmp_path / "one" / name, tmp_path / "two" / name
    manifest = json.loads((two / "manifest.json").read_text())
    assert manifest["mesh"] == {"data": 2, "model": 1}
    assert (manifest["status"], manifest["last_step"]) == ("finished", 8)
    assert len(losses(two)) == len(losses(one)) == 4
    for (*where, loss), (*expected_where, expected) in zip(
      losses(two), losses(one), strict=True
    ):
      assert where == expected_where
      # fp32 sums over processes round differently, and Adam at lr 0.3 amplifies it.
      np.testing.assert_allclose(loss, expected, rtol=1e-3, atol=2e-4)


def test_a_signal_to_one_process_stops_a_bank_on_all_at_the_same_step(tmp_path):
  folder, names = tmp_path / "bank", ("sentiment-0", "topic-0", "nli-0")
  tasks = "--gin.TASK_NAMES=['sentiment', 'topic', 'nli']"  # More than processes.
  both = start_all("bank", 2, *bank_flags(folder, 100_000, tasks))
  deadline = time.time() + 200
  while not (folder / "nli-0" / "checkpoints" / "checkpoint_4").exists():
    assert time.time() < deadline, both[0].communicate()[0]
    assert both[0].poll() is None, both[0].communicate()[0]
    time.sleep(0.1)
  both[1].send_signal(signal.SIGTERM)
  outputs = [process.communicate(timeout=200)[0] for process in both]
  assert [process.returncode for process in both] == [143, 143], outputs
  manifests = [
    json.loads((folder / name / "manifest.json").read_text()) for name in names
  ]
  assert [manifest["status"] for manifest in manifests] == ["stopped"] * 3
  (step,) = {manifest["last_step"] for manifest in manifests}
  for name in names:
    assert (folder / name / "checkpoints" / f"checkpoint_{step}").exists()


@pytest.mark.parametrize(
  "told",
  [
    "RESOURCE_EXHAUSTED: Out of memory allocating 64 bytes.",
    "INTERNAL: Error dispatching computation: Out of memory allocating 64 bytes.",
    "INTERNAL: Failed to allocate 64 bytes: CUDA_ERROR_OUT_OF_MEMORY: out of memory",
    "RESOURCE_EXHAUSTED: Ran out of memory in memory space hbm.",
  ],
)
def test_too_little_memory_is_one_line_whatever_the_device_calls_it(told):
  with (
    pytest.raises(
      UserError, match=r"^The device has too little memory \([A-Z][a-z]"
    ) as e,
    processes.one_clear_line_if_memory_is_short("Lower BATCH_SIZE."),
  ):
    raise jax.errors.JaxRuntimeError(told)
  assert str(e.value).endswith("). Lower BATCH_SIZE.")


def test_other_errors_of_a_device_stay_what_they_are():
  with (
    pytest.raises(jax.errors.JaxRuntimeError, match="no such function"),
    processes.one_clear_line_if_memory_is_short("Lower BATCH_SIZE."),
  ):
    raise jax.errors.JaxRuntimeError("INTERNAL: no such function")


def test_a_process_that_waits_for_nobody_says_so(capsys):
  from tpv_jax.core.errors import UserError
  from tpv_jax.devices import flags, processes

  parser = argparse.ArgumentParser()
  flags.add(parser)
  with pytest.raises(UserError, match=r"could not join the others: .*--process_count"):
    processes.join(parser.parse_args(["--multiprocess_gpu"]))


@pytest.mark.parametrize(
  ("backend", "named", "expected"),
  [("gpu", None, "kept"), ("gpu", "mine", "unchanged"), ("cpu", None, "unchanged")],
)
def test_what_is_compiled_for_an_accelerator_is_kept_unless_the_user_says_where(
  monkeypatch, tmp_path, backend, named, expected
):
  monkeypatch.setattr(jax, "default_backend", lambda: backend)
  monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
  monkeypatch.delenv("JAX_COMPILATION_CACHE_DIR", raising=False)
  if named is not None:
    monkeypatch.setenv("JAX_COMPILATION_CACHE_DIR", named)
  before = jax.config.jax_compilation_cache_dir
  jax.config.update("jax_compilation_cache_dir", "unchanged")
  try:
    processes.keep_compiled_programs()
    found = jax.config.jax_compilation_cache_dir
  finally:
    jax.config.update("jax_compilation_cache_dir", before)
  kept = str(tmp_path / "tpv_jax" / "compiled")
  assert found == {"kept": kept, "unchanged": "unchanged"}[expected]

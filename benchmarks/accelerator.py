"""Measures on an accelerator what fits into a budget of seconds, and makes one archive.

Rows, in order of worth, are commands of this folder, each in a process of its own. The next
rows that fit start side by side, so that imports, weights and compiling overlap; then each is
timed alone while the others wait. A row that fails says why and the others go on. A further
call continues with what is missing, and then tries again what failed. DIR holds a JSON file
and a log of each row; the archive, which is written anew after each row, holds the same.

Needs Python 3.12 or newer, jax with CUDA (or TPU), flax, optax, orbax and safetensors; for
PEFT's side torch, transformers and peft.
"""

import argparse
import contextlib
import importlib.util
import json
import os
import pathlib
import shlex
import signal
import subprocess
import sys
import tarfile
import time
from collections.abc import Sequence
from typing import Any

HERE = pathlib.Path(__file__).parent
sys.path[:0] = [str(HERE), str(HERE.parent)]

import accelerator_rows  # noqa: E402
import gate  # noqa: E402
import record  # noqa: E402
from accelerator_rows import Row  # noqa: E402

from tpv_jax.core import files  # noqa: E402
from tpv_jax.core.errors import (  # noqa: E402
  ArgumentParser,
  UserError,
  at_least,
  near_misses,
  run_command,
)

EXAMPLES = """\
examples:
  what five and a half minutes allow:
    python benchmarks/accelerator.py --budget 330 --output accelerator
  go on, in another five and a half minutes:
    python benchmarks/accelerator.py --budget 330 --output accelerator
  the same where the folder is gone and the archive is left:
    python benchmarks/accelerator.py --budget 330 --output again --after accelerator.tar.gz
  without an accelerator: does every row run?
    python benchmarks/accelerator.py --dry-run --budget 600 --output dry
"""

PROBE = """\
import json, jax
device = jax.devices()[0]
memory = (device.memory_stats() or {}).get('bytes_limit')
print(json.dumps({'platform': device.platform, 'kind': device.device_kind,
                  'devices': jax.device_count(), 'memory_bytes': memory}))
"""

PACKAGES = (
  *("jax", "jaxlib", "flax", "optax", "orbax-checkpoint", "numpy", "safetensors"),
  *("torch", "transformers", "peft", "qwix"),
)

STARTING_LIMIT = 1.5
"""How many times a row's estimate its start may take before the others are timed without
it; it is stopped meanwhile, so that it does not disturb them."""

CORES_OF_A_ROW = 4
"""Cores that a row keeps busy while its processes start."""

PAUSE = 0.05
"""Seconds between two looks at the processes."""

DONE, FAILED = "done", "failed"
"""The status of a row; a failed one is tried again by a further call."""


def main(argv: Sequence[str] | None = None) -> int:
  """Measures, prints tables, writes files; returns the exit code."""
  parser = ArgumentParser(
    description=__doc__,
    epilog=EXAMPLES,
    formatter_class=argparse.RawDescriptionHelpFormatter,
  )
  parser.add_argument("--output", required=True, type=pathlib.Path, metavar="DIR")
  parser.add_argument(
    "--budget", type=float, default=330, help="seconds, 330 by default"
  )
  parser.add_argument(
    "--archive", type=pathlib.Path, help="by default DIR.tar.gz, beside the folder"
  )
  parser.add_argument(
    "--after", type=pathlib.Path, help="an archive whose finished rows are not repeated"
  )
  parser.add_argument(
    "--only", nargs="+", metavar="ROW", help="some rows; by default all"
  )
  parser.add_argument(
    "--at-once",
    type=int,
    help="rows that start side by side; by default one for "
    "every four cores, on a TPU one",
  )
  parser.add_argument(
    "--peft-python", default=sys.executable, help="the Python that has torch and peft"
  )
  parser.add_argument(
    "--carried", type=pathlib.Path, metavar="FOLDER", help="for smollm2-study"
  )
  parser.add_argument("--dry-run", action="store_true", help="tiny sizes, on the CPU")
  parser.add_argument("--debug", action="store_true", help="show traces of errors")
  options = parser.parse_args(argv)
  called = shlex.join(
    ["python", "benchmarks/accelerator.py", *(sys.argv[1:] if argv is None else argv)]
  )
  return run_command(lambda: run(options, called), debug=options.debug)


def run(options: argparse.Namespace, called: str) -> int:
  """Measures the rows that the options ask for; returns 0, whatever became of them.

  Raises:
    UserError: options that do not fit; JAX sees no accelerator.
  """
  if options.at_once is not None:
    at_least("--at-once", options.at_once, 1)
  deadline = time.monotonic() + options.budget
  rows = {row.name: row for row in accelerator_rows.ROWS}
  for name in options.only or ():
    if name not in rows:
      raise UserError(
        f"There is no row '{name}'.{near_misses(name, rows)} Choose some of "
        f"{', '.join(rows)}."
      )
  # So that processes end and the archive is whole when the command is stopped.
  signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))
  bench = Bench(options, called, deadline)
  bench.measure([rows[name] for name in dict.fromkeys(options.only or rows)])
  bench.print_table()
  return 0


class Bench:
  """A folder of results, and the time that is left."""

  def __init__(self, options: argparse.Namespace, called: str, deadline: float):
    self.options, self.called, self.deadline = options, called, deadline
    self.folder = options.output.absolute()
    self.archive = options.archive or self.folder.with_name(
      f"{self.folder.name}.tar.gz"
    )
    for name in ("rows", "logs", "weights", "gates", "cache"):
      (self.folder / name).mkdir(parents=True, exist_ok=True)
    if options.after:
      unpack(options.after, self.folder)
    self.environment = {
      **os.environ,
      "PYTHONPATH": os.pathsep.join(
        [str(HERE.parent), *filter(None, [os.environ.get("PYTHONPATH")])]
      ),
      "JAX_COMPILATION_CACHE_DIR": str(self.folder / "cache"),
      "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0.5",
      "TORCHINDUCTOR_CACHE_DIR": str(self.folder / "cache" / "torch"),
      # By default one process would reserve most of a GPU's memory.
      "XLA_PYTHON_CLIENT_PREALLOCATE": "false",
    }
    if options.dry_run:
      self.environment |= {"JAX_PLATFORMS": "cpu", "CUDA_VISIBLE_DEVICES": ""}
    self.device = self._probed()
    self._refuse_others()
    self.on_tpu = self.device["platform"] == "tpu"
    cores = max(1, len(os.sched_getaffinity(0)) // CORES_OF_A_ROW)
    self.at_once = options.at_once or (1 if self.on_tpu else cores)

  def _probed(self) -> dict[str, Any]:
    """Returns what JAX computes on.

    Raises:
      UserError: JAX does not start, or has only the CPU and this is no dry run.
    """
    done = subprocess.run(
      [sys.executable, "-c", PROBE],
      env=self.environment,
      capture_output=True,
      text=True,
      check=False,
    )
    if done.returncode:
      last = done.stderr.strip().splitlines()[-1:]
      raise UserError(f"JAX does not start with '{sys.executable}': {last}.")
    device: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    if device["platform"] == "cpu" and not self.options.dry_run:
      raise UserError(
        "JAX sees no accelerator here. Install it for one (docs/installing.md), or try "
        "all rows with tiny sizes: --dry-run."
      )
    return device

  def _refuse_others(self) -> None:
    """Raises `UserError` if rows in the folder were measured elsewhere, or in a dry run."""
    mine = "a dry run" if self.options.dry_run else f"'{self.device['kind']}'"
    for path in sorted((self.folder / "rows").glob("*.json")):
      found = json.loads(path.read_text())
      what = "a dry run" if found["dry_run"] else f"'{found['device']['kind']}'"
      if what != mine:
        raise UserError(
          f"'{self.folder}' holds rows of {what}, such as '{path.stem}', and this is {mine}: "
          "they would pass for measured here. Give another --output."
        )

  def measure(self, rows: Sequence[Row]) -> None:
    """Measures rows until none is left or fits."""
    waiting = [row for row in rows if self.status(row) is None]
    again = [row for row in rows if self.status(row) == FAILED]
    for pending in (waiting, again):
      for row in list(pending):
        if why := self._impossible(row):
          print(f"{row.name}: left out: {why}", flush=True)
          pending.remove(row)
      while wave := self._next(pending):
        for row in wave:
          pending.remove(row)
        self._run(wave)
      for row in pending:
        print(
          f"{row.name}: left out: takes some {row.start + row.timed} s, and "
          f"{max(0, self.left()):.0f} s are left",
          flush=True,
        )

  def left(self) -> float:
    """Returns the seconds that are left."""
    return self.deadline - time.monotonic()

  def status(self, row: Row) -> str | None:
    """Returns what became of a row; None if it was never run."""
    path = self._file(row)
    return json.loads(path.read_text())["status"] if path.exists() else None

  def _file(self, row: Row) -> pathlib.Path:
    return self.folder / "rows" / f"{row.name}.json"

  def _impossible(self, row: Row) -> str | None:
    """Returns why a row cannot run on this machine, whatever the time."""
    if row.carried and not self.options.carried:
      return "needs --carried FOLDER (docs/accelerator.md)"
    lacking = [name for name in row.needs if not has(self.options.peft_python, name)]
    return f"{', '.join(lacking)} not installed" if lacking else None

  def _next(self, pending: Sequence[Row]) -> list[Row]:
    """Returns the next rows that fit into the time, to be started side by side."""
    wave: list[Row] = []
    start = timed = 0
    for row in pending:
      with_it = (0, 0) if self.options.dry_run else (row.start, row.timed)
      longest, together = max(start, with_it[0]), timed + with_it[1]
      if len(wave) < self.at_once and longest + together < self.left():
        wave.append(row)
        start, timed = longest, together
    return wave

  def _run(self, wave: Sequence[Row]) -> None:
    """Starts rows side by side and times each alone."""
    self._draw_weights(wave)
    with contextlib.ExitStack() as stack:
      running = [Running(row, self) for row in wave]
      for one in running:
        stack.callback(one.end)
      until = time.monotonic() + STARTING_LIMIT * max(row.start for row in wave)
      while time.monotonic() < min(until, self.deadline):
        if all(one.is_ready() for one in running):
          break
        time.sleep(PAUSE)
      late = [one for one in running if not one.is_ready()]
      for one in late:
        one.signal(signal.SIGSTOP)
      # The late ones last, so that they start while nothing is timed.
      for one in [*(one for one in running if one not in late), *late]:
        if one in late:
          one.signal(signal.SIGCONT)
        one.gate("open").touch()
        while one.process.poll() is None and self.left() > 0:
          time.sleep(PAUSE)
        self._keep(one)

  def _draw_weights(self, wave: Sequence[Row]) -> None:
    """Makes the random weights of rows before they start, so that none makes them twice."""
    folder = f"{self.folder / 'weights'}"
    sizes = {
      pathlib.PurePath(word.split("=")[1]).stem
      for row in wave
      for word in self.words(row)
      if word.startswith("--weights=")
    }
    missing = [
      name
      for name in sorted(sizes)
      if not (self.folder / "weights" / f"{name}.safetensors").exists()
    ]
    if missing:
      subprocess.run(
        [sys.executable, str(HERE / "weights.py"), *missing, f"--folder={folder}"],
        env={**self.environment, "JAX_PLATFORMS": "cpu"},
        check=False,  # Then a row makes them, or says why it cannot.
      )

  def words(self, row: Row) -> list[str]:
    """Returns a row's arguments here."""
    given = row.tiny if self.options.dry_run else row.arguments
    words = [
      word.format(
        folder=self.folder,
        weights=self.folder / "weights",
        carried=self.options.carried and self.options.carried.absolute(),
      )
      for word in given
    ]
    if row.processes:
      words.append("--apart" if self.on_tpu else "--side-by-side")
      words.append(f"--peft-python={self.options.peft_python}")
    return words

  def _keep(self, one: "Running") -> None:
    """Writes what became of a row, and the archive."""
    code = one.process.poll()
    one.end()
    found: dict[str, Any] = {
      "row": one.row.name,
      "about": one.row.about,
      "command": one.command,
      "device": self.device,
      "dry_run": self.options.dry_run,
      "seconds": round(time.monotonic() - one.began, 1),
      "exit_code": code,
      **record.made(self.called),
      "versions": record.versions(PACKAGES),
    }
    if one.result.exists():
      found |= {"status": DONE, "result": json.loads(one.result.read_text())}
      one.result.unlink()
      print(one.log("txt").read_text(errors="replace"))
    else:
      lines = one.log("log").read_text(errors="replace").strip().splitlines()
      why = "no time was left" if code is None else (lines or ["no message"])[-1]
      found |= {"status": FAILED, "why": why, "last_lines": lines[-20:]}
    files.write_json(self._file(one.row), found)
    self._pack()
    print(f"{one.row.name}: {found['status']} after {found['seconds']} s", flush=True)

  def _pack(self) -> None:
    """Writes the archive anew, with the results and logs of all rows."""
    scratch = self.archive.with_name(f".{self.archive.name}.{os.getpid()}")
    with tarfile.open(scratch, "w:gz") as tar:
      for name in ("rows", "logs"):
        tar.add(self.folder / name, arcname=name)
    scratch.replace(self.archive)

  def print_table(self) -> None:
    """Prints what became of every row, and where the archive is."""
    for row in accelerator_rows.ROWS:
      path = self._file(row)
      found = json.loads(path.read_text()) if path.exists() else {"status": "not run"}
      why = f": {found['why'][:120]}" if "why" in found else ""
      print(f"{row.name:<20}{found['status']}{why}")
    if self.archive.exists():
      print(f"Wrote '{self.archive}'.")


class Running:
  """A row's process, with all that it starts."""

  def __init__(self, row: Row, bench: Bench):
    self.row, self.folder = row, bench.folder
    self.result = bench.folder / f"{row.name}.json"
    words = [row.script, *bench.words(row), f"--output={self.result}"]
    self.command = shlex.join(["python", f"benchmarks/{words[0]}", *words[1:]])
    for path in (self.result, self.gate("ready"), self.gate("open")):
      path.unlink(missing_ok=True)
    self.began = time.monotonic()
    with self.log("txt").open("w") as out, self.log("log").open("w") as errors:
      self.process = subprocess.Popen(
        [sys.executable, str(HERE / words[0]), *words[1:]],
        stdin=subprocess.DEVNULL,
        stdout=out,
        stderr=errors,
        env={
          **bench.environment,
          **row.environment,
          gate.VARIABLE: str(self.folder / "gates" / row.name),
        },
        start_new_session=True,
      )

  def log(self, suffix: str) -> pathlib.Path:
    """Returns the file of its output, 'txt', or of its progress and errors, 'log'."""
    return self.folder / "logs" / f"{self.row.name}.{suffix}"

  def gate(self, suffix: str) -> pathlib.Path:
    """Returns a file of its gate: see `gate`."""
    return self.folder / "gates" / f"{self.row.name}.{suffix}"

  def is_ready(self) -> bool:
    """Returns whether it waits to be timed, or has ended."""
    return self.gate("ready").exists() or self.process.poll() is not None

  def signal(self, number: int) -> None:
    """Sends a signal to the process and all that it has started."""
    with contextlib.suppress(ProcessLookupError):
      os.killpg(self.process.pid, number)

  def end(self) -> None:
    """Ends all of its processes that still run."""
    self.signal(signal.SIGKILL)
    self.process.wait()


def has(python: str, package: str) -> bool:
  """Returns whether a Python has a package."""
  if python == sys.executable:
    return importlib.util.find_spec(package) is not None
  code = f"import importlib.util as u, sys; sys.exit(u.find_spec({package!r}) is None)"
  return subprocess.run([python, "-c", code], check=False).returncode == 0


def unpack(archive: pathlib.Path, folder: pathlib.Path) -> None:
  """Adds the rows of an archive to a folder; rows that are there stay.

  Raises:
    UserError: it cannot be read.
  """
  try:
    with tarfile.open(archive) as tar:
      for member in tar.getmembers():
        if member.isfile() and not (folder / member.name).exists():
          tar.extract(member, folder, filter="data")
  except (OSError, tarfile.TarError) as error:
    raise UserError(f"'{archive}' is no archive of results: {error}.") from error


if __name__ == "__main__":
  sys.exit(main())

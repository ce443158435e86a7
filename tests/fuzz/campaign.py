"""Runs mutations of a kind in a process of their own and judges what comes of each."""

import collections
import contextlib
import dataclasses
import fnmatch
import gc
import json
import os
import pathlib
import random
import re
import resource
import select
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import traceback
import zipfile
from collections.abc import Callable, Iterator, Mapping, Sequence

from fuzz import mutations
from tpv_jax.core.errors import MOST_TEXT

ROOT = pathlib.Path(__file__).parents[2]

MOST_SECONDS = 15.0
"""What a mutation may take, on a machine that does other work too."""

MOST_BYTES = 64 << 20
"""What it may add to the process's memory, beyond twice what its files hold."""

STARTED = 45.0
"""What a process may be silent beyond twice `MOST_SECONDS` before it is taken to hang."""

COMMAND = ["-m", "fuzz"]
"""What Python is told to run."""

_ADDRESS_SPACE = 2 << 30
"""What it may ask the system for: so that a fault can't fill a machine's memory."""


@dataclasses.dataclass(frozen=True)
class Kind:
  """One kind of input.

  Attributes:
    make: writes valid files into the current folder.
    run: calls what a command calls, in the current folder; returns the exit code.
    damage: changes something in a folder.
    outputs: patterns of what a run that succeeds may write.
    check: raises if what a run that succeeded wrote is not right.
    changes: patterns of files that a run that succeeds may change.
    needs: a package without which there is nothing to run.
    fixed: patterns of files that even a refused run may write.
    whole: functions that choose, in the current folder, what is read without damage.
  """

  make: Callable[[], None]
  run: Callable[[random.Random], int]
  damage: Callable[[pathlib.Path, random.Random], mutations.Done] = mutations.damage
  outputs: Sequence[str] = ()
  check: Callable[[], None] | None = None
  changes: Sequence[str] = ()
  needs: str | None = None
  fixed: Sequence[str] = ()
  whole: Sequence[Callable[[], None]] = (lambda: None,)


@dataclasses.dataclass
class Report:
  """What came of the mutations of a kind; `faults` has a dictionary for each."""

  refused: int = 0
  passed: int = 0
  slowest: float = 0.0
  most_bytes: int = 0
  faults: list[dict] = dataclasses.field(default_factory=list)

  @property
  def cases(self) -> int:
    """How many were run."""
    return self.refused + self.passed + len(self.faults)

  def add(self, found: dict) -> None:
    """Counts what came of one mutation."""
    self.slowest = max(self.slowest, found["seconds"])
    self.most_bytes = max(self.most_bytes, found["bytes"])
    if found["fault"]:
      self.faults.append(found)
    elif found["code"] == 2:
      self.refused += 1
    else:
      self.passed += 1


class Slow(BaseException):
  """A mutation that took too long; no code may catch it as an ordinary error."""


class Reached(BaseException):
  """Raised in place of training or decoding: the input passed all checks."""


def _too_slow(*_) -> None:
  raise Slow


# --- one mutation


@dataclasses.dataclass
class _Outcome:
  code: int | None
  out: str
  err: str
  trace: str
  seconds: float
  grown: int


def _state(folder: pathlib.Path) -> dict[str, tuple | None]:
  """Returns size, time and kind of whatever is in a folder, by its path."""
  found: dict[str, tuple | None] = {}
  for root, folders, names in os.walk(folder):
    for name in (*folders, *names):
      path = os.path.join(root, name)
      about = os.lstat(path)
      key = os.path.relpath(path, folder)
      found[key] = (about.st_size, about.st_mtime_ns) if name in names else None
  return found


def _resident() -> tuple[int, int]:
  """Returns the most memory since the last reset, and the memory now."""
  text = pathlib.Path("/proc/self/status").read_text()
  most, now = (re.search(rf"{name}:\s+(\d+)", text) for name in ("VmHWM", "VmRSS"))
  assert most is not None
  assert now is not None
  return int(most[1]) << 10, int(now[1]) << 10


def _held(folder: pathlib.Path) -> int:
  """Returns how many bytes the files of a folder hold, unpacked as they declare."""
  total = 0
  for path in folder.rglob("*"):
    if path.is_file() and not path.is_symlink():
      total += path.stat().st_size
      if path.suffix == ".npz":
        with contextlib.suppress(Exception), zipfile.ZipFile(path) as archive:
          total += sum(min(one.file_size, 1 << 30) for one in archive.infolist())
  return total


@contextlib.contextmanager
def _captured() -> Iterator[Callable[[], tuple[str, str]]]:
  """Sends what is printed, by libraries too, to files; gives what came."""
  files = [tempfile.TemporaryFile() for _ in range(2)]  # noqa: SIM115
  streams = (sys.stdout, sys.stderr)
  saved = [os.dup(number) for number in (1, 2)]
  for stream in streams:
    stream.flush()
  for number, file in zip((1, 2), files, strict=True):
    os.dup2(file.fileno(), number)

  def texts() -> tuple[str, str]:
    for stream in streams:
      with contextlib.suppress(ValueError):
        stream.flush()
    found = []
    for file in files:
      file.seek(0)
      found.append(file.read(1 << 20).decode(errors="replace"))
    return found[0], found[1]

  try:
    yield texts
  finally:
    for stream in streams:
      with contextlib.suppress(ValueError):
        stream.flush()
    for number, one in zip((1, 2), saved, strict=True):
      os.dup2(one, number)
      os.close(one)
    for file in files:
      file.close()


def _call(kind: Kind, rng: random.Random, most: float) -> _Outcome:
  """Calls a kind's command in the current folder, for so many seconds at most."""
  gc.collect()
  pathlib.Path("/proc/self/clear_refs").write_text("5")
  before = _resident()[1]
  began = time.perf_counter()
  with _captured() as texts:
    code, trace = _result(kind, rng, most)
    seconds = time.perf_counter() - began
    out, err = texts()
  return _Outcome(code, out, err, trace, seconds, _resident()[0] - before)


def _result(kind: Kind, rng: random.Random, most: float) -> tuple[int | None, str]:
  """Returns the exit code of a call, or None and the trace of what it raised."""
  try:
    signal.setitimer(signal.ITIMER_REAL, most)
    try:
      return kind.run(rng), ""
    finally:
      signal.setitimer(signal.ITIMER_REAL, 0)
  except Reached:
    return 0, ""
  except SystemExit as stop:
    return (stop.code if isinstance(stop.code, int) else 1), ""
  except Slow:
    return None, f"took more than {most} seconds: {traceback.format_exc(limit=-6)}"
  except BaseException as error:
    return None, traceback.format_exc(limit=-8) or repr(error)


_NOTICE = re.compile(
  r"\d+%\||\d+it |it/s|s/it|\?, ?\?| (rows|examples) \[|^Not read by this command: "
)
"""What may stand before the one line: progress, and settings for another command."""


def _problems(
  kind: Kind,
  outcome: _Outcome,
  before: dict[str, tuple | None],
  after: dict[str, tuple | None],
  allowed: int,
) -> list[str]:
  """Returns what is wrong with an outcome, beside time and memory none if all is well."""
  found = []
  if outcome.trace:
    found.append(outcome.trace)
  elif outcome.code not in (0, 2):
    found.append(f"exit code {outcome.code}: {outcome.err[-1500:]}")
  for word in ("Traceback (most recent", "panicked at", "Exception ignored"):
    if word in outcome.err:
      found.append(f"prints '{word}': {outcome.err[-1500:]}")
  if outcome.grown > allowed:
    found.append(f"memory grew by {outcome.grown >> 20} MiB: {outcome.err[-300:]}")
  refused = outcome.code == 2
  new = [path for path in after if path not in before]
  changed = [path for path in before if path in after and before[path] != after[path]]
  changed += [path for path in before if path not in after]
  may = kind.fixed if refused else (*kind.outputs, *kind.fixed)
  left = [path for path in new if not _matches(path, may)]
  other = [p for p in changed if refused or not _matches(p, kind.changes)]
  if left:
    found.append(f"leaves {', '.join(left[:4])!r} behind")
  if other:
    found.append(f"changes {', '.join(other[:4])!r}")
  if refused and not outcome.trace:
    found += _not_one_line(outcome.err)
  for printed in (outcome.err, outcome.out):
    if any((ord(c) < 32 and c not in "\n\t\r") or 127 <= ord(c) < 160 for c in printed):
      found.append(f"prints control characters: {printed[-500:]!r}")
  return found


def _not_one_line(err: str) -> list[str]:
  """Returns what is wrong with the line of a refusal."""
  lines = [
    line
    for line in err.replace("\r", "\n").split("\n")
    if line.strip() and not _NOTICE.search(line)
  ]
  if len(lines) != 1 or not lines[0].startswith("error: "):
    return [f"not one line 'error: ...': {err[-1500:]!r}"]
  if len(lines[0]) > MOST_TEXT + 200:
    return [f"a line of {len(lines[0])} characters: {lines[0][:300]!r}"]
  return []


def _matches(path: str, patterns: Sequence[str]) -> bool:
  return any(
    fnmatch.fnmatch(path, one) or fnmatch.fnmatch(path, f"{one}/*") for one in patterns
  )


class _Case:
  """A folder whose files are restored, damaged, and given to a kind's command."""

  def __init__(self, kind: Kind, home: pathlib.Path):
    self.kind = kind
    self.base, self.folder = home / "base", home / "case"
    for folder in (self.base, self.folder):
      folder.mkdir()
    os.chdir(self.base)
    kind.make()
    self._restore()

  def _restore(self) -> None:
    os.chdir(self.base)
    shutil.rmtree(self.folder)
    shutil.copytree(self.base, self.folder, symlinks=True)
    os.chdir(self.folder)

  def whole(self, rng: random.Random) -> None:
    """Runs the command on what is whole; raises if it doesn't take that."""
    for choose in self.kind.whole:
      self._restore()
      choose()
      outcome = _call(self.kind, rng, 0)
      if outcome.code != 0:
        raise AssertionError(
          f"what is whole is refused: {outcome.code} {outcome.trace} {outcome.err}"
        )
      if self.kind.check is not None:
        self.kind.check()

  def run(self, name: str, number: int, seed: int, say: Callable[[str], None]) -> dict:
    """Returns what came of a mutation; `say` is told what was done before it runs."""
    done: mutations.Done | None = None
    for attempt in range(2):  # The first use of a library takes time and memory.
      rng = random.Random(f"{seed} {name} {number}")
      self._restore()
      done = self.kind.damage(self.folder, rng)
      if not attempt:
        say(done.what)
      before = _state(self.folder)
      allowed = MOST_BYTES + 2 * _held(self.folder)
      outcome = _call(self.kind, rng, MOST_SECONDS)
      problems = _problems(self.kind, outcome, before, _state(self.folder), allowed)
      if not any(one.startswith(("took", "memory")) for one in problems):
        break
    assert done is not None
    if outcome.code == 0 and done.refused:
      problems.append("read, although its digest does not hold")
    elif outcome.code == 0 and not problems and self.kind.check is not None:
      try:
        self.kind.check()
      except Exception:
        problems.append("wrote what is wrong: " + traceback.format_exc(limit=-4))
    return {
      "case": number,
      "done": done.what,
      "fault": " | ".join(problems)[:4000] or None,
      "code": outcome.code,
      "seconds": outcome.seconds,
      "bytes": max(outcome.grown, 0),
      "line": outcome.err.strip()[-300:],
    }


# --- a process for many


def here(jobs: Mapping[str, range], kinds: Mapping[str, Kind], seed: int) -> None:
  """Runs mutations in this process; prints a line of JSON before and after each.

  Args:
    jobs: the numbers of the mutations by the name of their kind.
    kinds: all kinds by name.
    seed: with kind and number it says what is done.
  """
  channel = os.fdopen(os.dup(1), "w")
  os.dup2(2, 1)

  def say(**content: object) -> None:
    channel.write(json.dumps(content) + "\n")
    channel.flush()

  signal.signal(signal.SIGALRM, _too_slow)
  _without_network()
  resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
  hard = resource.getrlimit(resource.RLIMIT_AS)[1]
  for place, (name, cases) in enumerate(jobs.items()):
    resource.setrlimit(resource.RLIMIT_AS, (hard, hard))
    home = pathlib.Path(os.environ["FUZZ_HOME"]) / str(place)
    _settle(home)
    case = _Case(kinds[name], home)
    case.whole(random.Random(0))
    gc.freeze()  # So that what was imported is not looked through each time.
    size = int(pathlib.Path("/proc/self/statm").read_text().split()[0])
    most = size * resource.getpagesize() + _ADDRESS_SPACE
    resource.setrlimit(resource.RLIMIT_AS, (most, hard))
    for number in cases:

      def began(what: str, name: str = name, number: int = number) -> None:
        say(kind=name, case=number, done=what)

      found = case.run(name, number, seed, began)
      if found["fault"]:
        _keep(case.folder, name, seed, number)
      say(kind=name, **found, end=True)
    os.chdir(ROOT)


def _settle(home: pathlib.Path) -> None:
  """Has what is cached, downloaded or temporary lie in a folder."""
  places = {
    "HOME": "home",
    "HF_HOME": "cache",
    "XDG_CACHE_HOME": "cache",
    "TMPDIR": "tmp",
    "TFDS_DATA_DIR": "tfds",
  }
  for variable, name in places.items():
    os.environ[variable] = str(home / name)
    (home / name).mkdir(parents=True, exist_ok=True)
  os.environ["PIP_NO_INDEX"] = "1"  # `tpv fetch` reaches no server.
  tempfile.tempdir = None


def _keep(folder: pathlib.Path, name: str, seed: int, number: int) -> None:
  """Copies the files of a fault to where they stay."""
  keep = keep_folder() / f"{re.sub('[^A-Za-z0-9]+', '_', name)}-{seed}-{number}"
  shutil.rmtree(keep, ignore_errors=True)
  with contextlib.suppress(OSError, shutil.Error):
    _copy(folder, keep)


def _copy(source: pathlib.Path, target: pathlib.Path) -> None:
  """Copies the files of a folder, leaving out what is no file."""
  shutil.copytree(
    source,
    target,
    symlinks=True,
    ignore=lambda folder, names: [
      name
      for name in names
      if not os.path.islink(path := os.path.join(folder, name))
      and not os.path.isdir(path)
      and not os.path.isfile(path)
    ],
  )


def keep_folder() -> pathlib.Path:
  """Returns where the files of faults are kept."""
  return pathlib.Path(os.environ.get("FUZZ_OUT", ROOT / "fuzz_out"))


def _without_network() -> None:
  import socket

  def refuse(*_: object) -> None:
    raise OSError(101, "Network is unreachable")

  socket.socket.connect = refuse  # type: ignore[method-assign,assignment]
  socket.socket.connect_ex = refuse  # type: ignore[method-assign,assignment]
  socket.getaddrinfo = refuse  # type: ignore[assignment]


def campaign(
  names: Sequence[str],
  cases: range,
  seed: int = 0,
  progress: Callable[[str, Report], None] = lambda *_: None,
  seconds: float | None = None,
) -> dict[str, Report]:
  """Returns what came of mutations of kinds, run in a process that may die.

  Args:
    names: of the kinds.
    cases: the numbers of the mutations of each.
    seed: with kind and number it says what is done.
    progress: is told a kind and its report after each mutation.
    seconds: after which no more are run.
  """
  reports = {name: Report() for name in names}
  left = dict.fromkeys(names, cases)
  stop = time.time() + seconds if seconds else None
  while left:
    died = _part(left, seed, reports, progress, stop)
    if died is None:
      break
    name, fault = died
    reports[name].faults.append(fault)
    later = names[names.index(name) + 1 :]
    rest = range(fault["case"] + 1, cases.stop)
    left = ({name: rest} if rest else {}) | dict.fromkeys(later, cases)
  return reports


def _part(
  jobs: Mapping[str, range],
  seed: int,
  reports: Mapping[str, Report],
  progress: Callable[[str, Report], None],
  stop: float | None,
) -> tuple[str, dict] | None:
  """Adds to the reports until all are run, or the process dies: returns where, and why."""
  environment = {
    **os.environ,
    "PYTHONPATH": os.pathsep.join(
      [str(ROOT / "tests"), str(ROOT), os.environ.get("PYTHONPATH", "")]
    ),
    "JAX_PLATFORMS": "cpu",
    "MALLOC_ARENA_MAX": "2",
    "HF_HUB_OFFLINE": "1",
    "TF_CPP_MIN_LOG_LEVEL": "3",
    "FUZZ_OUT": str(keep_folder()),
  }
  parts = [f"{name}={cases.start}:{cases.stop}" for name, cases in jobs.items()]
  with (
    tempfile.TemporaryFile() as errors,
    tempfile.TemporaryDirectory(prefix="fuzz-") as home,
  ):
    process = subprocess.Popen(
      [sys.executable, *COMMAND, "--here", "--seed", str(seed), *parts],
      stdout=subprocess.PIPE,
      stderr=errors,
      stdin=subprocess.DEVNULL,
      cwd=ROOT,
      env={**environment, "FUZZ_HOME": home},
      start_new_session=True,
    )
    running, why, over = None, "", False
    last = next(reversed(jobs)), jobs[next(reversed(jobs))].stop - 1
    try:
      for line in _lines(process):
        if line is None:
          why = "hangs where no signal is heard"
          break
        found = json.loads(line)
        name = found.pop("kind")
        if not found.pop("end", False):
          running = name, found
          continue
        running = None
        reports[name].add(found)
        progress(name, reports[name])
        over = (name, found["case"]) == last or bool(stop and time.time() > stop)
        if over:
          break
    finally:
      with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
      code = process.wait()
    if over:
      return None
    errors.seek(0)
    text = errors.read().decode(errors="replace")[-1500:]
  fault = f"the process {why or f'ends with {code}'}: {text}"
  if running is None:
    raise RuntimeError(fault)
  return running[0], {**running[1], "fault": fault}


def _lines(process: subprocess.Popen) -> Iterator[str | None]:
  """Yields what a process prints, None if nothing comes for too long."""
  assert process.stdout is not None
  waiting, started = b"", False
  while True:
    patience = 2 * MOST_SECONDS + STARTED if started else 600
    ready, _, _ = select.select([process.stdout], [], [], patience)
    if not ready:
      yield None
      return
    content = os.read(process.stdout.fileno(), 1 << 16)
    if not content:
      return
    started = True
    *lines, waiting = (waiting + content).split(b"\n")
    yield from (line.decode() for line in lines)


_JUDGED = (
  "prints",
  "not one line",
  "leaves",
  "changes",
  "a line of",
  "memory",
  "read,",
)


def sorts(faults: Sequence[dict]) -> dict[str, list[dict]]:
  """Returns faults by what is alike in them, the most frequent first."""
  found: dict[str, list[dict]] = collections.defaultdict(list)
  for fault in faults:
    text = fault["fault"].strip()
    ends = [line for line in text.splitlines() if not line.startswith((" ", "\t"))]
    places = re.findall(r'File "[^"]*?/(tpv_jax/[^"]*)", line (\d+)', text)
    where = ":".join(places[-1]) if places else ""
    about = text[:25] if text.startswith(_JUDGED) else f"{where} {ends[-1][:120]}"
    name = re.sub(r"'[^']*'|\"[^\"]*\"|\d+", "_", about)
    found[name].append(fault)
  return dict(sorted(found.items(), key=lambda item: -len(item[1])))


def command(name: str, number: int, seed: int) -> str:
  """Returns the command that repeats one mutation."""
  return (
    f'PYTHONPATH=tests .venv/bin/python -m fuzz --seed {seed} --only {number} "{name}"'
  )

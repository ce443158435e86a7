"""Times prompts on a T5 or a LLaMA, tpv_jax against Hugging Face PEFT, on one device.

Both sides train the same random backbone (of a real size, so nothing is downloaded) on
the same examples from the same initial prompts, with AdamW and without dropout; their
first losses are compared. An example is a length, drawn from the histograms in
benchmarks/lengths, filled with random tokens. Each job is a separate process; within a
round all of them train on the same examples, one after the other, so that a busy moment
of the machine affects all of them, and ratios are taken within a round. The contests:

  a     equal padded work: full rows of one static shape on both sides
  b     PEFT as the authors of task prompt vectors run it (each source padded to 256)
        against our packed rows and our static ones
  c     PEFT at its best (padded to the longest of a batch; each dtype; torch.compile)
        against ours at our best (packed or static; each dtype)
  bank  prompts x steps per second of our banks, and of PEFT, one prompt after the other
  quantised
        ours packed, with frozen kernels in 8 and 4 bits; only if it is asked for
  evaluation
        the coefficients of the vectors of several tasks, each on its task's examples: ours
        in one pass, PEFT one after the other. Both by generating (as PEFT is used), and
        both by one pass over the targets, which gives the same exact match. PEFT's own
        generation puts a LLaMA's prompt in front of every token that it writes, so there
        transformers generates from the embedded prompt and source

PEFT's rows of a LLaMA are [prompt][source][target] and padding, its loss is on the targets,
and its logits are those of every position, as transformers computes them; ours are those of
the targets alone.
"""

import argparse
import concurrent.futures
import contextlib
import datetime
import json
import os
import pathlib
import signal
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

HERE = pathlib.Path(__file__).parent
sys.path[:0] = [str(HERE), str(HERE.parent)]

import command  # noqa: E402
import gate  # noqa: E402
import record  # noqa: E402
from record import quartiles  # noqa: E402

from tpv_jax.backbones.llama import sizes as llama_sizes  # noqa: E402
from tpv_jax.backbones.t5 import sizes  # noqa: E402
from tpv_jax.core import files  # noqa: E402
from tpv_jax.core.errors import (  # noqa: E402
  UserError,
  at_least,
  near_misses,
)

EXAMPLES = """\
examples:
  do both sides do the same work? The first losses in fp32, in a minute:
    python benchmarks/against_peft.py --check
  this machine's CPU, two threads each side, T5-small:
    python benchmarks/against_peft.py --threads 2 --output against-peft.json
  a GPU: T5-base in bf16, 32 examples (8 in banks), also with larger blocks of rows:
    python benchmarks/against_peft.py --size base --wide-positions 16384 65536 \\
      --output benchmarks/results/against-peft-gpu-<date>.json
  SmolLM2 as it is mostly tuned, a step at equal padding, in bf16:
    python benchmarks/against_peft.py --size smollm2_135m --only a --source-lengths 64 \\
      --prompt-length 20 --batch 4 --groups 1 --dtype bfloat16 --threads 2
  only the banks, each side with a Python of its own:
    python benchmarks/against_peft.py --only bank --peft-python /opt/torch/bin/python
"""


DTYPES = ("float32", "bfloat16")
CONTESTS = ("a", "b", "c", "bank", "evaluation", "quantised")
PEFT_PACKAGES = ("torch", "transformers", "peft", "safetensors")

PADDED_TO = 256
"""Source positions of every row of the task prompt vectors' authors."""

TARGET_LENGTH = 8
"""L of static rows; the labels of the histograms' tasks are shorter."""

LEARNING_RATE, WEIGHT_DECAY = 0.3, 1e-5
SAME = 1e-4
"""The relative difference below which fp32 losses count as the same, as the two sides sum
in different orders."""

COMPARED_LOSSES = 2
"""The losses compared: before and after the first update; later ones drift apart by
rounding."""

DEFAULTS = {
  "cpu": {
    "dtype": "float32",
    "batch": 8,
    "groups": 2,
    "rounds": 7,
    "bank_rounds": 3,
    "bank_steps": 1,
    "product": (1_024, 10),
    "evaluation_examples": 4,
    "evaluation_rounds": 3,
    "rows_of_a_call": 8,
  },
  "other": {
    "dtype": "bfloat16",
    "batch": 32,
    "groups": 28,
    "rounds": 10,
    "bank_rounds": 6,
    "bank_steps": 2,
    "product": (8_192, 20),
    "evaluation_examples": 100,
    "evaluation_rounds": 3,
    "rows_of_a_call": 64,
  },
}
"""The defaults of options, on the CPU and on an accelerator."""

OPTIONS = (
  ("dtype", str, "float32 or bfloat16, of both sides (c tries both)"),
  ("batch", int, "examples of a step in a, b and c"),
  ("groups", int, "steps in a round of a, b and c; each has one task's examples"),
  ("rounds", int, "timed rounds of a, b and c"),
  ("bank-rounds", int, "timed rounds of the banks"),
  ("bank-steps", int, "steps of the largest bank in a round"),
  ("evaluation-examples", int, "examples of each task, in evaluation"),
  ("evaluation-rounds", int, "timed rounds of evaluation"),
  ("rows-of-a-call", int, "examples of one of our calls in evaluation"),
)


class SideFailed(Exception):
  """A job failed; the message says why."""


def main(argv: Sequence[str] | None = None) -> int:
  """Measures, prints tables, writes JSON; returns the exit code."""
  parser = command.parser(__doc__ or "", EXAMPLES)
  parser.add_argument(
    "--size",
    default="small",
    help="small (the default), base or large: T5 v1.0; or a size of the LLaMA family, "
    "such as smollm2_135m; tiny and llama_tiny only try the command",
  )
  parser.add_argument(
    "--only",
    nargs="+",
    metavar="WHAT",
    help=f"some of {' '.join(CONTESTS)}; by default all but the last",
  )
  for name, kind, text in OPTIONS:
    by_device = [
      f"{values[name.replace('-', '_')]} on {'the CPU' if device == 'cpu' else 'a GPU'}"
      for device, values in DEFAULTS.items()
    ]
    parser.add_argument(
      f"--{name}", type=kind, help=f"{text}; by default {', '.join(by_device)}"
    )
  parser.add_argument(
    "--source-lengths",
    type=int,
    nargs="+",
    default=[64, PADDED_TO],
    help="T of a, one or several",
  )
  parser.add_argument(
    "--banks", type=int, nargs="+", default=[1, 2, 4, 8, 16, 32], help="N of the banks"
  )
  parser.add_argument(
    "--bank-batch", type=int, default=8, help="examples of a prompt and step in banks"
  )
  parser.add_argument(
    "--wide-positions",
    type=int,
    nargs="+",
    help="the most positions of a packed block, tried with each bank; by default the "
    "runner's own (row_shapes.Device)",
  )
  parser.add_argument(
    "--tasks", type=int, default=8, help="whose vectors are evaluated"
  )
  parser.add_argument(
    "--coefficients", type=int, default=21, help="of each vector, from 0 to 1"
  )
  parser.add_argument("--prompt-length", type=int, default=100, help="P")
  parser.add_argument(
    "--threads", type=int, help="cores of each side, which take turns (for the CPU)"
  )
  parser.add_argument(
    "--dtypes",
    nargs="+",
    default=DTYPES,
    metavar="DTYPE",
    help="of c, by default both; torch.compile takes minutes for each",
  )
  parser.add_argument(
    "--no-compile", action="store_true", help="leave torch.compile out"
  )
  parser.add_argument(
    "--peft-python",
    default=sys.executable,
    help="the Python that has torch and peft; by default this one",
  )
  parser.add_argument(
    "--leave-out",
    nargs="+",
    default=[],
    metavar="JOB",
    help="jobs, by how their names begin",
  )
  parser.add_argument(
    "--side-by-side",
    action="store_true",
    help="start and compile all jobs of a contest at once; they are timed in turns even so",
  )
  parser.add_argument(
    "--apart",
    action="store_true",
    help="run the jobs one after the other, where a device takes one process (a TPU); "
    "ratios are then of different minutes",
  )
  parser.add_argument(
    "--weights", help="a file for the random weights; one that is there is read"
  )
  parser.add_argument("--seed", type=int, default=0, help="of lengths and tokens")
  parser.add_argument(
    "--check",
    action="store_true",
    help="only compare the losses of both sides in fp32; exit code 1 if they differ",
  )
  return command.run(parser, "against_peft.py", run, argv)


def known_sizes() -> dict[str, tuple[str, dict[str, Any]]]:
  """Returns the sizes that both sides can build: name -> (family, numbers).

  Rotary angles are plain ones in all LLaMAs, which changes no time.
  """
  plain = {
    name: {key: value for key, value in numbers.items() if key != "rope_divisors"}
    for name, numbers in llama_sizes.SIZES.items()
    if not {"attention_bias", "qk_norm"} & numbers.keys()
  }
  t5s = {**sizes.TINY, **sizes.SIZES}
  tiny = {**llama_sizes.TINY["llama_tiny"], "max_positions": 512}
  return {
    **{
      name.removeprefix("t5_v1_0_"): ("t5", numbers)
      for name, numbers in t5s.items()
      if "v1_0" in name
    },
    **{
      name: ("llama", numbers)
      for name, numbers in ({"llama_tiny": tiny} | plain).items()
    },
  }


def checked_size(name: str) -> str:
  """Returns the name of a size.

  Raises:
    UserError: there is no such size.
  """
  known = known_sizes()
  if name not in known:
    raise UserError(
      f"There is no size '{name}'.{near_misses(name, known)} Choose one of "
      f"{', '.join(known)}."
    )
  return name


def _check(options: argparse.Namespace) -> None:
  """Raises `UserError` unless the options fit, and fills in what is compared."""
  checked_size(options.size)
  if options.only is None:
    options.only = list(CONTESTS[:-1])
  for name in options.only:
    if name not in CONTESTS:
      raise UserError(
        f"There is no comparison '{name}'. Choose some of {' '.join(CONTESTS)}."
      )
  largest = max(options.banks)
  for bank in options.banks:
    at_least("--banks", bank, 1)
    if largest % bank:
      raise UserError(
        f"A bank of {bank} does not divide the largest, {largest}, so they could not "
        "train on the same examples. Choose sizes that divide it."
      )


def run(options: argparse.Namespace, called: str) -> int:
  """Runs the contests that the options ask for, reports, and returns the exit code.

  Raises:
    UserError: options that do not fit, or an output that exists.
  """
  _check(options)
  if options.output:
    files.check_output(options.output, options.overwrite)
  missing = missing_packages(options.peft_python)
  if missing and (options.check or set(options.only) & {"a", "b", "c"}):
    raise UserError(
      f"PEFT's side cannot run: '{options.peft_python}' has no {', '.join(missing)}. "
      "Install the extra 'bench', name a Python that has them (--peft-python), or "
      "measure only our banks and evaluation (--only bank evaluation)."
    )
  options.has_peft = not missing
  # So that the command's files and processes are removed when it ends.
  signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))
  with tempfile.TemporaryDirectory(prefix="against-peft-") as folder:
    bench = Bench(options, pathlib.Path(folder))
    results = {}
    for name in CONTESTS:
      if name in options.only:
        results |= getattr(bench, f"contest_{name}")()
    if options.output:
      files.write_json(options.output, bench.report(called, results))
      print(f"Wrote '{options.output}'.")
  different = [name for name, result in results.items() if not result["same_losses"]]
  if different:
    print(f"The sides do NOT train on the same losses in: {', '.join(different)}.")
  elif options.check:
    print("Both sides have the same losses.")
  return 1 if different else 0


def missing_packages(python: str) -> list[str]:
  """Returns the packages of PEFT's side that the Python at a path does not have.

  Raises:
    UserError: there is no such Python.
  """
  code = (
    "import importlib.util as u, json; "
    f"print(json.dumps([n for n in {PEFT_PACKAGES} if u.find_spec(n) is None]))"
  )
  try:
    done = subprocess.run([python, "-c", code], capture_output=True, check=True)
  except (OSError, subprocess.CalledProcessError) as error:
    raise UserError(
      f"'{python}' is not a Python that runs ({error}). Check --peft-python."
    ) from error
  return json.loads(done.stdout)


class Bench:
  """What all contests share: the random backbone, the histograms, the settings."""

  def __init__(self, options: argparse.Namespace, folder: pathlib.Path):
    self.options = options
    self.folder = folder
    self.family, self.numbers = known_sizes()[options.size]
    self.load_at_start = os.getloadavg()
    text = (HERE / "lengths" / "nlu.json").read_text()
    self.histograms = json.loads(text)["tasks"]
    self.versions: dict[str, Any] = {}
    self.common = {
      "family": self.family,
      "numbers": self.numbers,
      "weights": options.weights or str(folder / "weights.safetensors"),
      "prompt_length": options.prompt_length,
      "source_length": PADDED_TO,
      "target_length": TARGET_LENGTH,
      "learning_rate": LEARNING_RATE,
      "weight_decay": WEIGHT_DECAY,
      "threads": options.threads,
      "check": options.check,
      "compile": False,
      "bank": 1,
      "evaluate": None,
    }
    say(f"Writing a random {self.family} '{options.size}' for both sides.")
    nothing = {**self.common, "rows": "none", "dtype": "float32", "examples": None}
    with contextlib.ExitStack() as stack:
      writer = Worker("the weights", "ours", nothing, self, stack)
      self.device = writer.ready["device"]
    defaults = DEFAULTS.get(self.device.split(":")[0], DEFAULTS["other"])
    for name, value in defaults.items():
      if getattr(options, name, None) is None:
        setattr(options, name, value)
    if options.check:
      options.dtype, options.rounds, options.bank_rounds = "float32", 0, 0
      options.evaluation_rounds = 0
    for name in ("rounds", "bank_rounds", "evaluation_rounds"):
      at_least(name, getattr(options, name), 0 if options.check else 2)
    for name in (
      *("batch", "groups", "bank_steps", "bank_batch", "prompt_length"),
      *("tasks", "coefficients", "evaluation_examples", "rows_of_a_call"),
    ):
      at_least(name, getattr(options, name), 1)
    for name in (options.dtype, *options.dtypes):
      if name not in DTYPES:
        raise UserError(f"There is no dtype '{name}'. Give {' or '.join(DTYPES)}.")

  # The contests. Each returns results by name.

  def contest_a(self) -> dict[str, Any]:
    """Equal padded work: full rows of one static shape."""
    results = {}
    for length in self.options.source_lengths:
      at_least("--source-lengths", length, 1)
      static = {"rows": "static", "source_length": length}
      jobs = {"PEFT": ("peft", static), "ours": ("ours", static)}
      result = self.contest(f"a, {length} tokens", jobs, full=length)
      result["ratios"] = ratios(result, [("PEFT", "ours")])
      results[f"a, {length} source tokens"] = shown(result)
    return results

  def contest_b(self) -> dict[str, Any]:
    """PEFT padded to 256 against our packed rows and our static ones."""
    peft = f"PEFT, padded to {PADDED_TO}"
    jobs = {
      peft: ("peft", {"rows": "static"}),
      "ours, packed": ("ours", {"rows": "packed"}),
      f"ours, padded to {PADDED_TO}": ("ours", {"rows": "static"}),
    }
    result = self.contest("b", jobs)
    result["ratios"] = ratios(result, [(peft, name) for name in list(jobs)[1:]])
    return {"b, as each is run": shown(result)}

  def contest_c(self) -> dict[str, Any]:
    """The fastest of PEFT against the fastest of ours."""
    peft, ours = {}, {}
    for dtype in ["float32"] if self.options.check else self.options.dtypes:
      dynamic = {"rows": "longest", "dtype": dtype}
      peft[f"PEFT, dynamic, {dtype}"] = ("peft", dynamic)
      if not self.options.no_compile:
        compiled = ("peft", {**dynamic, "compile": True})
        peft[f"PEFT, dynamic, {dtype}, compiled"] = compiled
      for rows in ("packed", "static"):
        ours[f"ours, {rows}, {dtype}"] = ("ours", {"rows": rows, "dtype": dtype})
    result = self.contest("c", {**peft, **ours})
    done = {name: row["seconds"] for name, row in result["jobs"].items()}
    best = [
      min(
        (name for name in side if done.get(name)),
        key=lambda name: np.median(done[name]),
        default=None,
      )
      for side in (peft, ours)
    ]
    result["ratios"] = ratios(result, [tuple(best)]) if all(best) else {}
    return {"c, each at its best": shown(result)}

  def contest_bank(self) -> dict[str, Any]:
    """Banks against a bank of 1, and against PEFT with one prompt after the other."""
    peft = {
      f"PEFT, padded to {PADDED_TO}": ("peft", {"rows": "static"}),
      "PEFT, dynamic": ("peft", {"rows": "longest"}),
    }
    if not self.options.has_peft:
      say("bank: without PEFT, which is not installed here")
      peft = {}
    ours = {}
    for bank in self.options.banks:
      for positions in self.options.wide_positions or [None]:
        name, job = f"bank of {bank}", {"rows": "packed", "bank": bank}
        if positions is not None:
          name, job = (
            f"{name}, blocks of {positions}",
            {**job, "wide_positions": positions},
          )
        ours[name] = ("ours", job)
    result = self.contest(
      "bank",
      {**peft, **ours},
      groups=max(self.options.banks) * self.options.bank_steps,
      batch=self.options.bank_batch,
      rounds=self.options.bank_rounds,
    )
    bases = [*peft, next(iter(ours))]
    result["ratios"] = ratios(
      result, [(base, name) for base in bases for name in ours if name != base]
    )
    for row in result["jobs"].values():
      if row["seconds"]:
        row["prompt_steps_per_s"] = quartiles(
          [result["groups"] / seconds for seconds in row["seconds"]]
        )
    return {"bank, prompts x steps": shown(result)}

  def contest_evaluation(self) -> dict[str, Any]:
    """Many candidates in one pass, against PEFT with one after the other."""
    options = self.options
    common = {
      "candidates": options.tasks * options.coefficients,
      "coefficients": np.linspace(0, 1, options.coefficients).tolist(),
      "rows_of_a_call": options.rows_of_a_call,
    }
    generate, once = {"evaluate": "generate"}, {"evaluate": "one pass"}
    padded = f"PEFT, generating, padded to {PADDED_TO}"
    jobs = {
      padded: ("peft", {"rows": "static", **generate}),
      "PEFT, generating, dynamic": ("peft", {"rows": "longest", **generate}),
      "ours, generating": ("ours", {"rows": "packed", **generate}),
      "PEFT, one pass, dynamic": ("peft", {"rows": "longest", **once}),
      "ours, one pass": ("ours", {"rows": "packed", **once}),
    }
    if not options.has_peft:
      say("evaluation: without PEFT, which is not installed here")
      jobs = {name: job for name, job in jobs.items() if job[0] == "ours"}
    result = self.contest(
      "evaluation",
      {name: (which, {**own, **common}) for name, (which, own) in jobs.items()},
      groups=options.tasks,
      batch=options.evaluation_examples,
      rounds=options.evaluation_rounds,
    )
    result["candidates"] = common["candidates"]
    result["ratios"] = ratios(
      result,
      [
        (base, name)
        for base in jobs
        for name in jobs
        if base.startswith("PEFT") and name.startswith("ours")
      ],
    )
    return {"evaluation, tasks x coefficients": shown(result)}

  def contest_quantised(self) -> dict[str, Any]:
    """Our packed rows with frozen kernels in fewer bits, whose losses differ a little."""
    plain = f"ours, {self.options.dtype}"
    jobs = {plain: ("ours", {"rows": "packed"})}
    for mode in ("int8", "int4", "nf4"):
      jobs[f"ours, {mode}"] = ("ours", {"rows": "packed", "quantize": mode})
    result = self.contest("quantised", jobs) | {"same_losses": True}
    result["ratios"] = ratios(result, [(plain, name) for name in list(jobs)[1:]])
    return {"quantised": shown(result)}

  def contest(
    self,
    title: str,
    jobs: Mapping[str, tuple[str, dict[str, Any]]],
    full: int | None = None,
    groups: int | None = None,
    batch: int | None = None,
    rounds: int | None = None,
  ) -> dict[str, Any]:
    """Returns the measurements of all jobs on the same examples, in interleaved rounds.

    Args:
      title: for the progress.
      jobs: name -> its side and its own entries of the job.
      full: the tokens of every source; None draws lengths from the histograms.
      groups: steps of a prompt in a round.
      batch: examples of a step.
      rounds: timed; an untimed one comes first, in which everything is compiled.
    """
    options = self.options
    groups, batch = groups or options.groups, batch or options.batch
    rounds = options.rounds if rounds is None else rounds
    examples = self.folder / "examples.npz"
    sources, targets = self.draw(rounds + 1, groups, batch, full)
    rng = np.random.default_rng(options.seed)
    shape = (
      max(*options.banks, 1 + options.tasks),
      options.prompt_length,
      self.numbers["emb_dim"],
    )
    prompts = rng.uniform(-0.5, 0.5, shape).astype(np.float32)
    if title == "evaluation":
      prompts = prompts[: 1 + options.tasks]
    np.savez(examples, sources=sources, targets=targets, prompts=prompts)
    # Neither side generates more tokens than the longest answer has.
    new_tokens = int(np.count_nonzero(targets, axis=-1).max())
    shared = {
      **self.common,
      "dtype": options.dtype,
      "examples": str(examples),
      "new_tokens": new_tokens,
    }
    for start in options.leave_out if options.has_peft else ():
      if not any(name.startswith(start) for name in jobs):
        raise UserError(
          f"--leave-out '{start}' begins no job of {title}: {'; '.join(jobs)}."
        )
    started = {
      name: (side, {**shared, **own})
      for name, (side, own) in jobs.items()
      if not name.startswith(tuple(options.leave_out))
    }
    parts = (
      [{name: job} for name, job in started.items()] if options.apart else [started]
    )
    rows: dict[str, dict[str, Any]] = {}
    for part in parts:
      rows |= self.measured(title, part, rounds)
    used = np.count_nonzero(sources, axis=-1), np.count_nonzero(targets, axis=-1)
    for row in rows.values():
      self.summarise(row, used, groups * batch)
    return {
      "title": title,
      "groups": groups,
      "batch": batch,
      "mean_source_tokens": round(float(used[0].mean()), 1),
      # A job that did not run has not shown that its losses are the same.
      "same_losses": same_losses(rows)
      and not (options.check and any("failed" in row for row in rows.values())),
      "jobs": rows,
    }

  def measured(
    self, title: str, jobs: Mapping[str, tuple[str, dict[str, Any]]], rounds: int
  ) -> dict[str, dict[str, Any]]:
    """Returns the measurements of jobs that take turns: see `contest`."""
    workers: dict[str, Worker] = {}
    rows: dict[str, dict[str, Any]] = {}
    many = len(jobs) if self.options.side_by_side else 1
    # The stack ends the processes before the pool waits for those that ask them.
    with (
      concurrent.futures.ThreadPoolExecutor(many) as pool,
      contextlib.ExitStack() as stack,
    ):

      def begin(name: str) -> tuple[Worker | None, dict[str, Any]]:
        say(f"{title}: starting {name}")
        try:
          worker = Worker(name, *jobs[name], self, stack)
          return worker, self.first(worker)
        except SideFailed as failure:
          say(f"{title}: {name} does not work here: {failure}")
          return None, {"failed": str(failure), "seconds": [], "losses": []}

      begun = pool.map(begin, jobs) if many > 1 else map(begin, jobs)
      for name, (worker, row) in zip(jobs, begun, strict=True):
        rows[name] = row
        if worker is not None:
          workers[name] = worker
      gate.wait()
      for number in range(1, rounds + 1):
        for name in np.roll([*workers], -number).tolist():
          say(f"{title}: round {number} of {rounds}, {name}")
          try:
            self.timed(workers[name], rows[name], number)
          except SideFailed as failure:  # Out of memory, say. The others go on.
            say(f"{title}: {name} failed: {failure}")
            rows[name] |= {"failed": str(failure), "seconds": []}
            del workers[name]
      for name, worker in workers.items():
        rows[name] |= worker.ask(do="stop")
    return rows

  def draw(
    self, rounds: int, groups: int, batch: int, full: int | None
  ) -> tuple[np.ndarray, np.ndarray]:
    """Returns random tokens [rounds, groups, batch, M] and [..., L], each ending with 1.

    Each group has lengths of one task; the tasks take turns, in a random order.
    """
    rng = np.random.default_rng(self.options.seed)
    tasks = rng.permutation(sorted(self.histograms)).tolist()
    made = []
    for kind, most in (("sources", full or PADDED_TO), ("targets", TARGET_LENGTH)):
      lengths = np.full((rounds * groups, batch), most)
      if full is None:
        for index, row in enumerate(lengths):
          histogram = self.histograms[tasks[index % len(tasks)]][kind]
          counts = np.asarray([*histogram.values()], np.float64)
          known = [int(length) for length in histogram]
          row[:] = rng.choice(known, batch, p=counts / counts.sum())
      lengths = lengths.clip(max=most).reshape(rounds, groups, batch, 1)
      shape = (*lengths.shape[:3], most)
      tokens = rng.integers(3, self.numbers["vocab_size"], shape, np.int32)
      place = np.arange(most)
      tokens[np.broadcast_to(place == lengths - 1, shape)] = 1
      made.append(np.where(place < lengths, tokens, 0))
    return made[0], made[1]

  def first(self, worker: "Worker") -> dict[str, Any]:
    """Returns the row of a job after its first round, in which it compiles.

    Raises:
      SideFailed: it does not work here, or is on another device than the others.
    """
    kinds = [device.split(":")[0] for device in (worker.ready["device"], self.device)]
    if kinds[0] != kinds[1]:
      raise SideFailed(f"it is on {kinds[0]}, our side on {kinds[1]}")
    self.versions[worker.side] = worker.ready["versions"]
    did = worker.ask(do="turn", round=0)
    return {
      **worker.ready["notes"],
      "loaded_mebibytes": worker.ready["loaded_mebibytes"],
      "start_s": worker.ready["seconds"],
      "first_round_s": did["seconds"],
      "losses": did["losses"],
      "bank": worker.job["bank"],
      "evaluate": worker.job["evaluate"],
      "passes": worker.job.get("candidates", self.options.tasks) // self.options.tasks,
      "dtype": worker.job["dtype"],
      "seconds": [],
      "processor_seconds": [],
      "products": [],
      "calls": [],
      **worker.ask(do="forget peak"),
    }

  def timed(self, worker: "Worker", row: dict[str, Any], number: int) -> None:
    """Adds a timed round to a job's row."""
    size, times = self.options.product
    row["products"].append(
      worker.ask(do="product", size=size, times=times)["flops_per_s"]
    )
    did = worker.ask(do="turn", round=number)
    for kind in ("seconds", "processor_seconds"):
      row[kind].append(float(f"{did[kind]:.5g}"))
    row["calls"].append(did["calls"])

  def summarise(
    self, row: dict[str, Any], used: tuple[np.ndarray, np.ndarray], examples: int
  ) -> None:
    """Turns a job's measurements into rates, in place."""
    calls, products = row.pop("calls", []), row.pop("products", [])
    passes, training = row.pop("passes", 1), not row.get("evaluate")
    row["losses"] = row["losses"][:COMPARED_LOSSES]
    if not row["seconds"]:
      return
    seconds = np.asarray(row["seconds"])
    prompt = self.options.prompt_length
    joined = [prompt + sources for sources in used[0][1:]]
    if self.family == "llama":
      joined = [row + targets for row, targets in zip(joined, used[1][1:], strict=True)]
    useful = passes * np.asarray(
      [
        self.flops(np.ravel(source), np.ravel(target), training).sum()
        for source, target in zip(joined, used[1][1:], strict=True)
      ]
    )
    computed = np.asarray(
      [
        sum(
          count * self.flops(width, targets, training) for count, width, targets in made
        )
        for made in calls
      ]
    )
    positions = sum(count * width for made in calls for count, width, _ in made)
    rates = np.asarray(products)
    row |= {
      "examples_per_s": quartiles(passes * examples / seconds),
      # Less than --threads on a busy machine, which slows torch down more.
      "cores_had": quartiles(np.divide(row["processor_seconds"], seconds)),
      "compile_s": round(max(0.0, row["first_round_s"] - float(np.median(seconds))), 2),
      "padding_share": round(
        1 - passes * sum(np.sum(one) for one in joined) / positions, 4
      ),
      "matrix_product_gigaflops_per_s": quartiles(rates / 1e9),
      "useful_gigaflops_per_s": quartiles(useful / seconds / 1e9),
      "computed_gigaflops_per_s": quartiles(computed / seconds / 1e9),
      "utilisation_useful": quartiles(useful / seconds / rates),
      "utilisation_computed": quartiles(computed / seconds / rates),
    }

  def flops(self, joined: Any, targets: Any, training: bool = True) -> Any:
    """Returns the flops of a training step with a frozen backbone, or of a forward pass.

    A linear map costs its forward pass and as much again for the gradient of its input
    (weights have none); attention's two products have two inputs each, so three times
    the forward pass. Embeddings, norms, softmax and the optimizer are left out, as usual.

    Args:
      joined: encoder positions of the row, including the prompt's; of a LLaMA all.
      targets: decoder positions; of a LLaMA those whose logits are computed.
      training: False for the forward pass alone.
    """
    joined, targets = np.asarray(joined, np.float64), np.asarray(targets, np.float64)
    of_family = self._llama_flops if self.family == "llama" else self._t5_flops
    linear, attention = of_family(joined, targets)
    numbers = self.numbers
    logits = 2 * targets * numbers["emb_dim"] * numbers["vocab_size"]
    if not training:
      return linear + logits + attention
    return 2 * (linear + logits) + 3 * attention

  def _llama_flops(self, joined: Any, targets: Any) -> tuple[Any, Any]:
    """Returns the flops of a forward pass but for logits: linear maps, attention."""
    del targets
    numbers = self.numbers
    heads = numbers["num_heads"] * numbers["head_dim"]
    shared = numbers["num_kv_heads"] * numbers["head_dim"]
    features = 2 * heads + 2 * shared + 3 * numbers["mlp_dim"]
    layers = numbers["num_layers"]
    return (
      layers * joined * 2 * numbers["emb_dim"] * features,
      layers * 4 * joined**2 * heads,
    )

  def _t5_flops(self, joined: Any, targets: Any) -> tuple[Any, Any]:
    """Returns the flops of a forward pass but for logits: linear maps, attention."""
    numbers = self.numbers
    width, hidden = numbers["emb_dim"], numbers["mlp_dim"]
    heads = numbers["num_heads"] * numbers["head_dim"]
    maps = len(numbers["mlp_activations"]) + 1
    mlp = 2 * maps * width * hidden
    projection = 2 * width * heads
    encoder = joined * (4 * projection + mlp), 4 * joined**2 * heads
    decoder = (
      targets * (6 * projection + mlp) + joined * 2 * projection,
      4 * (targets**2 + targets * joined) * heads,
    )
    linear, attention = (
      numbers["num_encoder_layers"] * one + numbers["num_decoder_layers"] * other
      for one, other in zip(encoder, decoder, strict=True)
    )
    return linear, attention

  def report(self, command: str, results: dict[str, Any]) -> dict[str, Any]:
    """Returns the results with all that is needed to run them again."""
    left_out = (
      *("only", "output", "overwrite", "debug"),
      *("peft_python", "has_peft", "weights"),
    )
    return {
      **record.made(command),
      "device": self.device,
      "settings": {
        name: value
        for name, value in vars(self.options).items()
        if name not in left_out
      },
      "load_average_before": self.load_at_start,
      "versions": self.versions,
      "results": results,
    }


class Worker:
  """A side in a separate process, which answers one command at a time."""

  def __init__(
    self,
    name: str,
    side: str,
    job: dict[str, Any],
    bench: Bench,
    stack: contextlib.ExitStack,
  ):
    """Starts the process, which ends with the stack, and waits until it is ready.

    Raises:
      SideFailed: the process failed.
    """
    self.name, self.side, self.job = name, side, job
    plain = "".join(letter if letter.isalnum() else "-" for letter in name)
    path = bench.folder / f"{plain}.json"
    path.write_text(json.dumps(job))
    self.log = path.with_suffix(".log")
    python = bench.options.peft_python if side == "peft" else sys.executable
    script = HERE / ("peft_side.py" if side == "peft" else "our_side.py")
    environment = {
      **os.environ,
      # By default one process would reserve most of a GPU's memory.
      "XLA_PYTHON_CLIENT_PREALLOCATE": "false",
      "TOKENIZERS_PARALLELISM": "false",
      "HF_HUB_OFFLINE": "1",
    }
    if job["threads"]:
      environment["OMP_NUM_THREADS"] = str(job["threads"])
    with self.log.open("w") as log:
      self.process = subprocess.Popen(
        [python, str(script), str(path)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=log,
        text=True,
        env=environment,
      )
    stack.callback(self.stop)
    self.ready = self._answer()

  def ask(self, **command: Any) -> dict[str, Any]:
    """Returns the answer to a command.

    Raises:
      SideFailed: the process failed.
    """
    assert self.process.stdin is not None
    try:
      self.process.stdin.write(json.dumps(command) + "\n")
      self.process.stdin.flush()
    except BrokenPipeError:
      pass  # Its last answer says why.
    return self._answer()

  def stop(self) -> None:
    """Ends the process."""
    if self.process.poll() is None:
      self.process.kill()
    self.process.communicate()

  def _answer(self) -> dict[str, Any]:
    assert self.process.stdout is not None
    line = self.process.stdout.readline()
    answer = json.loads(line) if line else {}
    if not line or "error" in answer:
      last = self.log.read_text().strip().splitlines()[-1:] or ["no message"]
      code = f"exit code {self.process.wait()}: {last[0]}"
      raise SideFailed(answer.get("error", code))
    return answer


def same_losses(rows: Mapping[str, dict[str, Any]]) -> bool:
  """Returns whether all fp32 jobs had the losses of the first, and notes the differences.

  Compared are the first loss of all jobs, and the next one, after an update, of those with
  one prompt (a bank gives those examples to its second prompt). In evaluation they are the
  first two candidates' losses, or the sums of the token ids that they generate.
  """
  bases: dict[str | None, list[float]] = {}
  same = True
  for row in rows.values():
    if not row["losses"]:
      continue
    base = bases.setdefault(row.get("evaluate"), row["losses"])
    compared = COMPARED_LOSSES if row["bank"] == 1 else 1
    found = np.asarray(row["losses"][:compared])
    apart = np.abs(found / np.asarray(base[:compared]) - 1).tolist()
    row["losses_apart"] = [float(f"{one:.2g}") for one in apart]
    if row["dtype"] == "float32":
      same &= max(apart) < SAME
  return same


def ratios(
  result: Mapping[str, Any], pairs: Sequence[tuple[str, str]]
) -> dict[str, dict[str, float]]:
  """Returns the speed-up of the second of each pair over the first, within rounds."""
  seconds = {name: row["seconds"] for name, row in result["jobs"].items()}
  return {
    f"{other} / {base}": quartiles(np.divide(seconds[base], seconds[other]))
    for base, other in pairs
    if seconds.get(base) and seconds.get(other)
  }


def shown(result: dict[str, Any]) -> dict[str, Any]:
  """Prints a contest's table and returns it."""
  print(
    f"\n{result['title']} ({result['mean_source_tokens']} source tokens on average)"
  )
  for name, row in result["jobs"].items():
    print(f"  {name:<34}{line_of(row)}")
  for name, ratio in result["ratios"].items():
    print(f"  x {span(ratio, 2)}  {name}")
  sys.stdout.flush()
  return result


def line_of(row: Mapping[str, Any]) -> str:
  """Returns a job's line of the table."""
  if "failed" in row:
    return f"did not run: {row['failed'][:90]}"
  apart = f"first loss {row['losses'][0]:.5f} ({row['losses_apart'][0]:.0e} apart)"
  if not row["seconds"]:
    after = [f"{one:.0e}" for one in row["losses_apart"][1:]]
    return ", after an update ".join([apart, *after])
  memory = row["device_peak_mebibytes"] or row["peak_mebibytes"] or 0
  return (
    f"{span(row['examples_per_s'], 1):>24} examples/s  padding "
    f"{row['padding_share']:>4.0%}  utilisation "
    f"{row['utilisation_useful']['median']:>4.0%} useful, "
    f"{row['utilisation_computed']['median']:>4.0%} computed  cores "
    f"{row['cores_had']['median']:.1f}  peak {memory:,} MiB  "
    f"compiling {row['compile_s']:.0f} s  {apart}"
  )


def span(row: Mapping[str, float], digits: int) -> str:
  """Returns 'median (lower to upper quartile)'."""
  low, middle, high = (
    f"{row[name]:.{digits}f}" for name in ("lower_quartile", "median", "upper_quartile")
  )
  return f"{middle} ({low} to {high})"


def say(line: str) -> None:
  """Prints progress, with the time."""
  print(f"{datetime.datetime.now():%H:%M:%S} {line}", file=sys.stderr, flush=True)


if __name__ == "__main__":
  sys.exit(main())

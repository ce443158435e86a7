"""Trains many prompts at once on one backbone, each as a run of its own.

Every prompt has its run folder, its stream of examples, its validation and its best
prompt; only the calls are shared (`bank_steps`). So a bank that was killed goes on, with
the same bits, from the checkpoints of its runs, and what it leaves are run folders.
"""

import contextlib
import dataclasses
import functools
import itertools
import math
import shlex
import signal
import textwrap
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import numpy as np

from tpv_jax.backbones import loading
from tpv_jax.banks import bank_steps, memory
from tpv_jax.banks.grid import check_lists, name_of
from tpv_jax.core import files, identity, screen
from tpv_jax.core.checks import (
  Lengths,
  NotNegative,
  Positive,
  Seed,
  Size,
  Steps,
  check_fields,
  checked,
)
from tpv_jax.core.errors import UserError
from tpv_jax.core.screen import Bar
from tpv_jax.data import batches, packing
from tpv_jax.data.batches import Features
from tpv_jax.data.vocabularies import Vocabulary
from tpv_jax.devices import partitioning, processes
from tpv_jax.model import PROMPT, SoftPromptModel
from tpv_jax.runs.run_folder import RunFolder, alone
from tpv_jax.training.checkpoints import Best
from tpv_jax.training.initial import Initial
from tpv_jax.training.optimizers import LearningRate
from tpv_jax.training.steps import Leaves, TrainState
from tpv_jax.training.task_data import TaskData, TrainingData
from tpv_jax.training.training import Metric, Run, Stopped, chunks, stop_signals

SAMPLED_STEPS = 20
"""Steps whose examples decide on the shapes of the packed rows."""

COMPILED = "/jax/core/compile/backend_compile_duration"
"""The event by which JAX says that it has compiled something."""

_SHOWN = 12
"""Runs that are listed when a bank has ended."""

_LEFT = "left_bank_at"
"""In the manifest of a diverged run until the others' states of that step are saved."""


@dataclasses.dataclass(frozen=True)
class Entry:
  """One prompt of a bank.

  Attributes:
    data: batches by step and validation rows.
    run_dir: its run folder.
    initial_seed: of its initial prompt.
    seed: stated in its manifest; the order of the examples has that of `data`.
    rate: by which the bank's learning rate is multiplied.
    initial_prompt: what it starts from; None for the bank's.
  """

  data: TrainingData
  run_dir: files.PathLike
  initial_seed: Seed = 0
  seed: Seed = 0
  rate: NotNegative = 1.0
  initial_prompt: Initial | None = None

  def __post_init__(self) -> None:
    check_fields(self)


@checked
def grid(
  tasks: Sequence[Any],
  vocabulary: Vocabulary,
  lengths: Lengths,
  output_dir: files.PathLike,
  batch_size: Size,
  initial_seeds: Sequence[Seed] = (0,),
  rates: Sequence[NotNegative] = (1.0,),
) -> list[Entry]:
  """Returns an entry for each task, initial prompt and learning rate.

  Their run folders are `output_dir`/<task>-<initial seed>, with several rates
  <task>-<initial seed>-<rate>. Examples come in an order by the initial seed too.

  Args:
    tasks: `Task`s, what the prompts are trained on.
    vocabulary: the backbone's.
    lengths: `{'inputs': T, 'targets': L}` in tokens, EOS included.
    output_dir: the folder of the run folders.
    batch_size: examples a step of each prompt.
    initial_seeds: of the initial prompts.
    rates: by which the bank's learning rate is multiplied.

  Raises:
    UserError: one of the lists is none, or empty, or holds something else; an output
      folder that is no path.
  """
  check_lists(tasks, initial_seeds, rates)
  folder = files.to_path(output_dir)
  return [
    Entry(
      TaskData(task, vocabulary, lengths, batch_size, seed),
      folder / name_of(task.name, seed, rate if len(rates) > 1 else None),
      initial_seed=seed,
      seed=seed,
      rate=rate,
    )
    for task, seed, rate in itertools.product(tasks, initial_seeds, rates)
  ]


@checked
@processes.one_clear_line_if_memory_is_short(
  "Lower BANK_SIZE or BATCH_SIZE, shorten LENGTHS, set DTYPE = 'bfloat16', or cut the "
  "backbone over devices (MODEL_PARALLEL)."
)
def train_bank(
  model: SoftPromptModel,
  entries: Sequence[Entry],
  total_steps: Steps,
  learning_rate: LearningRate,
  backbone: str | loading.Backbone,
  initial_prompt: Initial | None = None,
  eval_period: Steps = 100,
  log_period: Steps = 25,
  checkpoint_period: Steps | None = None,
  best_metric: Metric | None = "loss",
  patience: Steps | None = None,
  size: Size | None = None,
  model_parallel: Size = 1,
  shard_bank: bool | None = None,
  split: bool = False,
  block_positions: Size | None = None,
  memory_gib: Positive | None = None,
  overwrite: bool = False,
  progress: bool = True,
  config: Callable[[], str] | None = None,
) -> list[dict[str, Any]]:
  """Trains a prompt for each entry and returns the manifests of their runs, in order.

  Each is trained as `training.train` would train it alone, but for the order in which
  fp32 sums are taken; a run that either of them began may be continued by the other. The
  same call continues a bank that was stopped or killed, with the same bits on the same
  CPU machine. A prompt that ends early, or diverges, leaves the others as they are. One
  that diverged stays so: to train it again, remove its folder.

  While one of its prompts is unfinished, a bank goes on as it was begun: with the same
  prompts in the same order, and with no other `size`, `block_positions` or `patience`,
  for its bits hang on all of them. Nor is another bank begun beside it. When all have
  ended, entries may be added, which are then trained, and left out, which stay as they
  are.

  Before anything is written the bank's calls are compiled and what they need is held
  against the memory of the devices. Several processes train one bank as one would.

  Args:
    model: with a prompt, whose form all entries share, and without dropout.
    entries: the prompts; their run folders differ.
    total_steps: optimizer steps of each prompt.
    learning_rate: step of a prompt, from 0, to learning rate.
    backbone: what `load_backbone` takes, or its result.
    initial_prompt: for entries that have none of their own.
    eval_period: steps between validations.
    log_period: steps between log lines.
    checkpoint_period: steps between checkpoints, by default `eval_period`.
    best_metric: the validation metric that chooses each best prompt.
    patience: a prompt ends after so many validations without a better one; None: never.
    size: prompts trained at once at most, the others after them; None: all.
    model_parallel: devices over which each parameter of the backbone is cut.
    shard_bank: cut the bank itself over the data-parallel devices; None: where they
      divide the number of its prompts.
    split: train a bank that does not fit into memory as several, one after the other,
      and where one prompt alone does not fit, in smaller blocks of rows.
    block_positions: source positions of a block of rows at most; by default
      `bank_steps.wide_positions`.
    memory_gib: what a device may hold; by default what it has.
    overwrite: start runs with other settings again, deleting what is there, and where
      no run of the bank was stopped, finished ones too.
    progress: show a progress bar.
    config: gives the text for each config.gin.

  Raises:
    UserError: entries that share a folder, settings that do not fit, too little memory;
      at the end, if a prompt diverged (the others are finished, its last good state is
      kept).
    Stopped: SIGINT or SIGTERM came; all states are saved.
  """
  _check(entries, patience, best_metric)
  if isinstance(backbone, str):
    backbone = loading.load_backbone(backbone, model.network, model.input_vocabulary)
  runs = _runs(
    entries,
    model=model,
    total_steps=total_steps,
    learning_rate=learning_rate,
    backbone=backbone,
    initial_prompt=initial_prompt,
    eval_period=eval_period,
    log_period=log_period,
    checkpoint_period=checkpoint_period or eval_period,
    best_metric=best_metric,
    microbatches=1,
    model_parallel=model_parallel,
    progress=progress,
    patience=patience,
  )
  build = functools.partial(bank_steps.build, model, learning_rate, runs[0].mesh)
  build(False)  # Says what is no bank before a folder is touched.
  settings = [run.settings for run in runs]
  with alone(*(run.folder for run in runs)):
    found = [
      run.folder.check(one, overwrite) for run, one in zip(runs, settings, strict=True)
    ]
    begun = [
      manifest
      for manifest, other in found
      if manifest and not (other or _ended(manifest))
    ]
    other_bank = _other_bank(runs, begun, size, block_positions, split)
    if other_bank and not overwrite:
      raise UserError(
        f"The bank of '{runs[0].folder.path}' was begun with another {other_bank}. While a "
        "prompt of it is unfinished it goes on as it was begun: give the TASKS, "
        "INITIAL_SEEDS, RATES and BANK_SIZE of then, and train others when it has ended or "
        "in another OUTPUT_DIR; or start all again with --gin.OVERWRITE=True."
      )
    if other_bank:
      begun = []
    unfinished = not all(_ended(manifest) for manifest, _ in found)
    if unfinished and not overwrite:
      _refuse_unfinished_beside([run.folder.path for run in runs])
    # A bank that was stopped goes on, with the prompts that had ended in it.
    over = [overwrite and bool(other or not begun) for _, other in found]
    plan: _Plan | None = None
    if any(over) or unfinished:
      plan = _Plan(
        runs, build, shard_bank, size or len(runs), block_positions, memory_gib
      )
      plan.make_fit(split, [one["bank"] for one in begun if "bank" in one])
    processes.wait_for_all("the bank is planned")
    manifests = [
      run.folder.open(one, again)
      for run, one, again in zip(runs, settings, over, strict=True)
    ]
    processes.wait_for_all("all run folders are open")
    going = {i for i, manifest in enumerate(manifests) if not _ended(manifest)}
    if plan is None or not going:
      manifests = _without_failed(manifests)
      _say(f"All {len(runs)} prompts are finished; nothing to do.")
      return manifests
    _say(str(plan))
    losses = sorted({line for run in runs for line in run.data.losses()})
    for line in [*losses, *runs[0].steps.kept_whole]:
      _say(line)
    frozen = runs[0].place_frozen()
    rates = np.asarray([entry.rate for entry in entries], np.float32)
    with stop_signals() as stop_requested, processes.one_clear_line_if_one_is_lost():
      for group in plan.groups():
        if going.isdisjoint(group):
          continue
        bank = _Bank(
          plan,
          [runs[i] for i in group],
          rates[list(group)],
          frozen,
          patience,
          {place for place, i in enumerate(group) if i in going},
        )
        bank.execute(stop_requested, config)
        for place, i in enumerate(group):
          if i in going:
            manifests[i] = bank.runs[place].manifest
    if progress and processes.is_writer():
      screen.say("\n".join(_ending(manifests, runs)))
    return _without_failed(manifests)


def _ending(manifests: Sequence[Mapping[str, Any]], runs: Sequence[Run]) -> list[str]:
  """Returns what is said of a bank that has ended: each prompt's best, what is next."""
  lines = [f"Trained {len(runs)} prompts; their runs:"]
  ended = [manifest for manifest in manifests if manifest["status"] == "finished"]
  for manifest, run in zip(manifests[:_SHOWN], runs, strict=False):
    best = manifest.get("best_metric", {}).items()
    values = "".join(f", {metric} {value:.4g}" for metric, value in best)
    after = f" after step {manifest['best_step']}" if values else ""
    lines.append(f"  {run.folder.path}: {manifest['status']}{values}{after}")
  if len(runs) > _SHOWN:
    lines.append(f"  and {len(runs) - _SHOWN} more beside them")
  if ended:
    first = runs[manifests.index(ended[0])].folder.path
    output = shlex.quote(f"{first.name}.safetensors")
    lines.append(f"The first's vector: tpv diff {shlex.quote(str(first))} -o {output}")
  return lines


def _other_bank(
  runs: Sequence[Run],
  begun: Sequence[Mapping[str, Any]],
  size: int | None,
  block_positions: int | None,
  split: bool,
) -> str | None:
  """Returns what tells this bank from the one that unfinished runs note, None if nothing.

  With `split` it may have become smaller than was asked for.
  """
  names, count = [run.folder.path.name for run in runs], len(runs)
  asked = {"size": min(size or count, count), "block_positions": block_positions}
  for note in (manifest["bank"] for manifest in begun if "bank" in manifest):
    members = note.get("members")
    if members is not None and members != names:
      return f"list of prompts: {_told_apart(members, names)}"
    for name, now in asked.items():
      there = note[name]
      if now is not None and (now < there or (now > there and not split)):
        return f"{name}: {there} there, {now} now"
    groups = {min(note["size"], count - i) for i in range(0, count, note["size"])}
    if members is None and note["prompts"] not in groups:  # It did not state them.
      return f"number of prompts: {note['prompts']} there, {count} now"
  return None


def _refuse_unfinished_beside(folders: Sequence[files.Path]) -> None:
  """Raises `UserError` if beside these run folders one of another bank is unfinished.

  It would stay behind, unnoticed, where other tasks or seeds are given than were before.
  """
  for parent in dict.fromkeys(folder.parent for folder in folders):
    for path in sorted(parent.glob("*/manifest.json")) if parent.is_dir() else ():
      if path.parent in folders:
        continue
      try:
        manifest = RunFolder(path.parent).manifest()
      except UserError:
        continue  # It is something else.
      if "bank" in manifest and not _ended(manifest):
        raise UserError(
          f"'{parent}' holds an unfinished prompt of another bank, '{path.parent.name}'. "
          "End that bank first, with the TASKS, INITIAL_SEEDS, RATES and BANK_SIZE of "
          "then; or remove the folders of its prompts, or choose another OUTPUT_DIR."
        )


def _told_apart(there: Sequence[str], here: Sequence[str]) -> str:
  lost = [name for name in there if name not in here]
  new = [name for name in here if name not in there]
  told = [
    f"{what} {', '.join(names[:3])}{f' and {len(names) - 3} more' * (len(names) > 3)}"
    for what, names in (("without", lost), ("with", new))
    if names
  ]
  return f"now {' and '.join(told)}" if told else "now in another order"


def _ended(manifest: Mapping[str, Any]) -> bool:
  return manifest.get("status") in ("finished", "failed") and _LEFT not in manifest


def _without_failed(manifests: list[dict[str, Any]]) -> list[dict[str, Any]]:
  """Returns the manifests, if no prompt has diverged."""
  failed = [manifest for manifest in manifests if manifest["status"] == "failed"]
  if failed:
    why = failed[0].get("why", "loss, gradient or prompt became NaN or infinite")
    raise UserError(
      f"{len(failed)} of {len(manifests)} prompts diverged ({why}); the others are "
      "finished. A diverged prompt stays as it is: to train it again, remove its folder."
    )
  return manifests


def _say(line: str) -> None:
  if processes.is_writer():
    screen.say(line)


def _runs(entries: Sequence[Entry], **settings: Any) -> list[Run]:
  """Returns the runs of the entries.

  Raises:
    UserError: some entries do not fit the model; it says which.
  """
  learning_rate, common = settings.pop("learning_rate"), settings.pop("initial_prompt")
  runs: list[Run] = []
  wrong: dict[str, list[str]] = {}
  for number, entry in enumerate(entries):
    try:
      run = Run(
        data=entry.data,
        folder=RunFolder(entry.run_dir),
        learning_rate=_scaled(learning_rate, entry.rate),
        initial_prompt=entry.initial_prompt or common,
        initial_seed=entry.initial_seed,
        seed=entry.seed,
        **settings,
      )
      runs.append(run)
    except UserError as error:
      wrong.setdefault(str(error), []).append(f"{number} ('{entry.run_dir}')")
  for run in runs:
    # They differ by the rate, which a bank has its own way to use.
    run.steps = runs[0].steps
  if wrong:
    (why, which), *_ = wrong.items()
    if len(which) == len(entries):
      raise UserError(why)
    more = f" and {len(which) - 3} more" if len(which) > 3 else ""
    raise UserError(
      f"{sum(map(len, wrong.values()))} of the {len(entries)} entries cannot be trained "
      f"with the others, whose prompts have one form: {', '.join(which[:3])}{more}: {why} "
      "Or train them as a bank of their own."
    )
  return runs


def _check(
  entries: Sequence[Entry], patience: int | None, best_metric: str | None
) -> None:
  if not entries:
    raise UserError("The bank is empty. Give at least one entry.")
  if patience and best_metric is None:
    raise UserError(
      f"PATIENCE is {patience}, and without a metric that chooses the best prompt none "
      "is better. Set BEST_METRIC, or PATIENCE = None."
    )
  folders: dict[str, int] = {}
  for index, entry in enumerate(entries):
    folder = str(files.absolute(files.to_path(entry.run_dir)))
    if folder in folders:
      raise UserError(
        f"Entries {folders[folder]} and {index} of the bank have the same run folder "
        f"'{entry.run_dir}'. Give each prompt its own."
      )
    folders[folder] = index


@functools.cache
def _scaled(learning_rate: LearningRate, rate: float) -> LearningRate:
  return learning_rate if rate == 1 else lambda step: rate * learning_rate(step)


class _Plan:
  """How many prompts are trained at once, in rows of which shapes, and what it needs.

  A bank that goes on keeps the numbers that its runs have noted, so that memory that
  others have taken meanwhile does not change its bits.
  """

  def __init__(
    self,
    runs: Sequence[Run],
    build: Callable[[bool], bank_steps.BankSteps],
    shard: bool | None,
    size: int,
    positions: int | None,
    limit: float | None,
  ):
    self.runs = runs
    self.build = build
    self.shard = shard
    self.size = min(size, len(runs))
    self.positions = positions or bank_steps.wide_positions()
    self.available = memory.available(runs[0].mesh.local_devices, limit)
    self.sampled = [
      [
        [(len(one.source), len(one.target)) for one in packing.items(batch, 0)]
        for batch in (run.data.batch_at(step) for run in runs)
      ]
      for step in range(SAMPLED_STEPS)
    ]

  def make_fit(self, split: bool, notes: Sequence[Mapping[str, Any]]) -> None:
    """Finds out what the bank needs; makes groups or blocks smaller if that is allowed.

    Args:
      split: whether that is allowed.
      notes: what the runs that go on have noted of the bank.

    Raises:
      UserError: the bank does not fit.
    """
    for note in notes if split else ():
      self.size = min(self.size, note["size"])
      self.positions = min(self.positions, note["block_positions"])
    self._choose()
    while self.need.total > self.available:
      fits = self._most_prompts()
      now = self.shapes.wide.positions
      smaller = self._shapes(now // 2).wide.positions < now and not fits
      if not split or not (fits or smaller):
        raise UserError(self._refusal(fits, smaller))
      if fits:
        even = math.ceil(len(self.runs) / math.ceil(len(self.runs) / fits))
        self.size = max(even // self._grain, 1) * self._grain
      else:
        self.positions = now // 2
      self._choose()

  def groups(self) -> list[range]:
    """Returns which runs are trained at once, group by group."""
    starts = range(0, len(self.runs), self.size)
    return [range(first, min(first + self.size, len(self.runs))) for first in starts]

  def note(self) -> dict[str, Any]:
    """Returns what the manifests say of the plan."""
    shapes = [dataclasses.astuple(one) for one in (self.shapes.wide, self.shapes.short)]
    return {
      "members": [run.folder.path.name for run in self.runs],
      "size": self.size,
      "block_positions": self.positions,
      "shapes": [list(shape) for shape in shapes],
    }

  def __str__(self) -> str:
    shapes, groups = self.shapes, len(self.groups())
    rows = " and ".join(
      f"{shape.rows} x {shape.width}"
      for shape in dict.fromkeys((shapes.wide, shapes.short))
    )
    return (
      f"{len(self.runs)} prompts{f' in {groups} banks' if groups > 1 else ''}: rows x "
      f"positions {rows}, {self.padding:.1%} padding in a sample; needs {self.need} of "
      f"{memory.text(self.available)}{self._where()}"
    )

  def _where(self) -> str:
    """Returns where the prompts lie, '' on one data-parallel device."""
    if self._devices == 1:
      return ""
    if self.cut:
      return f"; {self._devices} devices hold a part of the prompts each"
    return f"; each of {self._devices} data-parallel devices holds all of the prompts"

  @property
  def _devices(self) -> int:
    return self.runs[0].mesh.shape[partitioning.DATA]

  @property
  def _grain(self) -> int:
    """Of which the number of prompts is a multiple: the devices that cut the bank."""
    return self._devices if self.cut else 1

  def _choose(self) -> None:
    """Chooses shapes for all groups, and measures the first."""
    odd = [len(group) for group in self.groups() if len(group) % self._devices]
    if odd and self.shard:
      raise UserError(
        f"{odd[0]} prompts cannot be cut over {self._devices} data-parallel devices. Set "
        f"SHARD_BANK = False, or BANK_SIZE so that {self._devices} divides it and what "
        "is left."
      )
    self.cut = self.shard is not False and not odd
    self.steps = self.build(self.cut)
    self.shapes = self._shapes(self.positions)
    self.padding = packing.padding_share(self._steps(), self.shapes)
    self.need = self._measure(self.size)

  def _steps(self) -> list[packing.Sizes]:
    """Returns the sizes of the examples of each sampled step of each group."""
    steps = [
      list(itertools.chain.from_iterable(sizes[i] for i in group))
      for sizes in self.sampled
      for group in self.groups()
    ]
    return [step for step in steps if step]

  def _shapes(self, positions: int) -> packing.Shapes:
    prompt = self.runs[0].model.prompt
    assert prompt is not None  # `bank_steps.build` has seen to it.
    first = [run.data.batch_at(0) for run in self.runs]
    for run in self.runs:
      first += itertools.islice(run.data.validation_batches(), 1)
    return packing.choose_shapes(
      self._steps(),
      prompt.length,
      {
        name: max(batches.widths(batch)[name] for batch in first)
        for name in ("inputs", "targets")
      },
      rows_multiple=self._devices,
      most_positions=positions,
      call=bank_steps.call_positions(),
    )

  def _measure(self, prompts: int) -> memory.Need:
    run = self.runs[0]
    assert run.initial is not None and run.backbone is not None  # A prompt needs both.
    stored = run.model.network.stored
    return memory.need(
      self.steps,
      identity.flatten({PROMPT: run.initial.leaves}),
      {
        path: jax.ShapeDtypeStruct(leaf.shape, stored(path, leaf.dtype))
        for path, leaf in identity.flatten(run.backbone.params).items()
      },
      prompts,
      self.shapes,
    )

  def _most_prompts(self) -> int:
    """Returns how many prompts would fit: the need grows evenly with their number."""
    grain = self._grain
    if self.size <= grain:
      return 0
    fewer = max(self.size // 2 // grain, 1) * grain
    less = self._measure(fewer).total
    each = max(1.0, (self.need.total - less) / (self.size - fewer))
    most = min(self.size - grain, int(fewer + (self.available - less) / each))
    return max(0, most // grain * grain)

  def _refusal(self, fits: int, smaller: bool) -> str:
    if fits:
      advice = (
        f"About {fits} would fit: set BANK_SIZE = {fits}, or SPLIT = True, which trains "
        "them in groups, one after the other."
      )
    elif smaller:
      advice = (
        "Not even one would fit with blocks of "
        f"{self.shapes.wide.positions:,} positions: set BLOCK_POSITIONS = "
        f"{self.shapes.wide.positions // 2}, or SPLIT = True, which finds the size."
      )
    else:
      advice = (
        "Not even one would fit. Shorten LENGTHS, set DTYPE = 'bfloat16', or cut the "
        "backbone over more devices (MODEL_PARALLEL)."
      )
    return (
      f"A bank of {self.size} needs {self.need} on each device, and "
      f"{memory.text(self.available)} are free there. {advice}"
    )


class _Bank:
  """The prompts that are trained at once; `runs` write what is theirs.

  One that has ended before keeps its place, without examples, so that the compiled
  steps are those of the unbroken bank.
  """

  def __init__(
    self,
    plan: _Plan,
    runs: Sequence[Run],
    rates: np.ndarray,
    frozen: Leaves,
    patience: int | None,
    going: set[int],
  ):
    self.plan = plan
    self.steps = plan.steps
    self.runs = runs
    self.rates = rates
    self.frozen = frozen
    self.patience = patience
    self.active = going
    self.names = [run.data.name for run in runs]
    self.best: list[Best | None] = [None] * len(runs)
    self.positions = self.used = self.recompiled = 0
    self.listening = self.stepped = False
    self._validation: tuple[tuple[int, ...], list[Features]] | None = None

  def execute(
    self, stop_requested: Callable[[], int | None], config: Callable[[], str] | None
  ) -> None:
    """Runs all steps that are left."""
    began = time.time()
    self._settle_the_diverged()
    for index in sorted(self.active):
      self.runs[index].go_back_to_what_is_whole()
    self._go_back_to_a_common_step()
    jax.monitoring.register_event_duration_secs_listener(self._hear)
    with contextlib.ExitStack() as stack:
      stack.callback(jax.monitoring.unregister_event_duration_listener, self._hear)
      state, at = self._begin(stack, config)
      if at:
        state = self._loop(state, at, stop_requested)
        whole = processes.on_host(state)
        for index in sorted(self.active):
          self._finish("finished", index, whole, time.time() - began)
        _say(
          f"{len(self.runs)} prompts: {self._padding:.1%} of {self.positions:,} source "
          f"positions were padding; recompilations: {self.recompiled}"
        )

  def _settle_the_diverged(self) -> None:
    """Ends prompts that had diverged when a kill came, if the others are that far.

    Otherwise they go back with the others, and diverge again.
    """
    left = {
      index: manifest
      for index in self.active
      if _LEFT in (manifest := self.runs[index].folder.manifest())
    }
    others = [self.runs[index].checkpoints for index in self.active - left.keys()]
    reached = min((saved.latest_step() or 0 for saved in others), default=math.inf)
    processes.wait_for_all("the states of the prompts are known")
    for index, manifest in left.items():
      if manifest[_LEFT] <= reached:
        self.runs[index].manifest = manifest
        self._fail(index)

  def _go_back_to_a_common_step(self) -> None:
    """Drops newer checkpoints than the oldest run's, where the others have that one too.

    A kill between two of its saves leaves some runs a checkpoint ahead; their prompts
    would share no rows with the others' until these have caught up, and so take other
    bits.
    """
    checkpoints = [self.runs[index].checkpoints for index in sorted(self.active)]
    saved = [one.steps() for one in checkpoints]
    common = min((max(steps, default=0) for steps in saved), default=0)
    processes.wait_for_all("the checkpoints of the prompts are listed")
    if all(common in steps for steps in saved):
      for one in checkpoints:
        one.drop_after(common)

  def _begin(
    self, stack: contextlib.ExitStack, config: Callable[[], str] | None
  ) -> tuple[TrainState, dict[int, int]]:
    """Returns the stacked state, and the step at which each prompt is that goes on."""
    states: list[TrainState] = []
    at: dict[int, int] = {}
    counted: dict[str, list[int]] = {}
    for index, run in enumerate(self.runs):
      state = run.fresh_state()
      if index in self.active:
        counted |= run.folder.manifest().get("bank", {}).get("counted", {})
        state, self.best[index] = run.begin(self.frozen, state, config)
        stack.callback(run.close)
        at[index] = int(state.step)
      states.append(processes.on_host(state))
    for index in at:
      run = self.runs[index]
      run.manifest["bank"] = self._note(counted)
      run.folder.write_manifest(run.manifest)
    self.counted = counted
    if at:
      self.positions, self.used = counted.get(str(min(at.values())), [0, 0])
    whole = jax.tree.map(lambda *leaves: np.stack(leaves), *states)
    for index, step in list(at.items()):
      if self._has_lost_patience(index, step):  # When a kill came.
        self._finish("finished", index, whole)
        self.active.discard(index)
        del at[index]
    return jax.tree.map(processes.put, whole, self.steps.state), at

  def _loop(
    self,
    state: TrainState,
    at: Mapping[int, int],
    stop_requested: Callable[[], int | None],
  ) -> TrainState:
    run = self.runs[0]
    first, total = min(at.values()), run.total_steps
    bar = Bar(
      total=total,
      initial=first,
      desc=f"{len(self.runs)} prompts",
      unit="step",
      disable=not (run.progress and processes.is_writer()),
      dynamic_ncols=True,
    )
    periods = (run.log_period, run.eval_period, run.checkpoint_period)
    with bar:
      for start, stop in chunks(first, total, periods):
        indices = {i for i in self.active if at[i] <= start}
        began = time.time()
        state, reports = self._advance(state, start, stop, indices)
        diverged = self._record(start, stop, indices, reports, time.time() - began, bar)
        indices -= diverged
        number = processes.agreed(stop_requested())
        validates = stop % run.eval_period == 0 or stop == total
        saves = stop % run.checkpoint_period == 0 or stop == total or number
        tired = set()
        if validates or saves or diverged:
          whole = processes.on_host(state)
        if validates:
          tired = self._validate(state, whole, stop, indices)
        if saves or diverged or tired:
          # Before any prompt leaves, so that after a kill the others find no bank without
          # it at a step at which it was there.
          self._save(whole, stop, indices)
        for index in sorted(tired):
          self._finish("finished", index, whole)
          self.active.discard(index)
        for index in sorted(diverged):
          self._fail(index)
        if not self.active:
          break
        if number and stop < total:
          for index in self.active:
            self._finish("stopped", index, whole)
          raise Stopped(
            number,
            f"stopped by {signal.Signals(number).name} after step {stop}; the same "
            "command continues",
          )
        bar.update(stop - start)
    return state

  def _advance(
    self, state: TrainState, start: int, stop: int, indices: set[int]
  ) -> tuple[TrainState, dict[str, np.ndarray]]:
    """Returns the state after steps `start` to `stop`, and what each reported [steps, N]."""
    reports = []
    for step in range(start, stop):
      items = [
        item
        for index in sorted(indices)
        for item in packing.items(self.runs[index].data.batch_at(step), index)
      ]
      calls = packing.pack(items, self.plan.shapes, self.names)
      self.positions += sum(shape.positions for shape, _ in calls)
      self.used += sum(packing.used_positions(features) for _, features in calls)
      self.listening = self.stepped
      # Dispatched at once: the next step is packed while the devices work on this one.
      state, report = bank_steps.train_step(
        self.steps, state, self.frozen, [features for _, features in calls], self.rates
      )
      self.listening, self.stepped = False, True
      reports.append(report)
    found = jax.device_get(reports)
    return state, {name: np.stack([one[name] for one in found]) for name in found[0]}

  def _record(
    self,
    start: int,
    stop: int,
    indices: set[int],
    reports: dict[str, np.ndarray],
    seconds: float,
    bar: Bar,
  ) -> set[int]:
    """Writes what the steps reported, and returns the prompts that have diverged."""
    losses, diverged = [], set()
    for index in sorted(indices):
      run = self.runs[index]
      mine = {name: values[:, index] for name, values in reports.items()}
      speed = (stop - start) * run.data.batch_size / seconds
      run.manifest[_LEFT] = stop  # In case that `record` writes of the end.
      try:
        losses.append(run.record(start, stop, mine, speed)["loss"])
        del run.manifest[_LEFT]
      except UserError as error:
        run.manifest["why"] = str(error)
        run.folder.write_manifest(run.manifest)
        diverged.add(index)
        _say(f"{run.folder.path}: {error}")
    bar.set_postfix(
      {
        "training": len(self.active) - len(diverged),
        "mean loss": f"{np.mean(losses):.3f}" if losses else "-",
        "padding": f"{self._padding:.1%}",
      }
    )
    return diverged

  def _validate(
    self, state: TrainState, whole: TrainState, step: int, indices: set[int]
  ) -> set[int]:
    """Validates the prompts, whose rows share calls; returns those that lost patience."""
    tired, shown = set(), []
    calls = self._validation_calls(tuple(sorted(indices)))
    means = bank_steps.validate(self.steps, state, self.frozen, calls) if calls else {}
    for index in sorted(indices):
      run = self.runs[index]
      values = {name: float(mean[index]) for name, mean in means.items()}
      if math.isnan(values.get("exact_match", math.nan)):
        values = {}  # It has no validation rows.
      self.best[index] = run.judge(_one(whole, index), self.best[index], values)
      best, name = self.best[index], run.folder.path.name
      if run.best_metric in values:
        mark = "*" if best and best.step == step else ""
        shown.append(f"{name} {values[run.best_metric]:.3g}{mark}")
      if self._has_lost_patience(index, step):
        tired.add(index)
        waited = step - (best.step if best else 0)
        _say(f"{run.folder.path}: no better for {waited} steps, ended after {step}")
    if shown and self.runs[0].progress:
      metric = self.runs[0].best_metric
      text = f"step {step}, validation {metric} (* the best): " + ", ".join(shown)
      _say(textwrap.fill(text, 88, subsequent_indent="  ", break_on_hyphens=False))
    return tired

  def _validation_calls(self, indices: tuple[int, ...]) -> list[Features]:
    """Returns the validation rows of these prompts in wide blocks.

    They are packed again when a prompt has left.
    """
    if self._validation is None or self._validation[0] != indices:
      items = [
        item
        for index in indices
        for batch in self.runs[index].data.validation_batches()
        for item in packing.items(batch, index)
      ]
      shapes = dataclasses.replace(self.plan.shapes, short=self.plan.shapes.wide)
      calls = packing.pack(items, shapes, self.names)
      self._validation = indices, [features for _, features in calls]
    return self._validation[1]

  def _has_lost_patience(self, index: int, step: int) -> bool:
    best = self.best[index]
    waited = step - (best.step if best else 0)
    period = self.runs[index].eval_period
    return bool(self.patience) and waited >= (self.patience or 0) * period

  def _save(self, whole: TrainState, step: int, indices: set[int]) -> None:
    """Writes the checkpoints, and before them what was counted up to their step."""
    self.counted[str(step)] = [self.positions, self.used]
    newest = sorted(self.counted, key=int)[-3:]  # A run keeps two checkpoints.
    self.counted = {key: self.counted[key] for key in newest}
    for index in sorted(indices):
      run = self.runs[index]
      run.manifest["bank"] = self._note(self.counted)
      run.folder.write_manifest(run.manifest)
      run.save(_one(whole, index), self.best[index])

  def _fail(self, index: int) -> None:
    """Writes the end of a prompt that has diverged."""
    run = self.runs[index]
    del run.manifest[_LEFT]
    run.folder.write_manifest(run.manifest)
    self.active.discard(index)

  def _finish(
    self, status: str, index: int, whole: TrainState, seconds: float | None = None
  ) -> None:
    run = self.runs[index]
    run.manifest["bank"] = self._note(self.counted if status == "stopped" else None)
    run.finish(status, _one(whole, index), self.best[index], seconds)

  def _note(self, counted: Mapping[str, Sequence[int]] | None) -> dict[str, Any]:
    """Returns what a manifest says of the bank."""
    note = {"prompts": len(self.runs), **self.plan.note()}
    if counted is not None:
      return note | {"counted": dict(counted)}
    return note | {
      "padding_share": round(self._padding, 4),
      "recompiled": self.recompiled,
    }

  @property
  def _padding(self) -> float:
    """The share of all computed source positions so far that held nothing."""
    return 1 - self.used / max(self.positions, 1)

  def _hear(self, event: str, duration_secs: float, **_: Any) -> None:
    """Counts what is compiled in a step that is not the first."""
    if self.listening and event == COMPILED:
      self.recompiled += 1


def _one(whole: TrainState, index: int) -> TrainState:
  """Returns a copy of one prompt's state."""
  return jax.tree.map(lambda leaf: np.array(leaf[index]), whole)

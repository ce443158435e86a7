"""Banks: many prompts trained at once on one backbone, each as a run of its own.

Each prompt has its own run folder, stream of examples, validation and best prompt; only
the calls are shared (`bank_steps`). So a bank that was killed goes on from the
checkpoints of its runs, with the same bits, and its results are ordinary run folders.
"""

import dataclasses
import functools
from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Any

import numpy as np
from jaxtyping import Float32

from tpv_jax.backbones import loading
from tpv_jax.banks import bank_steps, loop
from tpv_jax.banks.grid import check_lists, entries
from tpv_jax.banks.plan import Plan
from tpv_jax.core import files, screen
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
from tpv_jax.data.vocabularies import Vocabulary
from tpv_jax.devices import processes
from tpv_jax.model import SoftPromptModel
from tpv_jax.runs import curves, summary, tracking
from tpv_jax.runs.diagnosis import evidence, registry
from tpv_jax.runs.run_folder import RunFolder, alone
from tpv_jax.runs.run_settings import defaults_of
from tpv_jax.training import training
from tpv_jax.training.initial import Initial
from tpv_jax.training.loop import Metric, Run
from tpv_jax.training.optimizers import LearningRate
from tpv_jax.training.signals import stop_signals
from tpv_jax.training.task_data import TaskData, TrainingData


@dataclasses.dataclass(frozen=True)
class Entry:
  """One prompt of a bank.

  Attributes:
    data: gives training batches by step, and validation batches.
    run_dir: its run folder.
    initial_seed: of its initial prompt.
    seed: stated in its manifest; the examples are ordered by the seed of `data`.
    rate: a factor of the bank's learning rate.
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
  <task>-<initial seed>-<rate>. The initial seed also orders the examples.

  Args:
    tasks: the `Task`s that the prompts are trained on.
    vocabulary: the backbone's.
    lengths: `{'inputs': T, 'targets': L}` in tokens, EOS included.
    output_dir: the folder of the run folders.
    batch_size: examples per step of each prompt.
    initial_seeds: of the initial prompts.
    rates: factors of the bank's learning rate.

  Raises:
    UserError: one of the lists is not a list, is empty, or has an invalid entry; or the
      output folder is not a path.
  """
  check_lists(tasks, initial_seeds, rates)
  folder = files.to_path(output_dir)
  return [
    Entry(
      TaskData(task, vocabulary, lengths, batch_size, seed),
      folder / name,
      initial_seed=seed,
      seed=seed,
      rate=rate,
    )
    for task, seed, rate, name in entries(tasks, initial_seeds, rates)
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
  wandb_project: str | None = None,
  progress: bool = True,
  config: Callable[[], str] | None = None,
) -> list[dict[str, Any]]:
  """Trains a prompt for each entry and returns the manifests of their runs, in order.

  Each prompt is trained as `training.train` would train it alone, up to the order of fp32
  sums; a run that one of them began can be continued by the other. The same call continues
  a bank that was stopped or killed, with the same bits on the same CPU machine. A prompt
  that ends early or diverges does not affect the others. A diverged prompt is not trained
  again until its folder is removed.

  While one of its prompts is unfinished, a bank can only be continued as it was begun: with
  the same prompts in the same order and the same `size`, `block_positions` and `patience`,
  because its bits depend on all of them. No other bank can be begun beside it. When all
  prompts have ended, entries may be added, which are then trained, or left out, which
  changes nothing for them.

  Before anything is written, the bank's calls are compiled and their need is compared with
  the memory of the devices. Several processes train one bank as one process would.

  Args:
    model: has a prompt, whose form all entries share, and no dropout.
    entries: the prompts; their run folders differ.
    total_steps: optimizer steps of each prompt.
    learning_rate: a schedule: step of a prompt, counted from 0, to learning rate.
    backbone: what `load_backbone` takes, or its result.
    initial_prompt: for entries that have none of their own.
    eval_period: steps between validations.
    log_period: steps between log lines.
    checkpoint_period: steps between checkpoints, by default `eval_period`.
    best_metric: the validation metric that chooses each best prompt.
    patience: a prompt ends after this many validations without a better one; None trains
      all steps.
    size: the most prompts trained at once; the others follow in groups. None trains all
      at once.
    model_parallel: devices over which each parameter of the backbone is split.
    shard_bank: split the bank itself over the data-parallel devices; None splits it if
      their number divides the number of its prompts.
    split: train a bank that does not fit into memory in groups, one after the other, and
      if a single prompt does not fit, in smaller blocks of rows.
    block_positions: the most source positions of a block of rows; by default
      `bank_steps.packed_for`.
    memory_gib: the memory of a device that may be used; by default all that is free.
    overwrite: delete runs with other settings and start them again; if no run of the
      bank was stopped, also finished ones.
    wandb_project: of Weights & Biases, where metrics go as well, each prompt's as a run.
    progress: show a progress bar.
    config: returns the text of each config.gin.

  Raises:
    UserError: entries that share a folder, settings that do not fit, too little memory;
      at the end, a prompt diverged (the others are finished, and its last good state is
      kept).
    Stopped: SIGINT or SIGTERM came; all states are saved.
  """
  _check(entries, patience, best_metric)
  tracking.check(wandb_project)
  backbone = loading.loaded(backbone, model.network, model.input_vocabulary)
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
    wandb_project=wandb_project,
    patience=patience,
    defaults=defaults_of(training.train),
  )
  build = functools.partial(bank_steps.build, model, learning_rate, runs[0].mesh)
  build(False)  # Refuses a model that cannot be a bank before a folder is touched.
  with alone(*(run.folder for run in runs)):
    found = _find_runs(runs, size, block_positions, split, overwrite)
    plan: Plan | None = None
    if any(found.again) or found.unfinished:
      plan = Plan(
        runs, build, shard_bank, size or len(runs), block_positions, memory_gib
      )
      plan.make_fit(split, [one["bank"] for one in found.begun if "bank" in one])
    processes.wait_for_all("the bank is planned")
    manifests = [
      run.folder.open(run.settings, again)
      for run, again in zip(runs, found.again, strict=True)
    ]
    processes.wait_for_all("all run folders are open")
    going = {i for i, manifest in enumerate(manifests) if not _ended(manifest)}
    if plan is None or not going:
      manifests = _without_failed(manifests)
      processes.say(f"All {len(runs)} prompts are finished; nothing to do.")
      return manifests
    processes.say(str(plan))
    losses = sorted({line for run in runs for line in run.data.losses()})
    for line in [*losses, *runs[0].steps.kept_whole]:
      processes.say(line)
    rates = np.asarray([entry.rate for entry in entries], np.float32)
    for i, manifest in _trained(plan, runs, going, rates, patience, config).items():
      manifests[i] = manifest
    if progress and processes.is_writer():
      screen.say("\n".join(_ending(runs)))
    return _without_failed(manifests)


@dataclasses.dataclass(frozen=True)
class _Found:
  """What a bank finds in its run folders.

  Attributes:
    begun: the manifests of the runs that it continues.
    unfinished: whether a run has not ended, or not begun.
    again: for each run, whether it starts again and replaces what is there.
  """

  begun: list[dict[str, Any]]
  unfinished: bool
  again: list[bool]


def _find_runs(
  runs: Sequence[Run],
  size: int | None,
  block_positions: int | None,
  split: bool,
  overwrite: bool,
) -> _Found:
  """Returns what is in the run folders of a bank; see `train_bank` for the arguments.

  Raises:
    UserError: the runs are of another bank or have other settings, and `overwrite` is
      False.
  """
  found = [run.folder.check(run.settings, overwrite) for run in runs]
  begun = [
    manifest
    for manifest, other in found
    if manifest and not (other or _ended(manifest))
  ]
  other_bank = _other_bank(runs, begun, size, block_positions, split)
  if other_bank and not overwrite:
    raise UserError(
      f"The bank of '{runs[0].folder.path}' was begun with another {other_bank}. While a "
      "prompt of it is unfinished, it must be continued as it was begun: give its first "
      "TASKS, INITIAL_SEEDS, RATES and BANK_SIZE, and train others when it has ended or "
      "in another OUTPUT_DIR; or start all again with --gin.OVERWRITE=True."
    )
  if other_bank:
    begun = []
  unfinished = not all(_ended(manifest) for manifest, _ in found)
  if unfinished and not overwrite:
    _refuse_unfinished_beside([run.folder.path for run in runs])
  # A bank that was stopped goes on, including its prompts that have ended.
  return _Found(
    begun, unfinished, [overwrite and bool(other or not begun) for _, other in found]
  )


def _trained(
  plan: Plan,
  runs: Sequence[Run],
  going: Collection[int],
  rates: Float32[np.ndarray, " N"],
  patience: int | None,
  config: Callable[[], str] | None,
) -> dict[int, dict[str, Any]]:
  """Trains the runs with the indices `going`, by group; returns index -> manifest."""
  frozen = runs[0].place_frozen()
  manifests: dict[int, dict[str, Any]] = {}
  with stop_signals() as stop_requested, processes.one_clear_line_if_one_is_lost():
    for group in plan.groups():
      members = {place: i for place, i in enumerate(group) if i in going}
      if not members:
        continue
      bank = loop.BankRun(
        plan,
        [runs[i] for i in group],
        rates[list(group)],
        frozen,
        patience,
        set(members),
      )
      bank.execute(stop_requested, config)
      manifests |= {i: bank.runs[place].manifest for place, i in members.items()}
  return manifests


def _ending(runs: Sequence[Run]) -> list[str]:
  """Draws the curves of the prompts beside their folders; returns what is shown."""
  seen = {run.folder.path: evidence.read(run.folder.path) for run in runs}
  found = {path: (one.manifest, one.lines) for path, one in seen.items()}
  parents = {path.parent for path in found}
  picture = parents.pop() / summary.CURVES if len(parents) == 1 else None
  lines = {path.name: lines for path, (_, lines) in found.items()}
  if picture is not None and not curves.write(picture, curves.many, lines):
    picture = None
  faults = {path: registry.findings(one) for path, one in seen.items()}
  return [*summary.ended_together(found, picture), *registry.hints(faults)]


def _other_bank(
  runs: Sequence[Run],
  begun: Sequence[Mapping[str, Any]],
  size: int | None,
  block_positions: int | None,
  split: bool,
) -> str | None:
  """Returns how this bank differs from the one that unfinished runs note, None if not.

  With `split` the noted bank may be smaller than was asked for.
  """
  names, count = [run.folder.path.name for run in runs], len(runs)
  asked = {"size": min(size or count, count), "block_positions": block_positions}
  for note in (manifest["bank"] for manifest in begun if "bank" in manifest):
    members = note.get("members")
    if members is not None and members != names:
      return f"list of prompts: {_list_difference(members, names)}"
    for name, now in asked.items():
      there = note[name]
      if now is not None and (now < there or (now > there and not split)):
        return f"{name}: {there} there, {now} now"
    groups = {min(note["size"], count - i) for i in range(0, count, note["size"])}
    if members is None and note["prompts"] not in groups:  # The note has no members.
      return f"number of prompts: {note['prompts']} there, {count} now"
  return None


def _refuse_unfinished_beside(folders: Sequence[files.Path]) -> None:
  """Raises `UserError` if an unfinished run of another bank is beside these run folders.

  Given other tasks or seeds than before, a bank would otherwise leave it behind unnoticed.
  """
  for parent in dict.fromkeys(folder.parent for folder in folders):
    for path in sorted(parent.glob("*/manifest.json")) if parent.is_dir() else ():
      if path.parent in folders:
        continue
      try:
        manifest = RunFolder(path.parent).manifest()
      except UserError:
        continue  # This folder is no run.
      if "bank" in manifest and not _ended(manifest):
        raise UserError(
          f"'{parent}' holds an unfinished prompt of another bank, '{path.parent.name}'. "
          "Finish that bank first, with its TASKS, INITIAL_SEEDS, RATES and BANK_SIZE; "
          "or remove the folders of its prompts, or choose another OUTPUT_DIR."
        )


def _list_difference(there: Sequence[str], here: Sequence[str]) -> str:
  lost = [name for name in there if name not in here]
  new = [name for name in here if name not in there]
  told = [
    f"{what} {', '.join(names[:3])}{f' and {len(names) - 3} more' * (len(names) > 3)}"
    for what, names in (("without", lost), ("with", new))
    if names
  ]
  return f"now {' and '.join(told)}" if told else "now in another order"


def _ended(manifest: Mapping[str, Any]) -> bool:
  return (
    manifest.get("status") in ("finished", "failed") and loop.LEFT_AT not in manifest
  )


def _without_failed(manifests: list[dict[str, Any]]) -> list[dict[str, Any]]:
  """Returns the manifests; raises `UserError` if a prompt has diverged."""
  failed = [manifest for manifest in manifests if manifest["status"] == "failed"]
  if failed:
    why = failed[0].get("why", "loss, gradient or prompt became NaN or infinite")
    raise UserError(
      f"{len(failed)} of {len(manifests)} prompts diverged ({why}); the others are "
      "finished. A diverged prompt stays as it is: to train it again, remove its folder."
    )
  return manifests


def _runs(entries: Sequence[Entry], **settings: Any) -> list[Run]:
  """Returns the runs of the entries.

  Raises:
    UserError: some entries do not fit the model; the message names them.
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
    # These differ only in the rate, which a bank applies itself.
    run.steps = runs[0].steps
  if wrong:
    (why, which), *_ = wrong.items()
    if len(which) == len(entries):
      raise UserError(why)
    more = f" and {len(which) - 3} more" if len(which) > 3 else ""
    raise UserError(
      f"{sum(map(len, wrong.values()))} of the {len(entries)} entries cannot be trained "
      f"with the others, whose prompts have one form: {', '.join(which[:3])}{more}: {why} "
      "Or train them in a separate bank."
    )
  return runs


def _check(
  entries: Sequence[Entry], patience: int | None, best_metric: str | None
) -> None:
  if not entries:
    raise UserError("The bank is empty. Give at least one entry.")
  if patience and best_metric is None:
    raise UserError(
      f"PATIENCE is {patience}, and BEST_METRIC is None, so no prompt is better than "
      "another. Set BEST_METRIC, or PATIENCE = None."
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

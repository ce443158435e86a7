"""Trains many prompts at once on one backbone, each as a run of its own.

Every prompt has its run folder, its stream of examples, its validation and its best
prompt; only the steps are shared (`bank_steps`). So a bank that was killed goes on, with
the same bits, from the checkpoints of its runs, and what it leaves are run folders.
"""

import dataclasses
import functools
import itertools
import math
import os
import signal
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import numpy as np
from tqdm import tqdm

from tpv_jax import files, partitioning
from tpv_jax.backbone import loading
from tpv_jax.data import packing
from tpv_jax.data.tasks import Task
from tpv_jax.data.vocabularies import Vocabulary
from tpv_jax.errors import UserError, at_least
from tpv_jax.model import SoftPromptModel
from tpv_jax.optimizers import LearningRate
from tpv_jax.prompts.initial import Initial
from tpv_jax.runner import bank_steps, processes
from tpv_jax.runner.checkpoints import Best
from tpv_jax.runner.run_folder import RunFolder
from tpv_jax.runner.steps import Leaves, TrainState
from tpv_jax.runner.task_data import TaskData, TrainingData
from tpv_jax.runner.training import Run, Stopped, chunks, stop_signals

SAMPLED_STEPS = 20
"""Steps whose examples decide on the shapes of the packed rows."""


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
  initial_seed: int = 0
  seed: int = 0
  rate: float = 1.0
  initial_prompt: Initial | None = None


def grid(
  tasks: Sequence[Task],
  vocabulary: Vocabulary,
  lengths: Mapping[str, int],
  output_dir: files.PathLike,
  batch_size: int,
  initial_seeds: Sequence[int] = (0,),
  rates: Sequence[float] = (1.0,),
) -> list[Entry]:
  """Returns an entry for each task, initial prompt and learning rate.

  Their run folders are `output_dir`/<task>-<initial seed>, with several rates
  <task>-<initial seed>-<rate>. Examples come in an order by the initial seed too.

  Args:
    tasks: what the prompts are trained on.
    vocabulary: the backbone's.
    lengths: `{'inputs': T, 'targets': L}` in tokens, EOS included.
    output_dir: the folder of the run folders.
    batch_size: examples a step of each prompt.
    initial_seeds: of the initial prompts.
    rates: by which the bank's learning rate is multiplied.

  Raises:
    UserError: one of the lists is none, or empty, or an output folder that is no path.
  """
  lists = {"TASKS": tasks, "INITIAL_SEEDS": initial_seeds, "RATES": rates}
  for name, values in lists.items():
    if not isinstance(values, list | tuple) or not values:
      raise UserError(
        f"{name} is {values!r}, which leaves no prompt to train. Give a list with at "
        "least one entry."
      )
  if not isinstance(output_dir, str | os.PathLike):
    raise UserError(f"OUTPUT_DIR is {output_dir!r}; it must be the path of a folder.")
  folder = files.to_path(output_dir)
  return [
    Entry(
      TaskData(task, vocabulary, lengths, batch_size, seed),
      folder / (f"{task.name}-{seed}" + (f"-{rate:g}" if len(rates) > 1 else "")),
      initial_seed=seed,
      seed=seed,
      rate=rate,
    )
    for task, seed, rate in itertools.product(tasks, initial_seeds, rates)
  ]


def train_bank(
  model: SoftPromptModel,
  entries: Sequence[Entry],
  total_steps: int,
  learning_rate: LearningRate,
  backbone: str | loading.Backbone,
  initial_prompt: Initial | None = None,
  eval_period: int = 100,
  log_period: int = 25,
  checkpoint_period: int | None = None,
  best_metric: str | None = "loss",
  patience: int | None = None,
  size: int | None = None,
  model_parallel: int = 1,
  shard_bank: bool = False,
  overwrite: bool = False,
  progress: bool = True,
  config: Callable[[], str] | None = None,
) -> list[dict[str, Any]]:
  """Trains a prompt for each entry and returns the manifests of their runs, in order.

  Each is trained as `training.train` would train it alone, but for the order in which
  fp32 sums are taken; a run that either of them began may be continued by the other. The
  same call continues a bank that was stopped or killed, with the same bits on the same
  CPU machine; but for a kill after a prompt ended early and before the others' next
  checkpoint, which go on from the one before without it, in another order of sums. A
  prompt that ends early, or diverges, leaves the others as they are.

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
    shard_bank: cut the bank itself over the data-parallel devices.
    overwrite: delete runs that are there and start again.
    progress: show a progress bar.
    config: gives the text for each config.gin.

  Raises:
    UserError: entries that share a folder, settings that do not fit; at the end, if a
      prompt diverged (the others are finished, its last good state is kept).
    Stopped: SIGINT or SIGTERM came; all states are saved.
  """
  _check(entries, size, patience, best_metric)
  if isinstance(backbone, str):
    backbone = loading.load_backbone(backbone, model.network, model.input_vocabulary)
  runs = [
    Run(
      model=model,
      data=entry.data,
      folder=RunFolder(entry.run_dir),
      total_steps=total_steps,
      learning_rate=_scaled(learning_rate, entry.rate),
      backbone=backbone,
      initial_prompt=entry.initial_prompt or initial_prompt,
      initial_seed=entry.initial_seed,
      seed=entry.seed,
      eval_period=eval_period,
      log_period=log_period,
      checkpoint_period=checkpoint_period or eval_period,
      best_metric=best_metric,
      microbatches=1,
      model_parallel=model_parallel,
      progress=progress,
    )
    for entry in entries
  ]
  for run in runs:
    # They differ by the rate, which a bank has its own way to use.
    run.steps = runs[0].steps
  steps = bank_steps.build(model, learning_rate, runs[0].mesh, shard_bank)
  manifests = [run.folder.open(run.settings(), overwrite) for run in runs]
  unfinished = {
    index
    for index, manifest in enumerate(manifests)
    if manifest.get("status") != "finished"
  }
  if not unfinished:
    tqdm.write(f"All {len(runs)} prompts are finished; nothing to do.")
  at_once = size or len(runs)
  frozen = runs[0].place_frozen() if unfinished else {}
  for line in sorted({line for run in runs for line in run.data.trimmed()}):
    tqdm.write(line)
  with stop_signals() as stop_requested:
    for first in range(0, len(runs), at_once):
      group = range(first, min(first + at_once, len(runs)))
      indices = [index for index in group if index in unfinished]
      if not indices:
        continue
      cut = runs[0].mesh.shape[partitioning.DATA]
      if shard_bank and len(indices) % cut:
        raise UserError(
          f"{len(indices)} prompts cannot be cut over {cut} data-parallel devices. Set "
          f"SHARD_BANK = False, or BANK_SIZE so that {cut} divides it and what is left."
        )
      bank = _Bank(
        steps,
        [runs[i] for i in indices],
        np.asarray([entries[i].rate for i in indices], np.float32),
        frozen,
        patience,
        # Of all prompts, so that one that ended before a kill changes nothing.
        _choose_shapes([runs[i] for i in group]),
      )
      for index, manifest in zip(
        indices, bank.execute(stop_requested, config), strict=True
      ):
        manifests[index] = manifest
  failed = [m for m in manifests if m["status"] == "failed"]
  if failed:
    raise UserError(
      f"{len(failed)} of {len(runs)} prompts diverged ({failed[0]['why']}); the others "
      "are finished."
    )
  return manifests


def _check(
  entries: Sequence[Entry],
  size: int | None,
  patience: int | None,
  best_metric: str | None,
) -> None:
  if not entries:
    raise UserError("The bank is empty. Give at least one entry.")
  if jax.process_count() > 1:
    raise UserError(
      "A bank runs on one process so far. Start one bank on each host, with some of "
      "the entries."
    )
  for name, number in (("size", size), ("patience", patience)):
    if number is not None:
      at_least(name, number, 1)
  if patience and best_metric is None:
    raise UserError(
      f"PATIENCE is {patience}, and without a metric that chooses the best prompt none "
      "is better. Set BEST_METRIC, or PATIENCE = None."
    )
  for entry in entries:
    rate = entry.rate
    if not isinstance(rate, int | float) or not (rate >= 0 and math.isfinite(rate)):
      raise UserError(
        f"The rate of the prompt for '{entry.run_dir}' is {rate!r}. Give a number of at "
        "least 0: the learning rate is multiplied by it."
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


def _choose_shapes(runs: Sequence[Run]) -> packing.Shapes:
  """Returns the shapes of the packed rows, chosen on the first steps of all prompts."""
  data = [run.data for run in runs]
  sampled = [
    [
      (len(item.source), len(item.target))
      for one in data
      for item in packing.items(one.batch_at(step), 0)
    ]
    for step in range(SAMPLED_STEPS)
  ]
  first = [one.batch_at(0) for one in data]
  prompt = runs[0].model.prompt
  assert prompt is not None  # `bank_steps.build` has seen to it.
  return packing.choose_shapes(
    sampled,
    prompt.length,
    {
      "inputs": max(batch["encoder_input_tokens"].shape[1] for batch in first),
      "targets": max(batch["decoder_target_tokens"].shape[1] for batch in first),
    },
    rows_multiple=runs[0].mesh.shape[partitioning.DATA],
  )


class _Bank:
  """The prompts that are trained at once; `runs` write what is theirs."""

  def __init__(
    self,
    steps: bank_steps.BankSteps,
    runs: Sequence[Run],
    rates: np.ndarray,
    frozen: Leaves,
    patience: int | None,
    shapes: packing.Shapes,
  ):
    self.steps = steps
    self.runs = runs
    self.rates = rates
    self.frozen = frozen
    self.patience = patience
    self.shapes = shapes
    self.active = set(range(len(runs)))
    self.best: list[Best | None] = []
    self.positions = self.used = 0

  def execute(
    self, stop_requested: Callable[[], int | None], config: Callable[[], str] | None
  ) -> list[dict[str, Any]]:
    """Runs all steps that are left and returns the manifests."""
    began = time.time()
    self._go_back_to_a_common_step()
    states = []
    for run in self.runs:
      state, best = run.begin(self.frozen, run.fresh_state(), config)
      states.append(jax.device_get(state))
      self.best.append(best)
    at = [int(state.step) for state in states]
    state = jax.tree.map(
      lambda *leaves: processes.put(np.stack(leaves), self.steps.stacked), *states
    )
    first, run = min(at), self.runs[0]
    periods = (run.log_period, run.eval_period, run.checkpoint_period)
    bar = tqdm(
      total=run.total_steps,
      initial=first,
      desc=f"{len(self.runs)} prompts",
      unit="step",
      disable=not run.progress,
      dynamic_ncols=True,
    )
    try:
      with bar:
        for start, stop in chunks(first, run.total_steps, periods):
          taking_part = {i for i in self.active if at[i] <= start}
          state = self._advance(state, start, stop, taking_part, bar)
          number = stop_requested()
          if stop % run.checkpoint_period == 0 or stop == run.total_steps or number:
            self._save(state, taking_part)
          if number and stop < run.total_steps:
            for index in self.active:
              self._finish("stopped", index, state)
            raise Stopped(
              f"stopped by {signal.Signals(number).name} after step {stop}; the same "
              "command continues"
            )
          bar.update(stop - start)
      for index in sorted(self.active):
        self._finish("finished", index, state, time.time() - began)
    finally:
      for run in self.runs:
        run.close()
    return [run.manifest for run in self.runs]

  def _go_back_to_a_common_step(self) -> None:
    """Drops newer checkpoints than the oldest run's, where the others have that one too.

    A kill between two of its saves leaves some runs a checkpoint ahead; their prompts
    would share no rows with the others' until these have caught up, and so take other
    bits.
    """
    saved = [run.checkpoints.steps() for run in self.runs]
    common = min((max(steps, default=0) for steps in saved), default=0)
    if all(common in steps for steps in saved):
      for run in self.runs:
        run.checkpoints.drop_after(common)

  def _advance(
    self, state: TrainState, start: int, stop: int, indices: set[int], bar: tqdm
  ) -> TrainState:
    """Returns the state after steps `start` to `stop` of the prompts `indices`."""
    began, reports = time.time(), []
    for step in range(start, stop):
      items = [
        item
        for index in sorted(indices)
        for item in packing.items(self.runs[index].data.batch_at(step), index)
      ]
      calls = packing.pack(items, self.shapes)
      self.positions += sum(shape.positions for shape, _ in calls)
      self.used += sum(
        int(np.count_nonzero(features["encoder_segment_ids"])) for _, features in calls
      )
      # Dispatched at once: the next step is packed while the devices work on this one.
      state, report = bank_steps.train_step(
        self.steps, state, self.frozen, [features for _, features in calls], self.rates
      )
      reports.append(report)
    by_name = {
      name: np.stack([np.asarray(report[name]) for report in reports])
      for name in reports[0]
    }
    seconds = time.time() - began
    losses = []
    for index in sorted(indices):
      run = self.runs[index]
      mine = {name: values[:, index] for name, values in by_name.items()}
      speed = (stop - start) * run.data.batch_size / seconds
      try:
        losses.append(run.record(start, stop, mine, speed)["loss"])
      except UserError as error:
        run.manifest["why"] = str(error)
        run.folder.write_manifest(run.manifest)
        self.active.discard(index)
        indices.discard(index)
        bar.write(f"{run.folder.path}: {error}")
    run = self.runs[0]
    if stop % run.eval_period == 0 or stop == run.total_steps:
      self._validate(state, indices, bar)
    bar.set_postfix(
      {
        "training": len(self.active),
        "mean loss": f"{np.mean(losses):.3f}" if losses else "-",
        "padding": f"{1 - self.used / self.positions:.1%}",
      }
    )
    return state

  def _validate(self, state: TrainState, indices: set[int], bar: tqdm) -> None:
    """Validates the prompts one after the other; ends those that have lost patience."""
    for index in sorted(indices):
      run, one = self.runs[index], self._one(state, index)
      best, _ = run.validate(one, self.frozen, self.best[index])
      self.best[index] = best
      waited = int(one.step) - (best.step if best else 0)
      if self.patience and waited >= self.patience * run.eval_period:
        run.save(one, best)
        self._finish("finished", index, state)
        self.active.discard(index)
        bar.write(
          f"{run.folder.path}: no better for {waited} steps, ended after {int(one.step)}"
        )

  def _save(self, state: TrainState, indices: set[int]) -> None:
    for index in sorted(indices & self.active):
      self.runs[index].save(self._one(state, index), self.best[index])

  def _finish(
    self, status: str, index: int, state: TrainState, seconds: float | None = None
  ) -> None:
    run = self.runs[index]
    run.manifest["bank"] = {
      "prompts": len(self.runs),
      "shapes": [
        dataclasses.astuple(shape) for shape in (self.shapes.wide, self.shapes.short)
      ],
      "padding_share": round(1 - self.used / max(self.positions, 1), 4),
    }
    run.finish(status, self._one(state, index), self.best[index], seconds)

  def _one(self, state: TrainState, index: int) -> TrainState:
    """Returns the state of one prompt, on this host."""
    return jax.tree.map(lambda leaf: np.asarray(leaf[index]), state)

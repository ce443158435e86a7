"""The training loop of the prompts of a bank that are on the devices together."""

import contextlib
import dataclasses
import math
import textwrap
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import numpy as np

from tpv_jax.banks import bank_steps
from tpv_jax.banks.plan import Plan
from tpv_jax.core.errors import UserError
from tpv_jax.core.screen import Bar
from tpv_jax.data import packing
from tpv_jax.data.batches import Features
from tpv_jax.devices import processes
from tpv_jax.training.checkpoints import Best
from tpv_jax.training.loop import Run, chunks
from tpv_jax.training.signals import Stopped, told
from tpv_jax.training.steps import Leaves, TrainState, compilations

LEFT_AT = "left_bank_at"
"""A manifest's key for the step at which its run diverged, until the others' states of
that step are saved."""


class BankRun:
  """The prompts that are trained at once; each of `runs` writes its own files.

  A prompt that has already ended keeps its place, without examples, so that the compiled
  steps are those of an unbroken bank.
  """

  def __init__(
    self,
    plan: Plan,
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
    self.stepped = False
    self._validation: tuple[tuple[int, ...], list[Features]] | None = None

  def execute(
    self, stop_requested: Callable[[], int | None], config: Callable[[], str] | None
  ) -> None:
    """Runs all remaining steps."""
    began = time.time()
    self._end_diverged()
    going = [self.runs[index] for index in sorted(self.active)]
    # Nothing is deleted if one of them cannot go on.
    whole_steps = [run.newest_whole_checkpoint() for run in going]
    for run, step in zip(going, whole_steps, strict=True):
      run.rewind_to(step)
    self._rewind_to_common_step()
    with contextlib.ExitStack() as stack:
      self.compilations = stack.enter_context(compilations())
      state, at = self._begin(stack, config)
      if at:
        self._measure_untuned(state, at)
        state = self._loop(state, at, stop_requested)
        whole = processes.on_host(state)
        for index in sorted(self.active):
          self._finish("finished", index, whole, time.time() - began)
        processes.say(
          f"{len(self.runs)} prompts: {self._padding:.1%} of {self.positions:,} source "
          f"positions were padding; recompilations: {self.recompiled}"
        )

  def _end_diverged(self) -> None:
    """Ends prompts that had diverged before a kill, if the others have saved that step.

    Otherwise they go back with the others, and diverge again.
    """
    left = {
      index: manifest
      for index in self.active
      if LEFT_AT in (manifest := self.runs[index].folder.manifest())
    }
    others = [self.runs[index].checkpoints for index in self.active - left.keys()]
    reached = min((saved.latest_step() or 0 for saved in others), default=math.inf)
    processes.wait_for_all("the states of the prompts are known")
    for index, manifest in left.items():
      if manifest[LEFT_AT] <= reached:
        self.runs[index].manifest = manifest
        self._fail(index)

  def _rewind_to_common_step(self) -> None:
    """Deletes checkpoints newer than the last step that all runs have saved.

    If the bank is killed between two saves, some runs are a checkpoint ahead. Until the
    others had caught up, their prompts would share no rows with the others', and get
    other bits. Nothing is deleted if a run lacks that step.
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
    """Returns the stacked state, and index -> step for the prompts that go on."""
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
      if self._has_lost_patience(index, step):  # It was killed before it was ended.
        self._finish("finished", index, whole)
        self.active.discard(index)
        del at[index]
    return jax.tree.map(processes.put, whole, self.steps.state), at

  def _measure_untuned(self, state: TrainState, at: Mapping[int, int]) -> None:
    """Validates the initial prompts, each once for all runs that share it and its rows."""
    alike: dict[tuple[Any, ...], list[int]] = {}
    for index, step in at.items():
      run = self.runs[index]
      if run.lacks_untuned(step):
        alike.setdefault(run.untuned_key, []).append(index)
    if not alike:
      return
    first = tuple(sorted(indices[0] for indices in alike.values()))
    means = bank_steps.validate(
      self.steps, state, self.frozen, self._pack_validation(first)
    )
    for indices in alike.values():
      values = {name: float(mean[indices[0]]) for name, mean in means.items()}
      for index in indices:
        self.runs[index].note_untuned(values)

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
        state, reports = self._advance(state, start, stop, indices, bar)
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
          # Before any prompt leaves: after a kill, the others must not continue without it
          # from a step at which it was still there.
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
          raise Stopped(number, told(number, f"after step {stop}"))
    return state

  def _advance(
    self, state: TrainState, start: int, stop: int, indices: set[int], bar: Bar
  ) -> tuple[TrainState, dict[str, np.ndarray]]:
    """Returns the state after steps `start` to `stop`, and their reports, [steps, N].

    The bar moves with each step, a step behind: a step of a large model takes seconds.
    """
    reports: list[dict[str, jax.Array]] = []
    for step in range(start, stop):
      items = [
        item
        for index in sorted(indices)
        for item in packing.items(self.runs[index].data.batch_at(step), index)
      ]
      calls = packing.pack(items, self.plan.shapes, self.names)
      self.positions += sum(shape.positions for shape, _ in calls)
      self.used += sum(packing.used_positions(features) for _, features in calls)
      before = self.compilations()
      # Dispatch does not wait: the next step is packed while the devices compute this one,
      # and only the step before it is waited for.
      state, report = bank_steps.train_step(
        self.steps, state, self.frozen, [features for _, features in calls], self.rates
      )
      if self.stepped:
        self.recompiled += self.compilations() - before
      self.stepped = True
      if reports:
        jax.block_until_ready(reports[-1])
        bar.update()
      reports.append(report)
    found = jax.device_get(reports)
    bar.update()
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
    """Writes the steps' reports, and returns the prompts that have diverged."""
    losses, diverged = [], set()
    for index in sorted(indices):
      run = self.runs[index]
      mine = {name: values[:, index] for name, values in reports.items()}
      speed = (stop - start) * run.data.batch_size / seconds
      run.manifest[LEFT_AT] = stop  # `record` writes it if the prompt has diverged.
      try:
        losses.append(run.record(start, stop, mine, speed)["loss"])
        del run.manifest[LEFT_AT]
      except UserError as error:
        diverged.add(index)
        processes.say(f"{run.folder.path}: {error}")
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
        processes.say(
          f"{run.folder.path}: no better for {waited} steps, ended after {step}"
        )
    if shown and self.runs[0].progress:
      metric = self.runs[0].best_metric
      text = f"step {step}, validation {metric} (* the best): " + ", ".join(shown)
      processes.say(
        textwrap.fill(text, 88, subsequent_indent="  ", break_on_hyphens=False)
      )
    return tired

  def _validation_calls(self, indices: tuple[int, ...]) -> list[Features]:
    """Returns the validation rows of these prompts in wide blocks.

    They are packed again after a prompt has left.
    """
    if self._validation is None or self._validation[0] != indices:
      self._validation = indices, self._pack_validation(indices)
    return self._validation[1]

  def _pack_validation(self, indices: tuple[int, ...]) -> list[Features]:
    items = [
      item
      for index in indices
      for batch in self.runs[index].data.validation_batches()
      for item in packing.items(batch, index)
    ]
    shapes = dataclasses.replace(self.plan.shapes, short=self.plan.shapes.wide)
    return [features for _, features in packing.pack(items, shapes, self.names)]

  def _has_lost_patience(self, index: int, step: int) -> bool:
    best = self.best[index]
    waited = step - (best.step if best else 0)
    period = self.runs[index].eval_period
    return bool(self.patience) and waited >= (self.patience or 0) * period

  def _save(self, whole: TrainState, step: int, indices: set[int]) -> None:
    """Writes the positions counted up to this step, then the checkpoints."""
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
    del run.manifest[LEFT_AT]
    run.folder.write_manifest(run.manifest)
    self.active.discard(index)

  def _finish(
    self, status: str, index: int, whole: TrainState, seconds: float | None = None
  ) -> None:
    run = self.runs[index]
    run.manifest["bank"] = self._note(self.counted if status == "stopped" else None)
    run.finish(status, _one(whole, index), self.best[index], seconds)

  def _note(self, counted: Mapping[str, Sequence[int]] | None) -> dict[str, Any]:
    """Returns what a manifest states of the bank."""
    note = {"prompts": len(self.runs), **self.plan.note()}
    if counted is not None:
      return note | {"counted": dict(counted)}
    return note | {
      "padding_share": round(self._padding, 4),
      "recompiled": self.recompiled,
    }

  @property
  def _padding(self) -> float:
    """The share of all source positions computed so far that were padding."""
    return 1 - self.used / max(self.positions, 1)


def _one(whole: TrainState, index: int) -> TrainState:
  """Returns a copy of one prompt's state."""
  return jax.tree.map(lambda leaf: np.array(leaf[index]), whole)

"""The plan of a bank: how many prompts are trained at once, and the shapes of rows."""

import dataclasses
import functools
import itertools
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax

from tpv_jax.backbones import quantization
from tpv_jax.banks import bank_steps, memory
from tpv_jax.core import identity
from tpv_jax.core.errors import UserError
from tpv_jax.data import batches, packing, row_fitting, row_shapes
from tpv_jax.devices import partitioning
from tpv_jax.model import PROMPT
from tpv_jax.training.loop import Run

SAMPLED_STEPS = 20
"""The number of steps whose examples decide the shapes of the packed rows."""


class Plan:
  """How many prompts are trained at once, the shapes of rows, and the memory they need.

  A continued bank keeps the numbers that its runs have noted, so that its bits do not
  depend on how much memory is free now.
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
    self.positions = positions or bank_steps.packed_for().positions
    self.available = memory.available(runs[0].mesh.local_devices, limit)
    self.sampled = [
      [
        [(len(one.source), len(one.target)) for one in packing.items(batch, 0)]
        for batch in (run.data.batch_at(step) for run in runs)
      ]
      for step in range(SAMPLED_STEPS)
    ]

  def make_fit(self, split: bool, notes: Sequence[Mapping[str, Any]]) -> None:
    """Measures the bank's memory; with `split`, makes groups or blocks smaller to fit.

    Args:
      split: whether groups and blocks may be made smaller.
      notes: the "bank" entries of the manifests of continued runs.

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
    """Returns the groups of runs that are trained at once, as ranges of indices."""
    starts = range(0, len(self.runs), self.size)
    return [range(first, min(first + self.size, len(self.runs))) for first in starts]

  def note(self) -> dict[str, Any]:
    """Returns what the manifests state of the plan."""
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
    """Returns where the prompts are held; '' on one data-parallel device."""
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
    """The devices that the bank is split over, which divide its number of prompts."""
    return self._devices if self.cut else 1

  def _choose(self) -> None:
    """Chooses shapes for all groups, and measures the first group's memory."""
    odd = [len(group) for group in self.groups() if len(group) % self._devices]
    if odd and self.shard:
      raise UserError(
        f"{odd[0]} prompts cannot be cut over {self._devices} data-parallel devices. Set "
        f"SHARD_BANK = False, or BANK_SIZE so that {self._devices} divides it and the "
        "prompts of the last group."
      )
    self.cut = self.shard is not False and not odd
    self.steps = self.build(self.cut)
    self.shapes = self._shapes(self.positions)
    self.padding = row_shapes.padding_share(self._steps(), self.shapes)
    self.need = self._measure(self.size)

  def _steps(self) -> list[row_fitting.Sizes]:
    """Returns the sizes of the examples of each sampled step of each group."""
    steps = [
      list(itertools.chain.from_iterable(sizes[i] for i in group))
      for sizes in self.sampled
      for group in self.groups()
    ]
    return [step for step in steps if step]

  def _shapes(self, positions: int) -> row_fitting.Shapes:
    prompt = self.runs[0].model.prompt
    assert prompt is not None  # `bank_steps.build` has checked this.
    first = [run.data.batch_at(0) for run in self.runs]
    for run in self.runs:
      first += itertools.islice(run.data.validation_batches(), 1)
    return row_shapes.choose_shapes(
      self._steps(),
      prompt.length,
      {
        name: max(batches.widths(batch)[name] for batch in first)
        for name in ("inputs", "targets")
      },
      rows_multiple=self._devices,
      most_positions=positions,
      device=bank_steps.packed_for(),
    )

  def _measure(self, prompts: int) -> memory.Need:
    run = self.runs[0]
    assert run.initial is not None  # A prompt needs both.
    assert run.backbone is not None
    network = run.model.network
    return memory.need(
      self.steps,
      identity.flatten({PROMPT: run.initial.leaves}),
      {
        path: jax.eval_shape(
          functools.partial(quantization.stored, network, path), leaf
        )
        for path, leaf in identity.flatten(run.backbone.params).items()
      },
      prompts,
      self.shapes,
    )

  def _most_prompts(self) -> int:
    """Returns how many prompts would fit, as the need is linear in their number."""
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

"""What one training step costs: parameters, compiled flops, and seconds side by side.

Times on a busy machine say little on their own, so the steps of all prompts take turns,
round after round, and are compared by their ratio within a round. The first prompt, to
which all are compared, is timed twice per round: the second ratio's distance from 1 is
the noise.
"""

import dataclasses
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh

from tpv_jax.core import identity
from tpv_jax.core.errors import at_least
from tpv_jax.core.screen import Bar
from tpv_jax.devices import partitioning, processes
from tpv_jax.model import SoftPromptModel
from tpv_jax.training import optimizers
from tpv_jax.training import steps as compiled

AGAIN = "again"
"""Ends the name of the first prompt's second timing."""


@dataclasses.dataclass(frozen=True)
class Cost:
  """What a training step (forward, backward, update of the prompt) of one prompt costs.

  Attributes:
    parameters: the number that are trained.
    flops: of the compiled step, by XLA's cost analysis.
    temporary_bytes: what the compiled step needs beside its arguments and results.
    seconds: of one step, in each round.
  """

  parameters: int
  flops: float
  temporary_bytes: int
  seconds: tuple[float, ...]


def measure(
  prompts: Mapping[str, tuple[SoftPromptModel, Mapping[str, np.ndarray]]],
  backbone: Mapping[str, Any],
  batch: Mapping[str, np.ndarray],
  repetitions: int,
  progress: bool = True,
  ready: Callable[[], None] = lambda: None,
) -> dict[str, Cost]:
  """Returns the cost of each prompt's training step, and of the first one a second time.

  The step is the runner's own (`steps.build`), on the first device, with one batch; the
  learning rate is so small that the weights stay where they are.

  Args:
    prompts: name -> the model and the parameters of its prompt.
    backbone: nested parameters, without a prompt.
    batch: the arrays [B, ...] of one step.
    repetitions: timed rounds; two more come first and are not counted.
    progress: show a progress bar.
    ready: called between compiling and timing.
  """
  at_least("repetitions", repetitions, 2)
  device = np.asarray(jax.devices()[:1]).reshape(1, 1)
  mesh = Mesh(device, (partitioning.DATA, partitioning.MODEL))
  learning_rate = optimizers.constant(1e-6)
  frozen = {
    path: jax.device_put(leaf, partitioning.replicated(mesh))
    for path, leaf in identity.flatten(backbone).items()
  }
  jobs: dict[str, list[Any]] = {}  # name -> [compiled step, state, batches]
  costs: dict[str, Cost] = {}
  rng = jax.random.key(0)
  for name, (model, leaves) in Bar(
    prompts.items(), desc="compiling steps", disable=not progress
  ):
    steps = compiled.build(model, learning_rate, 1, mesh)
    placed = {
      path: processes.put(np.asarray(leaf), steps.param_shardings[path])
      for path, leaf in identity.flatten({"prompt": leaves}).items()
    }
    state = steps.initialise(placed)
    batches = compiled.put_batches(steps, [dict(batch)])
    step = steps.train.lower(state, frozen, batches, rng).compile()
    analysis: Any = step.cost_analysis()
    memory: Any = step.memory_analysis()
    costs[name] = Cost(
      parameters=sum(np.size(leaf) for leaf in leaves.values()),
      flops=float(analysis["flops"]),
      temporary_bytes=int(memory.temp_size_in_bytes),
      seconds=(),
    )
    jobs[name] = [step, state, batches]
  ready()
  first = next(iter(jobs))
  turns = [*jobs, f"{first}, {AGAIN}"]
  seconds: dict[str, list[float]] = {name: [] for name in turns}
  for count in Bar(range(repetitions + 2), desc="timing steps", disable=not progress):
    # Each round starts one place further on, so that none always follows the same one.
    for turn in np.roll(turns, -count).tolist():
      job = jobs[turn.removesuffix(f", {AGAIN}")]
      begin = time.perf_counter()
      job[1], report = job[0](job[1], frozen, job[2], rng)
      jax.block_until_ready((job[1], report))
      if count >= 2:
        seconds[turn].append(time.perf_counter() - begin)
  costs[turns[-1]] = costs[first]
  return {
    name: dataclasses.replace(cost, seconds=tuple(seconds[name]))
    for name, cost in costs.items()
  }


def summary(costs: Mapping[str, Cost]) -> dict[str, dict[str, Any]]:
  """Returns each cost as JSON: numbers, and ratios to the first prompt.

  `time_ratio` has the quartiles of the ratios within each round.
  """
  base = next(iter(costs.values()))
  return {
    name: {
      "parameters": cost.parameters,
      "gigaflops": round(cost.flops / 1e9, 6),
      "flops_ratio": round(cost.flops / base.flops, 4),
      "temporary_mebibytes": round(cost.temporary_bytes / 2**20, 3),
      "seconds": quartiles(cost.seconds),
      "time_ratio": quartiles(np.divide(cost.seconds, base.seconds).tolist()),
    }
    for name, cost in costs.items()
  }


def quartiles(values: Sequence[float]) -> dict[str, float]:
  """Returns median, quartiles, minimum and maximum (NumPy's linear interpolation)."""
  names = ("minimum", "lower_quartile", "median", "upper_quartile", "maximum")
  found = np.quantile(np.asarray(values, np.float64), (0, 0.25, 0.5, 0.75, 1))
  return {name: float(f"{value:.5g}") for name, value in zip(names, found, strict=True)}

"""What a folded prompt loses when it is refactored for training: docs/methods.md, (3.15)."""

from collections.abc import Mapping
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh

from tpv_jax.core import screen
from tpv_jax.data.batches import Features
from tpv_jax.devices import partitioning, processes
from tpv_jax.model import PROMPT, SoftPromptModel
from tpv_jax.prompts import equations
from tpv_jax.prompts.equations import Folded
from tpv_jax.training.initial import Drawn
from tpv_jax.vectors import algebra
from tpv_jax.vectors.loaded import Loaded


def lost(
  model: SoftPromptModel,
  params: Mapping[str, Any],
  start: Drawn,
  batch: Features,
  mesh: Mesh,
) -> dict[str, Any]:
  """Returns, and prints, what a run's start lost by being refactored.

  Args:
    model: the run's.
    params: nested parameters on the devices, including the prompt's.
    start: made from a folded prompt.
    batch: see `errors`.
    mesh: the devices.
  """
  given = start.refactored
  assert given is not None  # The caller has checked this.
  backbone = {name: part for name, part in params.items() if name != PROMPT}
  found = errors(model, backbone, given, start, batch, mesh)
  rank = start.leaves["low_rank_a"].shape[1]
  if processes.is_writer():
    screen.say(
      f"Refactored {given.name} to rank {rank}; relative errors (Frobenius): "
      + ", ".join(f"{name} {error:.2g}" for name, error in found.items())
      + " (logits: of the target tokens of the first validation batch)."
    )
  return {"from": given.name, "rank": rank, "relative_errors": found}


def errors(
  model: SoftPromptModel,
  backbone: Mapping[str, Any],
  given: Loaded,
  made: Loaded,
  batch: Features,
  mesh: Mesh,
) -> dict[str, float]:
  """Returns the relative errors of prompt, delta and logits, in the Frobenius norm.

  Args:
    model: the run's.
    backbone: its nested parameters, on the devices.
    given: the folded prompt.
    made: the parameters that it was refactored to.
    batch: gives the logits: those of its target tokens, without padding.
    mesh: the devices.
  """

  compute = jax.jit(model.target_logits, out_shardings=partitioning.replicated(mesh))
  placed = processes.put_all(batch, partitioning.batch_sharding(mesh))
  folded = algebra.fold(made).leaves
  target = np.asarray(model.architecture.targets(batch).weights) > 0
  ours, exact = (
    np.asarray(compute(Folded.of(leaves), backbone, placed))[target]
    for leaves in (folded, given.leaves)
  )
  return {
    "prompt": equations.relative_error(folded["prompt"], given.leaves["prompt"]),
    "delta": equations.relative_error(folded["delta"], given.leaves["delta"]),
    "logits": equations.relative_error(ours, exact),
  }

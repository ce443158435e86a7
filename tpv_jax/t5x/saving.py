"""What a T5X run writes: checkpoints of what is trained, and prompts as portable files.

    MODEL_DIR/initial_prompt.safetensors     before the first step
    MODEL_DIR/prompts/prompt_<step>.safetensors   at each save
    MODEL_DIR/last_prompt.safetensors        the newest of them
    MODEL_DIR/best_prompt.safetensors        by a validation metric (`BestPrompt`)
    MODEL_DIR/checkpoint_<step>/             T5X's own, without the backbone

So a T5X run is a run folder to `tpv` and to the standalone runner. Nothing of T5X is
imported.
"""

import dataclasses
import importlib.metadata
import math
import re
from collections.abc import Mapping
from typing import Any

import jax
import numpy as np
from jax.experimental import multihost_utils

from tpv_jax import files, identity
from tpv_jax.model import PROMPT
from tpv_jax.runner import processes, run_folder
from tpv_jax.vectors import store
from tpv_jax.vectors.provenance import Provenance, Term, of_leaves

INITIAL = "initial_prompt.safetensors"
LAST = "last_prompt.safetensors"
BEST = "best_prompt.safetensors"


def whole(leaf: Any) -> np.ndarray:
  """Returns an array on this host, all of it, however it lies on the devices of all."""
  if isinstance(leaf, jax.Array) and not leaf.is_fully_addressable:
    if leaf.is_fully_replicated:
      return np.asarray(leaf.addressable_data(0))
    return np.asarray(multihost_utils.process_allgather(leaf, tiled=True))
  return np.asarray(leaf)


def versions() -> dict[str, str]:
  """Returns the versions that a T5X run's numbers depend on."""
  try:
    return run_folder.versions() | {"t5x": importlib.metadata.version("t5x")}
  except importlib.metadata.PackageNotFoundError:
    return run_folder.versions() | {"t5x": "from a folder"}


def write(
  folder: str, name: str, leaves: Mapping[str, np.ndarray], provenance: Provenance
) -> None:
  """Writes a prompt's file into a folder, made if needed, from the one process that writes."""
  if not processes.is_writer():
    return
  path = files.to_path(folder) / name
  path.parent.mkdir(parents=True, exist_ok=True)
  files.write_bytes(path, store.encode(leaves, provenance))


def read_provenance(folder: str, name: str) -> Provenance | None:
  """Returns what a file that `write` wrote says of its prompt, None without the file."""
  path = files.to_path(folder) / name
  return store.read(path)[1] if path.exists() else None


class KeepOnlyTrainable:
  """A save function of T5X: leaves the frozen backbone out of a checkpoint."""

  def __init__(self, trainable: str = r"prompt/.*"):
    """Keeps the prompt and the leaves whose whole path `trainable` matches."""
    self.trainable = trainable

  def __call__(self, state_dict: Any, parameter_infos: Any) -> tuple[Any, Any]:
    """Returns both trees without other leaves under 'target'."""
    return self._filter(state_dict), self._filter(parameter_infos)

  def _filter(self, tree: Mapping[str, Any]) -> dict[str, Any]:
    kept = {
      path: leaf
      for path, leaf in identity.flatten(tree["target"]).items()
      if path.startswith(f"{PROMPT}/") or re.fullmatch(self.trainable, path)
    }
    return {**tree, "target": identity.unflatten(kept)}


class SavePrompt:
  """A save function of T5X that writes each saved prompt as a portable file too.

  The provenance is that of the run's initial prompt, with the task and the steps.
  """

  def __init__(self, model_dir: str, task: str):
    """Writes into `model_dir`; `task` names the prompt's term."""
    self.model_dir = model_dir
    self.task = task

  def __call__(self, state_dict: Any, parameter_infos: Any) -> tuple[Any, Any]:
    """Writes the prompt of `state_dict`; returns both trees as they are."""
    step = int(whole(state_dict["state"]["step"]))
    prompt = _prompt_leaves(state_dict["target"])  # All hosts take part.
    if step > 0 and processes.is_writer():
      provenance = _trained(self.model_dir, self.task, step, prompt)
      for name in (f"prompts/prompt_{step}.safetensors", LAST):
        write(self.model_dir, name, prompt, provenance)
    return state_dict, parameter_infos


class BestPrompt:
  """An action of T5X's TRAIN_EVAL that keeps the best prompt by a validation metric.

  The best value so far is a note in the file's provenance, so that a run that goes on
  knows it; a best prompt from steps that are trained again is dropped.
  """

  def __init__(
    self,
    model_dir: str,
    task: str,
    metric: str = "loss",
    higher_is_better: bool | None = None,
  ):
    """Watches `metric` of the model, averaged over T5X's validation tasks.

    Args:
      model_dir: the run's folder.
      task: names the prompt's term.
      metric: 'loss', 'accuracy' or 'exact_match'.
      higher_is_better: None: everything but a loss.
    """
    self.model_dir = model_dir
    self.task = task
    self.metric = metric
    self.sign = 1.0 if higher_is_better is None and metric != "loss" else -1.0
    if higher_is_better is not None:
      self.sign = 1.0 if higher_is_better else -1.0

  def run(self, train_state: Any, metrics_by_task: Mapping[str, Any]) -> bool:
    """Writes the prompt if it is the best so far; never asks T5X to stop."""
    prompt = _prompt_leaves(train_state.params)  # All hosts take part.
    if not processes.is_writer():
      return False
    values = [
      float(np.asarray(metrics[self.metric].value))
      for metrics in metrics_by_task.values()
    ]
    value = sum(values) / len(values)
    step = int(whole(train_state.step))
    best = self._best(step)
    if math.isfinite(value) and (best is None or self.sign * (value - best) > 0):
      provenance = _trained(self.model_dir, self.task, step, prompt)
      note = f"best {self.metric} on validation: {value!r}"
      provenance = dataclasses.replace(provenance, notes=(*provenance.notes, note))
      write(self.model_dir, BEST, prompt, provenance)
    return False

  def _best(self, step: int) -> float | None:
    provenance = read_provenance(self.model_dir, BEST)
    if provenance is None:
      return None
    found = re.fullmatch(
      rf"best {self.metric} on validation: (\S+)", "".join(provenance.notes[-1:])
    )
    return float(found[1]) if found and (provenance.steps or 0) < step else None


def _prompt_leaves(target: Mapping[str, Any]) -> dict[str, np.ndarray]:
  return {
    path.removeprefix(f"{PROMPT}/"): whole(leaf).astype(np.float32)
    for path, leaf in identity.flatten(target).items()
    if path.startswith(f"{PROMPT}/")
  }


def _trained(
  model_dir: str, task: str, step: int, leaves: Mapping[str, np.ndarray]
) -> Provenance:
  """Returns the provenance of a trained prompt: its initial one's, task and steps."""
  initial = read_provenance(model_dir, INITIAL) or dataclasses.replace(
    of_leaves(leaves), notes=(f"{INITIAL} was lost, and with it what it said",)
  )
  return dataclasses.replace(
    initial, terms=(Term(task, 1.0),), steps=step, versions=versions()
  )

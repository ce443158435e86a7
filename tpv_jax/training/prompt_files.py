"""The prompts in a run folder: the initial, the best and the last one."""

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from tpv_jax.core import identity
from tpv_jax.core.errors import UserError
from tpv_jax.devices import processes
from tpv_jax.runs.run_folder import RunFolder, versions
from tpv_jax.training.checkpoints import Best
from tpv_jax.training.initial import Drawn
from tpv_jax.training.steps import TrainState
from tpv_jax.vectors import store
from tpv_jax.vectors.provenance import Provenance, Term


def prompt_leaves(trainable: Mapping[str, Any]) -> dict[str, np.ndarray]:
  """Returns the leaves of the prompt among the trainable ones, fp32 on this host."""
  return {
    path.removeprefix("prompt/"): np.asarray(leaf, np.float32)
    for path, leaf in processes.on_host(trainable).items()
    if path.startswith("prompt/")
  }


def tuned(
  provenance: Provenance, task: str, chat_digest: str | None, tunes_backbone: bool
) -> Provenance:
  """Returns the provenance of a prompt that was trained on a task, from its start's.

  Args:
    provenance: of the start, with the steps and versions of the tuned prompt.
    task: names its term.
    chat_digest: of the chat template that its texts are written by, if there is one.
    tunes_backbone: whether the backbone was trained too, so that its fingerprint changed.
  """
  known = dataclasses.replace(
    provenance, terms=(Term(task, 1.0),), chat_digest=chat_digest
  )
  if not tunes_backbone:
    return known
  note = "the backbone was trained as well, so its fingerprint changed"
  return dataclasses.replace(
    known, backbone_fingerprint=None, notes=(*known.notes, note)
  )


@dataclasses.dataclass(frozen=True)
class PromptFiles:
  """Writes a run's prompts with their provenance, and refuses those of another run.

  Attributes:
    folder: the run's.
    initial: what the run starts from; None if the model has no prompt.
    task: what it is trained on.
    tunes_backbone: whether the backbone is trained too, so that its fingerprint changes.
    chat_digest: of the chat template that its texts are written by, if there is one.
  """

  folder: RunFolder
  initial: Drawn | None
  task: str
  tunes_backbone: bool
  chat_digest: str | None = None

  def write(self, which: str, leaves: Mapping[str, np.ndarray], steps: int) -> None:
    """Writes the 'initial', 'best' or 'last' prompt, as it is after `steps` steps."""
    assert self.initial is not None  # There is a prompt, so it started from one.
    provenance = dataclasses.replace(
      self.initial.provenance, steps=steps, versions=versions()
    )
    if which != "initial":
      provenance = tuned(provenance, self.task, self.chat_digest, self.tunes_backbone)
    self.folder.write_prompt(which, leaves, provenance)

  def has_initial(self) -> bool:
    """Returns whether the file of the initial prompt is there and whole."""
    assert self.initial is not None
    try:
      leaves, _ = store.read(self.folder.prompt("initial"))
    except (UserError, OSError):
      return False
    drawn = {k: np.asarray(v, np.float32) for k, v in self.initial.leaves.items()}
    return identity.prompt_digest(leaves) == identity.prompt_digest(drawn)

  def check_beside(
    self, state: TrainState, best: Best | None, refuse_unless_stated: Callable[..., Any]
  ) -> None:
    """Raises `UserError` if the folder has a prompt of another run.

    Each file must come from this run's initial prompt. If the checkpoint does not state
    its run, the files of its steps must equal the prompts in it.

    Args:
      state: as restored from the checkpoint.
      best: as restored from the checkpoint.
      refuse_unless_stated: `Checkpoints.refuse_unless_stated`.
    """
    if self.initial is None:
      return
    initial = self.initial.provenance.initial_digest
    restored = {"last": (int(state.step), state.trainable)}
    if best is not None:
      restored["best"] = best.step, best.trainable
    for which, (step, trainable) in restored.items():
      path = self.folder.prompt(which)
      try:
        there, known = store.read(path)
      except UserError:
        continue  # Lost or damaged: it is written again from the state.
      if known.initial_digest != initial:
        raise UserError(
          f"'{path}' is of another run: it was tuned from the initial prompt "
          f"{str(known.initial_digest)[:12]}…, and this run from "
          f"{str(initial)[:12]}…. Move it out of the folder; the run writes its own."
        )
      beside = identity.prompt_digest(there)
      saved = identity.prompt_digest(prompt_leaves(trainable))
      if known.steps == step and beside != saved:
        refuse_unless_stated(
          f"after step {step} its prompt is {saved[:12]}…, and that of '{path.name}' "
          f"{beside[:12]}…"
        )

"""Checkpoints of a run by Orbax: what is trained, the optimizer, the best so far.

Layout: `RUN/checkpoints/checkpoint_<step>/state`, a tree `{'target': trainable leaves,
'state': {...}}` as T5X writes it, without the backbone. Orbax renames a finished
checkpoint into place, so a killed run leaves the earlier ones; on gs:// it marks a
finished one by a file. Orbax's own metadata, beside the state, names the run:
`{'run': the "run" of RUN/manifest.json}`.
"""

import errno
import functools
import logging
import os
import shutil
import sys
from typing import Any, NamedTuple

import jax
import numpy as np
import orbax.checkpoint as ocp

from tpv_jax.core import errors, files, identity
from tpv_jax.core.errors import UserError
from tpv_jax.devices import processes
from tpv_jax.io import orbax
from tpv_jax.training.steps import TrainState


class Best(NamedTuple):
  """The best trainable leaves so far, by the run's chosen metric."""

  step: int
  metric: float
  trainable: dict[str, np.ndarray]


class Checkpoints:
  """The checkpoints of one run folder; the newest `keep` are kept."""

  def __init__(self, folder: files.Path, run: str | None = None, keep: int = 2):
    """Opens or makes the folder; `run` is the run that its checkpoints state.

    Raises:
      UserError: what Orbax notes of a checkpoint is damaged.
    """
    # Orbax's threads also log the tracebacks of the errors that Orbax raises, and its event
    # loops those of tasks that nobody waits for.
    for name in ("absl", "asyncio"):
      logging.getLogger(name).setLevel(logging.CRITICAL)
    self.run = run
    self.folder = files.absolute(folder)
    try:
      self._manager = ocp.CheckpointManager(
        self.folder,
        item_names=("state",),
        item_handlers={"state": ocp.PyTreeCheckpointHandler()},
        options=ocp.CheckpointManagerOptions(
          max_to_keep=keep,
          step_prefix="checkpoint",
          cleanup_tmp_directories=True,
          enable_async_checkpointing=False,
        ),
      )
    except (ValueError, TypeError, KeyError) as error:
      text = " ".join(str(error).split())[:200]
      raise UserError(
        f"What Orbax notes of the checkpoints in '{self.folder}' cannot be read ({text}): "
        "a file _CHECKPOINT_METADATA there is damaged. Delete the folder checkpoint_N that "
        "it is in, to continue from the other one, or start again with "
        "--gin.OVERWRITE=True."
      ) from error

  def latest_step(self) -> int | None:
    """Returns the newest finished checkpoint's step, None without any."""
    return self._manager.latest_step()

  def steps(self) -> list[int]:
    """Returns the steps of the finished checkpoints, oldest first."""
    return sorted(self._manager.all_steps())

  def drop_after(self, step: int) -> None:
    """Deletes the checkpoints of later steps."""
    for later in [saved for saved in self.steps() if saved > step]:
      self._manager.delete(later)

  def save(self, state: TrainState, best: Best | None) -> None:
    """Writes the state after `state.step` steps; an existing checkpoint stays as it is.

    Raises:
      OSError: the checkpoint could not be written whole; no part of it is kept.
    """
    step = int(state.step)
    if step == self.latest_step():
      return
    tree = {
      "target": identity.unflatten(state.trainable),
      "state": {
        "step": state.step,
        "optimizer": _named_leaves(state.optimizer),
        **({} if best is None else {"best": _best_tree(best)}),
      },
    }
    self._require_space(sum(np.size(leaf) * 4 for leaf in jax.tree.leaves(tree)))
    try:
      self._manager.save(
        step,
        args=ocp.args.Composite(state=ocp.args.PyTreeSave(tree)),
        custom_metadata=None if self.run is None else {orbax.RUN: self.run},
      )
    except Exception as error:
      for unfinished in self.folder.glob("*.orbax-checkpoint-tmp*"):
        shutil.rmtree(unfinished, ignore_errors=True)
      told = errors.system_error(error, str(self.folder))
      if told is None:
        raise
      _hide_closed_loops()
      raise told from error

  def _require_space(self, size: int) -> None:
    """Raises `OSError` if the disk is too full, before Orbax's threads print tracebacks."""
    if files.is_remote(self.folder):
      return
    if shutil.disk_usage(self.folder).free < 2 * size + 2**17:
      raise self._full()

  def _full(self) -> OSError:
    return OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(self.folder))

  def refuse_foreign(self) -> None:
    """Raises `UserError` if a checkpoint states another run, before any is deleted."""
    for step in self.steps():
      path = self.folder / f"checkpoint_{step}"
      stated = orbax.run_of_checkpoint(path)
      if stated and self.run and stated != self.run:
        raise _foreign(
          path, f"it states the run {stated[:12]}…, this is {self.run[:12]}…"
        )

  def damage(self, step: int) -> str | None:
    """Returns why the checkpoint of a step cannot be read, None if it can."""
    _hide_closed_loops()
    try:
      self._read(step)
    except Exception as error:  # Orbax and TensorStore raise a dozen kinds on damage.
      text = " ".join(str(error).split())[:200]
      return f"'{self.folder / f'checkpoint_{step}'}' cannot be read ({text})"
    return None

  def restore(self, state: TrainState) -> tuple[TrainState, Best | None]:
    """Returns the newest checkpoint, laid out over the devices as `state` is.

    Raises:
      UserError: it belongs to another model, optimizer or step.
    """
    step = self.latest_step()
    path = self.folder / f"checkpoint_{step}"
    tree = self._read(step)
    saved = tree["state"]
    if int(saved["step"]) != step:
      raise _foreign(path, f"it holds the state after step {int(saved['step'])}")
    optimizer = _named_leaves(state.optimizer)
    trainable = identity.flatten(tree["target"])
    for part, here, there in (
      ("optimizer", optimizer, saved["optimizer"]),
      ("prompt", state.trainable, trainable),
    ):
      _check_same(path, part, here, there)
    restored = TrainState(
      step=_like(state.step, saved["step"]),
      trainable={k: _like(v, trainable[k]) for k, v in state.trainable.items()},
      optimizer=jax.tree.unflatten(
        jax.tree.structure(state.optimizer),
        [_like(leaf, saved["optimizer"][name]) for name, leaf in optimizer.items()],
      ),
    )
    return restored, _best_from(saved.get("best"))

  def refuse_unless_stated(self, why: str) -> None:
    """Raises `UserError` about the newest checkpoint unless it states its run.

    Args:
      why: the sign that it is of another run.
    """
    path = self.folder / f"checkpoint_{self.latest_step()}"
    if orbax.run_of_checkpoint(path) is None:
      raise _foreign(path, why)

  def _read(self, step: int | None) -> dict[str, Any]:
    orbax.refuse_foreign_files(self.folder / f"checkpoint_{step}")
    metadata = self._manager.item_metadata(step)["state"].tree
    restore_args = jax.tree.map(
      lambda _: ocp.RestoreArgs(restore_type=np.ndarray), metadata
    )
    args = ocp.args.PyTreeRestore(
      item=jax.tree.map(lambda _: 0, metadata), restore_args=restore_args
    )
    return self._manager.restore(step, args=ocp.args.Composite(state=args))["state"]

  def close(self) -> None:
    """Ends Orbax's threads."""
    self._manager.close()


def _foreign(path: files.Path, why: str) -> UserError:
  return UserError(
    f"The checkpoint '{path}' is not of this run: {why}. Delete that folder to continue "
    "from the one before it, or start again with --gin.OVERWRITE=True."
  )


@functools.cache
def _hide_closed_loops() -> None:
  """Silences the tracebacks of event loops that Orbax leaves after a failed save or read."""
  of_python, of_threads = sys.unraisablehook, sys.excepthook
  closed = "Event loop is closed"

  def unraisable(found: Any) -> None:
    if str(found.exc_value) != closed:
      of_python(found)

  def printed(kind: Any, error: Any, trace: Any) -> None:
    if str(error) != closed:  # TensorStore's threads report through this hook.
      of_threads(kind, error, trace)

  sys.unraisablehook, sys.excepthook = unraisable, printed


def _named_leaves(tree: Any) -> dict[str, Any]:
  """Returns name -> leaf in tree order, the names without '/', which T5X refuses."""
  leaves, _ = jax.tree_util.tree_flatten_with_path(tree)
  return {
    jax.tree_util.keystr(path, simple=True, separator=".").replace("/", "."): leaf
    for path, leaf in leaves
  }


def _best_tree(best: Best) -> dict[str, Any]:
  return {
    "step": np.int32(best.step),
    "metric": np.float64(best.metric),
    "trainable": identity.unflatten(best.trainable),
  }


def _best_from(tree: dict[str, Any] | None) -> Best | None:
  if tree is None:
    return None
  trainable = identity.flatten(tree["trainable"])
  return Best(int(tree["step"]), float(tree["metric"]), trainable)


def _like(here: jax.Array, value: np.ndarray) -> jax.Array:
  return processes.put(np.asarray(value, here.dtype), here.sharding)


def _check_same(
  path: files.Path, part: str, here: dict[str, Any], there: dict[str, Any]
) -> None:
  mine = {name: np.shape(leaf) for name, leaf in here.items()}
  saved = {name: np.shape(leaf) for name, leaf in there.items()}
  if name := identity.first_difference(mine, saved):
    raise UserError(
      f"The checkpoint '{path}' has another {part}: {name} is {saved.get(name)} there, "
      f"{mine.get(name)} in this run. Use the settings it was made with, or another "
      "run folder."
    )

"""Weights & Biases, where it is asked for: a run's metrics as a run of a project there.

The package decides where they go: WANDB_MODE=offline writes a folder that `wandb sync`
sends later, and `wandb login` or WANDB_API_KEY says to whom.
"""

import importlib.util
from collections.abc import Mapping
from typing import Any

from tpv_jax.core import files
from tpv_jax.core.errors import UserError
from tpv_jax.devices import processes


def check(project: str | None) -> None:
  """Raises `UserError` if a project is given and the package is missing."""
  if project is not None and importlib.util.find_spec("wandb") is None:
    raise UserError(
      f"WANDB_PROJECT is '{project}', and wandb is not installed: pip install "
      "'tpv_jax[wandb]', or pip install wandb. Or leave WANDB_PROJECT out: TensorBoard's "
      "files and metrics.jsonl are written in any case."
    )


class Tracker:
  """Writes metrics to a run of Weights & Biases; process 0 alone does."""

  def __init__(
    self, project: str, name: str, folder: files.Path, known: str | None
  ) -> None:
    """Begins a run there, or goes on with one.

    Args:
      project: of Weights & Biases.
      name: of the run, for people.
      folder: of our run; if it is local, offline data are written below it.
      known: the id of the run to go on with; None begins one.

    Raises:
      UserError: it cannot be begun, for want of a login, for example.
    """
    check(project)
    self.id = known
    self._run: Any = None
    if not processes.is_writer():
      return
    import wandb

    settings = wandb.Settings(
      console="off", disable_git=True, save_code=False, silent=True, x_disable_meta=True
    )
    try:
      self._run = wandb.init(
        project=project,
        name=name,
        dir=None if files.is_remote(folder) else str(folder),
        id=known,
        resume="allow" if known else None,
        reinit="create_new",
        settings=settings,
      )
    except wandb.Error as error:
      reason = " ".join(str(error).split()).rstrip(".")
      raise UserError(
        f"Weights & Biases cannot begin a run of the project '{project}': {reason}. Log in "
        "with 'wandb login', or set WANDB_MODE=offline in the environment."
      ) from error
    self.id = self._run.id
    self._run.define_metric("*", step_metric="step")

  def describe(self, settings: Mapping[str, Any]) -> None:
    """States the settings of the run there."""
    if self._run is not None:
      self._run.config.update(dict(settings), allow_val_change=True)

  def write(self, step: int, kind: str, values: dict[str, float]) -> None:
    """Writes metrics as `kind/name`, over `step`."""
    if self._run is not None:
      named = {f"{kind}/{name}": value for name, value in values.items()}
      self._run.log({**named, "step": step})

  def close(self) -> None:
    """Ends the run there; one that is continued goes on with it."""
    if self._run is not None:
      self._run.finish()

"""More steps on a run: when it may go on beyond the end that it was begun with."""

from typing import TYPE_CHECKING

from tpv_jax.core.errors import UserError
from tpv_jax.runs import run_settings
from tpv_jax.training import sameness

if TYPE_CHECKING:
  from tpv_jax.training.loop import Run


def lengthened(run: "Run") -> int | None:
  """Returns after how many steps the run in the folder was to end, if it may now go on.

  It may if it would have done the same steps with today's `total_steps`: nothing else
  differs, its learning rate and optimizer do not depend on the end, and the end was at a
  validation. So a run in two parts equals an unbroken one, to the bit on a CPU.

  None: the folder holds no run, or one that `RunFolder.open` continues or refuses.

  Raises:
    UserError: the run has more steps than the one in the folder and cannot go on.
  """
  manifest = run.folder.manifest()
  there = manifest.get("settings", {}).get("total_steps")
  if not isinstance(there, int) or not 0 < there < run.total_steps:
    return None
  other = run_settings.difference(manifest, sameness.settings_of(run, there))
  reason = None
  if other is not None:
    if not other.startswith(("learning_rate", "optimizer")):
      return None
    reason = f"its steps depend on where it ends, or it has another {other}"
  elif "bank" in manifest:
    reason = "it was trained in a bank, whose prompts end together"
  elif there % run.eval_period:
    reason = (
      f"it ended between two validations, which are every {run.eval_period} steps, so its "
      "best prompt might be another one"
    )
  if reason is None:
    return there
  raise UserError(
    f"The run in '{run.folder.path}' has {there} steps and cannot go on to "
    f"{run.total_steps}: {reason}. Choose another RUN_DIR; to begin with its prompt, set "
    "INITIAL_PROMPT = @initial.from_file in a gin file, and its path."
  )


def lengthen(run: "Run") -> None:
  """States in the folder's manifest that its run has the steps of `run`."""
  manifest = run.folder.manifest()
  saved = run.settings.saved()
  run.folder.write_manifest({**manifest, "status": "running", **saved})

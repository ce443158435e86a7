"""The T5X room: what `python -m t5x.train`, `eval` and `infer` are given by gin.

No mathematics lives here: loss, prediction and scoring are the model's, optimizers and
schedules those of the standalone runner. `optimizer`, `bank` and `saving` know T5X by
its duck types only; `restoring`, `training`, `datasets` and `mesh` import it, and
`scripts` runs it.

    settings    what a command was given, refused where nothing reads it
    optimizer   an optax transformation as an optimizer of T5X, over what is trained
    restoring   where the backbone, the prompt and a resumed state come from
    saving      checkpoints of the prompt only, and portable prompt files
    training    T5X's trainer with micro-batches that do not change the loss's scale
    profiling   a trace of some training steps
    datasets    the training examples from the step on at which a run continues
    bank        many prompts in one run, each with a data set of its own
    mesh        the partitioner, checked against devices and batch
    paths       a folder from the root, as T5X needs it
    preemption  SIGTERM, and at which steps a run that it stopped goes on
    scripts     T5X's scripts as one of several processes
    tasks       our tasks, or seqio's by name, with the vocabulary checked
"""

import contextlib
import os
import signal
import sys
from typing import Any

from tpv_jax.core.errors import EXIT_USER_ERROR, UserError


def as_command() -> None:
  """Has this process, a command of T5X, check its settings and end as our commands do."""
  from tpv_jax.t5x import settings

  sys.excepthook = _in_one_line
  settings.watch()


def _in_one_line(kind: type[BaseException], error: BaseException, trace: Any) -> None:
  """Prints a `UserError` or a signal as one line and ends the process.

  Other errors, and all with TPV_JAX_DEBUG=1, keep their trace. The process is ended hard
  because threads of Orbax and TensorFlow, begun before, would keep it waiting for ever.
  """
  ours = isinstance(error, UserError | KeyboardInterrupt)
  if not ours or os.environ.get("TPV_JAX_DEBUG"):
    _previous(kind, error, trace)
    return
  if isinstance(error, UserError):
    start, code = "error", EXIT_USER_ERROR
  else:
    start, code = "interrupted", 128 + getattr(error, "number", signal.SIGINT)
  told = str(error).splitlines()[:1]  # gin adds lines of its own.
  print(": ".join([start, *told]), file=sys.stderr, flush=True)
  sys.stdout.flush()
  leaving.close()
  os._exit(code)


leaving = contextlib.ExitStack()
"""What is to be done when the process ends."""

_previous = sys.excepthook
# Only in `python -m t5x.train` and its like; not where this package is a library.
_command = getattr(sys.modules.get("__main__"), "__spec__", None)
if _command is not None and _command.name.startswith("t5x."):
  as_command()

"""The T5X room: what gin gives to `python -m t5x.train`, `eval` and `infer`.

There is no mathematics here: loss, prediction and scoring are the model's, optimizers and
schedules those of the standalone runner. `optimizer`, `bank` and `saving` know T5X only
by its duck types; `restoring`, `training`, `datasets` and `mesh` import it, and `scripts`
runs it.

    settings    a command's settings, refused where nothing reads them
    optimizer   an optax transformation as an optimizer of T5X, over the trained leaves
    restoring   where the backbone, the prompt and a resumed state come from
    saving      checkpoints of the prompt only, and portable prompt files
    training    T5X's trainer with micro-batches that do not change the loss's scale
    profiling   a trace of some training steps
    datasets    the training examples, from the step at which a run continues
    bank        many prompts in one run, each with its own data set
    mesh        the partitioner, checked against devices and batch
    paths       a folder's absolute path, as T5X needs it
    preemption  SIGTERM, and the steps at which a run that it stopped continues
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
  """Makes this process, a command of T5X, check its settings and end as ours do."""
  from tpv_jax.t5x import settings

  sys.excepthook = _in_one_line
  settings.watch()


def _in_one_line(kind: type[BaseException], error: BaseException, trace: Any) -> None:
  """Prints a `UserError` or a signal as one line and ends the process.

  Other errors, and all errors with TPV_JAX_DEBUG=1, keep their traceback. The process
  ends by `os._exit`, because running threads of Orbax and TensorFlow would block it.
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
"""Callbacks for the end of the process."""

_previous = sys.excepthook
# Only in `python -m t5x.train` and the like, not where this package is a library.
_command = getattr(sys.modules.get("__main__"), "__spec__", None)
if _command is not None and _command.name.startswith("t5x."):
  as_command()

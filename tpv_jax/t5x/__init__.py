"""The T5X room: what `python -m t5x.train`, `eval` and `infer` are given by gin.

No mathematics lives here: loss, prediction and scoring are the model's, optimizers and
schedules those of the standalone runner. `optimizer` and `saving` know T5X by its duck
types only; `restoring`, `training` and `mesh` import it.

    optimizer   an optax transformation as an optimizer of T5X, over what is trained
    restoring   where the backbone, the prompt and a resumed state come from
    saving      checkpoints of the prompt only, and portable prompt files
    training    T5X's trainer with micro-batches that do not change the loss's scale
    mesh        the partitioner, checked against devices and batch
    tasks       our tasks, or seqio's by name, with the vocabulary checked
"""

import os
import sys
from typing import Any

from tpv_jax.errors import UserError


def _in_one_line(kind: type[BaseException], error: BaseException, trace: Any) -> None:
  """Prints a `UserError` as one line, as our own commands do; others as before.

  T5X's commands print a trace for every error. TPV_JAX_DEBUG=1 keeps it.
  """
  if isinstance(error, UserError) and not os.environ.get("TPV_JAX_DEBUG"):
    print(f"error: {str(error).splitlines()[0]}", file=sys.stderr)
  else:
    _previous(kind, error, trace)


_previous = sys.excepthook
sys.excepthook = _in_one_line

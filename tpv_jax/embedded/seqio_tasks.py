"""The embedded suite as seqio tasks: importing this registers `tpv_embedded_<task>`.

T5X's `MIXTURE_OR_TASK_MODULE` expects tasks to be there after an import. Needs the extra
`data`.
"""

import seqio

from tpv_jax.data import seqio_tasks, vocabularies
from tpv_jax.embedded import suite

PREFIX = "tpv_embedded_"
"""Of the names of the suite's tasks among seqio's."""


def register() -> tuple[str, ...]:
  """Registers the tasks of the suite that are not yet, and returns the names of all."""
  for name in suite.TASKS:
    if PREFIX + name not in seqio.TaskRegistry.names():
      seqio_tasks.register(suite.task(name), vocabularies.embedded(), PREFIX + name)
  return tuple(PREFIX + name for name in suite.TASKS)


register()

"""The embedded suite as seqio tasks: importing this registers `tpv_embedded_<task>`.

T5X expects the import of `MIXTURE_OR_TASK_MODULE` to register tasks. Needs the extra
`data`.
"""

import seqio

from tpv_jax.data import seqio_tasks, vocabularies
from tpv_jax.embedded import suite

PREFIX = "tpv_embedded_"
"""Prefix of the names of the suite's tasks in seqio."""


def register() -> tuple[str, ...]:
  """Registers the suite's tasks, unless they are already, and returns all their names."""
  for name in suite.TASKS:
    if PREFIX + name not in seqio.TaskRegistry.names():
      seqio_tasks.register(suite.task(name), vocabularies.embedded(), PREFIX + name)
  return tuple(PREFIX + name for name in suite.TASKS)


register()

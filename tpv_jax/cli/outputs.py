"""The output of verbs: a prompt or vector in a file, and lines about it."""

import argparse

from tpv_jax.vectors import description, store
from tpv_jax.vectors.loaded import Loaded


def refuse(options: argparse.Namespace) -> None:
  """Raises `UserError` if the output cannot be written, before anything is read."""
  store.check_output(options.output, options.overwrite)


def write(options: argparse.Namespace, item: Loaded) -> None:
  """Writes a prompt or vector to the verb's output, and prints what it is."""
  store.write(options.output, item.leaves, item.provenance, options.overwrite)
  print("\n".join(description.written(item, str(options.output))))

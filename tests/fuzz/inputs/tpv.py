"""Calls of `tpv` as commands are typed."""

import random
import shlex
from collections.abc import Callable


def one_of(*lines: str) -> Callable[[random.Random], int]:
  """Returns a function that runs one of the command lines and returns its exit code."""

  def run(rng: random.Random) -> int:
    from tpv_jax import cli

    return cli.main(shlex.split(rng.choice(lines)))

  return run

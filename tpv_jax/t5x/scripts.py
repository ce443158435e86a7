"""T5X's scripts as one of several processes: `python -m tpv_jax.t5x.train`, eval, infer.

T5X's eval and infer have no flags for several processes and never join the others. Here
all three take those of T5X's train; the rest of the command line goes to the script.
"""

import runpy
import sys

from tpv_jax import t5x
from tpv_jax.core.errors import ArgumentParser
from tpv_jax.devices import flags as process_flags
from tpv_jax.devices import processes


def run(script: str) -> None:
  """Runs 'train', 'eval' or 'infer' of T5X as `python -m t5x.<script>` does.

  Only train handles SIGTERM (see `preemption`); the others end at once.
  """
  t5x.as_command()
  parser = ArgumentParser(prog=f"python -m tpv_jax.t5x.{script}", add_help=False)
  process_flags.add(parser)
  flags, rest = parser.parse_known_args()
  if {"--help", "-h", "--helpfull"} & set(rest):
    parser.print_help()
  processes.join(flags, preemption=script == "train")
  sys.argv[1:] = rest
  runpy.run_module(f"t5x.{script}", run_name="__main__", alter_sys=True)

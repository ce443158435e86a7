"""`python -m tpv_jax.few_shot --gin_file=...`: starts of prompt tuning on few examples."""

import shlex
import sys
from collections.abc import Sequence

from tpv_jax.core.errors import run_program

EXAMPLES = """\
  the comparison of docs/few_shot.md: embedded tasks, all in the package:
    python -m tpv_jax.few_shot --gin_file=gin_configs/runs/few_shot_embedded.gin \\
      --gin.OUTPUT_DIR='"few_shot_out"'
  a quick look at two numbers of examples:
    ... --gin.SHOTS='[0, 10]' --gin.INITIAL_SEEDS='[0, 1]'
"""


def main(argv: Sequence[str] | None = None) -> int:
  """Runs `studies.few_shot.compare_starts` as gin says; returns the exit code."""
  import gin

  from tpv_jax.settings import command_line
  from tpv_jax.studies import few_shot

  argv = sys.argv[1:] if argv is None else argv
  return command_line.main(
    few_shot.compare_starts,
    description="Compare starts of prompt tuning on few examples: random, a related "
    "vector, a sum of two, an unrelated vector.",
    examples=EXAMPLES,
    argv=argv,
    config=gin.operative_config_str,
    command=shlex.join(["python", "-m", "tpv_jax.few_shot", *argv]),
  )


if __name__ == "__main__":
  run_program(main)

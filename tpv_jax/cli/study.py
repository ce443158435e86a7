"""`python -m tpv_jax.study --gin_file=...`: tunes prompts, makes vectors, reports on sums."""

import sys
from collections.abc import Sequence

from tpv_jax.core.errors import run_program

EXAMPLES = """\
  the job of `make demo`: embedded tasks, three initial prompts, all in the package:
    python -m tpv_jax.study --gin_file=gin_configs/runs/demo.gin \\
      --gin.OUTPUT_DIR='"demo_out"'
"""


def main(argv: Sequence[str] | None = None) -> int:
  """Runs `studies.study.study` as gin says; returns the exit code."""
  import gin

  from tpv_jax.settings import command_line
  from tpv_jax.studies import study

  return command_line.main(
    study.study,
    description="Tune prompts, make task vectors, and report what arithmetic on them does.",
    examples=EXAMPLES,
    argv=sys.argv[1:] if argv is None else argv,
    config=gin.operative_config_str,
  )


if __name__ == "__main__":
  run_program(main)

"""`python -m tpv_jax.ablation --gin_file=...`: plain tuning, DePT, EPT and EPT's parts."""

import shlex
import sys
from collections.abc import Sequence

from tpv_jax.core.errors import run_program

EXAMPLES = """\
  the ablation of the README: embedded tasks, three initial prompts, all in the package:
    python -m tpv_jax.ablation --gin_file=gin_configs/runs/ablation.gin \\
      --gin.OUTPUT_DIR='"ablation_out"'
  a quick look at two tasks and one length:
    python -m tpv_jax.ablation --gin_file=gin_configs/runs/ablation.gin \\
      --gin.OUTPUT_DIR='"quick"' --gin.TASK_NAMES='["topic", "nli"]' \\
      --gin.TUNING_TASKS='["topic"]' --gin.PROMPT_LENGTHS='[]'
"""


def main(argv: Sequence[str] | None = None) -> int:
  """Runs `studies.ablation.ablation` as gin says; returns the exit code."""
  import gin

  from tpv_jax.settings import command_line
  from tpv_jax.studies import ablation

  argv = sys.argv[1:] if argv is None else argv
  return command_line.main(
    ablation.ablation,
    description="Compare plain tuning, DePT, EPT and EPT without its parts, at one budget.",
    examples=EXAMPLES,
    argv=argv,
    config=gin.operative_config_str,
    command=shlex.join(["python", "-m", "tpv_jax.ablation", *argv]),
  )


if __name__ == "__main__":
  run_program(main)

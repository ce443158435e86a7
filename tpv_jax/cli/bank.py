"""`python -m tpv_jax.train_bank --gin_file=...`: trains many soft prompts at once."""

import sys
from collections.abc import Sequence

from tpv_jax.core.errors import run_program

EXAMPLES = """\
  two embedded tasks from three initial prompts each, six run folders:
    python -m tpv_jax.train_bank --gin_file=gin_configs/runs/bank_embedded.gin \\
      --gin.TASK_NAMES='["sentiment", "topic"]' --gin.INITIAL_SEEDS='[0, 1, 2]' \\
      --gin.OUTPUT_DIR='"runs"'
  a search over learning rates:
    ... --gin.RATES='[0.3, 1.0, 3.0]'
  in groups, if all at once do not fit into memory:
    ... --gin.SPLIT=True
"""


def main(argv: Sequence[str] | None = None) -> int:
  """Runs `banks.bank.train_bank` as gin says; returns the exit code."""
  import gin

  from tpv_jax.banks import bank
  from tpv_jax.settings import command_line

  return command_line.main(
    bank.train_bank,
    description="Train many soft prompts at once on one frozen backbone; the same "
    "command resumes.",
    examples=EXAMPLES,
    argv=sys.argv[1:] if argv is None else argv,
    config=gin.operative_config_str,
  )


if __name__ == "__main__":
  run_program(main)

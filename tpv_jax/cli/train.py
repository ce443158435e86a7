"""`python -m tpv_jax.train --gin_file=...`: trains one soft prompt (or a backbone)."""

import sys
from collections.abc import Sequence

from tpv_jax.core.errors import run_program

EXAMPLES = """\
  one embedded task, everything in the package:
    python -m tpv_jax.train --gin_file=gin_configs/runs/embedded.gin \\
      --gin.TASK_NAME='"sentiment"' --gin.RUN_DIR='"runs/sentiment"'
  your own files on T5 v1.1 base:
    python -m tpv_jax.train --gin_file=gin_configs/backbones/t5_1_1_base.gin \\
      --gin_file=gin_configs/prompts/plain.gin --gin_file=gin_configs/runs/train.gin \\
      --gin_file=gin_configs/tasks/text_files.gin --gin_file=my_task.gin \\
      --gin.BACKBONE='"checkpoint_1100000"' --gin.VOCABULARY_FILE='"spiece.model"' \\
      --gin.RUN_DIR='"runs/mine"'
"""


def main(argv: Sequence[str] | None = None) -> int:
  """Runs `training.training.train` as gin says; returns the exit code."""
  import gin

  from tpv_jax.settings import command_line
  from tpv_jax.training import training

  return command_line.main(
    training.train,
    description="Train a soft prompt on a frozen backbone; the same command resumes.",
    examples=EXAMPLES,
    argv=sys.argv[1:] if argv is None else argv,
    config=gin.operative_config_str,
  )


if __name__ == "__main__":
  run_program(main)

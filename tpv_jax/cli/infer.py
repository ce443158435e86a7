"""`python -m tpv_jax.infer --gin_file=...`: answers each line of a text file."""

import sys
from collections.abc import Sequence

from tpv_jax.core.errors import run_program

EXAMPLES = """\
  python -m tpv_jax.infer --gin_file=gin_configs/runs/infer_embedded.gin \\
    --gin.PROMPT_PATH='"runs/sentiment"' --gin.INPUT_FILE='"sentences.txt"' \\
    --gin.OUTPUT='"answers.jsonl"'
"""


def main(argv: Sequence[str] | None = None) -> int:
  """Runs `evaluation.evaluation.infer` as gin says; returns the exit code."""
  from tpv_jax.evaluation import evaluation
  from tpv_jax.settings import command_line

  return command_line.main(
    evaluation.infer,
    description="Write what a prompt makes of each line of a text file.",
    examples=EXAMPLES,
    argv=sys.argv[1:] if argv is None else argv,
  )


if __name__ == "__main__":
  run_program(main)

"""`python -m tpv_jax.eval --gin_file=...`: scores prompts, vectors or no prompt on tasks."""

import sys
from collections.abc import Sequence

from tpv_jax.core.errors import run_program

EXAMPLES = """\
  no prompt, all embedded tasks:
    python -m tpv_jax.eval --gin_file=gin_configs/runs/eval_embedded.gin
  the best prompt of a run, results and predictions to files:
    python -m tpv_jax.eval --gin_file=gin_configs/runs/eval_embedded.gin \\
      --gin.PROMPT_PATH='"runs/sentiment"' --gin.TASK_NAMES='["sentiment"]' \\
      --gin.OUTPUT='"results.json"' --gin.PREDICTIONS=True
  half a vector on another initial prompt:
    python -m tpv_jax.eval --gin_file=gin_configs/runs/eval_embedded.gin \\
      --gin.VECTOR='"v.safetensors"' --gin.INITIAL='"runs/topic"' --gin.COEFFICIENT=0.5
  two vectors and their sum, each with the coefficient that is best on validation:
    python -m tpv_jax.eval --gin_file=gin_configs/runs/eval_embedded.gin \\
      --gin.VECTOR='["a.safetensors", "b.safetensors", ["a.safetensors", "b.safetensors"]]' \\
      --gin.INITIAL='"runs/topic"' --gin.SEARCH=True --gin.OUTPUT='"results.json"'
"""


def main(argv: Sequence[str] | None = None) -> int:
  """Runs `evaluation.evaluation.evaluate` as gin says; returns the exit code."""
  from tpv_jax.evaluation import evaluation
  from tpv_jax.settings import command_line

  return command_line.main(
    evaluation.evaluate,
    description="Evaluate prompts, vectors on initial prompts, or no prompt.",
    examples=EXAMPLES,
    argv=sys.argv[1:] if argv is None else argv,
  )


if __name__ == "__main__":
  run_program(main)

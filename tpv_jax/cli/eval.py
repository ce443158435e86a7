"""Scores prompts, vectors on initial prompts, or no prompt, on tasks."""

import argparse

from tpv_jax.cli import gin_verb

EXAMPLES = """\
  no prompt, all embedded tasks:
    tpv eval --gin_file=gin_configs/runs/eval_embedded.gin
  the best prompt of a run, results and predictions to files:
    tpv eval --gin_file=gin_configs/runs/eval_embedded.gin \\
      --gin.PROMPT_PATH='"runs/sentiment"' --gin.TASK_NAMES='["sentiment"]' \\
      --gin.OUTPUT='"results.json"' --gin.PREDICTIONS=True
  half a vector on another initial prompt:
    tpv eval --gin_file=gin_configs/runs/eval_embedded.gin \\
      --gin.VECTOR='"v.safetensors"' --gin.INITIAL='"runs/topic"' --gin.COEFFICIENT=0.5
  two vectors and their sum, each with the coefficient that is best on validation:
    tpv eval --gin_file=gin_configs/runs/eval_embedded.gin \\
      --gin.VECTOR='["a.safetensors", "b.safetensors", ["a.safetensors", "b.safetensors"]]' \\
      --gin.INITIAL='"runs/topic"' --gin.SEARCH=True --gin.OUTPUT='"results.json"'
"""
ON_CPU = False
add_arguments = gin_verb.add_arguments


def run(options: argparse.Namespace) -> int | None:
  """Runs `evaluation.evaluate` as gin says."""
  from tpv_jax.evaluation import evaluation

  return gin_verb.run(evaluation.evaluate, options)

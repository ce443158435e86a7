"""Writes the answer of the model with a prompt to each line of a text file."""

import argparse

from tpv_jax.cli import gin_verb

EXAMPLES = """\
  tpv infer --gin_file=gin_configs/runs/infer_embedded.gin \\
    --gin.PROMPT_PATH='"runs/sentiment"' --gin.INPUT_FILE='"sentences.txt"' \\
    --gin.OUTPUT='"answers.jsonl"'
"""
ON_CPU = False
add_arguments = gin_verb.add_arguments


def run(options: argparse.Namespace) -> int | None:
  """Runs `evaluation.infer` as gin says."""
  from tpv_jax.evaluation import evaluation

  return gin_verb.run(evaluation.infer, options)

"""Writes the answer of the model with a prompt to each line of a text file.

Without INPUT_FILE it asks for lines at the terminal, or reads them from a pipe, and prints
each answer as it is written. Ctrl-D ends.
"""

import argparse

from tpv_jax.cli import gin_verb

EXAMPLES = """\
  tpv infer --gin_file=gin_configs/runs/infer_embedded.gin \\
    --gin.PROMPT_PATH='"runs/sentiment"' --gin.INPUT_FILE='"sentences.txt"' \\
    --gin.OUTPUT='"answers.jsonl"'
  what you type is answered, drawn from the likely tokens:
    tpv infer --gin_file=gin_configs/runs/infer_embedded.gin \\
      --gin.PROMPT_PATH='"runs/sentiment"' --gin.TEMPERATURE=0.7 --gin.TOP_P=0.9
"""
ON_CPU = False
add_arguments = gin_verb.add_arguments


def run(options: argparse.Namespace) -> int | None:
  """Runs `evaluation.infer` as gin says."""
  from tpv_jax.evaluation import evaluation

  return gin_verb.run(evaluation.infer, options)

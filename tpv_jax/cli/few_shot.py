"""Compares starts of few-shot prompt tuning.

The starts are: random, a related vector, a sum of two, an unrelated vector.
"""

import argparse

from tpv_jax.cli import gin_verb

EXAMPLES = """\
  the comparison of docs/few_shot.md: embedded tasks, all in the package:
    tpv few-shot --gin_file=gin_configs/runs/few_shot_embedded.gin \\
      --gin.OUTPUT_DIR=few_shot_out
  a quick look at two numbers of examples:
    ... --gin.SHOTS='[0, 10]' --gin.INITIAL_SEEDS='[0, 1]'
  a task of your own, from the vector of another one:
    tpv few-shot --gin.BACKBONE=embedded --gin.TASK_FILES='[reviews.toml, news.toml]' \\
      --gin.TASK_NAME=reviews --gin.RELATED=news --gin.OUTPUT_DIR=starts
"""
ON_CPU = False
add_arguments = gin_verb.add_arguments


def run(options: argparse.Namespace) -> int | None:
  """Runs `few_shot.compare_starts` as gin says."""
  import gin

  from tpv_jax.studies import few_shot

  return gin_verb.run(
    few_shot.compare_starts,
    options,
    config=gin.operative_config_str,
    command=options.call,
  )

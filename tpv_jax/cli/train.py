"""Trains a soft prompt on a frozen backbone, or a backbone; run it again to resume."""

import argparse

from tpv_jax.cli import gin_verb

EXAMPLES = """\
  one embedded task, everything in the package:
    tpv train --gin_file=gin_configs/runs/embedded.gin \\
      --gin.TASK_NAME=sentiment --gin.RUN_DIR=runs/sentiment
  your own files on T5 v1.1 base:
    tpv train --gin_file=gin_configs/backbones/t5_1_1_base.gin \\
      --gin_file=gin_configs/prompts/plain.gin --gin_file=gin_configs/runs/train.gin \\
      --gin_file=gin_configs/tasks/text_files.gin --gin_file=my_task.gin \\
      --gin.BACKBONE=checkpoint_1100000 --gin.VOCABULARY_FILE=spiece.model \\
      --gin.RUN_DIR=runs/mine
"""
ON_CPU = False
add_arguments = gin_verb.add_arguments


def run(options: argparse.Namespace) -> int | None:
  """Runs `training.train` as gin says."""
  import gin

  from tpv_jax.training import training

  return gin_verb.run(training.train, options, config=gin.operative_config_str)

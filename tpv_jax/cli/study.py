"""Tunes prompts, makes task vectors, and reports the effects of arithmetic on them."""

import argparse

from tpv_jax.cli import gin_verb

EXAMPLES = """\
  the job of `make demo`: embedded tasks, three initial prompts, all in the package:
    tpv study --gin_file=gin_configs/runs/demo.gin \\
      --gin.OUTPUT_DIR=demo_out
  two tasks of your own:
    tpv study --gin.BACKBONE=embedded --gin.TASK_FILES='[reviews.toml, news.toml]' \\
      --gin.OUTPUT_DIR=study
"""
ON_CPU = False
add_arguments = gin_verb.add_arguments


def run(options: argparse.Namespace) -> int | None:
  """Runs `study.study` as gin says."""
  import gin

  from tpv_jax.studies import study

  return gin_verb.run(study.study, options, config=gin.operative_config_str)

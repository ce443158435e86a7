"""Measures what makes a vector move to another start, and add to another task's vector.

Prompts are tuned from other starts, at other rates, with more steps and at other lengths;
scores on other starts and in sums are shown against norm(vector) / norm(start).
"""

import argparse

from tpv_jax.cli import gin_verb

EXAMPLES = """\
  two tasks of your own:
    tpv moving --gin.BACKBONE=embedded --gin.TASK_FILES='[reviews.toml, news.toml]' \\
      --gin.OUTPUT_DIR=moving_out
  a quick look at three starts:
    ... --gin.VARIANTS="[{'scale': 0.01}, {'scale': 1.0}]"
  SmolLM2, three hours on two cores:
    tpv moving --gin_file=gin_configs/studies/moving_small.gin \\
      --gin.TASK_FILES='[reviews.toml, news.toml]' --gin.OUTPUT_DIR=moving_out
"""
ON_CPU = False
add_arguments = gin_verb.add_arguments


def run(options: argparse.Namespace) -> int | None:
  """Runs `moving.moving` as gin says."""
  import gin

  from tpv_jax.studies import moving

  return gin_verb.run(
    moving.moving, options, config=gin.operative_config_str, command=options.call
  )

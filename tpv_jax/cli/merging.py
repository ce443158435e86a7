"""Compares merge rules: tunes prompts, merges their vectors by every rule, reports scores."""

import argparse

from tpv_jax.cli import gin_verb

EXAMPLES = """\
  five embedded tasks, three initial prompts, all rules, all in the package:
    tpv merging --gin_file=gin_configs/runs/merging_embedded.gin \\
      --gin.OUTPUT_DIR=merging_out
  two tasks of your own, some rules:
    tpv merging --gin.BACKBONE=embedded --gin.TASK_FILES='[reviews.toml, news.toml]' \\
      --gin.RULES='[norm_balanced, ties]' --gin.OUTPUT_DIR=merging
"""
ON_CPU = False
add_arguments = gin_verb.add_arguments


def run(options: argparse.Namespace) -> int | None:
  """Runs `merging.compare_rules` as gin says."""
  import gin

  from tpv_jax.studies import merging

  return gin_verb.run(
    merging.compare_rules,
    options,
    config=gin.operative_config_str,
    command=options.call,
  )

"""Compares plain tuning, DePT, EPT and EPT without its parts, at one budget."""

import argparse

from tpv_jax.cli import gin_verb

EXAMPLES = """\
  the ablation of docs/ablation.md: embedded tasks, three initial prompts, all in the package:
    tpv ablation --gin_file=gin_configs/runs/ablation.gin \\
      --gin.OUTPUT_DIR=ablation_out
  a quick look at two tasks and one length:
    tpv ablation --gin_file=gin_configs/runs/ablation.gin \\
      --gin.OUTPUT_DIR=quick --gin.TASK_NAMES='[topic, nli]' \\
      --gin.TUNING_TASKS='[topic]' --gin.PROMPT_LENGTHS='[]'
  two tasks of your own:
    tpv ablation --gin.BACKBONE=embedded --gin.TASK_FILES='[reviews.toml, news.toml]' \\
      --gin.PROMPT_LENGTH=32 --gin.OUTPUT_DIR=ablation
"""
ON_CPU = False
add_arguments = gin_verb.add_arguments


def run(options: argparse.Namespace) -> int | None:
  """Runs `ablation.ablation` as gin says."""
  import gin

  from tpv_jax.studies import ablation

  return gin_verb.run(
    ablation.ablation,
    options,
    config=gin.operative_config_str,
    command=options.call,
  )

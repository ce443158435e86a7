"""Trains many soft prompts at once on one frozen backbone; run it again to resume."""

import argparse

from tpv_jax.cli import gin_verb

EXAMPLES = """\
  two embedded tasks from three initial prompts each, six run folders:
    tpv bank --gin_file=gin_configs/runs/bank_embedded.gin \\
      --gin.TASK_NAMES='[sentiment, topic]' --gin.INITIAL_SEEDS='[0, 1, 2]' \\
      --gin.OUTPUT_DIR=runs
  a search over learning rates:
    ... --gin.RATES='[0.3, 1.0, 3.0]'
  in groups, if all at once do not fit into memory:
    ... --gin.SPLIT=True
"""
ON_CPU = False
add_arguments = gin_verb.add_arguments


def run(options: argparse.Namespace) -> int | None:
  """Runs `bank.train_bank` as gin says."""
  import gin

  from tpv_jax.banks import bank

  return gin_verb.run(bank.train_bank, options, config=gin.operative_config_str)

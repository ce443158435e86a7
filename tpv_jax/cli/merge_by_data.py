"""Writes one vector merged from several by a rule that tries them on their backbone.

The rules are coefficient_search, fisher and adamerging; 'tpv merge --list' describes them.
"""

import argparse

from tpv_jax.cli import gin_verb

EXAMPLES = """\
  two vectors of the embedded suite, each value weighted by its task's Fisher information:
    tpv merge-by-data --gin_file=gin_configs/runs/merge_by_data_embedded.gin \\
      --gin.TASK_NAMES='[sentiment, topic]' --gin.RULE=fisher \\
      --gin.VECTORS='[sentiment.safetensors, topic.safetensors]' \\
      --gin.INITIAL=runs/topic --gin.OUTPUT=fisher.safetensors
  tasks of your own, the coefficients that are best together on validation, of 60 tried:
    tpv merge-by-data --gin.BACKBONE=embedded --gin.TASK_FILES='[reviews.toml, news.toml]' \\
      --gin.RULE=coefficient_search --gin.OPTIONS='{"budget": 60}' \\
      --gin.VECTORS='[reviews.safetensors, news.safetensors]' \\
      --gin.INITIAL=runs/reviews --gin.OUTPUT=sum.safetensors --gin.REPORT=sum.json
"""
ON_CPU = False
add_arguments = gin_verb.add_arguments


def run(options: argparse.Namespace) -> int | None:
  """Runs `merge_by_data.merge_by_data` as gin says."""
  from tpv_jax.evaluation.merging import merge_by_data

  return gin_verb.run(merge_by_data.merge_by_data, options)

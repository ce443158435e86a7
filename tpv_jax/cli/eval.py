"""Scores prompts, vectors on initial prompts, or no prompt, on tasks.

Prompts that differ in their seeds only also get their mean and deviation."""

import argparse
from collections.abc import Sequence

from tpv_jax.cli import gin_verb
from tpv_jax.cli.arguments import Parser
from tpv_jax.core import files
from tpv_jax.core.errors import UserError

EXAMPLES = """\
  no prompt, all embedded tasks:
    tpv eval --gin_file=gin_configs/runs/eval_embedded.gin
  the best prompt of a run, results and predictions to files:
    tpv eval --gin_file=gin_configs/runs/eval_embedded.gin \\
      --gin.PROMPT_PATH=runs/sentiment --gin.TASK_NAMES='[sentiment]' \\
      --gin.OUTPUT=results.json --gin.PREDICTIONS=True
  runs that differ in their seeds, with mean and deviation, on the backbone of the first:
    tpv eval 'runs/reviews-*' --gin.TASK_FILES=reviews.toml
  half a vector on another initial prompt:
    tpv eval --gin_file=gin_configs/runs/eval_embedded.gin \\
      --gin.VECTOR=v.safetensors --gin.INITIAL=runs/topic --gin.COEFFICIENT=0.5
  two vectors and their sum, each with the coefficient that is best on validation:
    tpv eval --gin_file=gin_configs/runs/eval_embedded.gin \\
      --gin.VECTOR='["a.safetensors", "b.safetensors", ["a.safetensors", "b.safetensors"]]' \\
      --gin.INITIAL=runs/topic --gin.SEARCH=True --gin.OUTPUT=results.json
"""
ON_CPU = False


def add_arguments(parser: Parser) -> None:
  """Adds gin's flags, and the prompts."""
  parser.add_argument(
    "prompts",
    metavar="PROMPT",
    nargs="*",
    help="run folders or files, as PROMPT_PATH; patterns such as 'runs/sst2-*', too",
  )
  gin_verb.add_arguments(parser)


def run(options: argparse.Namespace) -> int | None:
  """Runs `evaluation.evaluate` as gin says."""
  from tpv_jax.evaluation import evaluation
  from tpv_jax.settings import gin_files

  if options.prompts:
    for name in gin_files.bound([], options.gin_bindings):
      if name == "PROMPT_PATH" or name.endswith("evaluate.prompt"):
        raise UserError(
          f"'{options.prompts[0]}' and --gin.{name} both say which prompts are meant. Give "
          "all of them in one of the two ways."
        )
    given = [f"PROMPT_PATH={options.prompts!r}", *options.gin_bindings]
    options.gin_bindings = [*_backbone_of(options, given), *given]
  return gin_verb.run(evaluation.evaluate, options)


def _backbone_of(options: argparse.Namespace, given: Sequence[str]) -> list[str]:
  """Returns the settings of the first run's backbone, if none is set.

  Those that a file of the user's has are left to it.
  """
  from tpv_jax.evaluation import candidates
  from tpv_jax.runs import subject
  from tpv_jax.settings import gin_files

  folders = gin_verb.search_paths(options)
  if "BACKBONE" in gin_files.bound(options.gin_file, given, folders):
    return []
  first, *_ = candidates.matching(options.prompts)
  if (
    not isinstance(first, str) or not (files.to_path(first) / "manifest.json").exists()
  ):
    return []
  known = subject.read(first)
  found = {
    "BACKBONE": known.backbone,
    "VOCABULARY_FILE": known.vocabulary_file,
    "CHAT": known.chat,
    "DTYPE": None if known.dtype == "float32" else known.dtype,
    "QUANTIZE": known.quantize,
  }
  mine = gin_files.bound_by_user(options.gin_file)
  return [
    f"{name}={value!r}"
    for name, value in found.items()
    if value is not None and name not in mine
  ]

"""The verbs of `tpv`, each a module of this room that is imported when it is called.

A new verb is a module that satisfies `Verb`, and a line in `GROUPS`.
"""

import argparse
import importlib
import inspect
from typing import Protocol, cast, runtime_checkable

from tpv_jax.cli.arguments import Parser

GROUPS = {
  "train and evaluate": {
    "init": ("tpv_jax.cli.init", "a file of settings for a model and your tasks"),
    "train": ("tpv_jax.cli.train", "tune a soft prompt on a frozen backbone"),
    "bank": ("tpv_jax.cli.bank", "tune many soft prompts at once"),
    "eval": ("tpv_jax.cli.eval", "score prompts, vectors or no prompt on tasks"),
    "infer": ("tpv_jax.cli.infer", "answer each line of a text file"),
    "diagnose": ("tpv_jax.cli.diagnose", "say why a prompt does not learn"),
  },
  "studies": {
    "study": ("tpv_jax.cli.study", "measure arithmetic on task vectors"),
    "compare": ("tpv_jax.cli.compare", "compare finished studies row by row"),
    "few-shot": ("tpv_jax.cli.few_shot", "compare starts of few-shot tuning"),
    "merging": ("tpv_jax.cli.merging", "compare merge rules"),
    "moving": ("tpv_jax.cli.moving", "measure what makes vectors move and add"),
    "ablation": (
      "tpv_jax.cli.ablation",
      "compare plain tuning, DePT, EPT, EPT's parts",
    ),
  },
  "vectors": {
    "diff": ("tpv_jax.cli.diff", "the vector TUNED - INITIAL"),
    "sum": ("tpv_jax.cli.sum", "the sum of vectors"),
    "merge": ("tpv_jax.cli.merge", "one vector from several, by a merge rule"),
    "merge-by-data": (
      "tpv_jax.cli.merge_by_data",
      "the same by a rule that reads data",
    ),
    "negate": ("tpv_jax.cli.negate", "the vector -V, to forget a task"),
    "scale": ("tpv_jax.cli.scale", "the vector C * V"),
    "analogy": ("tpv_jax.cli.analogy", "the vector C + (B - A)"),
    "apply": ("tpv_jax.cli.apply", "the prompt INITIAL + C * V"),
    "fold": ("tpv_jax.cli.fold", "a DePT or EPT prompt in folded form"),
    "cosine": ("tpv_jax.cli.cosine", "the cosine of every pair"),
    "nearest": ("tpv_jax.cli.nearest", "vectors ranked by how near they are to V"),
    "conflicts": ("tpv_jax.cli.conflicts", "what stands in the way of merging"),
    "group": ("tpv_jax.cli.group", "groups of similar vectors, and a dendrogram"),
    "inspect": ("tpv_jax.cli.inspect", "heat maps of EPT's gates and fusion"),
    "show": ("tpv_jax.cli.show", "what a prompt or vector is"),
  },
  "models and files of other tools": {
    "import": ("tpv_jax.cli.import_", "another tool's prompt, as a file of ours"),
    "export": ("tpv_jax.cli.export", "a prompt as another tool's file"),
    "convert": ("tpv_jax.cli.convert", "a backbone in another tool's format"),
    "fetch": ("tpv_jax.cli.fetch", "a small pre-trained model, once, into the cache"),
    "prompts": ("tpv_jax.cli.prompts", "ready prompts: list, take out, check, pack"),
  },
  "tasks": {
    "tasks": (
      "tpv_jax.cli.tasks",
      "describe your own data, and list both papers' tasks",
    ),
  },
  "planning": {
    "plan": ("tpv_jax.cli.plan", "what each chip holds of a backbone on a mesh"),
    "budget": ("tpv_jax.cli.budget", "EPT's parameters and rank for a budget"),
  },
}
"""Group of the help -> verb -> its module and a line about it."""

VERBS = {name: verb for group in GROUPS.values() for name, verb in group.items()}


@runtime_checkable
class Verb(Protocol):
  """The module of a verb; its docstring is the description in its help.

  Attributes:
    EXAMPLES: example calls, as indented lines.
    ON_CPU: whether JAX uses only the CPU unless the user sets JAX_PLATFORMS: True for
      verbs that do not need an accelerator.
  """

  EXAMPLES: str
  ON_CPU: bool

  def add_arguments(self, parser: Parser) -> None:
    """Adds the verb's arguments to a parser that has --help and --debug."""

  def run(self, options: argparse.Namespace) -> int | None:
    """Runs the verb with the options; returns the exit code, None for 0."""


def load(name: str) -> Verb:
  """Returns the module of a verb."""
  module, _ = VERBS[name]
  return cast(Verb, importlib.import_module(module))


def parser_of(name: str) -> Parser:
  """Returns the parser of a verb's arguments."""
  verb = load(name)
  parser = Parser(
    prog=f"tpv {name}",
    description=inspect.cleandoc(verb.__doc__ or ""),
    epilog=f"examples:\n{verb.EXAMPLES}",
    formatter_class=argparse.RawDescriptionHelpFormatter,
  )
  parser.add_argument("--debug", action="store_true", help="show the trace of an error")
  verb.add_arguments(parser)
  return parser

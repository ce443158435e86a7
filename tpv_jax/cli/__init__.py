"""The console command `tpv`: all verbs behind one name, see `verbs`.

A verb's module is imported when the verb is called, and imports JAX and TensorFlow, if it
needs them, when it runs.
"""

import argparse
import os
import shlex
import sys
from collections.abc import Sequence
from typing import NoReturn

from tpv_jax.cli import gin_verb, verbs
from tpv_jax.cli.arguments import Parser
from tpv_jax.core.errors import (
  EXIT_USER_ERROR,
  UserError,
  end_at_once_on_interrupt,
  near_misses,
  raise_on_interrupt,
  run_command,
)
from tpv_jax.core.version import VERSION

_EXAMPLES = """\
  tpv train --gin_file=gin_configs/runs/embedded.gin \\
      --gin.TASK_NAME=topic --gin.RUN_DIR=runs/topic
  tpv eval --gin_file=gin_configs/runs/eval_embedded.gin \\
      --gin.PROMPT_PATH=runs/topic --gin.TASK_NAMES='[topic]'
  tpv diff runs/sst2 -o sst2.safetensors           a vector from a run folder
  tpv sum sst2.safetensors rte.safetensors -o both.safetensors
  tpv apply both.safetensors runs/sst2 -o prompt.safetensors
  tpv import peft_adapter -o other.safetensors     another tool's prompt
  tpv tasks prepare glue_sst2 --data-dir data      a paper's task, ready to train on
  tpv plan t5_v1_1_xxl --mesh 4x8                  what a pod's chips would hold"""


def main(arguments: Sequence[str] | None = None) -> int:
  """Runs one verb and returns its exit code: 0, 2 for bad input, 130 for Ctrl-C."""
  if arguments is None:
    end_at_once_on_interrupt()
    arguments = sys.argv[1:]
  try:
    verb, options = parse(arguments)
  except SystemExit as stop:  # --help, --version, or a wrong call, which is printed.
    return stop.code if isinstance(stop.code, int) else EXIT_USER_ERROR
  if verb.ON_CPU:
    os.environ.setdefault("JAX_PLATFORMS", "cpu")
  with_gin = "gin_file" in options

  def run() -> int | None:
    if not with_gin:  # A verb with gin files does this itself, after long imports.
      raise_on_interrupt()
    return verb.run(options)

  code = run_command(run, options.debug, "--gin." if with_gin else "--")
  if code and with_gin and options.multiprocess_gpu:
    # Exit at once: JAX's shutdown would wait for the processes that are lost.
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)
  return code


def parse(arguments: Sequence[str]) -> tuple[verbs.Verb, argparse.Namespace]:
  """Returns the verb that is called, and its options, whose `call` is the whole call.

  Raises:
    SystemExit: help or an error in the call has been printed.
  """
  name, *rest = arguments or [""]
  if name not in verbs.VERBS:
    _without_verb(arguments)
  parser = verbs.parser_of(name)
  if rest.count("--") > 1:  # argparse would make an empty list of the second one.
    parser.error("'--' is given twice; after the first one no word is an option")
  if parser.get_default("gin_file") is not None:
    rest = gin_verb.rewrite(rest)
  options = parser.parse_args(rest)
  options.call = shlex.join(["tpv", *arguments])
  return verbs.load(name), options


def _without_verb(arguments: Sequence[str]) -> NoReturn:
  """Prints the help, the version or an error, and exits."""
  parser = Parser(
    prog="tpv",
    usage="tpv VERB ...",
    description=f"Soft prompts on frozen language models, and task vectors.\n\n{_verbs()}",
    epilog=f"examples:\n{_EXAMPLES}\n\n'tpv VERB --help' explains a verb.",
    formatter_class=argparse.RawDescriptionHelpFormatter,
  )
  parser.add_argument("--version", action="version", version=f"tpv_jax {VERSION}")
  if not arguments:
    wrong = "No verb was given."
  elif arguments[0].startswith("-"):
    parser.parse_args(arguments)
    wrong = "A verb comes first."
  else:
    close = near_misses(arguments[0], verbs.VERBS)
    wrong = f"There is no verb '{arguments[0]}'.{close}"
  parser.exit(EXIT_USER_ERROR, f"error: {UserError(wrong)} 'tpv --help' lists them.\n")


def _verbs() -> str:
  """Returns the help's lines about all verbs, in groups."""
  width = max(map(len, verbs.VERBS)) + 1
  return "\n\n".join(
    "\n".join(
      [f"{group}:", *(f"  {name:<{width}}{line}" for name, (_, line) in its.items())]
    )
    for group, its in verbs.GROUPS.items()
  )

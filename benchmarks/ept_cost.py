"""Times a training step of plain prompt tuning against EPT at the same budget.

One step is forward, backward, and AdamW's update of the prompt, as in the runner; the
backbone has random weights, so nothing is downloaded. Plain tuning has P prompt tokens;
EPT has S tokens and the largest rank that a budget of P x D parameters allows. All take
turns in one process, and ratios are taken within a round, so that a busy moment of the
machine affects all of them; plain tuning is timed twice per round to show the noise.
"""

import argparse
import sys
from collections.abc import Sequence
from typing import Any

import command
import gate
import jax
import numpy as np
import record
import weights

from tpv_jax.backbones.t5 import network, sizes
from tpv_jax.core import files, identity
from tpv_jax.core.errors import at_least
from tpv_jax.model import SoftPromptModel
from tpv_jax.prompts import budget, ept, plain
from tpv_jax.training import cost, optimizers

EXAMPLES = """\
examples:
  this machine's CPU, both sizes, in a few minutes:
    python benchmarks/ept_cost.py --output ept_cost.json
  a GPU, in bf16 with the paper's batch (these are the defaults there):
    python benchmarks/ept_cost.py --dtype bfloat16 --batch 32 --repetitions 50 \\
      --output benchmarks/results/ept-cost-gpu-<date>.json
  another backbone:
    python benchmarks/ept_cost.py --size t5_v1_1_large --batch 1
"""

PLAIN = "plain"
SOURCE_LENGTH = 256
PACKAGES = ("tpv_jax", "jax", "jaxlib", "flax", "optax", "numpy")
DEFAULTS = {
  "cpu": {"batch": 1, "dtype": "float32", "repetitions": 15},
  "other": {"batch": 32, "dtype": "bfloat16", "repetitions": 50},
}
"""The defaults of options, on the CPU and on an accelerator."""


def main(argv: Sequence[str] | None = None) -> int:
  """Measures, prints a table, writes JSON; returns the exit code."""
  parser = command.parser(__doc__ or "", EXAMPLES)
  parser.add_argument(
    "--size",
    action="append",
    choices=sorted(sizes.SIZES | sizes.TINY),
    metavar="SIZE",
    help="a backbone of tpv_jax.backbones.t5.sizes (repeatable); by default t5_v1_0_small "
    "and t5_v1_0_base",
  )
  defaults = "; by default {cpu} on the CPU and {other} elsewhere"
  for name, kind, text in (
    ("batch", int, "rows of a batch"),
    ("dtype", str, "float32 or bfloat16, of the computation"),
    ("repetitions", int, "timed rounds"),
  ):
    given = {device: values[name] for device, values in DEFAULTS.items()}
    parser.add_argument(f"--{name}", type=kind, help=text + defaults.format(**given))
  parser.add_argument(
    "--prompt-length", type=int, default=100, help="P of plain tuning"
  )
  parser.add_argument(
    "--short-length",
    type=int,
    nargs="+",
    default=[20, 40, 60],
    help="S of EPT, one or several",
  )
  parser.add_argument(
    "--source-length", type=int, default=SOURCE_LENGTH, help="M, all of it filled"
  )
  parser.add_argument("--target-length", type=int, default=8, help="L, target tokens")
  return command.run(parser, "ept_cost.py", run, argv)


def run(options: argparse.Namespace, called: str) -> None:
  """Measures every size that the options ask for, and reports.

  Raises:
    UserError: options that do not fit, or an output that exists.
  """
  command.fill(options, DEFAULTS)
  for name in ("batch", "prompt_length", "source_length", "target_length"):
    at_least(name, getattr(options, name), 1)
  if options.output:
    files.check_output(options.output, options.overwrite)
  results = {}
  for size in options.size or ["t5_v1_0_small", "t5_v1_0_base"]:
    numbers: dict[str, Any] = (sizes.SIZES | sizes.TINY)[size] | {
      "dtype": options.dtype
    }
    results[size] = measure(network.Transformer(**numbers), options)
    print_table(size, results[size])
  if options.output:
    files.write_json(options.output, report(options, called, results))
    print(f"Wrote '{options.output}'.")


def measure(
  transformer: network.Transformer, options: argparse.Namespace
) -> dict[str, Any]:
  """Returns the cost of plain tuning and of EPT with each short prompt, as JSON.

  Raises:
    UserError: a short prompt for which the budget is too small.
  """
  features, source = transformer.emb_dim, options.source_length
  modules: dict[str, plain.Prompt | ept.EPT] = {
    PLAIN: plain.Prompt(options.prompt_length, features)
  }
  for short in options.short_length:
    form = {"fusion_width": 4, "spaces": 4, "bottleneck": 1}
    rank = budget.rank(
      tokens=options.prompt_length,
      length=short,
      features=features,
      source_length=source,
      **form,
    )
    modules[f"ept S={short}"] = ept.EPT(short, features, source, rank, **form)
  optimizer = optimizers.adamw(weight_decay=1e-5)
  models = {
    name: SoftPromptModel(transformer, module, None, None, optimizer)
    for name, module in modules.items()
  }
  backbone = identity.unflatten(
    {
      path: leaf.astype(transformer.stored(path, leaf.dtype))
      for path, leaf in weights.drawn(transformer).items()
    }
  )
  rng = np.random.default_rng(0)
  long_prompt = rng.standard_normal((options.prompt_length, features), np.float32)
  costs = cost.measure(
    {
      name: (models[name], module.initial_leaves(long_prompt, 0))
      for name, module in modules.items()
    },
    backbone,
    batch(rng, transformer.vocab_size, options),
    options.repetitions,
    ready=gate.wait,
  )
  rows = cost.summary(costs)
  for name, module in modules.items():
    rows[name]["prompt_tokens"] = module.length
    rows[name]["rank"] = getattr(module, "rank", 0)
  return rows


def batch(
  rng: np.random.Generator, vocabulary: int, options: argparse.Namespace
) -> dict[str, np.ndarray]:
  """Returns a batch of random tokens without padding."""
  rows = options.batch

  def tokens(length: int) -> np.ndarray:
    return rng.integers(1, vocabulary, (rows, length), np.int32)

  targets = tokens(options.target_length)
  return {
    "encoder_input_tokens": tokens(options.source_length),
    "decoder_input_tokens": np.pad(targets, ((0, 0), (1, 0)))[:, :-1],
    "decoder_target_tokens": targets,
    "decoder_loss_weights": np.ones(targets.shape, np.float32),
  }


def print_table(size: str, rows: dict[str, Any]) -> None:
  """Prints one line for each prompt."""
  print(f"{size}: a step's seconds, and ratios to plain tuning (median, quartiles)")
  for name, row in rows.items():
    seconds, ratio = row["seconds"], row["time_ratio"]
    print(
      f"  {name:<14}{row['parameters']:>9,} parameters  {seconds['median']:.4f} s  "
      f"time {ratio['median']:.3f} ({ratio['lower_quartile']:.3f} to "
      f"{ratio['upper_quartile']:.3f})  flops {row['flops_ratio']:.3f}  "
      f"{row['temporary_mebibytes']:.0f} MiB"
    )


def report(
  options: argparse.Namespace, called: str, results: dict[str, Any]
) -> dict[str, Any]:
  """Returns the results with all that is needed to run them again."""
  settings = ("batch", "dtype", "repetitions", "prompt_length", "short_length")
  return {
    **record.made(called),
    "device": jax.devices()[0].device_kind,
    "settings": {
      name: getattr(options, name)
      for name in (*settings, "source_length", "target_length")
    },
    "versions": record.versions(PACKAGES),
    "results": results,
  }


if __name__ == "__main__":
  sys.exit(main())

"""Measures the gain of each part of the fast training step, changing one at a time.

A step is the runner's own (`training.steps`): forward, backward and AdamW's update of a
prompt of P tokens before random sources without padding; the backbone has random
weights. Each variant changes one part of the step; all take turns in one process, and
ratios are taken within a round. Memory and flops are XLA's analysis of the compiled step,
so they are valid on a busy machine as well.
"""

import argparse
import contextlib
import sys
import time
from collections.abc import Callable, Sequence
from typing import Any
from unittest import mock

import command
import gate
import jax
import jax.numpy as jnp
import numpy as np
import profiles
import record
import weights
from jax.sharding import Mesh

from tpv_jax import model as model_lib
from tpv_jax.backbones import layers
from tpv_jax.backbones.attention import MASKED
from tpv_jax.backbones.t5 import attention, network, sizes
from tpv_jax.core import files
from tpv_jax.core.errors import UserError, at_least
from tpv_jax.data import batches
from tpv_jax.devices import partitioning, processes
from tpv_jax.prompts import plain
from tpv_jax.training import optimizers, steps

EXAMPLES = """\
examples:
  this machine's CPU, in a few minutes:
    python benchmarks/step_parts.py --output step-parts.json
  the loss of long targets, T5-base:
    python benchmarks/step_parts.py --size base --batch 32 --source-length 64 \\
      --target-length 64 --only now logits --rounds 0
  a GPU (these are the defaults there: T5-base, bf16, 64 rows):
    python benchmarks/step_parts.py --output $OUT/step-parts-gpu.json
"""

PACKAGES = ("tpv_jax", "jax", "jaxlib", "flax", "optax", "numpy")
DEFAULTS = {
  "cpu": {"size": "small", "dtype": "float32", "batch": 8, "rounds": 10},
  "other": {"size": "base", "dtype": "bfloat16", "batch": 64, "rounds": 30},
}
"""The defaults of options, on the CPU and on an accelerator."""

NOW = "now"


def plain_attention(queries: Any, keys: Any, values: Any, mask: Any, bias: Any) -> Any:
  """Returns the result of `attention.attention`, with JAX's own backward pass."""
  logits = jnp.einsum(
    "bqhk,bshk->bhqs", queries, keys, preferred_element_type=jnp.float32
  )
  logits = logits if bias is None else logits + bias
  weights = jax.nn.softmax(jnp.where(mask, logits, MASKED))
  return jnp.einsum("bhqs,bshk->bqhk", weights.astype(queries.dtype), values)


def plain_projection(x: Any, kernel: Any) -> Any:
  """Returns the result of `layers.project_to_fp32`, with JAX's own backward pass."""
  return jnp.dot(x, kernel, preferred_element_type=jnp.float32)


class FusedAttention(attention.Attention):
  """Attention by `jax.nn.dot_product_attention`."""

  implementation = "xla"

  def __call__(self, x, keys_values, mask, bias, deterministic):
    """See `attention.Attention`; dropout is left out."""
    keys, values = keys_values
    gathered = jax.nn.dot_product_attention(
      self._heads(self.query(x)),
      keys,
      values,
      bias=None if bias is None else bias.astype(keys.dtype),
      mask=jnp.broadcast_to(mask, (len(x), 1, x.shape[1], keys.shape[1])),
      scale=1.0,
      implementation=self.implementation,
    )
    return self.out(gathered.reshape(*gathered.shape[:-2], -1))


class CudnnAttention(FusedAttention):
  """Attention by cuDNN's fused kernel."""

  implementation = "cudnn"


VARIANTS: dict[str, tuple[str, Callable[[], Any]]] = {
  NOW: ("the step as it is", contextlib.nullcontext),
  "logits": (
    "all logits at once",
    lambda: mock.patch.object(model_lib, "LOGITS_AT_ONCE", 2**62),
  ),
  "attention": (
    "attention's backward pass by JAX",
    lambda: mock.patch.object(attention, "attention", plain_attention),
  ),
  "projection": (
    "the output layer's backward pass by JAX",
    lambda: mock.patch.object(layers, "project_to_fp32", plain_projection),
  ),
  "xla": (
    "jax.nn.dot_product_attention",
    lambda: mock.patch.object(network, "Attention", FusedAttention),
  ),
  "cudnn": (
    "jax.nn.dot_product_attention by cuDNN (GPU)",
    lambda: mock.patch.object(network, "Attention", CudnnAttention),
  ),
  "remat": ("layers computed again in the backward pass", contextlib.nullcontext),
  "scan": ("ten steps in a call", contextlib.nullcontext),
  "fp32": ("a bf16 step whose backbone is stored in fp32", contextlib.nullcontext),
}

SCANNED = 10
"""The steps per call of the variant 'scan'."""


def main(argv: Sequence[str] | None = None) -> int:
  """Measures, prints a table, writes JSON; returns the exit code."""
  parser = command.parser(__doc__ or "", EXAMPLES)
  parser.add_argument("--size", help="small, base or large: T5 v1.0")
  parser.add_argument("--dtype", help="float32 or bfloat16")
  parser.add_argument("--batch", type=int, help="rows of a step")
  parser.add_argument("--rounds", type=int, help="timed rounds; 0 compiles only")
  parser.add_argument("--source-length", type=int, default=256, help="T")
  parser.add_argument("--target-length", type=int, default=8, help="L")
  parser.add_argument("--prompt-length", type=int, default=100, help="P")
  parser.add_argument(
    "--profile", action="store_true", help="name the largest kernels of each variant"
  )
  parser.add_argument(
    "--only", nargs="+", default=list(VARIANTS), metavar="VARIANT", help="some of them"
  )
  return command.run(parser, "step_parts.py", run, argv)


def run(options: argparse.Namespace, called: str) -> None:
  """Measures the variants that the options ask for, and reports.

  Raises:
    UserError: options that do not fit, or an output that exists.
  """
  command.fill(options, DEFAULTS)
  _check(options)
  jobs, rows = {}, {}
  for name in dict.fromkeys([NOW, *options.only]):
    try:
      jobs[name] = Job(name, options)
      rows[name] = jobs[name].row
    except Exception as error:  # This device or dtype does not support the variant.
      rows[name] = {"failed": " ".join(str(error).split())[:200]}
    print(f"{VARIANTS[name][0]:<46}{line_of(rows[name])}", flush=True)
  gate.wait()
  seconds: dict[str, list[float]] = {name: [] for name in jobs}
  for number in range(options.rounds + 2 if options.rounds else 0):
    for name in np.roll([*jobs], -number).tolist():
      taken = jobs[name].step()
      if number >= 2:
        seconds[name].append(taken)
  for name, taken in seconds.items():
    if taken:
      rows[name]["seconds"] = record.quartiles(taken)
      ratio = np.divide(taken, seconds[NOW]).tolist()
      rows[name]["time_ratio"] = record.quartiles(ratio)
      print(
        f"{VARIANTS[name][0]:<46}{rows[name]['seconds']['median']:.4f} s a step  "
        f"time {rows[name]['time_ratio']['median']:.3f} "
        f"({rows[name]['time_ratio']['lower_quartile']:.3f} to "
        f"{rows[name]['time_ratio']['upper_quartile']:.3f})"
      )
  if options.profile:
    for name, job in jobs.items():
      job.step()
      rows[name]["profile"] = found = profiles.of(job.step)
      print(f"{VARIANTS[name][0]}: the device is busy {found['busy_share']:.0%}")
      for kernel in found["largest"]:
        print(
          f"  {kernel['share']:>5.0%}  {kernel['runs']:>4} x  {kernel['name'][:70]}"
        )
  if options.output:
    _write(options, called, rows)


def _check(options: argparse.Namespace) -> None:
  for name in options.only:
    if name not in VARIANTS:
      raise UserError(
        f"There is no variant '{name}'. Choose some of {' '.join(VARIANTS)}."
      )
  for name in ("batch", "source_length", "target_length", "prompt_length"):
    at_least(name, getattr(options, name), 1)
  if options.output:
    files.check_output(options.output, options.overwrite)


def _write(
  options: argparse.Namespace, called: str, rows: dict[str, dict[str, Any]]
) -> None:
  settings = {
    name: value
    for name, value in vars(options).items()
    if name not in ("output", "overwrite", "debug", "only")
  }
  written = {
    **record.made(called),
    "device": jax.devices()[0].device_kind,
    "settings": settings,
    "versions": record.versions(PACKAGES),
    "variants": {name: VARIANTS[name][0] for name in rows},
    "results": rows,
  }
  files.write_json(options.output, written)
  print(f"Wrote '{options.output}'.")


class Job:
  """A compiled variant with its arguments; `row` has its cost."""

  def __init__(self, name: str, options: argparse.Namespace):
    numbers: dict[str, Any] = dict(
      (sizes.TINY | sizes.SIZES)[f"t5_v1_0_{options.size}"]
    )
    transformer = network.Transformer(
      **numbers, dtype=options.dtype, remat=name == "remat"
    )
    prompt = plain.Prompt(options.prompt_length, transformer.emb_dim)
    model = model_lib.SoftPromptModel(
      transformer, prompt, None, None, optimizers.adamw(weight_decay=1e-5)
    )
    device = np.asarray(jax.devices()[:1]).reshape(1, 1)
    mesh = Mesh(device, (partitioning.DATA, partitioning.MODEL))
    built = steps.build(model, optimizers.constant(1e-6), 1, mesh)
    rng = np.random.default_rng(0)
    frozen = weights.drawn(transformer)
    trainable = {
      "prompt/prompt": rng.uniform(
        -0.5, 0.5, (options.prompt_length, transformer.emb_dim)
      ).astype(np.float32)
    }
    everywhere = partitioning.replicated(mesh)
    stored = (lambda path, dtype: dtype) if name == "fp32" else transformer.stored
    self.frozen = {
      path: processes.put(leaf.astype(stored(path, leaf.dtype)), everywhere)
      for path, leaf in frozen.items()
    }
    self.state = built.initialise(trainable)
    self.steps = SCANNED if name == "scan" else 1
    tokens = [
      rng.integers(3, transformer.vocab_size, (options.batch, length), np.int32)
      for length in (options.source_length, options.target_length)
    ]
    self.batches = steps.put_batches(built, [batches.features(*tokens)] * self.steps)
    self.rng = jax.random.key(0)
    began = time.perf_counter()
    with VARIANTS[name][1]():
      lowered = built.train.lower(self.state, self.frozen, self.batches, self.rng)
    self.call = lowered.compile()
    memory: Any = self.call.memory_analysis()
    analysis: Any = self.call.cost_analysis()
    self.row: dict[str, Any] = {
      "compile_s": round(time.perf_counter() - began, 2),
      "temporary_mebibytes": memory.temp_size_in_bytes >> 20,
      "argument_mebibytes": memory.argument_size_in_bytes >> 20,
      "aliased_bytes": memory.alias_size_in_bytes,
      # XLA counts one pass of a loop, such as that over steps.
      "gigaflops": round(analysis["flops"] / 1e9, 1),
      "gigabytes_accessed": round(analysis["bytes accessed"] / 1e9, 2),
    }

  def step(self) -> float:
    """Runs a call and returns its seconds per step."""
    began = time.perf_counter()
    self.state, report = self.call(self.state, self.frozen, self.batches, self.rng)
    jax.block_until_ready((self.state, report))
    self.row.setdefault("loss", float(report["loss"][0]))
    return (time.perf_counter() - began) / self.steps


def line_of(row: dict[str, Any]) -> str:
  """Returns a variant's line of the table: memory, flops and compile time."""
  if "failed" in row:
    return f"does not work here: {row['failed'][:80]}"
  return (
    f"{row['temporary_mebibytes']:>6,} MiB beside arguments of "
    f"{row['argument_mebibytes']:,}  {row['gigaflops']:>8,.1f} GFLOP  "
    f"{row['gigabytes_accessed']:>6.2f} GB  compiled in {row['compile_s']:.0f} s"
  )


if __name__ == "__main__":
  sys.exit(main())

"""Compares this machine's accelerator with its CPU: logits, and steps of training.

A prompt for a task of the embedded backbone is tuned on the device, once more on the
device, in packed rows, and on the CPU, from the same start on the same examples. In fp32
products are exact ("highest" precision), so that the two agree but for the order of sums.
"""

import argparse
import sys
from collections.abc import Sequence
from typing import Any

import command
import jax
import numpy as np
import record
from jax.sharding import Mesh

from tpv_jax.backbones import loading, networks
from tpv_jax.banks import bank_steps
from tpv_jax.core import files, identity
from tpv_jax.data import packing, row_shapes, vocabularies
from tpv_jax.devices import partitioning, processes
from tpv_jax.embedded import suite
from tpv_jax.model import SoftPromptModel
from tpv_jax.prompts import plain
from tpv_jax.training import optimizers, steps
from tpv_jax.training.task_data import TaskData

EXAMPLES = """\
examples:
  on a machine with a GPU or TPU:
    python benchmarks/device_check.py --output device-check.json
"""

BACKBONE, TASK, LENGTH, BATCH = "embedded", "topic", 20, 16
TRAINED = "prompt/prompt"
RATE = optimizers.constant(0.3)
PACKAGES = ("tpv_jax", "jax", "jaxlib", "flax", "optax", "numpy")
MOST = {"float32": (1e-4, 1e-2), "bfloat16": (0.1, 0.2)}
"""dtype -> the most that logits (in their standard deviations) and losses may differ.

Losses of later steps differ more than logits, as a prompt's differences grow with steps.
"""


def main(argv: Sequence[str] | None = None) -> int:
  """Compares, prints a table, writes JSON; returns 1 if the device differs too much."""
  parser = command.parser(__doc__ or "", EXAMPLES)
  parser.add_argument("--steps", type=int, default=20, help="of training")
  return command.run(parser, "device_check.py", run, argv)


def run(options: argparse.Namespace, called: str) -> int:
  """Compares in both dtypes, and reports.

  Raises:
    UserError: an output that exists.
  """
  if options.output:
    files.check_output(options.output, options.overwrite)
  jax.config.update("jax_default_matmul_precision", "highest")
  results = {dtype: compared(dtype, options.steps) for dtype in MOST}
  for dtype, found in results.items():
    print(f"{dtype}: " + ", ".join(f"{name} {value}" for name, value in found.items()))
  if options.output:
    written = {
      **record.made(called),
      "device": jax.devices()[0].device_kind,
      "versions": record.versions(PACKAGES),
      "results": results,
    }
    files.write_json(options.output, written)
    print(f"Wrote '{options.output}'.")
  return 0 if all(found["agrees"] for found in results.values()) else 1


def compared(dtype: str, number: int) -> dict[str, Any]:
  """Returns by how much the device's numbers differ from the CPU's, in one dtype."""
  network = networks.network(BACKBONE, dtype=dtype)
  params = loading.load_backbone(BACKBONE, network).params
  vocabulary = vocabularies.embedded()
  model = SoftPromptModel(
    network,
    plain.Prompt(LENGTH, network.emb_dim),
    vocabulary,
    vocabulary,
    optimizers.adamw(weight_decay=1e-5),
  )
  data = TaskData(suite.task(TASK), vocabulary, suite.LENGTHS, BATCH)
  batches = [data.batch_at(step) for step in range(number)]
  rng = np.random.default_rng(0)
  prompt = rng.uniform(-0.5, 0.5, (LENGTH, network.emb_dim)).astype(np.float32)
  device, cpu = jax.devices()[0], jax.devices("cpu")[0]
  here, there = (logits(network, params, batches[0], one) for one in (device, cpu))
  tune = [Tuning(model, params, prompt, batches, one) for one in (device, device, cpu)]
  once, again, on_cpu = (one.static() for one in tune)
  packed, _ = tune[0].packed()
  apart = {
    "logits": float(np.abs(here - there).max() / there.std()),
    "losses": relative(once[0], on_cpu[0]),
    "packed_losses": relative(packed, once[0]),
  }
  of_logits, of_losses = MOST[dtype]
  agrees = apart["logits"] < of_logits
  agrees &= max(apart["losses"], apart["packed_losses"]) < of_losses
  return {
    **{name: float(f"{value:.3g}") for name, value in apart.items()},
    "same_bits_again": once[1].tobytes() == again[1].tobytes(),
    "first_and_last_loss": [round(float(once[0][step]), 5) for step in (0, -1)],
    "agrees": bool(agrees),
  }


def relative(found: np.ndarray, expected: np.ndarray) -> float:
  """Returns the largest difference of losses, over the first loss."""
  return float(np.abs(found - expected).max() / expected[0])


def logits(network: Any, params: Any, batch: Any, device: Any) -> np.ndarray:
  """Returns the logits of a batch, computed on a device."""
  features = [
    batch[f"{part}_tokens"]
    for part in ("encoder_input", "decoder_input", "decoder_target")
  ]
  placed = jax.device_put((params, features), device)
  run = jax.jit(lambda params, inputs: network.apply({"params": params}, *inputs))
  return np.asarray(run(*placed), np.float32)


class Tuning:
  """Steps of one prompt on one device."""

  def __init__(
    self, model: Any, params: Any, prompt: np.ndarray, batches: Any, device: Any
  ):
    self.model, self.prompt, self.batches = model, prompt, batches
    self.device = device
    axes = (partitioning.DATA, partitioning.MODEL)
    self.mesh = Mesh(np.asarray([device]).reshape(1, 1), axes)
    self.everywhere = partitioning.replicated(self.mesh)
    self.frozen = {
      path: processes.put(
        leaf.astype(model.network.stored(path, leaf.dtype)), self.everywhere
      )
      for path, leaf in identity.flatten(params).items()
    }

  def static(self) -> tuple[np.ndarray, np.ndarray]:
    """Returns the losses of all steps and the tuned prompt, an example in each row."""
    with jax.default_device(self.device):
      built = steps.build(self.model, RATE, 1, self.mesh)
      state = built.initialise({TRAINED: processes.put(self.prompt, self.everywhere)})
      state, report = built.train(
        state, self.frozen, steps.put_batches(built, self.batches), jax.random.key(0)
      )
      return np.asarray(report["loss"]), np.asarray(state.trainable[TRAINED])

  def packed(self) -> tuple[np.ndarray, np.ndarray]:
    """Returns the same of a bank of one prompt, in packed rows."""
    items = [packing.items(batch, 0) for batch in self.batches]
    sizes = [[(len(one.source), len(one.target)) for one in step] for step in items]
    shapes = row_shapes.choose_shapes(sizes, len(self.prompt), suite.LENGTHS)
    with jax.default_device(self.device):
      bank = bank_steps.build(self.model, RATE, self.mesh)
      stacked = processes.put(self.prompt[None], bank.stacked[TRAINED])
      state = bank.initialise({TRAINED: stacked})
      losses = []
      for step in items:
        calls = [call for _, call in packing.pack(step, shapes)]
        rates = np.ones(1, np.float32)
        state, report = bank_steps.train_step(bank, state, self.frozen, calls, rates)
        losses.append(report["loss"])
      found = np.concatenate([np.asarray(loss) for loss in losses])
      return found, np.asarray(state.trainable[TRAINED])[0]


if __name__ == "__main__":
  sys.exit(main())

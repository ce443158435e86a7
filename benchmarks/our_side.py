"""Our side of `against_peft.py`: prompts, trained and evaluated by the runner's own code.

Not a command by itself. Imports neither TensorFlow nor seqio nor gin, and works without
clu, tqdm, tensorboardX and orbax.
"""

import dataclasses
import pathlib
import sys
from typing import Any

import jax
import numpy as np
import record
import side
import weights
from jax.sharding import Mesh

PACKAGES = ("tpv_jax", "jax", "jaxlib", "flax", "optax", "numpy", "clu")


sys.path.insert(0, str(pathlib.Path(__file__).parents[1]))

from safetensors.numpy import load_file  # noqa: E402

from tpv_jax.backbones import quantization, registry  # noqa: E402
from tpv_jax.banks import bank_steps  # noqa: E402
from tpv_jax.core import identity  # noqa: E402
from tpv_jax.data import batches, packing, row_shapes  # noqa: E402
from tpv_jax.devices import partitioning, processes  # noqa: E402
from tpv_jax.evaluation.evaluator import Evaluator  # noqa: E402
from tpv_jax.model import SoftPromptModel  # noqa: E402
from tpv_jax.prompts import plain  # noqa: E402
from tpv_jax.training import optimizers  # noqa: E402
from tpv_jax.training import steps as solo_steps  # noqa: E402

TRAINED = "prompt/prompt"


class Ours:
  """Trains one prompt (`rows` 'static'), or a bank of them (`rows` 'packed').

  With `evaluate` 'one pass' or 'generate', it evaluates many prompts instead. With `rows`
  'none', it only writes the random backbone that all jobs read.
  """

  def __init__(self, job: dict[str, Any]):
    if job["check"]:
      jax.config.update("jax_default_matmul_precision", "highest")
    self.job = job
    numbers = {
      name: tuple(value) if isinstance(value, list) else value
      for name, value in job["numbers"].items()
    }
    if job.get("quantize"):
      numbers["quantize"] = job["quantize"]
    self.network = registry.family(job["family"]).network(**numbers, dtype=job["dtype"])
    self.device = f"{jax.default_backend()}: {jax.devices()[0].device_kind}"
    self.versions = record.versions(PACKAGES)
    self.notes: dict[str, Any] = {}
    if job["rows"] == "none":
      weights.write(self.network, pathlib.Path(job["weights"]))
      return
    self.model = SoftPromptModel(
      self.network,
      plain.Prompt(job["prompt_length"], self.network.emb_dim),
      None,
      None,
      optimizers.adamw(weight_decay=job["weight_decay"]),
    )
    device = np.asarray(jax.devices()[:1]).reshape(1, 1)
    self.mesh = Mesh(device, (partitioning.DATA, partitioning.MODEL))
    everywhere = partitioning.replicated(self.mesh)
    # Weights are on the device in the dtype of the computation, as PEFT's are.
    self.frozen = {
      path: processes.put_leaf(
        quantization.stored(self.network, path, leaf), everywhere
      )
      for path, leaf in load_file(job["weights"]).items()
    }
    if job["evaluate"]:
      lengths = {"inputs": job["source_length"], "targets": job["new_tokens"]}
      self.evaluator = Evaluator(
        self.model,
        identity.unflatten(self.frozen),
        None,
        lengths,
        job["rows_of_a_call"],
        self.mesh,
        at_once=job["candidates"],
      )
      with np.load(job["examples"]) as file:
        self.candidates = side.candidates(file["prompts"], job["coefficients"])
      return
    self.rate = optimizers.constant(job["learning_rate"])
    with np.load(job["examples"]) as file:
      prompts = file["prompts"][: job["bank"]]
      sizes = np.stack(
        [np.count_nonzero(file[name], axis=-1) for name in ("sources", "targets")], -1
      )  # [rounds, groups, B, 2]
    if job["rows"] == "static":
      self.solo = solo_steps.build(self.model, self.rate, 1, self.mesh)
      self.state = self.solo.initialise(
        {TRAINED: processes.put(prompts[0], everywhere)}
      )
      return
    self.bank = bank_steps.build(self.model, self.rate, self.mesh)
    self.state = self.bank.initialise(
      {TRAINED: processes.put(prompts, self.bank.stacked[TRAINED])}
    )
    self.rates = np.ones(job["bank"], np.float32)
    self.shapes = row_shapes.choose_shapes(
      sizes.reshape(-1, job["bank"] * sizes.shape[2], 2).tolist(),
      job["prompt_length"],
      {"inputs": job["source_length"], "targets": job["target_length"]},
      most_positions=job.get("wide_positions"),
      device=bank_steps.packed_for(),
    )
    self.notes["shapes"] = {
      name: dataclasses.astuple(getattr(self.shapes, name))
      for name in ("wide", "short")
    }
    self.compiled = False

  def _compile_both_shapes(self) -> None:
    """Runs a call of each shape, as the first step may not have both."""
    folded = self.bank.fold(self.state.trainable)
    for shape in (self.shapes.wide, self.shapes.short):
      call = processes.put_all(packing.empty(shape), self.bank.rows)
      sums = self.bank.zeros(folded)
      jax.block_until_ready(self.bank.accumulate(sums, folded, self.frozen, call))

  def turn(
    self, sources: np.ndarray, targets: np.ndarray
  ) -> tuple[list[float], list[tuple[int, int, int]]]:
    """See `side.Trainer`."""
    if self.job["evaluate"]:
      return self._evaluate(sources, targets)
    if self.job["rows"] == "static":
      return self._static(sources, targets)
    if not self.compiled:
      self._compile_both_shapes()
      self.compiled = True
    size, calls, reports = self.job["bank"], [], []
    for first in range(0, len(sources), size):
      items = [
        item
        for prompt, group in enumerate(range(first, first + size))
        for item in packing.items(
          batches.features(sources[group], targets[group]), prompt
        )
      ]
      packed = packing.pack(items, self.shapes)
      calls += [
        self._call(shape.rows, shape.width, shape.targets) for shape, _ in packed
      ]
      # As the runner does: the next step is packed while the device works on this one.
      self.state, report = bank_steps.train_step(
        self.bank, self.state, self.frozen, [call for _, call in packed], self.rates
      )
      reports.append(report["loss"])
    jax.block_until_ready(self.state)
    return np.concatenate([np.asarray(losses) for losses in reports]).tolist(), calls

  def _evaluate(
    self, sources: np.ndarray, targets: np.ndarray
  ) -> tuple[list[float], list[tuple[int, int, int]]]:
    """Evaluates each task's candidates on its examples, in one pass."""
    most = self.job["new_tokens"]
    tasks = [
      batches.Tokenized(source, target[:, :most])
      for source, target in zip(sources, targets, strict=True)
    ]
    pairs = [
      ({"prompt": prompt}, task)
      for task, own in zip(tasks, self.candidates, strict=True)
      for prompt in own
    ]
    before = {
      name: counted.copy() for name, counted in self.evaluator.work.calls.items()
    }
    if self.job["evaluate"] == "generate":
      answers = self.evaluator.decode([(prompt, task.inputs) for prompt, task in pairs])
      losses = [float(tokens.sum()) for tokens in answers]
    else:
      found = self.evaluator.score([(prompt, task, None) for prompt, task in pairs])
      losses = [float(-scores.sum()) for scores, _ in found]
    calls = [
      self._call(*shape)
      for name, counted in self.evaluator.work.calls.items()
      for shape in (counted - before.get(name, type(counted)())).elements()
    ]
    return losses, calls

  def _static(
    self, sources: np.ndarray, targets: np.ndarray
  ) -> tuple[list[float], list[tuple[int, int, int]]]:
    groups, rows, length = sources.shape
    placed = solo_steps.put_batches(
      self.solo,
      [
        batches.features(source, target)
        for source, target in zip(sources, targets, strict=True)
      ],
    )
    self.state, report = self.solo.train(
      self.state, self.frozen, placed, jax.random.key(0)
    )
    jax.block_until_ready(self.state)
    joined = self.job["prompt_length"] + length
    call = self._call(rows, joined, targets.shape[2])
    return np.asarray(report["loss"]).tolist(), [call] * groups

  def _call(self, rows: int, joined: int, targets: int) -> tuple[int, int, int]:
    """Returns the call as `side.Trainer.turn` does: a LLaMA's row holds its targets."""
    if self.job["family"] == "llama":
      joined += targets
    return rows, joined, targets

  def product(self, size: int, times: int) -> None:
    """See `side.Trainer`."""
    if not hasattr(self, "_factors"):
      rng = np.random.default_rng(0)
      self._factors = [
        jax.device_put(rng.standard_normal((size, size), np.float32)).astype(
          self.job["dtype"]
        )
        for _ in range(2)
      ]
      self._product = jax.jit(jax.numpy.matmul)
    for _ in range(times):
      result = self._product(*self._factors)
    jax.block_until_ready(result)

  def device_peak(self) -> int | None:
    """See `side.Trainer`."""
    stats = jax.devices()[0].memory_stats()
    return stats["peak_bytes_in_use"] if stats else None


if __name__ == "__main__":
  side.serve(Ours)

"""Training, banks and evaluation run where there is little more than JAX."""

import os
import subprocess
import sys

MISSING = (
  *("gin", "clu", "tqdm", "sklearn", "tensorboardX", "sentencepiece"),
  *("matplotlib", "tensorflow", "seqio", "torch"),
)
"""Not rich, which Flax brings."""

CODE = f"""
import sys

sys.modules |= dict.fromkeys({MISSING!r})  # None: no such module.

import functools

from tpv_jax.backbones import loading, registry
from tpv_jax.banks import bank
from tpv_jax.core import identity
from tpv_jax.data import vocabularies
from tpv_jax.embedded import suite
from tpv_jax.evaluation.evaluator import Evaluator
from tpv_jax.formats import sources
from tpv_jax.model import SoftPromptModel
from tpv_jax.prompts import plain
from tpv_jax.training import initial, optimizers, training
from tpv_jax.training.task_data import TaskData

vocabulary = vocabularies.embedded()
backbone = loading.load_backbone("embedded")
flat = identity.flatten(backbone.params)
family = registry.of_leaves(flat, backbone.name)
network = family.network(**family.config_of(flat, backbone.name).numbers)
model = SoftPromptModel(
  network, plain.Prompt(4, network.emb_dim), vocabulary, vocabulary, optimizers.adamw()
)

def data(task):
  return TaskData(suite.task(task), vocabulary, suite.LENGTHS, 8, validation_examples=8)

settings = dict(
  total_steps=2, learning_rate=optimizers.constant(0.3), backbone=backbone,
  initial_prompt=functools.partial(initial.sampled_vocabulary, length=4),
)
training.train(model=model, data=data("topic"), run_dir="runs/alone", **settings)
entries = [bank.Entry(data(task), f"runs/{{task}}") for task in ("topic", "sentiment")]
bank.train_bank(model=model, entries=entries, **settings)
evaluator = Evaluator(model, backbone.params, vocabulary, suite.LENGTHS, progress=True)
cells = [
  (sources.load(f"runs/{{run}}").leaves, suite.task("topic"), "validation")
  for run in ("alone", "topic")
]
one, other = evaluator.evaluate_all(cells)
print(one.examples, one.scores == other.scores, "macro_f1" in one.scores)
"""


def test_a_prompt_and_a_bank_are_trained_and_scored(tmp_path):
  done = subprocess.run(
    [sys.executable, "-c", CODE],
    capture_output=True,
    text=True,
    env={**os.environ, "JAX_DISABLE_MOST_OPTIMIZATIONS": "1"},  # Compiles faster.
    check=False,
    cwd=tmp_path,
  )
  assert done.returncode == 0, done.stderr[-3000:]
  assert done.stdout.endswith("250 True True\n")
  assert "no events for TensorBoard" in done.stdout
  assert (tmp_path / "runs" / "alone" / "best_prompt.safetensors").is_file()
  assert not list((tmp_path / "runs").rglob("events*"))

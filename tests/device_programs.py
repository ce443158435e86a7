"""What programs for several devices bring together, and what runs on eight."""

import collections
import os
import pathlib
import re
import subprocess
import sys

# How programs are cut and what is moved between devices stays the same.
COMPILES_FASTER = (
  "--xla_backend_optimization_level=0 --xla_llvm_disable_expensive_passes=true"
)
MOVES = "all-gather|all-to-all|collective-permute"


def gathered(compiled):
  """Counts what a compiled program moves whole between devices: 'f32[3,48]' -> times."""
  text = compiled.as_text()
  # One array, or, where it is done in the background, a tuple that ends in it.
  found = re.findall(rf" = (\S+|\(.*?\)) (?:{MOVES})(?:-start)?\(", text)
  return collections.Counter(re.findall(r"\w+\[[\d,]*\]", one)[-1] for one in found)


def on_eight_devices(*words):
  """Returns what `python WORDS` prints, on eight simulated devices.

  WORDS are a script, or -m and a module, and its arguments.
  """
  eight = f"--xla_force_host_platform_device_count=8 {COMPILES_FASTER}"
  paths = [str(pathlib.Path(__file__).parent), os.environ.get("PYTHONPATH", "")]
  done = subprocess.run(
    [sys.executable, *map(str, words)],
    env={
      **os.environ,
      "XLA_FLAGS": f"{os.environ.get('XLA_FLAGS', '')} {eight}",
      "JAX_PLATFORMS": "cpu",
      "PYTHONPATH": os.pathsep.join(filter(None, paths)),
    },
    capture_output=True,
    text=True,
    check=False,
  )
  assert done.returncode == 0, (done.stdout + done.stderr)[-3000:]
  return done.stdout


def on_one_device(tiny, model):
  """Returns the training of one prompt in a few lines of JAX, without a runner."""
  import jax
  import jax.numpy as jnp

  from tpv_jax.core import identity

  backbone, made = tiny.backbone.params, model.optimizer_def.transformation

  @jax.jit
  def step(leaves, state, batch, rate):
    def loss(leaves):
      return model.loss_fn({**backbone, **identity.unflatten(leaves)}, batch, None)[0]

    value, gradient = jax.value_and_grad(loss)(leaves)
    direction, state = made.update(gradient, state, leaves)
    moved = {path: leaf + rate * direction[path] for path, leaf in leaves.items()}
    return moved, state, value

  def train(start, rate, batches):
    leaves = {f"prompt/{name}": jnp.asarray(leaf) for name, leaf in start.items()}
    state, losses = made.init(leaves), []
    for number, batch in enumerate(batches):
      leaves, state, value = step(leaves, state, batch, rate(number))
      losses.append(float(value))
    return losses, {path.removeprefix("prompt/"): leaves[path] for path in leaves}

  return train

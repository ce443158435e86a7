"""The estimate of a step against counts by hand, and a step of 8B parameters that lowers."""

import os
import subprocess
import sys

import pytest

from tpv_jax.model import SoftPromptModel
from tpv_jax.prompts import plain
from tpv_jax.training import estimate, plans

P, T, L, B = 4, 8, 2, 3


def work_of(tiny, layers, **numbers):
  def build(**layers):
    network = tiny.network.clone(**numbers, **layers)
    return SoftPromptModel(network, plain.Prompt(P, 16), None, None)

  return estimate.work(build, layers, B, T, L)


@pytest.mark.usefixtures("compiles_faster")
def test_flops_of_a_decoder_are_those_counted_by_hand(tiny_decoder):
  """Kernels are multiplied forward and backward, logits and attention as well."""
  found = work_of(tiny_decoder, {"num_layers": 3}).flops
  width, heads, kv, mlp, vocabulary = 16, 4 * 4, 2 * 4, 32, 32
  positions = B * (P + T + L)
  kernels = width * (2 * heads + 2 * kv + 3 * mlp)
  linear = 3 * positions * 2 * kernels * 2
  attention = 3 * B * (P + T + L) ** 2 * 2 * heads * 6  # 2 forward, 4 backward.
  logits = B * L * 2 * width * vocabulary * 2
  # The first layer's inputs are tokens too, to which no gradient flows: it is not known to
  # the count, as prompt and tokens are one array.
  assert found == linear + attention + logits


def test_layers_are_counted_as_if_all_were_traced(tiny):
  stacks = {"num_encoder_layers": 3, "num_decoder_layers": 2}
  found = work_of(tiny, stacks)
  model = SoftPromptModel(tiny.network.clone(**stacks), plain.Prompt(P, 16), None, None)
  assert (found.flops, found.kept) == estimate._traced(model, B, T, L)
  assert found.kept > 0


def test_a_step_is_split_until_its_rows_fit():
  chip = estimate.Chip("made up", (1, 1), memory=100, flops=1e3, bandwidth=10.0)
  done = estimate.Work(flops=8_000, kept=160)
  whole, split, none = (
    estimate.step(done, chip, (2, 1), 8, held) for held in (20, 75, 90)
  )
  # Two data-parallel chips keep 80 each, four rows, of which a row keeps 20.
  assert (whole.parts, whole.kept) == (1, 80)
  assert (split.parts, split.kept) == (4, 20)
  assert none.parts is None
  assert whole.seconds == pytest.approx(8_000 / (2 * 1e3 * estimate.UTILISATION))
  assert split.seconds == pytest.approx(2 * 4 * 75 / 10.0)  # Read again by each part.


LOWERED = """
import re, sys
import jax, jax.numpy as jnp, numpy as np
from jax.sharding import NamedSharding, PartitionSpec
from tpv_jax.backbones import quantization
from tpv_jax.core import identity
from tpv_jax.data import batches
from tpv_jax.devices import partitioning
from tpv_jax.training import optimizers, plans, steps

layers, mode = int(sys.argv[1]), sys.argv[2] if len(sys.argv) > 2 else None
model = plans.Planned("llama_3_1_8b", quantize=mode).model(num_layers=layers)
model.optimizer_def = optimizers.adamw()
mesh = partitioning.make_mesh(4)
assert dict(mesh.shape) == {"data": 2, "model": 4}
built = steps.build(model, optimizers.constant(0.01), 1, mesh)
trained, frozen = model.split(
  identity.unflatten(partitioning.layout(model, mesh).parameters)
)

def placed(path, leaf):
  shapes = jax.eval_shape(
    lambda leaf: quantization.stored(model.network, path, leaf),
    jax.ShapeDtypeStruct(leaf.shape, leaf.dtype),
  )
  return jax.tree.map(
    lambda part: jax.ShapeDtypeStruct(
      part.shape, part.dtype, sharding=partitioning.that_fits(leaf.sharding, part.shape)
    ),
    shapes,
  )

frozen = {path: placed(path, leaf) for path, leaf in frozen.items()}
state = jax.eval_shape(built.initialise, trained)
shardings = steps.state_shardings(
  model.optimizer_def, state, trained, partitioning.replicated(mesh)
)
state = jax.tree.map(
  lambda leaf, sharding: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding),
  state, shardings,
)
rows = NamedSharding(mesh, PartitionSpec(None, "data"))
features = batches.features(np.ones((16, 256), np.int32), np.ones((16, 16), np.int32))
features = {
  name: jax.ShapeDtypeStruct((1, *x.shape), x.dtype, sharding=rows)
  for name, x in features.items()
}
rng = jax.eval_shape(lambda: jax.random.key(0))
text = built.train.lower(state, frozen, features, rng).as_text()
kind = "i8" if mode else "bf16"
cut = re.findall(
  rf'tensor<4096x14336x{kind}> {{[^}}]*?sharding<@mesh, \\[{{}}, {{"model"}}\\]>', text
)
print(len(cut), text.count("stablehlo.dot_general"))
"""


def lowered(*arguments):
  """Returns how many kernels are cut along 'model', and the number of matrix products."""
  done = subprocess.run(
    [sys.executable, "-c", LOWERED, *arguments],
    env={**os.environ, "XLA_FLAGS": "--xla_force_host_platform_device_count=8"},
    capture_output=True,
    text=True,
  )
  assert done.returncode == 0, done.stderr
  return tuple(map(int, done.stdout.split()))


def test_a_step_of_the_widths_of_8b_lowers_for_two_by_four_chips():
  cut, products = lowered("1", "int8")
  assert cut == 2  # Gate and up of the layer.
  assert products > 15


@pytest.mark.slow
@pytest.mark.parametrize("mode", [(), ("int8",)])
def test_a_step_of_8b_lowers_for_two_by_four_chips(mode):
  assert lowered("32", *mode)[0] == 64


def test_a_quantised_backbone_holds_what_its_parts_take():
  whole, small, tiny = (
    plans.Planned("llama_3_1_8b", quantize=mode).on(1, 1).leaves
    for mode in (None, "int8", "int4")
  )

  def held(leaves):
    return sum(x.size for x in leaves if not x.path.startswith("prompt/"))

  kernels = 32 * (2 * 4096 * 4096 + 2 * 4096 * 1024 + 3 * 4096 * 14336)
  outputs = 32 * (3 * 4096 + 2 * 1024 + 2 * 14336)
  assert held(whole) == 8_030_261_248 * 2
  left = (8_030_261_248 - kernels) * 2
  assert held(small) == left + kernels + 2 * outputs
  assert held(tiny) == left + kernels // 2 + 2 * kernels // 32

"""An EPT prompt cut over simulated devices: where its parts lie, and its numbers."""

import json

import device_programs
import jax
import numpy as np
import pytest
from jax.sharding import Mesh

from tpv_jax.backbones.t5 import network
from tpv_jax.core import identity
from tpv_jax.data import batches
from tpv_jax.devices import partitioning, processes
from tpv_jax.model import SoftPromptModel
from tpv_jax.prompts import ept, plain
from tpv_jax.training import optimizers, steps

WIDTH, SHORT, SOURCE = 48, 5, 13
STEPS, ROWS = 3, 8
PROMPTS = {
  "plain": plain.Prompt(SHORT, WIDTH, SOURCE),
  "dept": ept.EPT(SHORT, WIDTH, SOURCE, rank=3),
  "ept": ept.EPT(SHORT, WIDTH, SOURCE, rank=3, fusion_width=2, spaces=5, bottleneck=7),
}
RATES = {"prompt": 1.0, "low_rank": 0.1, "fusion": 0.1, "spaces": 0.1}
# With its usual eps Adam divides gradients near zero, which are rounding, by their size.
OPTIMIZER = optimizers.by_group(
  optimizers.adamw(eps=1e-3, weight_decay=0.01, clip_norm=1.0), RATES
)

TOLERANCE = 2e-5
"""Of a leaf's largest value, after three steps whose fp32 sums are taken in other order.

Seen: 2e-6.
"""


class Run:
  """Three steps of two micro-batches on a mesh, from fixed random values."""

  def __init__(self, kind, mesh):
    self.model = SoftPromptModel(
      network.Transformer(
        vocab_size=64,
        emb_dim=WIDTH,
        num_heads=4,
        head_dim=8,
        num_encoder_layers=1,
        num_decoder_layers=1,
        mlp_dim=32,
      ),
      PROMPTS[kind],
      None,
      None,
      optimizer_def=OPTIMIZER,
    )
    self.steps = steps.build(self.model, optimizers.constant(0.01), 2, mesh)
    shapes = partitioning.layout(self.model, mesh).parameters
    rng = np.random.default_rng(0)
    leaves = {
      path: processes.put(
        0.3 * rng.standard_normal(leaf.shape, np.float32), leaf.sharding
      )
      for path, leaf in shapes.items()
    }
    trainable, self.frozen = self.model.split(identity.unflatten(leaves))
    self.state = self.steps.initialise(trainable)
    drawn = [rng.integers(1, 60, (2, ROWS, 12)).astype(np.int32) for _ in range(STEPS)]
    self.batches = steps.put_batches(
      self.steps, [batches.features(one[0], one[1, :, :4]) for one in drawn]
    )
    lowered = self.steps.train.lower(
      self.state, self.frozen, self.batches, jax.random.key(0)
    )
    self.compiled = lowered.compile()

  def shares(self):
    """Shapes of the trained leaves' and their moments' parts on a device, by name."""
    state = {
      **{path: (path, leaf) for path, leaf in self.state.trainable.items()},
      **{
        jax.tree_util.keystr(path): (path[-1].key, leaf)
        for path, leaf in jax.tree_util.tree_leaves_with_path(self.state.optimizer)
        if leaf.ndim
      },
    }
    return {
      name: [path, leaf.shape, leaf.sharding.shard_shape(leaf.shape)]
      for name, (path, leaf) in state.items()
    }

  def after(self):
    """The losses, and the trained leaves after the steps."""
    state, report = self.compiled(
      self.state, self.frozen, self.batches, jax.random.key(0)
    )
    return {"loss": report["loss"], **state.trainable}


def main():
  """Prints what runs on one device and on eight have to show, as JSON."""
  one = Mesh(np.asarray(jax.devices()[:1]).reshape(1, 1), ("data", "model"))
  found = {}
  for kind in PROMPTS:
    run = Run(kind, partitioning.make_mesh(model_parallel=4))
    found[kind] = {
      "shares": run.shares(),
      "gathered": device_programs.gathered(run.compiled),
      "after": [
        {name: np.asarray(leaf).tolist() for name, leaf in one_run.after().items()}
        for one_run in ((Run(kind, one), run) if kind != "plain" else ())
      ],
    }
  print(json.dumps(found))


@pytest.fixture(scope="module")
def found():
  printed = device_programs.on_eight_devices(__file__)
  return json.loads(printed.splitlines()[-1])


@pytest.mark.parametrize(("kind", "leaves"), [("plain", 0), ("dept", 2), ("ept", 7)])
def test_what_has_the_width_is_cut_and_its_two_moments(found, kind, leaves):
  cut = []
  for name, (path, whole, share) in found[kind]["shares"].items():
    if share != whole:
      assert share == [size // 4 if size == WIDTH else size for size in whole], name
      cut.append(path)
  assert len(cut) == 3 * len(set(cut)) == 3 * leaves


@pytest.mark.parametrize("kind", ["dept", "ept"])
def test_only_the_folded_prompt_is_gathered_and_once_a_step(found, kind):
  """The rest is what the backbone's program moves with the same folded prompt."""
  folded = {f"f32[{SHORT},{WIDTH}]": 1, f"f32[{SOURCE},{WIDTH}]": 1}
  others = found["plain"]["gathered"]
  assert not folded.keys() & others.keys()
  assert found[kind]["gathered"] == others | folded


@pytest.mark.parametrize("kind", ["dept", "ept"])
def test_eight_devices_train_it_as_one_does(found, kind):
  one, eight = found[kind]["after"]
  assert one.keys() == eight.keys()
  for name, expected in one.items():
    largest = np.abs(expected).max()
    assert largest > 1e-3, name
    np.testing.assert_allclose(
      eight[name], expected, rtol=0, atol=TOLERANCE * largest, err_msg=name
    )


if __name__ == "__main__":
  main()

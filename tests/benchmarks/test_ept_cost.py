"""The cost benchmark, on a tiny backbone: what it writes, and what its ratios are."""

import importlib.util
import json
import pathlib
import subprocess
import sys

import jax
import numpy as np
import optax
import pytest

from tpv_jax.backbones.t5 import network, sizes
from tpv_jax.model import SoftPromptModel
from tpv_jax.prompts import ept, plain

SCRIPT = pathlib.Path(__file__).parents[2] / "benchmarks" / "ept_cost.py"
TINY = {
  "vocab_size": 64,
  "emb_dim": 32,
  "num_heads": 2,
  "head_dim": 16,
  "num_encoder_layers": 1,
  "num_decoder_layers": 1,
  "mlp_dim": 64,
  "mlp_activations": ("relu",),
  "logits_via_embedding": True,
}
ARGUMENTS = [
  "--size=tiny",
  "--batch=2",
  "--dtype=float32",
  "--repetitions=3",
  "--prompt-length=60",
  "--short-length",
  "10",
  "20",
  "--source-length=64",
  "--target-length=4",
]


def load():
  sys.path.insert(0, str(SCRIPT.parent))  # As when it runs as a script.
  spec = importlib.util.spec_from_file_location("ept_cost", SCRIPT)
  module = importlib.util.module_from_spec(spec)
  spec.loader.exec_module(module)
  return module


@pytest.fixture(scope="module")
def written(tmp_path_factory):
  output = tmp_path_factory.mktemp("cost") / "cost.json"
  with pytest.MonkeyPatch.context() as patch:
    patch.setitem(sizes.SIZES, "tiny", TINY)
    assert load().main([*ARGUMENTS, f"--output={output}"]) == 0
  return json.loads(output.read_text())


def test_the_file_says_what_was_run_where_and_when(written):
  assert written["command"].startswith("python benchmarks/ept_cost.py --size=tiny")
  assert written["device"] == jax.devices()[0].device_kind
  assert {"jax", "flax", "optax", "numpy", "python"} <= set(written["versions"])
  assert written["settings"]["short_length"] == [10, 20]
  assert written["date"].endswith("+00:00")


def test_every_prompt_stays_within_the_budget_of_the_plain_one(written):
  rows = written["results"]["tiny"]
  assert list(rows) == ["plain", "ept S=10", "ept S=20", "plain, again"]
  assert rows["plain"]["parameters"] == 60 * 32
  for short in (10, 20):
    row = rows[f"ept S={short}"]
    # Short prompt, fusion (H=4), spaces and gate (K=4, Q=1), and (M + D) a rank.
    other = short * 32 + (2 * 32 * 4 + 1) + (4 * 32 * 2 + 32 * 4 + 4)
    assert row["parameters"] == other + row["rank"] * (64 + 32) <= 60 * 32
    assert 60 * 32 - row["parameters"] < 64 + 32


def test_times_are_ordered_and_the_first_prompt_is_1(written):
  for name, row in written["results"]["tiny"].items():
    for numbers in (row["seconds"], row["time_ratio"]):
      assert list(numbers.values()) == sorted(numbers.values())
      assert numbers["minimum"] > 0
    if name == "plain":
      assert set(row["time_ratio"].values()) == {1.0}


def test_the_flops_are_those_of_a_step_written_by_hand(written):
  rows = written["results"]["tiny"]
  transformer = network.Transformer(**TINY)
  rank = rows["ept S=10"]["rank"]
  modules = {
    "plain": plain.Prompt(60, 32),
    "ept S=10": ept.EPT(10, 32, 64, rank, fusion_width=4, spaces=4),
  }
  tokens = np.ones((2, 64), np.int32)
  batch = {
    "encoder_input_tokens": tokens,
    "decoder_input_tokens": tokens[:, :4],
    "decoder_target_tokens": tokens[:, :4],
    "decoder_loss_weights": np.ones((2, 4), np.float32),
  }
  flops = {}
  for name, module in modules.items():
    model = SoftPromptModel(transformer, module, None, None)
    params = model.get_initial_variables(jax.random.key(0), {})["params"]
    optimizer = optax.adamw(0.1)

    def step(prompt, moments, others, model=model, optimizer=optimizer):
      def loss(prompt):
        return model.loss_sums({**others, "prompt": prompt}, batch)[0]

      updates, moments = optimizer.update(jax.grad(loss)(prompt), moments, prompt)
      return optax.apply_updates(prompt, updates), moments

    prompt = params.pop("prompt")
    compiled = jax.jit(step).lower(prompt, optimizer.init(prompt), params).compile()
    flops[name] = compiled.cost_analysis()["flops"]
  # The runner's step also counts hits and norms: a few operations a parameter.
  assert rows["plain"]["gigaflops"] * 1e9 == pytest.approx(flops["plain"], rel=0.05)
  expected = flops["ept S=10"] / flops["plain"]
  assert rows["ept S=10"]["flops_ratio"] == pytest.approx(expected, rel=0.03)
  assert rows["ept S=10"]["flops_ratio"] < rows["ept S=20"]["flops_ratio"] < 1
  assert rows["plain, again"]["flops_ratio"] == 1


def test_bad_calls_are_one_clear_line(written, tmp_path, capsys, monkeypatch):
  monkeypatch.setitem(sizes.SIZES, "tiny", TINY)
  script = load()
  output = tmp_path / "there.json"
  output.write_text("{}")
  assert script.main([*ARGUMENTS, f"--output={output}"]) == 2
  assert "there.json" in capsys.readouterr().err
  assert script.main(["--size=tiny", "--batch=0"]) == 2
  assert "batch is 0" in capsys.readouterr().err
  with pytest.raises(SystemExit):
    script.main(["--size=tinny"])
  assert "tiny" in capsys.readouterr().err


def test_it_loads_neither_tensorflow_nor_seqio_nor_gin():
  code = (
    "import runpy, sys\n"
    f"sys.path.insert(0, {str(SCRIPT.parent)!r})\n"
    f"runpy.run_path({str(SCRIPT)!r})\n"
    "print(*{name.split('.')[0] for name in sys.modules})"
  )
  done = subprocess.run(
    [sys.executable, "-c", code], capture_output=True, text=True, check=True
  )
  loaded = set(done.stdout.split())
  assert "jax" in loaded
  assert not loaded & {"tensorflow", "seqio", "gin", "orbax", "torch"}

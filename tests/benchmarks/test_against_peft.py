"""The benchmark against PEFT, on a tiny backbone: its work is equal, its sums are right."""

import importlib.util
import json
import os
import pathlib
import subprocess
import sys

import jax
import numpy as np
import pytest

from tpv_jax.backbones.llama import sizes as llama_sizes
from tpv_jax.backbones.llama.network import Llama
from tpv_jax.backbones.t5 import network, sizes
from tpv_jax.data import batches
from tpv_jax.model import SoftPromptModel
from tpv_jax.prompts import plain

FOLDER = pathlib.Path(__file__).parents[2] / "benchmarks"
SCRIPT = FOLDER / "against_peft.py"
TINY = {
  "vocab_size": 64,
  "emb_dim": 32,
  "num_heads": 2,
  "head_dim": 24,
  "num_encoder_layers": 2,
  "num_decoder_layers": 2,
  "mlp_dim": 96,
  "mlp_activations": ("relu",),
  "logits_via_embedding": True,
}
TINY_LLAMA = {
  "vocab_size": 64,
  "emb_dim": 132,
  "num_heads": 6,
  "num_kv_heads": 2,
  "head_dim": 24,
  "num_layers": 2,
  "mlp_dim": 256,
  "logits_via_embedding": True,
  "max_positions": 512,
}
BANKS = [
  "--size=tiny",
  "--only=bank",
  "--banks",
  "1",
  "2",
  "--bank-rounds=3",
  "--bank-batch=2",
  "--prompt-length=20",
  "--dtype=float32",
]


EVALUATION = ["--tasks=2", "--coefficients=3", "--evaluation-examples=2"]


def load():
  spec = importlib.util.spec_from_file_location("against_peft", SCRIPT)
  module = importlib.util.module_from_spec(spec)
  spec.loader.exec_module(module)
  return module


@pytest.fixture(scope="module")
def script():
  with pytest.MonkeyPatch.context() as patch:
    patch.setitem(sizes.SIZES, "t5_v1_0_tiny", TINY)
    patch.setitem(llama_sizes.SIZES, "llama_tiny", TINY_LLAMA)
    yield load()


@pytest.fixture
def drawn(script, monkeypatch):
  """Returns the part of a benchmark that draws and counts, without processes."""
  bench = object.__new__(script.Bench)
  bench.family, bench.numbers = "t5", TINY
  bench.histograms = {
    "short": {"sources": {"4": 1, "9": 3}, "targets": {"2": 1}},
    "long": {"sources": {"500": 1}, "targets": {"3": 1}},
  }
  bench.options = type("Options", (), {"seed": 0, "prompt_length": 20})()
  return bench


@pytest.fixture(scope="module")
def banks(script, tmp_path_factory):
  """Returns what is written when our banks run alone, without PEFT."""
  output = tmp_path_factory.mktemp("banks") / "banks.json"
  with pytest.MonkeyPatch.context() as patch:
    patch.setattr(script, "missing_packages", lambda python: ["peft"])
    patch.setenv("JAX_PLATFORMS", "cpu")
    assert script.main([*BANKS, f"--output={output}"]) == 0
  return json.loads(output.read_text())


def python_with_peft(script):
  """Returns a Python that has torch and PEFT: this one, or $TPV_PEFT_PYTHON."""
  python = os.environ.get("TPV_PEFT_PYTHON", sys.executable)
  missing = script.missing_packages(python)
  if missing:
    pytest.skip(f"needs the extra 'bench': {', '.join(missing)} not installed")
  return python


def test_both_sides_have_equal_losses_before_and_after_an_update(
  script, capfd, monkeypatch
):
  python = python_with_peft(script)
  monkeypatch.setenv("JAX_PLATFORMS", "cpu")
  arguments = ["--size=tiny", "--check", "--no-compile", f"--peft-python={python}"]
  arguments += ["--only", "b", "bank", "evaluation", "--banks", "1", "2"]
  arguments += [*EVALUATION, "--prompt-length=20"]
  assert script.main(arguments) == 0
  assert "Both sides have the same losses." in capfd.readouterr().out
  monkeypatch.setattr(script, "SAME", 1e-12)
  assert script.main([*arguments, "--only=b"]) == 1
  assert "NOT" in capfd.readouterr().out


def test_both_sides_have_equal_losses_on_a_llama(script, capfd, monkeypatch):
  python = python_with_peft(script)
  monkeypatch.setenv("JAX_PLATFORMS", "cpu")
  arguments = [
    "--size=llama_tiny",
    "--check",
    "--no-compile",
    "--only",
    "a",
    "b",
    "bank",
    "evaluation",
  ]
  arguments += ["--banks", "1", "2", "--prompt-length=20", f"--peft-python={python}"]
  arguments += EVALUATION
  assert script.main(arguments) == 0
  assert "Both sides have the same losses." in capfd.readouterr().out


def test_the_file_says_what_was_run_where_and_when(banks):
  assert banks["command"].startswith("python benchmarks/against_peft.py --size=tiny")
  assert banks["device"].startswith("cpu: ")
  assert {"jax", "flax", "optax", "numpy", "python"} <= set(banks["versions"]["ours"])
  assert banks["settings"]["dtype"] == "float32"
  assert len(banks["load_average_before"]) == 3
  assert banks["date"].endswith("+00:00")


def test_every_bank_trains_on_the_same_examples_at_the_same_loss(banks):
  (result,) = banks["results"].values()
  assert result["groups"] == 2
  assert result["batch"] == 2
  assert result["same_losses"]
  rows = result["jobs"]
  assert list(rows) == ["bank of 1", "bank of 2"]
  for row in rows.values():
    assert len(row["seconds"]) == 3
    assert row["losses_apart"][0] < 1e-6
    assert 0 <= row["padding_share"] < 1
    assert row["peak_mebibytes"] > 0
    used = zip(row["processor_seconds"], row["seconds"], strict=True)
    cores = sorted(processor / wall for processor, wall in used)[1]
    assert row["cores_had"]["median"] == pytest.approx(cores, rel=1e-4)
    # Two steps of a prompt a round.
    expected = sorted(2 / seconds for seconds in row["seconds"])[1]
    assert row["prompt_steps_per_s"]["median"] == pytest.approx(expected, rel=1e-4)
    assert row["examples_per_s"]["median"] == pytest.approx(2 * expected, rel=1e-4)


def test_an_evaluation_reads_every_example_with_every_candidate(
  script, tmp_path, monkeypatch
):
  monkeypatch.setattr(script, "missing_packages", lambda python: ["peft"])
  monkeypatch.setenv("JAX_PLATFORMS", "cpu")
  output = tmp_path / "evaluation.json"
  arguments = ["--size=tiny", "--only=evaluation", *EVALUATION, "--prompt-length=20"]
  arguments += ["--evaluation-rounds=2", "--dtype=float32", f"--output={output}"]
  assert script.main(arguments) == 0
  (result,) = json.loads(output.read_text())["results"].values()
  assert result["candidates"] == 6
  assert result["batch"] == 2
  assert list(result["jobs"]) == ["ours, generating", "ours, one pass"]
  for row in result["jobs"].values():
    rates = sorted(2 * 6 / seconds for seconds in row["seconds"])
    assert row["examples_per_s"]["median"] == pytest.approx(np.mean(rates), rel=1e-3)
    assert 0 <= row["padding_share"] < 0.9
    assert row["losses"][0] > 0


def test_candidates_lie_on_the_line_from_the_start_to_the_tuned_prompt(monkeypatch):
  monkeypatch.syspath_prepend(FOLDER)
  side = importlib.import_module("side")
  prompts = np.random.default_rng(0).standard_normal((3, 4, 5)).astype(np.float32)
  found = side.candidates(prompts, [0.0, 0.5, 1.0])
  assert found.shape == (2, 3, 4, 5)
  assert np.array_equal(found[:, 0], [prompts[0]] * 2)
  np.testing.assert_allclose(found[:, 2], prompts[1:], atol=1e-6)
  np.testing.assert_allclose(found[1, 1], (prompts[0] + prompts[2]) / 2, atol=1e-6)


def test_reading_costs_less_than_half_of_training(drawn):
  reading, training = drawn.flops(200, 8, training=False), drawn.flops(200, 8)
  assert 1 / 3 < reading / training < 1 / 2


def test_a_ratio_above_1_says_that_the_second_was_faster(script, banks):
  (result,) = banks["results"].values()
  one, two = (row["seconds"] for row in result["jobs"].values())
  expected = sorted(a / b for a, b in zip(one, two, strict=True))[1]
  found = result["ratios"]["bank of 2 / bank of 1"]["median"]
  assert found == pytest.approx(expected, rel=1e-4)
  jobs = {"slow": {"seconds": [4.0, 9.0, 2.0]}, "fast": {"seconds": [2.0, 3.0, 2.0]}}
  made = script.ratios({"jobs": jobs}, [("slow", "fast"), ("slow", "missing")])
  assert list(made) == ["fast / slow"]
  assert made["fast / slow"]["median"] == 2.0


def test_losses_that_differ_are_noticed_in_fp32(script):
  def row(losses, dtype="float32", bank=1):
    return {"losses": losses, "dtype": dtype, "bank": bank}

  base = row([2.0, 3.0])
  assert script.same_losses({"base": base, "near": row([2.00001, 3.0])})
  assert not script.same_losses({"base": base, "first": row([2.001, 3.0])})
  assert not script.same_losses({"base": base, "second": row([2.0, 3.001])})
  assert script.same_losses({"base": base, "bank": row([2.0, 9.0], bank=2)})
  assert not script.same_losses({"base": base, "bank": row([2.1, 9.0], bank=2)})
  rough = row([2.001, 3.0], "bfloat16")
  assert script.same_losses({"base": base, "bf16": rough})
  assert rough["losses_apart"][0] == pytest.approx(5e-4)


@pytest.mark.parametrize("side_by_side", [False, True])
def test_a_job_that_fails_at_its_start_or_in_a_round_leaves_the_others(
  script, drawn, monkeypatch, side_by_side
):
  class Worker:
    def __init__(self, name, side, job, bench, stack):
      self.name = name
      if name == "absent":
        raise script.SideFailed("no torch")

    def ask(self, **command):
      return {"answered": command["do"]}

  def timed(self, worker, row, number):
    if worker.name == "large" and number == 2:
      raise script.SideFailed("no memory")
    row["seconds"].append(number)

  monkeypatch.setattr(script, "Worker", Worker)
  monkeypatch.setattr(script.Bench, "first", lambda self, worker: {"seconds": []})
  monkeypatch.setattr(script.Bench, "timed", timed)
  drawn.options.side_by_side = side_by_side
  jobs = {name: ("ours", {}) for name in ("absent", "large", "good")}
  rows = drawn.measured("c", jobs, 3)
  assert list(rows) == ["absent", "large", "good"]
  assert (rows["absent"]["failed"], rows["absent"]["seconds"]) == ("no torch", [])
  assert (rows["large"]["failed"], rows["large"]["seconds"]) == ("no memory", [])
  assert rows["good"] == {"seconds": [1, 2, 3], "answered": "stop"}


def test_lengths_are_the_histograms_and_the_tasks_take_turns(script, drawn):
  sources, targets = drawn.draw(rounds=2, groups=100, batch=8, full=None)
  assert sources.shape == (2, 100, 8, 256)
  assert targets.shape == (2, 100, 8, 8)
  again = drawn.draw(rounds=2, groups=100, batch=8, full=None)
  assert np.array_equal(sources, again[0])
  assert np.array_equal(targets, again[1])
  lengths = np.count_nonzero(sources, axis=-1).reshape(-1, 8)
  long = (lengths == 256).all(axis=1)  # 500 is cut to what a row has room for.
  assert np.array_equal(long, np.arange(200) % 2 == long[1])
  short = lengths[~long]
  assert set(short.ravel()) == {4, 9}
  assert 0.7 < (short == 9).mean() < 0.8
  wanted = np.where(long, 3, 2)[:, None]
  assert (np.count_nonzero(targets, axis=-1).reshape(-1, 8) == wanted).all()
  for tokens in (sources, targets):
    ends = np.count_nonzero(tokens, axis=-1, keepdims=True) - 1
    assert (np.take_along_axis(tokens, ends, -1) == 1).all()
    assert np.count_nonzero(tokens == 1) == tokens[..., 0].size
  full, _ = drawn.draw(rounds=1, groups=1, batch=2, full=64)
  assert full.shape[-1] == 64
  assert (full > 0).all()


def test_the_flops_are_those_of_a_compiled_step(drawn):
  numbers = TINY | {"emb_dim": 128, "mlp_dim": 512, "num_decoder_layers": 1}
  drawn.numbers = numbers
  transformer = network.Transformer(**numbers)
  model = SoftPromptModel(transformer, plain.Prompt(20, 128), None, None)
  params = jax.eval_shape(lambda: model.get_initial_variables(jax.random.key(0), {}))
  others = dict(params["params"])
  prompt = others.pop("prompt")
  batch = {
    "encoder_input_tokens": np.ones((2, 236), np.int32),
    "decoder_input_tokens": np.ones((2, 8), np.int32),
    "decoder_target_tokens": np.ones((2, 8), np.int32),
    "decoder_loss_weights": np.ones((2, 8), np.float32),
  }

  def loss(prompt, others):
    return model.loss_sums({**others, "prompt": prompt}, batch)[0]

  step = jax.jit(jax.grad(loss)).lower(prompt, others).compile()
  # XLA counts norms and softmax too, and leaves out what no gradient needs.
  expected = step.cost_analysis()["flops"]
  assert 2 * drawn.flops(256, 8) == pytest.approx(expected, rel=0.1)


def test_the_flops_of_a_llama_are_those_of_a_compiled_step(drawn):
  drawn.family, drawn.numbers = "llama", TINY_LLAMA
  model = SoftPromptModel(
    Llama(**TINY_LLAMA), plain.Prompt(20, TINY_LLAMA["emb_dim"]), None, None
  )
  params = jax.eval_shape(lambda: model.get_initial_variables(jax.random.key(0), {}))
  others = dict(params["params"])
  prompt = others.pop("prompt")
  batch = batches.features(np.ones((2, 236), np.int32), np.ones((2, 8), np.int32))

  def loss(prompt, others):
    return model.loss_sums({**others, "prompt": prompt}, batch)[0]

  step = jax.jit(jax.grad(loss)).lower(prompt, others).compile()
  # XLA counts norms and softmax too, and leaves out what no gradient needs.
  expected = step.cost_analysis()["flops"]
  assert 2 * drawn.flops(264, 8) == pytest.approx(expected, rel=0.1)


def test_the_histograms_hold_counts_and_no_text():
  stored = json.loads((FOLDER / "lengths" / "nlu.json").read_text())
  assert "make.py" in stored["about"]
  assert len(stored["tasks"]) == 14
  for task in stored["tasks"].values():
    assert set(task) == {"sources", "targets"}
    examples = {kind: sum(histogram.values()) for kind, histogram in task.items()}
    assert 50 <= examples["sources"] == examples["targets"] <= 1_500
    for length, count in (pair for h in task.values() for pair in h.items()):
      assert int(length) > 1
      assert isinstance(count, int)
      assert count > 0
    assert max(map(int, task["targets"])) <= load().TARGET_LENGTH


def test_bad_calls_are_one_clear_line(script, tmp_path, capsys, monkeypatch):
  def refused(*arguments):
    assert script.main(list(arguments)) == 2
    return capsys.readouterr().err

  assert "smal'. Did you mean 'small'" in refused("--size=smal")
  assert "no comparison 'd'" in refused("--only", "d")
  assert "does not divide" in refused("--banks", "3", "4")
  assert "not a Python that runs" in refused("--peft-python=/nowhere/python")
  there = tmp_path / "there.json"
  there.write_text("{}")
  assert "there.json" in refused(*BANKS, f"--output={there}")
  monkeypatch.setattr(script, "missing_packages", lambda python: ["torch", "peft"])
  for arguments in (["--only", "a"], ["--only", "bank", "--check"]):
    assert "has no torch, peft" in refused(*arguments)


def test_our_side_needs_neither_clu_nor_tensorflow_nor_orbax():
  code = (
    "import sys\n"
    "class Missing:\n"
    "  def find_spec(self, name, path=None, target=None):\n"
    "    if name.split('.')[0] in ('clu', 'tqdm', 'tensorboardX', 'orbax', 'gin',\n"
    "                              'seqio', 'tensorflow'):\n"
    "      raise ModuleNotFoundError(name)\n"
    "sys.meta_path.insert(0, Missing())\n"
    f"sys.path.insert(0, {str(FOLDER)!r})\n"
    "import our_side, step_parts\n"
    "print(*{name.split('.')[0] for name in sys.modules})"
  )
  done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
  assert done.returncode == 0, done.stderr
  loaded = set(done.stdout.split())
  assert "jax" in loaded
  assert not loaded & {"tensorflow", "seqio", "gin", "orbax", "torch", "tensorboardX"}


def test_the_sides_import_nothing_of_each_other():
  assert "tpv_jax import" not in (FOLDER / "peft_side.py").read_text()
  assert "import torch" not in (FOLDER / "our_side.py").read_text()

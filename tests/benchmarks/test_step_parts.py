"""The benchmark of the step's parts, on a tiny backbone: each variant is the same step."""

import importlib.util
import json
import pathlib

import pytest

from tpv_jax.backbones.t5 import sizes

SCRIPT = pathlib.Path(__file__).parents[2] / "benchmarks" / "step_parts.py"
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


@pytest.fixture(scope="module")
def script():
  with pytest.MonkeyPatch.context() as patch:
    patch.setitem(sizes.SIZES, "t5_v1_0_tiny", TINY)
    patch.syspath_prepend(str(SCRIPT.parent))
    spec = importlib.util.spec_from_file_location("step_parts", SCRIPT)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    yield module


def test_variants_give_the_loss_of_the_step_as_it_is(script, tmp_path, capsys):
  output = tmp_path / "parts.json"
  arguments = ["--size=tiny", "--batch=2", "--source-length=16", "--dtype=float32"]
  variants = ["attention", "projection", "xla", "remat", "scan", "cudnn"]
  arguments += ["--rounds=2", f"--output={output}", "--only", *variants]
  assert script.main(arguments) == 0
  written = json.loads(output.read_text())
  rows = written["results"]
  assert list(rows) == ["now", *variants]
  assert "does not work here" in capsys.readouterr().out  # cuDNN, on a CPU.
  assert "failed" in rows.pop("cudnn")
  for name, row in rows.items():
    assert row["loss"] == pytest.approx(rows["now"]["loss"], rel=1e-5), name
    assert row["aliased_bytes"] == rows["now"]["aliased_bytes"] > 0
    assert len(row["seconds"]) == len(row["time_ratio"]) == 5
  assert rows["remat"]["gigaflops"] >= rows["now"]["gigaflops"]
  assert {"commit", "machine", "versions", "command", "date"} <= set(written)


def test_an_unknown_variant_is_refused(script, capsys):
  assert script.main(["--only", "sofmax"]) == 2
  assert "sofmax" in capsys.readouterr().err

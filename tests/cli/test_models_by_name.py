"""Models of the hub are fetched by their names from a server that speaks its API."""

import json
import os
import subprocess
import sys

import pytest
from hub_server import Hub, serving

COMMIT = Hub.COMMIT


def tpv(folder, *arguments, **environment):
  """Runs tpv in a folder, with its own cache of models."""
  return subprocess.run(
    [sys.executable, "-m", "tpv_jax", *arguments],
    cwd=folder,
    capture_output=True,
    text=True,
    env={**os.environ, "HF_HOME": str(folder / "hf"), "HF_HUB_OFFLINE": "0"}
    | {"HF_HUB_DISABLE_TELEMETRY": "1", **environment},
  )


def test_a_model_is_fetched_once_and_then_read_offline(hub_models, tmp_path):
  with serving(Hub({"org/name": hub_models / "t5"})) as there:
    done = tpv(tmp_path, "fetch", "org/name", HF_ENDPOINT=there.address)
    assert done.returncode == 0, done.stderr
    assert f"BACKBONE='hf:org/name@{COMMIT}'" in done.stdout
    assert f"Fetching org/name ({COMMIT[:12]}" in done.stderr
    assert {*there.asked} == {"config.json", "model.safetensors", "spiece.model"}
    there.models.clear()
    done = tpv(tmp_path, "show", f"hf:org/name@{COMMIT}", HF_ENDPOINT=there.address)
    assert done.returncode == 0, done.stderr
  done = tpv(tmp_path, "convert", "org/name", "-o", "a.safetensors", HF_HUB_OFFLINE="1")
  assert done.returncode == 0, done.stderr


def test_a_prompt_is_trained_on_a_named_model_and_used_from_its_run(
  hub_models, tmp_path
):
  rows = [f"text number {i},{'ab'[i % 2]}\n" for i in range(12)]
  (tmp_path / "rows.csv").write_text("text,label\n" + "".join(rows))
  (tmp_path / "task.toml").write_text(
    'paths = "rows.csv"\ntemplate = "{text} label:"\ntarget = "label"\n'
    'labels = ["a", "b"]\nsplits = {validation = 4, test = 2}\n'
    "lengths = {inputs = 16, targets = 4}\n"
  )
  settings = {"BACKBONE": "org/name", "TASK_FILES": "task.toml", "TRAIN_STEPS": 2}
  settings |= {"RUN_DIR": "run", "BATCH_SIZE": 2, "PROMPT_LENGTH": 2, "WARMUP_STEPS": 0}
  with serving(Hub({"org/name": hub_models / "llama"})) as there:
    call = [f"--gin.{name}={value}" for name, value in settings.items()]
    done = tpv(tmp_path, "train", *call, HF_ENDPOINT=there.address)
  assert done.returncode == 0, done.stderr
  manifest = json.loads((tmp_path / "run/manifest.json").read_text())
  assert manifest["subject"]["backbone"] == f"hf:org/name@{COMMIT}"
  assert manifest["subject"]["vocabulary_file"] is None
  assert manifest["backbone"]["revision"] == COMMIT
  assert manifest["backbone"]["name"] == "org/name"
  call = ("--prompt", "run", "--input", "rows.csv", "--output", "out.csv")
  done = tpv(tmp_path, "infer", *call, HF_HUB_OFFLINE="1")
  assert done.returncode == 0, done.stderr
  assert (tmp_path / "out.csv").read_text().count("\n") == 13


@pytest.mark.parametrize(
  ("name", "message"),
  [
    (
      "org/gated",
      "'org/gated' is gated. Accept its terms at https://huggingface.co/org",
    ),
    ("org/unknown", "Hugging Face has no such model, or it is private"),
    ("org/name@v9", "'org/name' has no revision 'v9'"),
    (
      "org/pickles",
      "which alone are read. It has pytorch_model.bin. Look for a revision",
    ),
  ],
)
def test_what_cannot_be_fetched_is_told_in_one_line(
  hub_models, tmp_path, name, message
):
  (tmp_path / "pickles").mkdir()
  for file in ("config.json", "pytorch_model.bin"):
    (tmp_path / "pickles" / file).write_bytes((hub_models / "t5" / file).read_bytes())
  served = {"org/name": hub_models / "t5", "org/pickles": tmp_path / "pickles"}
  with serving(Hub(served, {"org/gated": "GatedRepo"})) as there:
    done = tpv(
      tmp_path, "convert", name, "-o", "x.safetensors", HF_ENDPOINT=there.address
    )
  assert done.returncode == 2
  (line,) = done.stderr.strip().splitlines()
  assert message in line


def test_a_hub_that_is_not_reached_is_told_in_one_line(tmp_path):
  for environment in ({"HF_ENDPOINT": "http://127.0.0.1:9"}, {"HF_HUB_OFFLINE": "1"}):
    done = tpv(tmp_path, "convert", "org/name", "-o", "x.safetensors", **environment)
    assert done.returncode == 2
    (line,) = done.stderr.strip().splitlines()
    assert "could not be fetched (" in line
    assert "'tpv fetch org/name'" in line

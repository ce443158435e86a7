"""The settings that --show-config prints."""

import pytest

from tpv_jax import cli
from tpv_jax.settings import gin_files, showing
from tpv_jax.training import training

EMBEDDED = "gin_configs/runs/embedded.gin"


def shown(bindings, files=(EMBEDDED,)):
  """Returns the settings of a training by name."""
  found = [*showing.shown(training.train, gin_files.parse(files, bindings))]
  assert len({one.name for one in found}) == len(found)
  return {one.name: one for one in found}


def test_a_setting_has_its_value_origin_default_and_meaning(tmp_path):
  mine = tmp_path / "mine.gin"
  mine.write_text("BATCH_SIZE = 4  # few rows\n")
  found = shown(["TRAIN_STEPS=20", "TASK_NAME='topic'"], [EMBEDDED, str(mine)])
  steps, rows = found["TRAIN_STEPS"], found["BATCH_SIZE"]
  assert (steps.value, steps.meaning) == ("20", "optimizer steps in all.")
  assert steps.origin.startswith(f"--gin; default 300, {EMBEDDED}:")
  assert str(steps) == f"TRAIN_STEPS = 20  # {steps.origin}\n    {steps.meaning}"
  assert (rows.value, rows.meaning) == ("4", "few rows")
  assert rows.origin == f"{mine}:1; default 16, {EMBEDDED}:14"
  assert found["INITIAL_SEED"].meaning.startswith("of the initial prompt;")
  assert found["RUN_DIR"].value is None
  assert "RUN_DIR = (must be given)  #" in str(found["RUN_DIR"])
  assert found["training.train.log_period"].value == "25"
  assert found["training.train.log_period"].origin == "default"
  assert "MODEL" not in found
  assert not any(name.endswith((".parent", ".config")) for name in found)


def test_the_users_value_is_shown_in_any_order_of_files(tmp_path):
  mine = tmp_path / "mine.gin"
  mine.write_text("BATCH_SIZE = 4\n")
  first, last = (
    shown(["TASK_NAME='topic'"], files)["BATCH_SIZE"]
    for files in ([str(mine), EMBEDDED], [EMBEDDED, str(mine)])
  )
  assert first == last


@pytest.mark.parametrize("verb", ["train", "bank", "eval", "infer"])
def test_a_command_shows_its_settings_and_runs_nothing(capsys, tmp_path, verb):
  places = {"train": "RUN_DIR", "bank": "OUTPUT_DIR", "eval": "OUTPUT"}
  out = tmp_path / "out"
  given = [f"--gin.{places[verb]}={out}"] if verb in places else []
  given += ["--gin.TASK_NAME=topic"] if verb == "train" else []
  assert cli.main([verb, "--gin.BACKBONE=embedded", *given, "--show-config"]) == 0
  said = capsys.readouterr()
  assert "BACKBONE = 'embedded'  # --gin\n" in said.out
  assert "\nBATCH_SIZE = " in said.out
  assert f"{verb}_embedded.gin" in said.err or verb == "train"
  assert not out.exists()
  wrong = [verb, "--gin.BACKBONE=embedded", *given, "--show-config", "--gin.X=1"]
  assert cli.main(wrong) == 2
  assert "X (--gin) is read by nothing" in capsys.readouterr().err

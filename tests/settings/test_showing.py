"""The settings that --show-config prints."""

import pytest

from tpv_jax import cli
from tpv_jax.settings import gin_files, showing
from tpv_jax.training import training

EMBEDDED = "gin_configs/runs/embedded.gin"


def shown(bindings, files=(EMBEDDED,)):
  """Returns name -> (value, origin, meaning) of the settings of a training."""
  found, name = {}, None
  for line in showing.lines(training.train, gin_files.parse(files, bindings)):
    if line.startswith("    "):
      found[name][2] = line.strip()
    else:
      name, _, rest = line.partition(" = ")
      assert name not in found
      value, _, origin = rest.rpartition("  # ")
      found[name] = [value, origin, ""]
  return found


def test_a_setting_has_its_value_origin_default_and_meaning(tmp_path):
  mine = tmp_path / "mine.gin"
  mine.write_text("BATCH_SIZE = 4  # few rows\n")
  found = shown(["TRAIN_STEPS=20", "TASK_NAME='topic'"], [EMBEDDED, str(mine)])
  value, origin, meaning = found["TRAIN_STEPS"]
  assert (value, meaning) == ("20", "optimizer steps in all.")
  assert origin.startswith(f"--gin; default 300, {EMBEDDED}:")
  assert found["BATCH_SIZE"][:2] == ["4", f"{mine}:1; default 16, {EMBEDDED}:14"]
  assert found["BATCH_SIZE"][2] == "few rows"
  assert found["INITIAL_SEED"][2].startswith(
    "of the initial prompt;"
  )  # From the gin file.
  assert found["RUN_DIR"][0] == "(must be given)"
  assert found["training.train.log_period"][:2] == ["25", "default"]
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

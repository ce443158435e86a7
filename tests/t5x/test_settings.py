"""What a T5X command was given: read, or refused by its name before anything is built."""

import importlib
import os
import re
import subprocess
import sys
import time

import gin
import pytest

from tpv_jax.core.errors import UserError
from tpv_jax.data import sources
from tpv_jax.runs import run_folder
from tpv_jax.t5x import settings

T5X = "gin_configs/t5x/"
TASK = "TASK_NAME='sentiment'"
TRAIN = ([T5X + "train_embedded.gin"], TASK, "MODEL_DIR='m'")
EVAL = ([T5X + "eval_embedded.gin"], TASK, "OUTPUT_DIR='o'", "PROMPT_PATH='p'")
INFER = ([T5X + "infer_embedded.gin"], TASK, "OUTPUT_DIR='o'", "PROMPT_PATH='p'")
OWN = [
  "gin_configs/backbones/t5_1_1_base.gin",
  "gin_configs/prompts/plain.gin",
  T5X + "train.gin",
]
ENGLISH = "gin_configs/tasks/english.gin"
SEQIO = "SEQIO_TASK='s'", "LENGTHS={'inputs': 8, 'targets': 4}"
BASE = "MODEL_DIR='m'", "BACKBONE='b'", "VOCABULARY_FILE='v'"


@pytest.fixture(scope="module")
def entries(t5x):
  """The functions of T5X's commands, as gin knows them in `python -m t5x.train`."""
  main = sys.modules["__main__"]
  found = {}
  for module, name in (("train", "train"), ("eval", "evaluate"), ("infer", "infer")):
    function = getattr(importlib.import_module(f"t5x.{module}"), name)
    function.__module__ = "__main__"
    setattr(main, name, function)
    gin.configurable(function)
    found[name] = function
  yield found
  for name in found:
    delattr(main, name)


@pytest.fixture
def check(entries):
  """Returns a function that checks a command's files and bindings."""
  yield lambda entry, files, *bindings: settings.check(entries[entry], files, bindings)
  gin.clear_config()


@pytest.mark.parametrize("entry", ["train", "evaluate", "infer"])
def test_files_none_of_which_runs_are_told_those_that_do(check, entry):
  with pytest.raises(UserError, match=r"none configures __main__\.") as error:
    check(entry, ["gin_configs/prompts/plain.gin"])
  named = str(error.value).partition("--gin_file=...: ")[2]
  script = {"evaluate": "eval"}.get(entry, entry)
  assert f"gin_configs/t5x/{script}.gin" in named
  assert f"gin_configs/t5x/{script}_embedded.gin" in named


@pytest.mark.parametrize(
  ("entry", "files", "bindings"),
  [
    ("train", TRAIN[0], TRAIN[1:]),
    ("train", [*TRAIN[0], "gin_configs/prompts/ept.gin"], TRAIN[1:]),
    ("train", [T5X + "bank_embedded.gin"], ("MODEL_DIR='m'",)),
    ("train", [*OWN, T5X + "seqio_task.gin"], (*BASE, *SEQIO)),
    ("train", [*OWN, T5X + "bank.gin"], (*BASE, SEQIO[1], "TASKS=['a', 'b']")),
    (
      "train",
      [*OWN, "gin_configs/tasks/glue_rte.gin", T5X + "streamed_task.gin"],
      (*BASE, "DATA_DIR='d'"),
    ),
    (
      "train",
      [*OWN, "gin_configs/tasks/glue_rte.gin", T5X + "few_shot.gin"],
      (*BASE, "DATA_DIR='d'", "SHOTS=25"),
    ),
    ("evaluate", EVAL[0], EVAL[1:]),
    ("infer", INFER[0], INFER[1:]),
    ("train", [T5X + "train_llm.gin", ENGLISH], (*TRAIN[1:], "CHAT=True")),
    (
      "train",
      [T5X + "bank_llm.gin", ENGLISH, "gin_configs/prompts/ept.gin"],
      ("MODEL_DIR='m'", "LOSS_ON_SOURCES=True", "INITIAL_SEEDS=[0, 1]"),
    ),
    ("evaluate", [T5X + "eval_llm.gin", ENGLISH], (*EVAL[1:], "BACKBONE='b'")),
    ("infer", [T5X + "infer_llm.gin", ENGLISH], (*INFER[1:], "NUM_BEAMS=2")),
  ],
)
def test_what_the_gin_files_for_t5x_take_is_read(check, entry, files, bindings):
  assert check(entry, files, *bindings) == []


@pytest.mark.parametrize(
  ("entry", "given", "more", "message"),
  [
    ("train", TRAIN, "TRAIN_STEP=5", "TRAIN_STEP .*is read by nothing.*'TRAIN_STEPS'"),
    ("train", TRAIN, "TRAIN_STEPS=0", "TRAIN_STEPS is 0; .* at least 1"),
    ("train", TRAIN, "BATCH_SIZE='8'", "BATCH_SIZE is '8'; .* whole number"),
    ("train", TRAIN, "BEST_METRIC='los'", "BEST_METRIC is 'los'.*'loss'"),
    ("train", TRAIN, "MODEL_PARALLEL=0", "MODEL_PARALLEL is 0"),
    ("train", TRAIN, "train.use_orbax=False", "use_orbax is False; it must be True"),
    ("train", TRAIN, "train.total_step=5", "no? ?.*'total_step'.*'total_steps'"),
    ("train", TRAIN, "train_script.train.eval_steps=5", "it is called train"),
    ("train", TRAIN[:2], "KEEP=3", "MODEL_DIR must be given"),
    ("evaluate", EVAL, "TRAIN_STEPS=5", "TRAIN_STEPS .*is read by nothing"),
    ("evaluate", EVAL, "WHICH='bset'", "WHICH is 'bset'"),
    ("infer", INFER, "INFER_MODE='scor'", "INFER_MODE is 'scor'.*'score'"),
    (
      "train",
      TRAIN,
      "utils.CheckpointConfig.restore=@utils.RestoreCheckpointConfig()",
      "CheckpointConfig.restore .*initial.from_file",
    ),
    (
      "evaluate",
      EVAL,
      "utils.RestoreCheckpointConfig.path='x'",
      "RestoreCheckpointConfig.path .*Write PROMPT_PATH",
    ),
    (
      "infer",
      INFER,
      "utils.RestoreCheckpointConfig.dtype='bfloat16'",
      "RestoreCheckpointConfig.dtype is 'bfloat16'; it must be 'float32'",
    ),
    (
      "train",
      TRAIN,
      "utils.SaveCheckpointConfig.dtype='bfloat16'",
      "SaveCheckpointConfig.dtype is 'bfloat16'; it must be 'float32'",
    ),
    ("infer", INFER, "seqio.Evaluator.num_examples=3", "does not call seqio.Evaluator"),
  ],
)
def test_what_is_not_read_or_of_another_kind_is_refused(
  check, entry, given, more, message
):
  with pytest.raises(UserError, match=message):
    check(entry, *given, more)


@pytest.mark.parametrize(
  ("entry", "given", "name", "value", "instead"),
  [
    ("train", TRAIN, "MIXTURE_OR_TASK_NAME", "'glue_sst2_v002'", "SEQIO_TASK"),
    ("train", TRAIN, "MIXTURE_OR_TASK_MODULE", "'t5.data'", "TASK_MODULES"),
    ("train", TRAIN, "TASK_FEATURE_LENGTHS", "{'inputs': 8}", "Write LENGTHS"),
    ("train", TRAIN, "INITIAL_CHECKPOINT_PATH", "'x'", "Write BACKBONE"),
    ("train", TRAIN, "TRAIN_STEPS_RELATIVE", "5", "Write TRAIN_STEPS"),
    ("train", TRAIN, "LOSS_NORMALIZING_FACTOR", "5", "LEARNING_RATE"),
    ("train", TRAIN, "JSON_WRITE_N_RESULTS", "5", "Only t5x.eval"),
    ("train", TRAIN, "PjitPartitioner.num_partitions", "2", "Write MODEL_PARALLEL"),
    ("train", TRAIN, "utils.DatasetConfig.batch_size", "2", "Write BATCH_SIZE"),
    ("evaluate", EVAL, "CHECKPOINT_PATH", "'x'", "PROMPT_PATH for the prompt"),
    ("evaluate", EVAL, "EVAL_OUTPUT_DIR", "'x'", "Write OUTPUT_DIR"),
    ("infer", INFER, "INFER_OUTPUT_DIR", "'x'", "Write OUTPUT_DIR"),
  ],
)
def test_what_t5x_calls_otherwise_is_refused_with_what_to_write(
  check, entry, given, name, value, instead
):
  with pytest.raises(UserError, match=f"{name}.*{instead}"):
    check(entry, *given, f"{name}={value}")


@pytest.mark.parametrize(
  ("entry", "given", "setting"),
  [
    ("train", TRAIN, "DROPOUT_RATE=0.1"),
    ("train", TRAIN, "LABEL_SMOOTHING=0.1"),
    ("train", TRAIN, "Z_LOSS=0.0001"),
    ("train", TRAIN, "USE_CACHED_TASKS=True"),
    ("train", TRAIN, "USE_HARDWARE_RNG=True"),
    ("train", TRAIN, "SHUFFLE_TRAIN_EXAMPLES=False"),
    ("train", TRAIN, "PROFILE_STEPS=[20, 25]"),
    ("evaluate", EVAL, "EVALUATOR_NUM_EXAMPLES=3"),
    ("evaluate", EVAL, "EVALUATOR_USE_MEMORY_CACHE=False"),
    ("evaluate", EVAL, "JSON_WRITE_N_RESULTS=3"),
    ("infer", INFER, "gin_utils.get_gin_config_str.show_provenance=True"),
  ],
)
def test_other_names_of_t5x_mean_here_what_they_mean_there(
  check, entry, given, setting
):
  assert check(entry, *given, setting) == []


def test_macros_in_t5xs_own_files_that_nothing_reads_are_none_of_ours(check):
  files = ["t5x/configs/runs/finetune.gin", *TRAIN[0]]
  assert check("train", files, *TRAIN[1:]) == []


@pytest.mark.parametrize(
  ("entry", "given"),
  [
    ("train", TRAIN),
    ("train", ([T5X + "bank_embedded.gin"], "MODEL_DIR='m'")),
    ("evaluate", EVAL),
    ("infer", INFER),
  ],
)
def test_the_config_gin_that_t5x_writes_can_be_given_again(
  check, tmp_path, entry, given
):
  check(entry, *given)
  path = tmp_path / "config.gin"
  path.write_text(gin.config_str())
  assert check(entry, [str(path)]) == []
  with pytest.raises(UserError, match=r"WARMUP .*is read by nothing"):
    check(entry, [str(path)], "WARMUP=3")


def command(script, *bindings):
  """Starts a command of T5X in this folder, as a user does."""
  return subprocess.Popen(
    [
      sys.executable,
      *("-m", f"t5x.{script}", f"--gin_file={T5X}{script}_embedded.gin"),
      *(f"--gin.{binding}" for binding in bindings),
    ],
    stdout=subprocess.PIPE,
    stderr=subprocess.STDOUT,
    text=True,
    env=os.environ | {"JAX_PLATFORMS": "cpu"},
  )


def last_line(process):
  return process.communicate(timeout=300)[0].splitlines()[-1]


@pytest.mark.slow
def test_a_misspelt_setting_ends_the_command_before_anything_is_written(t5x, tmp_path):
  model_dir = f"MODEL_DIR='{tmp_path}/run'"
  unread = command("train", TASK, model_dir, "TRAIN_STEP=5")
  unknown = command("train", TASK, model_dir, "train.total_step=5")
  said = [last_line(one) for one in (unread, unknown)]
  assert said[0].startswith("error: TRAIN_STEP (--gin) is read by nothing")
  assert said[1].startswith("error: --gin.train.total_step: Configurable 'train'")
  assert unread.returncode == unknown.returncode == 2
  assert not list(tmp_path.iterdir())


@pytest.mark.slow
def test_a_second_run_in_a_model_dir_is_refused_while_the_first_one_works(
  t5x, tmp_path
):
  run = tmp_path / "run"
  given = (TASK, f"MODEL_DIR='{run}'", "TRAIN_STEPS=20000")
  first = command("train", *given)
  try:
    while not (run / "config.gin").exists() and first.poll() is None:
      time.sleep(0.5)
    second = command("train", *given)
    assert f"The run folder '{run}' is in use by process {first.pid}" in last_line(
      second
    )
    assert second.returncode == 2
  finally:
    first.kill()  # As a crash does: the lock file stays.
    said = first.communicate()[0]
  assert re.search(r"inputs of 'tpv_sentiment' \(train\): 0 of the first \d+ are", said)
  assert (run / ".lock").exists()
  with run_folder.held(run):  # The same command would go on.
    pass
  assert not (run / ".lock").exists()


def test_our_tasks_read_where_t5x_is_told_that_data_lies(monkeypatch):
  monkeypatch.setenv("TFDS_DATA_DIR", "before")
  settings.share_data_dir(None)
  assert str(sources.data_directory()) == "before"
  settings.share_data_dir("gs://bucket/tfds")
  assert str(sources.data_directory()) == "gs://bucket/tfds"
  assert str(sources.data_directory("own")) == "own"

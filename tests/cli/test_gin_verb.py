"""Verbs with gin files: every mistake is one line that says what, why and what next."""

import pathlib
import re

import gin
import pytest

from tpv_jax import cli
from tpv_jax.settings import gin_files

REPOSITORY = pathlib.Path(__file__).parents[2]
EMBEDDED = "--gin_file=gin_configs/runs/embedded.gin"


@pytest.fixture(autouse=True)
def clean_gin():
  yield
  gin.clear_config()


def run(capsys, *arguments):
  code = cli.main(list(arguments))
  output = capsys.readouterr()
  return code, output.out, output.err


GOOD = (EMBEDDED, "--gin.TASK_NAME='topic'")


@pytest.mark.parametrize(
  ("arguments", "message"),
  [
    ((), r"BACKBONE must be given, to choose a run file by"),
    (
      ("--gin_file=gin_configs/runs/embeded.gin",),
      r"no gin file '.*embeded.gin'.*Did you mean 'gin_configs/runs/embedded.gin'",
    ),
    ((EMBEDDED,), r"RUN_DIR, TASK_NAME must be given: pass --gin.RUN_DIR="),
    (
      (*GOOD, "--gin.TRAIN_STEP=3"),
      r"TRAIN_STEP .*nothing.*Did you mean 'TRAIN_STEPS'",
    ),
    ((*GOOD, "--gin.RUN_DIR=[runs/x"), r"Cannot read the value of --gin.RUN_DIR"),
    (
      (*GOOD, "--gin.RUN_DIR"),
      r"'--gin.RUN_DIR' is not a binding: write --gin.NAME=VALUE",
    ),
    (
      (*GOOD, "--process_index=1"),
      r"--initialization_timeout are read with --multiprocess_gpu only",
    ),
    (
      (*GOOD, "--gin_search_paths=nowhere"),
      r"There is no folder 'nowhere', named by --gin_search_paths",
    ),
    (
      ("--gin_file=gin_configs/t5x/train.gin",),
      r"is for real T5X .*takes a file of gin_configs/runs",
    ),
    (
      (*GOOD, "--gin.training.train.total_stps=3"),
      r"doesn't have a parameter named 'total_stps'.*Did you mean 'total_steps'",
    ),
    (
      (*GOOD, "--gin.training.trian.total_steps=3"),
      r"No configurable matching 'training.trian'.*Did you mean 'training.train'",
    ),
    (
      (EMBEDDED, "--gin.TASK_NAME='topics'", "--gin.RUN_DIR='{run}'"),
      r"no embedded task 'topics'. Did you mean 'topic'",
    ),
    (
      (*GOOD, "--gin.RUN_DIR='{run}'", "--gin.TRAIN_STEPS=0"),
      r"TRAIN_STEPS is 0; it must be a whole number of at least 1",
    ),
    (
      (*GOOD, "--gin.RUN_DIR='{run}'", "--gin.BACKBONE='nowhere'"),
      r"There is no backbone 'nowhere'",
    ),
    (
      (*GOOD, "--gin.RUN_DIR='{run}'", "--gin.PROMPT_LENGTH=@training.train()"),
      r"The settings need each other in a circle: %MODEL needs @model.*needs %MODEL",
    ),
  ],
)
def test_a_mistake_is_one_line_and_exit_code_2(capsys, tmp_path, arguments, message):
  filled = [argument.replace("{run}", str(tmp_path / "run")) for argument in arguments]
  code, out, err = run(capsys, "train", *filled)
  assert code == 2
  assert re.fullmatch(f"error: .*{message}.*\n", err), err
  assert not out
  assert not (tmp_path / "run").exists()


def test_a_wrong_flag_is_one_line(capsys):
  code, _, err = run(capsys, "train", "--overwrite")
  assert code == 2
  assert err.count("\n") == 1
  assert "unrecognized arguments: --overwrite" in err


def test_debug_shows_the_trace(capsys):
  code, _, err = run(capsys, "train", "--debug")
  assert code == 2
  assert "Traceback" in err


@pytest.mark.parametrize(
  "verb", ["train", "bank", "eval", "infer", "study", "few-shot", "merging", "ablation"]
)
def test_help_shows_examples_whose_gin_files_are_there(capsys, verb):
  code, text, _ = run(capsys, verb, "--help")
  assert code == 0
  files = re.findall(r"--gin_file=(gin_configs/\S+)", text)
  assert files
  assert all((REPOSITORY / name).is_file() for name in files)


@pytest.mark.parametrize(
  "prefix", ["", "tpv_jax/"], ids=["from the repository", "as a package path"]
)
def test_gin_files_are_found_from_any_folder(monkeypatch, tmp_path, prefix):
  monkeypatch.chdir(tmp_path)
  gin_files.parse(
    [f"{prefix}gin_configs/runs/embedded.gin"], ["TASK_NAME='topic'", "RUN_DIR='x'"]
  )
  assert gin.query_parameter("%TRAIN_STEPS") == 300
  assert gin.query_parameter("%RUN_DIR") == "x"


def test_a_file_of_the_users_own_comes_from_the_search_path(tmp_path):
  (tmp_path / "mine.gin").write_text("TRAIN_STEPS = 7\n")
  gin_files.parse(
    ["gin_configs/runs/embedded.gin", "mine.gin"],
    ["TASK_NAME='topic'", "RUN_DIR='x'"],
    [str(tmp_path)],
  )
  assert gin.query_parameter("%TRAIN_STEPS") == 7


@pytest.mark.parametrize(
  "backbone",
  [
    "t5_1_0_small",
    "t5_1_0_base",
    "t5_1_1_small",
    "t5_1_1_base",
    "t5_1_1_large",
    "t5_1_1_xl",
    "t5_1_1_xxl",
  ],
)
def test_gin_files_of_public_backbones_have_the_sizes_of_the_table(backbone):
  from tpv_jax.backbones.t5 import network, sizes

  gin_files.parse(
    [
      "gin_configs/runs/eval.gin",
      "gin_configs/tasks/text_files.gin",
      f"gin_configs/backbones/{backbone}.gin",
    ],
    [
      "BACKBONE='b'",
      "VOCABULARY_FILE='v'",
      "TASK_NAME='t'",
      "PATHS='p'",
      "TEMPLATE='{x}'",
      "TARGET='y'",
    ],
  )
  configured = gin.get_configurable(network.Transformer)()
  numbers = sizes.SIZES[backbone.replace("t5_1", "t5_v1")]
  assert configured == network.Transformer(**numbers, dropout_rate=0.0)


def test_every_gin_file_says_what_it_requires():
  for path in (REPOSITORY / "gin_configs").rglob("*.gin"):
    header = path.read_text().split("\n\n")[0]
    assert header.startswith("#"), path
    for name in re.findall(r"^(\w+) = %gin.REQUIRED", path.read_text(), re.MULTILINE):
      assert name in path.read_text().split("from __gin__")[0], (path, name)

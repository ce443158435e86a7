"""The run files that a command takes by itself."""

import hf_references
import pytest

from tpv_jax.banks import bank
from tpv_jax.core.errors import UserError
from tpv_jax.evaluation import evaluation
from tpv_jax.evaluation.merging.merge_by_data import merge_by_data
from tpv_jax.settings import calling, gin_files, refusals, run_files
from tpv_jax.studies import ablation, few_shot, moving, study
from tpv_jax.training import training
from tpv_jax.training.task_data import VALIDATION_EXAMPLES

ENTRIES = (
  *(training.train, bank.train_bank, evaluation.evaluate, evaluation.infer),
  merge_by_data,
)


@pytest.fixture
def backbones(tmp_path):
  return {
    "embedded": "embedded",
    "t5": str(hf_references.write_folder(tmp_path / "t5", "t5")),
    "llm": str(hf_references.write_folder(tmp_path / "llama", "llama")),
  }


@pytest.mark.parametrize("entry", ENTRIES)
@pytest.mark.parametrize("kind", ["embedded", "llm", "t5"])
def test_the_backbone_chooses_the_run_file(backbones, entry, kind):
  (file,) = run_files.complete(entry, [], [f"BACKBONE={backbones[kind]}"])
  assert file in gin_files.shipped()
  assert file.endswith((f"/{kind}.gin", f"_{kind}.gin"))
  text = gin_files.bound([file])
  assert f"{entry.__module__.rpartition('.')[2]}.{entry.__name__}.model" in text


@pytest.mark.parametrize(
  "entry",
  [study.study, few_shot.compare_starts, moving.moving, ablation.ablation],
)
@pytest.mark.parametrize("kind", ["embedded", "llm", "t5"])
def test_studies_of_own_tasks_are_complete_for_every_backbone(
  backbones, entry, kind, tmp_path
):
  """Every setting has a value, and everything that the user sets is read."""
  tasks = "TASK_FILES=['a.toml', 'b.toml']"
  bindings = [f"BACKBONE={backbones[kind]!r}", tasks, "OUTPUT_DIR='out'"]
  if entry is few_shot.compare_starts:
    bindings += ["TASK_NAME='a'", "RELATED='b'"]
  added = run_files.complete(entry, [], bindings)
  assert added[1] == f"gin_configs/runs/tuning_{kind}.gin"
  settings = gin_files.parse(added, bindings)
  assert refusals.check(entry, settings, ["config", "command"]) == []


def test_own_tasks_replace_those_of_a_given_run_file(tmp_path):
  demo = ["gin_configs/runs/demo.gin"]
  bindings = ["TASK_FILES='a.toml'", "OUTPUT_DIR='out'"]
  ready = calling.prepare(study.study, demo, bindings, arguments={"config": None})
  assert "TASK_FILES" in {setting.name for setting in ready.settings.values()}


def test_a_file_of_settings_serves_every_command(backbones, tmp_path):
  mine = tmp_path / "mine.gin"
  mine.write_text(f"BACKBONE = '{backbones['t5']}'\nTRAIN_STEPS = 7\n")
  for entry in ENTRIES:
    (found,) = run_files.complete(entry, [str(mine)])
    assert found.endswith("t5.gin")
  (file,) = run_files.complete(evaluation.infer, [str(mine)])
  settings = gin_files.parse([file, str(mine)], ["PROMPT_PATH='runs/x'"])
  (line,) = refusals.check(evaluation.infer, settings)
  assert line == f"Not read by this command: TRAIN_STEPS ({mine})."


def test_a_given_run_file_is_enough(backbones):
  file = "gin_configs/runs/llm.gin"
  assert run_files.complete(training.train, [file]) == []
  assert run_files.complete(training.train, [file], ["BACKBONE=nowhere"]) == []
  english = ["gin_configs/tasks/english.gin"]
  llm = [f"BACKBONE={backbones['llm']}"]
  assert run_files.complete(training.train, english, llm) == [file]


def test_own_tasks_bring_the_file_that_reads_them(tmp_path):
  own = ["TASK_FILES=[a.toml, b.toml]"]
  demo = "gin_configs/runs/demo.gin"
  assert run_files.complete(study.study, [demo], own) == [run_files.TASK_FILES]
  reading = tmp_path / "reading.gin"
  reading.write_text("TASK_FILES = ['a.toml']\ntask_files.tasks.files = %TASK_FILES\n")
  assert run_files.complete(study.study, [demo, str(reading)]) == []
  both = run_files.complete(training.train, [], ["BACKBONE=embedded", *own])
  assert both == ["gin_configs/runs/embedded.gin", run_files.TASK_FILES]


@pytest.mark.parametrize(
  ("bindings", "message"),
  [
    ([], r"^BACKBONE must be given.*run file.*gin_configs/runs/bank_llm.gin"),
    (["BACKBONE=3"], "^BACKBONE must be given"),
    (["BACKBONE=embeded"], "no backbone 'embeded'.*Did you mean 'embedded'"),
  ],
)
def test_without_a_backbone_no_run_file_is_chosen(bindings, message):
  with pytest.raises(UserError, match=message):
    run_files.complete(bank.train_bank, [], bindings)


def test_both_runners_bind_their_optimizers_alike():
  """A prompt of one should be what the other would have trained."""
  parts = ("optimizers.adamw.", "optimizers.adafactor.", "optimizers.by_group.")
  names = ("TRANSFORMATION", "WEIGHT_DECAY")
  ours, theirs = (
    {n: value for n, value in gin_files.bound([file]).items() if n.startswith(parts)}
    | {n: gin_files.bound([file])[n] for n in names}
    for file in ("gin_configs/runs/tuning.gin", "gin_configs/t5x/common.gin")
  )
  assert ours == theirs


@pytest.mark.parametrize("kind", ["train", "train_embedded", "train_llm"])
def test_t5x_chooses_the_best_prompt_on_as_many_rows(kind):
  bound = gin_files.bound([f"gin_configs/t5x/{kind}.gin"])
  rows = bound["EVAL_STEPS"] * bound["BATCH_SIZE"]
  assert abs(rows - VALIDATION_EXAMPLES) < bound["BATCH_SIZE"]

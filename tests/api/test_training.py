"""Runs that Python trains are those of the commands: settings, bits and folders."""

import functools
import pathlib
import subprocess
import sys
import threading

import gin
import jaxtyping
import numpy as np
import pytest

import tpv_jax as tpv
from tpv_jax import cli
from tpv_jax.training import initial

BRIEF = {"train_steps": 6, "eval_period": 3, "batch_size": 4, "prompt_length": 3}
FLAGS = [f"--gin.{name.upper()}={value}" for name, value in BRIEF.items()]
NAMES = ("sentiment", "topic")
SEEDS = {"initial_seeds": [0, 1]}


@pytest.fixture(scope="module")
def backbone():
  return tpv.load_backbone("embedded")


@pytest.fixture(scope="module")
def tasks():
  return [tpv.task(name, of="embedded") for name in NAMES]


@pytest.fixture(scope="module")
def runs(backbone, tasks, tmp_path_factory):
  folder = tmp_path_factory.mktemp("python")
  return tpv.train(backbone, tasks, folder, progress=False, **SEEDS, **BRIEF)


def same_bits(one, other):
  for which in ("initial", "best", "last"):
    left, right = (tpv.load(run, which) for run in (one, other))
    assert left.provenance == right.provenance
    np.testing.assert_array_equal(left.leaves["prompt"], right.leaves["prompt"])


def test_a_run_has_the_settings_and_the_bits_of_the_command(
  backbone, tasks, tmp_path, monkeypatch
):
  monkeypatch.chdir(tmp_path)
  given = ["--gin.BACKBONE=embedded", "--gin.TASK_NAME=sentiment"]
  assert cli.main(["train", *given, "--gin.RUN_DIR=command", *FLAGS]) == 0
  run = tpv.train(backbone, tasks[0], "python", progress=False, **BRIEF)
  command = tpv.open_run("command")
  for part in ("settings", "defaults", "run", "subject"):
    assert run.manifest[part] == command.manifest[part]
  assert run.metrics == command.metrics
  same_bits("python", "command")
  # Vectors made either way are of one initial prompt and one backbone.
  twice = run.vector() + command.vector()
  assert [term.coefficient for term in twice.provenance.terms] == [2.0]


def test_a_bank_has_the_settings_and_the_bits_of_the_command(
  runs, tmp_path, monkeypatch
):
  monkeypatch.chdir(tmp_path)
  given = ["--gin.BACKBONE=embedded", "--gin.TASK_NAMES=[sentiment, topic]"]
  flags = [*FLAGS, "--gin.INITIAL_SEEDS=[0, 1]", "--gin.OUTPUT_DIR=command"]
  assert cli.main(["bank", *given, *flags]) == 0
  assert [run.name for run in runs] == [f"{n}-{seed}" for n in NAMES for seed in (0, 1)]
  for run in runs:
    command = tpv.open_run(tmp_path / "command" / run.name)
    assert run.manifest["settings"] == command.manifest["settings"]
    same_bits(run.path, command.path)


def test_a_file_of_a_task_and_a_gin_file_give_what_they_give_the_command(
  backbone, tmp_path, monkeypatch
):
  monkeypatch.chdir(tmp_path)
  rows = [f"{text}\t{label}" for text, label in (("i enjoyed the song", "a"),) * 9]
  pathlib.Path("rows.tsv").write_text("\n".join(["text\tlabel", *rows]) + "\n")
  pathlib.Path("mine.toml").write_text(
    'paths = "rows.tsv"\ntemplate = "review: {text}"\ntarget = "label"\n'
    'labels = { a = "positive", b = "negative" }\nsplits = { validation = 3 }\n'
    "lengths = { inputs = 12, targets = 3 }\n"
  )
  pathlib.Path("mine.gin").write_text("LEARNING_RATE = 0.125\n")
  given = ["--gin.BACKBONE=embedded", "--gin.TASK_FILES=mine.toml"]
  flags = [*FLAGS, "--gin_file=mine.gin", "--gin.RUN_DIR=command"]
  assert cli.main(["train", *given, *flags]) == 0
  options = {"gin_file": "mine.gin", "progress": False, **BRIEF}
  run = tpv.train(backbone, tpv.task("mine.toml"), "python", **options)
  settings = tpv.open_run("command").manifest["settings"]
  assert run.manifest["settings"] == settings
  assert settings["data"]["lengths"] == {"inputs": 12, "targets": 3}
  same_bits("python", "command")
  described = tpv.task(
    "rows.tsv",
    name="mine",
    template="review: {text}",
    target="label",
    labels={"a": "positive", "b": "negative"},
    splits={"validation": 3},
    lengths={"inputs": 12, "targets": 3},
  )
  again = tpv.train(backbone, described, "python", **options)
  assert again.manifest["settings"] == settings  # Or it would have been refused.


def test_the_same_call_finds_its_runs_finished(
  runs, backbone, tasks, capsys, tmp_path_factory
):
  folder = runs[0].path.parent
  before = {path: path.stat().st_mtime_ns for path in folder.rglob("*.safetensors")}
  again = tpv.train(backbone, tasks, folder, progress=False, **SEEDS, **BRIEF)
  assert [run.path for run in again] == [run.path for run in runs]
  assert "finished; nothing to do" in capsys.readouterr().out
  after = {path: path.stat().st_mtime_ns for path in folder.rglob("*.safetensors")}
  assert before == after


def test_functions_and_references_of_gin_are_settings(backbone, tasks, runs, tmp_path):
  for name, start in {
    "reference": "@initial.uniform",
    "function": functools.partial(initial.uniform, length=3),
  }.items():
    tpv.train(
      *(backbone, tasks[0], tmp_path / name),
      **{**BRIEF, "initial_prompt": start, "progress": False},
    )
  one, other = (tpv.load(tmp_path / n, "initial") for n in ("reference", "function"))
  np.testing.assert_array_equal(one.leaves["prompt"], other.leaves["prompt"])
  assert (one.leaves["prompt"] != runs[0].initial.leaves["prompt"]).any()


def test_the_record_of_a_run_is_a_gin_file_that_asks_for_what_python_gave(runs):
  text = (runs[0].path / "config.gin").read_text()
  assert "TASKS = %gin.REQUIRED" in text
  assert "TRAIN_STEPS = 6" in text
  gin.clear_config()
  with gin.unlock_config():
    gin.parse_config(text, skip_unknown=True)
  gin.clear_config()


@pytest.mark.parametrize(
  ("settings", "message"),
  [
    ({"learning_rates": 1}, r"^learning_rates is read by.*mean 'learning_rate'"),
    ({"train_steps": 0}, r"^train_steps is 0; it must be a whole number"),
    ({"dtype": "bfloat16"}, r"belongs to the backbone: tpv\.load_backbone"),
    ({"run_dir": "x"}, "is the folder, the third argument"),
    ({"LEARNING_RATE": 1}, "lower case: 'learning_rate', not 'LEARNING_RATE'"),
    ({"gin_file": "nowhere.gin"}, "There is no gin file 'nowhere.gin'"),
    ({"lengths": {"inputs": 2, "targets": 1}}, "(?s)lengths"),
  ],
)
def test_what_is_not_a_setting_is_refused_by_the_name_that_was_written(
  backbone, tasks, tmp_path, settings, message
):
  with pytest.raises(tpv.UserError, match=message) as caught:
    tpv.train(backbone, tasks[0], tmp_path / "run", **settings)
  assert "--gin." not in str(caught.value)
  assert not (tmp_path / "run").exists()


@pytest.fixture
def as_outside(monkeypatch):
  """Checks no annotations, as outside of these tests."""
  monkeypatch.setattr(jaxtyping.config, "jaxtyping_disable", True)


@pytest.mark.usefixtures("as_outside")
@pytest.mark.parametrize("settings", [{"initial_seeds": 3}, {"rates": 0.5}])
def test_one_number_where_a_list_is_due_is_refused(backbone, tasks, tmp_path, settings):
  ((name, value),) = settings.items()
  with pytest.raises(tpv.UserError, match=rf"^{name} is {value}; it must be a list"):
    tpv.train(backbone, tasks[0], tmp_path / "run", **settings)
  assert not (tmp_path / "run").exists()


def test_lengths_of_a_gin_file_are_those_of_the_run(backbone, tasks, tmp_path):
  assert tasks[0].lengths != {"inputs": 40, "targets": 4}
  file = tmp_path / "mine.gin"
  file.write_text("LENGTHS = {'inputs': 40, 'targets': 4}\nBACKBONE = 'embedded'\n")
  settings = {"gin_file": file, "progress": False, **BRIEF, "train_steps": 1}
  run = tpv.train(backbone, tasks[0], tmp_path / "run", **settings)
  assert run.manifest["data"]["lengths"] == {"inputs": 40, "targets": 4}
  settings["lengths"] = {"inputs": 36, "targets": 4}  # What is given wins.
  run = tpv.train(backbone, tasks[0], tmp_path / "given", **settings)
  assert run.manifest["data"]["lengths"] == settings["lengths"]


@pytest.mark.parametrize(
  ("line", "message"),
  [
    ("BACKBONE = 'smollm2'", "sets backbone, which belongs to the backbone"),
    ("DTYPE = 'bfloat16'", "sets dtype, which belongs to the backbone"),
    ("RUN_DIR = 'elsewhere'", "sets run_dir, which is the folder, the third argument"),
    ("OUTPUT_DIR = 'elsewhere'", "sets output_dir, which is the folder"),
    ("PROMPT_PATH = 'runs/a'", "sets prompt_path, which says what is evaluated"),
    ("TASK_FILES = ['a.toml']", "sets task_files, which says what the task is"),
  ],
)
def test_a_gin_file_does_not_say_what_an_argument_says(
  backbone, tasks, tmp_path, line, message
):
  (tmp_path / "inner.gin").write_text(f"\n{line}\n")
  (tmp_path / "mine.gin").write_text(f"include '{tmp_path / 'inner.gin'}'\n")
  with pytest.raises(tpv.UserError, match=rf"inner\.gin:2 {message}"):
    tpv.train(backbone, tasks[0], tmp_path / "run", gin_file=tmp_path / "mine.gin")
  assert not (tmp_path / "run").exists()


def test_only_a_loaded_backbone_and_tasks_are_trained(backbone, tasks, tmp_path):
  with pytest.raises(tpv.UserError, match=r"'embedded'\. Load it first"):
    tpv.train("embedded", tasks[0], tmp_path)
  with pytest.raises(tpv.UserError, match=r"'sentiment'\. Make it first"):
    tpv.train(backbone, ["sentiment"], tmp_path)
  with pytest.raises(tpv.UserError, match="There is no task"):
    tpv.train(backbone, [], tmp_path)


def test_gins_own_configuration_is_left_as_it_was(backbone, tasks, tmp_path):
  @gin.configurable(module="tests.api")
  def of_the_user(size=1):
    return size

  gin.clear_config()
  gin.bind_parameter("of_the_user.size", 7)
  assert of_the_user() == 7
  before = gin.config_str(), gin.operative_config_str()
  gin.finalize()
  tpv.train(backbone, tasks[0], tmp_path / "run", progress=False, **BRIEF)
  with pytest.raises(tpv.UserError):
    tpv.train(backbone, tasks[0], tmp_path / "run", train_stepz=1)
  assert gin.config_is_locked()
  assert (gin.config_str(), gin.operative_config_str()) == before
  assert of_the_user() == 7
  gin.clear_config()


def test_calls_of_two_threads_have_each_their_own_settings(backbone, tasks, tmp_path):
  steps = {"one": 3, "two": 6}
  threads = [
    threading.Thread(
      target=tpv.train,
      args=(backbone, tasks[0], tmp_path / name),
      kwargs={**BRIEF, "train_steps": count, "progress": False},
    )
    for name, count in steps.items()
  ]
  for thread in threads:
    thread.start()
  for thread in threads:
    thread.join()
  for name, count in steps.items():
    assert tpv.open_run(tmp_path / name).manifest["last_step"] == count


def test_a_run_shows_its_task_and_best_score_and_gives_its_vector(runs):
  run = runs["topic-1"]
  assert run is runs[3]
  assert f"<run '{run.path}': topic, finished, best loss " in repr(run)
  assert "<td>topic</td>" in run._repr_html_()
  assert run.vector().provenance.terms == (tpv.Term("topic", 1.0),)
  np.testing.assert_array_equal(
    run.vector().leaves["prompt"],
    run.prompt.leaves["prompt"] - run.initial.leaves["prompt"],
  )
  assert {row["kind"] for row in run.metrics} == {"train", "validation"}
  assert runs.table.column("initial_seed") == [0, 1, 0, 1]
  assert run.summary["best_step"] == runs.table[3]["best_step"]
  assert runs.table[3]["untuned"] == 0.0  # The backbone answers nothing unasked.
  assert "always '" in str(run)
  for finding in run.diagnose():
    assert finding.what in repr(run.diagnose())
  assert len(runs[1:3]) == 2
  with pytest.raises(tpv.UserError, match=r"no run 'topic-2'\. Did you mean 'topic-1'"):
    _ = runs["topic-2"]
  with pytest.raises(tpv.UserError, match="no run's folder"):
    tpv.open_run(run.path.parent)


def test_naming_a_function_of_python_loads_no_tensorflow():
  code = "import sys, tpv_jax as tpv; tpv.train, tpv.evaluate, tpv.task, tpv.Run; "
  code += "print('tensorflow' in sys.modules, 'seqio' in sys.modules)"
  done = subprocess.run(
    [sys.executable, "-c", code], capture_output=True, text=True, check=True
  )
  assert done.stdout.split() == ["False", "False"]

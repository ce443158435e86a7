"""The settings of gin_configs/studies, on a tiny model and made-up rows."""

import json
import pathlib
import string
import tomllib

import jax
import llm_stand_in
import pytest
import stand_ins

from tpv_jax import cli
from tpv_jax.data import task_files
from tpv_jax.studies import study

STUDIES = pathlib.Path(__file__).parents[2] / "gin_configs" / "studies"
TASKS = sorted((STUDIES / "tasks").glob("*.toml"))
ROWS = {"train": 300, "dev": 6, "test": 6}


@pytest.fixture(scope="module")
def data(tmp_path_factory):
  """Writes rows of each task, as its file names their columns, and returns the folder."""
  folder = tmp_path_factory.mktemp("nlu")
  for path in TASKS:
    settings = tomllib.loads(path.read_text())
    fields = string.Formatter().parse(settings["template"])
    columns = sorted({column for _, column, _, _ in fields if column})
    values = list(settings["labels"])
    for file in settings["paths"].values():
      where = folder / file
      where.parent.mkdir(exist_ok=True)
      rows = [
        {
          **{c: f"{c} {number} {where.stem}" for c in columns},
          "label": values[number % 2],
        }
        for number in range(ROWS[where.stem])
      ]
      where.write_text("".join(json.dumps(row) + "\n" for row in rows))
  return folder


@pytest.fixture(scope="module")
def backbone(tmp_path_factory):
  """A tiny model that writes each label as one token or two."""
  words = {
    word
    for path in TASKS
    for one in [tomllib.loads(path.read_text())["labels"]]
    for word in (one.values() if isinstance(one, dict) else one)
  }
  path = tmp_path_factory.mktemp("tiny") / "tiny.gguf"
  return str(llm_stand_in.write_gguf(path, sorted(words)))


def call(name, data, backbone, output, *more, verb="study"):
  return [
    verb,
    f"--gin_file=gin_configs/studies/{name}.gin",
    f"--gin.DATA_DIR={data}",
    f"--gin.BACKBONE={backbone}",
    "--gin.DTYPE=float32",
    f"--gin.OUTPUT_DIR={output}",
    *more,
  ]


@pytest.mark.parametrize("path", TASKS, ids=lambda path: path.stem)
def test_a_task_of_real_language_reads_rows_of_the_columns_that_it_names(path, data):
  task = task_files.task(path, data_dir=data)
  assert task.name == path.stem
  for split in ("train", "validation", "test"):
    examples = task.examples(split)
    assert {one.targets for one in examples} <= {*task.labels}
    assert "{" not in examples[0].inputs


def test_the_tasks_are_found_in_the_package_from_any_folder(
  tmp_path, monkeypatch, data
):
  monkeypatch.chdir(tmp_path)
  name = "gin_configs/studies/tasks/sst2.toml"
  assert task_files.task(name, data_dir=data).labels == ("negative", "positive")


def test_every_task_is_in_the_list():
  text = (STUDIES / "nlu.gin").read_text()
  assert [path.stem for path in TASKS if f"/tasks/{path.name}'" not in text] == []


@pytest.mark.parametrize("name", ["small", "small_ept", "full"])
def test_a_study_begins(name, data, backbone, tmp_path, monkeypatch):
  monkeypatch.chdir(tmp_path)  # Its files are those of the package.
  # So small a model leaves EPT no rank at 20 tokens.
  longer = ["--gin.PROMPT_LENGTH=40"] if name == "small_ept" else []
  assert stand_ins.begin(call(name, data, backbone, tmp_path / "out", *longer)) == 0


def test_the_few_shot_comparison_begins(data, backbone, tmp_path, monkeypatch):
  monkeypatch.chdir(tmp_path)
  asked = call("small_few_shot", data, backbone, tmp_path / "out", verb="few-shot")
  assert stand_ins.begin(asked) == 0


def test_the_comparison_of_merge_rules_begins(data, backbone, tmp_path, monkeypatch):
  monkeypatch.chdir(tmp_path)
  asked = call("merging_small", data, backbone, tmp_path / "out", verb="merging")
  assert stand_ins.begin(asked) == 0


def test_a_device_without_enough_memory_ends_a_study_in_one_line(
  data, backbone, tmp_path, monkeypatch, capsys
):
  def results(self, session):
    raise jax.errors.JaxRuntimeError("RESOURCE_EXHAUSTED: Out of memory: 9 bytes.")

  monkeypatch.setattr(study.Arithmetic, "results", results)
  assert cli.main(call("smoke", data, backbone, tmp_path / "out")) == 2
  (line,) = capsys.readouterr().err.splitlines()
  assert "too little memory (Out of memory: 9 bytes). Shorten LENGTHS" in line


def test_the_smoke_study_runs(data, backbone, tmp_path):
  output = tmp_path / "out"
  short = ["--gin.TRAIN_STEPS=2", "--gin.EVAL_PERIOD=1", "--gin.BATCH_SIZE=2"]
  assert cli.main(call("smoke", data, backbone, output, *short)) == 0
  results = json.loads((output / "results.json").read_text())
  assert results["tasks"] == ["sst2", "ag_news"]
  assert results["test_examples"] == {"sst2": 6, "ag_news": 6}
  assert {*results["labels"]["single"]["sst2"]} == {
    "own",
    "untuned",
    "other_initial",
    "control",
  }

import json
import pathlib
import re

import gin
import pytest

from tpv_jax import cli
from tpv_jax.cli import tasks
from tpv_jax.core.errors import UserError
from tpv_jax.data import exported
from tpv_jax.data.registry import DEFINITIONS
from tpv_jax.settings import gin_files

REPOSITORY = pathlib.Path(__file__).parents[2]
GOLDEN = REPOSITORY / "tests" / "conformance" / "golden_pairs.json"


@pytest.fixture(autouse=True)
def clear_gin():
  yield
  gin.clear_config()


@pytest.fixture
def own(tmp_path):
  """A local copy of CoLA of six rows a split."""
  folder = tmp_path / "own"
  folder.mkdir()
  for split in ("train", "validation"):
    rows = [{"sentence": f"{split} {i}", "label": i % 2} for i in range(6)]
    text = "".join(json.dumps(row) + "\n" for row in rows)
    (folder / f"{split}.jsonl").write_text(text)
  return folder


def test_list_has_a_line_for_every_task_and_can_keep_to_a_paper(capsys):
  assert cli.main(["tasks", "list"]) == 0
  lines = capsys.readouterr().out.splitlines()
  assert [line.split()[0] for line in lines] == list(DEFINITIONS)
  assert cli.main(["tasks", "list", "--paper", "EPT"]) == 0
  assert len(capsys.readouterr().out.splitlines()) == 13 + 13 + 13


@pytest.mark.parametrize("name", DEFINITIONS)
def test_show_says_what_a_task_is_with_an_example(name, capsys):
  assert cli.main(["tasks", "show", name]) == 0
  shown = capsys.readouterr().out
  pairs = json.loads(GOLDEN.read_text())["pairs"]
  for text in (
    DEFINITIONS[name].template.replace("\n", "\\n").strip(),
    DEFINITIONS[name].licence,
    f"input     {pairs[name][0]['inputs']}\n",
    f"target    {pairs[name][0]['targets']}\n",
  ):
    assert text in shown


def test_prepare_exports_too_and_export_can_take_another_seed(own, tmp_path, capsys):
  data = str(tmp_path / "data")
  call = ["tasks", "prepare", "glue_cola", "--data-dir", data, "--from", str(own)]
  assert cli.main([*call, "--no-export"]) == 0
  assert "examples" not in capsys.readouterr().out
  assert cli.main(call) == 0
  out = capsys.readouterr().out
  assert "train: 6 rows are there already" in out
  assert "test: 3 examples in" in out
  assert len(exported.task("glue_cola", data).examples("train")) == 6
  again = ["tasks", "export", "glue_cola", "--data-dir", data, "--seed", "1"]
  assert cli.main(again) == 2
  assert "another seed (0 there, 1 now)" in capsys.readouterr().err
  assert cli.main([*again, "--overwrite", "--split", "test"]) == 0
  out = capsys.readouterr().out
  assert "replaced train.jsonl, validation.jsonl, test.jsonl in" in out
  assert "test: 3 examples in" in out
  assert cli.main(["tasks", "prepare", "glue_cola", "--data-dir", data]) == 2
  error = capsys.readouterr().err
  command = re.search(r"tpv (tasks export [^;,]*--seed 1);", error)[1]
  assert cli.main(command.split()) == 0
  assert "train: 6 examples in" in capsys.readouterr().out


@pytest.mark.parametrize(
  ("call", "message"),
  [
    ("show glue_ssst2", "no task 'glue_ssst2'. Did you mean 'glue_sst2'"),
    ("export dbpedia --data-dir {0}", "tpv tasks prepare dbpedia --data-dir {0}"),
    ("prepare glue_rte imdb --from {0}", "--from names one folder, and there are 2"),
    ("prepare sst5 --data-dir {0} --from {0}/no", "needs train.jsonl and validation"),
  ],
)
def test_bad_calls_end_in_one_line(call, message, tmp_path, capsys):
  assert cli.main(["tasks", *call.format(tmp_path).split()]) == 2
  error = capsys.readouterr().err
  assert message.format(tmp_path) in error
  assert error.startswith("error: ")
  assert error.count("\n") == 1


@pytest.mark.parametrize(
  "command", ["new", "check", "list", "show", "prepare", "export"]
)
def test_help_of_every_command_has_examples_that_parse(command, capsys):
  assert cli.main(["tasks", command, "--help"]) == 0
  printed = capsys.readouterr().out
  assert max(map(len, printed.splitlines())) <= 96
  calls = re.findall(rf"^  tpv (tasks {command}.*?)(?:   .*|>.*)?$", printed, re.M)
  assert calls
  for call in calls:
    cli.parse(call.split())


@pytest.mark.parametrize("name", DEFINITIONS)
def test_gin_files_are_those_of_the_table(name):
  path = REPOSITORY / "gin_configs" / "tasks" / f"{name}.gin"
  # If not: tpv tasks show NAME --gin > gin_configs/tasks/NAME.gin
  assert path.read_text() == tasks.gin_text(DEFINITIONS[name])


def test_the_tables_of_the_documentation_are_current():
  text = (REPOSITORY / "docs" / "tasks.md").read_text()
  _, tables = text.split("<!-- from here on: tpv tasks list --markdown -->\n\n")
  assert tables == tasks.tables(list(DEFINITIONS.values())) + "\n"


@pytest.mark.parametrize("run", ["paper_tpv", "paper_dept", "paper_ept", "few_shot"])
def test_task_files_go_with_the_papers_runs(run, own, tmp_path):
  prompt = {"paper_dept": "dept_40_45", "paper_ept": "ept_base"}.get(run, "plain")
  data = str(tmp_path / "data")
  cli.main(["tasks", "prepare", "glue_cola", "--data-dir", data, "--from", str(own)])
  gin_files.parse(
    [
      "gin_configs/backbones/t5_1_0_base.gin",
      f"gin_configs/prompts/{prompt}.gin",
      "gin_configs/tasks/glue_cola.gin",
      f"gin_configs/runs/{run}.gin",
    ],
    [
      "BACKBONE='b'",
      "VOCABULARY_FILE='v'",
      "RUN_DIR='r'",
      f"DATA_DIR='{data}'",
      *(["SHOTS=5"] if run == "few_shot" else []),
    ],
  )
  task = gin.get_configurable(exported.task)()
  assert len(task.examples("train")) == 6
  steps = {"paper_tpv": 2673, "few_shot": 1000}.get(run, 40000)
  macros = {"%PAPER_STEPS": gin.query_parameter("%PAPER_STEPS")}
  found = gin.query_parameter("%TRAIN_STEPS")
  assert macros.get(str(found), found) == steps


def test_several_tasks_go_into_a_bank():
  gin_files.parse(
    [
      "gin_configs/backbones/t5_1_0_base.gin",
      "gin_configs/prompts/plain.gin",
      "gin_configs/runs/bank.gin",
      "gin_configs/tasks/registry.gin",
    ],
    [
      *("BACKBONE='b'", "VOCABULARY_FILE='v'", "OUTPUT_DIR='o'", "DATA_DIR='d'"),
      "TASK_NAMES=['glue_sst2', 'glue_rte']",
    ],
  )
  found = gin.get_configurable(exported.tasks)()
  assert [task.name for task in found] == ["glue_sst2", "glue_rte"]
  with pytest.raises(UserError, match="names is 'glue_rte'; it must be a list"):
    exported.tasks("glue_rte")


@pytest.fixture
def reviews(tmp_path, monkeypatch):
  """A CSV file as a spreadsheet writes it, in an otherwise empty folder."""
  monkeypatch.chdir(tmp_path)
  rows = "".join(
    f'"review: the film was {word}\r\nand i {verb} it",{label}\r\n'
    for verb, word, label in 20
    * [("enjoyed", "perfect", "positive"), ("hated", "poor", "negative")]
  )
  path = tmp_path / "reviews.csv"
  path.write_bytes(("\ufefftext,label\r\n" + rows).encode())
  return path


def test_new_writes_a_task_file_that_check_finds_good(reviews, capsys):
  assert cli.main(["tasks", "new", "reviews.csv", "--backbone", "embedded"]) == 0
  out = capsys.readouterr().out
  assert "reviews.csv: CSV with commas and a header, UTF-8, 40 rows" in out
  assert "Wrote 'reviews.toml'" in out
  assert "--gin.BACKBONE=embedded --gin.TASK_FILES=reviews.toml" in out
  text = reviews.with_suffix(".toml").read_text()
  assert 'template = "{text}"' in text  # It has no word 'text:'.
  assert "lengths = { inputs = 16, targets = 4 }" in text
  assert cli.main(["tasks", "new", "reviews.csv"]) == 2
  assert "'reviews.toml' exists" in capsys.readouterr().err
  assert cli.main(["tasks", "new", "reviews.csv", "--overwrite"]) == 0
  capsys.readouterr()
  assert cli.main(["tasks", "check", "reviews.toml"]) == 0
  assert "It can be trained on" in capsys.readouterr().out


def test_labels_that_cannot_be_written_end_in_code_2(reviews, capsys):
  text = reviews.read_text(encoding="utf-8-sig").replace(",negative", ",miserable")
  reviews.write_text(text, newline="")
  assert cli.main(["tasks", "new", "reviews.csv", "--backbone", "embedded"]) == 2
  printed = capsys.readouterr()
  assert "'miserable' has words that the vocabulary doesn't know" in printed.err
  assert "Wrote 'reviews.toml', which can't be trained on yet" in printed.out
  assert cli.main(["tasks", "check", "reviews.toml"]) == 0
  capsys.readouterr()
  assert cli.main(["tasks", "check", "reviews.toml", "--backbone", "embedded"]) == 2
  assert "'miserable'" in capsys.readouterr().err


def test_check_names_the_line_that_cannot_be_read(reviews, capsys):
  assert cli.main(["tasks", "new", "reviews.csv"]) == 0
  reviews.write_text(reviews.read_text().replace(",positive", ",possitive", 1))
  capsys.readouterr()
  assert cli.main(["tasks", "check", "reviews.toml"]) == 2
  assert (
    "reviews.csv:2: 'possitive' in column 'label' is outside" in capsys.readouterr().err
  )


@pytest.mark.parametrize(
  ("call", "message"),
  [
    ("new review.csv", "Did you mean 'reviews.csv'"),
    ("new reviews.csv -o reviews.gin", "A task file ends with .toml"),
    (
      "new reviews.csv --text txt",
      "no column 'txt', only text, label. Did you mean 'text'",
    ),
    ("new reviews.csv --backbone embeded", "embeded"),
    ("check reviews.csv", "tpv tasks new reviews.csv"),
  ],
)
def test_bad_calls_about_own_files_end_in_one_line(call, message, reviews, capsys):
  assert cli.main(["tasks", *call.split()]) == 2
  error = capsys.readouterr().err
  assert message in error
  assert error.count("\n") == 1

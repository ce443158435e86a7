"""Answers to new rows are those of `tpv infer --prompt`."""

import csv
import pathlib

import pytest

import tpv_jax as tpv
from tpv_jax import cli

BRIEF = {"train_steps": 10, "eval_period": 5, "prompt_length": 3, "progress": False}


@pytest.fixture(scope="module")
def backbone():
  return tpv.load_backbone("embedded")


@pytest.fixture(scope="module")
def task():
  return tpv.task("sentiment", of="embedded")


@pytest.fixture(scope="module")
def run(backbone, task, tmp_path_factory):
  return tpv.train(backbone, task, tmp_path_factory.mktemp("runs") / "one", **BRIEF)


@pytest.fixture(scope="module")
def texts(task):
  return [example.inputs for example in task.examples("test")[:5]]


def test_answers_are_those_of_the_command(backbone, run, texts, tmp_path, monkeypatch):
  monkeypatch.chdir(tmp_path)
  with open("new.csv", "w", newline="") as file:
    csv.writer(file).writerows([["id", "text"], *enumerate(texts)])
  flags = ["--input", "new.csv", "--output", "out.csv"]
  assert cli.main(["infer", "--prompt", str(run.path), *flags]) == 0
  rows = [{"id": number, "text": text} for number, text in enumerate(texts)]
  table = tpv.predict(backbone, run, rows)
  with open("out.csv", newline="") as file:
    theirs = list(csv.DictReader(file))
  assert [{k: str(v) for k, v in row.items()} for row in table] == theirs
  assert table == tpv.predict(None, str(run.path), rows)


def test_texts_and_frames_are_rows_of_the_one_column(backbone, run, texts):
  table = tpv.predict(backbone, run, texts)
  assert table.column("text") == texts
  (alone,) = tpv.predict(backbone, run, texts[0])
  assert alone["answer"] == table[0]["answer"]
  # A call of another shape rounds in another order.
  assert alone["score"] == pytest.approx(table[0]["score"], rel=1e-4)
  pandas = pytest.importorskip("pandas")
  frame = pandas.DataFrame({"text": texts})
  assert tpv.predict(backbone, run, frame) == table


def test_a_prompt_in_memory_answers_as_the_task_says(backbone, run, task, texts):
  table = tpv.predict(backbone, run, texts)
  applied = run.vector().on(run.initial)
  again = tpv.predict(backbone, applied, texts, task=task)
  assert again.column("answer") == table.column("answer")
  assert again.column("score") == pytest.approx(table.column("score"), abs=1e-4)


def test_a_run_without_a_best_prompt_answers_with_its_last(
  backbone, task, texts, tmp_path
):
  run = tpv.train(backbone, task, tmp_path / "run", best_metric=None, **BRIEF)
  assert not run.keeps_best
  of_run = tpv.predict(backbone, run, texts)
  assert of_run == tpv.predict(backbone, run.path / "last_prompt.safetensors", texts)
  assert of_run == tpv.predict(None, str(run.path), texts)
  scores = [tpv.evaluate(backbone, task, one) for one in (run, str(run.path))]
  assert scores[0] == scores[1]


def test_what_cannot_be_answered_is_refused(backbone, run, texts, tmp_path):
  for prompt, rows, message in (
    (run.vector(), texts, r"is a vector.*vector\.on\(run\.initial\)"),
    (run.prompt, texts, r"give task="),
    (run, [3], "Row 1 is 3"),
    (run, [{"txt": "x"}], "no column 'text'"),
    (pathlib.Path("nowhere"), texts, "nowhere"),
  ):
    with pytest.raises(tpv.UserError, match=message):
      tpv.predict(backbone, prompt, rows)


def test_rows_may_be_a_file_whose_columns_are_kept(backbone, run, texts, tmp_path):
  given = tmp_path / "new.csv"
  lines = [["id", "text"], *((f"00{n}", text) for n, text in enumerate(texts))]
  with open(given, "w", encoding="utf-8-sig", newline="") as file:
    csv.writer(file, delimiter=";").writerows(lines)
  table = tpv.predict(backbone, run, given)
  assert table.column("id") == [f"00{n}" for n in range(len(texts))]
  assert table == tpv.predict(backbone, run, str(given))
  assert table.column("answer") == tpv.predict(backbone, run, texts).column("answer")
  # A name of a file is never answered as if it were a text.
  with pytest.raises(tpv.UserError, match=r"other\.csv"):
    tpv.predict(backbone, run, str(tmp_path / "other.csv"))

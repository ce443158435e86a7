"""Own tasks in every command: two files as users have them, on the embedded backbone."""

import csv
import json
import re
import shlex

import gin
import pytest

from tpv_jax import cli
from tpv_jax.embedded import suite


@pytest.fixture(autouse=True)
def clear_gin():
  yield
  gin.clear_config()


@pytest.fixture
def own(tmp_path, monkeypatch):
  """A CSV file with a byte-order mark, CRLF and line ends in cells, and a plain one.

  Their labels are a number, which becomes two words, and words.
  """
  monkeypatch.chdir(tmp_path)
  with open("reviews.csv", "w", encoding="utf-8-sig", newline="") as file:
    rows = csv.writer(file, lineterminator="\r\n")
    rows.writerow(["id", "text", "stars"])
    for number, one in enumerate(suite.examples("sentiment", "train")[:80]):
      stars = {"negative": 1, "positive": 5}[one.targets]
      rows.writerow([number, one.inputs.replace(" the ", "\nthe ", 1), stars])
  with open("news.csv", "w", newline="") as file:
    rows = csv.writer(file)
    rows.writerow(["headline", "section"])
    rows.writerows(
      [one.inputs, one.targets] for one in suite.examples("topic", "train")[:80]
    )
  for name in ("reviews", "news"):
    # The labels 1 and 5 are no words of the vocabulary, which is said.
    assert cli.main(["tasks", "new", f"{name}.csv", "--backbone", "embedded"]) in (0, 2)
  path = tmp_path / "reviews.toml"
  text = path.read_text().replace('= "1"', '= "thumbs_down reject"')
  path.write_text(re.sub(r'= "5".*', '= "recommend thumbs_up"', text))
  assert cli.main(["tasks", "check", "reviews.toml", "--backbone", "embedded"]) == 0
  return tmp_path


def call(verb, *settings):
  given = ["BACKBONE=embedded", *settings]
  assert cli.main([verb, *(f"--gin.{one}" for one in given)]) == 0


BOTH = "TASK_FILES=[news.toml, reviews.toml]"
SHORT = ("TRAIN_STEPS=60", "EVAL_PERIOD=30")


def test_train_eval_and_infer_take_a_task_file(own):
  call("train", "TASK_FILES=reviews.toml", "RUN_DIR=run", *SHORT)
  call("eval", BOTH, "PROMPT_PATH=run", "OUTPUT=scores.json")
  scores = json.loads((own / "scores.json").read_text())["results"]
  by_task = {one["task"]: one["exact_match"] for one in scores}
  assert by_task["reviews"] > 0.7 > by_task["news"]
  (own / "lines.txt").write_text("review: i never enjoyed the song\n")
  call("infer", "PROMPT_PATH=run", "INPUT_FILE=lines.txt", "OUTPUT=a.jsonl")
  answer = json.loads((own / "a.jsonl").read_text())
  assert "thumbs_down reject" in answer.values()


def test_a_bank_takes_several_and_one_run_names_its_task(own, capsys):
  call("bank", BOTH, "OUTPUT_DIR=bank", *SHORT)
  runs = {path.name for path in (own / "bank").iterdir() if path.is_dir()}
  assert runs == {"news-0", "reviews-0"}
  capsys.readouterr()
  train = ["train", "--gin.BACKBONE=embedded", f"--gin.{BOTH}", "--gin.RUN_DIR=run"]
  assert cli.main(train) == 2
  assert "Set TASK_NAME to one of them" in capsys.readouterr().err


@pytest.mark.slow
def test_studies_compare_two_own_tasks(own):
  short = ("INITIAL_SEEDS=[0, 1]", "TRAIN_STEPS=20", "EVAL_PERIOD=10", BOTH)
  call("study", "OUTPUT_DIR=study", *short)
  assert "reviews" in (own / "study" / "report.md").read_text()
  roles = ("TASK_NAME=reviews", "RELATED=news", "SHOTS=[0, 10]")
  call("few-shot", "OUTPUT_DIR=starts", *short, *roles)
  assert "Related: news." in (own / "starts" / "report.md").read_text()
  rates = ("PLAIN_RATES=[0.3]", "DECOMPOSED_RATES=[(0.3, 0.01)]", "PROMPT_LENGTH=24")
  call("ablation", "OUTPUT_DIR=ablation", *short, *rates)
  assert "reviews" in (own / "ablation" / "report.md").read_text()


def test_the_commands_it_prints_take_names_of_any_letters(own, capsys):
  odd = "ours, 'new' & old"
  (own / f"{odd}.csv").write_bytes((own / "news.csv").read_bytes())
  capsys.readouterr()
  assert cli.main(["tasks", "new", f"{odd}.csv", "--backbone", "embedded"]) == 0
  said = capsys.readouterr().out
  (train,) = re.findall(r"(?m)^  (tpv train .*)$", said)
  assert cli.main([*shlex.split(train)[1:], "--show-config"]) == 0
  assert f"TASK_FILES = {odd + '.toml'!r}" in capsys.readouterr().out
  text = (own / f"{odd}.toml").read_text()
  (written,) = re.findall(r"Written by: (.*)", text)
  assert shlex.split(written) == ["tpv", "tasks", "new", f"{odd}.csv"]


def test_the_command_after_a_change_looks_under_the_same_vocabulary(
  tmp_path, monkeypatch, capsys
):
  monkeypatch.chdir(tmp_path)
  rows = [f"the play was {word},very good" for word in ("great", "lovely") * 10]
  (tmp_path / "plays.csv").write_text("\n".join(["text,label", *rows]))
  assert cli.main(["tasks", "new", "plays.csv", "--backbone", "embedded"]) == 2
  again = "tpv tasks check plays.toml --backbone embedded"
  assert again in capsys.readouterr().out
  assert again in (tmp_path / "plays.toml").read_text()

"""A study's prompts as a bundle: the study goes on from it, and its scores are checked."""

import csv
import dataclasses
import pathlib
import re
import shutil

import pytest
import stand_ins

from tpv_jax import cli
from tpv_jax.core import files
from tpv_jax.formats import bundles, packaged

FLAGS = (
  *("--gin.BACKBONE=embedded", "--gin.TASK_FILES=[reviews.toml, news.toml]"),
  *("--gin.INITIAL_SEEDS=[0, 1]", "--gin.TRAIN_STEPS=20", "--gin.EVAL_PERIOD=10"),
  "--gin.study.study.coefficients=[1.0]",
)


@pytest.fixture(scope="module")
def study(tmp_path_factory):
  """The folder of two task files, with a finished study and the bundle of its prompts."""
  folder = tmp_path_factory.mktemp("study")
  for name in ("reviews.toml", "news.toml"):
    stand_ins.FILES[name](folder / name)
  with pytest.MonkeyPatch.context() as patch:
    patch.chdir(folder)
    assert cli.main(["study", *FLAGS, "--gin.OUTPUT_DIR=out"]) == 0
    text = pathlib.Path("reviews.toml").read_text()
    pathlib.Path("reviews.toml").write_text(f'licence = "ours"\n{text}')
    call = ("prompts", "pack", "out", "-o", "b.safetensors", "--task-files")
    assert cli.main([*call, "reviews.toml", "news.toml"]) == 0
  return folder


@pytest.fixture
def inside(study, monkeypatch):
  monkeypatch.chdir(study)
  return study


def check(*names, bundle="b.safetensors", flags=()):
  given = ("--file", bundle, "--task-files", "reviews.toml", "news.toml", *flags)
  return cli.main(["prompts", "check", *names, *given])


def test_a_bundle_has_the_scores_of_its_study_and_the_licences_of_the_data(inside):
  found = bundles.read("b.safetensors")
  results = files.read_json("out/results.json")
  for name, run in found.items():
    own = results["single"][run.task]["own"][int(name[-1])]
    assert run.measured.scores == pytest.approx(
      {metric: own[metric] for metric in ("exact_match", "label_accuracy")}
    )
    assert run.licence == {"reviews": "ours", "news": None}[run.task]


def test_a_study_goes_on_from_an_unpacked_bundle_and_trains_nothing(inside):
  cli.main(["prompts", "unpack", "--file", "b.safetensors", "-o", "again"])
  shutil.copy("out/measured.json", "again")
  before = {path: path.read_bytes() for path in (inside / "again").rglob("*.json")}
  assert cli.main(["study", *FLAGS, "--gin.OUTPUT_DIR=again"]) == 0
  assert {path: path.read_bytes() for path in before} == before
  first, second = (
    files.read_json(f"{folder}/results.json") for folder in ("out", "again")
  )
  assert first["single"] == second["single"]
  assert first["sums"] == second["sums"]


def test_scores_are_measured_again_row_by_row(inside, capsys):
  assert check() == 0
  head, *lines = capsys.readouterr().out.splitlines()
  assert head.split()[-2:] == ["rows", "changed"]
  assert [line.split()[0] for line in lines] == [
    *("news-0", "news-1", "reviews-0", "reviews-1")
  ]
  assert all(line.split()[-1] == "0" for line in lines)
  assert all(line.split()[2] == line.split()[3] for line in lines)


def test_rows_that_are_answered_otherwise_are_counted_and_refused(inside, capsys):
  found = bundles.read("b.safetensors")
  run = found["news-0"]
  flipped = {
    name: text.translate(str.maketrans("01", "10")) if name == "exact_match" else text
    for name, text in run.measured.hits.items()
  }
  measured = bundles.Measured(run.measured.rows, flipped)
  found["news-0"] = dataclasses.replace(run, measured=measured)
  bundles.write("other.safetensors", found.values())
  assert check("news-0", bundle="other.safetensors") == 1
  out = capsys.readouterr().out
  assert f"  {run.measured.examples}\nMore than 10 of 100 rows are answered" in out
  allowed = ("--most-changed", "100")
  assert check("news-0", bundle="other.safetensors", flags=allowed) == 0


def test_other_rows_are_said_to_be_others_and_not_compared(inside, capsys):
  text = (inside / "news.csv").read_text()
  try:
    (inside / "news.csv").write_text(text.replace("the ", "a ", 200))
    assert check("news-0") == 1
  finally:
    (inside / "news.csv").write_text(text)
  assert "Other test rows than those that were measured: news-0" in (
    capsys.readouterr().out
  )


@pytest.mark.parametrize(
  ("flags", "message"),
  [
    (
      [],
      r"the data of sst2 are needed, which do not come with the package, and no fol",
    ),
    (["--data-dir", "nowhere"], r"data of sst2 are needed.*no folder 'nowhere'"),
    (["--task-files", "reviews.toml"], r"No task file describes 'sst2'"),
  ],
)
def test_what_a_check_needs_is_said_in_one_line(inside, capsys, flags, message):
  assert cli.main(["prompts", "check", "sst2-0", *flags]) == 2
  assert re.search(message, capsys.readouterr().err)


def test_scores_of_another_prompt_are_refused(inside, tmp_path):
  shutil.copytree("out", tmp_path / "out")
  best = tmp_path / "out/runs/news-0"
  shutil.rmtree(best)
  shutil.copytree("out/runs/news-1", best)
  call = [
    "prompts",
    "pack",
    str(tmp_path / "out"),
    "-o",
    str(tmp_path / "b.safetensors"),
  ]
  assert cli.main(call) == 2


@pytest.mark.slow
def test_a_ready_prompt_answers_films_as_the_documents_show(tmp_path):
  """On the real model, of which a machine's processor rounds the scores only."""
  if not packaged.folder("smollm2").is_dir():
    pytest.skip("SmolLM2 was not fetched: tpv fetch smollm2")
  repository = pathlib.Path(__file__).parents[2]
  assert cli.main(["prompts", "unpack", "sst2-0", "-o", str(tmp_path)]) == 0
  made = tmp_path / "answers.csv"
  films = str(repository / "examples/films.csv")
  given = ["--prompt", str(tmp_path / "runs/sst2-0"), "--input", films]
  assert cli.main(["infer", *given, "--output", str(made)]) == 0
  rows = list(csv.DictReader(made.open()))
  page = (repository / "docs/decoder_only.md").read_text()
  shown = page.split("```text\nsentence,answer")[1].split("```")[0].splitlines()[1:]
  answers = [line.rsplit(",", 4)[-4] for line in shown]
  assert [row["answer"] for row in rows] == answers
  assert answers == ["positive", "negative", "positive", "negative"]

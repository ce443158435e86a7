"""New rows are answered as the run of a prompt says, without gin files."""

import csv
import dataclasses
import io
import json
import os
import shutil
import sys

import numpy as np
import pytest

from tpv_jax import cli
from tpv_jax.backbones import loading
from tpv_jax.core import identity
from tpv_jax.core.errors import UserError
from tpv_jax.data import recipes, tasks, vocabularies
from tpv_jax.evaluation import predicting
from tpv_jax.evaluation.evaluator import Evaluator
from tpv_jax.evaluation.predicting import Asked
from tpv_jax.formats import sources
from tpv_jax.runs import subject
from tpv_jax.training.task_data import TaskData
from tpv_jax.vectors import algebra

ROWS = [
  {"id": "b", "text": "word3 word8 word2", "label": "1"},
  {"id": "a", "text": "word4", "label": ""},
  {"id": "c", "text": "word5 word5 word9", "label": "0"},
]

INPUT = ("--input", "new.csv")


@pytest.fixture(scope="module")
def work(tiny, tmp_path_factory):
  """A folder with a backbone, its words, and runs with labels and with free targets."""
  folder = tmp_path_factory.mktemp("work")
  words = tiny.vocabulary.words
  loading.save_backbone(
    str(folder / "tiny.safetensors"), identity.flatten(tiny.backbone.params), "tiny"
  )
  (folder / "words.txt").write_text("\n".join(words) + "\n")
  vocabulary = vocabularies.load(folder / "words.txt")
  model = tiny.model()
  model.input_vocabulary = vocabulary
  first, second = tiny.task.labels
  for name, labels in (("labels", {"0": first, "1": second}), ("free", None)):
    recipe = recipes.Recipe("parity", "word1 {text} word2", "label", labels)
    task = dataclasses.replace(
      tiny.task, labels=labels and tuple(labels.values()), recipe=recipe
    )
    tiny.train(
      folder / "runs" / name,
      model=model,
      data=TaskData(task, vocabulary, tiny.lengths, 8),
      backbone=str(folder / "tiny.safetensors"),
      total_steps=10,
    )
  return folder


@pytest.fixture
def here(work, tmp_path, monkeypatch):
  """A copy of the work that a test may change, as the present folder."""
  shutil.copytree(work, tmp_path / "work")
  monkeypatch.chdir(tmp_path / "work")
  with open("new.csv", "w", newline="") as file:
    writer = csv.DictWriter(file, list(ROWS[0]))
    writer.writeheader()
    writer.writerows(ROWS)
  return tmp_path / "work"


def infer(*arguments):
  return cli.main(["infer", *arguments])


def test_labels_are_scored_as_an_evaluation_scores_them(tiny, here, capsys):
  call = ("--prompt", "runs/labels", "--input", "new.csv")
  assert infer(*call, "--output", "out.csv") == 0
  with open("out.csv", newline="") as file:
    rows = list(csv.DictReader(file))
  assert [{name: row[name] for name in ROWS[0]} for row in rows] == ROWS
  labels = tiny.task.labels
  assert list(rows[0])[3:] == ["answer", "score", *(f"p({x})" for x in labels)]
  # The same by hand: the evaluator that `tpv eval` uses, on sources of the template.
  leaves = dict(sources.load("runs/labels").leaves)
  evaluator = Evaluator(
    tiny.model(prompt=None), tiny.backbone.params, tiny.vocabulary, tiny.lengths
  )
  examples = [tasks.Example(f"word1 {row['text']} word2", labels[0]) for row in ROWS]
  _, scores = evaluator.answer(leaves, evaluator.tokenize(examples), labels)
  odds = np.exp(scores) / np.exp(scores).sum(axis=1, keepdims=True)
  for row, its_scores, its_odds in zip(rows, scores, odds, strict=True):
    assert row["answer"] == labels[its_scores.argmax()]
    np.testing.assert_allclose(float(row["score"]), its_scores.max(), rtol=1e-4)
    found = [float(row[f"p({label})"]) for label in labels]
    np.testing.assert_allclose(found, its_odds, rtol=1e-4)
  right = [rows[0]["answer"] == labels[1], rows[2]["answer"] == labels[0]]
  shown = capsys.readouterr().out
  assert f"Exact match with column 'label': {np.mean(right):.4f} of 2 rows" in shown


def test_a_value_that_is_another_classs_word_counts_as_the_value(tiny, here):
  first, second = tiny.task.labels
  predictor = predicting.load(Asked("runs/labels"))

  def exact_match(labels, called):
    recipe = dataclasses.replace(predictor.recipe, labels=labels)
    answers = [row["answer"] for row in predicting.predict(ROWS, Asked("runs/labels"))]
    rows = [
      row | {"label": called[word]} for row, word in zip(ROWS, answers, strict=True)
    ]
    return dataclasses.replace(predictor, recipe=recipe).predict(rows).exact_match

  exchanged = {first: second, second: first}
  assert exact_match(exchanged, called=exchanged) == 1.0
  same = {"0": first, "1": second}
  assert exact_match(same, called={first: first, second: second}) == 1.0


def test_free_answers_are_those_of_decoding_with_their_log_probability(tiny, here):
  assert infer("--prompt", "runs/free", "--input", "new.csv", "-o", "out.jsonl") == 0
  rows = [json.loads(line) for line in (here / "out.jsonl").read_text().splitlines()]
  assert list(rows[0]) == [*ROWS[0], "answer", "score"]
  predictor = predicting.load(Asked("runs/free"))
  generated, _ = predictor.evaluator.answer(
    predictor.prompt, predictor.evaluator.tokenize(predictor.examples(ROWS)), None
  )
  assert [row["answer"] for row in rows] == generated
  assert all(row["score"] < 0 for row in rows)


def test_a_vector_on_its_initial_prompt_answers_as_the_prompt_itself(here):
  tuned, initial = sources.load("runs/labels"), sources.load("runs/labels", "initial")
  sources.save("v.safetensors", algebra.diff(tuned, initial))
  shutil.copy("runs/labels/best_prompt.safetensors", "moved.safetensors")
  expected = predicting.predict(ROWS, Asked("runs/labels"))
  assert predicting.predict(ROWS, Asked("moved.safetensors", "runs/labels")) == expected
  asked = Asked(vector="v.safetensors", initial="runs/labels")
  for row, other in zip(predicting.predict(ROWS, asked), expected, strict=True):
    assert row["answer"] == other["answer"]
    np.testing.assert_allclose(row["score"], other["score"], rtol=1e-4)
  nothing = dataclasses.replace(asked, coefficient=0.0)
  start = Asked("runs/labels", which="initial")
  assert predicting.predict(ROWS, nothing) == predicting.predict(ROWS, start)
  call = ("--vector", "v.safetensors", "--initial", "runs/labels", "--coefficient", "0")
  assert infer(*call, "--input", "new.csv", "--output", "out.jsonl") == 0
  rows = [json.loads(line) for line in (here / "out.jsonl").read_text().splitlines()]
  assert rows == predicting.predict(ROWS, start)


def test_a_pipe_is_answered_in_its_own_format_and_nothing_else_is_printed(
  here, capsys, monkeypatch
):
  lines = "".join(json.dumps({"text": row["text"], "n": 1.50}) + "\n" for row in ROWS)
  monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(lines.encode())))
  assert infer("--prompt", "runs/labels") == 0
  shown = capsys.readouterr()
  rows = [json.loads(line) for line in shown.out.splitlines()]
  assert [row["text"] for row in rows] == [row["text"] for row in ROWS]
  assert "Wrote 3 rows" in shown.err


def test_what_was_trimmed_or_is_no_label_is_said(here, capsys):
  long = " ".join(["word3"] * 40)
  with open("new.csv", "w") as file:
    file.write(f"text,label\n{long},1\nword4,maybe\nword5,\n")
  assert infer("--prompt", "runs/labels", "--input", "new.csv", "-o", "out.csv") == 0
  shown = capsys.readouterr().out
  assert "Sources: 1 trimmed" in shown
  assert "1 rows have another text in column 'label' than a label ('maybe')" in shown


@pytest.mark.parametrize(
  ("arguments", "message"),
  [
    (["--input", "new.csv"], "--input was given without a prompt"),
    (["--prompt", "runs/labels", "--gin.LABELS=3"], "gin settings were given, too"),
    (["--prompt", "runs/labels", "--vector", "v"], "Both a prompt and a vector"),
    (["--prompt", "runs/labels", "--initial", "v"], "no vector was given"),
    (["--vector", "v", "--initial", "i", "--which", "last"], "--which last says which"),
    (
      ["--prompt", "runs/labels/best_prompt.safetensors", "--which=initial", *INPUT],
      "'runs/labels/best_prompt.safetensors' is none. Leave it out",
    ),
    (["--vector", "v"], "applied to an initial prompt. Give --initial RUN"),
    (["--prompt", "runs/labels", "--batch-size", "0"], "--batch-size is 0; it must"),
    (["--prompt", "runs/labels", "--model-parallel", "0"], "--model-parallel is 0; it"),
    (["--prompt", "runs/labels", "--input", "bad.jsonl"], ", or set --format if this"),
    (["--prompt", "runs/labels", "--input", "both.csv"], ", or set --format to 'tsv'"),
    (["--prompt", "tiny.safetensors"], "is not in a run folder, and a run says"),
    (["--prompt", "runs/labels", "--input", "renamed.csv"], "Did you mean 'text_'"),
    (
      ["--prompt", "runs/labels", "--input", "empty.csv"],
      "empty.csv:3: column 'text' is ",
    ),
    (["--prompt", "runs/labels", "--input", "out.csv"], "--prefix predicted_"),
    (
      ["--prompt", "runs/labels", "--input", "new.csv", "-o", "a.xlsx"],
      "'a.xlsx' tells",
    ),
    (["--prompt", "runs/labels", "--input", "new.csv", "-o", "out.csv"], "--overwrite"),
    (["--prompt", "runs/labels", "--input", "new.txt"], "Set --format csv"),
    (
      ["--prompt", "runs/labels", "--input", "two.csv", "-o", "a.tsv"],
      "two.csv:2: col",
    ),
    (
      ["--prompt", "runs/labels", "--input", "new.csv", "--backbone", "embedded"],
      "was trained on the backbone 'tiny'",
    ),
  ],
)
def test_what_does_not_go_is_refused_in_one_line(here, capsys, arguments, message):
  (here / "renamed.csv").write_text("text_,label\nword3,1\n")
  (here / "out.csv").write_text("text,answer\nword3,1\n")
  (here / "empty.csv").write_text('text,n\nword3,1\n"",2\n" ",3\n')
  (here / "new.txt").write_text("text\nword3\n")
  (here / "two.csv").write_text('text\n"word3\nword4"\n')
  (here / "bad.jsonl").write_text("text\n")
  (here / "both.csv").write_text(";\ttext\t;\nx\n")
  assert infer(*arguments) == 2
  error = capsys.readouterr().err.strip()
  assert message in error.splitlines()[-1]
  assert "Traceback" not in error


def test_a_run_whose_backbone_has_moved_asks_where_it_is(here):
  os.rename("tiny.safetensors", "elsewhere.safetensors")
  with pytest.raises(
    UserError, match=r"backbone is at '.*tiny\.safetensors'.*backbone="
  ):
    predicting.load(Asked("runs/labels"))
  found = predicting.load(Asked("runs/labels"), backbone="elsewhere.safetensors")
  assert found.predict(ROWS).compared == 2
  os.rename("words.txt", "other.txt")
  with pytest.raises(UserError, match="vocabulary file is at"):
    predicting.load(Asked("runs/labels"), backbone="elsewhere.safetensors")


def test_an_older_run_says_what_to_give_instead(here, capsys):
  path = here / "runs/labels/manifest.json"
  manifest = json.loads(path.read_text())
  del manifest[subject.KEY]
  path.write_text(json.dumps(manifest))
  assert infer("--prompt", "runs/labels", "--input", "new.csv") == 2
  assert "--gin_file=FILE" in capsys.readouterr().err


def test_a_loaded_backbone_is_not_read_again(here, monkeypatch):
  backbone = loading.load_backbone("tiny.safetensors")
  expected = predicting.predict(ROWS, Asked("runs/labels"))
  monkeypatch.setattr(loading, "load_backbone", None)
  assert predicting.predict(ROWS, Asked("runs/labels"), backbone=backbone) == expected

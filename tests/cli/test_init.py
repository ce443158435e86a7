"""`tpv init`: one file of settings that every command reads."""

import re
import shlex

import pytest

from tpv_jax import cli

ROWS = "".join(
  f"the film was {word},{word == 'good'}\n" for word in ["good", "bad"] * 20
)

TASK = """\
paths = "{name}.csv"
template = "review: {{text}} sentiment:"
target = "label"
labels = {{ False = "{negative}", True = "positive" }}
splits = {{ validation = 10, test = 10 }}
lengths = {{ inputs = 24, targets = 2 }}
"""


@pytest.fixture
def folder(tmp_path, monkeypatch):
  monkeypatch.chdir(tmp_path)
  for name in ("films", "books"):
    (tmp_path / f"{name}.csv").write_text("text,label\n" + ROWS)
    (tmp_path / f"{name}.toml").write_text(TASK.format(name=name, negative="negative"))
  return tmp_path


def commands(text):
  return [shlex.split(line.strip()) for line in re.findall(r"(?m)^  (tpv .*)$", text)]


def test_every_command_that_it_prints_runs(folder, capsys):
  assert cli.main(["init", "--backbone", "embedded", "--tasks", "films.toml"]) == 0
  said = capsys.readouterr().out
  assert said.startswith("Wrote settings.gin. Next:\n")
  text = (folder / "settings.gin").read_text()
  assert "# TRAIN_STEPS = 300  # optimizer steps in all." in text
  assert "# WARMUP_STEPS = 0  # in which the rate grows" in text  # Of another gin file.
  (folder / "settings.gin").write_text(
    text.replace("# TRAIN_STEPS = 300", "TRAIN_STEPS = 3")
  )
  train, evaluate = commands(said)
  assert cli.main(train[1:]) == 0
  assert "for 3 steps" in capsys.readouterr().out
  assert cli.main(evaluate[1:]) == 0
  said = capsys.readouterr()
  assert "films" in said.out
  assert "Not read by this command: TRAIN_STEPS (settings.gin)." in said.err


def test_of_several_tasks_each_command_names_its_own(folder, capsys):
  call = ["init", "--backbone", "embedded", "--tasks", "films.toml", "books.toml"]
  assert cli.main([*call, "-o", "two.gin"]) == 0
  train, bank, evaluate = commands(capsys.readouterr().out)
  for one in (train, bank, evaluate):
    assert cli.main([*one[1:], "--show-config"]) == 0
    assert "TASK_FILES = ['films.toml', 'books.toml']" in capsys.readouterr().out
  assert "--gin.TASK_NAME=films" in train
  assert "--gin.TASK_NAMES=[films]" in evaluate


def test_commands_take_names_of_any_letters(folder, capsys):
  (folder / "my conf").mkdir()
  odd = "'2024', films & books.toml"
  (folder / odd).write_text('name = "2024"\n' + (folder / "films.toml").read_text())
  call = ["init", "--backbone", "embedded", "--tasks", odd, "books.toml"]
  assert cli.main([*call, "-o", "my conf/two.gin"]) == 0
  calls = commands(capsys.readouterr().out)
  written = (folder / "my conf/two.gin").read_text()
  assert "In the folder where 'tpv init' was called:\n" in written
  assert commands(written.replace("#   ", "  ")) == calls
  names = ("TASK_NAME = '2024'", "TASK_NAMES = None", "TASK_NAMES = ['2024']")
  for one, name in zip(calls, names, strict=True):
    assert cli.main([*one[1:], "--show-config"]) == 0
    said = capsys.readouterr().out
    assert f"TASK_FILES = {[odd, 'books.toml']!r}" in said
    assert name in said


def test_without_tasks_the_embedded_backbone_has_its_own(folder, capsys):
  assert cli.main(["init", "--backbone", "embedded"]) == 0
  for one in commands(capsys.readouterr().out):
    assert cli.main([*one[1:], "--show-config"]) == 0
  capsys.readouterr()
  before = (folder / "settings.gin").read_text()
  assert cli.main(["init", "--backbone", "embedded"]) == 2
  assert "settings.gin' exists" in capsys.readouterr().err
  assert (folder / "settings.gin").read_text() == before


def test_labels_that_the_model_cannot_write_are_refused_at_once(folder, capsys):
  (folder / "films.toml").write_text(TASK.format(name="films", negative="abominable"))
  assert cli.main(["init", "--backbone", "embedded", "--tasks", "films.toml"]) == 2
  assert "'abominable' has words that the vocabulary doesn't know" in (
    capsys.readouterr().err
  )
  assert not (folder / "settings.gin").exists()

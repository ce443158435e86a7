"""A run's manifest states what its prompt needs, without folders of the machine."""

import functools
import json
import os
import shutil

import pytest

from tpv_jax.core.errors import UserError
from tpv_jax.runs import subject


@functools.cache
def stated():
  return {
    "backbone": "embedded",
    "family": "t5",
    "vocabulary_file": None,
    "chat": None,
    "dtype": "float32",
    "quantize": None,
    "lengths": {"inputs": 24, "targets": 2},
    "recipe": None,
  }


def write(folder, content):
  folder.mkdir(exist_ok=True)
  manifest = {"format": "tpv_jax run 1", "settings": {}, "subject": content}
  (folder / "manifest.json").write_text(json.dumps(manifest))
  return folder


def test_a_path_is_stated_as_it_leads_from_the_run(tmp_path, monkeypatch):
  (tmp_path / "models").mkdir()
  run = tmp_path / "runs" / "one"
  run.mkdir(parents=True)
  monkeypatch.chdir(tmp_path)
  assert subject.portable("models/flan", run) == "../../models/flan"
  assert subject.portable(tmp_path / "models/flan", "runs/one") == "../../models/flan"
  assert subject.portable("gs://bucket/flan", run) == "gs://bucket/flan"
  assert subject.portable("models/flan", "gs://bucket/runs/one") == "flan"
  assert subject.portable("/elsewhere/models/flan", run) == "flan"


def test_a_stated_path_is_found_after_run_and_model_have_moved(tmp_path):
  content = stated() | {"backbone": "../model", "vocabulary_file": "../words.txt"}
  (tmp_path / "a").mkdir()
  write(tmp_path / "a" / "run", content)
  shutil.move(tmp_path / "a", tmp_path / "b")
  found = subject.read(tmp_path / "b" / "run")
  assert found.backbone == os.path.realpath(tmp_path / "b" / "model")
  assert found.vocabulary_file == os.path.realpath(tmp_path / "b" / "words.txt")


def test_an_older_run_says_what_to_give_instead(tmp_path):
  run = write(tmp_path / "run", None)
  with pytest.raises(UserError, match=r"does not state .* --gin_file=FILE"):
    subject.read(run)


@pytest.mark.parametrize(
  "change",
  [
    {"backbone": 3},
    {"lengths": {"inputs": 0, "targets": 2}},
    {"chat": {"system": 3}},
    {"chat": True},
    {"vocabulary_file": []},
    {"recipe": []},
  ],
)
def test_a_damaged_subject_is_refused_in_one_line(tmp_path, change):
  run = write(tmp_path / "run", stated() | change)
  with pytest.raises(UserError, match="Take another copy"):
    subject.read(run)


def test_a_path_that_is_not_stated_is_known_to_the_machine_that_wrote_it(
  tmp_path, monkeypatch
):
  monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
  place = "/elsewhere/models/flan"
  run = write(
    tmp_path / "run", stated() | {"backbone": subject._stated(place, tmp_path)}
  )
  assert place not in (run / "manifest.json").read_text()
  missing = str(run / "flan")
  assert subject.read(run).backbone == missing  # The note is about another run.
  assert subject._stated(place, run) == "flan"
  assert subject.read(run).backbone == place
  (run / "flan").mkdir()
  assert subject.read(run).backbone == missing
  monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "other machine"))
  (run / "flan").rmdir()
  assert subject.read(run).backbone == missing

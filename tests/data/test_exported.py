import dataclasses
import json
import os

import pytest

from tpv_jax.core.errors import UserError
from tpv_jax.data import exported, sources, tasks
from tpv_jax.data.registry import DEFINITIONS

COLA = DEFINITIONS["glue_cola"]


@pytest.fixture
def data_dir(tmp_path):
  """CoLA's rows, prepared: 8 to train on, 9 held out, of which two are alike."""
  held_out = [f"held out {i}" for i in range(8)]
  texts = {"train": [f"train {i}" for i in range(8)], "validation": held_out + held_out}
  (tmp_path / "own").mkdir()
  for split, lines in texts.items():
    rows = (
      json.dumps({"sentence": text, "label": int(text[-1]) % 2}) + "\n"
      for text in lines
    )
    (tmp_path / "own" / f"{split}.jsonl").write_text("".join(rows))
  sources.prepare(COLA, tmp_path / "data", tmp_path / "own", str)
  return tmp_path / "data"


def test_a_task_reads_what_was_exported(data_dir):
  folder = exported.export(COLA, data_dir, say=str)
  task = exported.task("glue_cola", data_dir)
  assert task.labels == ("unacceptable", "acceptable")
  assert (task.metric, *task.more_metrics) == COLA.metrics
  expected = tasks.Example("sentence: train 3", "acceptable")
  assert expected in task.examples("train")
  assert len(task.examples("train")) == 8
  about = json.loads((folder / "about.json").read_text())
  assert task.origin() == about
  for split in tasks.SPLITS:
    assert about["splits"][split]["digest"] == task.split_digest(split)


def test_validation_and_test_share_no_text_though_the_rows_repeat(data_dir):
  exported.export(COLA, data_dir, say=str)
  task = exported.task("glue_cola", data_dir)
  assert len(task.examples("test")) == 8
  assert 0 < len(task.examples("validation")) < 8
  assert tasks.overlaps(task)["validation/test"] == 0


def test_answers_and_groups_survive_the_export(tmp_path):
  which = DEFINITIONS["squad_v2"]
  row = {"question": "q", "context": "c", "answers/text": ["a", "b"]}
  (tmp_path / "own").mkdir()
  for split in ("train", "validation"):
    (tmp_path / "own" / f"{split}.jsonl").write_text((json.dumps(row) + "\n") * 2)
  sources.prepare(which, tmp_path, tmp_path / "own", str)
  exported.export(which, tmp_path, ["test"], say=str)
  expected = tasks.Example("question: q context: c", "a", ("a", "b"))
  assert exported.task("squad_v2", tmp_path).examples("test") == (expected,) * 2


def test_exporting_again_keeps_what_is_there_and_another_seed_is_refused(data_dir):
  said = []
  exported.export(COLA, data_dir, ["test"], say=said.append)
  exported.export(COLA, data_dir, say=said.append)
  assert said[2] == "glue_cola, train: 8 examples in " + str(
    data_dir / "tpv_jax" / "glue_cola" / "train.jsonl"
  )
  assert said[1] == "glue_cola, test: 8 examples are there already"
  with pytest.raises(UserError, match=r"another seed \(0 there, 1 now\).*--overwrite"):
    exported.export(COLA, data_dir, seed=1, say=str)
  before = exported.task("glue_cola", data_dir).split_digest("test")
  exported.export(COLA, data_dir, seed=1, overwrite=True, say=str)
  assert exported.task("glue_cola", data_dir).split_digest("test") != before


def test_the_refused_seed_comes_with_both_commands_that_work(data_dir):
  exported.export(COLA, data_dir, ["test"], seed=1, say=str)
  command = f"tpv tasks export glue_cola --data-dir {data_dir} --seed"
  with pytest.raises(UserError) as refused:
    exported.export(COLA, data_dir, say=str)
  assert f"{command} 0 --overwrite, to go on with that seed: {command} 1;" in str(
    refused.value
  )
  with pytest.raises(UserError, match=f"'train' .* Run: {command} 1$"):
    exported.task("glue_cola", data_dir).examples("train")


@pytest.mark.parametrize("damage", ["changed", "deleted", "about"])
def test_a_damaged_export_is_refused_and_repaired(data_dir, damage):
  folder = exported.export(COLA, data_dir, say=str)
  path = folder / ("about.json" if damage == "about" else "train.jsonl")
  task = exported.task("glue_cola", data_dir)
  right = path.read_text()
  if damage == "changed":
    path.write_text(right.replace("train 3", "train 4"))
  elif damage == "about":
    path.write_text(right[:40])
  else:
    path.unlink()
  with pytest.raises(UserError, match=r"tpv tasks export glue_cola .* --seed 0"):
    task.examples("train")
  said = []
  overwrite = damage != "deleted"
  exported.export(COLA, data_dir, overwrite=overwrite, say=said.append)
  assert path.read_text() == right
  assert len(task.examples("train")) == 8
  assert ("replaced" in said[-1]) == overwrite


def test_only_the_named_splits_are_written_anew_when_the_settings_are_equal(data_dir):
  folder = exported.export(COLA, data_dir, say=str)
  before = (folder / "train.jsonl").stat().st_ino
  said = []
  exported.export(COLA, data_dir, ["test"], overwrite=True, say=said.append)
  assert said[-1] == f"glue_cola: replaced test.jsonl in {folder}"
  assert (folder / "train.jsonl").stat().st_ino == before
  for split in tasks.SPLITS:
    assert exported.task("glue_cola", data_dir).examples(split)


@pytest.mark.parametrize("nth", range(1, 9))
def test_an_overwriting_that_is_killed_leaves_the_old_export_or_none(
  data_dir, monkeypatch, nth
):
  folder = exported.export(COLA, data_dir, say=str)
  before = {path.name: path.read_bytes() for path in folder.iterdir()}
  real, left = os.replace, [nth]

  def replace(*paths):
    left[0] -= 1
    if left[0] == 0:
      raise KeyboardInterrupt
    return real(*paths)

  with monkeypatch.context() as killed:
    killed.setattr(os, "replace", replace)
    with pytest.raises(KeyboardInterrupt):
      exported.export(COLA, data_dir, seed=1, overwrite=True, say=str)
  now = {path.name: path.read_bytes() for path in folder.iterdir()}
  assert (now == before) == (nth <= 4)  # 3 splits, then about.json
  if now != before:
    with pytest.raises(UserError, match="not exported"):
      exported.task("glue_cola", data_dir).examples("test")
  exported.export(COLA, data_dir, seed=1, overwrite=True, say=str)
  task = exported.task("glue_cola", data_dir)
  assert len(task.examples("train")) == 8
  assert tasks.overlaps(task)["validation/test"] == 0
  assert len(list(folder.iterdir())) == 4


def test_an_export_by_another_template_is_refused(data_dir, monkeypatch):
  exported.export(COLA, data_dir, say=str)
  changed = dataclasses.replace(COLA, template="cola {sentence}")
  monkeypatch.setitem(DEFINITIONS, "glue_cola", changed)
  with pytest.raises(UserError, match=r"another template .*--seed 0 --overwrite"):
    exported.task("glue_cola", data_dir).examples("train")


def test_a_task_that_is_not_exported_names_the_command(data_dir):
  with pytest.raises(
    UserError, match=f"Run: tpv tasks prepare glue_cola --data-dir {data_dir}"
  ):
    exported.task("glue_cola", data_dir).examples("train")


@pytest.mark.parametrize(
  ("line", "message"),
  [
    ('{"inputs": "a", "targets": "acceptabel"}', "'acceptabel' is outside the labels"),
    ('{"inputs": "a"}', "'inputs' and 'targets' must both be strings"),
    ("nonsense", "malformed JSON"),
  ],
)
def test_a_bad_line_of_an_exported_split_is_named(data_dir, line, message):
  folder = exported.export(COLA, data_dir, say=str)
  path = folder / "train.jsonl"
  path.write_text(path.read_text() + line + "\n")
  with pytest.raises(UserError, match=rf"train\.jsonl:9: {message}"):
    exported.task("glue_cola", data_dir).examples("train")


def test_an_unknown_split_is_refused(data_dir):
  with pytest.raises(UserError, match=r"has no split 'dev'; the splits are train, "):
    exported.export(COLA, data_dir, ["dev"], say=str)


def test_data_may_lie_in_an_object_store(data_dir, bucket):
  own = data_dir.parent / "own"
  sources.prepare(COLA, f"{bucket}/data", own, str)
  exported.export(COLA, f"{bucket}/data", ["test"], say=str)
  exported.export(COLA, data_dir, ["test"], say=str)
  here, there = (exported.task("glue_cola", d) for d in (data_dir, f"{bucket}/data"))
  assert there.examples("test") == here.examples("test")

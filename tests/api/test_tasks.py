"""Tasks by name, from task files and from files of data."""

import pathlib

import pytest

import tpv_jax as tpv

DESCRIBED = {
  "template": "Review: {text} Sentiment:",
  "target": "label",
  "labels": {0: "negative", 1: "positive"},
}


@pytest.fixture
def rows(tmp_path, monkeypatch):
  monkeypatch.chdir(tmp_path)
  lines = ["text,label", *(f"review {number},{number % 2}" for number in range(20))]
  path = pathlib.Path("reviews.csv")
  path.write_text("\n".join(lines) + "\n")
  return path


@pytest.mark.parametrize(
  ("name", "of", "lengths"),
  [
    ("sentiment", "embedded", {"inputs": 24, "targets": 2}),
    ("nli", None, {"inputs": 24, "targets": 2}),
    ("sentiment", "english", {"inputs": 64, "targets": 4}),
    ("glue_sst2", None, {"inputs": 128, "targets": 8}),
  ],
)
def test_a_task_is_made_by_name_with_the_lengths_of_its_gin_file(name, of, lengths):
  found = tpv.task(name, of=of)
  assert found.name == name
  assert found.lengths == lengths


def test_files_of_data_are_described_as_in_a_task_file(rows):
  found = tpv.task(rows, **DESCRIBED, splits={"validation": 4, "test": 4})
  assert found.name == "reviews"
  assert found.lengths == {"inputs": 256, "targets": 8}
  rows.with_name("mine.toml").write_text(
    'name = "reviews"\npaths = "reviews.csv"\nsplits = { validation = 4, test = 4 }\n'
    f'template = "{DESCRIBED["template"]}"\ntarget = "label"\n'
    'labels = { 0 = "negative", 1 = "positive" }\n'
  )
  other = tpv.task("mine.toml")
  for split in ("train", "validation", "test"):
    assert found.examples(split) == other.examples(split)
  several = tpv.task({"train": rows, "test": [rows]}, name="other", **DESCRIBED)
  assert len(several.examples("test")) == 20


def test_a_task_shows_its_counts_and_an_example(rows):
  found = tpv.task(rows, **DESCRIBED, splits={"validation": 4})
  assert repr(found) == "<task 'reviews': negative, positive; exact_match>"
  shown = str(found).splitlines()
  assert shown[1].split(None, 1) == ["train", "16 examples (negative 8, positive 8)"]
  assert "Review: review" in shown[2]
  assert "no file for split 'test'" in str(found)
  assert "<td>reviews</td>" in found._repr_html_()


def test_what_is_no_task_is_refused_with_what_was_perhaps_meant(rows):
  for arguments, options, message in (
    (("sentimnet",), {}, "no task 'sentimnet'.*mean 'sentiment'"),
    (("sentiment",), {}, "choose by of='embedded' or of='english'"),
    (("topic",), {"of": "englisch"}, "mean 'english'"),
    (("topic",), {"of": "papers"}, "no task 'topic' of papers"),
    (("nowhere.toml",), {}, "nowhere.toml"),
    ((rows,), {**DESCRIBED, "tmplate": "x"}, "no setting 'tmplate'.*'template'"),
    ((rows,), {"template": "{text}"}, "'target' must be set"),
    (([],), {}, "Give the path of one or more"),
    (("nli",), {"data_dir": "x"}, "leave out data_dir"),
  ):
    with pytest.raises(tpv.UserError, match=message):
      tpv.task(*arguments, **options)

"""Tasks that TOML files describe."""

import pathlib

import pytest

from tpv_jax.core.errors import UserError
from tpv_jax.data import task_files
from tpv_jax.data.tasks import Example

DATA = "text,label\nthe food was fine,1\nnever again,0\n"
TOML = """\
paths = "data/reviews.csv"
template = "Review: {text}"
target = "label"
labels = { 0 = "very bad", 1 = "good" }
"""
EXPECTED = (
  Example("Review: the food was fine", "good"),
  Example("Review: never again", "very bad"),
)


@pytest.fixture
def write(tmp_path):
  """Writes a task file beside data/reviews.csv and gives its path as text."""
  folder = tmp_path / "data"
  folder.mkdir()
  (folder / "reviews.csv").write_text(DATA)

  def write_file(text=TOML, name="reviews.toml"):
    path = tmp_path / name
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    return str(path)

  return write_file


@pytest.mark.parametrize("change", [str, lambda t: "\ufeff" + t.replace("\n", "\r\n")])
def test_a_task_is_named_after_its_file_and_finds_its_data_beside_it(
  write, change, monkeypatch, tmp_path
):
  path = write(change(TOML))
  elsewhere = tmp_path / "elsewhere"
  elsewhere.mkdir()
  monkeypatch.chdir(elsewhere)
  task = task_files.task("../reviews.toml")
  assert (task.name, task.labels) == ("reviews", ("very bad", "good"))
  assert task.examples("train") == EXPECTED
  assert task_files.task([path]).examples("train") == EXPECTED
  assert task_files.task(pathlib.Path(path)).examples("train") == EXPECTED


def test_data_may_lie_in_another_folder_than_the_task_file(write, tmp_path):
  other = tmp_path / "other"
  (other / "data").mkdir(parents=True)
  (other / "data" / "reviews.csv").write_text("text,label\nelsewhere,1\n")
  path = write()
  for task in (
    task_files.task(path, data_dir=other),
    task_files.tasks([path], data_dir=str(other))[0],
    task_files.read(path, other).task,
  ):
    assert task.examples("train") == (Example("Review: elsewhere", "good"),)


def test_all_settings_of_a_task_reach_it(write, tmp_path):
  rows = "".join(f"row {i}|{i % 3}\n" for i in range(30))
  (tmp_path / "rows.txt").write_text(rows.replace("|", "\t"))
  path = write("""
name = "rows"
paths = { train = ["rows.txt"] }
template = "{text}"
target = "label"
labels = ["0", "1"]
metric = "macro_f1"
splits = { validation = 0.1, test = 4 }
seed = 3
columns = ["text", "label"]
format = "tsv"
skip_labels = 2
allow_empty = true
deduplicated = true
lengths = { inputs = 16 }
""")
  task = task_files.task(path)
  assert [len(task.examples(s)) for s in ("train", "validation", "test")] == [14, 2, 4]
  assert (task.name, task.metric) == ("rows", "macro_f1")
  assert task_files.lengths(path) == {"inputs": 16, "targets": 8}


def test_several_files_go_together_in_any_order(write):
  one = write(TOML + "lengths = { inputs = 32, targets = 2 }\n")
  two = write(
    TOML + 'name = "other"\nlengths = { inputs = 16, targets = 4 }\n', "b.toml"
  )
  for files in ([one, two], [two, one]):
    assert {task.name for task in task_files.tasks(files)} == {"reviews", "other"}
    assert task_files.lengths(files) == {"inputs": 32, "targets": 4}
    assert task_files.task(files, "other").name == "other"
  names = ["other", "reviews"]
  assert [task.name for task in task_files.tasks([one, two], names)] == names
  assert [task.name for task in task_files.tasks([one, two], "other")] == ["other"]
  assert task_files.lengths([one, two], ["other"]) == {"inputs": 16, "targets": 4}
  with pytest.raises(UserError, match=r"has 2 tasks \(reviews, other\).*Set TASK_NAME"):
    task_files.task([one, two])
  with pytest.raises(UserError, match=r"TASK_NAMES names 'othr'.*Did you mean 'other'"):
    task_files.tasks([one, two], ["othr"])
  with pytest.raises(UserError, match=r"TASK_NAME names 'review'.*'reviews'"):
    task_files.task(one, "review")


def test_two_tasks_of_one_name_are_refused(write):
  files = [write(), write(TOML + 'name = "reviews"', "b.toml")]
  with pytest.raises(UserError, match=r"reviews\.toml' and '.*b\.toml' both describe"):
    task_files.tasks(files)


@pytest.mark.parametrize(
  ("text", "message"),
  [
    (TOML + 'lables = ["a"]', r"no setting 'lables'\. Did you mean 'labels'"),
    (TOML.replace("target", "targt"), r"no setting 'targt'\. Did you mean 'target'"),
    (
      TOML.replace("template =", "metric ="),
      r"'template' must be set\. 'tpv tasks new",
    ),
    ("", r"'paths' and 'template' and 'target' must be set"),
    (TOML + 'labels = ["a"]\n', r"reviews\.toml:5: not TOML: cannot overwrite a value"),
    (
      "paths = reviews.csv",
      r"reviews\.toml:1: not TOML: invalid value\. Write strings",
    ),
    (TOML.replace("0 =", "'0':"), r"reviews\.toml:4: not TOML: .*tables as \{ 0 ="),
    ("a = " + 5000 * "[", r"not TOML|nested too deeply"),
    ("a = " + 5000 * "9", r"reviews\.toml: a number has thousands of digits"),
    (b"name = '\xff'", r"reviews\.toml:1: not UTF-8"),
    (TOML + 'name = "a/b"', r"'name' is 'a/b'; .*letters, digits"),
    (TOML + "name = 3", r"'name' is 3; "),
    (
      TOML.replace('"label"', "2020-01-01"),
      r"'target' has the date or time 2020-01-01",
    ),
    (TOML.replace('"very bad"', "12:30:00"), r"'labels' has the date or time 12:30"),
    (TOML.replace('"label"', "3"), r"toml: target is 3; it must be a string"),
    (TOML.replace("0 =", "0.5 ="), r"'labels' has a table '0' inside.*\"0\.5\" ="),
    (TOML.replace('"very bad"', '["a"]'), r"'labels' map '0' to \['a'\]"),
    (TOML.replace('"very bad"', '""'), r"'labels' map '0' to ''; choose one word"),
    (
      TOML + "[splits]\nvalidation = 0.5\nmetric = 'f1'",
      r"'metric' stands below \[split",
    ),
    (TOML + "[format]\na = 1", r"'format' is a table"),
    (TOML + "splits = { dev = 0.1 }", r"the split 'dev'; the splits are train"),
    (TOML + "splits = { validation = 2.0 }", r"take 2\.0 of its training rows"),
    (TOML + "splits = { train = 1 }", r"it has a file\. Correct 'paths' or 'splits'"),
    (TOML + "columns = []", r"toml: 'columns' is \[\]"),
    (TOML + "metric = 'exakt'", r"exact_match"),
    (TOML + "lengths = 64", r"'lengths' is 64; write \{ inputs = 256, targets = 8 \}"),
    (
      TOML + "lengths = { input = 64 }",
      r"'lengths' has 'input'.*Did you mean 'inputs'",
    ),
    (TOML + "lengths = { inputs = 0 }", r"lengths\.inputs is 0; .* at least 1"),
    (
      TOML + "lengths = { inputs = true }",
      r"lengths\.inputs is True; it must be a whole",
    ),
  ],
)
def test_what_is_wrong_in_a_task_file_is_named_with_its_file(write, text, message):
  with pytest.raises(UserError, match=message) as error:
    task_files.task(write(text))
  assert "reviews.toml" in str(error.value)
  assert "text_file_task" not in str(error.value)


@pytest.mark.parametrize(
  ("change", "split", "message"),
  [
    (("label\n", "lable\n"), "train", r"no column 'label'.*'lable'"),
    (
      (",0\n", ",7\n"),
      "train",
      r"csv:3: '7' .* 'labels', or .*: 'skip_labels' = \['7'\]",
    ),
    ((",0\n", ",\n"), "train", r"csv:3: the target column 'label' is empty"),
    (
      ("never again", " "),
      "train",
      r"csv:3: column 'text' is empty.*'allow_empty' = true",
    ),
    (("", ""), "test", r"no file for split 'test', .*'paths', or set 'splits'"),
  ],
)
def test_what_is_wrong_in_the_data_is_said_in_the_words_of_the_task_file(
  write, tmp_path, change, split, message
):
  path = write()
  (tmp_path / "data" / "reviews.csv").write_text(DATA.replace(*change))
  task = task_files.task(path)
  with pytest.raises(UserError, match=message) as error:
    task.examples(split)
  assert "reviews.toml: " in str(error.value)
  assert "text_file_task" not in str(error.value)


def test_missing_data_are_looked_for_beside_the_task_file(write):
  task = task_files.task(write(TOML.replace("reviews.csv", "review.csv")))
  with pytest.raises(
    UserError, match=r"data/review\.csv'.*Did you mean 'reviews\.csv'"
  ):
    task.examples("train")


@pytest.mark.parametrize(
  ("files", "message"),
  [
    ("reviews.csv", r"does not end with \.toml\. .* tpv tasks new reviews\.csv"),
    ("my_task.gin", r"in gin's language, which is given by --gin_file"),
    ([], r"TASK_FILES is empty"),
    ("", r"files is ''"),
    (3, r"files is 3"),
    ("no.toml", r"Cannot read 'no\.toml'.*Correct TASK_FILES"),
  ],
)
def test_what_is_no_task_file_is_refused(files, message):
  with pytest.raises(UserError, match=message):
    task_files.task(files)

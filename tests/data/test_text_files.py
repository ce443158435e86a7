import itertools
import json

import gin
import pytest

from tpv_jax.core.errors import UserError
from tpv_jax.data import tasks, text_files
from tpv_jax.data.tasks import Example
from tpv_jax.data.text_files import text_file_task

ROWS = [
  ("the food was fine", "1"),
  ("never again", "0"),
  ('they said "wow", twice', "1"),
]
TSV = "text\tlabel\n" + "".join(f"{text}\t{label}\n" for text, label in ROWS)
CSV = 'text,label\nthe food was fine,1\nnever again,0\n"they said ""wow"", twice",1\n'
JSONL = "".join(
  json.dumps({"text": text, "label": int(label)}) + "\n" for text, label in ROWS
)
EXPECTED = (
  Example("review: the food was fine", "good"),
  Example("review: never again", "bad"),
  Example('review: they said "wow", twice', "good"),
)
SETTINGS = {
  "name": "review",
  "template": "review: {text}",
  "target": "label",
  "labels": {0: "bad", 1: "good"},
}


@pytest.fixture
def write(tmp_path):
  """Writes a file and gives its path as text."""

  def write_file(name, content):
    path = tmp_path / name
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return str(path)

  return write_file


def numbered(count, start=0):
  """A TSV file of so many different rows."""
  rows = "".join(f"row {i}\t{i % 2}\n" for i in range(start, start + count))
  return "text\tlabel\n" + rows


def sources(task, split):
  return [example.inputs for example in task.examples(split)]


@pytest.mark.parametrize(
  ("name", "content"), [("a.tsv", TSV), ("a.csv", CSV), ("a.jsonl", JSONL)]
)
def test_every_format_gives_the_same_examples(write, name, content):
  task = text_file_task(paths=write(name, content), **SETTINGS)
  assert task.examples("train") == EXPECTED
  assert task.labels == ("bad", "good")
  assert task.name == "review"


@pytest.mark.parametrize(
  ("name", "content"),
  [
    ("a.tsv", "\ufeff" + TSV.replace("\n", "\r\n")),
    ("a.csv", "\ufeff" + CSV.replace("\n", "\r\n")),
    ("a.jsonl", "\ufeff" + JSONL.replace("\n", "\n\n")),
    ("a.TSV", TSV.removesuffix("\n")),
  ],
)
def test_byte_order_marks_windows_lines_and_blank_lines_change_nothing(
  write, name, content
):
  task = text_file_task(paths=write(name, content), **SETTINGS)
  assert task.examples("train") == EXPECTED


def test_a_line_separator_inside_a_json_text_ends_no_line(write):
  row = json.dumps({"text": "a\u2028b\x85c", "label": 1}, ensure_ascii=False)
  task = text_file_task(paths=write("a.jsonl", row), **SETTINGS)
  assert task.examples("train") == (Example("review: a\u2028b\x85c", "good"),)


def test_a_quoted_csv_text_may_span_lines_and_errors_name_its_first_line(write):
  content = 'text,label\n"one\ntwo",1\nx,7\n'
  path = write("a.csv", content)
  task = text_file_task(paths=path, **SETTINGS | {"labels": None})
  assert task.examples("train")[0] == Example("review: one\ntwo", "1")
  with pytest.raises(UserError, match=r"a\.csv:4: '7' .* outside the labels"):
    text_file_task(paths=path, **SETTINGS).examples("train")


def test_a_file_without_a_header_is_read_by_the_given_columns(write):
  path = write("a.txt", TSV.split("\n", 1)[1])
  task = text_file_task(
    paths=path, columns=("text", "label"), file_format="tsv", **SETTINGS
  )
  assert task.examples("train") == EXPECTED


def test_the_template_joins_columns_and_keeps_doubled_braces(write):
  path = write("a.jsonl", '{"a b": "x", "n": 1.50, "flag": true, "y": "yes"}')
  task = text_file_task("t", path, "{{q}} {a b} {n}/{flag}{n}", "y")
  assert task.examples("train") == (Example("{q} x 1.50/true1.50", "yes"),)
  assert task.labels is None


def test_labels_may_be_the_words_themselves_or_map_many_values_to_one(write):
  path = write("a.jsonl", '{"x": "a", "y": true}\n{"x": "b", "y": false}')
  found = text_file_task("t", path, "{x}", "y", labels=("true", "false"))
  assert [e.targets for e in found.examples("train")] == ["true", "false"]
  merged = text_file_task("t", path, "{x}", "y", labels={True: "yes", False: "yes"})
  assert merged.labels == ("yes",)
  numbers = text_file_task(
    "t", write("b.tsv", "x\ty\na\t3\n"), "{x}", "y", labels=(3, 4)
  )
  assert numbers.examples("train") == (Example("a", "3"),)
  assert numbers.labels == ("3", "4")


@pytest.mark.parametrize("skipped", [("-1",), ["-1"], "-1", -1])
def test_rows_of_skipped_labels_are_left_out(write, skipped):
  path = write("a.tsv", TSV + "who knows\t-1\n")
  task = text_file_task(paths=path, skip_labels=skipped, **SETTINGS)
  assert task.examples("train") == EXPECTED


def test_the_advice_for_rows_of_no_label_works_beside_what_is_skipped_already(write):
  path = write("a.tsv", TSV + "who knows\t-\nno one\t?\n")
  task = text_file_task(paths=path, skip_labels="-", **SETTINGS)
  with pytest.raises(UserError, match=r"text_file_task\.skip_labels = ") as error:
    task.examples("train")
  advised = str(error.value).rpartition("skip_labels = ")[2].removesuffix(".")
  skipped = gin.config.parse_value(advised)
  task = text_file_task(paths=path, skip_labels=skipped, **SETTINGS)
  assert task.examples("train") == EXPECTED


@pytest.mark.parametrize("delimiter", [",", ";", "\t"])
def test_a_csv_file_is_split_as_its_header_says(write, delimiter):
  rows = [("text", "label"), *ROWS]
  quoted = [f'"{text.replace(chr(34), 2 * chr(34))}"' for text, _ in rows]
  lines = [
    f"{text}{delimiter}{label}" for text, (_, label) in zip(quoted, rows, strict=True)
  ]
  path = write("a.csv", "\ufeff" + "\r\n".join(lines))
  assert text_file_task(paths=path, **SETTINGS).examples("train") == EXPECTED
  bare = write("b.csv", "\n".join(lines[1:]))
  task = text_file_task(paths=bare, columns=("text", "label"), **SETTINGS)
  assert task.examples("train") == EXPECTED


def test_a_csv_cell_may_have_any_length(write):
  text = "word " * 40_000
  task = text_file_task("t", write("a.csv", f"s,y\n{text},0\n"), "{s}", "y")
  assert task.examples("train") == (Example(text, "0"),)


def test_several_files_are_read_as_one_in_their_order(write):
  paths = [write("a.tsv", TSV), write("b.csv", CSV)]
  for given in (paths, {"train": tuple(paths)}):
    task = text_file_task(paths=given, **SETTINGS)
    assert task.examples("train") == EXPECTED + EXPECTED


def test_a_csv_file_of_an_old_mac_is_read(write):
  path = write("a.csv", CSV.replace("\n", "\r"))
  assert text_file_task(paths=path, **SETTINGS).examples("train") == EXPECTED


def test_the_columns_of_a_source_are_known(write):
  path = write("a.tsv", "a\tb\ty\nhere\tis {it}\t1\n")
  (example,) = text_file_task("t", path, "{{a}} {a} b: {b}", "y").examples("train")
  assert example.inputs == "{a} here b: is {it}"
  assert [example.inputs[i:j] for i, j in example.fields] == ["here", "is {it}"]


@pytest.mark.parametrize(
  ("value", "step", "expected"),
  [
    ("3.8", 0.2, "3.8"),
    ("3.75", 0.2, "3.8"),
    ("2.583", 0.2, "2.6"),
    ("5", 0.2, "5.0"),
    ("0.1", 0.2, "0.0"),
    ("0.3", 0.2, "0.4"),
    ("2.6", 1, "3"),
  ],
)
def test_numbers_are_rounded_to_multiples_as_t5_writes_them(
  write, value, step, expected
):
  path = write("a.tsv", f"x\ty\na\t{value}\n")
  task = text_file_task("t", path, "{x}", "y", metric="pearson", round_targets_to=step)
  assert task.examples("train")[0].targets == expected


def test_each_split_may_be_its_own_file(write):
  task = text_file_task(
    paths={
      "train": write("a.tsv", numbered(3)),
      "test": write("b.tsv", numbered(2, start=3)),
    },
    **SETTINGS,
  )
  assert len(task.examples("train")) == 3
  assert sources(task, "test") == ["review: row 3", "review: row 4"]
  with pytest.raises(UserError, match="no file for split 'validation', only for train"):
    task.examples("validation")


@pytest.mark.parametrize("seed", [0, 5])
def test_sizes_cut_one_file_into_disjoint_splits_in_file_order(write, seed):
  path = write("a.tsv", numbered(40))
  cut = {"paths": path, "splits": {"validation": 0.25, "test": 6}, "seed": seed}
  task = text_file_task(**cut, **SETTINGS)
  parts = {split: sources(task, split) for split in tasks.SPLITS}
  assert {split: len(part) for split, part in parts.items()} == {
    "train": 24,
    "validation": 10,
    "test": 6,
  }
  everything = [f"review: row {i}" for i in range(40)]
  assert sorted(itertools.chain(*parts.values())) == sorted(everything)
  for part in parts.values():
    assert part == sorted(part, key=everything.index)
  again = text_file_task(**cut, **SETTINGS)
  assert all(again.split_digest(s) == task.split_digest(s) for s in tasks.SPLITS)


def test_another_seed_cuts_other_splits(write):
  path = write("a.tsv", numbered(40))
  first, other = (
    text_file_task(paths=path, splits={"test": 10}, seed=seed, **SETTINGS)
    for seed in (0, 1)
  )
  assert first.split_digest("test") != other.split_digest("test")
  assert sources(first, "test") != [f"review: row {i}" for i in range(10)]


def test_a_split_can_be_cut_from_train_beside_a_test_file(write):
  paths = {"train": write("a.tsv", numbered(10)), "test": write("b.tsv", numbered(4))}
  task = text_file_task(paths=paths, splits={"validation": 2}, **SETTINGS)
  assert [len(task.examples(split)) for split in tasks.SPLITS] == [8, 2, 4]
  assert not set(sources(task, "train")) & set(sources(task, "validation"))


def test_the_papers_rule_halves_the_validation_file_of_a_small_task(write):
  paths = {
    "train": write("a.tsv", numbered(20)),
    "validation": write("b.tsv", numbered(7, start=20)),
  }
  task = text_file_task(paths=paths, splits="paper", **SETTINGS)
  assert [len(task.examples(split)) for split in tasks.SPLITS] == [20, 3, 4]
  halves = sources(task, "validation") + sources(task, "test")
  assert sorted(halves) == [f"review: row {i}" for i in range(20, 27)]


@pytest.mark.parametrize(
  ("rows", "sizes"), [(10_000, (10_000, 2, 2)), (10_001, (9_001, 1_000, 4))]
)
def test_the_papers_rule_changes_above_ten_thousand_rows(write, rows, sizes):
  paths = {
    "train": write("a.tsv", numbered(rows)),
    "validation": write("b.tsv", numbered(4, start=rows)),
  }
  task = text_file_task(paths=paths, splits="paper", **SETTINGS)
  parts = {split: sources(task, split) for split in tasks.SPLITS}
  assert tuple(len(parts[split]) for split in tasks.SPLITS) == sizes
  assert len(set(itertools.chain(*parts.values()))) == rows + 4
  if rows > 10_000:
    assert parts["test"] == [f"review: row {i}" for i in range(rows, rows + 4)]


def test_texts_are_kept_out_of_earlier_splits_by_choice(write):
  paths = {
    "train": write("a.tsv", numbered(5)),
    "validation": write("b.tsv", numbered(4)),
    "test": write("c.tsv", numbered(2)),
  }
  plain = text_file_task(paths=paths, **SETTINGS)
  assert tasks.overlaps(plain) == {
    "train/validation": 4,
    "train/test": 2,
    "validation/test": 2,
  }
  task = text_file_task(paths=paths, deduplicated=True, **SETTINGS)
  assert [len(task.examples(split)) for split in tasks.SPLITS] == [1, 2, 2]
  assert set(tasks.overlaps(task).values()) == {0}


def test_files_are_read_at_the_first_use_and_once(write):
  path = write("a.tsv", TSV)
  task = text_file_task(paths=path, **SETTINGS)
  write("a.tsv", TSV + "late\t1\n")
  assert len(task.examples("train")) == 4
  write("a.tsv", "ruined")
  assert len(task.examples("train")) == 4


def test_gin_describes_a_task(write):
  path = write("a.tsv", TSV)
  gin.clear_config()
  gin.parse_config(
    f"""
    from __gin__ import dynamic_registration
    from tpv_jax.data import text_files
    text_files.text_file_task:
      name = 'review'
      paths = {{'train': {path!r}}}
      template = 'review: {{text}}'
      target = 'label'
      labels = {{'0': 'bad', '1': 'good'}}
      splits = {{'test': 1}}
    """
  )
  task = gin.get_configurable(text_files.text_file_task)()
  gin.clear_config()
  assert len(task.examples("train")) == 2
  assert len(task.examples("test")) == 1


@pytest.mark.parametrize(
  ("name", "content", "changes", "message"),
  [
    (
      "a.tsv",
      TSV,
      {"template": "{txt}"},
      r"a\.tsv:2: there is no column 'txt', only text, label\. Did you mean 'text'",
    ),
    ("a.csv", CSV, {"target": "labels"}, r"a\.csv:2: there is no column 'labels'"),
    (
      "a.jsonl",
      JSONL + '{"label": 1}\n',
      {},
      r"a\.jsonl:4: there is no column 'text', only label",
    ),
    (
      "a.tsv",
      TSV + "x\t2\n",
      {},
      r"a\.tsv:5: '2' in column 'label' is outside the labels 0, 1\.",
    ),
    (
      "a.tsv",
      "text\tlabel\nx\tposetive\n",
      {"labels": ("positive", "negative")},
      r"a\.tsv:2: 'posetive' .*Did you mean 'positive'",
    ),
    ("a.tsv", TSV + "x\n", {}, r"a\.tsv:5: 1 columns, but 2 are expected"),
    ("a.csv", CSV + "x,1,2\n", {}, r"a\.csv:5: 3 columns, but 2"),
    ("a.tsv", TSV + "\t1\n", {}, r"a\.tsv:5: column 'text' is empty\. .*allow_empty"),
    ("a.tsv", TSV + "  \t1\n", {}, r"a\.tsv:5: column 'text' is empty"),
    ("a.tsv", TSV + "x\t \n", {}, r"a\.tsv:5: the target column 'label' is empty"),
    ("a.tsv", TSV + "\t\n", {}, r"a\.tsv:5: column 'text' is empty"),
    (
      "a.jsonl",
      '{"text": null, "label": 1}',
      {},
      r"a\.jsonl:1: column 'text' is empty",
    ),
    (
      "a.jsonl",
      JSONL + '{"text": "x", "label": 1\n',
      {},
      r"a\.jsonl:4: malformed JSON at column 25",
    ),
    ("a.jsonl", JSONL + "[1]\n", {}, r"a\.jsonl:4: a JSON object is expected"),
    (
      "a.jsonl",
      '{"text": ["x"], "label": 1}',
      {},
      r"a\.jsonl:1: 'text' holds several values",
    ),
    (
      "a.jsonl",
      r'{"text": "\ud800", "label": 1}',
      {},
      r"a\.jsonl:1: a lone half of a surrogate pair",
    ),
    ("a.csv", 'text,label\nx,1\n"y,1\n', {}, r"a\.csv:3: malformed CSV"),
    ("a.tsv", TSV.encode() + b"\xff\t1\n", {}, r"a\.tsv:5: not UTF-8"),
    ("a.tsv", "x\tx\na\tb\n", {}, r"a\.tsv:1: a column name appears twice"),
    ("a.tsv", "", {}, r"a\.tsv' has no examples"),
    ("a.tsv", TSV.replace("\n", "\r"), {}, "carriage returns only.*: tr "),
    (
      "a.jsonl",
      '{"text": "x", "label": 1, "text": "y"}',
      {},
      r"a\.jsonl:1: one object has 'text' twice",
    ),
    (
      "a.jsonl",
      '{"text": ' + "[" * 3000 + "]" * 3000 + ', "label": 1}',
      {},
      "nested too deeply",
    ),
    (
      "a.jsonl",
      '{"text": ' + "[" * 70 + "]" * 70 + ', "label": 1}',
      {},
      "nested too deeply",
    ),
    ("a.tsv", TSV.encode("utf-16-le"), {}, r"a\.tsv:1: a NUL byte"),
    (
      "a.csv",
      "x;y\tz\n",
      {"columns": ("text", "label")},
      "at semicolons and at tabs",
    ),
    (
      "a.jsonl",
      '{"text": "x", "label": 9e999999}',
      {"labels": None, "round_targets_to": 0.2},
      "'9e999999' is no number",
    ),
    ("a.tsv", "text\tlabel\n", {}, r"a\.tsv' has no examples"),
    ("a.txt", TSV, {}, r"a\.txt' is of unknown format '\.txt'; tsv, csv and jsonl"),
    (
      "a.tsv",
      "text\tlabel\nx\thigh\n",
      {"labels": None, "round_targets_to": 0.2},
      r"a\.tsv:2: the target 'high' is no number",
    ),
    (
      "a.tsv",
      "text\tlabel\nx\tnan\n",
      {"labels": None, "round_targets_to": 0.2},
      r"a\.tsv:2: the target 'nan' is no number",
    ),
    (
      "a.tsv",
      TSV,
      {"splits": {"validation": 2, "test": 1}},
      "has 3 rows, of which 3 are to go to validation and test",
    ),
  ],
)
def test_a_bad_file_is_refused_with_its_name_and_line(
  write, name, content, changes, message
):
  task = text_file_task(paths=write(name, content), **SETTINGS | changes)
  with pytest.raises(UserError, match=message) as caught:
    task.examples("train")
  assert "\n" not in str(caught.value)


def test_an_empty_text_is_taken_by_choice(write):
  path = write("a.tsv", TSV + "\t1\n")
  task = text_file_task(paths=path, allow_empty=True, **SETTINGS)
  assert task.examples("train")[-1] == Example("review: ", "good")


def test_a_missing_file_is_refused_with_near_misses(write, tmp_path):
  write("train.tsv", TSV)
  task = text_file_task(paths=str(tmp_path / "trian.tsv"), **SETTINGS)
  with pytest.raises(UserError, match=r"Cannot read '.*trian\.tsv'.*'train\.tsv'"):
    task.examples("train")


@pytest.mark.parametrize(
  ("changes", "message"),
  [
    ({"paths": {}}, "has no file"),
    ({"paths": {"dev": "a.tsv"}}, r"given the split 'dev'"),
    ({"paths": {"valdation": "a.tsv"}}, r"Did you mean 'validation'"),
    ({"splits": {"tset": 0.1}}, r"'tset'.*Did you mean 'test'"),
    ({"splits": {"train": 0.1}}, r"'train' from its train file, but it has a file"),
    ({"paths": {"test": "a.tsv"}, "splits": {"validation": 2}}, "but there is none"),
    ({"splits": {"test": 1.5}}, "fraction between 0 and 1"),
    ({"splits": {"test": 0}}, "fraction between 0 and 1"),
    ({"splits": "paper"}, "paper's rule.*has train"),
    ({"template": "review"}, "names no column"),
    ({"template": "{text"}, "cannot be read"),
    ({"template": "{}"}, "only the name of a column"),
    ({"template": "{text:>5}"}, "only the name of a column"),
    ({"labels": ()}, r"labels \(LABELS\) are \(\)"),
    ({"labels": "good"}, r"labels \(LABELS\) are 'good'"),
    ({"labels": {0: ""}}, "map 0 to ''; choose one word"),
    (
      {"labels": {0: ["bad", "terrible"]}},
      r"map 0 to \['bad', 'terrible'\]; choose one",
    ),
    ({"labels": {0: "bad", "0": "good"}}, "map the value '0' to two words"),
    ({"labels": [["bad"]]}, "choose one word"),
    ({"paths": {"train": None}}, "'review' has no file"),
    ({"paths": []}, "'review' has no file"),
    ({"paths": [3]}, "include 3, which is no path"),
    ({"columns": ("text", "text")}, "has a name twice: text, text"),
    ({"columns": ()}, "give the names of all columns"),
    ({"round_targets_to": float("inf")}, "must be a finite number"),
    ({"seed": -1}, "seed is -1; it must be a whole number of at least 0"),
    ({"metric": "f2"}, r"no metric 'f2'; there are .*macro_f1"),
    ({"round_targets_to": 0}, "must be a number above 0"),
  ],
)
def test_contradictory_settings_are_refused_before_anything_is_read(changes, message):
  with pytest.raises(UserError, match=message):
    text_file_task(**{"paths": "nowhere.tsv", **SETTINGS, **changes})

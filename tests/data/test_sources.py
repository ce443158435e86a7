import json
import os
import re
import shutil

import numpy as np
import pytest

from tpv_jax.core.errors import UserError
from tpv_jax.data import sources
from tpv_jax.data.papers import definition
from tpv_jax.data.registry import DEFINITIONS

SST2 = DEFINITIONS["glue_sst2"]


def write(folder, **splits):
  """Writes a JSON-lines file a split and gives the folder."""
  folder.mkdir(exist_ok=True)
  for split, rows in splits.items():
    text = "".join(json.dumps(row) + "\n" for row in rows)
    (folder / f"{split}.jsonl").write_text(text)
  return folder


def sentences(count, start=0):
  return [
    {"sentence": f"text {i}", "label": i % 2, "idx": i}
    for i in range(start, start + count)
  ]


def test_the_users_own_files_are_checked_and_copied(tmp_path):
  own = write(tmp_path / "own", train=sentences(3), validation=sentences(2, 3))
  said = []
  sources.prepare(SST2, tmp_path / "data", own, said.append)
  raw = sources.raw(SST2, tmp_path / "data")
  # The name of the folder alone: what is above it is no business of who gets the data.
  assert re.fullmatch("'own', SHA-256 [0-9a-f]{16}", raw.origin)
  for path in (tmp_path / "data").rglob("*.json*"):
    assert str(tmp_path) not in path.read_text()
  assert raw.counts == {"train": 3, "validation": 2}
  found = sorted(raw.rows("train"), key=lambda pair: pair[1]["idx"])
  assert found[0][1] == {"sentence": "text 0", "label": "negative", "idx": 0}
  (where,) = [where for where, _ in found if where.endswith(":1")]
  assert where.endswith("tpv_jax/raw/glue_sst2/train.jsonl:1")
  assert len(said) == 2


def test_preparing_again_continues_where_it_stopped(tmp_path):
  own = write(tmp_path / "own", train=sentences(3))
  with pytest.raises(UserError, match=r"validation\.jsonl' does not exist"):
    sources.prepare(SST2, tmp_path / "data", own, str)
  write(own, validation=sentences(2))
  said = []
  sources.prepare(SST2, tmp_path / "data", own, said.append)
  assert said[0] == "glue_sst2, train: 3 rows are there already"
  assert sources.raw(SST2, tmp_path / "data").counts["train"] == 3
  other = write(tmp_path / "other", train=sentences(1), validation=sentences(1))
  with pytest.raises(UserError, match=r"already holds the rows of 'own'"):
    sources.prepare(SST2, tmp_path / "data", other, str)
  said.clear()
  sources.prepare(SST2, tmp_path / "data", say=said.append)
  assert said[0].startswith("glue_sst2: ready in")


def test_rows_of_files_that_changed_are_refused_with_what_to_do(tmp_path):
  own = write(tmp_path / "own", train=sentences(3), validation=sentences(2))
  sources.prepare(SST2, tmp_path / "data", own, str)
  before = sources.raw(SST2, tmp_path / "data").origin
  sources.prepare(SST2, tmp_path / "data", own, str)
  write(own, train=sentences(4))
  message = (
    r"rows of 'train' from '.*own', which has changed since.* Remove that folder"
  )
  with pytest.raises(UserError, match=message):
    sources.prepare(SST2, tmp_path / "data", own, str)
  shutil.rmtree(tmp_path / "data" / "tpv_jax" / "raw" / "glue_sst2")
  sources.prepare(SST2, tmp_path / "data", own, str)
  raw = sources.raw(SST2, tmp_path / "data")
  assert raw.counts["train"] == 4
  assert raw.origin != before  # so that the export tells the two apart


def test_a_relative_and_an_absolute_path_name_the_same_rows(tmp_path, monkeypatch):
  own = write(tmp_path / "own", train=sentences(3), validation=sentences(2))
  sources.prepare(SST2, tmp_path / "data", own, str)
  monkeypatch.chdir(tmp_path)
  said = []
  sources.prepare(SST2, tmp_path / "data", "own", said.append)
  assert said[0] == "glue_sst2, train: 3 rows are there already"


def test_a_split_without_rows_is_refused_and_can_be_mended(tmp_path):
  own = write(tmp_path / "own", train=sentences(3), validation=[])
  with pytest.raises(UserError, match=r"Split 'validation' of '.*own' has no rows"):
    sources.prepare(SST2, tmp_path / "data", own, str)
  write(own, validation=sentences(2))
  sources.prepare(SST2, tmp_path / "data", own, str)
  counts = {"train": 3, "validation": 2}
  assert sources.raw(SST2, tmp_path / "data").counts == counts


def test_rows_whose_file_was_deleted_are_written_again(tmp_path):
  own = write(tmp_path / "own", train=sentences(3), validation=sentences(2))
  sources.prepare(SST2, tmp_path / "data", own, str)
  path = sources.raw(SST2, tmp_path / "data").path("train")
  right = path.read_text()
  path.unlink()
  with pytest.raises(UserError, match="not prepared"):
    sources.raw(DEFINITIONS["glue_sst2_t5"], tmp_path / "data")
  sources.prepare(SST2, tmp_path / "data", own, str)
  assert path.read_text() == right


def test_a_damaged_description_of_rows_says_what_to_do(tmp_path):
  own = write(tmp_path / "own", train=sentences(3), validation=sentences(2))
  sources.prepare(SST2, tmp_path / "data", own, str)
  path = sources.raw(SST2, tmp_path / "data").folder / "about.json"
  path.write_text(path.read_text()[:20])
  with pytest.raises(
    UserError, match=r"about\.json' is no JSON object.* prepare the task"
  ):
    sources.raw(SST2, tmp_path / "data")


def test_the_users_rows_are_shuffled_for_files_may_be_sorted_by_class(tmp_path):
  rows = [{"sentence": f"text {i}", "label": int(i >= 50)} for i in range(100)]
  own = write(tmp_path / "own", train=rows, validation=rows[:2])
  sources.prepare(SST2, tmp_path / "data", own, str)
  found = [row for _, row in sources.raw(SST2, tmp_path / "data").rows("train")]
  assert sorted(int(row["sentence"].split()[1]) for row in found) == list(range(100))
  first = [row["label"] for row in found[:25]]
  assert 5 < first.count("negative") < 20


@pytest.mark.parametrize(
  ("line", "message"),
  [
    ('{"sentence": "a", "label": 2}', r"train\.jsonl:2: '2' in column 'label' is out"),
    ('{"sentence": "a", "label": -1}', r"train\.jsonl:2: no label in column 'label'"),
    ('{"sentence": "a"}', r"train\.jsonl:2: there is no column 'label'"),
    ("{", r"train\.jsonl:2: malformed JSON"),
    ("[1]", r"train\.jsonl:2: a JSON object is expected"),
    (b"\xff", r"train\.jsonl:2: not UTF-8"),
  ],
)
def test_a_bad_row_is_named_by_file_and_line_and_nothing_is_kept(
  tmp_path, line, message
):
  own = write(tmp_path / "own", train=sentences(1), validation=sentences(1))
  with (own / "train.jsonl").open("ab") as file:
    file.write(line if isinstance(line, bytes) else line.encode())
  with pytest.raises(UserError, match=message):
    sources.prepare(SST2, tmp_path / "data", own, str)
  assert not [path for path in (tmp_path / "data").rglob("*") if path.is_file()]


def test_files_with_other_names_are_refused_with_near_misses(tmp_path):
  own = write(tmp_path / "own", trian=sentences(1))
  with pytest.raises(UserError, match=r"Did you mean 'trian\.jsonl'.*train\.jsonl and"):
    sources.prepare(SST2, tmp_path / "data", own, str)


def test_data_that_is_not_prepared_is_refused_with_the_command_that_prepares_it(
  tmp_path,
):
  which = DEFINITIONS["dbpedia"]
  with pytest.raises(
    UserError,
    match=rf"not prepared in '{tmp_path}'\. Run: tpv tasks prepare dbpedia --data-dir "
    f"{tmp_path}",
  ):
    sources.raw(which, tmp_path)


def test_a_variant_shares_the_rows_of_its_data_set(tmp_path):
  own = write(tmp_path / "own", train=sentences(2), validation=sentences(2))
  sources.prepare(SST2, tmp_path, own, str)
  raw = sources.raw(DEFINITIONS["glue_sst2_t5"], tmp_path)
  assert raw.counts == {"train": 2, "validation": 2}


def test_classes_by_number_are_named_in_a_variant_without_labels_too(tmp_path):
  # The T5 package's WSC generates nouns; its rows have classes all the same.
  which = DEFINITIONS["super_glue_wsc_t5"]
  rows = definition.example_rows(which)
  own = write(tmp_path / "own", train=rows, validation=rows)
  sources.prepare(which, tmp_path, own, str)
  found = [row["label"] for _, row in sources.raw(which, tmp_path).rows("train")]
  assert found == ["True", "False"]


def test_nested_columns_and_classes_by_number_are_named():
  row = sources.flat({"idx": {"question": 3}, "label": 1, "text": "a"})
  assert row == {"idx/question": 3, "label": 1, "text": "a"}
  assert sources.named(row, {"label": ["no", "yes"]})["label"] == "yes"
  assert sources.named({"label": -1}, {"label": ["no", "yes"]}) == {"label": None}


def test_values_of_tfds_become_python_ones():
  plain = sources._plain
  assert plain("é".encode()) == "é"
  assert plain(np.float32(3.8)) == 3.8
  assert plain(np.int64(3)) == 3
  assert plain(np.array([b"a", b"b"], object)) == ["a", "b"]


def test_the_data_directory_is_the_given_one_or_that_of_tfds(tmp_path, monkeypatch):
  monkeypatch.setenv("TFDS_DATA_DIR", str(tmp_path))
  assert sources.data_directory() == tmp_path
  assert sources.data_directory("other").name == "other"
  monkeypatch.delenv("TFDS_DATA_DIR")
  assert sources.data_directory().name == "tensorflow_datasets"


@pytest.fixture
def hugging_face():
  return pytest.importorskip("datasets", reason="'datasets' is not installed")


def grades(hugging_face, names=None):
  """SST-5's splits as a data set of `datasets`; MNLI's columns with `names`."""
  rows = {
    "text": [f"text {i}" for i in range(6)],
    "label_text": ["neutral", "positive"] * 3,
  }
  return hugging_face.DatasetDict(
    {split: hugging_face.Dataset.from_dict(rows) for split in ("train", "validation")}
  )


@pytest.mark.parametrize("saved", ["save_to_disk", "parquet"])
def test_folders_of_hugging_face_are_read(tmp_path, hugging_face, saved):
  which, folder = DEFINITIONS["sst5"], tmp_path / "hub"
  data = grades(hugging_face)
  if saved == "save_to_disk":
    data.save_to_disk(folder)
  else:
    (folder / "data").mkdir(parents=True)
    for split, rows in data.items():
      rows.to_parquet(folder / "data" / f"{split}-00000-of-00001.parquet")
  for _ in range(2):
    sources.prepare(which, tmp_path / "data", folder, str)
  raw = sources.raw(which, tmp_path / "data")
  assert raw.counts == {"train": 6, "validation": 6}
  texts = [row["text"] for _, row in raw.rows("train")]
  assert sorted(texts) == [f"text {i}" for i in range(6)]
  assert texts != sorted(texts)  # in random order: some hub data sets are sorted


def test_changed_classes_of_hugging_face_are_refused(tmp_path, hugging_face):
  which, folder = DEFINITIONS["dbpedia"], tmp_path / "hub"
  features = hugging_face.Features(
    {
      "title": hugging_face.Value("string"),
      "content": hugging_face.Value("string"),
      "label": hugging_face.ClassLabel(names=["Company", "Village"]),
    }
  )
  rows = {"title": ["a"], "content": ["b"], "label": [1]}
  one = hugging_face.Dataset.from_dict(rows, features)
  hugging_face.DatasetDict({"train": one, "test": one}).save_to_disk(folder)
  with pytest.raises(UserError, match="has changed: it is Company, Village, and task"):
    sources.prepare(which, tmp_path / "data", folder, str)


def test_without_datasets_the_message_says_what_to_do(tmp_path, monkeypatch):
  monkeypatch.setitem(__import__("sys").modules, "datasets", None)
  with pytest.raises(UserError, match=r"not installed .*pip install datasets.*--from"):
    sources.prepare(DEFINITIONS["sst5"], tmp_path, say=str)


@pytest.mark.parametrize(
  "about",
  [
    "5",
    "[]",
    '{"rows": {}, "digests": {}}',
    '{"origin": "x", "rows": {"train": "60"}, "digests": {}}',
    '{"origin": "x", "rows": {"train": true}, "digests": {}}',
    '{"origin": "x", "rows": [], "digests": {}}',
    '{"origin": "x", "rows": {}, "digests": ""}',
    '{"origin": ' + "[" * 5000,
    "\ufeff",
  ],
)
def test_a_description_of_another_form_is_one_line_with_what_to_do(tmp_path, about):
  folder = tmp_path / "tpv_jax" / "raw" / "glue_sst2"
  folder.mkdir(parents=True)
  (folder / "about.json").write_text(about)
  with pytest.raises(UserError, match=r"about\.json'.*Remove that folder and") as error:
    sources.raw(SST2, tmp_path)
  assert "\n" not in str(error.value)


def test_what_names_a_folder_by_its_whole_path_is_read_by_its_name(tmp_path):
  (tmp_path / "about.json").write_text('{"origin": "\'/home/me/own\', SHA-256 12"}')
  about = sources.read_about(tmp_path, {"origin": str}, "")
  assert about == {"origin": "'own', SHA-256 12"}


def test_a_byte_order_mark_is_no_part_of_the_first_row(tmp_path):
  own = write(tmp_path / "own", train=sentences(3), validation=sentences(2, 3))
  for path in own.iterdir():
    path.write_text(path.read_text(), encoding="utf-8-sig")
  sources.prepare(SST2, tmp_path / "data", own, str)
  assert sources.raw(SST2, tmp_path / "data").counts == {"train": 3, "validation": 2}


def test_rows_that_are_gone_are_missed(tmp_path):
  own = write(tmp_path / "own", train=sentences(3), validation=sentences(2, 3))
  sources.prepare(SST2, tmp_path / "data", own, str)
  path = tmp_path / "data/tpv_jax/raw/glue_sst2/train.jsonl"
  path.write_text("".join(path.read_text().splitlines(keepends=True)[:2]))
  with pytest.raises(UserError, match=r"has 2 rows, but 3 were written\. Remove"):
    list(sources.raw(SST2, tmp_path / "data").rows("train"))


def test_files_have_the_permissions_that_the_user_gives_new_ones(tmp_path):
  before = os.umask(0o077)
  try:
    sources.write_lines(tmp_path / "a.jsonl", [{"a": 1}])
  finally:
    os.umask(before)
  assert (tmp_path / "a.jsonl").stat().st_mode & 0o777 == 0o600


@pytest.mark.parametrize("kind", ["jsonl", "parquet", "arrow", "listed"])
def test_nothing_outside_the_folder_is_read(tmp_path, kind):
  own, outside = tmp_path / "own", write(tmp_path / "elsewhere", train=sentences(3))
  own.mkdir()
  secret = outside / "train.jsonl"
  if kind == "jsonl":
    (own / "train.jsonl").symlink_to(secret)
  elif kind == "parquet":
    (own / "train-00000.parquet").symlink_to(secret)
  else:
    (own / "train").mkdir()
    name = "../../elsewhere/train.jsonl" if kind == "listed" else "data.arrow"
    state = {"_data_files": [{"filename": name}]}
    (own / "train" / "state.json").write_text(json.dumps(state))
    if kind == "arrow":
      (own / "train" / "data.arrow").symlink_to(secret)
  with pytest.raises(UserError, match="out of its folder"):
    sources.prepare(SST2, tmp_path / "data", own, str)


@pytest.mark.parametrize(
  "state", [{}, {"_data_files": 3}, {"_data_files": ["a"]}, {"_data_files": [{}]}]
)
def test_a_list_of_files_that_is_damaged_is_one_line(tmp_path, state):
  (tmp_path / "own" / "train").mkdir(parents=True)
  (tmp_path / "own" / "train" / "state.json").write_text(json.dumps(state))
  with pytest.raises(UserError, match="names no data files that can be read"):
    sources.prepare(SST2, tmp_path / "data", tmp_path / "own", str)


def test_what_a_readme_names_is_not_read(tmp_path, hugging_face, monkeypatch):
  which, folder = DEFINITIONS["sst5"], tmp_path / "hub"
  folder.mkdir()
  for split, rows in grades(hugging_face).items():
    rows.to_parquet(folder / f"{split}.parquet")
  (folder / "README.md").write_text(
    "---\nconfigs:\n- config_name: default\n  data_files:\n"
    "  - split: train\n    path: https://example.invalid/train.parquet\n---\n"
  )

  def refuse(*_, **__):
    raise AssertionError("the whole folder was given to 'datasets'")

  monkeypatch.setattr(hugging_face, "load_dataset", refuse)
  sources.prepare(which, tmp_path / "data", folder, str)
  assert sources.raw(which, tmp_path / "data").counts == {"train": 6, "validation": 6}


def test_a_damaged_parquet_file_is_one_line(tmp_path, hugging_face):
  (tmp_path / "own").mkdir()
  for split in ("train", "validation"):
    (tmp_path / "own" / f"{split}.parquet").write_bytes(b"PAR1 and more")
  with pytest.raises(UserError, match="Cannot read split 'train' of") as error:
    sources.prepare(DEFINITIONS["sst5"], tmp_path / "data", tmp_path / "own", str)
  assert "\n" not in str(error.value)


def test_an_arrow_file_whose_texts_lie_outside_of_it_is_one_line(
  tmp_path, hugging_face
):
  # Reading such a row ends the process.
  folder = tmp_path / "own"
  rows = {"sentence": ["good", "bad"], "label": [1, 0], "idx": [0, 1]}
  one = hugging_face.Dataset.from_dict(rows)
  hugging_face.DatasetDict({"train": one, "validation": one}).save_to_disk(folder)
  path = folder / "train" / "data-00000-of-00001.arrow"
  whole, ends = path.read_bytes(), np.array([0, 4, 7], np.int32).tobytes()
  assert whole.count(ends) == 1
  damaged = np.array([0, 4, 2**30], np.int32).tobytes()
  path.write_bytes(whole.replace(ends, damaged))
  with pytest.raises(UserError, match=r"Cannot read split 'train' of .*ArrowInvalid"):
    sources.prepare(SST2, tmp_path / "data", folder, str)

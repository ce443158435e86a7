"""Tasks that are proposed for files, and the TOML files that say them."""

import json
import tomllib

import pytest

from tpv_jax.core.errors import UserError
from tpv_jax.data import proposals, task_files, vocabularies

TEXTS = [f"review: the film was quite {word}" for word in ("perfect", "poor", "dull")]


def csv(rows, header="text,label"):
  return f"{header}\n" + "".join(",".join(map(str, row)) + "\n" for row in rows)


@pytest.fixture
def propose(tmp_path):
  """Writes a file, proposes its task, and gives the settings of the TOML and the remarks."""

  def proposed(content, name="rows.csv", vocabulary=None, **options):
    path, output = tmp_path / name, tmp_path / "tasks" / "own.toml"
    output.parent.mkdir(exist_ok=True)
    path.write_text(content)
    found = proposals.propose(path, output, vocabulary, **options)
    text = proposals.toml_text(found, "tpv tasks check", None)
    output.write_text(text)
    settings = tomllib.loads(text)
    assert settings == found.settings
    return settings, " ".join(found.remarks), task_files.read(output)

  return proposed


LABELLED = csv([(TEXTS[i % 3] + f" {i}", ("pos", "neg")[i % 2]) for i in range(40)])


def test_the_toml_is_a_task_file_that_finds_its_data(propose):
  settings, remarks, made = propose(LABELLED)
  assert settings["paths"] == "../rows.csv"
  assert settings["template"] == "text: {text}\nlabel:"
  assert settings["labels"] == {"neg": "neg", "pos": "pos"}
  assert settings["splits"] == {"validation": 0.1, "test": 0.1}
  assert (settings["name"], remarks) == ("rows", "")
  sizes = [len(made.task.examples(split)) for split in made.splits]
  assert sizes == [32, 4, 4]


def test_an_encoder_decoder_gets_no_cue_and_unknown_words_are_left_out(propose):
  words = ["review:", "label:", "the", "film", "was", "quite", "perfect"]
  vocabulary = vocabularies.WordVocabulary([*words, *map(str, range(40))])
  for column, template in (("text", "{text}"), ("review", "review: {review}")):
    content = LABELLED.replace("text,", f"{column},", 1)
    settings, _, _ = propose(content, vocabulary=vocabulary)
    assert settings["template"] == template


def test_a_decoder_only_models_source_ends_with_the_answers_name(propose, monkeypatch):
  vocabulary = vocabularies.embedded()
  monkeypatch.setattr(vocabulary, "first_id", 1, raising=False)
  monkeypatch.setattr(proposals, "spelling", lambda text, vocabulary: text)
  settings, _, _ = propose(LABELLED, vocabulary=vocabulary)
  assert settings["template"] == "text: {text}\nlabel:"


def test_the_users_columns_win_over_the_guess(propose):
  rows = [(f"title {i}", f"a long body {i}", i % 2, f"g{i % 3}") for i in range(40)]
  content = csv(rows, "title,body,label,group")
  settings, _, _ = propose(content, texts=["body", "title"], target="group")
  assert settings["template"] == "body: {body}\ntitle: {title}\ngroup:"
  assert settings["target"] == "group"
  with pytest.raises(UserError, match=r"no column 'grup'.*Did you mean 'group'"):
    propose(content, target="grup")


@pytest.mark.parametrize(
  ("rows", "header", "target"),
  [
    (
      [(i, f"some longer text {i}", i % 2) for i in range(40)],
      "id,text,stars",
      "stars",
    ),
    ([(f"some longer text {i}", i, i % 3) for i in range(40)], "q,number,kind", "kind"),
    ([(f"g{i % 2}", f"some longer text {i}") for i in range(40)], "a,b", "a"),
  ],
)
def test_the_target_is_found_by_name_or_by_its_values(propose, rows, header, target):
  assert propose(csv(rows, header))[0]["target"] == target


def test_numbers_stay_labels_in_their_order_and_words_are_advised(propose):
  rows = [(f"some longer text {i}", (10, 2, -1)[i % 3]) for i in range(60)]
  settings, remarks, _ = propose(csv(rows))
  assert [*settings["labels"]] == ["-1", "2", "10"]
  assert "Words that say what each one means" in remarks


def test_other_cases_of_a_label_are_one_label(propose):
  rows = [
    (f"a longer text {i}", ("good", "bad", "Good", "good")[i % 4]) for i in range(60)
  ]
  settings, remarks, made = propose(csv(rows))
  assert settings["labels"] == {"good": "good", "Good": "good", "bad": "bad"}
  assert made.task.labels == ("good", "bad") or made.task.labels == ("bad", "good")
  assert "'Good' is taken for another spelling of 'good'" in remarks


def test_a_label_is_written_as_the_vocabulary_can(propose):
  vocabulary = vocabularies.WordVocabulary(["very", "bad", "good"])
  rows = [(f"a longer text {i}", ("very_bad", "Good")[i % 2]) for i in range(60)]
  settings, _, _ = propose(csv(rows), vocabulary=vocabulary)
  assert settings["labels"] == {"Good": "good", "very_bad": "very bad"}


def test_free_texts_and_numbers_are_said(propose):
  rows = [(f"what is {i} plus one", f"it is {i} and one more") for i in range(60)]
  settings, remarks, _ = propose(csv(rows))
  assert "labels" not in settings
  assert "answers are free texts" in remarks
  rows = [(f"what is {i} plus one", i * 0.5) for i in range(60)]
  settings, remarks, _ = propose(csv(rows, "text,score"))
  assert "labels" not in settings
  assert "different numbers" in remarks


def test_empty_cells_do_not_stop_the_training(propose):
  rows = [(f"a longer text {i}", ("x", "y", "")[i % 3]) for i in range(60)]
  settings, remarks, made = propose(csv([*rows, ("", "x")]))
  assert (settings["skip_labels"], settings["allow_empty"]) == ([""], True)
  assert sum(len(made.task.examples(split)) for split in made.splits) == 41
  assert "left out" in remarks
  assert "empty cells, which are kept" in remarks


def test_files_beside_train_are_its_other_splits(propose, tmp_path):
  (tmp_path / "my_dev.csv").write_text(LABELLED)
  (tmp_path / "my_test.csv").write_text("text\nno label here\n".replace("\n", ",x\n"))
  settings, _, made = propose(LABELLED, "my_train.csv")
  assert settings["paths"] == {
    "train": "../my_train.csv",
    "validation": "../my_dev.csv",
  }
  assert settings["splits"] == {"test": 0.1}
  assert len(made.task.examples("validation")) == 40


def test_large_files_hold_out_a_fixed_number(propose):
  rows = [(f"a longer text {i}", i % 2) for i in range(12_000)]
  settings, _, _ = propose(csv(rows))
  assert settings["splits"] == {"validation": 1000, "test": 1000}


def test_odd_names_are_written_as_toml(propose):
  rows = [
    {'a "b"\\': f"some longer text {i}", "x.y": "p\tq" if i % 2 else "ü=\u007f"}
    for i in range(40)
  ]
  content = "".join(json.dumps(row) + "\n" for row in rows)
  settings, _, made = propose(content, "rows.jsonl", target="x.y")
  assert settings["labels"] == {"p\tq": "p\tq", "ü=\u007f": "ü=\u007f"}
  assert len(made.task.examples("train")) == 32


def test_a_file_without_a_header_gets_names(propose):
  content = LABELLED.partition("\n")[2]
  settings, remarks, made = propose(content)
  assert settings["columns"] == ["text", "label"]
  assert "The first line looks like data" in remarks
  assert made.task.labels == ("neg", "pos")


@pytest.mark.parametrize(("rows", "left"), [(40, 32), (4, 2)])
def test_the_index_of_a_data_frame_is_no_part_of_the_task(propose, rows, left):
  numbered = [
    (i, f"the film was quite long {i}", ("pos", "neg")[i % 2]) for i in range(rows)
  ]
  settings, remarks, made = propose(csv(numbered, ",text,label"))
  assert (settings["template"], remarks) == ("text: {text}\nlabel:", "")
  assert "columns" not in settings
  assert settings["labels"] == {"neg": "neg", "pos": "pos"}
  assert len(made.task.examples("train")) == left


def test_an_index_beside_one_column_is_not_enough(propose):
  with pytest.raises(UserError, match="has text; a task needs a text and an answer"):
    propose(csv([(i, f"some text {i}") for i in range(9)], ",text"))


@pytest.mark.parametrize(
  ("content", "message"),
  [
    (
      csv([(f"some longer text {i}", i) for i in range(9)], "a,b"),
      r"Name it: --target",
    ),
    (csv([(i, i % 2) for i in range(9)], "a:b,label"), r"no column beside 'label'"),
    (csv([(i, i % 2) for i in range(9)], "a[b,label"), r"no column beside 'label'"),
  ],
)
def test_what_cannot_be_guessed_is_asked_for(propose, content, message):
  with pytest.raises(UserError, match=message):
    propose(content)

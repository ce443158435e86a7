import json

import pytest
from tokenizer_references import write

from tpv_jax.core.errors import UserError
from tpv_jax.data import vocabularies
from tpv_jax.data.tasks import Example, Task
from tpv_jax.data.vocabularies import WordVocabulary
from tpv_jax.training.task_data import TaskData

VOCABULARY = WordVocabulary(["a", "b", "yes", "no"])


def task(labels, *targets, source="a b"):
  return Task(
    "t", labels, "exact_match", lambda _: [Example(source, one) for one in targets]
  )


@pytest.mark.parametrize(
  ("labels", "targets", "message"),
  [
    (("yes", "maybe"), ("yes",), "label of task 't' could never be right. 'maybe'"),
    (("yes", "no no"), ("yes",), "at least 3"),
    (None, ("maybe",), "No target of split 'train' of task 't'"),
  ],
)
def test_training_refuses_what_can_never_be_right(labels, targets, message):
  with pytest.raises(UserError, match=message):
    TaskData(task(labels, *targets), VOCABULARY, {"inputs": 3, "targets": 2}, 1)


def test_what_was_lost_is_said_of_sources_and_targets_apart():
  lengths = {"inputs": 3, "targets": 2}
  assert TaskData(task(None, "yes"), VOCABULARY, lengths, 1).losses() == []
  data = TaskData(task(None, "yes", "no no", source="a x b"), VOCABULARY, lengths, 1)
  train, validation = data.losses()
  assert train == (
    "t, train: 2 examples, 10 tokens (longest source 3 of 3); sources: 2 trimmed (2 "
    "tokens lost), 2 with unknown tokens (2); targets: 1 trimmed (1 tokens lost), 0 with "
    "unknown tokens (0) (never an exact match)"
  )
  assert validation.startswith("t, validation: 2 examples")


def of_folder(folder, chat):
  pytest.importorskip("tokenizers", reason="needs the extra 'llm'")
  pytest.importorskip("jinja2", reason="needs the extra 'llm'")
  vocabulary = vocabularies.of_backbone(folder, chat=chat)
  labels = ("positive", "negative")
  lengths = {"inputs": 64, "targets": 16}
  one = task(labels, *labels, source="the film is good")
  return vocabulary, TaskData(one, vocabulary, lengths, 1)


def test_the_chat_template_is_stated_and_told_from_another(tmp_path):
  folder = write(tmp_path, "smollm")
  _, plain = of_folder(folder, None)
  assert "chat" not in plain.settings()
  vocabulary, own = of_folder(folder, True)
  assert own.settings()["chat"] == vocabulary.chat.digest
  assert own.describe()["system_text"] is None
  _, other = of_folder(folder, {"system": "Be brief."})
  assert other.settings()["chat"] != own.settings()["chat"]
  assert other.describe()["system_text"] == "Be brief."
  assert own.losses() == other.losses() == plain.losses() == []


def test_labels_that_the_tokenizer_joins_with_the_source_are_named(tmp_path):
  folder = write(tmp_path, "smollm")
  path = folder / "tokenizer.json"
  content = json.loads(path.read_text())
  # A piece across the border of a source and its target, and no rule that splits there.
  content["model"]["vocab"] |= {"dĠ": 420, "dĠp": 421}
  content["model"]["merges"] = [["d", "Ġ"], ["dĠ", "p"]]
  content["pre_tokenizer"]["pretokenizers"][-1]["use_regex"] = False
  path.write_text(json.dumps(content))
  _, data = of_folder(folder, None)
  (line,) = data.losses()
  assert "with the label 'positive', 'negative' behind it" in line

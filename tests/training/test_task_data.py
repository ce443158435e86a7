import pytest

from tpv_jax.core.errors import UserError
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

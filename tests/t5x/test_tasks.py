"""Tasks for T5X by name; needs seqio, not T5X."""

import dataclasses
import io
import shutil

import gin
import pytest
import tokenizer_references

from tpv_jax.core.errors import UserError
from tpv_jax.data import english, registry, sources, vocabularies
from tpv_jax.embedded import suite
from tpv_jax.t5x import tasks

seqio = pytest.importorskip("seqio", reason="the extra 'data' is not installed")

from tpv_jax.data import seqio_tasks  # noqa: E402


def test_one_of_our_tasks_is_registered_once_and_found_again():
  task, vocabulary = suite.task("sentiment"), vocabularies.embedded()
  name = tasks.registered(task, vocabulary)
  assert name == tasks.registered(suite.task("sentiment"), vocabularies.embedded())
  rows = seqio.get_mixture_or_task(name).get_dataset(
    suite.LENGTHS, "validation", shuffle=False
  )
  first = next(rows.as_numpy_iterator())
  example = task.examples("validation")[0]
  assert first["inputs_pretokenized"].decode() == example.inputs
  assert first["inputs"].tolist() == [
    *vocabulary.encode(example.inputs),
    vocabulary.eos_id,
  ]


def test_a_task_of_seqio_is_found_after_its_module_is_imported():
  name = tasks.named(
    "tpv_embedded_topic", vocabularies.embedded(), ["tpv_jax.embedded.seqio_tasks"]
  )
  assert name == "tpv_embedded_topic"


def test_a_task_with_another_vocabulary_is_refused():
  tasks.registered(suite.task("topic"), vocabularies.embedded())
  other = vocabularies.WordVocabulary(["some", "other", "words"])
  with pytest.raises(UserError, match="ids would mean other words"):
    tasks.registered(suite.task("topic"), other)


@pytest.fixture
def spiece(tmp_path):
  """The file of a small SentencePiece model."""
  sentencepiece = pytest.importorskip("sentencepiece")
  model = io.BytesIO()
  sentencepiece.SentencePieceTrainer.train(
    sentence_iterator=iter(["a b c d e f g h"]),
    model_writer=model,
    vocab_size=12,
    pad_id=0,
    eos_id=1,
    unk_id=2,
    bos_id=-1,
    hard_vocab_limit=False,
    minloglevel=2,
  )
  path = tmp_path / "spiece.model"
  path.write_bytes(model.getvalue())
  return path


def _no_rows(split, shuffle_files):
  del split, shuffle_files


@pytest.fixture
def add_task():
  """Returns a function that registers a task with a vocabulary, until the test ends."""
  names = []

  def add(name, vocabulary, add_eos=True):
    feature = seqio.Feature(vocabulary, add_eos=add_eos)
    seqio.TaskRegistry.add(
      name,
      source=seqio.FunctionDataSource(_no_rows, splits=("train",)),
      preprocessors=[],
      output_features={"inputs": feature, "targets": feature},
    )
    names.append(name)

  yield add
  for name in names:
    seqio.TaskRegistry.remove(name)


def test_vocabularies_are_compared_by_their_content(spiece, add_task, tmp_path):
  copy = tmp_path / "copy.model"
  shutil.copy(spiece, copy)
  add_task("tpv_test_copied", seqio.SentencePieceVocabulary(str(copy), extra_ids=5))
  mine = vocabularies.SentencePieceVocabulary(spiece, extra_ids=5)
  assert tasks.named("tpv_test_copied", mine) == "tpv_test_copied"
  # A tokenizer.json has the same digest, and no model to compare.
  same = vocabularies.WordVocabulary(mine.pieces)
  assert tasks.named("tpv_test_copied", same) == "tpv_test_copied"
  fewer = vocabularies.SentencePieceVocabulary(spiece, extra_ids=4)
  with pytest.raises(UserError, match="ids would mean other words"):
    tasks.named("tpv_test_copied", fewer)
  with pytest.raises(UserError, match="ids would mean other words"):
    tasks.named("tpv_test_copied", vocabularies.embedded())


def test_a_decoder_only_model_refuses_sources_that_end(add_task, tmp_path):
  pytest.importorskip("tokenizers", reason="needs the extra 'llm'")
  folder = tokenizer_references.write(tmp_path, "smollm")
  mine = vocabularies.load(folder)
  add_task("tpv_test_ended", seqio_tasks.seqio_vocabulary(mine))
  with pytest.raises(UserError, match="'tpv_test_ended' puts an end token behind each"):
    tasks.named("tpv_test_ended", mine)
  add_task("tpv_test_open", seqio_tasks.seqio_vocabulary(mine), add_eos=False)
  assert tasks.named("tpv_test_open", mine) == "tpv_test_open"
  own = dataclasses.replace(english.task("topic"), name="english_topic")
  name = tasks.registered(own, mine)
  found = seqio.get_mixture_or_task(name).get_dataset(
    {"inputs": 200, "targets": 9}, "test", shuffle=False
  )
  row = next(found.as_numpy_iterator())
  source = row["inputs_pretokenized"].decode()
  assert source.startswith("Sentence: ")
  assert mine.decode(row["inputs"]) == source
  seqio.TaskRegistry.remove(name)


def test_a_tasks_vocabulary_that_cannot_be_read_is_said(spiece, add_task):
  add_task("tpv_test_away", seqio.SentencePieceVocabulary("/not/there.model", 5))
  mine = vocabularies.SentencePieceVocabulary(spiece, extra_ids=5)
  with pytest.raises(UserError, match=r"'tpv_test_away' cannot be read .*not/there"):
    tasks.named("tpv_test_away", mine)


def test_a_module_with_gin_configurables_is_imported_after_gin_was_locked(
  tmp_path, monkeypatch
):
  (tmp_path / "configurable_tasks.py").write_text(
    "import gin\n@gin.configurable\ndef preprocess(rows=1):\n  return rows\n"
  )
  monkeypatch.syspath_prepend(tmp_path)
  gin.finalize()
  try:
    tasks.named("tpv_embedded_topic", vocabularies.embedded(), ["configurable_tasks"])
    assert gin.config_is_locked()
  finally:
    gin.clear_config()


def test_an_unknown_task_and_an_unknown_module_are_said():
  vocabulary = vocabularies.embedded()
  with pytest.raises(
    UserError, match=r"no task or mixture 'tpv_embedded_topik'.*topic"
  ):
    tasks.named("tpv_embedded_topik", vocabulary, ["tpv_jax.embedded.seqio_tasks"])
  with pytest.raises(UserError, match=r"Cannot import 'not_there\.mixtures'"):
    tasks.named("x", vocabulary, ["not_there.mixtures"])


def test_a_task_of_the_registry_is_streamed_under_one_name(tmp_path):
  rows = '{"sentence": "a", "label": 1}\n{"sentence": "b", "label": 0}\n'
  for split in ("train", "validation"):
    (tmp_path / f"{split}.jsonl").write_text(rows)
  sources.prepare(registry.definition("glue_cola"), tmp_path, tmp_path, str)
  vocabulary = vocabularies.embedded()
  name = tasks.streamed("glue_cola", vocabulary, tmp_path)
  assert name == tasks.streamed("glue_cola", vocabulary, tmp_path) == "tpv_glue_cola"
  found = seqio.get_mixture_or_task(name).get_dataset(
    {"inputs": 8, "targets": 4}, "train", shuffle=False
  )
  texts = [row["inputs_pretokenized"] for row in found.as_numpy_iterator()]
  assert texts == [b"sentence: a", b"sentence: b"]
  with pytest.raises(UserError, match=r"with seed 0 in this process.* with seed 1 as"):
    tasks.streamed("glue_cola", vocabulary, tmp_path, 1)
  with pytest.raises(UserError, match=r"cannot stream from '.*/other' with seed 0"):
    tasks.streamed("glue_cola", vocabulary, tmp_path / "other")
  with pytest.raises(UserError, match=r"no task 'glue_colla'\. Did you mean 'glue_co"):
    tasks.streamed("glue_colla", vocabulary, tmp_path)

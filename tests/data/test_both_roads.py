"""The registry's tasks through seqio and without it: equal strings, example by example.

Rows are in TFDS's own format, written here, or invented by `tfds.testing.mock_data`.
"""

import dataclasses
import json
from unittest import mock

import numpy as np
import pytest

from tpv_jax.core.errors import UserError
from tpv_jax.data import (
  batches,
  exported,
  labels,
  sources,
  tasks,
  vocabularies,
)
from tpv_jax.data.papers import definition
from tpv_jax.data.registry import DEFINITIONS

seqio = pytest.importorskip("seqio", reason="seqio is not installed (extra 'data')")
tfds = pytest.importorskip("tensorflow_datasets", reason="TFDS is not installed")
pytest.importorskip("importlib_resources", reason="TFDS needs it (extra 'data')")

from tpv_jax.data import seqio_tasks  # noqa: E402

ROWS = 6


@pytest.fixture(scope="module")
def data_dir(tmp_path_factory):
  """Every data set of the registry with the golden rows, as its source has it."""
  folder = tmp_path_factory.mktemp("data")
  for name, which in DEFINITIONS.items():
    if name != which.data:
      continue
    rows = {
      split: [numbered(which, row, f"{split} {i}") for i, row in enumerate(golden)]
      for split in sources.needed_splits(which)
      if (golden := definition.example_rows(which) * (ROWS // 2))
    }
    if which.tfds:
      builder = tfds.builder(which.tfds, data_dir=str(folder))
      made = {
        split: [(i, nested(row, builder.info.features)) for i, row in enumerate(some)]
        for split, some in rows.items()
      }
      with mock.patch.object(type(builder), "_split_generators", return_value=made):
        sources.prepare(which, folder, say=str)
    else:
      own = folder / "own" / name
      own.mkdir(parents=True)
      for split, some in rows.items():
        text = "".join(json.dumps(row) + "\n" for row in some)
        (own / f"{split}.jsonl").write_text(text)
      sources.prepare(which, folder, own, str)
  return folder


def numbered(which, row, number):
  """The row with a number in its first text, unless words of that text are counted."""
  text = which.columns[0]
  return row if text == "text" and which.change else {**row, text: row[text] + number}


def nested(row, features):
  """The row as TFDS nests it, with what its data set has beside the golden columns."""
  found = {"idx": 0, "plausible_answers": {"text": [], "answer_start": []}}
  for name, value in row.items():
    head, _, tail = name.partition("/")
    if tail:
      inside = found[head] if isinstance(found.get(head), dict) else {}
      found[head] = {**inside, tail: value}
    else:
      found[name] = value
  return {name: found[name] for name in features}


def streamed(name, split, data_dir):
  """The examples as seqio's evaluator would read them."""
  which = DEFINITIONS[name]
  dataset = seqio_tasks._streamed(which, split, sources.raw(which, data_dir), 0)
  return [
    tasks.Example(
      row["inputs"].decode(),
      row["targets"].decode(),
      tuple(json.loads(row["answers"])),
      row["group"].decode(),
    )
    for row in dataset.as_numpy_iterator()
  ]


@pytest.mark.parametrize(
  "name",
  # The T5 package's other variants share rows and code with the first.
  [n for n, which in DEFINITIONS.items() if n == which.data] + ["super_glue_wsc_t5"],
)
def test_both_roads_give_equal_examples(name, data_dir):
  exported.export(DEFINITIONS[name], data_dir, ["test"], say=str)
  found = streamed(name, "test", data_dir)
  assert found
  assert tuple(found) == exported.task(name, data_dir).examples("test")


def test_both_roads_give_equal_splits(data_dir):
  exported.export(DEFINITIONS["glue_sst2_t5"], data_dir, say=str)
  task = exported.task("glue_sst2_t5", data_dir)
  for split in tasks.SPLITS:
    assert tuple(streamed("glue_sst2_t5", split, data_dir)) == task.examples(split)
  assert tasks.overlaps(task)["validation/test"] == 0


def test_both_roads_leave_the_same_out(tmp_path):
  # SNLI: rows without a label, and a validation text that test has too.
  which, own = DEFINITIONS["snli"], tmp_path / "own"
  own.mkdir()
  rows = [
    {"premise": "p", "hypothesis": f"{i % 5}", "label": i % 4 - 1} for i in range(16)
  ]
  for split, some in {"train": rows, "test": rows[:3]}.items():
    (own / f"{split}.jsonl").write_text("\n".join(map(json.dumps, some)))
  sources.prepare(which, tmp_path, own, str)
  exported.export(which, tmp_path, say=str)
  task = exported.task("snli", tmp_path)
  for split, most in {"train": 7, "validation": 5, "test": 2}.items():
    found = streamed("snli", split, tmp_path)
    assert 0 < len(found) <= most
    assert tuple(found) == task.examples(split)


def test_a_streamed_task_gives_the_ids_and_the_scores_of_the_exported_one(data_dir):
  which, vocabulary = DEFINITIONS["squad_v2"], vocabularies.embedded()
  registered = seqio_tasks.register_streamed(which, vocabulary, data_dir)
  try:
    lengths = {"inputs": 12, "targets": 4}
    dataset = registered.get_dataset(lengths, "test", shuffle=False)
    rows = seqio.EncDecFeatureConverter(pack=False)(dataset, lengths).batch(ROWS)
    (theirs,) = rows.as_numpy_iterator()
    examples = list(exported.examples(which, "test", sources.raw(which, data_dir)))
    tokenized = batches.tokenize(examples, vocabulary, lengths)
    (ours,) = batches.eval_batches(tokenized, ROWS)
    for name, value in ours.items():
      np.testing.assert_array_equal(theirs[name], value, err_msg=name)
    targets = [
      registered.postprocess_fn("any", example=row, is_target=True)
      for row in dataset.as_numpy_iterator()
    ]
    assert targets == [
      (one, labels.spelling(one.targets, vocabulary, 4)) for one in examples
    ]
    (score,) = registered.predict_metric_fns
    predictions = [example.answers[-1] for example in examples]
    assert score(targets, predictions)["squad_f1"] == 1.0
  finally:
    seqio.TaskRegistry.remove("tpv_squad_v2")


def test_streamed_rows_follow_the_seed(data_dir):
  which = DEFINITIONS["glue_rte"]
  vocabulary = vocabularies.WordVocabulary(["entailment", "not_entailment"])
  registered = seqio_tasks.register_streamed(
    which, vocabulary, data_dir, name="tpv_shuffled"
  )
  try:
    first, again, other = (
      [
        row["inputs_pretokenized"]
        for row in registered.get_dataset(
          {"inputs": 8, "targets": 4}, "train", shuffle=True, seed=seed
        ).as_numpy_iterator()
      ]
      for seed in (0, 0, 1)
    )
  finally:
    seqio.TaskRegistry.remove("tpv_shuffled")
  assert first == again != other
  assert sorted(first) == sorted(other)


def test_rows_of_another_label_set_are_refused(data_dir, monkeypatch):
  raw = sources.raw(DEFINITIONS["trec"], data_dir)
  assert raw.origin.startswith("TFDS trec/1.0.0")
  changed = dataclasses.replace(
    DEFINITIONS["trec"], labels={"ENTY": "Entity", "DESC": "Description"}
  )
  monkeypatch.setitem(DEFINITIONS, "trec", changed)
  with pytest.raises(UserError, match="The label set of TFDS trec has changed"):
    sources.raw(changed, data_dir)


def test_data_that_is_not_prepared_is_refused_before_anything_is_read(tmp_path):
  with pytest.raises(UserError, match="Run: tpv tasks prepare glue_rte --data-dir"):
    sources.raw(DEFINITIONS["glue_rte"], tmp_path)


def test_a_download_that_fails_says_how_to_go_on(tmp_path):
  which = DEFINITIONS["glue_rte"]
  builder = tfds.builder(which.tfds, data_dir=str(tmp_path))
  broken = mock.Mock(side_effect=ConnectionError("no route to host"))
  with (
    mock.patch.object(type(builder), "_split_generators", broken),
    pytest.raises(UserError, match=r"no route to host.*same command again.*--from"),
  ):
    sources.prepare(which, tmp_path, say=str)


@pytest.mark.parametrize("name", ["glue_mnli", "super_glue_multirc", "ag_news"])
def test_mock_data_of_tfds_go_both_roads(name, tmp_path):
  # Invented texts and labels in TFDS's own shapes, from its code alone.
  which = DEFINITIONS[name]
  counts = dict.fromkeys(sources.needed_splits(which), 8)
  with (
    tfds.testing.mock_data(num_examples=8),
    mock.patch.object(sources.Tfds, "counts", counts),
  ):
    assert len(streamed(name, "test", tmp_path)) == 8
    exported.export(which, tmp_path, ["test"], say=str)
  assert len(exported.task(name, tmp_path).examples("test")) == 8

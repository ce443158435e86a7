"""Every task of both papers trains two steps and is evaluated, without TensorFlow."""

import functools
import json

import jax
import numpy as np
import pytest

from tpv_jax.backbones import loading
from tpv_jax.core import identity
from tpv_jax.data import exported, sources, vocabularies
from tpv_jax.data.papers import definition
from tpv_jax.data.registry import DEFINITIONS
from tpv_jax.evaluation import evaluation
from tpv_jax.model import SoftPromptModel
from tpv_jax.prompts import plain
from tpv_jax.runs import run_folder
from tpv_jax.training import initial, optimizers, task_data, training
from tpv_jax.vectors import store

LENGTHS = {"inputs": 24, "targets": 6}


@pytest.fixture(scope="module")
def data_dir(tmp_path_factory):
  """Every task, exported from its two example rows, four times each."""
  folder = tmp_path_factory.mktemp("data")
  for which in DEFINITIONS.values():
    if which.name == which.data:
      own = folder / "own" / which.name
      own.mkdir(parents=True)
      for split in sources.needed_splits(which):
        rows = definition.example_rows(which) * 4
        text = "\n".join(
          json.dumps(numbered(which, row, split, i)) for i, row in enumerate(rows)
        )
        (own / f"{split}.jsonl").write_text(text)
      sources.prepare(which, folder, own, str)
    exported.export(which, folder, say=str)
  return folder


def numbered(which, row, split, number):
  """The row with a number in its first text, so that no two are alike, and its group."""
  text = which.columns[0]
  # Of MultiRC's questions 43 to 50 the last is the first that validation takes.
  group = {which.group: 43 + number} if which.group is not None else {}
  return {**row, **group, text: f"{row[text]} {split} {number}"}


@pytest.fixture(scope="module")
def parts(tiny, data_dir):
  """A vocabulary of all words of the examples, and a random backbone and model for it."""
  words = {
    word
    for name, which in DEFINITIONS.items()
    for split in ("train", "test")
    for example in exported.task(name, data_dir).examples(split)
    for text in (example.inputs, example.targets, *(which.words or ()))
    for word in text.split()
  }
  vocabulary = vocabularies.WordVocabulary(sorted(words))
  model = SoftPromptModel(
    tiny.network.clone(vocab_size=vocabulary.vocab_size),
    plain.Prompt(length=4, features=16),
    vocabulary,
    vocabulary,
    optimizer_def=optimizers.adamw(),
  )
  params = model.get_initial_variables(jax.random.key(0), {})["params"]
  flat = {
    path: np.asarray(leaf)
    for path, leaf in identity.flatten(params).items()
    if not path.startswith("prompt/")
  }
  backbone = loading.Backbone(
    identity.unflatten(flat), "random", identity.backbone_fingerprint(flat)
  )
  evaluator = evaluation.Evaluator(model, backbone.params, vocabulary, LENGTHS, 8)
  train = functools.partial(
    training.train,
    model=model,
    total_steps=2,
    learning_rate=optimizers.constant(0.1),
    backbone=backbone,
    initial_prompt=functools.partial(initial.sampled_vocabulary, length=4),
    eval_period=2,
    progress=False,
  )
  return vocabulary, train, evaluator


@pytest.mark.parametrize(
  "name",
  # The T5 package's other variants have the same examples under other names of fields.
  [n for n, which in DEFINITIONS.items() if n == which.data] + ["super_glue_wsc_t5"],
)
def test_a_task_trains_two_steps_and_is_evaluated(name, parts, data_dir, tmp_path):
  vocabulary, train, evaluator = parts
  task = exported.task(name, data_dir)
  data = task_data.TaskData(task, vocabulary, LENGTHS, batch_size=4)
  train(data=data, run_dir=tmp_path)
  folder = run_folder.RunFolder(tmp_path)
  # What was held back is recorded too.
  splits = folder.manifest()["data"]["origin"]["splits"]
  assert splits["test"]["digest"] == task.split_digest("test")
  start, end = (store.read(folder.prompt(which))[0] for which in ("initial", "last"))
  assert np.abs(end["prompt"] - start["prompt"]).max() > 0.01
  result = evaluator.evaluate({"prompt": end["prompt"]}, task, "test")
  assert set(DEFINITIONS[name].metrics) <= set(result.scores)
  assert all(-1 <= value <= 1 for value in result.scores.values())

"""Our registry's tasks, the T5 package's and one of TFDS, end to end under T5X.

No data is downloaded: `tfds.testing.mock_data` invents examples of the right shape, and
a SentencePiece model made here stands in for the public one.
"""

import functools
import importlib
import io
import json
import subprocess
import sys
from unittest import mock

import numpy as np
import pytest

from tpv_jax.backbones import loading
from tpv_jax.core.errors import UserError
from tpv_jax.data import vocabularies
from tpv_jax.data.papers import definition
from tpv_jax.training import optimizers

LENGTHS = {"inputs": 64, "targets": 16}
VOCABULARY_SIZE = 300
TASKS = ("glue_sst2_v002", "glue_mrpc_v002", "super_glue_boolq_v102")


@pytest.fixture(scope="module")
def vocabulary(tmp_path_factory):
  """A SentencePiece model that spells every text in bytes."""
  import sentencepiece

  model = io.BytesIO()
  sentencepiece.SentencePieceTrainer.train(
    sentence_iterator=iter(["sst2 sentence: a b c", "boolq passage: question:"]),
    model_writer=model,
    vocab_size=VOCABULARY_SIZE,
    pad_id=0,
    eos_id=1,
    unk_id=2,
    bos_id=-1,
    byte_fallback=True,
    hard_vocab_limit=False,
    minloglevel=2,
  )
  path = tmp_path_factory.mktemp("vocabulary") / "spiece.model"
  path.write_bytes(model.getvalue())
  return vocabularies.SentencePieceVocabulary(str(path), extra_ids=100)


@pytest.fixture(scope="module")
def t5_mixtures(t5x, vocabulary):
  """The T5 package's tasks, with this vocabulary; skips where it is not installed."""
  try:
    utils = importlib.import_module("t5.data.utils")
    utils.DEFAULT_SPM_PATH = str(vocabulary.path)
    return importlib.import_module("t5.data.mixtures")
  except ImportError as error:
    pytest.skip(f"the package t5 cannot be imported ({error}): see docs/t5x.md")


@pytest.fixture
def parts(under_t5x, tiny, vocabulary, tmp_path):
  """T5X's parts around a tiny random network with this vocabulary."""
  import jax

  from tpv_jax.core import identity
  from tpv_jax.model import SoftPromptModel
  from tpv_jax.prompts import plain
  from tpv_jax.t5x.optimizer import TransformationOptimizer

  made = SoftPromptModel(
    tiny.network.clone(vocab_size=512),
    plain.Prompt(length=4, features=16),
    vocabulary,
    vocabulary,
    TransformationOptimizer(optimizers.adamw()),
  )
  params = made.get_initial_variables(jax.random.key(0), {})["params"]
  flat = {
    path: np.asarray(leaf)
    for path, leaf in identity.flatten(params).items()
    if not path.startswith("prompt/")
  }
  loading.save_backbone(tmp_path / "b.safetensors", flat, "random")
  return under_t5x(
    tmp_path / "run",
    model=made,
    backbone=tmp_path / "b.safetensors",
    vocabulary=vocabulary,
  )


def train_two_steps(parts, name, vocabulary, modules=()):
  import tensorflow_datasets as tfds
  from t5x import utils

  from tpv_jax.t5x import tasks

  config = utils.DatasetConfig(
    mixture_or_task_name=tasks.named(name, vocabulary, modules),
    task_feature_lengths=LENGTHS,
    split="train",
    batch_size=4,
    shuffle=True,
    seed=0,
    use_cached=False,
    pack=False,
  )
  # Without the download there are neither shards to list nor sizes.
  about = mock.patch.multiple(
    "seqio.utils.LazyTfdsLoader",
    files=lambda *_: [{"filename": "shard"}],
    size=lambda *_: 20,
  )
  with tfds.testing.mock_data(num_examples=20), about:
    rows = utils.get_dataset(config, 0, 1, parts.model.FEATURE_CONVERTER_CLS)
    trainer = parts.trainer(optimizers.constant(0.1))
    before = np.asarray(trainer.train_state.params["prompt"]["prompt"])
    result = trainer.train(iter(rows.as_numpy_iterator()), 2).result()
    after = np.asarray(trainer.train_state.params["prompt"]["prompt"])
    trainer.close()
  assert np.isfinite(float(result["loss"].value))
  assert np.abs(after - before).max() > 0.01


@pytest.mark.slow
def test_the_t5_package_is_imported_in_a_process_that_has_locked_gin(t5_mixtures):
  script = (
    "import gin, t5x.train\n"
    "gin.finalize()\n"
    "from tpv_jax.data import vocabularies\n"
    "from tpv_jax.t5x import tasks\n"
    "tasks.named('glue_sst2', vocabularies.embedded(), ['t5.data.mixtures'])\n"
  )
  done = subprocess.run(
    [sys.executable, "-c", script], capture_output=True, text=True, check=False
  )
  # It knows the package's tasks.
  assert "no task or mixture 'glue_sst2'. Did you mean 'glue_sst2_v" in done.stderr


@pytest.mark.parametrize("name", TASKS)
def test_tasks_of_the_t5_package_train(t5_mixtures, parts, vocabulary, name):
  train_two_steps(parts, name, vocabulary, ["t5.data.mixtures"])


def test_a_task_of_the_t5_package_with_another_vocabulary_is_refused(t5_mixtures):
  from tpv_jax.t5x import tasks

  with pytest.raises(UserError, match="ids would mean other words"):
    tasks.named(TASKS[0], vocabularies.embedded())


def test_any_tfds_task_trains(t5x, parts, vocabulary):
  import seqio

  from tpv_jax.data import seqio_tasks

  feature = seqio.Feature(seqio_tasks.seqio_vocabulary(vocabulary), add_eos=True)
  rekey = {"inputs": "text", "targets": "text"}
  seqio.TaskRegistry.add(
    "tpv_test_imdb",
    source=seqio.TfdsDataSource("imdb_reviews/plain_text:1.0.0"),
    preprocessors=[
      functools.partial(seqio.preprocessors.rekey, key_map=rekey),
      seqio.preprocessors.tokenize,
      seqio.preprocessors.append_eos_after_trim,
    ],
    output_features={"inputs": feature, "targets": feature},
  )
  try:
    train_two_steps(parts, "tpv_test_imdb", vocabulary)
  finally:
    seqio.TaskRegistry.remove("tpv_test_imdb")


@pytest.mark.parametrize("name", ["glue_mnli", "sst5"])
def test_streamed_tasks_of_the_registry_train(
  t5x, parts, vocabulary, monkeypatch, tmp_path, name
):
  import seqio

  from tpv_jax.data import registry, sources
  from tpv_jax.t5x import tasks

  which = registry.definition(name)
  if which.tfds:  # invented by `mock_data`, which knows no sizes
    monkeypatch.setattr(sources.Tfds, "counts", {"train": 20, which.held_out: 20})
  else:
    for split in sources.needed_splits(which):
      rows = definition.example_rows(which) * 4
      (tmp_path / f"{split}.jsonl").write_text("\n".join(map(json.dumps, rows)))
    sources.prepare(which, tmp_path, tmp_path, str)
  registered = tasks.streamed(name, vocabulary, tmp_path)
  try:
    train_two_steps(parts, registered, vocabulary)
  finally:
    seqio.TaskRegistry.remove(registered)

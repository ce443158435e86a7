"""The committed backbone is small, is the one the card names, and knows its tasks."""

import pathlib
import random

import gin
import jax
import numpy as np
import pytest

from tpv_jax import embedded
from tpv_jax.backbones import loading
from tpv_jax.backbones.t5 import network
from tpv_jax.data import vocabularies
from tpv_jax.embedded import lexicon, suite
from tpv_jax.settings import gin_files

HERE = pathlib.Path(embedded.__file__).parent


@pytest.fixture(scope="module")
def transformer():
  """The network of the gin file that users include."""
  gin_files.parse(["gin_configs/runs/eval_embedded.gin"])
  built = gin.get_configurable(network.Transformer)()
  yield built
  gin.clear_config()


@pytest.fixture(scope="module")
def backbone(transformer):
  return loading.load_backbone("embedded", transformer, vocabularies.embedded())


def test_the_file_is_at_most_4_mb():
  assert (HERE / "backbone.safetensors").stat().st_size <= 4_000_000


def test_the_card_names_the_file(backbone):
  card = (HERE / "MODEL_CARD.md").read_text()
  assert backbone.fingerprint in card
  assert backbone.name in card


def test_initial_prompts_are_drawn_from_content_words():
  text = (HERE.parents[1] / "gin_configs" / "backbones" / "embedded.gin").read_text()
  assert f"sampled_vocabulary.first = {lexicon.first_content_id()}\n" in text


@pytest.fixture(scope="module")
def first_words(transformer, backbone):
  """Gives the logits of the first target word, [B, V]."""
  start = np.zeros((200, 1), np.int32)

  @jax.jit
  def logits(tokens):
    return transformer.apply({"params": backbone.params}, tokens, start, start)[:, 0]

  return logits


def sources(name, cued, longest=32):
  """Returns 200 validation sources and their label ids; `cued`: label words before them."""
  vocabulary = vocabularies.embedded()
  randomness = random.Random(3)
  tokens = np.zeros((200, longest), np.int32)
  answers = []
  for row, example in zip(
    tokens, suite.examples(name, "validation")[:200], strict=True
  ):
    cues = " ".join(randomness.sample(lexicon.labels(name), 2)) if cued else ""
    ids = [*vocabulary.encode(f"{cues} {example.inputs}"), vocabulary.eos_id]
    row[: len(ids)] = ids
    answers += vocabulary.encode(example.targets)
  return tokens, np.array(answers)


@pytest.mark.parametrize("name", suite.TASKS)
def test_asked_by_label_words_it_labels_and_unasked_it_is_silent(name, first_words):
  tokens, answers = sources(name, cued=True)
  accuracy = np.mean(np.argmax(first_words(tokens), -1) == answers)
  assert accuracy >= 0.85
  tokens, _ = sources(name, cued=False)
  silent = np.mean(np.argmax(first_words(tokens), -1) == vocabularies.embedded().eos_id)
  assert silent >= 0.85

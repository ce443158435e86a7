"""Our numbers beside transformers' own, on weights that no reference stores.

Both run in one process, so this needs torch and transformers (the extra 'parity') and skips
without them. What `tpv convert` writes for transformers is loaded there, too.
"""

import functools
import pathlib
import sys

import hf_references as references
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tpv_jax.backbones import conversion, loading
from tpv_jax.backbones.llama import hugging_face
from tpv_jax.backbones.llama.network import Llama
from tpv_jax.core import identity
from tpv_jax.data import batches
from tpv_jax.model import SoftPromptModel
from tpv_jax.prompts.equations import Folded

pytestmark = pytest.mark.usefixtures("compiles_faster")

SEED = 20_251_128
"""Not that of a stored reference."""

TOLERANCE = 1e-5
"""Largest difference over largest logit, in fp32; about a hundred roundings."""

SOURCES, TARGETS = [30, 8, 1], [4, 7, 2]


class Ids:
  """A vocabulary of which only the end token matters."""

  eos_id, end_ids, unk_id = 3, (3,), -1


@pytest.fixture(scope="module")
def theirs():
  """The module that makes the references, with `transformers` behind it."""
  pytest.importorskip("torch", reason="needs the extra 'parity'")
  pytest.importorskip("transformers", reason="needs the extra 'parity'")
  folder = str(pathlib.Path(references.FOLDER))
  sys.path.insert(0, folder)
  try:
    import make_llama_references
  finally:
    sys.path.remove(folder)
  return make_llama_references


class Case:
  """A family's model of random weights there, and as a folder here."""

  def __init__(self, theirs, family, folder):
    import transformers

    self.theirs, self.config = theirs, theirs.FAMILIES[family]
    rng = np.random.default_rng(SEED)
    leaves = theirs.random_weights(self.config, rng)
    self.model = theirs.hf.loaded(
      self.config, leaves, transformers.AutoModelForCausalLM
    )
    self.folder = references.write_folder(folder / family, family, leaves)
    size = self.config["vocab_size"]
    self.source, self.target = (
      theirs.random_tokens(lengths, size, rng) for lengths in (SOURCES, TARGETS)
    )
    rows = rng.standard_normal((5, self.config["hidden_size"]))
    self.prompt = rows.astype(np.float32)

  def logits(self, model):
    """Returns what a model of theirs gives at all positions."""
    return self.theirs.scores(model, self.source, self.target, self.prompt)["logits"]


@pytest.fixture(scope="module")
def case(theirs, tmp_path_factory):
  folder = tmp_path_factory.mktemp("live")
  return functools.cache(lambda family: Case(theirs, family, folder))


def reloaded(folder):
  import torch
  import transformers

  found = transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
  return found.eval()


@pytest.mark.parametrize("family", references.LLAMAS)
def test_logits_of_fresh_weights_are_those_of_transformers(case, family):
  one = case(family)
  expected = one.logits(one.model)
  network = Llama(**hugging_face.read_config(one.folder).numbers)
  params = loading.load_backbone(one.folder, network).params
  model = SoftPromptModel(network, None, Ids(), Ids())
  batch = batches.features(one.source + 1, one.target + 1)
  prompt = Folded(jnp.asarray(one.prompt))
  found = np.asarray(jax.jit(model.target_logits)(prompt, params, batch))[..., 1:]
  for row, (before, after) in enumerate(zip(SOURCES, TARGETS, strict=True)):
    at = len(one.prompt) + before - 1 + np.arange(after)
    distance = np.abs(found[row, :after] - expected[row, at]).max()
    assert distance / np.abs(expected).max() < TOLERANCE


@pytest.mark.parametrize("family", references.LLAMAS)
def test_what_goes_out_has_the_same_logits_in_transformers(case, family, tmp_path):
  one = case(family)
  expected = one.logits(one.model)
  source = one.folder
  # By way of our file, which states all numbers, and straight from folder to folder.
  for name, to in (("ours.safetensors", None), ("back", "hugging-face")):
    with conversion.planned(source, conversion.target_of(name, to)) as plan:
      conversion.convert(plan, source, tmp_path / name, lambda *_: None)
    source = tmp_path / name
  with conversion.planned(one.folder, "hugging-face") as plan:
    conversion.convert(plan, one.folder, tmp_path / "again", lambda *_: None)
  for name in ("back", "again"):
    model = reloaded(tmp_path / name)
    assert [type(model).__name__] == one.config["architectures"]
    distance = np.abs(one.logits(model) - expected).max()
    assert distance / np.abs(expected).max() < 1e-6
    leaves = {path: leaf.numpy() for path, leaf in one.model.state_dict().items()}
    for path, leaf in model.state_dict().items():
      np.testing.assert_array_equal(leaf.numpy(), leaves[path])
  assert model.config.eos_token_id == one.config["eos_token_id"]
  assert model.generation_config.eos_token_id == one.config["eos_token_id"]
  found = identity.flatten(loading.load_backbone(tmp_path / "back").params)
  assert (
    found.keys() == identity.flatten(loading.load_backbone(one.folder).params).keys()
  )


def test_mistral_goes_out_with_its_window(case, theirs, tmp_path):
  one = case("mistral")
  with conversion.planned(one.folder, "hugging-face") as plan:
    conversion.convert(plan, one.folder, tmp_path / "back", lambda *_: None)
  rng = np.random.default_rng(0)
  long = theirs.random_tokens([240], one.config["vocab_size"], rng)
  after = theirs.random_tokens([3], one.config["vocab_size"], rng)
  assert long.shape[1] > one.config["sliding_window"]
  expected, found = (
    theirs.scores(model, long, after, None)["logits"]
    for model in (one.model, reloaded(tmp_path / "back"))
  )
  np.testing.assert_allclose(found, expected, atol=1e-5)

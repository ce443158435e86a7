"""A backbone that an earlier version converted is read, converted and computed alike."""

import pathlib
import sys

import numpy as np
import pytest

from tpv_jax.backbones import loading
from tpv_jax.core import identity
from tpv_jax.io import orbax

FIXTURES = pathlib.Path(__file__).parents[1] / "fixtures"
sys.path.append(str(FIXTURES))

import write_backbone  # noqa: E402

FOLDER = FIXTURES / "v0_1_0" / "backbone"
FORMS = ("tiny_t5", *write_backbone.FORMS)


def stored():
  with np.load(FOLDER / "logits.npz", allow_pickle=False) as file:
    return dict(file)


@pytest.mark.parametrize("form", FORMS)
def test_every_form_is_known_by_its_fingerprint_and_gives_the_logits_of_then(form):
  backbone = loading.load_backbone(FOLDER / form)
  assert backbone.fingerprint == str(stored()["fingerprint"])
  assert backbone.name == "tiny_t5"
  # Sums of 16 products of about 1 in fp32, whatever their order.
  np.testing.assert_allclose(
    write_backbone.logits(FOLDER / form), stored()["logits"], rtol=0, atol=1e-5
  )


def test_every_form_holds_the_bits_of_the_weights_it_was_made_of():
  """Hugging Face's matrices lie the other way round."""
  theirs = identity.flatten(loading.load_backbone(FOLDER / "tiny_t5").params)
  table = write_backbone.weights()["shared.weight"]
  assert theirs["token_embedder/embedding"].tobytes() == table.tobytes()
  for form in write_backbone.FORMS:
    leaves = identity.flatten(loading.load_backbone(FOLDER / form).params)
    assert leaves.keys() == theirs.keys()
    for name, leaf in theirs.items():
      assert leaves[name].tobytes() == leaf.tobytes(), (form, name)


def test_converting_it_again_writes_the_bytes_of_then(tmp_path):
  made = tmp_path / "ours.safetensors"
  write_backbone.convert(FOLDER / "tiny_t5", made, "safetensors")
  assert made.read_bytes() == (FOLDER / "ours.safetensors").read_bytes()

  name = "t5x/checkpoint_0"
  write_backbone.convert(FOLDER / "tiny_t5", tmp_path / name, "t5x")
  noted = f"{name}/{loading.BESIDE}"
  assert (tmp_path / noted).read_bytes() == (FOLDER / noted).read_bytes()
  now, then = (orbax.read_leaves(root / name, "target") for root in (tmp_path, FOLDER))
  assert now.keys() == then.keys()
  for path, leaf in then.items():
    assert now[path].dtype == leaf.dtype
    assert now[path].tobytes() == leaf.tobytes(), path


@pytest.mark.parametrize("form", FORMS)
def test_every_form_goes_back_to_the_bytes_of_hugging_face(form, tmp_path):
  write_backbone.convert(FOLDER / form, tmp_path / "back", "hugging-face")
  for name, then in (
    ("model.safetensors", FOLDER / "tiny_t5" / "model.safetensors"),
    ("config.json", FOLDER / "back" / "config.json"),
    (loading.BESIDE, FOLDER / "back" / loading.BESIDE),
  ):
    assert (tmp_path / "back" / name).read_bytes() == then.read_bytes(), name

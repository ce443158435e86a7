"""A backbone's own config gives its network; nothing of its values is read."""

import hf_references as references
import llama_models as models
import numpy as np
import pytest

from tpv_jax.backbones import conversion, loading, networks
from tpv_jax.backbones.t5 import network
from tpv_jax.core.errors import UserError


def converted(source, output, to):
  with conversion.planned(source, to) as plan:
    conversion.convert(plan, source, output, lambda *_: None)
  return output


@pytest.mark.parametrize("family", references.FAMILIES)
def test_every_form_of_a_t5_gives_its_network(tmp_path, family):
  folder = references.write_folder(tmp_path / "model", family)
  expected = network.Transformer(
    **references.numbers(family), dtype="bfloat16", dropout_rate=0.1, remat=True
  )
  for path in (
    folder,
    converted(folder, tmp_path / "checkpoint_0", "t5x"),
    converted(folder, tmp_path / "one.safetensors", "safetensors"),
  ):
    assert networks.network(str(path), "bfloat16", 0.1, True) == expected
    assert networks.features(str(path)) == 16


def test_the_embedded_backbone_gives_the_network_of_its_gin_file():
  assert networks.network("embedded") == network.Transformer(
    vocab_size=360,
    emb_dim=128,
    num_heads=4,
    head_dim=16,
    num_encoder_layers=2,
    num_decoder_layers=2,
    mlp_dim=128,
    logits_via_embedding=True,
  )


def test_no_value_is_read(tmp_path, monkeypatch):
  folder = models.write(tmp_path / "model", models.CONFIGS["llama"])
  path = converted(folder, tmp_path / "one.safetensors", "safetensors")
  monkeypatch.setattr(loading.Leaf, "__array__", None)
  for one in (folder, path):
    assert networks.features(str(one)) == 12


def test_a_file_that_does_not_tell_its_numbers_is_refused(tmp_path):
  path = tmp_path / "silent.safetensors"
  leaves = {"decoder/token_embedder/embedding": np.ones((4, 2), np.float32)}
  loading.save_backbone(path, leaves, "silent")
  with pytest.raises(UserError, match="does not state the numbers of its network"):
    networks.network(str(path))


def test_settings_of_a_network_are_checked(tmp_path):
  folder = references.write_folder(tmp_path / "model", "t5")
  with pytest.raises(UserError, match="dtype"):
    networks.network(str(folder), "float16")
